"""The sheet of common ground and its pictures: a row a method and backbone, whatever its paper calls a number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from results import drawing, figures
from results.__main__ import gather, main
from results.collect import read_runs
from results.compare import Data
from results.page import html
from results.published import read_published
from results.spreadsheet import workbook
from results.tables import Row, Table, tables
from tests.results.lines import write_lines

PROTOCOL, AT_ONCE = "common-cifar100-10x10", "common-cifar100"
LAST = {  # after the tenth task
    "avg": 81.25, "last": 71.5, "forgetting": 9.75, "accuracy_with_task": 95.5, "avg_unseen_accuracy": 60.25,
    "total_parameters": 149_620_737, "stored_floats": 301_056_000, "trainable_parameters": 1_234_567,
}  # fmt: skip
OWN = {"acc": 71.4, "avg_acc": 81.2, "acc_macro": 70.0, "avg_acc_macro": 80.0, "faa": 70.1, "caa": 80.1, "bwt": -3.0}
COSTS = {1: (30.0, 900.0), 2: (12.0, 1000.0)}  # seconds and MiB by task; of eight more nothing is on record
METHODS = (  # paper, method, backbone, trainable parameters, stored numbers: in the order of the sheet
    ("zscl", "Continual-CLIP", "ViT-B/16", 0, 0),
    ("vq_prompt", "NCM, no prompts", "ViT-B/16 Sup-21K", 0, 76_800),
    ("zscl", "LwF", "ViT-B/16", 149_620_737, 0),
    ("zscl", "iCaRL (CLIP)", "ViT-B/16", 149_620_737, 301_056_000),
    ("inflora", "InfLoRA", "ViT-B/16 CLIP", 380_000, 9_000_000),
    ("inflora", "InfLoRA", "ViT-B/16 Sup-21K", 380_000, 9_000_000),
    ("inflora", "InfLoRA-b5", "ViT-B/16 CLIP", 190_000, 9_000_000),
    ("alta", "ALTA", "ViT-B/16", 600_000, 102_400),
    ("alta", "Adapter", "ViT-B/16", 500_000, 102_400),
)


def run(
    folder: Path, values: dict[str, float], protocol: str = PROTOCOL, costs: Any = COSTS, order: Sequence[int] = (),
    **about: Any,
) -> None:  # fmt: skip
    """A run of made-up lines, and its config.yaml if it has a class order."""
    tasks = 10 if protocol == PROTOCOL else 1
    lines = [{"metric": metric, "value": value, "after_task": tasks} for metric, value in values.items()]
    for task, pair in costs.items():
        names = ("train_seconds", "peak_memory_mib")
        lines += [{"metric": name, "value": value, "after_task": task} for name, value in zip(names, pair)]
    write_lines(folder, [{"protocol": protocol, "dataset": "CIFAR100"} | line | about for line in lines])
    if order:
        settings = {"protocol": "common", "class_order": list(order), "seed": about["seed"]}
        labels = {"method": about["method"], "protocol": protocol}
        content = {"settings": settings, "labels": labels, "provenance": {}}
        (folder / "config.yaml").write_text(yaml.safe_dump(content))


def read(folder: Path, scale: str = "paper") -> Data:
    records, runs, problems = read_runs([folder])
    assert problems == []
    return gather(records, read_published(), problems, runs, scale)


def sheet(data: Data) -> Table:
    (table,) = [table for table in tables(data) if table.sheet == "Common ground"]
    return table


def cells(table: Table, row: Row) -> list[tuple[str, Any]]:
    return [(column.title, value) for column in table.columns if (value := column.cell(row)) not in (None, "")]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every method, in no order, and one of all classes at once."""
    folder = tmp_path_factory.mktemp("runs")
    for place, (paper, method, backbone, trained, stored) in enumerate(reversed(METHODS)):
        values = {"last": 50.0 + place, "trainable_parameters": trained, "stored_floats": stored}
        costs = {} if method == "Continual-CLIP" else COSTS
        about = {"paper": paper, "method": method, "backbone": backbone, "scale": "mini"}
        run(folder / str(place), values, costs=costs, **about)
    run(folder / "zero-shot", {"last": 49.0}, method="Zero-shot CLIP, hard prompts", paper="alta", scale="mini")
    values = {"last": 88.5, "trainable_parameters": 149_620_737}
    run(folder / "at once", values, AT_ONCE, {1: (600.0, 1.0)}, method="Fine-tuning", scale="mini")
    return folder


