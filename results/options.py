"""The command lines of python -m results: building, verify, first-row, run and docs, a dataclass each.

The docstring of a command's dataclass is the text of its --help.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path

from common.errors import UserError
from common.options import SEED, check_rules, option, read, unknown
from results.labels import SCALES
from results.launch import plan

# where the scripts save
RUNS = tuple(map(Path, ("runs", "ckpt", "experiments", "logs", "logs-mini", "outputs", "output")))
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")  # as sbatch takes it


def time_limit(text: str) -> str | None:
    """A check of --slurm-time."""
    return None if TIME.fullmatch(text) else "give minutes, hours:minutes:seconds or days-hours:minutes:seconds."


def assignments(texts: list[str]) -> str | None:
    """A check of --slurm."""
    fit = all(re.fullmatch(r"[a-z][a-z_-]*=.+", text) for text in texts)
    return None if fit else "give KEY=VALUE, such as account=lab."


# Tables: an option a line or two
# fmt: off
@dataclass(frozen=True)
class Records:
    """Options of every command that reads the records of many runs."""

    runs: list[Path] | None = option(None, f"run folders (those there are of {', '.join(map(str, RUNS))})",
                                     group="records", words=True)
    scale: str | None = option(None, "which runs; the two never mix", choices=tuple(SCALES))


@dataclass(frozen=True)
class Compared(Records):
    """Options of the commands that compare runs with published numbers."""

    protocol: str | None = option(None, "only this protocol, such as mtil-order1", group="which of them")
    paper: str | None = option(None, "only this paper, by its folder's name")
    strict: bool = option(False, "exit with 1 when a record line is damaged")


@dataclass(frozen=True)
class Build(Compared):
    """Run records and published numbers into spreadsheet, CSV, figures and page. With a command instead:

        python -m results verify RUN_OR_PROTOCOL   what was measured against what was published, in the terminal
        python -m results first-row RUN            an MTIL run's accuracies after its first task against published ones
        python -m results run TABLE                a whole published table, on this machine or on Slurm
        python -m results docs                     the list of all runs, docs/runs.md, anew

    Each has flags of its own, such as `python -m results verify --help` shows.
    """

    out: Path = option(Path("results/out"), "output folder")


@dataclass(frozen=True)
class Verify(Compared):
    """What was measured against what was published, in the terminal; exit code 1 when something differs."""

    target: str = option(help="a run's folder, or a protocol's name", positional=True)


@dataclass(frozen=True)
class FirstRow:
    """The accuracies of an MTIL run after its first task, which is the cheapest check of a method, against the
    published ones; exit code 1 when they differ.
    """

    run: Path = option(help="a run's folder, or its record.jsonl", positional=True)
    method: list[str] | None = option(None, "the published rows to show, or all (the run's own); the exit code is 0 if "
                                      "any of them matches", words=True)
    strict: bool = option(False, "exit with 1 when a record line is damaged")


@dataclass(frozen=True)
class Run(Records):
    """Run what is missing of a published table, skip what is done, go on with the rest.

    A table is a plan, rows x seeds (results/launch/plans/*.yaml; below is what stands in one). Each run is one of the
    repository's own scripts, started as by hand. The same command again goes on after Ctrl-C, a kill or a power cut:
    runs that are done by their records are skipped, the others resume by themselves, and what an earlier launcher left
    running is waited for. A run that fails is tried once more; then it is reported with the end of its log, and the
    exit code is 1.

        python -m results run inflora-cifar100 --dry-run --tflops 19       # every command, its state, hours
        python -m results run inflora-cifar100 --devices 0,1 -- --data-path /data
        python -m results run inflora-cifar100 --executor slurm --slurm-partition gpu --slurm-time 24:00:00
        python -m results run inflora-cifar100 --status

    What stands behind -- goes to every command. Flags that change numbers make another table: copy the .yaml, with
    folders of its own, and give its path as TABLE.
    """

    table: str = option(help="a table's name, or a .yaml file of your own", positional=True)
    seeds: list[int] | None = option(None, "these instead of the plan's, such as 0,1,2", group="what", unique=True,
                                     **SEED)
    runs: list[Path] | None = option(None, "folders where equal runs are looked for to estimate costs (as without a "
                                     "command)", words=True)
    dry_run: bool = option(False, "print every command, its state and cost; run nothing")
    status: bool = option(False, "print how far all is; run nothing")
    tflops: float | None = option(None, "rate of your device in TFLOP/s, for costs that were only counted", above=0)
    executor: str = option("local", "submitit's", group="where", choices=("local", "slurm"))
    jobs: int | None = option(None, "runs at a time (here: 1; Slurm: all)", at_least=1)
    devices: list[str] | None = option(None, "CUDA devices, such as 0,1: a run at a time on each")
    slurm_partition: str | None = option(None, "partition")
    slurm_time: str | None = option(None, "time limit as sbatch takes it (1-00:00:00); a job whose time is up saves "
                                    "and is queued again", check=time_limit)
    slurm: list[str] = option([], "any other options of sbatch, such as account=lab cpus-per-task=16; one GPU a job "
                              "unless gpus-per-node=N", words=True, adds=True, check=assignments)


@dataclass(frozen=True)
class Docs:
    """Write the list of all runs anew, from the plans, the published numbers and the miniature's."""

    out: Path = option(Path("docs/runs.md"), "the page")


# fmt: on


Command = Verify | FirstRow | Run | Docs
COMMANDS: dict[str, type[Command]] = {"verify": Verify, "first-row": FirstRow, "run": Run, "docs": Docs}


def parse(argv: Sequence[str]) -> tuple[Build | Command, list[str]]:
    """The options of the command that is named, of building where none is, and the words behind --.

    Flags may stand before the command; the word right behind it is its run, protocol or table. Raises UserError.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    words, flags = list(argv[:cut]), list(argv[cut + 1 :])
    index = next((index for index, word in enumerate(words) if word in COMMANDS), None)
    if flags and (index is None or words[index] != "run"):
        raise UserError("only `run` takes flags behind --.")
    if index is None:
        first = next(iter(words), "--help")
        if not first.startswith("-") and "=" not in first:
            raise UserError(unknown(f"command {first}", first, COMMANDS))
        return read(Build, words, "results", getdoc(Build) or ""), flags
    command = words.pop(index)
    kind = COMMANDS[command]
    if words[index:] and not words[index].startswith("-"):
        words.insert(0, words.pop(index))  # the target, wherever the command stood
    help_text, tables = getdoc(kind) or "", ""
    if kind is Run:
        help_text, tables = f"{help_text}\n\n{plan.__doc__}", f"Tables: {', '.join(plan.table_names())}."
    options: Command = read(kind, words, f"results {command}", help_text, tables)
    if isinstance(options, Run):
        check_run(options)
    return options, flags


def check_run(options: Run) -> None:
    """Raise UserError for flags that do not go together."""
    slurm = [name for name in ("slurm_partition", "slurm_time", "slurm") if getattr(options, name)]
    flag, is_local = f"--{slurm[0].replace('_', '-')}" if slurm else "", options.executor == "local"
    check_rules(
        [
            (options.dry_run and options.status, "--dry-run and --status: give one of them."),
            (slurm and is_local, f"{flag} goes with --executor slurm."),
            (options.devices and not is_local, "--devices chooses this machine's; Slurm gives each job its own."),
        ]
    )
