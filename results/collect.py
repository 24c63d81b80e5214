"""Reading what runs wrote: the lines of every record.jsonl below some folders, and the provenance of each file."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluation.report import ZERO_SHOT
from common.files import RECORD_KEY, RECORD_SCHEMA, read_config
from common.protocols import MTIL_ORDERS, Protocol
from results import labels
from results.settings import Setup, named, of_sequence, settings_of

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
    note: str = ""  # as of its records
    unfinished: str = ""
    older: tuple[str, ...] = ()  # folders of the runs that it stands for

    @property
    def remark(self) -> str:
        """How far an unfinished run got, the note, and the runs that take part in nothing because of this one."""
        left_out = f"left out: {', '.join(self.older)}" if self.older else ""
        return "; ".join(part for part in (self.unfinished, self.note, left_out) if part)


@dataclass(frozen=True)
class RunFiles:
    """The record files of one run in task order: one, or those of one-task calls that go on from one another."""

    files: list[str]
    protocol: str  # of the last file


@dataclass(frozen=True)
class _Run:
    """A run: its lines, the config.yaml of each of its files, and what it is named by."""

    records: list[Record]
    configs: list[dict[str, dict[str, Any]]]
    setup: Setup
    note: str = ""
    older: tuple[str, ...] = ()

    @property
    def reached(self) -> int:
        """The last task after which something was measured, 0 for a run of which only costs are on record."""
        return max((line.after_task for line in self.records if not NO_PERCENTAGE.fullmatch(line.metric)), default=0)

    @property
    def unfinished(self) -> str:
        """How far it got before the last task of its protocol; "" for a whole run, or of a length that is not known."""
        length = Protocol.parse(self.setup.protocol).length or 0
        tasks = self.reached or max(line.after_task for line in self.records)
        return f"after {tasks} of {length} tasks" if 0 < tasks < length else ""

    @property
    def evaluates(self) -> bool:
        """Whether it only tested checkpoints that another run left."""
        return any(config["settings"].get("eval_only") for config in self.configs)


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
    """All good lines below the folders under their runs' names, and a Problem for each bad line.

    One-task calls are joined to runs, and of several runs of the same settings and seed one is kept. A line is bad when
    it is cut, of another schema version, not finite or outside its metric's range, lacks a field, has an unknown one or
    one of the wrong type, or repeats the (dataset, after_task, metric) of an earlier line of its file.
    """
    files = {str(path): read_file(path) for path in record_files(folders)}
    by_file = {path: good for path, (good, _) in files.items() if good}
    records = [record for run in _kept(by_file) for record in run.records]
    return records, [problem for _, bad in files.values() for problem in bad]


def runs(by_file: Mapping[str, list[Record]]) -> list[RunFiles]:
    """The runs that record files belong to, from the good lines of each file.

    On MTIL, a file whose tasks are the beginning of those of another file in its folder is part of that one's run, of
    the same method, backbone and seed, unless that one's config.yaml says that it started from another checkpoint than
    this folder's of the task before. What one process learned as a sequence, and a whole order of the paper, is a run
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
        parts: dict[str, list[str]] = {}
        for file, protocol in group.items():
            start = _start(Path(file)) if parts else None
            before = [each for each in parts if _begins(group[each], protocol)
                      and start in (None, (Path(each).absolute().parent.name, f"{group[each].order[-1]}.pth"))
            ]  # fmt: skip
            parts[file] = [*parts[before[-1]], before[-1]] if before else []
        continued = {part for before in parts.values() for part in before}
        for file, protocol in group.items():
            if file not in continued or Path(file).name == RECORD_FILE or protocol.dataset in MTIL_ORDERS:
                found[file] = RunFiles([*parts[file], file], lasts[file].protocol)
    return [found[file] for file in by_file if file in found]


def _begins(part: Protocol, whole: Protocol) -> bool:
    """Whether the tasks of one protocol are the first of more tasks of another."""
    return 0 < len(part.order) < len(whole.order) and whole.order[: len(part.order)] == part.order


def _start(file: Path) -> tuple[str, ...] | None:
    """The folder's name and the name of the checkpoint that a call started from; None where it is not on record."""
    load = _config(file)["settings"].get("load")
    return None if load is None else Path(str(load)).parts[-2:]


def _config(file: Path) -> dict[str, dict[str, Any]]:
    """The config.yaml of a record file."""
    return read_config(file.with_name(file.name.removesuffix(RECORD_FILE) + "config.yaml"))


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
    """One entry a run that `read_records` keeps; "" for what its config.yaml lacks."""
    by_file = {str(path): good for path in record_files(folders) if (good := read_file(path)[0])}
    return [_provenance(run) for run in _kept(by_file)]


