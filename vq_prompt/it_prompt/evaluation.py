"""Prediction with IT-Prompt (README, section 5), what is recorded of it, and the test images' features.

u is computed once a run, z once an image and entry: entries are frozen after their task, so after each task only the
images whose inferred task is another one than before go through the encoder again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from common.files import metric_lines
from common.incremental.features import features_in_order
from common.incremental.measures import common_metrics, numel
from common.incremental.scenario import RemappedSubset, seen_subset
from common.kept import Kept, fingerprint, image_contents
from common.machine import Machine
from common.training.distributed import local_rows
from vq_prompt.data import data_set
from vq_prompt.it_prompt.cncm import nearest_class
from vq_prompt.it_prompt.network import Model, best_class, task_by_key
from vq_prompt.repeat import Repeat, accuracy_by_task, percent, record_accuracies

NO_ENTRY = -1
FEATURES = "features.pth"  # in a run's folder


def infer_tasks(model: Model, u: Tensor, true_tasks: Tensor, task_id: int) -> Tensor:
    """The entry (N,) of each image from u (N, E), after a task; true_tasks serves `oracle` alone."""
    selector, seen = model.options.selector, model.scenario.seen(task_id)
    if selector == "cncm":
        return model.task_of(nearest_class(model.u.class_distances(u)))
    if selector == "softmax":
        logits = model.parts.get_submodule("selector")(u)[:, :seen]
        return model.task_of(best_class(logits, torch.ones(seen, dtype=torch.bool, device=u.device)))
    if selector == "key":
        return task_by_key(u, model.parts.prompt.keys(task_id + 1))
    return true_tasks


def predict(model: Model, z: Tensor, entries: Tensor, task_id: int, within_task: bool = False) -> Tensor:
    """The class (N,) of each image from z (N, E), among those seen after a task, or those of its entry's task.

    within_task: of the entry's task under any scope.
    """
    options, seen = model.options, model.scenario.seen(task_id)
    classes = torch.arange(seen, device=z.device)
    allowed = torch.ones(len(z), seen, dtype=torch.bool, device=z.device)
    if within_task or options.scope == "task":
        allowed = model.task_of(classes)[None] == entries[:, None]
    if options.classifier == "cncm":
        return nearest_class(model.z.class_distances(z), allowed)
    logits = (
        z @ model.text[:seen].t() if options.classifier == "text" else model.parts.get_submodule("head")(z)[:, :seen]
    )
    return best_class(logits, allowed)


def zero_shot(u: Tensor, text: Tensor) -> Tensor:
    """Plain CLIP's class (N,): argmax <u, w_c> over the names given, text (C, E)."""
    return (u @ text.t()).argmax(dim=1)


@dataclass
class FeatureCache:
    """Test images of all tasks: labels (N,) in class order, u (N, E), and the latest z (N, E) with its entry (N,)."""

    images: RemappedSubset
    labels: Tensor
    u: Tensor
    z: Tensor
    entries: Tensor
    file: Kept | None = None

    @classmethod
    def of(cls, images: RemappedSubset, u: Tensor, file: Kept | None = None) -> "FeatureCache":
        """A cache that holds no z yet."""
        labels = torch.tensor(images.labels, device=u.device)
        return cls(images, labels, u, torch.zeros_like(u), torch.full_like(labels, NO_ENTRY), file)

    def prompted(self, model: Model, rows: Tensor, entries: Tensor, machine: Machine) -> Tensor:
        """Features z (n, E) of the images at `rows` (n,) with `entries` (n,); only those not held are computed."""
        changed, size = self.entries[rows] != entries, model.options.batch_size
        new_rows, new_entries = rows[changed], entries[changed]
        if len(new_rows):
            own = new_entries[local_rows(len(new_rows))]
            entry_batches = iter((own if len(own) else new_entries[:1]).split(size))

            def encode(images: Tensor) -> Tensor:
                return model.encoder.prompted(images, model.parts.prompt.gathered(next(entry_batches)))

            images = Subset(self.images, new_rows.tolist())
            self.z[new_rows], _ = features_in_order(encode, images, size, machine, "features with prompts")
            self.entries[new_rows] = new_entries
        return self.z[rows]

    def save(self) -> None:
        """Write the features."""
        if self.file:
            self.file.write({name: getattr(self, name).cpu() for name in ("u", "z", "entries")})


def test_features(repeat: Repeat, model: Model) -> FeatureCache:
    """The test images of all tasks with the features that the run's folder holds, at least u.

    A new run also records what plain CLIP gets right of each later task before anything is learned.
    """
    images, device = seen_subset(repeat.test, model.scenario, -1), repeat.machine.device
    file = Kept(repeat.run.path(FEATURES), fingerprint(repeat.run.settings, image_contents(images)))
    if kept := file.read():
        saved = {name: tensor.to(device) for name, tensor in kept.items()}
        return FeatureCache(images, torch.tensor(images.labels, device=device), **saved, file=file)
    u, labels = features_in_order(model.encoder.plain, images, model.options.batch_size, repeat.machine)
    cache, tasks = FeatureCache.of(images, u, file), model.task_of(labels)
    if model.options.is_clip and model.options.has_prompts:
        later = [(task_id, tasks == task_id) for task_id in range(1, len(model.scenario.tasks))]
        unseen = [(task_id, u[rows], labels[rows]) for task_id, rows in later if rows.any()]
        repeat.run.record([line for of_task in unseen for line in unseen_lines(model, 0, *of_task)])
    cache.save()
    return cache


