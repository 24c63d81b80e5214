"""A published table as rows x seeds: results/launch/plans/<table>.yaml, read and checked.

A plan is a few lines of YAML. Keys of the table stand for every row that does not say otherwise:

    paper: inflora                                       # the folder's name, as in records
    protocol: cil-cifar100-10x10                         # as in records; it tells the number of tasks
    metrics: [acc, avg_acc]                              # what a finished run has on record after its last task
    seeds: [0, 1, 2]
    rows:
      - method: InfLoRA                                  # as in records
        command: bash inflora/scripts/cifar100_inflora.sh --seed {seed}
        folder: logs/cifar100/.../{seed}                 # where that command keeps its run
        mini_folder: logs-mini/cifar100/.../{seed}       # with --scale mini; without this key: folder + "-mini"
        backbone: ViT-B/16 DINO-1K                       # as in records; where rows of a method differ in it
        petaflops: 76                                    # of one seed at paper scale; leave it out if not counted

Tables that differ in the data set alone share their rows: `rows` is then a file beside the plan, a list in which
{dataset} stands for the protocol's data set, and a value may be a mapping from data sets to their own.

A command is one process: of the scripts, those that end in `exec`, so that a signal reaches the run. The settings that
a new row's commands give are pinned by `python -m tests.results.settings`.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from common.command_line import did_you_mean
from common.errors import UserError
from common.protocols import MULTI_DOMAIN, Protocol
from results.labels import SCALES

PLANS = Path(__file__).parent / "plans"
SEED = "{seed}"  # in a command and its folder, the seed
DATASET = "{dataset}"  # in rows that tables share, the data set
# flags that a plan, and not the caller, gives each command
FIXED_FLAGS = ("save", "seed", "seeds", "repeat", "scale", "log_dir", "hydra.run.dir")
Kinds = dict[str, tuple[type, ...]]
OPTIONAL = ("mini_folder", "backbone", "petaflops")
ITEMS: dict[str, type] = {"metrics": str, "seeds": int}  # of lists
EXPECTED = {str: "text", list: "a list", int: "a number"}


@dataclass(frozen=True)
class Row:
    """A method of a table; its command and folders hold {seed} in place of the seed."""

    paper: str
    protocol: str
    method: str
    metrics: list[str]
    seeds: list[int]
    command: str
    folder: str
    mini_folder: str
    backbone: str | None
    petaflops: float | None

    @property
    def label(self) -> str:
        """The method, and the backbone where the plan names it."""
        return f"{self.method}, {self.backbone}" if self.backbone else self.method


KINDS: Kinds = {"metrics": (list,), "seeds": (list,), "petaflops": (int, float)}  # the others are text
ROW: Kinds = {field.name: KINDS.get(field.name, (str,)) for field in fields(Row)}


@dataclass(frozen=True)
class Plan:
    """A table; its name is also that of its folder below runs/tables."""

    name: str
    rows: list[Row]


@dataclass(frozen=True)
class Job:
    """A row under one seed at one scale: what to run, and where its records will be."""

    name: str  # of its log and lock: number of the row, method, seed
    title: str  # for people; with the protocol where rows have the same method
    row: Row
    seed: int
    scale: str
    words: tuple[str, ...]
    folder: Path
    protocol: str  # of its records; "" for a miniature that has a number of tasks of its own
    petaflops: float | None


def table_names() -> list[str]:
    """The tables that have a plan."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def read_plan(table: str) -> Plan:
    """The plan of a shipped table by its name, or of a YAML file by its path. Raises UserError."""
    path = Path(table) if table.endswith((".yaml", ".yml")) else PLANS / f"{table}.yaml"
    try:
        content = _read(path)
    except FileNotFoundError as error:
        message = f"no table {table}.{did_you_mean(table, table_names())} There are {', '.join(table_names())}"
        raise UserError(f"{message}; or give the path of a .yaml file.") from error
    if isinstance(content, dict) and isinstance(content.get("rows"), str):
        content["rows"] = _shared_rows(path.parent / content["rows"], str(content.get("protocol")))
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise UserError(f"{path}: a list under `rows` is expected, each with method, command and folder.")
    _check_keys(f"{path}: ", content, {"rows": (list,)} | ROW)
    shared = {key: value for key, value in content.items() if key != "rows"}
    return Plan(path.stem, [_row(f"{path}: rows[{number}]", shared, row) for number, row in enumerate(content["rows"])])


