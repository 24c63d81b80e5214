"""`python -m results first-row`: a run after its first task beside the published rows."""

from pathlib import Path

import pytest

from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2
from results.__main__ import main
from results.published import read_published
from tests.results.lines import write_lines

# results/t3_*.npy and results/t9_*.npy of ZSCL's release to one decimal, data sets in alphabetical order
RELEASED = {
    ("mtil-order1", "Fine-tuning"): "62.6 67.1 43.0 30.8 46.0 46.2 64.2 43.1 69.3 26.6 51.8",
    ("mtil-order1", "LwF"): "50.6 74.5 56.2 38.8 55.6 56.8 78.4 58.6 79.9 37.3 60.2",
    ("mtil-order1", "iCaRL"): "52.8 56.6 34.7 22.0 29.1 24.7 37.0 43.6 62.5 14.4 42.5",
    ("mtil-order1", "LwF-VR"): "43.0 77.1 60.4 41.9 58.3 62.3 81.5 46.0 82.3 42.6 63.1",
    ("mtil-order1", "WiSE-FT"): "62.5 73.5 54.0 35.9 45.8 51.5 74.8 46.9 80.6 33.9 57.5",
    ("mtil-order1", "ZSCL*"): "63.5 78.3 61.5 41.1 48.5 61.3 83.5 51.5 80.4 42.4 62.4",
    ("mtil-order1", "ZSCL"): "55.1 86.0 66.3 44.9 49.2 70.6 88.3 53.6 87.4 61.3 65.7",
    ("mtil-order2", "Fine-tuning"): "18.3 88.5 66.6 42.9 40.6 65.0 85.9 62.3 84.2 90.1 63.8",
    ("mtil-order2", "LwF"): "18.5 89.2 67.6 45.5 52.2 67.5 87.8 60.9 85.4 87.6 66.5",
    ("mtil-order2", "iCaRL"): "17.9 89.5 64.9 45.0 49.1 69.0 86.1 54.6 88.2 87.0 65.4",
    ("mtil-order2", "LwF-VR"): "19.7 89.5 69.1 45.9 52.9 68.8 88.2 59.4 85.9 88.3 66.2",
    ("mtil-order2", "WiSE-FT"): "20.9 88.9 66.2 44.3 45.1 67.9 87.2 60.2 85.4 89.8 64.8",
    ("mtil-order2", "ZSCL*"): "22.4 88.6 67.6 45.9 55.6 70.9 88.8 63.4 86.3 88.9 65.1",
    ("mtil-order2", "ZSCL"): "23.0 88.4 67.6 45.1 56.5 70.6 88.3 60.0 86.7 85.7 64.7",
}
METHODS = [method for protocol, method in RELEASED if protocol == "mtil-order1"]


def released(protocol: str, method: str) -> dict[str, float]:
    return dict(zip(MTIL_ORDER_1, map(float, RELEASED[protocol, method].split())))


def run(folder: Path, row: dict[str, float], shift: float = 0.0, **fields: object) -> Path:
    """A run stopped after its first task: the zero-shot row, and one row of accuracies."""
    lines = [{"dataset": name, "after_task": 0, "value": 60.0, "method": "Zero-shot CLIP"} for name in row]
    lines += [{"dataset": name, "after_task": 1, "value": value + shift} for name, value in row.items()]
    lines.append({"dataset": next(iter(row), "DTD"), "after_task": 1, "metric": "train_seconds", "value": 9.0})
    write_lines(folder, [{"metric": "accuracy"} | fields | line for line in lines])
    return folder


