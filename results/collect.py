"""Reading what runs wrote: the runs to which the record files below some folders belong, named by their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluation.report import ZERO_SHOT
from common.files import read_config
from common.protocols import MTIL_ORDERS, Protocol
from results.records import NO_PERCENTAGE, Problem, Record, read_file, record_key
from results.settings import Setup, named, of_sequence, settings_of

COSTS = ("train_seconds", "peak_memory_mib", "trainable_parameters")  # metrics that Provenance sums up
RECORD_FILE = "record.jsonl"
RECORD_FILES = f"*{RECORD_FILE}"  # one-task calls prefix theirs: Aircraft.record.jsonl
Lines = Mapping[str, list[Record]]  # the good lines of each record file
Config = dict[str, dict[str, Any]]  # the sections of a config.yaml


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
    def seconds_a_task(self) -> float | None:
        """Training, the mean over the protocol's tasks."""
        return None if self.seconds is None else self.seconds / (Protocol.parse(self.protocol).length or 1)

    @property
    def remark(self) -> str:
        """How far an unfinished run got, the note, and the runs that take part in nothing because of this one."""
        left_out = f"left out: {', '.join(self.older)}" if self.older else ""
        return "; ".join(part for part in (self.unfinished, self.note, left_out) if part)


@dataclass(frozen=True)
class _Run:
    """A run: its lines, the config.yaml of each of its files, and what it is named by."""

    records: list[Record]
    configs: list[Config]
    setup: Setup
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


def read_runs(folders: list[Path]) -> tuple[list[Record], list[Provenance], list[Problem]]:
    """All good lines below the folders under their runs' names, one entry a run, and a Problem for each bad line.

    One-task calls are joined to runs, and of several runs of the same settings and seed one is kept. An entry has ""
    for what its config.yaml lacks. Raises UserError for a folder that does not exist.
    """
    by_file: dict[str, list[Record]] = {}
    problems: list[Problem] = []
    for path in record_files(folders):
        good, bad = read_file(path)
        problems += bad
        if good:
            by_file[str(path)] = good
    configs = {file: read_config(Path(file.removesuffix(RECORD_FILE) + "config.yaml")) for file in by_file}
    kept = _kept(by_file, configs)
    return [line for run in kept for line in run.records], [_provenance(run) for run in kept], problems


def record_files(folders: list[Path]) -> list[Path]:
    """Every record file below the folders (or the file itself), sorted, each once.

    Raises UserError for a folder that does not exist.
    """
    missing = [str(folder) for folder in folders if not folder.exists()]
    if missing:
        raise UserError(f"no such folder of runs: {', '.join(missing)}. Give existing ones with --runs.")
    paths = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob(RECORD_FILES))]
    return list({path.resolve(): path for path in sorted(paths)}.values())


# One-task calls


def runs(by_file: Lines, configs: Mapping[str, Config]) -> list[list[str]]:
    """The record files of each run in task order: one, or those of one-task calls that go on from one another.

    On MTIL, a file whose tasks are the beginning of those of another file in its folder is part of that one's run, of
    the same method, backbone and seed, unless that one's config.yaml says that it started from another checkpoint than
    this folder's of the task before. What one process learned as a sequence, and a whole order of the paper, is a run
    of its own as well.
    """
    alike: dict[tuple[object, ...], dict[str, Protocol]] = {}
    for file, lines in by_file.items():
        line = _last(lines)
        protocol = Protocol.parse(line.protocol)
        key = (line.folder, line.paper, line.method, line.backbone, line.scale, line.seed, protocol.shots)
        alike.setdefault(key, {})[file] = protocol
    found = {}
    for files in alike.values():
        group = dict(sorted(files.items(), key=lambda item: len(item[1].order)))
        parts: dict[str, list[str]] = {}
        for file, protocol in group.items():
            load = configs[file]["settings"].get("load")
            start = None if load is None else Path(str(load)).parts[-2:]  # the folder's name and the checkpoint's
            before = [each for each in parts if _begins(group[each], protocol)
                      and start in (None, (Path(each).absolute().parent.name, f"{group[each].order[-1]}.pth"))
            ]  # fmt: skip
            parts[file] = [*parts[before[-1]], before[-1]] if before else []
        continued = {part for before in parts.values() for part in before}
        for file, protocol in group.items():
            if file not in continued or Path(file).name == RECORD_FILE or protocol.dataset in MTIL_ORDERS:
                found[file] = [*parts[file], file]
    return [found[file] for file in by_file if file in found]


