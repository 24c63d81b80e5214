"""Prediction with IT-Prompt (B2.5), what is recorded of it, and the test images' features.

u is computed once a run, z once an image and entry: entries are frozen once their task is learnt, so after each task
only the images whose inferred task is another one than before go through the encoder again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from common.datasets.images import ImageSet
from common.evaluation.report import metric_lines
from common.incremental.features import batches_in_order, features_in_order
from common.incremental.scenario import Scenario, seen_subset
from common.machine import Machine
from common.runs import Run, load_tensors, save_tensors
from common.training.distributed import all_gather_rows, local_rows
from vq_prompt import report
from vq_prompt.data import data_name, task_count
from vq_prompt.it_prompt.cncm import ClassMemory, nearest_class
from vq_prompt.it_prompt.network import Encoder, Parts, best_class, task_by_key
from vq_prompt.it_prompt.options import ITOptions

NO_ENTRY = -1
FEATURES = "features.pth"  # in a run's folder


@dataclass
class Learned:
    """What a run carries from task to task. text (C, E): w_c in class order, None for a ViT without texts.

    parts is None for the bounds without prompts, for which z is u.
    """

    options: ITOptions
    encoder: Encoder
    parts: Parts | None
    text: Tensor | None
    tasks: Scenario
    u: ClassMemory
    z: ClassMemory

    def task_of(self, classes: Tensor) -> Tensor:
        """The task of each class, int64 on the classes' device."""
        stops = torch.tensor([task.stop for task in self.tasks.tasks], device=classes.device)
        return torch.searchsorted(stops, classes, right=True)


def infer_tasks(learned: Learned, u: Tensor, true_tasks: Tensor, task: int) -> Tensor:
    """The entry (N,) of each image from u (N, E), after task `task`; true_tasks serves `oracle` alone."""
    selector, seen = learned.options.selector, learned.tasks.seen(task)
    if selector == "cncm":
        return learned.task_of(nearest_class(learned.u.class_distances(u)))
    if selector == "softmax":
        logits = learned.parts.selector(u)[:, :seen]
        return learned.task_of(best_class(logits, torch.ones(seen, dtype=torch.bool, device=u.device)))
    if selector == "key":
        return task_by_key(u, learned.parts.prompt.keys(task + 1))
    return true_tasks


def predict(learned: Learned, z: Tensor, entries: Tensor, task: int) -> Tensor:
    """The class (N,) of each image from z (N, E), among those seen after task `task`, or those of its entry's task."""
    options, seen = learned.options, learned.tasks.seen(task)
    classes = torch.arange(seen, device=z.device)
    allowed = torch.ones(len(z), seen, dtype=torch.bool, device=z.device)
    if options.scope == "task":
        allowed = learned.task_of(classes)[None] == entries[:, None]
    if options.classifier == "cncm":
        return nearest_class(learned.z.class_distances(z), allowed)
    logits = z @ learned.text[:seen].t() if options.classifier == "text" else learned.parts.head(z)[:, :seen]
    return best_class(logits, allowed)


def zero_shot(u: Tensor, text: Tensor) -> Tensor:
    """Plain CLIP's class (N,): argmax <u, w_c> over the names given, text (C, E)."""
    return (u @ text.t()).argmax(dim=1)


