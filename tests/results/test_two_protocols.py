"""A run that is evaluated under two protocols: class-IL and task-IL of the same training."""

from common.runs import Run
from results.collect import read_runs
from results.compare import Data, compare
from results.published import read_published
from results.tables import tables

LABELS = {
    "paper": "alta",
    "method": "ALTA",
    "protocol": "cil-cifar100-10x10",
    "backbone": "RN50",
    "scale": "paper",
    "seed": 1,
}
LAST = {"cil-cifar100-10x10": 61.5, "til-cifar100-10x10": 84.0}


def test_both_rows_stand_on_their_sheets(tmp_path):
    run = Run(tmp_path / "run", {}, LABELS)
    for value in (0.0, None):  # the second time over the first
        for protocol, last in LAST.items():
            about = {"dataset": "CIFAR100", "after_task": 10, "seconds": None, "protocol": protocol}
            numbers = {"last": last if value is None else value, "avg": last + 1, "trainable_parameters": 134_208}
            run.record([about | {"metric": metric, "value": number} for metric, number in numbers.items()])
    assert len(run.records) == 6 and len(run.find(protocol="til-cifar100-10x10")) == 3
    records, _, problems = read_runs([tmp_path])
    assert not problems and {(line.protocol, line.value) for line in records if line.metric == "last"} == {
        *LAST.items()
    }
    published = read_published()
    data = Data("paper", records, published, compare(published, records), read_runs([tmp_path])[1], [], [])
    shown = {}
    for table in tables(data):
        for row in table.rows:
            cells = {(column.title, column.group): column.cell(row) for column in table.columns}
            protocol = cells.get(("Protocol", ""))
            if cells.get(("Method", "")) == "ALTA" and cells.get(("Backbone", "")) == "RN50" and protocol in LAST:
                shown[table.sheet, protocol] = (cells["Last", "Ours"], cells["Ours", "Trainable parameters"])
                verdict = cells["Last", "Verdict"]
                assert verdict == ("setting not stated" if protocol.startswith("til") else "no published value")
    front = {("CIFAR-100, 10 tasks", protocol): (last, 134_208) for protocol, last in LAST.items()}
    assert front.items() <= shown.items()
    assert shown["CIL CIFAR-100", "cil-cifar100-10x10"] == (61.5, 134_208)
    assert shown["Class-IL and task-IL", "til-cifar100-10x10"] == (84.0, 134_208)
