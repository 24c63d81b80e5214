"""metrics.json: the originals' lines to the letter, and the released runs recomputed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.evaluation.metrics import CILStep, cil_summary
from common.incremental.released_log import cil_lines, load_steps, save_steps, write_metrics
from results.published import read_curves, read_published
from tests.golden_files import Golden
from tests.metrics_json import RELEASED_KEYS, read_metrics

GOLDEN = Golden("zscl_cil/metrics")
STEPS = [
    CILStep(*(GOLDEN.arrays[f"t{t}/{key}"] for key in ("pred", "target", "task")))
    for t in range(len(GOLDEN.meta["lines"]) - 1)
]
RELEASED = Golden("moe_adapters/cil_metrics")
SIZES = {  # test images of the first task and of the others
    "cifar100_10-10-MoE-Adapters": (1000, 1000),
    "cifar100_5-5-MoE-Adapters": (500, 500),
    "tinyimagenet_100-10-MoE-Adapters": (5000, 500),
    "tinyimagenet_100-20-MoE-Adapters": (5000, 1000),
}
PUBLISHED = {  # protocol: Avg, Last of the six released runs
    "cil-cifar100-10x10": (85.21, 77.52),
    "cil-cifar100-20x5": (83.72, 76.20),
    "cil-cifar100-50x2": (83.77, 75.24),
    "cil-tinyimagenet-100+5x20": (81.12, 76.87),
    "cil-tinyimagenet-100+10x10": (80.23, 76.35),
    "cil-tinyimagenet-100+20x5": (79.96, 75.77),
}


def as_released(line: dict) -> str:
    return json.dumps({key: value for key, value in line.items() if not key.endswith("_std")})


def test_lines_are_the_originals_to_the_letter() -> None:
    lines = cil_lines(STEPS)
    assert [as_released(line) for line in lines] == [json.dumps(line) for line in GOLDEN.meta["lines"]]
    assert tuple(lines[0]) == (*RELEASED_KEYS, "forgetting_std", "bwt_std")


def steps_of_released_run(name: str) -> list[CILStep]:
    """Predictions with as many hits as the log says: with these test sizes two decimals are exact."""
    matrix = RELEASED.arrays[f"{name}/R"]
    first, other = SIZES[name]
    steps = []
    for k in range(len(matrix)):
        sizes = [first, *[other] * k]
        hits = [round(matrix[k, j] * size / 100) for j, size in enumerate(sizes)]
        assert np.allclose(100 * np.divide(hits, sizes), matrix[k, : k + 1], rtol=0, atol=1e-9)
        predictions = [np.arange(size) >= count for size, count in zip(sizes, hits)]
        steps.append(
            CILStep(
                np.concatenate(predictions).astype(int), np.zeros(sum(sizes), int), np.repeat(np.arange(k + 1), sizes)
            )
        )
    return steps


@pytest.mark.parametrize("name", RELEASED.meta["runs"])
def test_released_runs_recomputed_to_the_last_digit(name: str) -> None:
    *lines, closing = cil_lines(steps_of_released_run(name))
    for key in ("acc", "avg_acc", "forgetting", "bwt", "fwt"):
        assert [line[key] for line in lines] == RELEASED.arrays[f"{name}/{key}"].tolist()
    assert [closing["last"], closing["avg"]] == RELEASED.arrays[f"{name}/last_avg"].tolist()


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_avg_and_last_of_the_six_released_runs(protocol: str) -> None:
    """Avg is the mean of the accuracies after each task, the base task included; Last is the last of them.

    The logged accuracies are rounded and so is Avg, hence half a digit each.
    """
    rows = [row for row in read_curves("moe_adapters", protocol) if row.metric == "accuracy"]
    assert [row.after_task for row in rows] == list(range(1, len(rows) + 1))
    acc = [row.value for row in rows]
    avg, last = PUBLISHED[protocol]
    assert abs(np.mean(acc) - avg) <= 0.01 and acc[-1] == last
    table = {row.metric: row.value for row in read_published("moe_adapters", protocol) if row.method == "MoE-Adapters"}
    assert (table["avg"], table["last"]) == (avg, last)


def test_standard_definitions_stand_beside_the_released_ones() -> None:
    """Two tasks: the released sums leave the only old task out, the standard ones count it."""
    steps = [CILStep([0] * 4, [0] * 4, [0] * 4), CILStep([0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1])]
    line = cil_lines(steps)[1]
    assert (line["forgetting"], line["bwt"], line["fwt"]) == (0.0, 0.0, 75.0)
    assert (line["forgetting_std"], line["bwt_std"]) == (25.0, -25.0)


def test_a_tie_rounds_as_in_continuum() -> None:
    """95.625 and 55.625 have the mean 75.625; of the fractions it lies just above, hence 75.63 and not 75.62."""
    steps = [
        CILStep([0] * 153 + [1] * 7, [0] * 160, [0] * 160),
        CILStep([0] * 178 + [1] * 142, [0] * 320, [0] * 160 + [1] * 160),
    ]
    assert cil_lines(steps)[1]["avg_acc"] == 75.63
    assert round(cil_summary(steps).avg, 2) == 75.62


def test_a_running_and_a_finished_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for tasks in range(1, len(STEPS) + 1):
        write_metrics(path, STEPS[:tasks], finished=tasks == len(STEPS))
        lines, closing = read_metrics(path)
        assert lines == cil_lines(STEPS[:tasks], finished=False)
        assert closing == (GOLDEN.meta["lines"][-1] if tasks == len(STEPS) else None)
    assert len(path.read_text().splitlines()) == len(STEPS) + 1


def test_an_originals_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(json.dumps(line) for line in GOLDEN.meta["lines"]))
    lines, closing = read_metrics(path)
    assert [*lines, closing] == GOLDEN.meta["lines"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "No such file"),
        ("{", "one JSON object a line"),
        ('{"task": 0, "acc": 3}', "line 1: expected task 0 with acc, avg_acc, forgetting, acc_per_task, bwt, fwt"),
        (json.dumps(GOLDEN.meta["lines"][1]), "line 1: expected task 0"),
        ("[1]", "line 1: expected task 0"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value)


def test_a_resumed_run_writes_the_same_file(tmp_path: Path) -> None:
    assert load_steps(tmp_path / "steps.pth") == []
    before = [CILStep(*(torch.as_tensor(part) for part in step)) for step in STEPS[:3]]
    save_steps(tmp_path / "steps.pth", before)
    after = load_steps(tmp_path / "steps.pth") + STEPS[3:]
    assert cil_lines(after) == cil_lines(STEPS)
