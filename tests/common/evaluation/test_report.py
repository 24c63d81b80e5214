"""From records to the table, its picture and Transfer / Avg / Last."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.evaluation.report import (
    ZERO_SHOT,
    accuracy_lines,
    accuracy_matrix,
    heat_map,
    matrix_table,
    show_matrix,
    show_triple,
)
from common.runs import Run

SETS = ["MNIST", "EuroSAT", "DTD"]
CELLS = [[30.0, 40.0, 50.0], [90.0, 38.0, 46.0], [80.0, 95.0, 42.0], [70.0, 85.0, 99.0]]


def run_with(folder: Path, rows: int) -> Run:
    """A run that was evaluated before any task and after the first rows - 1."""
    run = Run(folder, {}, {"method": "Ours"})
    for task, values in enumerate(CELLS[:rows]):
        for name, value in zip(SETS, values):
            run.record(accuracy_lines(name, task, {"accuracy": value, "accuracy_top5": 100.0}, seconds=1.0))
    return run


def test_lines_of_a_cell_and_whose_they_are(tmp_path: Path) -> None:
    run = run_with(tmp_path, rows=2)
    (before,), (after,) = (run.find(dataset="DTD", after_task=task, metric="accuracy") for task in (0, 1))
    assert (before["method"], before["value"]) == (ZERO_SHOT, 50.0)
    assert (after["method"], after["value"]) == ("Ours", 46.0)
    assert run.find(dataset="DTD", after_task=1, metric="accuracy_top5")[0]["value"] == 100.0


def test_the_matrix_of_the_records(tmp_path: Path) -> None:
    run = run_with(tmp_path, rows=4)
    assert accuracy_matrix(run, SETS, (1, 2, 3)) == CELLS
    assert accuracy_matrix(run, SETS[::-1], (1,)) == [row[::-1] for row in CELLS[:2]]


def test_a_cell_that_is_not_on_record_is_nan_and_shown_as_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_with(tmp_path, rows=2)
    matrix = accuracy_matrix(run, [*SETS, "Food"], (1, 2))
    assert [[value != value for value in row] for row in matrix] == [[False] * 3 + [True]] * 2 + [[True] * 4]
    assert matrix_table(matrix, ["zero-shot", "MNIST", "EuroSAT"], [*SETS, "Food"]).splitlines()[2:] == [
        "MNIST          90.0     38.0     46.0        -",
        "EuroSAT           -        -        -        -",
    ]
    show_matrix(run, matrix, ["zero-shot", "MNIST", "EuroSAT"], [*SETS, "Food"], "Ours")
    assert "Ours: accuracy (%) after each task" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "accuracy.csv") as file:
        assert list(csv.reader(file))[2] == ["MNIST", "90.0", "38.0", "46.0", "nan"]


def test_the_triple_is_recorded_and_shown_beside_zero_shot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_with(tmp_path, rows=4)
    show_triple(run, CELLS, SETS, "A method of a long name")
    found = {line["metric"]: line["value"] for line in run.find(dataset="mean", after_task=3)}
    transfer, last = (38 + (46 + 42) / 2) / 2, (70 + 85 + 99) / 3
    assert found == pytest.approx({"transfer": transfer, "avg": sum(map(sum, CELLS[1:])) / 9, "last": last})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "                           Transfer       Avg      Last",
        "zero-shot                      45.0      40.0      40.0",
        "A method of a long name        41.0      71.7      84.7",
    ]


def test_a_single_task_has_no_transfer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = Run(tmp_path, {}, {})
    show_triple(run, [[30.0], [90.0]], ["MNIST"], "Ours")
    assert {line["metric"] for line in run.records} == {"avg", "last"}
    assert "Ours                   -      90.0      90.0" in capsys.readouterr().out
    for line in (tmp_path / "record.jsonl").read_text().splitlines():
        assert "NaN" not in line and json.loads(line)


def test_a_table_of_fewer_rows_than_sets_has_no_triple(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="square"):
        show_triple(Run(tmp_path, {}, {}), CELLS[:3], SETS, "Ours")


def test_a_long_title_stands_whole_in_the_figure(tmp_path: Path) -> None:
    sets = ["Aircraft", "DTD"]
    title = "ZSCL, mtil-custom-Aircraft+Caltech101+CIFAR100+DTD+EuroSAT+Flowers+Food+MNIST, MINIATURE scale"
    heat_map(tmp_path / "accuracy.png", [[50.0, 40.0], [30.0, 60.0]], sets, sets, title)
    with Image.open(tmp_path / "accuracy.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[:, [0, -1]] == 255).all() and (pixels[[0, -1]] == 255).all()
    coloured = np.ptp(pixels, axis=2) > 30
    assert coloured.any(axis=1).mean() > 0.4 and coloured.any(axis=0).mean() > 0.6  # is left to the cells