@dataclass
class KnownFeatures:
    """Test images of all tasks: labels (N,) in class order, u (N, E), and the latest z (N, E) with its entry (N,)."""

    images: Dataset
    labels: Tensor
    u: Tensor
    z: Tensor
    entries: Tensor

    @classmethod
    def of(cls, images: Dataset, u: Tensor) -> "KnownFeatures":
        """images: with `labels`; u: their features without prompts."""
        labels = torch.tensor(images.labels, device=u.device)
        return cls(images, labels, u, torch.zeros_like(u), torch.full_like(labels, NO_ENTRY))

    @torch.no_grad()
    def look(self, learned: Learned, rows: Tensor, entries: Tensor, batch_size: int, workers: int) -> Tensor:
        """z (n, E) of the images at `rows` (n,) with `entries` (n,); only those not known yet are computed."""
        new = self.entries[rows] != entries
        rows_new, entries_new = rows[new], entries[new]
        if len(rows_new):
            place, own = local_rows(len(rows_new)).start, [self.z[:0]]
            subset, device = Subset(self.images, rows_new.tolist()), self.u.device
            for images, _ in batches_in_order(subset, batch_size, workers, device, "features with prompts"):
                prompts = learned.parts.prompt.gathered(entries_new[place : place + len(images)])
                own.append(learned.encoder.prompted(images, prompts))
                place += len(images)
            self.z[rows_new] = all_gather_rows(torch.cat(own), len(rows_new))
            self.entries[rows_new] = entries_new
        return self.z[rows]

    def state_dict(self) -> dict[str, Tensor]:
        return {"u": self.u.cpu(), "z": self.z.cpu(), "entries": self.entries.cpu()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        for name, tensor in saved.items():
            setattr(self, name, tensor.to(self.u.device))


def test_features(run: Run, machine: Machine, learned: Learned, data: ImageSet) -> KnownFeatures:
    """The test images of all tasks with what the run's folder knows of them, at least u.

    A new run also records what plain CLIP gets right of each task before anything is learnt.
    """
    images, path = seen_subset(data.test, learned.tasks, -1), run.path(FEATURES)
    if path.exists():
        saved = load_tensors(path)
        test = KnownFeatures.of(images, saved["u"].to(machine.device))
        test.load_state_dict(saved)
        return test
    u, _ = features_in_order(learned.encoder.plain, images, learned.options.batch_size, machine)
    test = KnownFeatures.of(images, u)
    if learned.text is not None and learned.parts is not None:
        of_tasks = learned.task_of(test.labels)
        later = [(task, of_tasks == task) for task in range(1, len(learned.tasks.tasks))]
        found = [(task, test.u[rows], test.labels[rows]) for task, rows in later if rows.any()]
        run.record([line for of_task in found for line in unseen_lines(learned, 0, *of_task)])
    save_tensors(path, test.state_dict())
    return test


# Records


def percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


def by_task(predictions: Tensor, labels: Tensor, tasks: Tensor, task: int) -> list[float]:
    """Accuracy in percent on the images of each of the tasks 0 .. task; all (N,), tasks those of the images."""
    return [percent((predictions == labels)[tasks == seen]) for seen in range(task + 1)]


@torch.no_grad()
def evaluate(run: Run, machine: Machine, learned: Learned, test: KnownFeatures, task: int) -> None:
    """Record what all test images of the classes seen give after a task, each image looked at once.

    `accuracy` pools the images; `avg` is its mean so far, `last` its last value. `task_id_accuracy`: the share (0 to 1)
    with the right entry. The others: see `without_prompts` and `next_unseen`.
    """
    rows = (test.labels < learned.tasks.seen(task)).nonzero().flatten()
    u, labels = test.u[rows], test.labels[rows]
    tasks = learned.task_of(labels)
    options, values, z, entries = learned.options, {}, u, tasks
    if learned.parts is not None:
        entries = infer_tasks(learned, u, tasks, task)
        z = test.look(learned, rows, entries, options.batch_size, machine.workers)
        save_tensors(run.path(FEATURES), test.state_dict())
        values = {"task_id_accuracy": float((entries == tasks).double().mean())}
        values |= without_prompts(learned, u, labels, tasks, task)
    predictions = predict(learned, z, entries, task)
    values["accuracy"] = percent(predictions == labels)
    curve = [line["value"] for line in run.find(metric="accuracy") if line["after_task"] <= task] + [values["accuracy"]]
    if task + 1 == task_count(options, learned.tasks):
        values |= {"avg": float(np.mean(curve)), "last": values["accuracy"]}
    run.record([*metric_lines(data_name(options), task + 1, values), *next_unseen(learned, machine, test, task)])
    print("  ".join(f"{metric} {value:.2f}" for metric, value in values.items()), flush=True)
    report.record_accuracies(run, options, task, by_task(predictions, labels, tasks, task))


def without_prompts(learned: Learned, u: Tensor, labels: Tensor, tasks: Tensor, task: int) -> dict[str, float]:
    """What the same images give without any prompt, means over tasks as `faa` is: what a run gains is above these.

    `cncm_u`: C-NCM on u as the last prediction. `zero_shot`: plain CLIP among the classes seen.
    """
    predictions = {"cncm_u": nearest_class(learned.u.class_distances(u))}
    if learned.text is not None:
        predictions["zero_shot"] = zero_shot(u, learned.text[: learned.tasks.seen(task)])
    return {name: float(np.mean(by_task(found, labels, tasks, task))) for name, found in predictions.items()}


def next_unseen(learned: Learned, machine: Machine, test: KnownFeatures, task: int) -> list[dict[str, Any]]:
    """`zero_shot_unseen` of the next task (B2.6): its images through the model as it is after this task.

    The same number stands at after_task 0, from before the first task: of no class may it have changed.
    """
    rows = (learned.task_of(test.labels) == task + 1).nonzero().flatten()
    if learned.text is None or learned.parts is None or len(rows) == 0:
        return []
    images = Subset(test.images, rows.tolist())
    u, _ = features_in_order(learned.encoder.plain, images, learned.options.batch_size, machine)
    return unseen_lines(learned, task + 1, task + 1, u, test.labels[rows])


def unseen_lines(learned: Learned, after_task: int, task: int, u: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The record line of plain CLIP on images (u, labels) of a task that is not learnt, among all names of the set."""
    value = percent(zero_shot(u, learned.text) == labels)
    return metric_lines(f"task {task}", after_task, {"zero_shot_unseen": value})
