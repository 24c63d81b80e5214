"""The output of `python -m results` in the terminal: comparisons as a text table, and what was read and written."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from results.compare import NOT_RUN, VERDICTS, Comparison, Data
from results.options import RUNS
from results.records import Problem
from results.tables import Table

HEADS = ("method", "backbone", "number from", "metric", "data set",
         "published", "std", "ours", "std", "n", "diff", "verdict")  # fmt: skip
SIDES = "<<<<<>>>>>><"  # to which each column is aligned


def warn(problems: list[Problem]) -> None:
    """Name each damaged line on stderr."""
    for problem in problems:
        print(f"warning: left out {problem}", file=sys.stderr)


def closing(data: Data, folders: list[Path], left_out: Counter[str], written: list[Path]) -> str:
    """The last line of output: what was read, what was skipped and why, what was written."""
    where = ", ".join(map(str, folders)) or f"no folder of runs ({', '.join(map(str, RUNS))})"
    skipped = [f"{count} {why}" for why, count in left_out.items()]
    if data.problems:
        skipped.insert(0, f"{_count(data.problems, 'damaged line')} (named above)")
    older = {folder for run in data.provenance for folder in run.older}
    if older:
        skipped.append(f"{_count([*older], 'run')} that another of the same settings and seed stands for")
    pictures = [path for path in written if path.suffix == ".png"]
    files = [str(path) for path in written if path.suffix != ".png"]
    return (
        f"Read {_count(data.records, 'record')} of {_count(data.provenance, 'run')} in {where} and "
        f"{_count(data.published, 'published number')}; skipped {', '.join(skipped) or 'nothing'}; "
        f"verdicts: {_verdicts(data.comparisons)}. Written: {', '.join(files)}, {_count(pictures, 'figure')}."
    )


def show(comparisons: list[Comparison], title: str) -> None:
    """Print the measured numbers as a text table, and of the numbers not run the count and the methods."""
    run = [comparison for comparison in comparisons if comparison.verdict != NOT_RUN]
    if run:
        print(f"{title}\n")
        print(*aligned([HEADS, *map(_texts, run)], SIDES), sep="\n")
    missing = sorted({comparison.method for comparison in comparisons if comparison.verdict == NOT_RUN})
    print(f"\n{title}: {_verdicts(comparisons)}" + (f" (of {', '.join(missing)})" if missing else ""))


def show_table(table: Table, mark: str) -> None:
    """Print a table of the spreadsheet as text; `mark` stands behind its title."""
    heads = [[column.title for column in table.columns]]
    sides = "".join("<" if column.kind in ("name", "text", "source") else ">" for column in table.columns)
    print(f"{table.sheet}{mark}. {table.description}\n")
    print(*aligned([*heads, *([column.text(row) for column in table.columns] for row in table.rows)], sides), sep="\n")


def aligned(lines: Sequence[Sequence[str]], sides: str = "<") -> list[str]:
    """Lines of texts as a table; `sides` are those to which each column is aligned, the last one's all further ones."""
    widths = [max(map(len, texts)) for texts in zip(*lines)]
    sides = sides.ljust(len(widths), sides[-1])
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in zip(line, sides, widths)).rstrip()
            for line in lines]  # fmt: skip


def _texts(item: Comparison) -> tuple[str, ...]:
    """The cells of a comparison under HEADS."""
    measured = (_digits(item.mean), _digits(item.std), str(item.seeds), _digits(item.difference, "+"))
    note = f"{item.verdict} ({item.note})" if item.note else item.verdict
    return (item.method, item.backbone, item.origin, item.metric, item.dataset,
            _digits(item.published), _digits(item.published_std), *measured, note)  # fmt: skip


def _verdicts(comparisons: list[Comparison]) -> str:
    counts = Counter(comparison.verdict for comparison in comparisons)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)


def _count(things: list, noun: str) -> str:
    """The length of a list with its noun: 1 record, 2 records."""
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")


def _digits(value: float | None, sign: str = "") -> str:
    """A number with two decimals, from 1000 on with none; - for None."""
    if value is None:
        return "-"
    return f"{value:{sign}.0f}" if abs(value) > 1000 else f"{value:{sign}.2f}"
