"""How far the runs of a table are, read from their records, and what the rest may cost.

A run is done when every metric that its plan names is on record after the last task of the protocol that the records
themselves name: `transfer`, `avg` and `last` after task 11 on MTIL, `acc` and `avg_acc` after task 10 of ten, ... Runs
write these at their very end, or with their last evaluation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.protocols import Protocol
from results.collect import Provenance, Record, read_file, read_provenance
from results.launch.plan import Job, tasks_of

DONE, PARTIAL, MISSING = "done", "partial", "missing"
TRAIN_SECONDS = "train_seconds"


@dataclass(frozen=True)
class Progress:
    """What is on record of a job: its state, tasks learned of all, seconds of training, the metrics of a done one."""

    state: str
    tasks: int
    of: int | None  # None where neither records nor plan tell
    seconds: float | None
    values: dict[str, float]
    protocol: str


def progress(job: Job) -> Progress:
    """The state of a job: done, partial (its folder has been opened), or missing."""
    row = job.row
    records = [record for record in read_file(job.folder / "record.jsonl")[0] if _is_of(record, job)]
    protocol = records[0].protocol if records else job.protocol
    of = tasks_of(protocol)
    last = {record.metric: record.value for record in _means_last(records) if record.after_task == of}
    values = {metric: last[metric] for metric in row.metrics if metric in last}
    seconds = [record.value for record in records if record.metric == TRAIN_SECONDS]
    state = PARTIAL if (job.folder / "config.yaml").exists() else MISSING
    if len(values) == len(row.metrics):
        state = DONE
    tasks = max((record.after_task for record in records), default=0)
    return Progress(state, tasks, of, sum(seconds) if seconds else None, values, protocol)


def _is_of(record: Record, job: Job) -> bool:
    """A miniature's protocol is another one: it has its own number of classes."""
    named = (record.paper, record.method, record.seed, record.scale)
    return named == (job.row.paper, job.row.method, job.seed, job.scale) and (
        job.scale == "mini" or record.protocol == job.row.protocol
    )


def _means_last(records: Iterable[Record]) -> list[Record]:
    """Of a metric that stands for each data set and for their mean, the mean counts."""
    return sorted(records, key=lambda record: record.dataset == "mean")


# Cost


@dataclass(frozen=True)
class Estimate:
    """Hours of one run, None if nothing tells them, and where they come from."""

    hours: float | None
    source: str


def estimates(jobs: Sequence[Job], folders: list[Path], tflops: float | None) -> list[Estimate]:
    """What each job costs from its start: as measured on equal runs below `folders` or its own, else as counted."""
    known = read_provenance([*folders, *(job.folder for job in jobs if job.folder.is_dir())])
    return [_estimate(job, known, tflops) for job in jobs]


def _estimate(job: Job, known: Sequence[Provenance], tflops: float | None) -> Estimate:
    equal = [entry for entry in known if _is_equal(entry, job)]
    if equal:
        hours = sum(entry.seconds or 0.0 for entry in equal) / len(equal) / 3600
        where = ", ".join(sorted({entry.device or "an unnamed device" for entry in equal}))
        runs = "1 equal run" if len(equal) == 1 else f"the mean of {len(equal)} equal runs"
        return Estimate(hours, f"training, as measured in {runs} on {where}")
    count = job.petaflops
    if count is None:
        return Estimate(None, "no equal run, nothing counted")
    if tflops is None:
        return Estimate(None, f"{count:g} PFLOP counted; give --tflops, the rate of your device")
    return Estimate(count * 1e3 / tflops / 3600, f"{count:g} PFLOP counted, at {tflops:g} TFLOP/s")


def _is_equal(entry: Provenance, job: Job) -> bool:
    """Whether a run is of the job's row and scale, whatever its seed, and has learned all tasks."""
    row = job.row
    same, known, wanted = entry.protocol == row.protocol, Protocol.parse(entry.protocol), Protocol.parse(row.protocol)
    if job.scale == "mini" and wanted.kind != "mtil":
        same = (known.dataset, known.kind) == ("characters", wanted.kind)
    if not same or (entry.paper, entry.method, entry.scale) != (row.paper, row.method, job.scale) or not entry.seconds:
        return False
    trained = {record.after_task for record in read_file(Path(entry.file))[0] if record.metric == TRAIN_SECONDS}
    return len(trained) == tasks_of(entry.protocol)


# For people


def status_table(jobs: Sequence[Job], states: Sequence[str], found: Sequence[Progress], logs: Sequence[Path]) -> str:
    """One line a row and seed: state, tasks, seconds of training, metrics, log."""
    metrics = list(dict.fromkeys(metric for job in jobs for metric in job.row.metrics))
    protocols = len({job.row.protocol for job in jobs}) > 1
    heads = ["row", *(["protocol"] if protocols else []), "seed", "state", "tasks", "train s", *metrics, "log"]
    lines = [heads]
    for job, state, at, log in zip(jobs, states, found, logs):
        numbers = [f"{at.values[metric]:.2f}" if metric in at.values else "-" for metric in metrics]
        tasks = f"{at.tasks}/{at.of or '?'}"
        seconds = "-" if at.seconds is None else f"{at.seconds:.0f}"
        own = [job.row.protocol] if protocols else []
        written = str(log) if log.exists() else "-"
        lines.append([job.row.method, *own, str(job.seed), state, tasks, seconds, *numbers, written])
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Texts under each other, each column as wide as its widest."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(line, widths)).rstrip() for line in lines)
