"""Rows kept in results/benchmarks/<device>.csv: one line a subject, replaced when it is measured again."""

import csv
import io
import re
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text
from tests.benchmarks.measure import Row, Sizes

FOLDER = Path(__file__).parents[2] / "results" / "benchmarks"
KEY = ("paper", "sizes", "precision", "threads", "cell", "subject")
ABOUT = ("date", "device", "clock", "torch", "cuda", "matmul_tflops", "commit")
MEASURED = tuple(column.name for column in fields(Row) if column.name not in KEY)
COLUMNS = (*KEY, *MEASURED, *ABOUT)


def file_of(device: str) -> Path:
    """Where rows of a device are kept by default, under its name made fit for a file."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".csv")


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a file that `record` wrote, none where there is no file; UserError for another file."""
    if not path.exists():
        return []
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        lines, columns = list(table), tuple(table.fieldnames or ())
    except (OSError, ValueError, csv.Error):
        lines, columns = [], ()
    if columns != COLUMNS or any(None in line or None in line.values() for line in lines):  # too long or too short
        raise UserError(f"{path}: not a table of these benchmarks. Move it away, or name another file.")
    return lines


def record(path: Path, about: dict[str, Any], rows: dict[str, list[Row]], sizes: Sizes) -> None:
    """Write rows by paper into the file: in the place of those with the same KEY, the others behind."""
    lines = {tuple(line[column] for column in KEY): line for line in read(path)}
    common = {column: about.get(column) for column in ABOUT} | {"date": date.today().isoformat()}
    sizes_name = "small" if sizes.small else f"paper, batch {sizes.batch_size}" if sizes.batch_size else "paper"
    common |= {"sizes": sizes_name, "precision": sizes.precision, "threads": about["threads"]}
    for paper, found in rows.items():
        for row in found:
            line = {column: told(value) for column, value in ({"paper": paper} | asdict(row) | common).items()}
            lines[tuple(line[column] for column in KEY)] = line
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def told(value: Any) -> str:
    """Numbers to four digits, nothing for None."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
