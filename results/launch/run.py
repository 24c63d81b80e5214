"""`python -m results run TABLE`: run, or show, what is missing of a published table; results/options.py says more."""

import shlex
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

from common.errors import UserError
from results.labels import SCALES, count
from results.launch.launcher import Cluster, Launcher, log_end, log_path, only_launcher, still_running
from results.launch.plan import Job, Plan, jobs_of, read_plan
from results.launch.progress import DONE, Progress, estimates, progress, status_table
from results.options import TIME, Run

TABLES = Path("runs/tables")
SLURM_MINUTES = 24 * 60


def run(options: Run, folders: list[Path], flags: Sequence[str]) -> bool:
    """Run or show a table; True if a row failed. Raises UserError.

    `folders`: where equal runs are looked for. `flags`: for every command.
    """
    plan, scale = read_plan(options.table), options.scale or "paper"
    jobs = jobs_of(plan, scale, options.seeds, flags)
    folder = TABLES / f"{plan.name}{SCALES[scale].suffix}"
    if options.dry_run:
        show_commands(plan, jobs, folders, folder, options.tflops)
        return False
    if options.status:
        show_status(jobs, folder)
        return False
    return launch(plan, jobs, folder, options)


def launch(plan: Plan, jobs: list[Job], folder: Path, options: Run) -> bool:
    """Run the jobs that are not done, and print how they went; True if a row failed."""
    cluster = choose_cluster(options, len(jobs))
    require_scripts(jobs)
    with only_launcher(folder):
        done = sum(progress(job).state == DONE for job in jobs)
        print(f"{plan.name}: {count(len(jobs), 'run')}, {done} done already; logs in {folder / 'logs'}", flush=True)
        launcher = Launcher(folder, cluster, lambda text: print(text, flush=True))
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


def choose_cluster(options: Run, count: int) -> Cluster:
    """Where so many jobs run. Raises UserError for --executor slurm on a machine without it."""
    if options.executor == "local":
        slots: list[str | None] = [*options.devices] if options.devices else [None] * (options.jobs or 1)
        return Cluster("local", slots[: options.jobs])
    absent = [name for name in ("sbatch", "srun", "sacct", "scancel") if shutil.which(name) is None]
    if absent:
        raise UserError(f"--executor slurm: {', '.join(absent)} not found: this is no machine of a Slurm cluster.")
    others = {key.replace("-", "_"): value for key, _, value in (text.partition("=") for text in options.slurm)}
    parameters = {"timeout_min": minutes(options.slurm_time), "gpus_per_node": 1,
                  "slurm_partition": options.slurm_partition, "slurm_additional_parameters": others}  # fmt: skip
    return Cluster("slurm", [None] * (options.jobs or count), parameters)


def minutes(time: str | None) -> int:
    """Minutes of a time limit of sbatch: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    match = TIME.fullmatch(time or "")
    if match is None:
        return SLURM_MINUTES
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] or match[4]:
        return max(1, (days * 24 + first) * 60 + second + (third > 0))
    return max(1, first + (second > 0))


def require_scripts(jobs: Sequence[Job]) -> None:
    """Raise UserError for scripts that do not exist below the working directory."""
    scripts = {word for job in jobs for word in job.words[:2] if word.endswith((".sh", ".py"))}
    absent = sorted(script for script in scripts if not Path(script).is_file())
    if absent:
        raise UserError(f"not here: {', '.join(absent)}. Start from the repository's root folder.")


# For people


def show_commands(plan: Plan, jobs: list[Job], folders: list[Path], folder: Path, tflops: float | None) -> None:
    """Print every command with its state and what it may cost, and the sum over the commands that are not done."""
    costs, reached = estimates(jobs, folders, tflops), [progress(job) for job in jobs]
    for job, state, at, cost in zip(jobs, states_of(jobs, folder, reached), reached, costs):
        hours = "hours unknown" if cost.hours is None else f"{'at most ' if at.tasks else ''}{in_hours(cost.hours)}"
        rest = "" if at.state == DONE else f", {at.tasks} of {at.of or '?'} tasks, {hours} ({cost.source})"
        print(f"{job.title}: {state}{rest}\n    {shlex.join(job.words)}")
    left = [cost.hours for at, cost in zip(reached, costs) if at.state != DONE]
    estimated = [hours for hours in left if hours is not None]
    parts = [f"about {in_hours(sum(estimated))} of one device"] if estimated else []
    parts += [f"{len(left) - len(estimated)} of unknown cost"] if len(estimated) < len(left) else []
    total = ": " + ", and ".join(parts) if parts else ""
    print(f"\n{plan.name}: {count(len(jobs), 'run')}, {len(left)} not done{total}")


def in_hours(hours: float) -> str:
    """Hours as text, less than one in minutes."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def states_of(jobs: Sequence[Job], folder: Path, reached: Sequence[Progress], failed: Container[str] = ()) -> list[str]:
    """The state of each job: running, failed, or what its records say."""
    running = [at.state != DONE and still_running(folder, job) is not None for job, at in zip(jobs, reached)]
    return [
        "running" if runs else "failed" if job.name in failed else at.state
        for job, at, runs in zip(jobs, reached, running)
    ]


def show_status(jobs: list[Job], folder: Path, failed: Container[str] = ()) -> None:
    """Print the table of all rows and seeds."""
    reached = [progress(job) for job in jobs]
    logs = [log_path(folder, job) for job in jobs]
    print(f"\n{folder.name}, {SCALES[jobs[0].scale].words}\n")
    print(status_table(jobs, states_of(jobs, folder, reached, failed), reached, logs), flush=True)


def show_next(jobs: Sequence[Job]) -> None:
    """Print the command that makes the sheet of the jobs that are done."""
    done = [(job, at) for job in jobs if (at := progress(job)).state == DONE]
    if not done:
        return
    protocols = sorted({at.protocol for _, at in done})
    words = ["python", "-m", "results", *SCALES[jobs[0].scale].flags]
    words += ["--protocol", *protocols] if len(protocols) == 1 else []
    print("\nThe sheet:", *words, "--runs", *sorted({job.folder.parts[0] for job, _ in done}))
