"""Published numbers: results/papers/<paper>.csv and, from published logs, results/papers/curves.csv."""

import re
from dataclasses import dataclass, fields
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
    return [row for path in files for row in _read(path, paper, protocol)]


def read_curves(paper: str | None = None, protocol: str | None = None) -> list[Published]:
    """Accuracy after each task from published logs, `after_task` 1, 2, ...; one row a point."""
    return _read(CURVES, paper, protocol)


def _read(path: Path, paper: str | None, protocol: str | None) -> list[Published]:
    import pandas as pd

    names = [field.name for field in fields(Published)]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != names:
        raise ValueError(f"{path} has the columns {list(frame.columns)}, not {names}")
    rows: list[dict[Any, Any]] = frame.to_dict("records")
    for row in rows:
        row["after_task"] = int(row["after_task"]) if row["after_task"] else None
        row["value"], row["std"] = float(row["value"]), float(row["std"]) if row["std"] else None
    published = [Published(**row) for row in rows]
    return [row for row in published if paper in (None, row.paper) and protocol in (None, row.protocol)]
