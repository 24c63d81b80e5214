"""Every metric against the official codes' numbers (tests/golden/common/metrics.json) and worked examples."""

import json
import math

import numpy as np
import pytest
import torch

from common.evaluation.metrics import (
    CILStep,
    backward_transfer_continuum,
    cil_summary,
    class_and_task_il,
    forgetting_continuum,
    inflora_grouped,
    mask_task,
    mtil_triple,
    over_repeats,
    released_cil_log,
    task_accuracies,
    vq_prompt_metrics,
)
from tests.golden_files import GOLDEN, Golden

FIXTURE = json.loads((GOLDEN / "common/metrics.json").read_text())


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", FIXTURE["mtil_triple"], ids=lambda case: case["name"])
def test_mtil_triple(case):
    triple = mtil_triple(case["A"])
    assert len(case["expected"]) == 6
    for name, expected in case["expected"].items():
        close(getattr(triple, name), expected)
    for name, expected in case.get("rounded_1", {}).items():
        assert round(getattr(triple, name), 1) == expected


def test_mtil_triple_by_hand():
    triple = mtil_triple([[50, 60, 40], [45, 80, 30], [44, 75, 90]])
    close(triple.transfer_per_dataset, [60, 35])
    close(triple.transfer, 47.5)  # the mean of all cells above the diagonal would be 43.3
    close(triple.avg_per_dataset, [139 / 3, 215 / 3, 160 / 3])
    close(triple.avg, 514 / 9)
    close(triple.last_per_dataset, [44, 75, 90])
    close(triple.last, 209 / 3)


def test_mtil_triple_of_one_task_has_no_transfer():
    triple = mtil_triple([[70.0]])
    assert triple.transfer_per_dataset.shape == (0,) and math.isnan(triple.transfer)
    assert triple.avg == triple.last == 70.0


def test_mtil_triple_is_float64_whatever_comes_in():
    matrix = np.array([[1 / 3, 0.2], [0.7, 0.9]], dtype=np.float32)
    close(mtil_triple(matrix).avg, matrix.astype(np.float64).mean())


@pytest.mark.parametrize("matrix", [[[1, 2, 3], [4, 5, 6]], [1, 2], []])
def test_a_matrix_that_is_not_square(matrix):
    for metric in (mtil_triple, forgetting_continuum, vq_prompt_metrics):
        with pytest.raises(ValueError, match="square"):
            metric(matrix)


def steps_of(case):
    return [CILStep(step["preds"], step["targets"], step["task_ids"]) for step in case["steps"]]


@pytest.mark.parametrize("case", FIXTURE["cil_continuum"], ids=lambda case: f"{len(case['steps'])} steps")
def test_cil(case):
    steps, expected = steps_of(case), case["expected"]
    summary, matrix = cil_summary(steps), task_accuracies(steps)
    close(summary.acc, 100 * np.array(expected["acc"]))
    close(summary.avg_acc, 100 * np.array(expected["avg_acc"]))
    assert round(summary.last, 2) == expected["last_percent"]
    assert round(summary.avg, 2) == expected["avg_percent"]
    for k, row in enumerate(expected["acc_per_task"]):
        close(matrix[k, : k + 1], 100 * np.array(row))
        assert np.isnan(matrix[k, k + 1 :]).all()
    close(forgetting_continuum(matrix / 100), expected["forgetting"])
    close(backward_transfer_continuum(matrix / 100), expected["bwt"])


def test_cil_by_hand():
    steps = [CILStep([0, 1], [0, 0], [0, 0]), CILStep([0, 0, 2, 3], [0, 0, 2, 2], [0, 0, 1, 1])]
    summary = cil_summary(steps)
    close(summary.acc, [50, 75])
    close([summary.avg, summary.last], [62.5, 75])
    close(forgetting_continuum(task_accuracies(steps)), [0, -50])  # negative: the first task got better
    close(backward_transfer_continuum(task_accuracies(steps)), [0, 50])


def test_cil_pools_samples_and_not_tasks():
    """Three samples of task 0 right, one of task 1 wrong: 75, where the mean over tasks would be 50."""
    steps = [CILStep([0, 0, 0], [0, 0, 0], [0, 0, 0]), CILStep([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1])]
    assert cil_summary(steps).last == 75.0


def test_a_task_without_test_samples():
    with pytest.raises(ValueError, match="step 1 has no test sample of task 0"):
        task_accuracies([CILStep([0], [0], [0]), CILStep([1], [1], [1])])


