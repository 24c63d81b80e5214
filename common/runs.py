"""A run's folder: its configuration, checkpoints and records, and exact resume.

    <folder>/config.yaml     settings (compared on restart) and provenance (versions, commit, command)
    <folder>/<task>.pth      a finished task, {"state_dict": ...}
    <folder>/state.pth       the unfinished stage: step, state, generators
    <folder>/record.jsonl    one tidy line a number
    <folder>/run-checksums   of every file that the run wrote

The same command on the same folder goes on where it stopped. Training loops stay those of their papers, with
`for step in run.steps("train/Aircraft", total, state): ...`.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from common.errors import Interrupted, UserError, machine_fault
from common.files import CHECKSUMS, RECORD_KEY, RECORD_SCHEMA, atomic_write, note, read_back, write_alone, write_text
from common.folders import OWN, TENSORBOARD, read_back_config, take_folder
from common.machine import Machine, RunOptions
from common.options import declared, flat
from common.processes import is_main_process
from common.provenance import commit, provenance
from common.tensorboard import write_curves, write_records, writer_class
from common.training.distributed import any_rank, barrier, world_size
from common.training.finite import require_finite, require_finite_state
from common.weight_files import read

SAVE_COST_RATIO = 20  # between two saves of an unfinished stage at least this many times the duration of one
LONGEST_NAME = 200  # letters, so that the name of a temporary file is none too long for a file system
CPU, OPTIONS = Machine(torch.device("cpu")), RunOptions()

# `Run.steps` or a plain stand-in: (stage, total, state) -> steps 0 .. total - 1
Steps = Callable[[str, int, dict[str, Any]], Iterator[int]]


def save_tensors(path: Path | str, content: dict[str, Any]) -> None:
    """Atomically torch.save a dict of tensors and plain values (loadable with weights_only=True)."""
    atomic_write(path, lambda file: torch.save(content, file))


def mini_folder(folder: str | None, scale: str) -> str | None:
    """The output folder, at scale mini with '-mini' appended, so that it never holds runs of both scales."""
    return f"{folder}-mini" if folder and scale == "mini" and not folder.endswith("-mini") else folder


def free_file(name: str) -> str | None:
    """A `check` of options that name a file in a run's folder: a message, or None if the name is free to use."""
    if Path(name).name != name or name.startswith("."):
        return "give a file's name, without folders."
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        return f"give a shorter name, of at most {LONGEST_NAME} letters."
    reserved = name in (*OWN, "lock", CHECKSUMS, TENSORBOARD) or Path(name).suffix in (".pth", ".tmp")
    return "a file of that name is the run's own. Choose another name." if reserved else None


def load_tensors(path: Path | str) -> dict[str, Any]:
    """The content of a file of `save_tensors`, or of an original's torch.save of plain dicts; tensors on the CPU.

    Raises UserError, as `common.weight_files.read`, when the file is missing, damaged, or holds pickled objects.
    """
    content = read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a readable checkpoint: it holds a {type(content).__name__}. Train it again.")
    return content


@contextmanager
def fitting(path: Path | str) -> Iterator[None]:
    """Context that puts a file's content in its places: raises UserError if it is not what the file is to hold."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if machine_fault(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is of another run, or of another version: {reason}. Put back a copy of the run's own."
        ) from error


def file_md5(path: Path | str) -> str:
    """md5 of a file's bytes, for the provenance of weights."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


