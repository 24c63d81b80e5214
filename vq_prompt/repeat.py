"""One repeat of a command: what a run under one seed works with, its files and its records, whichever the learner.

A repeat is a run in <log_dir>/repeat-<r>/; its models lie where the original puts them, <log_dir>/models/repeat-<r>/.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import runs, vit
from common.datasets.images import ImageSet, Transform
from common.errors import UserError
from common.evaluation.metrics import vq_prompt_metrics
from common.evaluation.report import heat_map, write_matrix
from common.incremental.scenario import Scenario, require_images, task_subset
from common.incremental.tasks import stream_seed
from common.machine import Machine
from common.mini import ON_SCALE
from common.options import settings
from common.processes import is_main_process
from common.runs import Run
from common.training.batches import Batches
from common.training.device import cost_records
from common.training.distributed import barrier
from vq_prompt.data import data_set, load_data, protocol_name, reader_options, task_count
from vq_prompt.options import Options, log_dir_of, scale_of

PURPOSES = ("training", "statistics", "retraining")  # each draws a random stream of its own


@dataclass(frozen=True)
class Repeat:
    """A run's options, machine and seed, its tasks and images, and its folder."""

    options: Options
    machine: Machine
    seed: int
    scenario: Scenario
    data: ImageSet
    run: Run
    models: Path  # folder of the tasks' models

    @property
    def task_count(self) -> int:
        """Number of tasks that are learned."""
        return task_count(self.options, self.scenario)

    def model_path(self, task_id: int, name: str = "class.pth") -> Path:
        """The model after a task, or another file beside it, as the original's (learners/default.py:L285-L300)."""
        return self.models / f"task-{task_id + 1}" / name

    def stream_seed(self, task_id: int, purpose: str) -> int:
        """Seed of the random stream that serves one of PURPOSES in one task."""
        return stream_seed(self.seed, task_id, purpose, PURPOSES)

    def training_batches(self, task_id: int, drop_last: bool, advice: str) -> Batches:
        """The shuffled training batches of a task. Raises UserError, with this advice, if there is none."""
        images, size, machine = (
            task_subset(self.data.train, self.scenario, task_id),
            self.options.batch_size,
            self.machine,
        )
        seed = self.stream_seed(task_id, "training")
        batches = Batches(images, size, seed, machine.workers, machine.device, drop_last=drop_last)
        if len(batches) == 0:
            few = f"task {task_id + 1} has {len(images)} training images, fewer than a batch of {size}"
            raise UserError(f"{few}, and {advice}")
        return batches


def open_repeat(
    options: Options,
    machine: Machine,
    seed: int,
    number: int,
    scenario: Scenario,
    transforms: tuple[Transform, Transform],
    method: str,
    decides: dict[str, Any],
) -> Repeat:
    """Data and run of one repeat. `decides`: what decides its numbers besides options, seed and data.

    --overwrite 1 also removes the repeat's models. Raises UserError if another configuration's run lies there, models
    that no run recorded, or if a class has no images.
    """
    data = load_data(options, seed, *transforms)
    require_images(data, scenario, task_count(options, scenario), every_class=True)
    name = f"repeat-{number + 1}"
    folder, models = Path(log_dir_of(options)) / name, Path(log_dir_of(options)) / "models" / name
    if not options.overwrite and not (folder / "config.yaml").exists() and any(models.glob("*/class.pth")):
        raise UserError(f"{models} holds models that no run recorded. Choose another --log_dir, or --overwrite 1.")
    weights = options.backbone_weights
    run = runs.open_run(
        options, machine, folder, settings(options) | decides | {"seed": seed, "data": data.fingerprint},
        paper="vq_prompt", method=method, protocol=protocol_name(options, scenario),
        backbone=vit.LABELS.get(weights, weights), scale=scale_of(options), seed=seed,
    )  # fmt: skip
    if options.overwrite:
        if is_main_process():
            shutil.rmtree(models, ignore_errors=True)
        barrier()
    return Repeat(options, machine, seed, scenario, data, run, models)


# Records


def record_line(dataset: str, task_id: int, metric: str, value: float, seconds: float = 0.0) -> dict[str, Any]:
    """The record line of a number that stands after a task."""
    return {"dataset": dataset, "after_task": task_id + 1, "metric": metric, "value": float(value), "seconds": seconds}


def record_costs(repeat: Repeat, task_id: int, updates: int, trainable: int) -> None:
    """Record what learning a task took: seconds, also a batch, peak memory, number of trained parameters."""
    run, name, seconds = repeat.run, data_set(repeat.options).label, repeat.run.seconds
    values = {"trainable_parameters": trainable, "seconds_per_batch": seconds / max(1, updates)}
    lines = cost_records(name, task_id + 1, seconds, repeat.machine.device)
    run.record([*lines, *(record_line(name, task_id, metric, value, seconds) for metric, value in values.items())])


def record_accuracies(repeat: Repeat, task_id: int, accuracies: Sequence[float]) -> None:
    """Record the accuracy (%) of each task so far, and FAA, CAA and FFM; all at once, by which a task counts as tested."""
    name = data_set(repeat.options).label
    R = accuracy_matrix(repeat.run, task_id + 1)
    R[:, task_id] = accuracies
    metrics = vq_prompt_metrics(R)
    values = {"faa": metrics.faa, "caa": metrics.caa, "forgetting": metrics.ffm}
    if isinstance(split := reader_options(repeat.options).get("split"), int):  # CODA-Prompt's lists are no seed
        values["split_seed"] = split
    lines = [record_line(f"task {seen}", task_id, "task_accuracy", value) for seen, value in enumerate(accuracies)]
    repeat.run.record([*lines, *(record_line(name, task_id, metric, value) for metric, value in values.items())])
    numbers = f"accuracy {metrics.faa:.2f}, mean so far {metrics.caa:.2f}, forgetting {metrics.ffm:.2f}"
    print(f"after task {task_id + 1}: {numbers}", flush=True)


def is_evaluated(run: Run, task_id: int) -> bool:
    """Whether the accuracies after a task are on record."""
    return bool(run.find(after_task=task_id + 1, metric="faa"))


def accuracy_matrix(run: Run, tasks: int) -> np.ndarray:
    """R (T, T) float64 of what is on record: R[j, i] percent of task j after task i, 0 before task j is learned."""
    R = np.zeros((tasks, tasks))
    for line in run.find(metric="task_accuracy"):
        if line["after_task"] <= tasks:
            R[int(line["dataset"].removeprefix("task ")), line["after_task"] - 1] = line["value"]
    return R


def finish_run(repeat: Repeat) -> np.ndarray:
    """R (T, T) of all tasks, also written as accuracy.csv and accuracy.png; drops the resume state."""
    run, labels = repeat.run, repeat.run.labels
    R = accuracy_matrix(run, repeat.task_count)
    cells = np.where(np.triu(np.ones_like(R)) > 0, R, np.nan).T.tolist()
    names = [f"task {task_id + 1}" for task_id in range(len(R))]
    write_matrix(run.path("accuracy.csv"), cells, names, names)
    title = f"{labels['method']}, {labels['protocol']}{ON_SCALE[labels['scale']]}"
    heat_map(run.path("accuracy.png"), cells, names, names, title)
    run.finish()
    return R
