"""The lines of a record.jsonl, and what is wrong with those that are damaged."""

import json
import math
import re
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.files import RECORD_KEY, RECORD_SCHEMA
from results import labels

# Metrics are percentages but for the costs and counts, whose names tell their unit
NO_PERCENTAGE = re.compile(r".*(seconds.*|_mib|_parameters|_floats|_classes|_images|_seed)|routed_to/.*")
CHANGES = ("forgetting", "bwt")  # differences of percentages, which may be negative
ROUNDING = 1e-4  # by which a mean of percentages may pass the end of their range


@dataclass(frozen=True)
class Record:
    """One measured number, a line of record.jsonl."""

    paper: str
    method: str  # as written, and behind it what differs from the row's settings
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
    started: str = ""  # when its run started
    note: str = ""  # on its run: that its settings are unknown, or that it stands for several
    unfinished: str = ""  # of its run, how far it got: "after 3 of 10 tasks"; "" for a whole one

    @property
    def folder(self) -> str:
        """The run's folder."""
        return str(Path(self.file).parent)

    @property
    def is_zero_shot(self) -> bool:
        """Whether the line is a cell of the accuracy matrix before any task."""
        return self.metric == "accuracy" and self.after_task == 0


OF_RUN = ("file", "started", "note", "unfinished")  # what no line says itself
# Types that the fields' values may have in JSON, where an integer is a number too
FIELDS: dict[str, Any] = {field.name: field.type | int if field.name in ("value", "seconds") else field.type
                          for field in fields(Record) if field.name not in OF_RUN}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A line that was left out, and why."""

    file: str
    line: int  # from 1; 0 for the whole file
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


record_key = attrgetter(*RECORD_KEY)  # what no two lines of a run share


class _Damaged(Exception):
    """Raised for a line that is not a record."""


def read_file(path: Path) -> tuple[list[Record], list[Problem]]:
    """The good records of one file and its bad lines.

    A line is bad when it is cut, of another schema version, not finite or outside its metric's range, lacks a field,
    has an unknown one or one of the wrong type, or repeats the (protocol, dataset, after_task, metric) of an earlier
    line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        return [], [Problem(str(path), 0, f"cannot be read ({error.strerror})")]
    records: list[Record] = []
    problems: list[Problem] = []
    first_seen: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse(line, str(path))
            key = record_key(record)
            if key in first_seen:
                raise _Damaged(f"duplicate of line {first_seen[key]} ({', '.join(map(str, key))})")
        except _Damaged as reason:
            problems.append(Problem(str(path), number, str(reason)))
        else:
            first_seen[key] = number
            records.append(record)
    return records, problems


def _parse(line: bytes, file: str) -> Record:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _Damaged("cut or damaged: not JSON") from error
    if not isinstance(content, dict):
        raise _Damaged("not a record: no JSON object")
    schema = content.pop("schema", 1)  # lines written before the field came in are of version 1
    if schema != RECORD_SCHEMA or isinstance(schema, bool):
        raise _Damaged(f"schema version {schema!r}, this reader knows {RECORD_SCHEMA}")
    shared = [name for name in FIELDS if name in content]
    faults = {
        "unknown field": sorted(content.keys() - FIELDS.keys()),
        "missing field": [name for name in FIELDS if name not in content],
        "wrong type of": [name for name in shared if isinstance(content[name], bool)
                          or not isinstance(content[name], FIELDS[name])],
    }  # fmt: skip
    if messages := [f"{fault} {', '.join(map(repr, names))}" for fault, names in faults.items() if names]:
        raise _Damaged("; ".join(messages))
    for name in ("value", "seconds"):
        content[name] = _finite(name, content[name])
    # of a file's name that is not UTF-8, which no table or figure can hold
    texts = [key for key, value in content.items() if isinstance(value, str)] if b"\\ud" in line else []
    content |= {key: content[key].encode(errors="backslashreplace").decode() for key in texts}
    if content["scale"] not in labels.SCALES:
        raise _Damaged(f"scale {content['scale']!r} is neither 'paper' nor 'mini'")
    if content["after_task"] < 0:
        raise _Damaged(f"after_task {content['after_task']} is negative")
    is_open = NO_PERCENTAGE.fullmatch(content["metric"])
    low, high = (0.0, math.inf) if is_open else (-100.0 if content["metric"] in CHANGES else 0.0, 100.0)
    if not low - ROUNDING <= content["value"] <= high + ROUNDING:
        raise _Damaged(f"value {content['value']:g} of {content['metric']} is not between {low:g} and {high:g}")
    return Record(**content, file=file)


def _finite(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer too large for a float
        number = math.inf
    if not math.isfinite(number):
        raise _Damaged(f"{name} is {number}, not a finite number")
    return number
