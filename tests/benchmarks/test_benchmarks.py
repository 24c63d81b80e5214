"""The benchmark command at its smallest: rows, equality column, file, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import VOID_ABOVE


def test_small_benchmark_of_moe_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    main(["moe_adapters", "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    written = json.loads(out.read_text())
    assert {"device", "torch", "threads", "commit"} < written.keys()
    rows = written["rows"]
    assert [row["cell"] for row in rows] == (
        ["step, 4 classes, spread"] * 3
        + ["step, 4 classes, concentrated"] * 3
        + ["class prompts, 4 classes"] * 2
        + ["evaluation, 256 images"] * 3
        + ["5 checkpoints x 5 sets, small"] * 2
    )
    assert all(row["ms_median"] > 0 and row["peak_memory_mib"] > 0 for row in rows)
    compared = [row for row in rows if row["difference"] is not None]
    assert len(compared) == 6
    assert all(row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
    table = capsys.readouterr().out
    assert all(row["subject"] in table for row in rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["moe_adaptors"], "unknown paper 'moe_adaptors'"),
        (["moe_adapters", "--steps", "0"], "--steps"),
        (["moe_adapters", "--out", "nowhere/to/speed.json"], "its folder does not exist"),
    ],
)
def test_mistakes_are_told_in_one_message(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and told in captured.err and captured.err.count("\n") == 1