def test_released_cil_log():
    """The lines that the released class-incremental code logs: percent, 2 decimals, `forgetting` 6."""
    golden = Golden("zscl_cil/metrics")
    *lines, summary_line = golden.meta["lines"]
    keys = ("pred", "target", "task")
    steps = [CILStep(*(golden[f"t{t}/{key}"] for key in keys)) for t in range(len(lines))]
    matrix, summary = task_accuracies(steps), cil_summary(steps)
    log = released_cil_log(matrix)
    for t, line in enumerate(lines):
        assert [round(value, 2) for value in matrix[t, : t + 1]] == line["acc_per_task"]
        assert (round(summary.acc[t], 2), round(summary.avg_acc[t], 2)) == (line["acc"], line["avg_acc"])
        assert round(log.forgetting[t], 6) == line["forgetting"]
        assert (round(log.bwt[t], 2), round(log.fwt[t], 2)) == (line["bwt"], line["fwt"])
    assert summary_line == {"last": round(summary.last, 2), "avg": round(summary.avg, 2)}


def test_released_cil_log_by_hand():
    """After three steps the released sums see one old task and one pair, the standard two and three."""
    matrix = [[80, np.nan, np.nan], [70, 90, np.nan], [60, 50, 95]]
    log = released_cil_log(matrix)
    close(log.forgetting, [0, 0, (80 - 60) / 2])
    close(log.bwt, [0, 0, (60 - 80) / 3])
    close(log.fwt, [0, 70, (70 + 60 + 50) / 3])
    close(forgetting_continuum(matrix), [0, 10, (20 + 40) / 2])
    close(backward_transfer_continuum(matrix), [0, -10, (-10 - 20 - 40) / 3])


@pytest.mark.parametrize("case", FIXTURE["inflora_grouped"], ids=lambda case: f"old {case['nb_old']}")
def test_inflora_grouped(case):
    arguments = (case["y_pred"], case["y_true"], case["nb_old"], case["increment"])
    assert inflora_grouped(*arguments, decimals=2) == case["expected"]
    exact = inflora_grouped(*arguments)
    assert list(exact) == list(case["expected"])
    assert {key: float(np.around(value, 2)) for key, value in exact.items()} == case["expected"]
    hits = np.equal(case["y_pred"], case["y_true"])
    close(exact["total"], 100 * hits.mean())


def test_inflora_groups_leave_out_a_single_class_at_the_end():
    """Labels 0..4 in groups of two: the loop stops before 4, the highest label."""
    grouped = inflora_grouped([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], old_classes=4, increment=2)
    assert list(grouped) == ["total", "00-01", "02-03", "old", "new"]


def test_inflora_group_without_samples_is_nan():
    grouped = inflora_grouped([0, 5], [0, 5], old_classes=2, increment=2)
    assert math.isnan(grouped["02-03"]) and grouped["00-01"] == 100.0


@pytest.mark.parametrize("case", FIXTURE["vq_matrix"], ids=lambda case: f"{len(case['R'])} tasks")
def test_vq_prompt_metrics(case):
    metrics, expected = vq_prompt_metrics(case["R"]), case["expected"]
    close(metrics.average, expected["A"])
    close(metrics.forgetting, expected["FR"])
    close([metrics.faa, metrics.caa, metrics.ffm], [expected[key] for key in ("FAA", "CAA", "FFM")])


def test_vq_prompt_metrics_by_hand():
    matrix = [[90, 80, 70], [np.nan, 88, 84], [np.nan, np.nan, 60]]
    metrics = vq_prompt_metrics(matrix)
    close(metrics.average, [90, 84, 214 / 3])
    close([metrics.faa, metrics.caa, metrics.ffm], [214 / 3, (90 + 84 + 214 / 3) / 3, 12])
    close(metrics.forgetting, [0, 10, 12])


def test_forgetting_of_one_task():
    close(vq_prompt_metrics([[60.0]]).ffm, 0)


def test_over_repeats():
    close(over_repeats([1, 2, 3, 6]), [3, math.sqrt(3.5)])  # with ddof 1 the deviation would be sqrt(14 / 3)


@pytest.mark.parametrize("case", FIXTURE["alta_masks"], ids=lambda case: f"{case['n_tasks']} tasks")
def test_class_and_task_il(case):
    values = [
        class_and_task_il(torch.tensor(task["logits"]), torch.tensor(task["y"]), j, case["classes_per_task"])
        for j, task in enumerate(case["tasks"])
    ]
    expected = case["expected"]
    close(values, np.stack([expected["class_il"], expected["task_il"]], axis=1))
    close(np.mean(values, axis=0), [expected["class_il_mean"], expected["task_il_mean"]])


def test_mask_task_by_hand():
    logits = torch.tensor([[5.0, 1.0, 3.0, 4.0]])
    assert mask_task(logits, 1, 2).tolist() == [[-math.inf, -math.inf, 3.0, 4.0]]
    assert logits.tolist() == [[5.0, 1.0, 3.0, 4.0]]
    assert class_and_task_il(logits, torch.tensor([3]), 1, 2) == (0.0, 1.0)