def _provenance(run: _Run) -> Provenance:
    records, path = run.records, Path(run.records[0].file)
    calls, provenance = [config["provenance"] for config in run.configs], run.configs[-1]["provenance"]
    versions = provenance.get("versions")
    seconds, memory, parameters = ([record.value for record in records if record.metric == name] for name in COSTS)
    shared: dict[str, Any] = {name: getattr(records[0], name) for name in ("paper", "protocol", "backbone", "scale")}
    shared |= {name: str(provenance.get(name, "")) for name in ("machine", "device")}
    return Provenance(
        **shared,
        folder=str(path.parent),
        file=str(path),
        seed=records[0].seed,
        command=" && ".join(str(call.get("command", "")) for call in calls),
        started=str(calls[0].get("started", "")),
        method=run.setup.name,
        commit=str(provenance.get("commit", records[0].commit)),
        versions={str(name): str(text) for name, text in versions.items()} if isinstance(versions, dict) else {},
        seconds=sum(seconds) if seconds else None,
        peak_memory_mib=max(memory) if memory else None,
        trainable_parameters=round(max(parameters)) if parameters else None,
        records=len(records),
        note=run.note,
        unfinished=run.unfinished,
        older=run.older,
    )


# Named runs, of which one of several equal ones is kept


def _kept(by_file: Mapping[str, list[Record]]) -> list[_Run]:
    """The runs of record files under their names; of equal ones of a seed the newest of those that got furthest.

    Runs that measured nothing but costs stay, such as a training whose checkpoints another run evaluated.
    """
    found = [_run(run, lines) for run in runs(by_file) if (lines := joined(run, by_file))]
    equal: dict[object, list[_Run]] = {}
    for run, setup in zip(found, named(run.setup for run in found)):
        # of one-task calls, which share a folder, settings tell which are equal
        comparable = bool(setup.settings) or Path(run.records[0].file).name == RECORD_FILE
        key = (*setup.row, run.records[0].seed) if run.reached and comparable else id(run)
        equal.setdefault(key, []).append(replace(run, setup=setup, note=setup.note))
    return [_renamed(_newest(same)) for same in equal.values()]


def _run(files: RunFiles, records: list[Record]) -> _Run:
    configs = [_config(Path(file)) for file in files.files]
    known, notes = zip(*(settings_of(config["settings"], Path(records[0].folder)) for config in configs))
    settings, labelled = of_sequence([each for each in known if each] or [{}]), configs[-1]["labels"]
    seed = settings.get("seed")
    if any(config["settings"].get("eval_only") for config in configs) and isinstance(seed, int):  # the training's
        records = [replace(line, seed=seed) for line in records]
    # the first lines may be of the zero-shot row, which is another method
    first = next((line for line in records if line.after_task > 0), records[0])
    method = labelled.get("method")
    modified = datetime.fromtimestamp(Path(files.files[-1]).stat().st_mtime).isoformat()
    setup = Setup(
        paper=first.paper,
        scale=first.scale,
        protocol=str(labelled.get("protocol", first.protocol)) if len(configs) == 1 else first.protocol,
        method=method if method in [line.method for line in records] else first.method,
        backbone=first.backbone,
        settings=settings,
        seed=first.seed,
        started=str(configs[-1]["provenance"].get("started") or modified),
        note=min(notes),
    )
    return _Run(records, configs, setup)


def _newest(same: list[_Run]) -> _Run:
    """The run that stands for all of these, with a note: training before evaluation."""
    if len(same) == 1:
        return same[0]
    chosen = max(same, key=lambda run: (run.reached, not run.evaluates, run.setup.started))
    newest = max(same, key=lambda run: run.setup.started) is chosen
    what = ("the newer of" if len(same) == 2 else "the newest of") if newest else "one of"
    note = f"{what} {len(same)} runs of seed {chosen.records[0].seed}"
    older = tuple(run.records[0].folder for run in same if run is not chosen)
    return replace(chosen, note="; ".join(part for part in (note, chosen.note) if part), older=older)


def _renamed(run: _Run) -> _Run:
    """The run with its name on its lines; the zero-shot row has one by what it was tested with, others keep theirs."""
    lines = []
    for line in run.records:
        own = replace(line, method=run.setup.name, note=run.note, unfinished=run.unfinished)
        other = replace(line, method=run.setup.zero_shot) if line.method == ZERO_SHOT else line
        lines.append(replace(own if line.method == run.setup.method else other, started=run.setup.started))
    return replace(run, records=lines)
