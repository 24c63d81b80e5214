"""`python -m results` and `python -m results verify`: what is said, written, and returned."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from results.__main__ import main
from tests.results.lines import LINE, matrix_lines, write_lines

ROOT = Path(__file__).parents[2]
PAPERS = {
    "zscl": "mtil-order1",
    "moe_adapters": "cil-cifar100-10x10",
    "inflora": "cil-imagenet_r-10x20",
    "vq_prompt": "cil-cub200-10x20",
    "alta": "til-cifar100-10x10",
}


def exit_code(*argv: str | Path) -> int:
    try:
        main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def damaged(line: dict, earlier: dict, kind: int) -> dict | str:
    """A line cut, not a number, with an unknown field, repeating an earlier one, of another schema version."""
    return (
        json.dumps(LINE | line)[:95] + "\n",
        json.dumps(LINE | line | {"value": float("nan")}) + "\n",
        line | {"loss": 0.5},
        earlier,
        line | {"schema": 2},
    )[kind]


def runs_with_damage(root: Path) -> tuple[dict[str, float], list[str]]:
    """200 lines of five papers' runs: the values of the 190 good ones by data set, file:line of the ten bad ones."""
    good, bad = {}, []
    for number, (paper, protocol) in enumerate(PAPERS.items()):
        lines: list[dict | str] = []
        for index in range(40):
            name, value = f"{paper} {index}", 10.0 + number + index / 4
            lines.append({"paper": paper, "method": paper, "protocol": protocol, "dataset": name, "value": value})
            good[name] = value
        for place, kind in ((11, number), (23, (number + 1) % 5)):  # each kind of damage twice
            good.pop(f"{paper} {place}")
            lines[place] = damaged(lines[place], lines[5], kind)
            bad.append(f"{root / paper / 'record.jsonl'}:{place + 1}")
        write_lines(root / paper, lines)
    return good, bad


def test_two_hundred_records_of_five_papers_with_ten_damaged(tmp_path: Path) -> None:
    good, bad = runs_with_damage(tmp_path / "runs")
    assert (len(good), len(bad)) == (190, 10)
    code = "import runpy, sys; runpy.run_module('results', run_name='__main__'); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 10
    for place in bad:
        assert sum(f"{place}: " in line for line in warnings) == 1
    for reason in ("not JSON", "value is nan", "unknown field 'loss'", "duplicate of line 6", "schema version 2"):
        assert any(reason in line for line in warnings), reason
    *_, closing, has_torch = done.stdout.splitlines()
    assert has_torch == "False"  # half a gigabyte, and seconds, for nothing
    assert "Read 190 records of 5 runs" in closing and "10 damaged lines" in closing
    rows = table(tmp_path / "out" / "results.csv")
    assert {row["dataset"]: float(row["mean"]) for row in rows if row["mean"]} == good
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"results.xlsx", "results.csv", "report.html"}


def test_strict_exits_with_1_after_writing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(tmp_path / "runs", [{"protocol": "cil-cub200-10x20"}, "{\n"])
    common = ("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--protocol", "cil-cub200-10x20")
    assert exit_code(*common, "--strict") == 1
    assert "1 damaged line (named above)" in capsys.readouterr().out
    assert table(tmp_path / "out" / "results.csv")


def test_scales_never_share_a_file_and_the_skipped_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(tmp_path / "runs" / "big", [{"value": 83.0}])
    write_lines(tmp_path / "runs" / "small", [{"scale": "mini", "backbone": "mini", "value": 12.0}])
    common = ("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--protocol", "mtil-order1")
    assert exit_code(*common, "--paper", "zscl") == 0
    assert "skipped 1 of scale mini (shown by --scale mini)" in capsys.readouterr().out
    assert exit_code(*common, "--scale", "mini") == 0
    assert "1 of scale paper" in capsys.readouterr().out
    big, small = (table(tmp_path / "out" / name) for name in ("results.csv", "results-mini.csv"))
    assert {row["mean"] for row in big} == {"", "83.0"} and {row["scale"] for row in big} == {"paper"}
    assert [(row["mean"], row["published"], row["scale"]) for row in small] == [("12.0", "", "mini")]
    assert {row["paper"] for row in big} == {"zscl"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.xlsx", "results-mini.xlsx", "report.html", "report-mini.html"} <= names


def test_without_runs_the_published_numbers_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("--protocol", "cil-cub200-10x20") == 0
    told = capsys.readouterr().out
    folders = "runs, ckpt, experiments, logs, logs-mini, outputs, output"
    assert f"Read 0 records of 0 runs in no folder of runs ({folders}) and 18 published" in told
    assert {row["verdict"] for row in table(tmp_path / "results" / "out" / "results.csv")} == {"not run"}


def test_a_name_that_would_be_a_formula_is_text_in_the_csv(tmp_path: Path) -> None:
    write_lines(tmp_path / "runs", [{"method": "=1+1", "dataset": "@SUM(A1)", "protocol": "cil-cub200-10x20"}])
    out = ("--out", tmp_path / "out", "--protocol", "cil-cub200-10x20")
    assert exit_code("--runs", tmp_path / "runs", *out) == 0
    (row,) = [row for row in table(tmp_path / "out" / "results.csv") if row["mean"]]
    assert (row["method"], row["dataset"]) == ("'=1+1", "'@SUM(A1)")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--runs", "nowhere"], "no such folder of runs: nowhere"),
        (["--protocol", "mtil-order11"], "Did you mean mtil-order1"),
        (["--paper", "zcsl"], "Did you mean zscl?"),
        (["verify", "mtil-order3"], "Did you mean mtil-order"),
        (["verfy", "mtil-order1"], "command verfy: unknown. Did you mean verify?"),
        (["verify"], "TARGET: missing"),
        (["--out", ""], "--out: it is empty"),
        (["--runs", ""], "--runs: it is empty"),
        (["--paper", ""], "--paper: it is empty"),
        (["--scale", "tiny"], "--scale tiny: unknown. Did you mean mini?"),
        (["--", "--threads", "1"], "only `run` takes flags behind --"),
    ],
)
def test_a_wrong_name_is_told_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, argv: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(*argv) == 2
    assert told in capsys.readouterr().err


