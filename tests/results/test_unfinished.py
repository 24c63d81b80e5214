"""Runs that stopped before their protocol's last task: shown as such, and never taken for a whole run."""

from pathlib import Path
from typing import Any

import pytest

from results import drawing, figures
from results.__main__ import gather, main
from results.collect import read_runs
from results.compare import NOT_RUN, Comparison, Data, compare
from results.page import html
from results.published import read_published
from results.spreadsheet import workbook
from results.tables import tables
from tests.results.lines import write_lines

ABOUT = {"paper": "inflora", "method": "InfLoRA", "protocol": "cil-cifar100-10x10", "backbone": "ViT-B/16 Sup-21K"}


def write_run(folder: Path, seed: int, tested: int, parameters: int = 500, **about: Any) -> None:
    """A run on ten tasks as InfLoRA's: accuracies after each task tested, 99 - task + seed."""
    lines = []
    for task in range(1, tested + 1):
        line = ABOUT | {"seed": seed, "dataset": "CIFAR100", "after_task": task} | about
        accuracies = dict.fromkeys(("accuracy", "acc", "avg_acc"), 99.0 - task + seed)
        costs = {"train_seconds": 10.0, "trainable_parameters": parameters}
        lines += [line | {"metric": name, "value": value} for name, value in (accuracies | costs).items()]
    write_lines(folder, lines)


def data_of(folder: Path) -> Data:
    records, runs, problems = read_runs([folder])
    return gather(records, read_published("inflora", "cil-cifar100-10x10"), problems, runs, "paper")


def acc_of(folder: Path) -> Comparison:
    found = compare(read_published("inflora", "cil-cifar100-10x10"), read_runs([folder])[0])
    (acc,) = [item for item in found if (item.method, item.metric, item.backbone[-7:]) == ("InfLoRA", "acc", "Sup-21K")]
    return acc


def test_seeds_that_stopped_early_are_counted_and_not_averaged(tmp_path: Path) -> None:
    for seed, tested in enumerate((10, 10, 3)):
        write_run(tmp_path / str(seed), seed, tested)
    acc = acc_of(tmp_path)
    assert (acc.mean, acc.seeds) == (89.5, 2) and acc.note.endswith("; 1 run unfinished")
    (table,) = [table for table in tables(data_of(tmp_path)) if table.sheet == "CIL CIFAR-100"]
    (shown,) = [row for row in table.rows if (row.method[2], row.words) == ("InfLoRA", "AvgACC, ACC")]
    assert shown.numbers["last"].seeds == shown.numbers["avg"].seeds == 2


@pytest.mark.parametrize("protocol", ["cil-cifar100-10x10", "cil-characters-10x4"])
def test_alone_they_are_no_number_with_or_without_a_published_one(tmp_path: Path, protocol: str) -> None:
    write_run(tmp_path, 0, 9, protocol=protocol)
    records, *_ = read_runs([tmp_path])
    assert [item for item in compare([], records) if item.mean is not None] == []
    if protocol == ABOUT["protocol"]:
        acc = acc_of(tmp_path)
        assert (acc.mean, acc.verdict) == (None, NOT_RUN) and acc.note.endswith("; 1 run unfinished")
        assert {row.parameters[1] for table in tables(data_of(tmp_path)) for row in table.rows} == {None}


def test_no_number_of_an_earlier_task_stands_for_a_lost_last_line(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 10)
    lines = (tmp_path / "record.jsonl").read_text().splitlines(keepends=True)
    (lost,) = [line for line in lines if '"after_task": 10' in line and '"acc"' in line]
    (tmp_path / "record.jsonl").write_text("".join(lines).replace(lost, lost[:40] + "\n"))
    by_metric = {item.metric: item.mean for item in compare([], read_runs([tmp_path])[0])}
    assert by_metric == {"avg_acc": 89.0, "trainable_parameters": 500.0}


def test_tested_comes_before_trained_and_newer(tmp_path: Path) -> None:
    """A run killed between the training and the test of its last task stands for no whole one."""
    for name, tested, started in (("old", 10, "2025-01-01"), ("new", 9, "2025-02-01")):
        write_run(tmp_path / name, 0, tested)
        (tmp_path / name / "config.yaml").write_text(f"settings: {{seed: 0}}\nprovenance: {{started: '{started}'}}\n")
    with open(tmp_path / "new" / "record.jsonl", "a") as file:
        last = write_lines(tmp_path / "more", [ABOUT | {"seed": 0, "dataset": "CIFAR100", "after_task": 10,
                                                        "metric": "seconds_per_batch", "value": 0.1}])  # fmt: skip
        file.write(last.read_text())
    last.unlink()
    (run,) = read_runs([tmp_path])[1]
    assert run.folder == str(tmp_path / "old") and acc_of(tmp_path).mean == 89.0


def test_the_sheet_the_page_and_verify_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path, 0, 3)
    data = data_of(tmp_path)
    cells = [cell.value for row in workbook(data)["Runs"].iter_rows() for cell in row]
    assert any(str(cell).startswith("after 3 of 10 tasks") for cell in cells)
    assert "(after 3 of 10 tasks" in html(data, tmp_path)
    main(["verify", str(tmp_path)])
    assert f"{tmp_path} is unfinished, after 3 of 10 tasks: none of its numbers is compared." in capsys.readouterr().out


def test_figures_tell_how_many_seeds_each_point_has(tmp_path: Path) -> None:
    for seed, tested, parameters in ((0, 3, 900), (1, 10, 500), (2, 10, 500)):
        write_run(tmp_path / str(seed), seed, tested, parameters)
    data = data_of(tmp_path)
    _, (panel,) = drawing.canvas(1, 5, 5)
    curves = figures._measured_curves(data, "cil-cifar100-10x10")["InfLoRA"]
    figures._curve(panel, curves, "InfLoRA", "#000000", "o", "-")
    assert panel.get_legend_handles_labels()[1] == ["InfLoRA (2 to 3 seeds)"]
    assert panel.lines[0].get_ydata()[2] == 97.0 and panel.lines[0].get_ydata()[9] == 90.5
    points = figures._cost_points(data, "cil-cifar100-10x10")
    assert [point[0] for point in points["training time (s)"]] == [100.0]  # not 76.7, the mean with 30 s
    assert [point[0] for point in points["trainable parameters"] if point[3]] == [500.0]


def test_a_heat_map_is_of_the_runs_that_got_furthest(tmp_path: Path) -> None:
    for seed, tested in ((0, 3), (1, 10)):
        by_task = [ABOUT | {"seed": seed, "dataset": f"task {column}", "after_task": task, "metric": "task_accuracy"}
                   for task in range(1, tested + 1) for column in range(task)]  # fmt: skip
        write_lines(tmp_path / str(seed), by_task)
    (found,) = [figure for figure in figures.plan(data_of(tmp_path)) if figure.name.startswith("matrix")]
    assert "seed 1\n" in found.title
