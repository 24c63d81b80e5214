"""A class-incremental run of ZSCL or MoE-Adapters: its folder, its checkpoints, its records."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common import mini
from common.clip.activation import ACTIVATION
from common.clip.model import CLIP
from common.clip.pretrained import fingerprint
from common.evaluation.metrics import CILStep, accuracy_with_task, cil_summary, task_accuracies
from common.evaluation.report import run_title, save_matrix, task_accuracy_lines
from common.evaluation.seen_classes import PooledTest, evaluate_seen, unseen_accuracy
from common.files import metric_lines
from common.incremental.common_ground import sequence_settings
from common.incremental.data import IncrementalData
from common.incremental.measures import common_metrics, is_common
from common.incremental.options import CILOptions
from common.incremental.released_log import load_steps, save_steps, write_metrics
from common.incremental.tasks import task_path
from common.machine import Machine
from common.options import settings
from common.runs import Run, fitting, load_tensors, mini_folder, save_tensors

PREDICTIONS = "predictions.pth"  # of every test so far; metrics.json is computed from it
OUTPUTS = (PREDICTIONS, "reference_features.pth")  # of both papers, besides the files of each task


def scale_of(options: CILOptions) -> str:
    """`scale` of the records: a run on rendered images or with the tiny weights is a miniature."""
    return mini.scale_of(options.dataset_root, options.model_name)


def open_run(
    paper: str,
    method: str,
    options: CILOptions,
    data: IncrementalData,
    machine: Machine,
    more: dict[str, Any] | None = None,
) -> Run:
    """Open the run's folder. Raises UserError if it holds a run of another configuration or another program's files.

    `more`: settings that decide numbers besides the options and the data set.
    """
    scale = scale_of(options)
    folder = Path(mini_folder(options.save or options.hydra.run.dir, scale) or "")
    weights = {"model": fingerprint(options.model_name, options.activation)}
    decides = settings(options) | sequence_settings(options, data.scenario)
    decides |= {"weights": weights, "data": data.fingerprint} | (more or {})
    labels = {
        "paper": paper, "method": method, "protocol": data.protocol, "backbone": options.model_name, "scale": scale,
        "seed": options.seed,
    }  # fmt: skip
    tasks = [f"task_{task_id}" for task_id in range(len(data.scenario.tasks))]
    outputs = [options.log_path, *OUTPUTS, *(f"{task}{end}" for task in tasks for end in (".pth", ".memory.json"))]
    return Run(folder, decides, labels, options=options, machine=machine, outputs=outputs)


def save_checkpoint(run: Run, task_id: int, state_dict: dict[str, Tensor], activation: str) -> None:
    """Write the weights after a task, with the protocol, which tells them from those of MTIL, and CLIP's activation."""
    content = {"state_dict": state_dict, "protocol": run.labels["protocol"], ACTIVATION: activation}
    save_tensors(task_path(run.folder, task_id), content)


def load_checkpoint(run: Run, task_id: int) -> dict[str, Tensor]:
    """State dict that `save_checkpoint` wrote. Raises UserError if the file is damaged or missing."""
    path = task_path(run.folder, task_id)
    with fitting(path):
        return load_tensors(path)["state_dict"]


# Records


def tested_steps(run: Run) -> list[CILStep]:
    """Predictions, labels and task ids of the test after each finished task."""
    return load_steps(run.path(PREDICTIONS))


def test_task(
    run: Run,
    options: CILOptions,
    data: IncrementalData,
    test: PooledTest,
    steps: list[CILStep],
    model: CLIP,
    held: tuple[int, int],
    text_per_batch: bool = False,
) -> None:
    """Test the model on all classes seen after task len(steps), append the result to `steps`, and record it.

    On common ground also on the classes not seen yet. `held`: total_parameters and stored_floats of `common_metrics`.
    """
    started, task_id = time.monotonic(), len(steps)
    how = options.stream_seed(task_id, "evaluation"), text_per_batch
    steps.append(evaluate_seen(model, data.tokens, test, task_id, *how))
    unseen = unseen_accuracy(model, data.tokens, test, task_id, *how) if is_common(run) else None
    record_task(run, data, steps, held, unseen, time.monotonic() - started, options.log_path)


def record_task(
    run: Run,
    data: IncrementalData,
    steps: Sequence[CILStep],
    held: tuple[int, int],
    unseen: float | None,
    seconds: float,
    log_path: str,
) -> None:
    """Record the accuracies after the latest task; the predictions, written last, mark it as tested.

    Lines: `accuracy` of the data set, over all test images of the classes seen, `task_accuracy` of each task, and
    `common_metrics`.
    """
    learned, total = len(steps), len(data.scenario.tasks)
    summary, cells = cil_summary(steps), task_accuracies(steps)[-1].tolist()
    common = common_metrics(run, summary.last, accuracy_with_task(steps[-1]), cells, *held, unseen)
    lines = metric_lines(data.dataset, learned, {"accuracy": summary.last, **common}, seconds)
    run.record([*lines, *task_accuracy_lines(cells, seconds)])
    write_metrics(run.path(log_path), steps, finished=learned == total)
    save_steps(run.path(PREDICTIONS), steps)
    print(
        f"task {learned - 1} ({learned} of {total}): accuracy {summary.acc[-1]:.2f} among "
        f"{data.scenario.seen(learned - 1)} classes, mean so far {summary.avg:.2f}",
        flush=True,
    )


def finish_run(run: Run, data: IncrementalData, steps: Sequence[CILStep], trainable_parameters: int) -> None:
    """Record Avg, Last and the number of trained parameters; write accuracy.csv and accuracy.png: task by task."""
    summary, cells = cil_summary(steps), task_accuracies(steps).tolist()
    values = {"avg": summary.avg, "last": summary.last, "trainable_parameters": trainable_parameters}
    run.record(metric_lines(data.dataset, len(steps), values, None))
    names, title = [f"task {task_id}" for task_id in range(len(steps))], run_title(run)
    save_matrix(run, cells, names, names, title)
    print(f"\n{title}: Avg {summary.avg:.2f}, Last {summary.last:.2f}")
    print(f"Written: {run.path('record.jsonl')}, metrics.json, accuracy.csv, accuracy.png")
    run.finish()
