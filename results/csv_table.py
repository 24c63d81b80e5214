"""results.csv (results-mini.csv): every comparison as a tidy line, unrounded."""

from dataclasses import fields
from pathlib import Path

from common.evaluation.report import write_table
from results.compare import Comparison, Data

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would read such a field as a formula


def write(out: Path, data: Data) -> list[Path]:
    """Write the file into `out`; its path as a list of one."""
    path, names = out / f"results{data.words.suffix}.csv", [field.name for field in fields(Comparison)]
    lines = [[data.scale, *(_harmless(getattr(item, name)) for name in names)] for item in data.comparisons]
    write_table(path, ["scale", *names], lines)
    return [path]


def _harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; all else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