def _last(lines: list[Record]) -> Record:
    """The first line after the last task."""
    return max(lines, key=lambda line: line.after_task)


def _begins(part: Protocol, whole: Protocol) -> bool:
    """Whether the tasks of one protocol are the first of more tasks of another."""
    return 0 < len(part.order) < len(whole.order) and whole.order[: len(part.order)] == part.order


def joined(files: list[str], by_file: Lines) -> list[Record]:
    """The lines of a run as of one file, the last one; each number once, without the means of parts of the sequence."""
    if len(files) == 1:
        return by_file[files[0]]
    lines: dict[tuple[object, ...], Record] = {}
    protocol = _last(by_file[files[-1]]).protocol
    for line in (line for file in files for line in by_file[file] if line.dataset != "mean"):
        line = replace(line, protocol=protocol, file=files[-1])
        lines.setdefault(record_key(line), line)
    return list(lines.values())


# Named runs, of which one of several equal ones is kept


def _kept(by_file: Lines, configs: Mapping[str, Config]) -> list[_Run]:
    """The runs of record files under their names; of equal ones of a seed the newest of those that got furthest.

    Runs that measured nothing but costs stay, such as a training whose checkpoints another run evaluated.
    """
    found = [_run(lines, [configs[file] for file in files])
             for files in runs(by_file, configs) if (lines := joined(files, by_file))]  # fmt: skip
    equal: dict[object, list[_Run]] = {}
    for run, setup in zip(found, named(run.setup for run in found)):
        # of one-task calls, which share a folder, settings tell which are equal
        comparable = bool(setup.settings) or Path(run.records[0].file).name == RECORD_FILE
        key = (*setup.row, run.records[0].seed) if run.reached and comparable else id(run)
        equal.setdefault(key, []).append(replace(run, setup=setup))
    return [_renamed(_newest(same)) for same in equal.values()]


def _run(records: list[Record], configs: list[Config]) -> _Run:
    file, labelled = Path(records[0].file), configs[-1]["labels"]
    known, notes = zip(*(settings_of(config["settings"], file.parent) for config in configs))
    settings = of_sequence([each for each in known if each] or [{}])
    seed = settings.get("seed")
    if any(config["settings"].get("eval_only") for config in configs) and isinstance(seed, int):  # the training's
        records = [replace(line, seed=seed) for line in records]
    # the first lines may be of the zero-shot row, which is another method
    first = next((line for line in records if line.after_task > 0), records[0])
    method = labelled.get("method")
    modified = datetime.fromtimestamp(file.stat().st_mtime).isoformat()
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
    setup = replace(chosen.setup, note="; ".join(part for part in (note, chosen.setup.note) if part))
    return replace(chosen, setup=setup, older=tuple(run.records[0].folder for run in same if run is not chosen))


def _renamed(run: _Run) -> _Run:
    """The run with its name on its lines; the zero-shot row has one by what it was tested with, others keep theirs."""
    setup, unfinished, lines = run.setup, run.unfinished, []
    for line in (replace(line, started=setup.started) for line in run.records):
        own = replace(line, method=setup.name, note=setup.note, unfinished=unfinished)
        other = replace(line, method=setup.zero_shot) if line.method == ZERO_SHOT else line
        lines.append(own if line.method == setup.method else other)
    return replace(run, records=lines)


def _provenance(run: _Run) -> Provenance:
    first = run.records[0]
    calls, provenance = [config["provenance"] for config in run.configs], run.configs[-1]["provenance"]
    versions = provenance.get("versions")
    seconds, memory, parameters = ([line.value for line in run.records if line.metric == name] for name in COSTS)
    names = ("folder", "file", "paper", "protocol", "backbone", "scale", "seed")
    shared: dict[str, Any] = {name: getattr(first, name) for name in names}
    shared |= {name: str(provenance.get(name, "")) for name in ("machine", "device")}
    return Provenance(
        **shared,
        method=run.setup.name,
        command=" && ".join(str(call.get("command", "")) for call in calls),
        commit=str(provenance.get("commit", first.commit)),
        versions={str(name): str(text) for name, text in versions.items()} if isinstance(versions, dict) else {},
        started=str(calls[0].get("started", "")),
        seconds=sum(seconds) if seconds else None,
        peak_memory_mib=max(memory) if memory else None,
        trainable_parameters=round(max(parameters)) if parameters else None,
        records=len(run.records),
        note=run.setup.note,
        unfinished=run.unfinished,
        older=run.older,
    )
