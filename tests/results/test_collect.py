"""Reading record files: what is let in, what is left out and told, what is known of a run."""

import json
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.runs import Run
from results import labels
from results.__main__ import select
from results.collect import read_runs
from results.options import Compared
from results.records import Problem
from tests.results.lines import LINE, write_lines

GOLDEN = Path(__file__).parents[1] / "golden"


def only_problem(tmp_path: Path, line: dict | str) -> Problem:
    """The problem of a bad second line between two good ones."""
    good = [{"dataset": "Aircraft"}, {"dataset": "Caltech101"}]
    path = write_lines(tmp_path, [good[0], line, good[1]])
    records, _, problems = read_runs([tmp_path])
    assert [record.dataset for record in records] == ["Aircraft", "Caltech101"]
    assert [(problem.file, problem.line) for problem in problems] == [(str(path), 2)]
    return problems[0]


def test_what_a_run_records_is_read_back(tmp_path: Path) -> None:
    labels = {key: LINE[key] for key in ("paper", "method", "protocol", "backbone", "scale", "seed")}
    run = Run(tmp_path / "run", {"lr": 0.1}, labels)
    run.record([{"dataset": "Aircraft", "after_task": 1, "metric": "accuracy", "value": 62.5, "seconds": 1.5}])
    (record,), _, problems = read_runs([tmp_path])
    assert problems == []
    assert (record.method, record.dataset, record.after_task, record.value) == ("ZSCL, lr 0.1", "Aircraft", 1, 62.5)
    assert (record.seed, record.seconds, record.run) == (42, 1.5, str(tmp_path / "run"))
    assert record.file == str(tmp_path / "run" / "record.jsonl")


def without(field: str) -> str:
    return json.dumps({key: value for key, value in LINE.items() if key != field}) + "\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(LINE)[:70] + "\n", "not JSON"),
        ("\n", "not JSON"),
        ("[1, 2]\n", "no JSON object"),
        (json.dumps(LINE | {"value": float("nan")}) + "\n", "value is nan"),
        (json.dumps(LINE | {"value": float("-inf")}) + "\n", "value is -inf"),
        (json.dumps(LINE | {"value": 10**400}) + "\n", "value is inf"),
        (json.dumps(LINE | {"seconds": float("nan")}) + "\n", "seconds is nan"),
        ({"accuracy": 1.0}, "unknown field 'accuracy'"),
        (without("seed"), "missing field 'seed'"),
        ({"value": "83.6"}, "wrong type of 'value'"),
        ({"value": True}, "wrong type of 'value'"),
        ({"after_task": 1.5}, "wrong type of 'after_task'"),
        ({"seed": None}, "wrong type of 'seed'"),
        ({"method": 3}, "wrong type of 'method'"),
        ({"schema": 2}, "schema version 2"),
        ({"schema": True}, "schema version True"),
        ({"schema": "1"}, "schema version '1'"),
        ({"scale": "large"}, "scale 'large'"),
        ({"after_task": -1}, "after_task -1"),
        ({"value": 250.0}, "value 250 of last is not between 0 and 100"),
        ({"value": -3.0}, "value -3 of last is not between 0 and 100"),
        ({"dataset": "Aircraft", "value": 1.0}, "duplicate of line 1"),
        ({"dataset": "Aircraft", "bad": 1, "seed": "x"}, "unknown field 'bad'; wrong type of 'seed'"),
    ],
)
def test_a_bad_line_is_left_out_and_told(tmp_path: Path, line: dict | str, reason: str) -> None:
    assert reason in only_problem(tmp_path, line).reason


PERCENTAGES = [
    "accuracy", "accuracy_top5", "task_accuracy", "accuracy 00-09", "transfer", "avg", "last", "acc", "avg_acc",
    "acc_macro", "acc_with_task", "faa", "caa", "task_id_accuracy", "cncm_u", "zero_shot", "zero_shot_unseen", "accuracy_with_task", "unseen_accuracy",
]  # fmt: skip
COSTS = [
    "train_seconds", "seconds_per_batch", "peak_memory_mib", "trainable_parameters", "total_parameters", "stored_floats",
    "split_seed", "routed_to/CLIP",
]  # fmt: skip


@pytest.mark.parametrize(("metrics", "low", "high", "values"), [
    (PERCENTAGES, "0", "100", (-0.01, 100.01)),
    (["forgetting", "bwt"], "-100", "100", (-100.01, 100.01)),
    (COSTS, "0", "inf", (-1,)),
])  # fmt: skip
def test_no_number_is_outside_its_metrics_range(
    tmp_path: Path, metrics: list[str], low: str, high: str, values: tuple[float, ...]
) -> None:
    for metric in metrics:
        for value in values:
            reason = only_problem(tmp_path, {"metric": metric, "value": value}).reason
            assert reason == f"value {value:g} of {metric} is not between {low} and {high}"


def test_the_ends_of_a_metrics_range_are_in_it(tmp_path: Path) -> None:
    ends = [("accuracy", 0.0), ("acc", 100.0), ("faa", 100.00000000000001), ("forgetting", -100), ("bwt", -12.5),
            ("ffm", 0), ("train_seconds", 90061.5), ("seconds_per_batch", 250.0), ("peak_memory_mib", 81920.0),
            ("trainable_parameters", 149620736), ("routed_to/Aircraft", 3333), ("split_seed", 1993)]  # fmt: skip
    write_lines(tmp_path, [{"metric": metric, "value": value} for metric, value in ends])
    records, _, problems = read_runs([tmp_path])
    assert problems == [] and [(record.metric, record.value) for record in records] == ends


