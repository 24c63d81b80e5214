"""The output of `python -m results` in the terminal: comparisons as a text table, and what was read and written."""

import sys
from collections import Counter
from pathlib import Path

from results.collect import Problem
from results.compare import NOT_RUN, VERDICTS, Comparison, Data
from results.options import RUNS

COLUMNS = "{:<13} {:<24} {:<13} {:<13} {:>9} {:>6} {:>9} {:>6} {:>2} {:>7}  {}"
HEADS = ("paper", "method", "metric", "data set", "published", "std", "ours", "std", "n", "diff", "verdict")


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
        print(COLUMNS.format(*HEADS))
    for c in run:
        numbers = (_digits(c.published), _digits(c.published_std), _digits(c.mean), _digits(c.std), c.seeds)
        note = f"{c.verdict} ({c.note})" if c.note else c.verdict
        print(COLUMNS.format(c.paper, c.method, c.metric, c.dataset, *numbers, _digits(c.difference, "+"), note))
    missing = sorted({comparison.method for comparison in comparisons if comparison.verdict == NOT_RUN})
    print(f"\n{title}: {_verdicts(comparisons)}" + (f" (of {', '.join(missing)})" if missing else ""))


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
