"""How far the runs of a table are, read from their records, and what the rest may cost.

A run is done when every metric that its plan names is on record after the last task of the protocol that the records
themselves name: `transfer`, `avg` and `last` after task 11 on MTIL, `acc` and `avg_acc` after task 10 of ten, ... Runs
write these at their very end, or with their last evaluation.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import read_config
from common.protocols import MULTI_DOMAIN, Protocol
from results.collect import Provenance, read_runs
from results.compare import PARAMETERS
from results.launch.plan import FIXED_FLAGS, Job
from results.records import Record
from results.settings import MACHINE
from results.terminal import aligned

DONE, PARTIAL, MISSING = "done", "partial", "missing"
TRAIN_SECONDS = "train_seconds"
# flags that may be given to a run that is taken up, and decide no number
NO_SETTINGS = ("device", "threads", "workers", "save_interval", "overwrite", "compile", "checkpoint_activations",
               "deterministic", "tensorboard")  # fmt: skip
FLAG = re.compile(r"(?:^| )(?=--?[A-Za-z]|[^ =]+=)")  # before a flag, or a setting given as KEY=VALUE


@dataclass(frozen=True)
class Progress:
    """What is on record of a job: state, tasks learned of all, seconds of training, its plan's metrics at the end."""

    state: str
    tasks: int
    of: int | None  # None where neither records nor plan name it
    seconds: float | None
    values: dict[str, float]
    protocol: str


def progress(job: Job) -> Progress:
    """The state of a job: done, partial (its folder has been opened), or missing."""
    row, path = job.row, job.folder / "record.jsonl"
    command = str(read_config(job.folder / "config.yaml")["provenance"].get("command", ""))
    records = [line for line in (read_runs([path])[0] if path.exists() else []) if _is_of(line, job, command)]
    protocol = records[0].protocol if records else job.protocol
    of = Protocol.parse(protocol).length
    # a metric may stand for each data set and for their mean, which counts
    means_last = sorted(records, key=lambda record: record.dataset == "mean")
    last = {record.metric: record.value for record in means_last if record.after_task == of}
    values = {metric: last[metric] for metric in row.metrics if metric in last}
    seconds = [record.value for record in records if record.metric == TRAIN_SECONDS]
    state = PARTIAL if (job.folder / "config.yaml").exists() else MISSING
    if len(values) == len(row.metrics):
        state = DONE
    # the number of parameters is on record as of the whole sequence, whatever of it was learned
    tasks = max((record.after_task for record in records if record.metric != PARAMETERS), default=0)
    return Progress(state, tasks, of, sum(seconds) if seconds else None, values, protocol)


def _is_of(record: Record, job: Job, command: str) -> bool:
    """Whether a record is the job's: under the row's name alone, or with what differs from it, if the job asks for it.

    A miniature's protocol differs from its row's in the number of classes.
    """
    differing = record.method.removeprefix(job.row.method)
    is_same = (record.paper, record.seed) == (job.row.paper, job.seed) and record.method.startswith(job.row.method)
    is_same = is_same and (not differing or _asks(job, command, differing))
    return is_same and record.scale == job.scale and (job.scale == "mini" or record.protocol == job.row.protocol)


def _asks(job: Job, command: str, differing: str) -> bool:
    """Whether a run's command holds all flags of the job's own, and no other flag that names what differs.

    Of those that decide no number only --no-verify counts, and alone: it asks for a run on a set that is cut.
    `differing`: what stands behind the row's method in the run's name.
    """
    if MACHINE.sub("", differing.split(", ")[0]):  # another method, whose name begins as the row's
        return False
    made, own = _flags(command), _flags(" ".join(job.words[2:]))
    asked = {name: value for name, value in own.items() if name not in (*FIXED_FLAGS, *NO_SETTINGS)}
    asked = {name: value for name, value in asked.items() if name != "no_verify"} or asked
    others = {name.removeprefix("no_") for name in made.keys() - asked.keys()}
    return bool(asked) and asked.items() <= made.items() and not others & {*re.findall(", (?:no )?([^ ,]+)", differing)}


