"""What the runs wrote: every line of every <run folder>/**/record.jsonl, good or bad."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from results.published import Published

if TYPE_CHECKING:
    from results.compare import Comparison


@dataclass(frozen=True)
class Record:
    """One measured number, a line of record.jsonl."""

    paper: str
    method: str
    protocol: str
    backbone: str
    scale: str  # "paper" or "mini"
    seed: int
    run: str
    commit: str
    dataset: str
    after_task: int  # 0 before the first task
    metric: str
    value: float
    seconds: float | None
    file: str  # the record.jsonl that holds the line


@dataclass(frozen=True)
class Problem:
    """A line that was left out, and why."""

    file: str
    line: int  # from 1; 0 for the whole file
    reason: str


@dataclass(frozen=True)
class Provenance:
    """What made one record.jsonl: the config.yaml beside it and the costs among its lines."""

    folder: str
    paper: str
    method: str
    protocol: str
    backbone: str
    scale: str
    seed: int
    command: str
    commit: str
    versions: dict[str, str]
    machine: str
    device: str  # "" where the run did not note it
    started: str
    seconds: float | None  # training, all tasks
    peak_memory_mib: float | None
    trainable_parameters: int | None  # None unless the run recorded it
    records: int


@dataclass(frozen=True)
class Data:
    """All that the spreadsheet, the figures and the page are made from; of one scale."""

    scale: str  # "paper" or "mini"
    records: list[Record]
    published: list[Published]
    comparisons: list["Comparison"]
    provenance: list[Provenance]
    problems: list[Problem]
    curves: list[Published]  # accuracy after each task, from published logs


def read_records(
    folders: list[Path], scale: str | None = None, protocol: str | None = None, paper: str | None = None
) -> tuple[list[Record], list[Problem]]:
    """All good lines below the folders, filtered, and a Problem for each line that is not one."""
    raise NotImplementedError


def read_provenance(folders: list[Path]) -> list[Provenance]:
    """One entry a record.jsonl below the folders that has a config.yaml beside it."""
    raise NotImplementedError
