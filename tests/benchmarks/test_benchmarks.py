"""The benchmark command at its smallest: rows, equality column, file, what it refuses; counts of FLOPs and memory."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.clip.model import CLIP, CLIPConfig
from tests.benchmarks.__main__ import KEPT, PAPERS, main, parse
from tests.benchmarks.alta import RN50
from tests.benchmarks.inputs import VIT_B_16
from tests.benchmarks.measure import VOID_ABOVE, flops_of
from tests.benchmarks.memory import LiveBytes, counted_peak

ROWS = list(csv.DictReader((Path(__file__).parent / "rows.csv").read_text().splitlines()))
BEST = {"inflora": 2, "vq_prompt": 0}  # which of the compared rows is in float64 throughout


@pytest.mark.parametrize("paper", PAPERS)
def test_small_benchmark(paper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of rows.csv with the numbers it tells; fast and plain compute the same."""
    out = tmp_path / "speed.json"
    main([paper, "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    written = json.loads(out.read_text())
    assert {"device", "torch", "threads", "commit"} < written.keys()
    rows, table = written["rows"], capsys.readouterr().out
    expected = [row for row in ROWS if row["paper"] == paper]
    assert [(row["cell"], row["subject"]) for row in rows] == [(row["cell"], row["subject"]) for row in expected]
    for row, told in zip(rows, expected):
        numbers = ("ms_median", "images_per_s", "gflop", "peak_memory_mib", "ratio", "difference")
        assert [name for name in numbers if row[name] is not None] == told["tells"].split()
        assert row["subject"] in table and (row["peak_memory_mib"] is None or row["peak_memory_mib"] > 0)
        assert row["ms_median"] is None or row["ms_median"] > 0 or row["subject"].startswith("added by")
    compared = [row for row in rows if row["difference"] is not None]
    assert all(0 <= row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
    if paper in ("zscl", "zscl_cil", "inflora"):
        assert all(row["difference"] > 0 for row in compared if "test" not in row["cell"])
    assert paper not in BEST or compared[BEST[paper]]["difference"] < 1e-9
    assert paper not in ("alta", "zscl_cil") or compared[-1]["difference"] == 0


@pytest.mark.parametrize(("config", "images", "unread"), [(VIT_B_16, 35.13, 2.43), (RN50, 11.59, 0.81)])
def test_flops_are_the_published_ones(config: CLIPConfig, images: float, unread: float) -> None:
    """GF of open_clip's model profile (its RN50 has 12.22, pooled with all 50 queries), less what is left out: a last
    block's MLP and output of tokens that nobody reads, in images their attention too; the pool's keys and values."""
    with FakeTensorMode():
        clip, tokens = CLIP(config), torch.zeros(1, 77, dtype=torch.long)
        image = flops_of(lambda clock: clock.repeat(lambda: clip.encode_image(torch.zeros(1, 3, 224, 224))))
        text = flops_of(lambda clock: clock.repeat(lambda: clip.encode_text(tokens, cut=False)))
    assert (image / 1e9, text / 1e9) == pytest.approx((images - unread, 5.96 - 0.36), abs=0.005)


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
