"""One repeat of a command: what a run under one seed works with, its files and its records, whichever the learner.

A repeat is a run in <log_dir>/repeat-<r>/; its models lie where the original puts them, <log_dir>/models/repeat-<r>/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common import vit
from common.datasets.images import ImageSet, Transform
from common.evaluation.metrics import vq_prompt_metrics
from common.evaluation.report import run_title, save_matrix, task_accuracy_lines, task_accuracy_matrix
from common.files import metric_lines
from common.incremental.common_ground import sequence_settings
from common.incremental.scenario import LabelledImages, RemappedSubset, Scenario, task_subset
from common.incremental.sets import reader_options
from common.incremental.tasks import stream_seed
from common.machine import Machine
from common.options import settings
from common.runs import Run, save_tensors
from common.training.batches import Batches
from common.training.device import cost_records
from vq_prompt.data import data_set, load_data, protocol_name, scenario, task_count, under
from vq_prompt.options import Options, log_dir_of, run_seeds, scale_of

MODELS = ("class.pth", "statistics.pth")  # of a task
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

    @property
    def test(self) -> LabelledImages:
        """All test images, original labels."""
        assert self.data.test is not None  # none of the sets of these protocols lacks them
        return self.data.test

    def model_path(self, task_id: int, name: str = "class.pth") -> Path:
        """The model after a task, or another file beside it, as the original's (learners/default.py:L285-L300)."""
        return self.models / f"task-{task_id + 1}" / name

    def save(self, task_id: int, content: dict[str, Any], name: str = "class.pth") -> None:
        """Write a file of a task."""
        save_tensors(self.model_path(task_id, name), content)

    def is_evaluated(self, task_id: int) -> bool:
        """Whether the accuracies after a task are on record."""
        return bool(self.run.find(after_task=task_id + 1, metric="faa"))

    def stream_seed(self, task_id: int, purpose: str) -> int:
        """Seed of the random stream that serves one of PURPOSES in one task."""
        return stream_seed(self.seed, task_id, purpose, PURPOSES)

    def training_images(self, task_id: int, augmented: bool = True) -> RemappedSubset:
        """The training images of a task, under the training transform, or without augmentation under the test's."""
        images = self.data.train if augmented else under(self.data.train, self.test.transform)
        return task_subset(images, self.scenario, task_id)

    def training_batches(self, task_id: int, drop_last: bool) -> Batches:
        """The shuffled training batches of a task."""
        images, size, machine = self.training_images(task_id), self.options.batch_size, self.machine
        seed = self.stream_seed(task_id, "training")
        return Batches(images, size, seed, machine.workers, machine.device, drop_last=drop_last)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU: a file of them is readable wherever it is copied to, as the original's."""
    return {key: tensor.detach().cpu() for key, tensor in tensors.items()}


def open_repeat(
    options: Options, machine: Machine, seed: int, transforms: Sequence[Transform], method: str, decides: dict[str, Any]
) -> Repeat:
    """Tasks, data and run of one repeat. `decides`: what decides its numbers besides options, seed and data.

    Raises UserError if another configuration's run lies there, or models that no run recorded.
    """
    tasks, data = scenario(options, seed), load_data(options, seed, *transforms)
    name = f"repeat-{run_seeds(options).index(seed) + 1}"
    folder, models = Path(log_dir_of(options)) / name, Path(log_dir_of(options)) / "models" / name
    weights = options.backbone_weights
    labels = {
        "paper": "vq_prompt", "method": method, "protocol": protocol_name(options, tasks),
        "backbone": vit.LABELS.get(weights, weights), "scale": scale_of(options), "seed": seed,
    }  # fmt: skip
    decides = settings(options) | decides | {"seed": seed, "data": data.fingerprint} | sequence_settings(options, tasks)
    files = [f"task-{task}/{file}" for task in range(1, len(tasks.tasks) + 1) for file in MODELS]
    run = Run(folder, decides, labels, "", options, machine, ["features.pth"], files)
    return Repeat(options, machine, seed, tasks, data, run, models)


# Records


def record_costs(repeat: Repeat, task_id: int, updates: int, trainable: int) -> None:
    """Record what learning a task took: seconds, also a batch, peak memory, number of trained parameters."""
    run, name, seconds = repeat.run, data_set(repeat.options).label, repeat.run.seconds
    values = {"trainable_parameters": trainable, "seconds_per_batch": seconds / updates if updates else 0.0}
    costs = cost_records(name, task_id + 1, seconds, repeat.machine.device)
    run.record([*costs, *metric_lines(name, task_id + 1, values, seconds)])


def percent(hits: Tensor) -> float:
    """Share of what is true, in percent."""
    return 100 * float(hits.double().mean())


def accuracy_by_task(hits: Tensor, tasks: Tensor, task_id: int) -> list[float]:
    """Accuracy in percent on the images of each of the tasks 0 .. task_id, from all (N,) hits and the images' tasks."""
    hits, tasks = hits.cpu(), tasks.cpu()
    return [percent(hits[tasks == seen]) for seen in range(task_id + 1)]


def record_accuracies(repeat: Repeat, task_id: int, accuracies: Sequence[float]) -> None:
    """Record the accuracy (%) on each task so far, and FAA, CAA and FFM. Kept last: the task then counts as tested."""
    R = accuracy_matrix(repeat.run, task_id + 1)
    R[:, task_id] = accuracies
    metrics = vq_prompt_metrics(R)
    values = {"faa": metrics.faa, "caa": metrics.caa, "forgetting": metrics.ffm}
    data = data_set(repeat.options)
    if isinstance(split := reader_options(data, repeat.options.split).get("split"), int):  # lists are no seed
        values["split_seed"] = split
    lines = metric_lines(data.label, task_id + 1, values)
    repeat.run.record([*task_accuracy_lines(accuracies), *lines])
    numbers = f"accuracy {metrics.faa:.2f}, mean so far {metrics.caa:.2f}, forgetting {metrics.ffm:.2f}"
    print(f"after task {task_id + 1}: {numbers}", flush=True)


def accuracy_matrix(run: Run, tasks: int) -> np.ndarray:
    """R (T, T) float64 of what is on record: R[j, i] percent of task j after task i, 0 before task j is learned."""
    return np.nan_to_num(task_accuracy_matrix(run, tasks).T)


def finish_run(repeat: Repeat) -> np.ndarray:
    """R (T, T) of all tasks, also written as accuracy.csv and accuracy.png; drops the resume state."""
    run, names = repeat.run, [f"task {task_id + 1}" for task_id in range(repeat.task_count)]
    save_matrix(run, task_accuracy_matrix(run, len(names)).tolist(), names, names, run_title(run))
    run.finish()
    return accuracy_matrix(run, len(names))