class Run:
    """One run's folder, opened by one process at a time, or by all processes of one torchrun.

    `settings` decide the numbers: a folder with other settings is refused. `labels` are fields of every record line.
    The machine's precision, unless fp32, is added to both, and the machine to the provenance. `name` prefixes the files
    of a run that shares its folder, as the originals' one-task calls do. `outputs`, `models`: names of all checkpoints
    in the folder, and of those that lie in ../models/<the folder's name>/. Raises UserError if one of them is there
    without a recorded run, or an input where --overwrite deletes.
    """

    def __init__(
        self,
        folder: Path | str,
        settings: dict[str, Any],
        labels: dict[str, Any],
        name: str = "",
        options: RunOptions = OPTIONS,
        machine: Machine = CPU,
        outputs: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> None:
        writer = writer_class() if options.tensorboard else None
        self.folder, self.prefix = Path(folder), f"{name}." if name else ""
        self.labels = labels | {"method": labels["method"] + machine.label} if machine.label else labels
        self.save_interval, self.seconds = options.save_interval, 0.0  # seconds: of the latest stage, with its resumes
        if is_main_process():
            self._lock = take_folder(self.folder, self.prefix, outputs, models, options)  # until the last such Run ends
        barrier()
        self.settings = settings | machine.settings
        self._settle_config(
            self.settings, machine.provenance, {item.key: item.default for item in declared(type(options))}
        )
        self.records: list[dict[str, Any]] = self._read_records()
        curves = self.folder / TENSORBOARD / name
        self.writer = writer(str(curves)) if writer and is_main_process() else None
        if self.writer:
            (curves / CHECKSUMS).touch()
            for path in curves.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
                note(path, path)

    def path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}{name}"

    def _settle_config(self, settings: dict[str, Any], machine: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Write config.yaml, or compare its settings with these. Raises UserError that lists those that differ."""
        settings = json.loads(json.dumps(settings))  # as YAML will read them: tuples as lists, plain scalars
        path = self.path("config.yaml")
        if path.exists():
            content = read_back_config(path)
            recorded, settings = flat(content["settings"]), flat(settings)
            # earlier versions recorded no checksum of images' content, and lacked some options, whose defaults are
            # what they did; their runs go on
            recorded |= {
                key: value
                for key, value in settings.items()
                if (recorded.get(key) is None and key.endswith(".content"))
                or (key not in recorded and key in defaults and value == defaults[key])
            }
            differing = sorted(key for key in {*recorded, *settings} if recorded.get(key) != settings.get(key))
            if differing:
                pairs = ((key, recorded.get(key), settings.get(key)) for key in differing)
                lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in pairs)
                raise UserError(
                    f"{self.folder} holds a run with another configuration:\n{lines}\n"
                    "Give another output folder, or --overwrite to start anew."
                )
            if content.get("labels") != self.labels:
                self._relabel(content)
            return
        origin = provenance() | {"processes": world_size()} | machine
        content = {"settings": settings, "labels": self.labels, "provenance": origin}
        write_text(path, _as_yaml(content))

    def _relabel(self, config: dict[str, Any]) -> None:
        """Put today's labels in place of those of an earlier version, in the record lines that carry them as well."""
        old = config.get("labels") or {}
        changed = {key: value for key, value in self.labels.items() if old.get(key) != value}
        lines = [
            line | {key: changed[key] for key in changed if line.get(key) == old.get(key)}
            for line in self._read_records()
        ]
        if lines:
            write_text(self.path("record.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
        write_text(self.path("config.yaml"), _as_yaml(config | {"labels": self.labels}))

    # Records

    def _read_records(self) -> list[dict[str, Any]]:
        path = self.path("record.jsonl")
        return read_back(path, self._parse_records, list) if path.exists() else []

    def _parse_records(self, text: str) -> list[dict[str, Any]]:
        """The lines of a record. Raises ValueError without any, or for one that stands twice or is of another run."""
        lines, keys = [json.loads(line) for line in text.splitlines()], set[tuple]()
        if not lines:  # some lines are recorded in training, which is not repeated
            raise ValueError("no line is left")
        for number, line in enumerate(lines, start=1):
            if any(line.get(name, value) != value for name, value in self.labels.items() if name in ("paper", "seed")):
                raise ValueError(f"line {number} is of another run")
            if len(keys) == len(keys := keys | {tuple(line.get(key) for key in RECORD_KEY)}):
                raise ValueError(f"line {number} stands there twice")
        return lines

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """Record lines whose fields have these values."""
        return [line for line in self.records if all(line.get(key) == value for key, value in fields.items())]

    def record(self, lines: list[dict[str, Any]]) -> None:
        """Add tidy lines (dataset, after_task, metric, value, seconds); a line replaces an older one of the same key.

        A line's fields override the run's labels, so a line may name another protocol.
        """
        if not lines:
            return
        labels = {"schema": RECORD_SCHEMA, **self.labels, "run": str(self.folder), "commit": commit()}
        new = [{**labels, **line} for line in lines]
        keys = {tuple(line.get(key) for key in RECORD_KEY) for line in new}
        kept = [line for line in self.records if tuple(line.get(key) for key in RECORD_KEY) not in keys]
        self.records = kept + new
        write_text(self.path("record.jsonl"), "".join(json.dumps(line) + "\n" for line in self.records))
        if self.writer:
            write_records(self.writer, lines)

    # Resume

    def steps(self, stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        """Yield step numbers 0..total-1 of a stage, after a stop from the last saved step on.

        `state` holds everything that the loop's body changes: objects with state_dict/load_state_dict (models,
        optimisers, statistics of the method) or torch.Generator; `log`, if present, is Tensors of a value a step. They
        and torch's global generators are restored on entry, saved every few seconds between two steps, and once more
        after the last step, so that work between the loop and the checkpoint can be repeated. Ctrl-C and SIGTERM save
        after the running step and raise Interrupted. Raises UserError after a step whose log is not finite, on a GPU at
        the next save, and before saving parameters that are not finite.
        """
        step, seconds = self._restore(stage, state)
        saved = checked = step
        started = last_save = time.monotonic()
        cost = 0.0
        silent = None if is_main_process() else True
        bar = tqdm(total=total, initial=step, desc=stage, unit="step", dynamic_ncols=True, disable=silent)
        with _DeferredSignals() as signals, bar:
            while step < total:
                yield step
                step += 1
                bar.update()
                on_gpu = torch.cuda.is_initialized()
                if step == total and on_gpu:
                    torch.cuda.synchronize()  # the seconds are those until the last step is computed
                now, interrupted = time.monotonic(), any_rank(signals.received)
                self.seconds = seconds + now - started
                due = interrupted or step == total or now - last_save > max(self.save_interval, SAVE_COST_RATIO * cost)
                if "log" in state and (due or not on_gpu):  # for a GPU's values the host would wait at every step
                    log = {name: values[checked:step] for name, values in state["log"].tensors.items()}
                    require_finite(stage, log, checked)
                    checked = step
                if due:
                    if self.writer and "log" in state:
                        write_curves(self.writer, stage, state["log"].tensors, saved, step)
                    require_finite_state(stage, step - 1, state)
                    self._save(stage, step, state)
                    saved = step
                    last_save = time.monotonic()
                    cost = last_save - now
                if interrupted:
                    raise Interrupted(
                        f"Stopped in {stage} after step {step} of {total}; all of it is saved in "
                        f"{self.folder}. The same command goes on from there."
                    )
        if bar.disable:  # a log file instead of a terminal: one line a stage
            print(f"{stage}: {total} steps in {self.seconds:.0f} s", flush=True)

    def _save(self, stage: str, step: int, state: dict[str, Any]) -> None:
        """Write state.pth; of several processes, whose states are equal, only the first does, without a barrier."""
        if not is_main_process():
            return
        content = {"stage": stage, "step": step, "seconds": self.seconds, "rng": _generators()}
        content["state"] = {name: _content(item) for name, item in state.items()}
        write_alone(self.path("state.pth"), lambda file: torch.save(content, file))

    def _restore(self, stage: str, state: dict[str, Any]) -> tuple[int, float]:
        """Restore a saved state of this stage; returns the next step and the seconds spent so far."""
        path = self.path("state.pth")
        saved = load_tensors(path) if path.exists() else {}
        if saved.get("stage") != stage:
            return 0, 0.0
        with fitting(path):
            if missing := _missing(state, saved["state"]):
                raise UserError(
                    f"{path} was left by another version of this program: it lacks {', '.join(missing)}. "
                    "Delete it, and the same command starts this stage anew; finished tasks stay."
                )
            for name, item in state.items():
                if isinstance(item, torch.Generator):
                    item.set_state(saved["state"][name])
                else:
                    item.load_state_dict(saved["state"][name])
            _set_generators(saved["rng"])
            self.seconds = saved["seconds"]
            return saved["step"], saved["seconds"]

    def finish(self) -> None:
        """Delete the resume state: its results are in checkpoints and records."""
        if is_main_process():
            self.path("state.pth").unlink(missing_ok=True)


def _as_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class Tensors:
    """Named tensors as an item of a stage's state, restored in place."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(saved[name])


class _DeferredSignals:
    """Context in which Ctrl-C and SIGTERM only set `received`; a second signal raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def __enter__(self) -> "_DeferredSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _missing(state: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Names of the items of a state, and of the tensors in them, that a saved one lacks."""
    tensors = {name: item.tensors for name, item in state.items() if isinstance(item, Tensors) and name in saved}
    lacking = {f"{name}.{key}" for name, item in tensors.items() for key in item.keys() - saved[name].keys()}
    return sorted(lacking | (state.keys() - saved.keys()))


def _content(item: Any) -> Any:
    return item.get_state() if isinstance(item, torch.Generator) else item.state_dict()


def _generators() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_generators(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.is_available():
        if world_size() == 1:
            torch.cuda.set_rng_state_all(saved["cuda"][: torch.cuda.device_count()])
        else:  # saved by the first process, on the first GPU; all processes draw the same numbers
            torch.cuda.set_rng_state(saved["cuda"][0])
