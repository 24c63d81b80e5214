"""The loaders' benchmark at its smallest, and the file that keeps rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tests.benchmarks import records
from tests.benchmarks.__main__ import PAPERS, main
from tests.benchmarks.loaders import SOURCES, step_rates
from tests.benchmarks.measure import Row, Sizes, context

SIZES = Sizes(torch.device("cpu"), True, 1, 0, None, (), matmul=0.1)


def test_small_benchmark_of_the_loaders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "speed.json", tmp_path / "speed.csv"
    command = ["loaders", "--small", "--steps", "1", "--device", "cpu", "--step-rate", "20000"]
    main([*command, "--workers", "0", "1", "--out", str(out), "--record", str(kept)])
    rows = json.loads(out.read_text())["rows"]
    rates, waits = rows[: 3 * len(SOURCES)], rows[3 * len(SOURCES) :]
    assert [row["subject"] for row in rates[:3]] == ["processor time of one core", "0 workers", "1 worker"]
    assert len(waits) == 2 * len(PAPERS) and all(f"waiting, {paper}, " in waits[2 * n]["cell"]
                                                 for n, paper in enumerate(PAPERS))  # fmt: skip
    assert all(row["images_per_s"] > 0 and row["waiting"] is None for row in rates)
    assert all(0 < row["waiting"] < 1 and row["images_per_s"] < 20_000 for row in waits)
    assert all((row["target"] == "the loader limits") == (row["waiting"] > 0.05) for row in waits)
    assert "waiting" in capsys.readouterr().out
    assert [(line["cell"], line["subject"]) for line in records.read(kept)] == [
        (row["cell"], row["subject"]) for row in rows
    ]


def test_rows_are_kept_and_replaced(tmp_path: Path) -> None:
    """Equal cells of other sizes, precision or threads are rows of their own."""
    path, about = tmp_path / "new" / "device.csv", context(SIZES)
    row = Row("step", "ours", 20.0, calls=3, gflop=1.5, difference=1e-9)
    records.record(path, about, {"zscl": [row, replace(row, subject="plain")]}, SIZES)
    records.record(path, about, {"zscl": [replace(row, ms_median=10.0)], "alta": [row]}, SIZES)
    paper = replace(SIZES, small=False)
    for sizes in (paper, replace(paper, batch_size=4), replace(SIZES, precision="bf16")):
        records.record(path, about, {"zscl": [row]}, sizes)
    lines = [(line["paper"], line["sizes"], line["precision"], line["subject"], line["ms_median"])
             for line in records.read(path)]  # fmt: skip
    assert lines == [
        ("zscl", "small", "fp32", "ours", "10"),
        ("zscl", "small", "fp32", "plain", "20"),
        ("alta", "small", "fp32", "ours", "20"),
        ("zscl", "paper", "fp32", "ours", "20"),
        ("zscl", "paper, batch 4", "fp32", "ours", "20"),
        ("zscl", "small", "bf16", "ours", "20"),
    ]
    line = records.read(path)[0]
    assert line["torch"] == torch.__version__ and line["date"] and line["commit"] and line["matmul_tflops"] == "0.1"
    assert (line["gflop"], line["difference"], line["ratio"], line["calls"]) == ("1.5", "1e-09", "", "3")


def test_files_that_are_no_records_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("paper,accuracy\nzscl,80\n")
    with pytest.raises(UserError, match=r"other\.csv.*not a table of these benchmarks"):
        records.record(other, context(SIZES), {"zscl": [Row("step", "ours")]}, SIZES)
    assert other.read_text() == "paper,accuracy\nzscl,80\n"
    assert records.file_of("NVIDIA H200 (141 GB)").name == "nvidia-h200-141-gb.csv"


def test_rates_of_steps_come_from_this_command_first() -> None:
    lines = [
        {"paper": paper, "sizes": sizes, "cell": cell, "subject": subject, "images_per_s": rate}
        for paper, sizes, cell, subject, rate in (
            ("inflora", "paper", "step, 20 tasks", "task 1", "200"),
            ("inflora", "small", "step, 20 tasks", "task 1", "9000"),
            ("inflora", "paper", "step, 20 tasks", "the plain way, task 1", "300"),
            ("vq_prompt", "paper, batch 4", "step", "VQ-Prompt", "150"),
            ("vq_prompt", "paper", "evaluation", "VQ-Prompt", "400"),
            ("alta", "paper", "step, RN50", "ours", ""),
        )
    ]
    row = Row("step", "VQ-Prompt", images_per_s=170.0)
    assert step_rates({}, lines, None) == {"inflora": 200.0, "vq_prompt": 150.0}
    assert step_rates({"vq_prompt": [row]}, lines, None) == {"inflora": 200.0, "vq_prompt": 170.0}
    assert set(step_rates({}, lines, 50.0).values()) == {50.0}
