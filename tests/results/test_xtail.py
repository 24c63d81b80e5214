"""X-TAIL on its sheet: trained so, or an MTIL run's checkpoints evaluated so; from record lines as runs write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.evaluation.metrics import mtil_triple
from common.protocols import MTIL_ORDER_1
from results import figures
from results.__main__ import main, verify
from results.collect import read_runs
from results.compare import Comparison, Data, compare, matrices
from results.options import Verify
from results.tables import Table, tables
from tests.results.lines import matrix_lines, write_lines
from tests.results.test_settings import EVALUATED, ORDER, ZSCL, write_run

TEN = [name for name in MTIL_ORDER_1 if name != "CIFAR100"]
GRIDS = {metric: np.random.default_rng(place).uniform(20, 90, (11, 10))  # the zero-shot row and one after each task
         for place, metric in enumerate(("accuracy", "domain_accuracy", "accuracy_with_domain"))}  # fmt: skip
COLUMNS = ["Transfer", "Avg", "Last", "Avg, domain told", "Last, domain told", "Domain accuracy, Last"]
ABOUT = {"paper": "moe_adapters", "method": "MoE-Adapters", "protocol": "xtail-16shot"}


def cells(grids: dict[str, np.ndarray], sets: list[str], **fields: Any) -> list[dict[str, Any]]:
    """Record lines of the three numbers of each cell, data sets in this order."""
    names = dict(zip(MTIL_ORDER_1, sets))  # those that matrix_lines gives its columns
    return [
        line | {"metric": metric, "dataset": names[line["dataset"]]}
        for metric, grid in grids.items()
        for line in matrix_lines(grid[0].tolist(), grid[1:].tolist(), **fields)
    ]


def read(folder: Path, scale: str = "paper") -> Data:
    records, runs, problems = read_runs([folder])
    assert problems == []
    return Data(scale, records, [], compare([], records), runs, [], [])


def sheet(data: Data) -> Table:
    (table,) = (table for table in tables(data) if table.sheet == "X-TAIL")
    return table


def shown(table: Table) -> dict[tuple[str, str], list[Any]]:
    """The measured columns of each row by setting and method."""
    columns = {column.title: column for column in table.columns if column.group != "Verdict"}
    return {(columns["Setting"].cell(row), columns["Method"].cell(row)): [columns[name].cell(row) for name in COLUMNS]
            for row in table.rows}  # fmt: skip


def expected(grids: dict[str, np.ndarray]) -> list[float]:
    triples = {metric: mtil_triple(grid) for metric, grid in grids.items()}
    plain, told = triples["accuracy"], triples["accuracy_with_domain"]
    return [plain.transfer, plain.avg, plain.last, told.avg, told.last, triples["domain_accuracy"].last]


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_a_run_is_one_row_beside_clip_and_on_no_sheet_of_mtil(tmp_path: Path, scale: str) -> None:
    write_lines(tmp_path, cells(GRIDS, TEN, scale=scale, **ABOUT))
    data = read(tmp_path, scale)
    table, setting = sheet(data), "X-TAIL, ten data sets, 16-shot"
    learned = {metric: grid[1:] for metric, grid in GRIDS.items()}
    never = {metric: np.tile(grid[0], (10, 1)) for metric, grid in GRIDS.items()}
    rows = {(setting, "Zero-shot CLIP"): expected(never), (setting, "MoE-Adapters"): expected(learned)}
    assert shown(table) == {name: pytest.approx(values) for name, values in rows.items()}
    heads = [(column.group, column.title) for column in table.columns]
    assert [title for group, title in heads if group == "Ours" and title != "± std"] == COLUMNS
    assert not {"Published", "Difference"} & {group for group, _ in heads}
    verdicts = {column.cell(row) for column in table.columns for row in table.rows if column.group == "Verdict"}
    assert verdicts == ({"no published value"} if scale == "paper" else set())
    assert "No published value" in table.description
    assert not [other for other in tables(data) if other.sheet.startswith("MTIL") and other.rows]


def test_the_numbers_of_other_means_and_data_sets_are_compared_too(tmp_path: Path) -> None:
    write_lines(tmp_path, cells(GRIDS, TEN, **ABOUT))
    of_sets = {(item.metric, item.dataset): item.mean for item in read(tmp_path).comparisons
               if item.method == "MoE-Adapters"}  # fmt: skip
    for before, grid in (("", GRIDS["accuracy"]), ("domain_accuracy_", GRIDS["domain_accuracy"])):
        assert of_sets[f"{before}last", "Food"] == grid[10, 5]
        assert of_sets[f"{before}transfer", "mean"] == pytest.approx(mtil_triple(grid[1:]).transfer)
    assert len(of_sets) == 3 * (10 + 10 + 9 + 3)


def test_checkpoints_of_an_mtil_run_have_a_row_by_its_settings(tmp_path: Path) -> None:
    grids = {metric: np.full((12, 11), 40.0 + place) for place, metric in enumerate(GRIDS)}
    costs = [{"metric": "train_seconds", "after_task": 11, "value": 5.0}]
    for name, settings in (("as", ZSCL), ("other", ZSCL | {"ls": 0.0})):
        write_run(tmp_path / name, settings, lines=costs)
        own = EVALUATED | {"load": "moved/away", "label_space": "all"}
        lines = [line | {"protocol": "xtail-order1"} for line in cells(grids, ORDER)]
        write_run(tmp_path / name / "xtail", own, lines=lines, protocol="xtail-order1")
    numbers = [40.0, 40.0, 40.0, 42.0, 42.0, 41.0]
    rows = {("X-TAIL, order I", name): numbers for name in ("Zero-shot CLIP", "ZSCL", "ZSCL, ls 0")}
    assert shown(sheet(read(tmp_path))) == rows


def test_its_matrix_is_drawn_and_shown_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(tmp_path, cells(GRIDS, TEN, **ABOUT))
    data = read(tmp_path)
    (matrix,) = matrices(data.records)
    assert matrix.rows == matrix.columns == TEN and matrix.values == GRIDS["accuracy"][1:].tolist()
    titles = {figure.name: figure.title for figure in figures.plan(data)}
    assert "X-TAIL, ten data sets, 16-shot" in titles["matrix_xtail-16shot_MoE-Adapters.png"]
    assert "mean of all data sets" in titles["curve_xtail-16shot.png"]
    verify(Verify(target=str(tmp_path)))
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    (line,) = (words for words in told if {"MoE-Adapters", "domain_accuracy_last", "mean"} <= {*words})
    assert f"{GRIDS['domain_accuracy'][10].mean():.2f}" in line and "no published value" in " ".join(line)


def test_scarce_classes_are_counts(tmp_path: Path) -> None:
    counts = [{"metric": "scarce_classes", "value": 102}, {"metric": "training_images", "value": 1020}]
    write_lines(tmp_path, [line | ABOUT | {"dataset": "Flowers", "after_task": 5} for line in counts])
    records, runs, problems = read_runs([tmp_path])
    assert problems == [] and [record.value for record in records] == [102, 1020] and runs[0].unfinished


def test_its_first_row_is_held_against_no_published_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = [line for line in cells(GRIDS, ORDER, protocol="xtail-order1") if line["after_task"] <= 1]
    write_lines(tmp_path, lines)
    with pytest.raises(SystemExit) as stop:
        main(["first-row", str(tmp_path)])
    assert stop.value.code and "no row after task 1 was published for xtail-order1" in capsys.readouterr().err
