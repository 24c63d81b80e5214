"""Published numbers: results/papers/<paper>.csv and, from published logs, results/papers/curves.csv."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

PAPERS = Path(__file__).parent / "papers"
CURVES = PAPERS / "curves.csv"
# Ends the method's name of a number that stands elsewhere than in the paper's table: the same runs, another source
ELSEWHERE = re.compile(r" \((released logs|Figure \w+|as listed by \w+)\)$")


@dataclass(frozen=True)
class Published:
    """One published number; the columns of the CSV files."""

    paper: str  # the folder name of the paper that printed it or that it is compared in
    protocol: str
    method: str
    backbone: str  # "" where the source does not say
    metric: str
    dataset: str  # "mean" for a mean over data sets
    after_task: int | None  # None unless the number belongs to one step of the sequence
    value: float  # percent, as printed
    std: float | None
    verified: str  # "paper" (read in the paper or an upstream file), "third party", "derived"
    source: str
    note: str  # begins with "misprint" or "setting not stated" where a verdict depends on it; "" for none

    @property
    def run_method(self) -> str:
        """The method whose runs the number is compared with: "InfLoRA" of "InfLoRA (released logs)"."""
        return ELSEWHERE.sub("", self.method)


def read_published(paper: str | None = None, protocol: str | None = None) -> list[Published]:
    """The published numbers, of one paper or protocol if given, in the order of the files."""
    files = sorted(path for path in PAPERS.glob("*.csv") if path != CURVES)
    return _read(files, paper, protocol)


def read_curves(paper: str | None = None, protocol: str | None = None) -> list[Published]:
    """Accuracy after each task from published logs, `after_task` 1, 2, ...; one row a point."""
    return _read([CURVES], paper, protocol)


def _read(files: Iterable[Path], paper: str | None, protocol: str | None) -> list[Published]:
    rows = (row for path in files for row in _rows(path))
    return [row for row in rows if paper in (None, row.paper) and protocol in (None, row.protocol)]


@cache
def _rows(path: Path) -> list[Published]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    names = [field.name for field in fields(Published)]
    if header != names:
        raise ValueError(f"{path} has the columns {header}, not {names}")
    rows: list[dict[str, Any]] = [dict(zip(names, line, strict=True)) for line in lines]
    for row in rows:
        row["after_task"] = int(row["after_task"]) if row["after_task"] else None
        row["value"], row["std"] = float(row["value"]), float(row["std"]) if row["std"] else None
    return [Published(**row) for row in rows]
