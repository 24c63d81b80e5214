"""Accuracy after a task, as the original's log has it (methods/inflora.py:L265-L305, utils/toolkit.py:L28-L48)."""

import math

import numpy as np
import torch
from torch import Tensor

from common.evaluation.metrics import forgetting_continuum, inflora_grouped
from common.evaluation.report import task_accuracy_lines, task_accuracy_matrix
from common.files import metric_lines
from common.incremental.features import features_in_order
from common.incremental.measures import common_metrics, numel
from common.incremental.scenario import Scenario, seen_subset
from inflora.learner import Learner

# the metrics of `task_metrics` as records name them; the others, accuracies of a group of classes, are "accuracy 00-09"
RECORDED = {"top1": "acc", "top1_macro": "acc_macro", "top1_with_task": "acc_with_task", "task_acc": "task_id_accuracy"}


def evaluate(learner: Learner, task_id: int) -> None:
    """Record accuracies on all test images of the classes seen, by task too, the curves' means, and forgetting."""
    options, scenario, run, after_task = learner.options, learner.scenario, learner.run, task_id + 1
    images = seen_subset(learner.test, scenario, task_id)
    features, labels = features_in_order(learner.network.features, images, options.batch_size, learner.machine)
    with torch.inference_mode():
        logits = learner.network.logits(features, after_task).cpu()
    labels = labels.cpu()
    metrics = task_metrics(logits, labels, scenario, task_id, options.decimals)
    values = {RECORDED.get(name, f"accuracy {name}"): value for name, value in metrics.items()}
    for metric in ("acc", "acc_macro"):
        earlier = [line["value"] for line in run.find(metric=metric) if line["after_task"] < after_task]
        values[f"avg_{metric}"] = float(np.mean([*earlier, values[metric]]))
    by_task = accuracy_by_task(logits, labels, scenario, task_id)
    if task_id > 0:
        matrix = task_accuracy_matrix(run, after_task)
        matrix[task_id] = by_task
        values["forgetting"] = float(forgetting_continuum(matrix)[-1])
    held = numel(learner.network.parameters()), numel(learner.stored())
    values |= common_metrics(run, values["acc"], values["acc_with_task"], by_task, *held)
    lines = [*metric_lines(options.data_set.label, after_task, values), *task_accuracy_lines(by_task)]
    # a cut copy of a data set may lack a group's test images
    run.record([line for line in lines if not math.isnan(line["value"])])
    print(
        f"after task {task_id}: accuracy {values['acc']:.2f}, mean of the curve {values['avg_acc']:.2f}, "
        f"task known {values['acc_with_task']:.2f}, task found {100 * values['task_id_accuracy']:.2f}, "
        f"forgetting {values.get('forgetting', 0):.2f}",
        flush=True,
    )


def task_metrics(
    logits: Tensor, labels: Tensor, scenario: Scenario, task_id: int, decimals: int | None
) -> dict[str, float]:
    """Accuracies in percent of the logits (N, seen classes) of all test images seen, with labels (N,).

    `top1` over all images; `top1_macro`, the mean over the tasks of `accuracy_by_task`: the paper's ACC_i (Sec. 4.1);
    `top1_with_task`, the true task being known; `task_acc`, the share (0 to 1) whose predicted class is of the true
    task, never rounded; then `old`, `new` and the groups of `inflora_grouped`. `decimals`: to which they are rounded.
    """
    increment, predictions = scenario.initial_increment, logits.argmax(dim=1)
    groups = inflora_grouped(predictions, labels, scenario.tasks[task_id].start, increment, decimals)
    tasks, task_of_class = scenario.task_ids(labels.numpy()), scenario.task_ids(range(logits.shape[1]))
    within_task = logits.masked_fill(torch.from_numpy(task_of_class != tasks[:, None]), -torch.inf).argmax(dim=1)
    by_task = accuracy_by_task(logits, labels, scenario, task_id)
    parts = by_task if decimals is None else np.around(by_task, decimals)
    return {
        "top1": groups.pop("total"),
        "top1_macro": float(sum(parts) / len(parts)),
        "top1_with_task": inflora_grouped(within_task, labels, 0, increment, decimals)["total"],
        "task_acc": float(np.mean(task_of_class[predictions] == tasks)),
        **groups,
    }


def accuracy_by_task(logits: Tensor, labels: Tensor, scenario: Scenario, task_id: int) -> list[float]:
    """Accuracy in percent on the test images of each task so far, among the classes of all of them.

    Not in the original's log unless all tasks have as many classes as its groups. nan for a task without test images.
    """
    hits = (logits.argmax(dim=1) == labels).numpy()
    tasks = scenario.task_ids(labels.numpy())
    rates = [hits[tasks == earlier] for earlier in range(task_id + 1)]
    return [100 * int(part.sum()) / len(part) if len(part) else math.nan for part in rates]