# Records


@torch.no_grad()
def evaluate(repeat: Repeat, model: Model, cache: FeatureCache, task_id: int) -> None:
    """Record what all test images of the classes seen give after a task, each image looked at once.

    `accuracy` pools the images; `avg` is its mean so far, `last` its last value. `task_id_accuracy`: the share (0 to 1)
    with the right entry. The others: see `without_prompts` and `next_unseen`.
    """
    run, name = repeat.run, data_set(repeat.options).label
    rows = (cache.labels < model.scenario.seen(task_id)).nonzero().flatten()
    u, labels = cache.u[rows], cache.labels[rows]
    tasks = model.task_of(labels)
    values, z, entries = {}, u, tasks
    if model.options.has_prompts:
        entries = infer_tasks(model, u, tasks, task_id)
        z = cache.prompted(model, rows, entries, repeat.machine)
        cache.save()
        values = {"task_id_accuracy": float((entries == tasks).double().mean())}
        values |= without_prompts(model, u, labels, tasks, task_id)
    predictions = predict(model, z, entries, task_id)
    values["accuracy"] = percent(predictions == labels)
    curve = [line["value"] for line in run.find(metric="accuracy") if line["after_task"] <= task_id]
    if task_id + 1 == repeat.task_count:
        values |= {"avg": float(np.mean([*curve, values["accuracy"]])), "last": values["accuracy"]}
    run.record([*metric_lines(name, task_id + 1, values), *next_unseen(repeat, model, cache, task_id)])
    print("  ".join(f"{metric} {value:.2f}" for metric, value in values.items()), flush=True)
    by_task = accuracy_by_task(predictions == labels, tasks, task_id)
    within = percent(predict(model, z, tasks, task_id, within_task=True) == labels)
    unseen = unseen_accuracy(model, cache, task_id)
    common = common_metrics(run, values["accuracy"], within, by_task, *held(model), unseen)
    run.record(metric_lines(name, task_id + 1, common))
    record_accuracies(repeat, task_id, by_task)


def held(model: Model) -> tuple[int, int]:
    """Numbers of parameters that the method answers with, the text tower's not among them, and of floats it keeps."""
    parameters = [*model.encoder.parameters(), *model.parts.parameters()]
    return numel(parameters), numel([*model.u.tensors, *model.z.tensors])


def unseen_accuracy(model: Model, cache: FeatureCache, task_id: int) -> float | None:
    """Accuracy in percent of plain CLIP (README, section 6) on the images of the classes not seen yet, among those.

    None after the last task, and without texts.
    """
    seen = model.scenario.seen(task_id)
    rows = cache.labels >= seen
    if seen == len(model.text) or not model.options.is_clip or model.options.learner_name == "NCM":
        return None
    return percent(zero_shot(cache.u[rows], model.text[seen:]) + seen == cache.labels[rows])


def without_prompts(model: Model, u: Tensor, labels: Tensor, tasks: Tensor, task_id: int) -> dict[str, float]:
    """What the same images give without any prompt, means over tasks as `faa` is: what a run gains is above these.

    `cncm_u`: C-NCM on u as the last prediction. `zero_shot`: plain CLIP among the classes seen.
    """
    predictions = {"cncm_u": nearest_class(model.u.class_distances(u))}
    if model.options.is_clip:
        predictions["zero_shot"] = zero_shot(u, model.text[: model.scenario.seen(task_id)])
    by_task = {name: accuracy_by_task(classes == labels, tasks, task_id) for name, classes in predictions.items()}
    return {name: float(np.mean(accuracies)) for name, accuracies in by_task.items()}


def next_unseen(repeat: Repeat, model: Model, cache: FeatureCache, task_id: int) -> list[dict[str, Any]]:
    """`zero_shot_unseen` of the next task (README, section 6): its images through the model as it is after this task.

    The same number stands at after_task 0, from before the first task: of no class may it have changed.
    """
    rows = (model.task_of(cache.labels) == task_id + 1).nonzero().flatten()
    if not (model.options.is_clip and model.options.has_prompts and len(rows)):
        return []
    images = Subset(cache.images, rows.tolist())
    u, labels = features_in_order(model.encoder.plain, images, model.options.batch_size, repeat.machine)
    return unseen_lines(model, task_id + 1, task_id + 1, u, labels)


def unseen_lines(model: Model, after_task: int, task_id: int, u: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The record line of plain CLIP on images (u, labels) of a task not learned yet, among all names of the set."""
    value = percent(zero_shot(u, model.text) == labels)
    return metric_lines(f"task {task_id}", after_task, {"zero_shot_unseen": value})
