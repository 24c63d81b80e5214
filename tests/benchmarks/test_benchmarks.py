"""The benchmark command at its smallest: rows, equality column, file, what it refuses; the count of memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.benchmarks.__main__ import KEPT, main, parse
from tests.benchmarks.measure import VOID_ABOVE
from tests.benchmarks.memory import LiveBytes, counted_peak


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


def test_small_benchmark_of_zscl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    main(["zscl", "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["cell"] for row in rows] == (
        ["step, 4 classes, 32 captions"] * 7
        + ["captions, small towers, batch 8"] * 4
        + ["evaluation, 256 images"] * 2
        + ["memory counted, batch 8, 4 classes, less a CLIP"] * 3
    )
    compared = [row for row in rows if row["difference"] is not None]
    assert [row["subject"] for row in compared] == [
        "ZSCL, teacher's image features known",
        "ZSCL, teacher's image features computed",
        "ZSCL, computed, separate passes",
        "ZSCL the plain way, 32 captions encoded a step",
    ]
    assert all(0 < row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
    timed, counted = rows[:-3], rows[-3:]
    assert all(row["ms_median"] is not None for row in timed)
    assert all(row["ms_median"] is None and row["peak_memory_mib"] > 0 for row in counted)
    table = capsys.readouterr().out
    assert all(row["subject"] in table for row in rows)


def test_small_benchmark_of_inflora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    main(["inflora", "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["cell"] for row in rows] == (
        ["step, 20 tasks"] * 4
        + ["statistics pass, 16 images"] * 2
        + ["basis design, a layer of width 64"] * 5
        + ["evaluation, 8 images"] * 3
    )
    assert all(row["ms_median"] is not None and row["peak_memory_mib"] > 0 for row in rows)
    compared = [row for row in rows if row["difference"] is not None]
    assert [row["subject"] for row in compared] == [
        "task 20",
        "the plain way, task 1",
        "the plain way, task 20",
        "a product a batch, on the device",
        "first task, by eigh",
        "20 tasks, merged",
        "the plain way, 20 tasks",
    ]
    assert all(0 < row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
    assert compared[2]["difference"] < 1e-9  # float64
    table = capsys.readouterr().out
    assert all(row["subject"] in table for row in rows)


MEGABYTE = 2**20


def exponentials() -> None:
    """x and three exponentials wait for the backward pass, whose first step makes a fifth megabyte."""
    x = torch.ones(2**18, requires_grad=True)
    x.exp().exp().exp().sum().backward()


def views() -> None:
    """Two tensors at once; a view costs nothing and keeps its base, what is overwritten is gone."""
    x = torch.ones(2**18)
    for _ in range(3):
        x = (x + 1)[:4]
        x = x.repeat(2**16)


@pytest.mark.parametrize(("run", "megabytes"), [(exponentials, 5), (views, 2)])
def test_count_of_live_bytes(run: Callable[[], None], megabytes: int) -> None:
    with LiveBytes() as live:
        run()
    assert 0 <= live.peak - megabytes * MEGABYTE < 100  # a few scalars
    assert live.now == 0
    assert counted_peak(run) == live.peak  # the same without values


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["moe_adaptors"], "PAPER moe_adaptors: unknown. Did you mean moe_adapters?"),
        ([], "PAPER: missing"),
        (["moe_adapters", "--steps", "0"], "--steps"),
        (["moe_adapters", "--classes", "4", "0"], "--classes 0: give 1 or more"),
        (["moe_adapters", "--out", "nowhere/to/speed.json"], "its folder does not exist"),
        (["moe_adapters", "--out", "."], "--out .: it is a folder"),
        (["moe_adapters", "--record", "."], "--record .: it is a folder"),
        (["moe_adapters", "--record", __file__], "test_benchmarks.py: not a table of these benchmarks"),
        (["loaders", "--workers", "0", "-1"], "--workers -1: give 0 or more"),
        (["loaders", "--step-rate", "0"], "--step-rate 0.0: give more than 0"),
        (["loaders", "--step-rate", "inf"], "--step-rate inf: give more than 0"),
    ],
)
def test_mistakes_are_told_in_one_message(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and told in captured.err and captured.err.count("\n") == 1


def test_a_record_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.csv").write_bytes(b"\x80\x02}q")
    with pytest.raises(SystemExit) as stop:
        main(["moe_adapters", "--record", str(tmp_path / "kept.csv")])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and "not a table of these benchmarks" in captured.err


def test_a_record_is_kept_by_default_under_the_device() -> None:
    assert parse(["alta", "--record", "--small"]).record == Path(KEPT)
    assert parse(["alta", "--record", "kept.csv"]).record == Path("kept.csv") and parse(["alta"]).record is None
