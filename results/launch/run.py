"""`python -m results run TABLE`: run, or show, what is missing of a published table; results/options.py says more."""

import shlex
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

from common.errors import UserError
from results.labels import SCALES, count
from results.launch.launcher import Launcher, Place, log_end, log_path, only_launcher, still_running
from results.launch.plan import Job, Plan, jobs_of, read_plan
from results.launch.progress import DONE, Progress, estimates, progress, status_table
from results.options import TIME, Run

TABLES = Path("runs/tables")
SLURM_MINUTES = 24 * 60


def run(options: Run, folders: list[Path], flags: Sequence[str]) -> bool:
    """Run, or show, a table; whether a row failed. Raises UserError.

    `folders`: where equal runs are looked for. `flags`: for every command.
    """
    plan, size = read_plan(options.table), options.scale or "paper"
    jobs = jobs_of(plan, size, options.seeds, flags)
    folder = TABLES / f"{plan.name}{SCALES[size].suffix}"
    if options.dry_run:
        show_commands(plan, jobs, folders, folder, options.tflops)
        return False
    if options.status:
        show_status(jobs, folder)
        return False
    return launch(plan, jobs, folder, options)


def launch(plan: Plan, jobs: list[Job], folder: Path, options: Run) -> bool:
    """Run what is not done, and show how it went; whether a row failed."""
    at = place(options, len(jobs))
    require_scripts(jobs)
    with only_launcher(folder):
        done = sum(progress(job).state == DONE for job in jobs)
        print(f"{plan.name}: {count(len(jobs), 'run')}, {done} done already; logs in {folder / 'logs'}", flush=True)
        launcher = Launcher(folder, at, lambda text: print(text, flush=True))
        try:
            launcher.run(jobs)
        finally:
            show_status(jobs, folder, launcher.failed)
    for job in jobs:
        if job.name in launcher.failed:
            path = log_path(folder, job)
            print(f"\n{job.title}: {launcher.failed[job.name]}. The end of {path}:")
            print(log_end(path))
    show_next(jobs)
    return bool(launcher.failed)


def place(options: Run, jobs: int) -> Place:
    """Where the jobs run. Raises UserError without Slurm."""
    if options.executor == "local":
        slots: list[str | None] = [*options.devices] if options.devices else [None] * (options.jobs or 1)
        return Place("local", slots[: options.jobs])
    absent = [name for name in ("sbatch", "srun", "sacct", "scancel") if shutil.which(name) is None]
    if absent:
        raise UserError(f"--executor slurm: {', '.join(absent)} not found: this is no machine of a Slurm cluster.")
    others = {key.replace("-", "_"): value for key, _, value in (text.partition("=") for text in options.slurm)}
    parameters = {"timeout_min": minutes(options.slurm_time), "gpus_per_node": 1,
                  "slurm_partition": options.slurm_partition, "slurm_additional_parameters": others}  # fmt: skip
    return Place("slurm", [None] * (options.jobs or jobs), parameters)


def minutes(time: str | None) -> int:
    """sbatch's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    match = TIME.fullmatch(time or "")
    if match is None:
        return SLURM_MINUTES
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] or match[4]:
        return max(1, (days * 24 + first) * 60 + second + (third > 0))
    return max(1, first + (second > 0))


def require_scripts(jobs: Sequence[Job]) -> None:
    """Raise UserError for scripts that are not here."""
    named = {word for job in jobs for word in job.words[:2] if word.endswith((".sh", ".py"))}
    absent = sorted(word for word in named if not Path(word).is_file())
    if absent:
        raise UserError(f"not here: {', '.join(absent)}. Start from the repository's root folder.")


# For people


def show_commands(plan: Plan, jobs: list[Job], folders: list[Path], folder: Path, tflops: float | None) -> None:
    """Every command with its state and what it may cost, and the sum of what is not done."""
    costs, found = estimates(jobs, folders, tflops), [progress(job) for job in jobs]
    states = states_of(jobs, folder, found)
    for job, state, at, cost in zip(jobs, states, found, costs):
        hours = "hours unknown" if cost.hours is None else f"{'at most ' if at.tasks else ''}{shown(cost.hours)}"
        about = "" if at.state == DONE else f", {hours} ({cost.source})"
        tasks = "" if at.state == DONE else f", {at.tasks} of {at.of or '?'} tasks"
        print(f"{job.title}: {state}{tasks}{about}\n    {shlex.join(job.words)}")
    left = [cost.hours for at, cost in zip(found, costs) if at.state != DONE]
    known = [hours for hours in left if hours is not None]
    parts = [f"about {shown(sum(known))} of one device"] if known else []
    parts += [f"{len(left) - len(known)} of unknown cost"] if len(known) < len(left) else []
    told = ": " + ", and ".join(parts) if parts else ""
    print(f"\n{plan.name}: {count(len(jobs), 'run')}, {len(left)} not done{told}")


def shown(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def states_of(jobs: Sequence[Job], folder: Path, found: Sequence[Progress], failed: Container[str] = ()) -> list[str]:
    """In words: what the records say, unless a job is running or has just failed."""
    running = [at.state != DONE and still_running(folder, job) is not None for job, at in zip(jobs, found)]
    return [
        "running" if runs else "failed" if job.name in failed else at.state
        for job, at, runs in zip(jobs, found, running)
    ]


def show_status(jobs: list[Job], folder: Path, failed: Container[str] = ()) -> None:
    """The table of all rows and seeds."""
    found = [progress(job) for job in jobs]
    logs = [log_path(folder, job) for job in jobs]
    print(f"\n{folder.name}, {SCALES[jobs[0].scale].words}\n")
    print(status_table(jobs, states_of(jobs, folder, found, failed), found, logs), flush=True)


def show_next(jobs: Sequence[Job]) -> None:
    """How to make the sheet of what is done."""
    done = [(job, at) for job in jobs if (at := progress(job)).state == DONE]
    if not done:
        return
    protocols = sorted({at.protocol for _, at in done})
    size = "".join(f" {word}" for word in SCALES[jobs[0].scale].flags)
    named = f" --protocol {protocols[0]}" if len(protocols) == 1 else ""
    roots = " ".join(sorted({job.folder.parts[0] for job, _ in done}))
    print(f"\nThe sheet: python -m results{size}{named} --runs {roots}")
