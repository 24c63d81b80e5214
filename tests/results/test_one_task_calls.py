"""Record files of one-task calls in one folder: together they are the run of a sequence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.protocols import MTIL_ORDER_1
from results.collect import read_runs
from results.compare import Data, compare, matrices
from results.first_row import as_text, first_row
from results.published import read_published
from results.tables import tables
from tests.results.lines import matrix_lines, shown, write_lines

VALUES = np.random.default_rng(0).uniform(0, 100, (12, 11)).tolist()  # before any task, then after each of eleven


def custom(*names: str) -> str:
    return "mtil-custom-" + "+".join(names)


def call(folder: Path, number: int, protocol: str, **fields: object) -> Path:
    """The file of the call that learned task `number` of order 1: costs, the zero-shot row and its own, a config."""
    name, about = MTIL_ORDER_1[number - 1], {"protocol": protocol} | fields
    cells = [line for line in matrix_lines(VALUES[0], VALUES[1:]) if line["after_task"] in (0, number)]
    costs = [("train_seconds", 10.0 * number, name), ("peak_memory_mib", 900.0 - number, name),
             ("trainable_parameters", 149_620_736, "all")]  # fmt: skip
    lines = [about | {"metric": metric, "value": value, "dataset": which, "after_task": number}
             for metric, value, which in costs]  # fmt: skip
    path = write_lines(folder, [*lines, *(about | cell for cell in cells)], f"{name}.record.jsonl")
    config = path.with_name(f"{name}.config.yaml")
    config.write_text(json.dumps({"provenance": {"command": f"learn {name}", "started": f"2025-01-{number:02d}"}}))
    return path


def eleven_calls(folder: Path, count: int = 11) -> Path:
    for number in range(1, count + 1):
        call(folder, number, "mtil-order1" if number == 11 else custom(*MTIL_ORDER_1[:number]))
    return folder


def test_eleven_calls_are_order_1(tmp_path: Path) -> None:
    write_lines(tmp_path / "whole", matrix_lines(VALUES[0], VALUES[1:]))
    (matrix, numbers), (whole, expected) = shown(eleven_calls(tmp_path / "calls")), shown(tmp_path / "whole")
    assert (matrix.protocol, matrix.rows, matrix.columns) == ("mtil-order1", [*MTIL_ORDER_1], [*MTIL_ORDER_1])
    assert matrix.values == whole.values == VALUES[1:] and matrix.zero_shot == whole.zero_shot == VALUES[0]
    assert numbers.pop(("ZSCL", "trainable_parameters", "all")) == 149_620_736
    assert numbers == expected and len(expected) == 35 + 35 + 12
    records, *_ = read_runs([tmp_path / "calls"])
    met = [item for item in compare(read_published("zscl"), records) if item.mean is not None and item.method == "ZSCL"]
    assert {item.protocol for item in met} == {"mtil-order1"}
    assert sum(item.published is not None for item in met) >= 3


def test_eleven_calls_are_one_entry_of_costs(tmp_path: Path) -> None:
    (entry,) = read_runs([eleven_calls(tmp_path)])[1]
    assert (entry.protocol, entry.method, entry.seconds, entry.peak_memory_mib) == ("mtil-order1", "ZSCL", 660.0, 899.0)
    assert entry.command == " && ".join(f"learn {name}" for name in MTIL_ORDER_1) and entry.started == "2025-01-01"
    assert entry.file == str(tmp_path / "SUN397.record.jsonl") and entry.trainable_parameters == 149_620_736
    assert entry.records == len(read_runs([tmp_path])[0]) == 11 * 3 + 12 * 11


@pytest.mark.parametrize("count", [11, 2, 1])
def test_the_first_row_of_a_sequence_is_that_of_the_order_that_begins_as_it(tmp_path: Path, count: int) -> None:
    records, *_ = read_runs([eleven_calls(tmp_path, count)])
    row = first_row(tmp_path, records, read_published())
    assert row.ours == dict(zip(MTIL_ORDER_1, VALUES[1], strict=True)) and [*row.shown] == ["ZSCL"]
    assert row.shown["ZSCL"]["Aircraft"] == pytest.approx(55.12, abs=0.005)  # in order II it is learned later
    assert ("beside the first row of MTIL, order I" in as_text(row)) == (count < 11)


@pytest.mark.parametrize("protocol", [custom("DTD"), custom("Aircraft") + "-5shot", custom("CIFAR100", "Aircraft")])
def test_no_first_row_is_of_another_task_or_of_few_shots(tmp_path: Path, protocol: str) -> None:
    call(tmp_path, 1, protocol)
    with pytest.raises(UserError, match=f"was published for {re.escape(protocol)} with"):
        first_row(tmp_path, read_runs([tmp_path])[0], read_published())


def test_three_calls_are_a_sequence_of_their_own(tmp_path: Path) -> None:
    matrix, numbers = shown(eleven_calls(tmp_path, 3))
    assert matrix.protocol == custom("Aircraft", "Caltech101", "CIFAR100")
    assert matrix.rows == ["Aircraft", "Caltech101", "CIFAR100"] and matrix.columns[:3] == matrix.rows
    assert [row[:3] for row in matrix.values] == [row[:3] for row in VALUES[1:4]]
    assert numbers["ZSCL", "last", "mean"] == pytest.approx(sum(VALUES[3][:3]) / 3)
    assert numbers["ZSCL", "transfer", "CIFAR100"] == pytest.approx((VALUES[1][2] + VALUES[2][2]) / 2)


def test_a_sequence_of_ones_own_is_on_no_sheet_of_the_eleven_data_sets(tmp_path: Path) -> None:
    records, runs, _ = read_runs([eleven_calls(tmp_path / "own", 3), eleven_calls(tmp_path / "order")])
    data = Data("paper", records, [], compare([], records), runs, [], [])
    sheets = {table.sheet: {row.method[0] for row in table.rows} for table in tables(data)}
    own = {sheet for sheet, protocols in sheets.items() if custom("Aircraft", "Caltech101", "CIFAR100") in protocols}
    assert own == {"Other protocols"} and sheets["MTIL"] == sheets["MTIL order 1"] == {"mtil-order1"}


def test_a_task_that_was_learned_twice_is_in_two_runs(tmp_path: Path) -> None:
    """Two calls go on from one checkpoint."""
    call(tmp_path, 1, custom("Aircraft"))
    call(tmp_path, 2, custom("Aircraft", "Caltech101"))
    call(tmp_path, 4, custom("Aircraft", "DTD"))
    one, other = read_runs([tmp_path])[1]
    assert (one.protocol, one.command) == (custom("Aircraft", "Caltech101"), "learn Aircraft && learn Caltech101")
    assert (other.protocol, other.command) == (custom("Aircraft", "DTD"), "learn Aircraft && learn DTD")


@pytest.mark.parametrize("field", ["method", "backbone", "seed", "paper", "scale"])
def test_only_calls_of_one_method_backbone_and_seed_are_one_run(tmp_path: Path, field: str) -> None:
    other = {"method": "LwF", "backbone": "RN50", "seed": 7, "paper": "moe_adapters", "scale": "mini"}
    call(tmp_path, 1, custom("Aircraft"))
    call(tmp_path, 2, custom("Aircraft", "Caltech101"), **{field: other[field]})
    assert len(read_runs([tmp_path])[1]) == 2


def test_calls_of_other_folders_and_shots_are_other_runs(tmp_path: Path) -> None:
    call(tmp_path / "a", 1, custom("Aircraft"))
    call(tmp_path / "b", 2, custom("Aircraft", "Caltech101"))
    call(tmp_path / "b", 1, custom("Aircraft") + "-5shot")
    assert len(read_runs([tmp_path])[1]) == 3


def test_a_whole_order_stays_a_run_when_it_goes_on(tmp_path: Path) -> None:
    eleven_calls(tmp_path)
    lines = [{"metric": "accuracy", "dataset": "CIFAR10", "after_task": 12, "value": 50.0}]
    protocol = custom(*MTIL_ORDER_1, "CIFAR10")
    write_lines(tmp_path, [line | {"protocol": protocol} for line in lines], "CIFAR10.record.jsonl")
    found = {matrix.protocol: matrix for matrix in matrices(read_runs([tmp_path])[0])}
    assert found["mtil-order1"].values == VALUES[1:]
    assert len(found[protocol].rows) == 12 and len(found) == 2
    assert [entry.seconds for entry in read_runs([tmp_path])[1]] == [660.0, 660.0]


def test_a_sequence_stays_a_run_when_it_goes_on(tmp_path: Path) -> None:
    sets, protocol = ["Aircraft", "Caltech101"], custom("Aircraft", "Caltech101")
    cells = [line | {"protocol": protocol} for line in matrix_lines(VALUES[0][:2], [row[:2] for row in VALUES[1:3]])]
    write_lines(tmp_path, [*cells, {"metric": "last", "after_task": 2, "value": 1.0, "protocol": protocol}])
    call(tmp_path, 3, custom("Aircraft", "Caltech101", "CIFAR100"))
    two, three = sorted(matrices(read_runs([tmp_path])[0]), key=lambda matrix: len(matrix.rows))
    assert two.rows == two.columns == sets and two.values == [row[:2] for row in VALUES[1:3]]
    assert three.rows == [*sets, "CIFAR100"] and three.values[2] == VALUES[3]
    last = {item.protocol: item.mean for item in compare([], read_runs([tmp_path])[0]) if item.metric == "last"
            and item.method == "ZSCL" and item.dataset == "mean"}  # fmt: skip
    assert last == {protocol: 1.0}  # of the whole, a cell is missing
