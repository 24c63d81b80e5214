"""The sheet of common ground: a row a run, whatever else its paper calls the same numbers; no published column."""

from pathlib import Path

from results.__main__ import gather
from results.collect import read_runs
from results.page import html
from results.published import read_published
from results.spreadsheet import workbook
from results.tables import tables
from tests.results.lines import write_lines

PROTOCOL = "common-cifar100-10x10"
ABOUT = {"protocol": PROTOCOL, "dataset": "CIFAR100"}
LAST = {  # after the tenth task
    "avg": 81.25, "last": 71.5, "forgetting": 9.75, "accuracy_with_task": 95.5, "avg_unseen_accuracy": 60.25,
    "total_parameters": 149_620_737, "stored_floats": 301_056_000, "trainable_parameters": 1_234_567,
}  # fmt: skip
OWN = {"acc": 71.4, "avg_acc": 81.2, "acc_macro": 70.0, "avg_acc_macro": 80.0, "faa": 70.1, "caa": 80.1, "bwt": -3.0}


def test_one_row_and_the_counts_as_counts(tmp_path: Path) -> None:
    lines = [{"metric": metric, "value": value} for metric, value in (LAST | OWN).items()]
    lines += [{"metric": "unseen_accuracy", "value": 50.0, "after_task": 9}]
    write_lines(tmp_path, [ABOUT | {"after_task": 10} | line for line in lines])
    records, runs, problems = read_runs([tmp_path])
    assert problems == [] and len(records) == len(lines)
    data = gather(records, read_published(), problems, runs, "paper")
    assert {table.sheet for table in tables(data) if PROTOCOL in {row.method[0] for row in table.rows}} == {
        "Common ground"
    }
    (table,) = [table for table in tables(data) if table.sheet == "Common ground"]
    (row,) = table.rows
    cells = {column.title: column.cell(row) for column in table.columns if column.group == "Ours"}
    assert cells == {
        "Avg": 81.25, "Last": 71.5, "Forgetting": 9.75, "Last, task known": 95.5, "Classes not seen, zero-shot": 60.25,
        "Parameters": 149_620_737, "Stored numbers": 301_056_000, "± std": None,
    }  # fmt: skip
    text = html(data, tmp_path)
    assert all(f">{number}</td>" in text for number in ("71.50", "149,620,737", "301,056,000"))
    sheet = workbook(data)["Common ground"]
    formats = {cell.value: cell.number_format for cells in sheet.iter_rows() for cell in cells}
    assert formats[301_056_000] == formats[149_620_737] == "#,##0" and formats[71.5] == "0.00"


def test_all_classes_at_once_stand_beside_ten_tasks(tmp_path: Path) -> None:
    """Of them Last alone; the data sets stay apart."""
    at_once = {"last": 88.5, "avg": 88.5, "forgetting": 0.0, "accuracy_with_task": 88.5, "stored_floats": 0}
    runs = {PROTOCOL: (10, LAST), "common-cifar100": (1, at_once), "common-cub200": (1, at_once)}
    lines = [{"protocol": protocol, "after_task": tasks, "metric": metric, "value": value}
             for protocol, (tasks, values) in runs.items() for metric, value in values.items()]  # fmt: skip
    write_lines(tmp_path, [{"dataset": "CIFAR100"} | line for line in lines])
    records, found, problems = read_runs([tmp_path])
    data = gather(records, read_published(), problems, found, "paper")
    (table,) = [table for table in tables(data) if table.sheet == "Common ground"]
    assert [row.method[0] for row in table.rows] == ["common-cifar100", PROTOCOL, "common-cub200"]
    for row in (table.rows[0], table.rows[2]):
        cells = {column.title: column.cell(row) for column in table.columns if column.group == "Ours"}
        shown = {title: value for title, value in cells.items() if value is not None}
        assert shown == {"Last": 88.5, "Stored numbers": 0}