def test_one_row_and_the_counts_as_counts(tmp_path: Path) -> None:
    run(tmp_path / "1", LAST | OWN, seed=1)
    run(tmp_path / "2", LAST | {"avg": 79.25, "last": 73.5, "forgetting": 9.75}, costs={1: (40.0, 500.5)}, seed=2)
    data = read(tmp_path)
    assert {table.sheet for table in tables(data) if PROTOCOL in {row.method[0] for row in table.rows}} == {
        "Common ground"
    }
    table = sheet(data)
    (row,) = table.rows
    assert cells(table, row) == [
        ("Data set", "CIFAR-100"), ("Method", "ZSCL"), ("Backbone", "ViT-B/16"), ("Exemplars", "yes"),
        ("Avg", 80.25), ("± std", pytest.approx(2**0.5)), ("Last", 72.5), ("± std", pytest.approx(2**0.5)),
        ("Forgetting", 9.75), ("± std", 0.0), ("Last, task known", 95.5), ("Classes not seen, zero-shot", 60.25),
        ("Trainable parameters", 1_234_567), ("Total parameters", 149_620_737),
        ("Seconds a task", (4.2 + 4.0) / 2), ("Peak memory (MiB)", (1000 + 500.5) / 2),
        ("Stored numbers", 301_056_000), ("Seeds", 2), ("Note", "settings not on record"),
    ]  # fmt: skip
    text = html(data, tmp_path)
    assert all(f">{number}</td>" in text for number in ("72.50", "149,620,737", "301,056,000", "4.10"))
    assert "nothing was published on it" in text
    formats = {cell.value: cell.number_format for line in workbook(data)["Common ground"].iter_rows() for cell in line}
    assert formats[301_056_000] == formats[149_620_737] == formats[750.25] == "#,##0" and formats[72.5] == "0.00"


def test_all_methods_in_order(miniature: Path) -> None:
    """Bounds first, all classes at once with them; zero-shot CLIP once; who stores samples."""
    data = read(miniature, "mini")
    table = sheet(data)
    names = [row.method[2:] for row in table.rows]
    assert names[:2] == [("Zero-shot CLIP", "ViT-B/16"), ("NCM, no prompts", "ViT-B/16 Sup-21K")]
    assert names[2:] == [("Fine-tuning, joint", "ViT-B/16"), *(each[1:3] for each in METHODS[2:])]
    said = {row.method[2]: dict(cells(table, row)) for row in table.rows}
    with_exemplars = [name for name, line in said.items() if line.get("Exemplars") == "yes"]
    assert with_exemplars == ["iCaRL (CLIP)", "ALTA", "Adapter"]
    assert said["Zero-shot CLIP"]["Last"] == 58.0 and "Seconds a task" not in said["Zero-shot CLIP"]
    joint = said["Fine-tuning, joint"]
    assert joint["Last"] == 88.5 and joint["Seconds a task"] == 600.0 and "Avg" not in joint


def test_all_classes_at_once_stand_beside_ten_tasks(tmp_path: Path) -> None:
    """Of them Last alone; the data sets stay apart."""
    at_once = {"last": 88.5, "avg": 88.5, "forgetting": 0.0, "accuracy_with_task": 88.5, "stored_floats": 0}
    for protocol, values in {PROTOCOL: LAST, AT_ONCE: at_once, "common-cub200": at_once}.items():
        run(tmp_path / protocol, values, protocol, costs={})
    table = sheet(read(tmp_path))
    assert [row.method[0] for row in table.rows] == [AT_ONCE, PROTOCOL, "common-cub200"]
    for row, name in ((table.rows[0], "CIFAR-100"), (table.rows[2], "CUB-200")):
        assert cells(table, row)[:-1] == [
            ("Data set", name), ("Method", "ZSCL, joint"), ("Backbone", "ViT-B/16"), ("Exemplars", "no"),
            ("Last", 88.5), ("Stored numbers", 0), ("Seeds", 1),
        ]  # fmt: skip


