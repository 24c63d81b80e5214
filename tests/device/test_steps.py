"""What a training step of each paper asks of a GPU, at the papers' sizes: waits, launches, memory."""

import csv
from pathlib import Path

import pytest

from tests.device.__main__ import FILE, table_line
from tests.device.steps import STEPS, count

ROWS = {row["step"]: row for row in csv.DictReader(FILE.read_text().splitlines())}
QUEUED = {"MoE-Adapters, 64 images, 100 classes": 1, "MoE-Adapters class-incremental, 128 images": 1}
PAGE = Path(__file__).parents[2] / "docs" / "precision.md"


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_training(name: str) -> None:
    """The host never waits; what it reads of a step, it reads when all but the optimiser's part is launched."""
    counted, row = count(STEPS[name]), ROWS[name]
    assert (counted.waits, counted.queued) == (0, QUEUED.get(name, 0))
    assert all(after < 10 for after in counted.after_reading) and bool(counted.after_reading) == bool(counted.queued)
    assert counted.launches == pytest.approx(int(row["launches"]), rel=0.05)
    assert counted.peak == pytest.approx(int(row["fp32"]), rel=0.05)


@pytest.mark.parametrize(("column", "changes"), [("bf16", ("bf16", False)), ("checkpointed", ("fp32", True))])
def test_memory_of_the_other_ways(column: str, changes: tuple[str, bool]) -> None:
    counted = count(STEPS["VQ-Prompt, 64 images"], *changes)
    assert counted.peak == pytest.approx(int(ROWS["VQ-Prompt, 64 images"][column]), rel=0.05)


def test_the_page_has_the_counted_table() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index("| step | launches | fp32, GiB | bf16 | checkpointed | a card of GiB, fp32 |") + 2
    assert lines[start : start + len(ROWS)] == [table_line(row) for row in ROWS.values()]
