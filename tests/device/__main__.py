"""Count all steps anew into counted.csv, and print the table of docs/precision.md: `python -m tests.device`."""

import csv
import io
from pathlib import Path

from common.runs import write_text
from tests.device.steps import STEPS, count

FILE = Path(__file__).with_name("counted.csv")
GIB = 2**30
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)  # GiB
CONTEXT, FRAGMENTS = 1.0, 1.1  # GiB of CUDA's context and its libraries' workspaces; what the allocator can not fill


def columns(name: str) -> dict[str, int | None]:
    """What is counted of a step; None: MoE-Adapters refuse to checkpoint, and fp16 has halved weights already."""
    step = STEPS[name]
    plain, peaks = count(step), {}
    peaks["fp32"] = plain.peak
    peaks["bf16"] = None if "fp16" in name else count(step, "bf16").peak
    peaks["checkpointed"] = None if "MoE" in name else count(step, checkpointed=True).peak
    return {"launches": plain.launches} | peaks


def table_line(row: dict[str, str]) -> str:
    """A row of counted.csv as docs/precision.md has it."""
    peaks = [f"{int(row[name]) / GIB:.1f}" if row[name] else "" for name in ("fp32", "bf16", "checkpointed")]
    needed = int(row["fp32"]) / GIB * FRAGMENTS + CONTEXT
    return f"| {row['step']} | {int(row['launches']):,} | {' | '.join(peaks)} | {min(c for c in CARDS if c > needed)} |"


if __name__ == "__main__":
    rows = [{"step": name} | columns(name) for name in STEPS]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(FILE, text.getvalue())
    print("\n".join(map(table_line, csv.DictReader(text.getvalue().splitlines()))))
