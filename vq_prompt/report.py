"""What the repeats of a command leave behind: records by seed, and the original's yaml files and results.xlsx.

A repeat is a run in <log_dir>/repeat-<r>/; its models lie where the original puts them, <log_dir>/models/repeat-<r>/.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common import runs
from common.datasets.images import ImageSet
from common.errors import UserError
from common.evaluation.metrics import over_repeats, vq_prompt_metrics
from common.evaluation.report import metric_lines, run_title, save_matrix, task_accuracy_lines, task_accuracy_matrix
from common.files import atomic_write, write_text
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.processes import is_main_process
from common.runs import Run
from common.training.device import cost_records
from common.training.distributed import barrier
from vq_prompt.data import data_name, protocol_name, reader_options
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
XLSX = "results.xlsx"


# A repeat


def open_run(
    options: Options,
    machine: Machine,
    repeat: int,
    seed: int,
    method: str,
    backbone: str,
    tasks: Scenario,
    data: ImageSet,
    decides: dict[str, Any],
) -> Run:
    """The run of one repeat. `decides`: its settings, with the weights' md5 by name.

    --overwrite 1 also removes the repeat's models. Raises UserError if another configuration's run lies there, or
    models that no run recorded.
    """
    folder, models = Path(log_dir_of(options)) / f"repeat-{repeat + 1}", models_folder(options, repeat)
    if not options.overwrite and not (folder / "config.yaml").exists() and any(models.glob("*/class.pth")):
        raise UserError(f"{models} holds models that no run recorded. Choose another --log_dir, or --overwrite 1.")
    run = runs.open_run(
        options, machine, folder, decides | {"seed": seed, "data": data.fingerprint}, paper="vq_prompt", method=method,
        protocol=protocol_name(options, tasks), backbone=backbone, scale=scale_of(options), seed=seed,
    )  # fmt: skip
    if options.overwrite:
        if is_main_process():
            shutil.rmtree(models, ignore_errors=True)
        barrier()
    return run


def models_folder(options: Options, repeat: int) -> Path:
    return Path(log_dir_of(options)) / "models" / f"repeat-{repeat + 1}"


def task_folder(options: Options, repeat: int, task: int) -> Path:
    """Where the model and the statistics after a task lie, as the original's (learners/default.py:L285-L300)."""
    return models_folder(options, repeat) / f"task-{task + 1}"


def record_costs(run: Run, options: Options, machine: Machine, task: int, steps: int, trainable: int) -> None:
    """What learning a task took: its seconds, also by batch, the peak memory, the number of trained parameters."""
    name, seconds = data_name(options), run.seconds
    values = {"trainable_parameters": float(trainable), "seconds_per_batch": seconds / max(1, steps)}
    lines = cost_records(name, task + 1, seconds, machine.device)
    run.record([*lines, *metric_lines(name, task + 1, values, seconds)])


def record_accuracies(run: Run, options: Options, task: int, accuracies: Sequence[float]) -> None:
    """Accuracy in percent of tasks 0 .. task after task `task`, and FAA, CAA and FFM so far; kept last, all at once."""
    R = accuracy_matrix(run, task + 1)
    R[:, task] = accuracies
    found = vq_prompt_metrics(R)
    values = {"faa": found.faa, "caa": found.caa, "forgetting": found.ffm}
    if isinstance(split := reader_options(options).get("split"), int):  # not CODA-Prompt's lists: the record says so
        values["split_seed"] = float(split)
    run.record([*task_accuracy_lines(accuracies), *metric_lines(data_name(options), task + 1, values)])
    print(
        f"after task {task + 1}: accuracy {found.faa:.2f}, mean so far {found.caa:.2f}, forgetting {found.ffm:.2f}",
        flush=True,
    )


def is_evaluated(run: Run, task: int) -> bool:
    return bool(run.find(after_task=task + 1, metric="faa"))


def accuracy_matrix(run: Run, tasks: int) -> np.ndarray:
    """R (T, T) float64 of what is on record: R[j, i] percent of task j after task i, 0 before task j is learned."""
    return np.nan_to_num(task_accuracy_matrix(run, tasks).T)


def finish_run(run: Run, tasks: int) -> np.ndarray:
    """R, also written as accuracy.csv and accuracy.png; drops the resume state."""
    names = [f"task {task + 1}" for task in range(tasks)]
    save_matrix(run, task_accuracy_matrix(run, tasks).tolist(), names, names, run_title(run))
    run.finish()
    return accuracy_matrix(run, tasks)


