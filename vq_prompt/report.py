"""What the repeats of a command leave behind: the original's yaml files, output.log and results.xlsx."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

from common.errors import UserError
from common.evaluation.metrics import over_repeats, vq_prompt_metrics
from common.files import CHECKSUMS, atomic_write, write_text
from common.folders import refuse_files
from common.machine import Machine
from common.processes import is_main_process
from vq_prompt.options import Options, log_dir_of, run_seeds, scale_of

ARGUMENTS = (  # the original's, in its yaml's order
    "DW", "adaptive_pred", "batch_size", "ca_batch_size_ratio", "ca_lr", "ca_weight_decay", "config", "crct_epochs",
    "dataroot", "dataset", "debug_mode", "first_split_size", "gpuid", "iter_step", "learner_name", "learner_type",
    "log_dir", "lr", "max_task", "memory", "model_name", "model_type", "momentum", "n_centroids", "optimizer",
    "oracle_flag", "other_split_size", "overwrite", "pretrained_weight", "prompt_param", "rand_split", "repeat",
    "schedule", "schedule_type", "seeds", "temp", "train_aug", "upper_bound_flag", "validation", "weight_decay",
    "workers",
)  # fmt: skip
FIGURES = ("FAA_m", "FAA_s", "CAA_m", "CAA_s", "FR_m", "FR_s")
COLUMNS = [*ARGUMENTS, "save_folder", *FIGURES]


def write_reports(options: Options, machine: Machine, matrices: Sequence[np.ndarray]) -> dict[str, float]:
    """Write the original's files from R (T, T) of each repeat so far; the means and deviations over repeats."""
    folder = Path(log_dir_of(options))
    repeats = [vq_prompt_metrics(R) for R in matrices]
    histories = {
        "results-acc/global": np.stack([metrics.average for metrics in repeats], axis=-1),
        "results-acc/pt": np.stack(matrices, axis=-1),
        "results-fr/global": np.stack([metrics.forgetting for metrics in repeats], axis=-1),
        "results-time/global": batch_seconds(options, len(matrices), len(matrices[0])),
    }
    for name, history in histories.items():
        write_text(folder / f"{name}.yaml", yaml.safe_dump(as_yaml(history), sort_keys=False))
    write_text(folder / "args.yaml", yaml.safe_dump(arguments(options, machine), sort_keys=False))
    values = {}
    for name, metric in (("FAA", "faa"), ("CAA", "caa"), ("FR", "ffm")):
        values[f"{name}_m"], values[f"{name}_s"] = over_repeats([getattr(metrics, metric) for metrics in repeats])
    return values


def refuse_originals(options: Options) -> None:
    """Raise UserError for a folder with files of the original, which names them alike, but without a run of ours."""
    folder = Path(log_dir_of(options))
    if not (folder / CHECKSUMS).exists() and not any(folder.glob("repeat-*/config.yaml")):
        refuse_files(folder / f"{name}.yaml" for name in ("args", "results-acc/global"))


def as_yaml(history: np.ndarray) -> dict[str, list]:
    """mean and history, repeats in the last axis; std (ddof 0) from the third repeat on (run.py:L163-L205)."""
    content = {"mean": history.mean(axis=-1).tolist(), "history": history.tolist()}
    return content | ({"std": history.std(axis=-1).tolist()} if history.shape[-1] > 2 else {})


def batch_seconds(options: Options, repeats: int, tasks: int) -> np.ndarray:
    """Seconds a batch (T, repeats), from the records; 0 where none is on record."""
    times = np.zeros((tasks, repeats))
    for repeat in range(repeats):
        path = Path(log_dir_of(options)) / f"repeat-{repeat + 1}" / "record.jsonl"
        for line in map(json.loads, path.read_text().splitlines()):
            if line["metric"] == "seconds_per_batch":
                times[line["after_task"] - 1, repeat] = line["value"]
    return times


def arguments(options: Options, machine: Machine) -> dict[str, Any]:
    """All options as plain values in alphabetical order; those of the original that a learner lacks are None."""
    plain = dict.fromkeys(ARGUMENTS) | asdict(options)
    plain |= {"log_dir": log_dir_of(options), "scale": scale_of(options)}  # as they took effect, like the next two
    plain |= {"seeds": run_seeds(options), "workers": machine.workers}
    return {key: plain[key] for key in sorted(plain)}


def write_xlsx(options: Options, machine: Machine, figures: dict[str, float]) -> None:
    """Append this command's row to <log_dir>/results.xlsx (run.py:L213-L272).

    Not in the working directory, where the original puts it: there, commands started side by side would write one
    file, and a miniature's numbers would stand below the paper's. Values only, where the sheet has as many columns,
    else header and values. A row that stands there already is not written twice: a command given again adds none.
    """
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    values = arguments(options, machine) | {"save_folder": Path(log_dir_of(options)).name} | figures
    row = [str(values[key]) if isinstance(values[key], list) else values[key] for key in COLUMNS]
    known = [as_text(value) for value in row]
    path, book = read_xlsx(options)
    sheet = book.active
    if not path.exists() or sheet.max_column != len(COLUMNS):
        sheet.append(COLUMNS)
    if not any([as_text(cell.value) for cell in cells] == known for cells in sheet.iter_rows()):
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value for value in row])
        for cell in sheet[sheet.max_row]:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # openpyxl guesses "formula" from a leading "="
                cell.quotePrefix = cell.value.startswith(("=", "+", "-", "@", "\t"))
        atomic_write(path, book.save)


def read_xlsx(options: Options) -> tuple[Path, Any]:
    """Path and content of the workbook, a new one where there is none. Raises UserError for one that is damaged."""
    import openpyxl

    path = Path(log_dir_of(options)) / "results.xlsx"
    try:
        return path, openpyxl.load_workbook(path) if path.exists() else openpyxl.Workbook()
    except Exception as error:  # openpyxl lets the errors of zip and XML through
        raise UserError(f"{path} is no readable workbook ({error}). Move it away.") from error


def as_text(value: object) -> str:
    """A cell's value as far as a workbook keeps it: 15 digits of a number, no empty text, no control characters."""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    return f"{value:.14g}" if number else "".join(filter(str.isprintable, str("" if value is None else value)))


class Tee(io.TextIOBase):
    """A text stream, what is written to it also going to a log, as far as that takes it."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):  # of a full disk, which costs no run: its own files tell of it
            self.log.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.log.flush()
        self.stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.log.close()


@contextlib.contextmanager
def output_log(folder: Path) -> Iterator[None]:
    """Within it, standard output also goes to the original's output.log in this folder, which is made.

    Raises UserError if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "output.log" if is_main_process() else os.devnull
            log = open(path, "a", encoding="utf-8")  # noqa: SIM115 the Tee closes it
        except OSError as error:
            raise UserError(f"the output folder {folder} cannot be written ({error.strerror}).") from error
        tee = stack.enter_context(contextlib.closing(Tee(sys.stdout, log)))
        stack.enter_context(contextlib.redirect_stdout(tee))
        yield