def test_it_follows_the_sheet_on_which_papers_are_compared(tmp_path: Path) -> None:
    run(tmp_path, LAST)
    assert [table.sheet for table in tables(read(tmp_path))][:3] == ["CIFAR-100, 10 tasks", "Common ground", "MTIL"]


def test_class_orders_are_seeds_of_one_row(tmp_path: Path) -> None:
    """On common ground an order is the seed's; elsewhere it makes another row."""
    for seed, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 0, 2)]):
        run(tmp_path / str(seed), LAST | {"last": 70.0 + seed}, order=order, seed=seed, method="ZSCL")
    table = sheet(read(tmp_path))
    (row,) = table.rows
    assert (row.method[2], row.numbers["last"].mean, row.numbers["last"].seeds) == ("ZSCL", 71.0, 3)


def test_the_terminal_shows_the_sheet(miniature: Path, capsys: pytest.CaptureFixture) -> None:
    main(["verify", PROTOCOL, "--scale", "mini", "--runs", str(miniature)])
    said = capsys.readouterr().out
    assert said.startswith("Common ground (MINIATURE). ") and "ours" in said and "published value" not in said
    (line,) = [line.split() for line in said.splitlines() if " NCM" in line]
    assert line[-5:] == ["0", "4.20", "1,000", "76,800", "1"]


def test_the_two_pictures(miniature: Path, tmp_path: Path) -> None:
    """All rows of a data set, without those that have no place on the axis; none that only repeats what is in them."""
    planned = {figure.name: figure for figure in figures.plan(read(miniature, "mini"))}
    names = [f"cost_{PROTOCOL}_{cost}_mini.png" for cost in ("trainable-parameters", "seconds-a-task")]
    assert {*planned} == {f"bars_{PROTOCOL}_mini.png", *names}
    title = planned[names[1]].title
    assert title == "Last against seconds a task\nCIFAR-100: 10 tasks of 10 classes, common ground (MINIATURE)"
    planned[names[0]].draw(tmp_path / "drawn.png", title)
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_no_cost_is_at_the_left_edge() -> None:
    from matplotlib import pyplot

    _, (panel,) = drawing.canvas(1, 5, 5)
    points = [figures.Point(cost, 70.0, "ViT-B/16", True, 1.5) for cost in (0, 2000.0, 50.0)]
    places = figures._cost_panel(panel, points, {"ViT-B/16": ("#000000", "o")}, "seconds a task")
    assert places[1:] == [2000.0, 50.0] and panel.get_xlim()[0] < places[0] < 50
    assert panel.get_xlabel() == "seconds a task, log scale; shaded, at the left edge: none"
    number = panel.xaxis.get_major_formatter()
    assert (number(places[0], 0), number(2000.0, 0)) == ("", "2 k")
    pyplot.close()


def test_names_are_clear_of_one_another_and_of_the_points() -> None:
    """Twenty points, half of them within a marker's width of one another, with long names."""
    from matplotlib import pyplot
    from matplotlib.text import Text

    figure, (panel,) = drawing.canvas(1, 10.5, 7)
    close = [(1e5 * 1.02**place, 80.0 + 0.1 * place, 0.3, f"Method {place} of a long name") for place in range(10)]
    far = [(1e5 * 3.0**place, 90.0 - 4 * place, 0.0, f"Method {place}") for place in range(10)]
    for x, y, std, _ in close + far:
        panel.errorbar(x, y, std, fmt="o", markersize=8)
    panel.set_xscale("log")
    drawing.place_names(figure, panel, close + far)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in panel.texts]  # an annotation's own has its line in it
    assert [text.get_text() for text in panel.texts] == [name for *_, name in close + far]
    for place, box in enumerate(boxes):
        assert panel.bbox.contains(*box.min) and panel.bbox.contains(*box.max)
        assert box.count_overlaps(boxes[:place] + boxes[place + 1 :]) == 0
        assert not any(box.contains(*panel.transData.transform((x, y))) for x, y, *_ in close + far)
    pyplot.close()
