"""results.csv (results-mini.csv): every comparison as a tidy line, unrounded."""

from dataclasses import fields
from pathlib import Path

from common.files import write_text
from results.compare import Comparison, Data

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would read such a field as a formula


def write(out: Path, data: Data) -> list[Path]:
    """Write the file into `out`; its path as a list of one."""
    import pandas as pd

    frame = pd.DataFrame(data.comparisons, columns=[field.name for field in fields(Comparison)]).map(_harmless)
    frame.insert(0, "scale", data.scale)
    path = out / f"results{data.words.suffix}.csv"
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    return [path]


def _harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; all else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