def exit_code(*argv: str | Path) -> int:
    try:
        main(["first-row", *map(str, argv)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_all_matrices_are_there_and_their_first_rows_are_the_released_ones() -> None:
    cells: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
    for entry in read_published("zscl"):
        if entry.metric == "accuracy":
            cells.setdefault((entry.protocol, entry.method), {})[entry.after_task, entry.dataset] = entry.value
    assert cells.keys() == RELEASED.keys()
    for (protocol, method), values in cells.items():
        assert values.keys() >= {(task, name) for task in range(1, 12) for name in MTIL_ORDER_1}
        first = {name: values[1, name] for name in MTIL_ORDER_1}
        assert first == pytest.approx(released(protocol, method), abs=0.0500001)


@pytest.mark.parametrize(("protocol", "method"), RELEASED)
def test_a_run_that_repeats_a_released_row_matches_it_and_is_nearest_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, protocol: str, method: str
) -> None:
    folder = run(tmp_path, released(protocol, method), protocol=protocol, method=method)
    assert exit_code(folder) == 0
    told = capsys.readouterr().out
    assert f"\n{method}: matches, within 0.5 on all 11\n" in told
    assert f"\nnearest published row: {method} (mean |diff| 0.0" in told


def test_the_table_is_aligned_and_in_task_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {entry.dataset: entry.value for entry in read_published("zscl", "mtil-order2")
           if (entry.method, entry.after_task) == ("ZSCL", 1)}  # fmt: skip
    shifted = row | {"Food": row["Food"] - 20.0, "MNIST": row["MNIST"] + 0.4}
    assert exit_code(run(tmp_path, shifted, protocol="mtil-order2")) == 1
    title, _, heads, ours, _, published, difference, _, verdict, nearest = capsys.readouterr().out.splitlines()
    assert "after StanfordCars, MTIL, order II, seed 42" in title
    assert tuple(heads.split()[:11]) == MTIL_ORDER_2
    assert ours.startswith("ours ZSCL ") and published.startswith("published ZSCL ")
    for name, end in ((name, heads.index(name) + len(name)) for name in MTIL_ORDER_2):
        assert float(ours[:end].split()[-1]) == pytest.approx(shifted[name], abs=0.005)
        assert float(published[:end].split()[-1]) == pytest.approx(row[name], abs=0.005)
        assert difference[:end].split()[-1] == {"Food": "-20.00", "MNIST": "+0.40"}.get(name, "+0.00")
    assert len(difference) == len(heads) and difference.endswith(" 1.85")  # 20.4 / 11
    assert verdict == "ZSCL: differs by more than 0.5 on 1 of 11 (Food)"
    assert nearest == "nearest published row: ZSCL (mean |diff| 1.85)"


@pytest.mark.parametrize(("shift", "code"), [(0.44, 0), (-0.44, 0), (0.56, 1), (-0.56, 1)])
def test_the_tolerance_is_that_of_one_run(tmp_path: Path, shift: float, code: int) -> None:
    # LwF's released cells are known to 0.05, so both sides of 0.5 are 0.06 away from it
    assert exit_code(run(tmp_path, released("mtil-order1", "LwF"), shift, method="LwF")) == code


def test_other_rows_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = run(tmp_path, released("mtil-order1", "WiSE-FT"), method="WC")
    assert exit_code(folder, "--method", "LwF", "ZSCL*") == 1
    told = capsys.readouterr().out
    assert [line.split("  ")[0] for line in told.splitlines() if line.startswith("published")] == [
        "published LwF",
        "published ZSCL*",
    ]
    assert "nearest published row: WiSE-FT" in told
    assert exit_code(folder, "--method", "all") == 0  # one of them matches
    told = capsys.readouterr().out
    assert [line.split("  ")[0][10:] for line in told.splitlines() if line.startswith("published")] == METHODS


def test_later_tasks_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = released("mtil-order1", "ZSCL")
    folder = run(tmp_path / "run", row)
    with open(folder / "record.jsonl") as file:
        first = file.read()
    assert exit_code(folder) == 0
    before = capsys.readouterr().out
    later = [{"dataset": name, "after_task": 2, "metric": "accuracy", "value": 1.0} for name in row]
    write_lines(folder, [first, *later])
    assert exit_code(folder / "record.jsonl") == 0
    assert capsys.readouterr().out == before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scale": "mini", "backbone": "mini"}, "is a miniature run"),
        ({"protocol": "mtil-order1-5shot"}, "no row after task 1 was published for mtil-order1-5shot with ViT-B/16"),
        ({"backbone": "RN50"}, "only for mtil-order1 with ViT-B/16, mtil-order2 with ViT-B/16"),
        ({"method": "WC"}, "The run's method is WC. Name a published one with --method: Fine-tuning, LwF"),
    ],
)
def test_what_no_published_row_answers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, fields: dict[str, str], told: str
) -> None:
    assert exit_code(run(tmp_path, released("mtil-order1", "ZSCL"), **fields)) == 2
    output = capsys.readouterr()
    assert told in output.err and output.out == ""


def test_an_unknown_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(run(tmp_path, released("mtil-order1", "ZSCL")), "--method", "ZSLC") == 2
    assert "published for ZSLC under mtil-order1. Name a published one" in capsys.readouterr().err


def test_missing_cells_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = released("mtil-order1", "ZSCL")
    assert exit_code(run(tmp_path, {name: row[name] for name in row if name not in ("DTD", "Food")})) == 2
    assert "lacks 2 cells of the row after task 1: DTD, Food. " in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(tmp_path / "nowhere") == 2
    assert "no such run" in capsys.readouterr().err
    assert exit_code(tmp_path) == 2
    assert "holds no accuracy after task 1" in capsys.readouterr().err
    write_lines(tmp_path / "zero-shot", [{"metric": "accuracy", "dataset": "DTD", "after_task": 0}])
    assert exit_code(tmp_path / "zero-shot") == 2
    for seed, name in enumerate(("a", "b")):
        run(tmp_path / name, released("mtil-order1", "ZSCL"), seed=seed)
    capsys.readouterr()
    assert exit_code(tmp_path) == 2
    assert f"holds 2 runs: {tmp_path / 'a' / 'record.jsonl'}, {tmp_path / 'b'}" in capsys.readouterr().err


def test_damaged_lines_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path, released("mtil-order1", "ZSCL"))
    with open(tmp_path / "record.jsonl", "a") as file:
        file.write("{\n")
    assert exit_code(tmp_path) == 0
    assert f"warning: left out {tmp_path / 'record.jsonl'}:24: " in capsys.readouterr().err
