"""`python -m results run TABLE`: run what is missing of a published table, skip what is done, go on with the rest.

A table is a plan, rows x seeds (results/plans/*.yaml; results/plan.py says what stands in one). Each run is one of the
repository's own scripts, started as by hand. The same command again goes on after Ctrl-C, a kill or a power cut: runs
that are done by their records are skipped, the others resume by themselves, and what an earlier launcher left running
is waited for. A run that fails is tried once more; then it is reported with the end of its log, and the exit code is 1.

    python -m results run inflora-cifar100 --dry-run --tflops 19       # every command, its state, hours
    python -m results run inflora-cifar100 --devices 0,1 -- --data-path /data
    python -m results run inflora-cifar100 --executor slurm --slurm-partition gpu --slurm-time 24:00:00
    python -m results run inflora-cifar100 --status

What stands behind -- goes to every command. Flags that change numbers make another table: copy the .yaml, with folders
of its own, and give its path as TABLE.
"""

import argparse
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from results import plan as plans
from results.labels import count, scale
from results.launch import Launcher, Place, log_end, log_path, only_launcher, still_running
from results.plan import Job, Plan, jobs_of, read_plan, table_names
from results.progress import DONE, Progress, estimates, progress, status_table

TABLES = Path("runs/tables")
SLURM_MINUTES = 24 * 60
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def add_command(commands: Any, scales: Sequence[str]) -> None:
    """Add `run` to the subcommands of python -m results."""
    parser = commands.add_parser(
        "run",
        help="run what is missing of a published table",
        description=f"{__doc__}\n{plans.__doc__}",
        epilog=f"Tables: {', '.join(table_names())}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", metavar="TABLE", help="a table's name, or a .yaml file of your own")
    parser.add_argument("--scale", choices=scales, default=argparse.SUPPRESS, help="mini: the miniature")
    parser.add_argument("--seeds", type=numbers, help="these instead of the plan's, such as 0,1,2")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="DIR", default=argparse.SUPPRESS,
                        help="where equal runs are looked for to estimate costs (default: all)")  # fmt: skip
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="print every command, its state and cost; run nothing")
    only.add_argument("--status", action="store_true", help="print how far all is; run nothing")
    parser.add_argument("--tflops", type=float, help="rate of your device in TFLOP/s, for costs that were only counted")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="submitit's (default: local)")
    parser.add_argument("--jobs", type=int, help="runs at a time (here: 1; Slurm: all)")
    parser.add_argument("--devices", type=names, metavar="D", help="CUDA devices, such as 0,1: a run at a time on each")
    parser.add_argument("--slurm-partition", metavar="P", help="partition")
    parser.add_argument("--slurm-time", metavar="T", help="time limit as sbatch takes it (default: 1-00:00:00); a job "
                        "whose time is up saves and is queued again")  # fmt: skip
    parser.add_argument("--slurm", action="append", metavar="KEY=VALUE", default=[], help="any other option of sbatch, "
                        "such as account=lab or cpus-per-task=16; one GPU a job unless gpus-per-node=N")  # fmt: skip


def names(text: str) -> list[str]:
    """A comma list, for argparse."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """A comma list of whole numbers, for argparse."""
    return [int(part) for part in names(text)]


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first --, and those behind it, which are for every command of a table."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def run(args: argparse.Namespace, folders: list[Path]) -> bool:
    """Run, or show, a table; whether a row failed. `folders`: where equal runs are looked for. Raises UserError."""
    plan, size = read_plan(args.table), args.scale or "paper"
    jobs = jobs_of(plan, size, args.seeds, args.flags)
    folder = TABLES / (plan.name if size == "paper" else f"{plan.name}-{size}")
    if args.dry_run:
        show_commands(plan, jobs, folders, folder, args.tflops)
        return False
    if args.status:
        show_status(jobs, folder)
        return False
    return launch(plan, jobs, folder, args)


def launch(plan: Plan, jobs: list[Job], folder: Path, args: argparse.Namespace) -> bool:
    """Run what is not done, and show how it went; whether a row failed."""
    at = place(args, len(jobs))
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


def place(args: argparse.Namespace, jobs: int) -> Place:
    """Where the jobs run, from the flags. Raises UserError for flags that do not go together, and without Slurm."""
    slurm = [flag for flag in ("slurm_partition", "slurm_time", "slurm") if getattr(args, flag)]
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give 1 or more.")
    if args.executor == "local":
        if slurm:
            raise UserError(f"--{slurm[0].replace('_', '-')} goes with --executor slurm.")
        devices = args.devices or [None] * (args.jobs or 1)
        return Place("local", devices[: args.jobs])
    if args.devices:
        raise UserError("--devices chooses this machine's; Slurm gives each job its own.")
    absent = [name for name in ("sbatch", "srun", "sacct", "scancel") if shutil.which(name) is None]
    if absent:
        raise UserError(f"--executor slurm: {', '.join(absent)} not found: this is no machine of a Slurm cluster.")
    wrong = [text for text in args.slurm if not re.fullmatch(r"[a-z][a-z_-]*=.+", text)]
    if wrong:
        raise UserError(f"--slurm {wrong[0]}: give KEY=VALUE, such as account=lab.")
    others = {key.replace("-", "_"): value for key, _, value in (text.partition("=") for text in args.slurm)}
    parameters = {"timeout_min": minutes(args.slurm_time), "gpus_per_node": 1, "slurm_partition": args.slurm_partition}
    return Place("slurm", [None] * (args.jobs or jobs), parameters | {"slurm_additional_parameters": others})


def minutes(time: str | None) -> int:
    """sbatch's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    if time is None:
        return SLURM_MINUTES
    match = TIME.fullmatch(time)
    if match is None:
        raise UserError(f"--slurm-time {time}: give minutes, hours:minutes:seconds or days-hours:minutes:seconds.")
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


def states_of(jobs: Sequence[Job], folder: Path, found: Sequence[Progress], failed: Sequence[str] = ()) -> list[str]:
    """In words: what the records say, unless a job is running or has just failed."""
    running = [at.state != DONE and still_running(folder, job) is not None for job, at in zip(jobs, found)]
    return [
        "running" if runs else "failed" if job.name in failed else at.state
        for job, at, runs in zip(jobs, found, running)
    ]


def show_status(jobs: list[Job], folder: Path, failed: Sequence[str] = ()) -> None:
    """The table of all rows and seeds."""
    found = [progress(job) for job in jobs]
    logs = [log_path(folder, job) for job in jobs]
    print(f"\n{folder.name}, {scale(jobs[0].scale)}\n")
    print(status_table(jobs, states_of(jobs, folder, found, failed), found, logs), flush=True)


def show_next(jobs: Sequence[Job]) -> None:
    """How to make the sheet of what is done."""
    done = [(job, at) for job in jobs if (at := progress(job)).state == DONE]
    if not done:
        return
    protocols = sorted({at.protocol for _, at in done})
    size = "" if jobs[0].scale == "paper" else f" --scale {jobs[0].scale}"
    named = [f" --protocol {protocol}" for protocol in protocols] if len(protocols) < 3 else [""]
    roots = " ".join(sorted({job.folder.parts[0] for job, _ in done}))
    print(f"\nThe sheet: {' and '.join(f'python -m results{size}{name} --runs {roots}' for name in named)}")