# Over repeats


def write_reports(options: Options, machine: Machine, matrices: Sequence[np.ndarray]) -> dict[str, float]:
    """The original's files over the repeats so far: R (T, T) of each -> means and deviations, also returned."""
    folder = Path(log_dir_of(options))
    found = [vq_prompt_metrics(R) for R in matrices]
    histories = {
        "results-acc/global": np.stack([metrics.average for metrics in found], axis=-1),
        "results-acc/pt": np.stack(matrices, axis=-1),
        "results-fr/global": np.stack([metrics.forgetting for metrics in found], axis=-1),
        "results-time/global": batch_seconds(options, len(matrices), len(matrices[0])),
    }
    for name, history in histories.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{name}.yaml", yaml.safe_dump(as_yaml(history), sort_keys=False))
    write_text(folder / "args.yaml", yaml.safe_dump(arguments(options, machine), sort_keys=False))
    values = {}
    for name, metric in (("FAA", "faa"), ("CAA", "caa"), ("FR", "ffm")):
        values[f"{name}_m"], values[f"{name}_s"] = over_repeats([getattr(metrics, metric) for metrics in found])
    return values


def as_yaml(history: np.ndarray) -> dict[str, list]:
    """mean and history, repeats last; std, the population's, only from the third repeat on (run.py:L163-L205)."""
    content = {"mean": history.mean(axis=-1).tolist(), "history": history.tolist()}
    return content | ({"std": history.std(axis=-1).tolist()} if history.shape[-1] > 2 else {})


def batch_seconds(options: Options, repeats: int, tasks: int) -> np.ndarray:
    """Seconds a batch (T, repeats), from the records; 0 where a learner recorded none."""
    times = np.zeros((tasks, repeats))
    for repeat in range(repeats):
        path = Path(log_dir_of(options)) / f"repeat-{repeat + 1}" / "record.jsonl"
        for line in map(json.loads, path.read_text().splitlines()):
            if line["metric"] == "seconds_per_batch":
                times[line["after_task"] - 1, repeat] = line["value"]
    return times


def arguments(options: Options, machine: Machine) -> dict[str, Any]:
    """All options as plain values, alphabetically; the original's that a learner has not are None."""
    plain = dict.fromkeys(ARGUMENTS) | asdict(options)
    plain |= {"log_dir": log_dir_of(options), "scale": scale_of(options)}  # as they took effect, like the next two
    plain |= {"seeds": run_seeds(options), "workers": machine.workers}
    return {key: plain[key] for key in sorted(plain)}


def write_xlsx(options: Options, machine: Machine, values: dict[str, float]) -> None:
    """Append this command's row to <log_dir>/results.xlsx (run.py:L213-L272).

    Not in the working directory, where the original puts it: there, commands started side by side would write one
    file, and a miniature's numbers would stand below the paper's. Values only, where the sheet has as many columns,
    else header and values. A row that stands last already is not written twice: a command given again adds none.
    """
    import openpyxl

    given = arguments(options, machine) | {"save_folder": Path(log_dir_of(options)).name} | values
    row = [str(given[key]) if isinstance(given[key], list) else given[key] for key in COLUMNS]
    path = Path(log_dir_of(options)) / XLSX
    try:
        book = openpyxl.load_workbook(path) if path.exists() else openpyxl.Workbook()
    except Exception as error:  # openpyxl lets the errors of zip and XML through
        raise UserError(f"{path} is no readable workbook ({error}). Move it away.") from error
    sheet = book.active
    empty = not path.exists()
    if empty or sheet.max_column != len(COLUMNS):
        sheet.append(COLUMNS)
    if empty or [cell.value for cell in sheet[sheet.max_row]] != row:
        sheet.append(row)
        atomic_write(path, book.save)


class Tee(io.TextIOBase):
    """Standard output that also goes to a file: the original's output.log."""

    def __init__(self, path: Path) -> None:
        self.terminal = sys.stdout
        self.file = open(path if is_main_process() else os.devnull, "a", encoding="utf-8")

    def write(self, text: str) -> int:
        self.file.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.terminal.flush()

    def close(self) -> None:
        self.file.close()