def _flags(command: str) -> dict[str, str]:
    """The values of a command's flags by their names, the last one where a flag stands twice."""
    flags = (re.split("[= ]", part.lstrip("-+"), maxsplit=1) for part in FLAG.split(command)[1:])
    return {name.replace("-", "_"): "".join(value) for name, *value in flags}


# Cost


@dataclass(frozen=True)
class Estimate:
    """Hours of one run, None if unknown, and where they come from."""

    hours: float | None
    source: str


def estimates(jobs: Sequence[Job], folders: list[Path], tflops: float | None) -> list[Estimate]:
    """What each job costs from its start: as measured on equal runs below `folders` or its folder, else as counted."""
    records, runs, _ = read_runs([*folders, *(job.folder for job in jobs if job.folder.is_dir())])
    trained = {(line.file, line.after_task) for line in records if line.metric == TRAIN_SECONDS}
    tasks = Counter(file for file, _ in trained)
    whole = [run for run in runs if tasks[run.file] == Protocol.parse(run.protocol).length]
    return [_estimate(job, whole, tflops) for job in jobs]


def _estimate(job: Job, runs: Sequence[Provenance], tflops: float | None) -> Estimate:
    equal = [run for run in runs if _is_equal(run, job)]
    if equal:
        hours = sum(run.seconds or 0.0 for run in equal) / len(equal) / 3600
        devices = ", ".join(sorted({run.device or "an unnamed device" for run in equal}))
        averaged = "1 equal run" if len(equal) == 1 else f"the mean of {len(equal)} equal runs"
        return Estimate(hours, f"training, as measured in {averaged} on {devices}")
    if job.petaflops is None:
        return Estimate(None, "no equal run, nothing counted")
    counted = f"{job.petaflops:g} PFLOP counted"
    if tflops is None:
        return Estimate(None, f"{counted}; give --tflops, the rate of your device")
    return Estimate(job.petaflops * 1e3 / tflops / 3600, f"{counted}, at {tflops:g} TFLOP/s")


def _is_equal(run: Provenance, job: Job) -> bool:
    """Whether a run is of the job's row and scale, under any seed."""
    row = job.row
    is_same, ours, theirs = run.protocol == row.protocol, Protocol.parse(run.protocol), Protocol.parse(row.protocol)
    if job.scale == "mini" and theirs.kind not in MULTI_DOMAIN:
        is_same = (ours.dataset, ours.kind) == ("characters", theirs.kind)
    if not is_same or (run.paper, run.method, run.scale) != (row.paper, row.method, job.scale) or not run.seconds:
        return False
    return not (row.backbone and job.scale == "paper" and run.backbone != row.backbone)


# For people


def status_table(jobs: Sequence[Job], states: Sequence[str], reached: Sequence[Progress], logs: Sequence[Path]) -> str:
    """A line for each row and seed: state, tasks, seconds of training, metrics, log."""
    metrics = list(dict.fromkeys(metric for job in jobs for metric in job.row.metrics))
    several = len({job.row.protocol for job in jobs}) > 1
    lines = [["row", *(["protocol"] if several else []), "seed", "state", "tasks", "train s", *metrics, "log"]]
    for job, state, at, log in zip(jobs, states, reached, logs):
        numbers = [f"{at.values[metric]:.2f}" if metric in at.values else "-" for metric in metrics]
        seconds = "-" if at.seconds is None else f"{at.seconds:.0f}"
        protocol = [job.row.protocol] if several else []
        lines.append([job.row.label, *protocol, str(job.seed), state, f"{at.tasks}/{at.of or '?'}", seconds, *numbers,
                      str(log) if log.exists() else "-"])  # fmt: skip
    return "\n".join(aligned(lines))
