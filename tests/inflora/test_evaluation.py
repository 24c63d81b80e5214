"""The original's figures of a task, from the official code's logits and by hand."""

from math import nan

import pytest
import torch

from common import vit
from common.evaluation.metrics import forgetting_continuum
from common.incremental.scenario import Scenario
from common.machine import Machine
from inflora.alignment import ClassStatistics
from inflora.evaluation import accuracy_by_task, evaluate, task_metrics
from inflora.gpm import Memory
from inflora.learner import build
from inflora.options import parse
from tests.golden_files import Golden


def test_official_metrics():
    golden = Golden("inflora/metrics")
    classes, tasks = golden.meta["class_num"], golden.meta["tasks"]
    scenario = Scenario(range(classes * tasks), classes, classes)
    for task in range(tasks):
        metrics = task_metrics(golden[f"t{task}/logits"], golden[f"t{task}/targets"], scenario, task, decimals=2)
        for key in ("top1", "top1_with_task", "task_acc"):
            assert metrics[key] == pytest.approx(float(golden[f"t{task}/{key}"]), rel=1e-9), key
        for group, value in golden.meta["grouped"][task].items():
            assert metrics["top1" if group == "total" else group] == pytest.approx(value, rel=1e-9), group


def test_by_hand():
    """Two tasks of two classes; four images, of which the third is taken for the other task's."""
    logits = torch.tensor([[9.0, 0, 1, 2], [0, 3, 1, 2], [5, 0, 4, 1], [0, 0, 1, 8]])
    metrics = task_metrics(logits, torch.tensor([0, 0, 2, 3]), Scenario(range(4), 2, 2), 1, decimals=None)
    assert metrics["top1"] == 50 and metrics["top1_with_task"] == 75 and metrics["task_acc"] == 0.75
    assert metrics["00-01"] == metrics["old"] == 50 and metrics["02-03"] == metrics["new"] == 50


def test_numbers_of_common_ground(configured):
    """Two tasks of 50 classes on a tower of four blocks of width 128, rank 4."""
    learner = build(parse(configured("cifar100_infloraca")), Machine(torch.device("cpu")), 0)
    learner.run.labels["protocol"] = "common-cifar100-2x50"
    learner.memories = [Memory(torch.zeros(128, 3)), Memory(torch.zeros(128, 5), free=True)]
    learner.statistics = ClassStatistics(torch.zeros(50, 128, dtype=torch.float64), torch.zeros(50, 128, 128))
    for task in range(2):
        evaluate(learner, task)
    found = {line["metric"]: line["value"] for line in learner.run.find(after_task=2, dataset="CIFAR100")}
    first = learner.run.find(after_task=1, dataset="CIFAR100", metric="acc")[0]["value"]
    tower = sum(value.numel() for value in vit.load("mini").state_dict().values())
    branches, classifiers = 2 * 4 * 2 * 2 * 4 * 128, 2 * (50 * 128 + 50)
    assert found["total_parameters"] == tower + branches + classifiers
    assert found["stored_floats"] == 128 * 3 + 128 * 5 + 50 * 128 + 50 * 128 * 128
    assert found["accuracy"] == found["last"] == found["acc"] and found["accuracy_with_task"] == found["acc_with_task"]
    assert found["avg"] == found["avg_acc"] == pytest.approx((first + found["acc"]) / 2)
    assert "unseen_accuracy" not in found


def test_rounding_and_macro_mean():
    """One of three and one of one: the micro value weighs images, the macro value weighs tasks."""
    logits = torch.tensor([[9.0, 0], [0, 1.0], [0, 1.0], [0, 1.0]])
    labels, scenario = torch.tensor([0, 0, 0, 1]), Scenario(range(2), 1, 1)
    exact, rounded = (task_metrics(logits, labels, scenario, 1, decimals) for decimals in (None, 2))
    assert exact["top1"] == 50
    assert exact["top1_macro"] == pytest.approx((100 / 3 + 100) / 2) and rounded["top1_macro"] == (33.33 + 100) / 2
    assert exact["old"] == pytest.approx(100 / 3) and rounded["old"] == 33.33


def test_macro_mean_is_over_tasks_not_over_groups_of_the_first_ones_size():
    """Tasks of one and two classes, 100 and 50; and a first task of a single class, which is no group of its own."""
    logits = torch.tensor([[9.0, 0, 1], [0, 3, 1], [0, 4, 1]])
    metrics = task_metrics(logits, torch.tensor([0, 1, 2]), Scenario(range(3), 1, 2), 1, decimals=None)
    assert metrics["top1_macro"] == 75
    first = task_metrics(logits[:1, :1], torch.tensor([0]), Scenario(range(3), 1, 2), 0, decimals=None)
    assert first["top1_macro"] == 100


def test_accuracy_by_task_and_forgetting():
    """Tasks of one and two classes; the first falls from 100 to 50, the second from its best, 75, to 25."""
    logits = torch.tensor([[9.0, 0, 1], [0, 3, 1], [0, 4, 1], [0, 1, 8], [0, 5, 1], [7, 5, 1]])
    labels, scenario = torch.tensor([0, 0, 1, 1, 2, 2]), Scenario(range(3), 1, 2)
    assert accuracy_by_task(logits, labels, scenario, 1) == [50, 25]
    assert accuracy_by_task(logits, labels, scenario, 0) == [50]
    assert forgetting_continuum([[100]])[-1] == 0
    assert forgetting_continuum([[100, nan, nan], [60, 75, nan], [50, 25, 90]])[-1] == 50
