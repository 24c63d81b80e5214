"""Reading what runs wrote: the lines of every record.jsonl below some folders, and the provenance of each file."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import RECORD_KEY, RECORD_SCHEMA, read_config
from common.protocols import MTIL_ORDERS, Protocol
from results import labels

COSTS = ("train_seconds", "peak_memory_mib", "trainable_parameters")  # metrics that Provenance sums up
# Metrics are percentages but for the costs and counts, whose names tell their unit
NO_PERCENTAGE = re.compile(r".*(seconds.*|_mib|_parameters|_seed)|routed_to/.*")
CHANGES = ("forgetting", "bwt")  # differences of percentages, which may be negative
ROUNDING = 1e-4  # by which a mean of percentages may pass the end of their range
RECORD_FILE = "record.jsonl"
RECORD_FILES = f"*{RECORD_FILE}"  # one-task calls prefix theirs: Aircraft.record.jsonl


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

    @property
    def folder(self) -> str:
        """The run's folder."""
        return str(Path(self.file).parent)

    @property
    def is_zero_shot(self) -> bool:
        """Whether the line is a cell of the accuracy matrix before any task."""
        return self.metric == "accuracy" and self.after_task == 0


# Types that the fields' values may have in JSON, where an integer is a number too
FIELDS: dict[str, Any] = {field.name: field.type | int if field.name in ("value", "seconds") else field.type
                          for field in fields(Record) if field.name != "file"}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A line that was left out, and why."""

    file: str
    line: int  # from 1; 0 for the whole file
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Provenance:
    """Where a run's record.jsonl comes from: its config.yaml in short, and the costs among its lines."""

    folder: str
    file: str  # its record.jsonl, of one-task calls the last one's
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
class RunFiles:
    """The record files of one run in task order: one, or those of one-task calls that go on from one another."""

    files: list[str]
    protocol: str  # of the last file


class _Damaged(Exception):
    """Raised for a line that is not a record."""


def record_files(folders: list[Path]) -> list[Path]:
    """Every record file below the folders (or the file itself), sorted, each once.

    Raises UserError for a folder that does not exist.
    """
    missing = [str(folder) for folder in folders if not folder.exists()]
    if missing:
        raise UserError(f"no such folder of runs: {', '.join(missing)}. Give existing ones with --runs.")
    paths = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob(RECORD_FILES))]
    return list({path.resolve(): path for path in sorted(paths)}.values())


def read_records(folders: list[Path]) -> tuple[list[Record], list[Problem]]:
    """All good lines below the folders, those of one-task calls joined to runs, and a Problem for each bad line.

    A line is bad when it is cut, of another schema version, not finite or outside its metric's range, lacks a field,
    has an unknown one or one of the wrong type, or repeats the (dataset, after_task, metric) of an earlier line of its
    file.
    """
    files = {str(path): read_file(path) for path in record_files(folders)}
    by_file = {path: good for path, (good, _) in files.items() if good}
    records = [record for run in runs(by_file) for record in joined(run, by_file)]
    return records, [problem for _, bad in files.values() for problem in bad]


def runs(by_file: Mapping[str, list[Record]]) -> list[RunFiles]:
    """The runs that record files belong to, from the good lines of each file.

    On MTIL, a file whose tasks are the beginning of those of another file in its folder is part of that one's run, of
    the same method, backbone and seed. What one process learned as a sequence, and a whole order of the paper, is a run
    of its own as well.
    """
    lasts = {file: max(lines, key=lambda line: line.after_task) for file, lines in by_file.items()}
    alike: dict[tuple[object, ...], dict[str, Protocol]] = {}
    for file, line in lasts.items():
        protocol = Protocol.parse(line.protocol)
        key = (line.folder, line.paper, line.method, line.backbone, line.scale, line.seed, protocol.shots)
        alike.setdefault(key, {})[file] = protocol
    found = {}
    for files in alike.values():
        group = dict(sorted(files.items(), key=lambda item: len(item[1].order)))
        parts = {file: [each for each in group if _begins(group[each], protocol)] for file, protocol in group.items()}
        continued = {part for before in parts.values() for part in before}
        for file, protocol in group.items():
            if file not in continued or Path(file).name == RECORD_FILE or protocol.dataset in MTIL_ORDERS:
                found[file] = RunFiles([*parts[file], file], lasts[file].protocol)
    return [found[file] for file in by_file if file in found]