def test_every_recorded_number_of_the_programs_is_in_range() -> None:
    records, _, problems = read_runs([GOLDEN / "first_edition"])
    assert problems == [] and {record.paper for record in records} == {*labels.PAPERS}
    assert len({record.metric for record in records}) > 25


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{}])
    path.write_bytes(path.read_bytes() + b"\xff\xfe{}\n")
    records, _, problems = read_runs([tmp_path])
    assert len(records) == 1 and [problem.line for problem in problems] == [2]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"backbone": "caf\udce9.pth"}])
    (record,), _, _ = read_runs([tmp_path])
    assert record.backbone == "caf\\udce9.pth"


def test_a_bad_line_does_not_make_the_next_one_a_duplicate(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"value": float("nan")}, {"value": 1.0}])
    records, _, problems = read_runs([tmp_path])
    assert [record.value for record in records] == [1.0] and len(problems) == 1


def test_the_same_key_in_two_runs_is_no_duplicate(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", [{"seed": 1}])
    write_lines(tmp_path / "b", [{"seed": 2}])
    records, _, problems = read_runs([tmp_path])
    assert [record.seed for record in records] == [1, 2] and problems == []


def test_lines_from_before_the_schema_field_are_of_version_1(tmp_path: Path) -> None:
    write_lines(tmp_path, [without("schema")])
    records, _, problems = read_runs([tmp_path])
    assert len(records) == 1 and problems == []


def test_filters_keep_telling_problems(tmp_path: Path) -> None:
    lines = [
        {"scale": "mini"},
        {"dataset": "DTD", "protocol": "mtil-order2"},
        {"dataset": "Food", "paper": "alta"},
        "{\n",
    ]
    write_lines(tmp_path, lines)
    everything, _, problems = read_runs([tmp_path])
    assert [record.scale for record in select(everything, "mini", Compared())[0]] == ["mini"]
    second = select(everything, "paper", Compared(protocol="mtil-order2"))[0]
    assert [record.dataset for record in second] == ["DTD"]
    assert [record.dataset for record in select(everything, "paper", Compared(paper="alta"))[0]] == ["Food"]
    records, _ = select(everything, "mini", Compared(paper="alta"))
    assert records == [] and len(problems) == 1


def test_folders_are_searched_once_and_prefixed_files_found(tmp_path: Path) -> None:
    write_lines(tmp_path / "run", [{"dataset": "Aircraft"}], "Aircraft.record.jsonl")
    write_lines(tmp_path / "run", [{"dataset": "DTD"}], "DTD.record.jsonl")
    records, *_ = read_runs([tmp_path, tmp_path / "run", tmp_path / "run" / "DTD.record.jsonl"])
    assert [record.dataset for record in records] == ["Aircraft", "DTD"]


def test_a_missing_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read_runs([tmp_path / "nowhere"])


def test_provenance_sums_seconds_and_takes_the_peak(tmp_path: Path) -> None:
    labels = {key: LINE[key] for key in ("paper", "method", "protocol", "backbone", "scale", "seed")}
    run = Run(tmp_path, {"lr": 0.1}, labels)
    lines = [
        {"metric": "accuracy", "dataset": "DTD", "after_task": 0, "value": 40.0, "method": "Zero-shot CLIP"},
        {"metric": "train_seconds", "dataset": "Aircraft", "after_task": 1, "value": 10.5},
        {"metric": "train_seconds", "dataset": "DTD", "after_task": 2, "value": 20.0},
        {"metric": "peak_memory_mib", "dataset": "Aircraft", "after_task": 1, "value": 900.0},
        {"metric": "peak_memory_mib", "dataset": "DTD", "after_task": 2, "value": 800.0},
        {"metric": "trainable_parameters", "dataset": "all", "after_task": 2, "value": 149620736},
    ]
    run.record([line | {"seconds": None} for line in lines])
    (entry,) = read_runs([tmp_path])[1]
    assert (entry.method, entry.seed, entry.records) == ("ZSCL, lr 0.1", 42, 6)
    assert (entry.seconds, entry.peak_memory_mib, entry.trainable_parameters) == (30.5, 900.0, 149620736)
    assert entry.command == " ".join(sys.orig_argv) and entry.versions["torch"] and entry.started and entry.machine


@pytest.mark.parametrize("config", [None, "", "a: [", "- a\n- b\n", "provenance: none\n"])
def test_provenance_survives_a_config_that_tells_nothing(tmp_path: Path, config: str | None) -> None:
    write_lines(tmp_path, [{}])
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    (entry,) = read_runs([tmp_path])[1]
    assert (entry.method, entry.commit, entry.command) == ("ZSCL", "0" * 40, "")
    assert entry.versions == {} and entry.seconds is None and entry.trainable_parameters is None


def test_provenance_of_prefixed_files_is_their_own_config(tmp_path: Path) -> None:
    for name in ("Aircraft", "DTD"):
        write_lines(tmp_path, [{"dataset": name}], f"{name}.record.jsonl")
        (tmp_path / f"{name}.config.yaml").write_text(f"provenance: {{command: learn {name}, device: cpu}}\n")
    assert [entry.command for entry in read_runs([tmp_path])[1]] == ["learn Aircraft", "learn DTD"]
    assert {entry.device for entry in read_runs([tmp_path])[1]} == {"cpu"}
