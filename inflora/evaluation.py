"""Accuracy after a task, as the original's log has it (methods/inflora.py:L265-L305, utils/toolkit.py:L28-L48)."""

import math

import numpy as np
import torch
from torch import Tensor

from common.evaluation.metrics import inflora_grouped
from common.incremental.scenario import Scenario


def task_metrics(
    logits: Tensor, labels: Tensor, scenario: Scenario, task: int, decimals: int | None
) -> dict[str, float]:
    """Logits (N, seen classes) and labels (N,) of all test images seen -> accuracies in percent.

    `top1` over all images; `top1_macro`, the mean over the tasks of `accuracy_by_task`, which is the paper's ACC_i;
    `top1_with_task`, the true task being known; `task_acc`, the share (0 to 1) whose predicted class is of the true
    task, never rounded; then `old`, `new` and the groups of `inflora_grouped`.
    """
    labels, increment = labels.cpu(), scenario.initial_increment
    predictions = logits.argmax(dim=1).cpu()
    groups = inflora_grouped(predictions, labels, scenario.tasks[task].start, increment, decimals)
    task_ids = torch.from_numpy(scenario.task_ids(labels))
    inside = logits.cpu().masked_fill(
        torch.from_numpy(scenario.task_ids(range(logits.shape[1]))) != task_ids[:, None], -torch.inf
    )
    with_task = inflora_grouped(inside.argmax(dim=1), labels, 0, increment, decimals)["total"]
    found = torch.from_numpy(scenario.task_ids(predictions)) == task_ids
    by_task = accuracy_by_task(logits, labels, scenario, task)
    parts = by_task if decimals is None else np.around(by_task, decimals)
    return {
        "top1": groups.pop("total"),
        "top1_macro": float(sum(parts) / len(parts)),
        "top1_with_task": with_task,
        "task_acc": float(found.double().mean()),
        **groups,
    }


def accuracy_by_task(logits: Tensor, labels: Tensor, scenario: Scenario, task: int) -> list[float]:
    """The accuracy in percent on the test images of each task so far, among the classes of all of them.

    Not in the original's log unless all tasks have as many classes as its groups. nan for a task without test images.
    """
    labels = labels.cpu()
    hits = logits.argmax(dim=1).cpu() == labels
    tasks = torch.from_numpy(scenario.task_ids(labels))
    counts = [(int(hits[tasks == earlier].sum()), int((tasks == earlier).sum())) for earlier in range(task + 1)]
    return [100 * right / count if count else math.nan for right, count in counts]
