"""Verdicts, matrices and the wall between the miniature and published numbers."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.evaluation.metrics import mtil_triple
from results import labels
from results.collect import read_runs
from results.compare import Comparison, compare, matrices, mtil_means, published_matrices, tolerance
from results.published import Published, read_published
from results.records import Record
from tests.results.lines import matrix_lines, write_lines

PRINTED = Published(
    paper="zscl",
    protocol="mtil-order1",
    method="ZSCL",
    backbone="ViT-B/16",
    metric="last",
    dataset="mean",
    after_task=None,
    value=83.6,
    std=None,
    verified="paper",
    source="a table",
    note="",
)


def records_of(folder: Path, *runs: list[dict]) -> list[Record]:
    for number, lines in enumerate(runs):
        write_lines(folder / str(number), lines)
    records, _, problems = read_runs([folder])
    assert problems == []
    return records


def only(comparisons: list[Comparison], **fields: object) -> Comparison:
    (found,) = [c for c in comparisons if all(getattr(c, name) == value for name, value in fields.items())]
    return found


def judged(tmp_path: Path, *values: float, printed: Published = PRINTED) -> Comparison:
    runs = [[{"value": value, "seed": seed}] for seed, value in enumerate(values)]
    return only(compare([printed], records_of(tmp_path, *runs)))


@pytest.mark.parametrize(("value", "verdict"), [(83.6, "matches"), (84.1, "matches"), (83.1, "matches"),
                                                (84.101, "differs"), (83.099, "differs")])  # fmt: skip
def test_one_run_matches_within_half_a_point(tmp_path: Path, value: float, verdict: str) -> None:
    comparison = judged(tmp_path, value)
    assert (comparison.verdict, comparison.mean, comparison.std, comparison.seeds) == (verdict, value, None, 1)
    assert comparison.difference == pytest.approx(value - 83.6)


def test_each_spread_is_that_of_its_own_number(tmp_path: Path) -> None:
    printed = replace(PRINTED, value=50.0, std=0.73)
    comparison = judged(tmp_path, 84.0, 85.0, 86.0, printed=printed)
    assert (comparison.published, comparison.published_std) == (50.0, 0.73)
    assert (comparison.mean, comparison.std) == (pytest.approx(85.0), pytest.approx(1.0))
    assert comparison.difference == pytest.approx(35.0)
    assert judged(tmp_path, 84.0, printed=printed).published_std == 0.73


def test_several_seeds_match_within_two_standard_errors(tmp_path: Path) -> None:
    values = (84.0, 85.0, 86.0)  # mean 85, std 1, so 2 / sqrt(3) = 1.155 around the mean
    comparison = judged(tmp_path, *values)
    assert comparison.mean == pytest.approx(85.0) and comparison.std == pytest.approx(1.0) and comparison.seeds == 3
    assert comparison.verdict == "differs"  # 1.4 away
    nearer = replace(PRINTED, value=83.9)
    assert judged(tmp_path, *values, printed=nearer).verdict == "matches"  # 1.1 away


def test_tolerance_is_never_below_half_a_point() -> None:
    assert tolerance(None, 1) == 0.5
    assert tolerance(0.01, 3) == 0.5
    assert tolerance(3.0, 4) == pytest.approx(3.0)


@pytest.mark.parametrize(("values", "std", "verdict"), [
    ((60.0, 90.0), 21.2132, "too noisy"),  # 8.6 away, within 2 * 21.2 / sqrt(2) = 30
    ((82.5375, 83.6, 84.6625), 1.0625, "matches"),  # the same mean as published, 2 * 1.0625 / sqrt(3) = 1.227
    ((82.3, 83.6, 84.9), 1.3, "too noisy"),  # the same mean as published, 2 * 1.3 / sqrt(3) = 1.5011
    ((82.302, 83.6, 84.898), 1.298, "matches"),  # 1.4988
    ((88.0, 93.0), 3.5355, "differs"),  # 6.9 away, 2 * 3.5355 / sqrt(2) = 5
])  # fmt: skip
def test_spread_buys_no_match(tmp_path: Path, values: tuple[float, ...], std: float, verdict: str) -> None:
    comparison = judged(tmp_path, *values)
    assert comparison.std == pytest.approx(std, abs=1e-4)
    assert comparison.verdict == verdict
    assert comparison.difference == pytest.approx(sum(values) / len(values) - 83.6)


@pytest.mark.parametrize("value", [83.6, 90.0])
def test_a_number_of_an_open_setting_is_shown_and_not_judged(tmp_path: Path, value: float) -> None:
    printed = replace(PRINTED, note="setting not stated: the order")
    comparison = judged(tmp_path, value, printed=printed)
    assert (comparison.verdict, comparison.mean, comparison.published) == ("setting not stated", value, 83.6)
    assert comparison.difference == pytest.approx(value - 83.6)
    assert comparison.note == "setting not stated: the order; settings not on record"
    assert only(compare([printed], [])).verdict == "not run"
    elsewhere = replace(PRINTED, note="read in a stored copy; setting not stated")
    assert judged(tmp_path, 83.6, printed=elsewhere).verdict == "matches"  # a note says it first or not at all


@pytest.mark.parametrize(("name", "verdict"), [
    ("ZSCL", "matches"), ("ZSCL (released logs)", "matches"), ("ZSCL (Figure 3a)", "matches"),
    ("ZSCL (as listed by DPW)", "matches"), ("ZSCL (re-run: DPW)", "not run"), ("ZSCL (our reading)", "not run"),
])  # fmt: skip
def test_a_number_printed_elsewhere_meets_the_methods_runs(tmp_path: Path, name: str, verdict: str) -> None:
    elsewhere = replace(PRINTED, method=name, value=83.5, source="elsewhere")
    printed, other, *rest = compare([PRINTED, elsewhere], records_of(tmp_path, [{}]))
    assert (printed.method, printed.verdict, printed.published) == ("ZSCL", "matches", 83.6)
    assert (other.method, other.verdict, other.published, other.source) == (name, verdict, 83.5, "elsewhere")
    assert other.mean == (None if verdict == "not run" else 83.6) and rest == []


def test_two_runs_of_one_seed_count_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", [{"value": 84.0, "seed": 1}])
    write_lines(tmp_path / "b", [{"value": 83.0, "seed": 1}])
    os.utime(tmp_path / "b/record.jsonl", (0, 0))
    comparison = only(compare([PRINTED], read_runs([tmp_path])[0]))
    assert (comparison.mean, comparison.std, comparison.seeds) == (84.0, None, 1)
    assert "the newer of 2 runs of seed 1" in comparison.note
    write_lines(tmp_path / "c", [{"value": 87.0, "seed": 2}])
    other = only(compare([PRINTED], read_runs([tmp_path])[0]))
    assert (other.mean, other.seeds) == (85.5, 2)  # of 84 and 87, not of three runs


def test_not_run_has_no_number_and_no_difference() -> None:
    comparison = only(compare([PRINTED], []))
    assert comparison.verdict == "not run" and comparison.published == 83.6
    assert (comparison.mean, comparison.std, comparison.seeds, comparison.difference) == (None, None, 0, None)


def test_a_number_no_paper_printed_is_shown_without_one(tmp_path: Path) -> None:
    comparison = only(compare([], records_of(tmp_path, [{}])))
    assert (comparison.verdict, comparison.published, comparison.difference) == ("no published value", None, None)
    assert (comparison.paper, comparison.method, comparison.metric, comparison.mean) == ("zscl", "ZSCL", "last", 83.6)


@pytest.mark.parametrize("field", ["method", "protocol", "backbone", "metric", "dataset"])
def test_only_like_is_held_against_like(tmp_path: Path, field: str) -> None:
    other = {"method": "LwF", "protocol": "mtil-order2", "backbone": "RN50", "metric": "avg", "dataset": "DTD"}
    comparisons = compare([PRINTED], records_of(tmp_path, [{field: other[field]}]))
    assert sorted(comparison.verdict for comparison in comparisons) == ["no published value", "not run"]


def test_an_entry_without_backbone_takes_any(tmp_path: Path) -> None:
    assert judged(tmp_path, 83.6, printed=replace(PRINTED, backbone="")).verdict == "matches"


def test_a_run_is_held_against_every_paper_that_printed_its_number(tmp_path: Path) -> None:
    quoting = replace(PRINTED, paper="moe_adapters", value=80.0, note="misprint likely")
    comparisons = compare([PRINTED, quoting], records_of(tmp_path, [{}]))
    assert [(c.paper, c.verdict) for c in comparisons] == [("zscl", "matches"), ("moe_adapters", "differs")]
    assert comparisons[1].note.startswith("misprint likely")


def test_the_miniature_never_meets_a_published_number(tmp_path: Path) -> None:
    records = records_of(tmp_path, [{"scale": "mini"}])
    printed, measured = compare([PRINTED], records)
    assert (printed.verdict, printed.mean) == ("not run", None)
    assert (measured.verdict, measured.mean, measured.published) == ("no published value", 83.6, None)


def test_no_tick_without_a_number_over_all_tables(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(0, 100, (12, 11)).tolist()
    judged_ones = ("matches", "differs", "too noisy", "setting not stated")
    for comparison in compare(read_published(), records_of(tmp_path, matrix_lines(rows[0], rows[1:]))):
        both = comparison.published is not None and comparison.mean is not None
        assert (comparison.verdict in judged_ones) == both == (comparison.difference is not None)


def test_the_latest_task_stands_for_a_scalar_where_no_name_tells_the_last(tmp_path: Path) -> None:
    about = {"metric": "acc", "protocol": "cil-vtab"}
    lines = [about | {"after_task": task, "value": 90.0 - task} for task in (1, 3, 2)]
    assert only(compare([], records_of(tmp_path, lines))).mean == 87.0


def test_every_cil_name_is_avg_or_last() -> None:
    cil = {e.metric for e in read_published() if e.protocol.startswith(("cil-", "til-", "joint-", "dil-"))}
    assert cil - labels.REPORTED.keys() == {"forgetting", "trainable_parameters"}
    assert {labels.column(metric) for metric in labels.REPORTED} == {"avg", "last"}


def matrix_run(seed: int = 0) -> tuple[list[float], np.ndarray, list[dict]]:
    values = np.random.default_rng(seed).uniform(0, 100, (12, 11))
    return values[0].tolist(), values[1:], matrix_lines(values[0].tolist(), values[1:].tolist(), seed=seed)


def test_a_matrix_comes_back_with_its_zero_shot_row(tmp_path: Path) -> None:
    zero_shot, values, lines = matrix_run()
    (matrix,) = matrices(records_of(tmp_path, lines[::-1]))
    assert matrix.values == values.tolist() and matrix.zero_shot == zero_shot
    assert matrix.rows == matrix.columns and matrix.rows[0] == "Aircraft"
    assert (matrix.method, matrix.seed) == ("ZSCL", 0)


def test_transfer_avg_last_of_a_run_come_from_its_matrix(tmp_path: Path) -> None:
    zero_shot, values, lines = matrix_run()
    comparisons = compare([], records_of(tmp_path, lines))
    triple = mtil_triple(values)
    means = {c.metric: c.mean for c in comparisons if c.method == "ZSCL" and c.dataset == "mean"}
    assert means == {"transfer": triple.transfer, "avg": triple.avg, "last": triple.last}
    assert only(comparisons, method="ZSCL", metric="transfer", dataset="DTD").mean == triple.transfer_per_dataset[2]
    before = {c.metric: c.mean for c in comparisons if c.method == "Zero-shot CLIP" and c.dataset == "mean"}
    expected = {"accuracy": np.mean(zero_shot), "avg": np.mean(zero_shot), "last": np.mean(zero_shot)}
    assert before == pytest.approx(expected | {"transfer": np.mean(zero_shot[1:])})
    assert len(comparisons) == 35 + 35 + 12


def test_each_seed_has_a_matrix(tmp_path: Path) -> None:
    records = records_of(tmp_path, matrix_run(0)[2], matrix_run(1)[2])
    assert [matrix.seed for matrix in matrices(records)] == [0, 1]
    assert {c.seeds for c in compare([], records) if c.method == "ZSCL"} == {2}


def test_the_zero_shot_row_of_many_runs_stands_once(tmp_path: Path) -> None:
    zero_shot, values, _ = matrix_run()
    about = [{"method": "LwF", "seed": 1}, {"seed": 2}, {"method": "MoE-Adapters", "paper": "moe_adapters", "seed": 3}]
    runs = [matrix_lines(zero_shot, values.tolist(), **fields) for fields in about]
    only_before = matrix_lines(zero_shot, [], paper="moe_adapters", seed=4)
    comparisons = compare([], records_of(tmp_path, only_before[:5], *runs))  # one run was stopped in between
    before = [c for c in comparisons if c.method == "Zero-shot CLIP"]
    assert len(before) == len({(c.metric, c.dataset) for c in before}) == 35 + 12
    assert {(c.paper, c.seeds, c.std, c.note) for c in before} == {("moe_adapters", 1, None, "")}
    assert only(before, metric="avg", dataset="mean").mean == pytest.approx(np.mean(zero_shot))


def test_zero_shot_rows_that_differ_say_so(tmp_path: Path) -> None:
    records = records_of(tmp_path, *[matrix_lines([value] * 11, [], seed=seed) for seed, value in enumerate((40, 41))])
    row = only(compare([], records), metric="accuracy", dataset="DTD")
    assert (row.mean, row.std, row.seeds, row.note) == (40.5, None, 1, "2 runs, 40.00 to 41.00")


def test_a_zero_shot_run_alone_has_transfer_avg_and_last(tmp_path: Path) -> None:
    zero_shot = matrix_run()[0]
    comparisons = compare(read_published("zscl", "mtil-order1"), records_of(tmp_path, matrix_lines(zero_shot, [])))
    assert only(comparisons, method="Zero-shot CLIP", metric="last", dataset="mean").mean == np.mean(zero_shot)
    transfer = only(comparisons, method="Zero-shot CLIP", metric="transfer", dataset="mean")
    assert transfer.mean == pytest.approx(np.mean(zero_shot[1:])) and transfer.published == 69.4
    assert matrices(records_of(tmp_path, matrix_lines(zero_shot, []))) == []


def test_methods_of_mtil_stand_in_the_papers_order_whatever_the_folders(tmp_path: Path) -> None:
    _, values, _ = matrix_run()
    names = ["MoE-Adapters", "ZSCL", "something new", "WiSE-FT", "iCaRL", "ZSCL*", "LwF-VR", "WE + WiSE", "Fine-tuning"]
    records = records_of(tmp_path, *[matrix_lines([50.0] * 11, values.tolist(), method=name) for name in names])
    ordered = ["Fine-tuning", "iCaRL", "LwF-VR", "WiSE-FT", "WE + WiSE", "ZSCL*", "ZSCL", "MoE-Adapters"]
    ordered.append("something new")
    assert [matrix.method for matrix in matrices(records)] == ordered
    assert list(dict.fromkeys(c.method for c in compare([], records))) == ["Zero-shot CLIP", *ordered]


def test_an_unfinished_sequence_has_a_matrix_but_no_means(tmp_path: Path) -> None:
    _, values, lines = matrix_run()
    records = records_of(tmp_path, [line for line in lines if line["after_task"] <= 3])
    (matrix,) = matrices(records)
    assert matrix.values == values[:3].tolist() and matrix.rows == ["Aircraft", "Caltech101", "CIFAR100"]
    holed = records_of(
        tmp_path / "holed", [line for line in lines if (line["after_task"], line["dataset"]) != (4, "DTD")]
    )
    (matrix,) = matrices(holed)
    assert matrix.values[3][3] is None and mtil_means(matrix) is None
    assert not [c for c in compare([], holed) if c.method == "ZSCL"]


def test_three_of_eleven_tasks_are_no_result_of_the_protocol(tmp_path: Path) -> None:
    zero_shot, _, lines = matrix_run()
    comparisons = compare([], records_of(tmp_path, [line for line in lines if line["after_task"] <= 3]))
    assert not [c for c in comparisons if c.method == "ZSCL"]
    assert only(comparisons, metric="accuracy", dataset="mean").mean == pytest.approx(np.mean(zero_shot))


def test_a_custom_sequence_is_named_by_what_it_learned(tmp_path: Path) -> None:
    trained = [
        {"metric": "train_seconds", "dataset": name, "after_task": task, "value": 1.0, "protocol": "mtil-custom"}
        for task, name in ((1, "DTD"), (2, "MNIST"))
    ]
    cells = [
        {"metric": "accuracy", "dataset": name, "after_task": task, "value": 10.0 * task, "protocol": "mtil-custom"}
        for task in (1, 2)
        for name in ("Food", "MNIST", "DTD")
    ]
    records = records_of(tmp_path, trained + cells)
    (matrix,) = matrices(records)
    assert (matrix.rows, matrix.columns) == (["DTD", "MNIST"], ["DTD", "MNIST", "Food"])
    assert only(compare([], records), metric="avg", dataset="mean").mean == 15.0


def test_a_class_incremental_run_has_a_column_a_task(tmp_path: Path) -> None:
    about = {"protocol": "cil-characters-3x4", "scale": "mini"}
    lines = []
    for after in (1, 2, 3):
        lines.append(about | {"metric": "train_seconds", "dataset": "Characters", "after_task": after, "value": 1.0})
        lines.append(about | {"metric": "accuracy", "dataset": "Characters", "after_task": after, "value": 50.0})
        lines += [
            about | {"metric": "task_accuracy", "dataset": f"task {task}", "after_task": after, "value": 10.0 * task}
            for task in range(after)
        ]
    (matrix,) = matrices(records_of(tmp_path, lines))
    assert matrix.rows == matrix.columns == ["task 0", "task 1", "task 2"] and matrix.zero_shot is None
    assert matrix.values == [[0.0, None, None], [0.0, 10.0, None], [0.0, 10.0, 20.0]]
    pooled = [line for line in lines if line["metric"] != "task_accuracy"]
    (matrix,) = matrices(records_of(tmp_path / "pooled", pooled))
    assert matrix.columns == ["Characters"] and len(matrix.values) == 3


def test_published_matrices_are_the_fourteen_of_zscl() -> None:
    found = published_matrices(read_published())
    assert len(found) == 14 and {matrix.paper for matrix in found} == {"zscl"}
    for matrix in found:
        assert matrix.rows == matrix.columns[:11] and matrix.columns[11:] == ["CIFAR10"]
        assert matrix.zero_shot[matrix.columns.index("Aircraft")] == 24.3 and matrix.zero_shot[11] is None
        assert mtil_means(matrix) is not None