def _begins(part: Protocol, whole: Protocol) -> bool:
    """Whether the tasks of one protocol are the first of more tasks of another."""
    return 0 < len(part.order) < len(whole.order) and whole.order[: len(part.order)] == part.order


def joined(run: RunFiles, by_file: Mapping[str, list[Record]]) -> list[Record]:
    """The lines of a run as of one file, the last one; each number once, without the means of parts of the sequence."""
    if len(run.files) == 1:
        return by_file[run.files[0]]
    lines: dict[tuple[object, ...], Record] = {}
    for line in (line for file in run.files for line in by_file[file] if line.dataset != "mean"):
        line = replace(line, protocol=run.protocol, file=run.files[-1])
        lines.setdefault(tuple(getattr(line, name) for name in RECORD_KEY), line)
    return list(lines.values())


def read_file(path: Path) -> tuple[list[Record], list[Problem]]:
    """The good records of one file and its bad lines."""
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
            key = tuple(getattr(record, name) for name in RECORD_KEY)
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
    faults = {
        "unknown field": sorted(content.keys() - FIELDS.keys()),
        "missing field": [name for name in FIELDS if name not in content],
        "wrong type of": [
            name
            for name, kind in FIELDS.items()
            if name in content and (isinstance(content[name], bool) or not isinstance(content[name], kind))
        ],
    }
    if messages := [f"{fault} {', '.join(map(repr, names))}" for fault, names in faults.items() if names]:
        raise _Damaged("; ".join(messages))
    for name in ("value", "seconds"):
        content[name] = _finite(name, content[name])
    if content["scale"] not in labels.SCALES:
        raise _Damaged(f"scale {content['scale']!r} is neither 'paper' nor 'mini'")
    if content["after_task"] < 0:
        raise _Damaged(f"after_task {content['after_task']} is negative")
    low, high = _range(content["metric"])
    if not low - ROUNDING <= content["value"] <= high + ROUNDING:
        raise _Damaged(f"value {content['value']:g} of {content['metric']} is not between {low:g} and {high:g}")
    return Record(**content, file=file)


def _range(metric: str) -> tuple[float, float]:
    """The lowest and the highest value that a metric can have."""
    if NO_PERCENTAGE.fullmatch(metric):
        return 0.0, math.inf
    return (-100.0 if metric in CHANGES else 0.0), 100.0


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


def read_provenance(folders: list[Path]) -> list[Provenance]:
    """One entry a run below the folders that has a good line; "" for what its config.yaml lacks."""
    by_file = {str(path): good for path in record_files(folders) if (good := read_file(path)[0])}
    return [_provenance(run, joined(run, by_file)) for run in runs(by_file)]


def _provenance(run: RunFiles, records: list[Record]) -> Provenance:
    configs = [read_config(Path(file.removesuffix(RECORD_FILE) + "config.yaml")) for file in run.files]
    config, path = configs[-1], Path(run.files[-1])
    calls, provenance = [call["provenance"] for call in configs], config["provenance"]
    versions = provenance.get("versions")
    seconds, memory, parameters = ([record.value for record in records if record.metric == name] for name in COSTS)
    # the first lines may be of the zero-shot row, which is another method
    method = next((record.method for record in records if record.after_task > 0), records[0].method)
    shared: dict[str, Any] = {name: getattr(records[0], name) for name in ("paper", "protocol", "backbone", "scale")}
    shared |= {name: str(provenance.get(name, "")) for name in ("machine", "device")}
    return Provenance(
        **shared,
        folder=str(path.parent),
        file=str(path),
        seed=records[0].seed,
        command=" && ".join(str(call.get("command", "")) for call in calls),
        started=str(calls[0].get("started", "")),
        method=str(config["labels"].get("method", method)),
        commit=str(provenance.get("commit", records[0].commit)),
        versions={str(name): str(text) for name, text in versions.items()} if isinstance(versions, dict) else {},
        seconds=sum(seconds) if seconds else None,
        peak_memory_mib=max(memory) if memory else None,
        trainable_parameters=round(max(parameters)) if parameters else None,
        records=len(records),
    )