def _read(path: Path, dataset: str = DATASET) -> Any:
    """The content of a YAML file, {dataset} filled in. Raises UserError, and FileNotFoundError if there is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8").replace(DATASET, dataset))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}).") from error


def _shared_rows(path: Path, protocol: str) -> Any:
    """The rows that tables share, as they are for the data set of this table's protocol. Raises UserError."""
    dataset = Protocol.parse(protocol).dataset
    try:
        rows = _read(path, dataset)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; `rows` is a list of rows, or a file beside the plan.") from error
    for row in rows if isinstance(rows, list) else []:
        row.update({key: value.get(dataset) for key, value in row.items() if isinstance(value, dict)})
    return rows


def _row(where: str, shared: dict[str, Any], content: Any) -> Row:
    if not isinstance(content, dict):
        raise UserError(f"{where}: keys and values are expected, not {content!r}.")
    where += f" ({content['method']}): " if "method" in content else ": "
    _check_keys(where, content, ROW)
    values: dict[str, Any] = dict.fromkeys(OPTIONAL) | shared | content
    missing = [key for key in ROW if key not in values]
    if missing:
        raise UserError(f"{where}missing {', '.join(missing)}.")
    if Protocol.parse(values["protocol"]).length is None:
        raise UserError(
            f"{where}protocol {values['protocol']}: its name does not tell the number of tasks, as mtil-order1, "
            "cil-cifar100-10x10 or joint-cifar100 do."
        )
    for key in ("command", "folder", "mini_folder"):
        unknown = set(re.findall(r"{.*?}", values[key] or "")) - {SEED}
        if unknown:
            raise UserError(f"{where}{key} holds {', '.join(sorted(unknown))}; only {SEED} is filled in.")
    values["mini_folder"] = values["mini_folder"] or f"{values['folder']}-mini"
    row = Row(**values)
    _check_seeds(where, row, row.seeds)
    return row


def _check_keys(where: str, content: dict[str, Any], kinds: Kinds) -> None:
    for key, value in content.items():
        if key not in kinds:
            raise UserError(f"{where}unknown key {key}.{did_you_mean(key, kinds)} Known are {', '.join(kinds)}.")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise UserError(f"{where}{key}: {EXPECTED[kinds[key][0]]} is expected, not {value!r}.")
        kind = ITEMS.get(key)
        if kind and not (value and all(type(item) is kind for item in content[key])):
            what = "whole numbers" if kind is int else "names"
            raise UserError(f"{where}{key}: a list of {what} is expected, not {value!r}.")


def _check_seeds(where: str, row: Row, seeds: Sequence[int]) -> None:
    """Raise UserError for a repeated seed, and for several seeds of a command or folder that lacks {seed}."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}seeds names one twice.")
    for key in ("command", "folder", "mini_folder"):
        if list(seeds) != row.seeds[:1] and SEED not in getattr(row, key):
            raise UserError(f"{where}{key} lacks {SEED}: it is for the seed {row.seeds[0]} alone.")


def jobs_of(plan: Plan, scale: str, seeds: Sequence[int] | None, flags: Sequence[str]) -> list[Job]:
    """A job for each row and seed, of `seeds` if given, with `flags` behind every command. Raises UserError."""
    names = [flag.removeprefix("--set=").lstrip("-+").partition("=")[0].replace("-", "_") for flag in flags]
    fixed = [flag for flag, name in zip(flags, names) if name in FIXED_FLAGS]
    if fixed:
        raise UserError(
            f"{', '.join(fixed)} behind --: the plan tells each command its own. Use --scale and --seeds before it, or "
            "a .yaml of your own."
        )
    jobs, shared = [], len({row.method for row in plan.rows}) < len(plan.rows)
    for number, row in enumerate(plan.rows, 1):
        _check_seeds(f"{plan.name}: {row.method}: ", row, seeds or row.seeds)
        for seed in seeds or row.seeds:
            words = [*shlex.split(row.command.replace(SEED, str(seed))), *SCALES[scale].flags, *flags]
            folder = Path({"paper": row.folder, "mini": row.mini_folder}[scale].replace(SEED, str(seed)))
            name = f"{number:02d}-{re.sub(r'[^A-Za-z0-9+.]+', '_', row.method)}-seed{seed}"
            title = f"{row.label}, {row.protocol}, seed {seed}" if shared else f"{row.label}, seed {seed}"
            has_protocol = SCALES[scale].compares or Protocol.parse(row.protocol).kind in (*MULTI_DOMAIN, "joint")
            petaflops, protocol = {"paper": row.petaflops}.get(scale), row.protocol if has_protocol else ""
            jobs.append(Job(name, title, row, seed, scale, tuple(words), folder, protocol, petaflops))
    return jobs