def zscl_run(folder: Path, last: float) -> Path:
    """A run of ZSCL whose recorded Last is `last`; 83.6 is published."""
    write_lines(folder, [{"value": last}])
    return folder


def test_verify_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code("verify", zscl_run(tmp_path / "near", 83.5)) == 0
    told = capsys.readouterr().out
    shown = [re.split("  +", line) for line in told.splitlines() if line.startswith("ZSCL ")]
    told_of_each = ["last", "mean", "83.60", "-", "83.50", "-", "1", "-0.10", "matches (settings not on record)"]
    assert shown == [["ZSCL", "ViT-B/16", printer, *told_of_each] for printer in ("LEBA", "ZSCL")]
    assert exit_code("verify", zscl_run(tmp_path / "far", 80.0)) == 1
    assert "differs" in capsys.readouterr().out


def test_verify_a_protocol_reads_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    zscl_run(tmp_path / "near", 83.5)
    assert exit_code("verify", "mtil-order1", "--runs", tmp_path) == 0
    assert "2 matches, 0 differs" in capsys.readouterr().out  # as ZSCL and as MoE-Adapters print it
    zscl_run(tmp_path / "far", 80.0)
    assert exit_code("verify", "mtil-order1", "--runs", tmp_path / "far") == 1
    assert exit_code("verify", "mtil-order2", "--runs", tmp_path / "far") == 0


def test_flags_may_stand_before_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    zscl_run(tmp_path / "far", 80.0)
    assert exit_code("--runs", tmp_path, "--paper", "zscl", "verify", "mtil-order1", "--scale", "mini") == 0
    assert "mtil-order1, scale mini: 0 matches" in capsys.readouterr().out
    assert exit_code("--runs", tmp_path, "--scale", "mini", "verify", "--scale", "paper", "mtil-order1") == 1


def test_verify_does_not_hold_a_misprint_against_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(tmp_path, [{"method": "LwF", "metric": "transfer", "value": 56.9}])
    assert exit_code("verify", tmp_path) == 0
    told = capsys.readouterr().out
    assert "differs (misprint likely" in told and "1 matches, 1 differs" in told


def test_verify_names_what_is_too_noisy_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, value in enumerate((60.0, 90.0)):
        write_lines(tmp_path / str(seed), [{"seed": seed, "value": value}])
    assert exit_code("verify", tmp_path) == 0
    told = capsys.readouterr().out
    assert "0 matches, 0 differs, 2 too noisy" in told  # as ZSCL and as MoE-Adapters print it
    assert len([line for line in told.splitlines() if line.endswith("-8.60  too noisy (settings not on record)")]) == 2


def test_verify_judges_no_number_of_an_open_setting(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    about = {"paper": "alta", "method": "ALTA", "protocol": "til-cifar100-10x10", "backbone": "RN50", "after_task": 10}
    write_lines(tmp_path, [about | {"dataset": "CIFAR100", "value": 90.0}])
    assert exit_code("verify", tmp_path) == 0
    told = capsys.readouterr().out
    assert "+6.13  setting not stated (setting not stated: class-IL or task-IL" in told
    assert "0 matches, 0 differs, 0 too noisy, 1 setting not stated" in told


def test_verify_a_miniature_holds_it_against_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cells = [[50.0] * 11] * 11
    write_lines(tmp_path, [line | {"scale": "mini"} for line in matrix_lines([40.0] * 11, cells)])
    assert exit_code("verify", tmp_path) == 0
    told = "0 matches, 0 differs, 0 too noisy, 0 setting not stated, 0 not run, 82 no published value"
    assert told in capsys.readouterr().out


def test_verify_tells_damage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(tmp_path, [{"value": 83.5}, "{\n"])
    assert exit_code("verify", tmp_path) == 0
    assert f"{tmp_path / 'record.jsonl'}:2: " in capsys.readouterr().err
    assert exit_code("verify", tmp_path, "--strict") == 1


def test_verify_refuses_a_folder_without_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code("verify", tmp_path) == 2
    assert "holds no readable record.jsonl" in capsys.readouterr().err
