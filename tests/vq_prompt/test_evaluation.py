"""A test after a task and what common ground records of it, against every image by itself; six classes, three tasks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

from common.datasets.images import ImageSet
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.runs import Run
from vq_prompt.classifier import ClassStatistics
from vq_prompt.learner import Learner, evaluate, record_task
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network
from vq_prompt.repeat import Repeat

LABELS = [0, 3, 1, 2, 5, 4, 1, 0, 3, 3, 2, 5, 1, 1, 0, 4, 2]
POOL = {"size": 3, "length": 2, "tau": 1.0}


class Images(TensorDataset):
    labels = LABELS


def learner(folder: Path, pool: dict | None) -> Learner:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    network = Network(vit.eval(), 6, pool)
    images = Images(torch.randn(len(LABELS), 3, 32, 32), torch.tensor(LABELS))
    options = VQOptions(batch_size=3, dataset="CIFAR100", dataroot="nowhere")
    labels = {"paper": "vq_prompt", "method": "VQ-Prompt", "protocol": "common-cifar100-3x2", "seed": 0}
    data, scenario = ImageSet("CIFAR100", images, images, [], [], {}), Scenario(range(6), 2, 2)
    repeat = Repeat(options, Machine(torch.device("cpu")), 0, scenario, data, Run(folder, {}, labels), folder)
    gaussians = [ClassStatistics(torch.zeros(n, 16), torch.zeros(n, 16), torch.zeros(n)) for n in (2, 3)]
    return Learner(options, repeat, network, statistics=gaussians)


@torch.no_grad()
def test_among_all_classes_and_within_the_task(tmp_path: Path) -> None:
    tested = learner(tmp_path, POOL)
    found = evaluate(tested, 1)
    hits: dict[int, list[tuple[bool, bool]]] = {0: [], 1: []}
    for image, label in tested.repeat.test:
        logits, own = tested.network.last(tested.network(image[None])[0])[0], int(label) // 2
        if own < 2:
            within = 2 * own + int(logits[2 * own :][:2].argmax())
            hits[own].append((int(logits[:4].argmax()) == label, within == label))
    expected = [(*100 * np.mean(part, axis=0), len(part)) for part in hits.values()]
    assert found == [pytest.approx(part) for part in expected] and found[0][0] < found[0][1]


@pytest.mark.parametrize(("pool", "prompts", "stored"), [(POOL, 2 * (3 * 2 * 16 + 3 * 16), 2 * 5 * 16), (None, 0, 0)])
def test_numbers_of_common_ground(tmp_path: Path, pool: dict | None, prompts: int, stored: int) -> None:
    """The prompts and keys of two blocks; means and variances of five Gaussians, which are the classifier of NCM."""
    tested = learner(tmp_path, pool)
    for task in range(2):
        record_task(tested, task)
    values = {line["metric"]: line["value"] for line in tested.repeat.run.find(after_task=2, dataset="CIFAR100")}
    (first, first_within, n), (second, second_within, m) = evaluate(tested, 1)
    ((before, *_),) = evaluate(tested, 0)
    tower = sum(parameter.numel() for parameter in tested.network.feat.parameters())
    expected = {
        "accuracy": (n * first + m * second) / (n + m), "stored_floats": stored, "forgetting": before - first,
        "accuracy_with_task": (n * first_within + m * second_within) / (n + m),
        "total_parameters": tower + 6 * 16 + 6 + prompts,
    }  # fmt: skip
    assert {metric: values[metric] for metric in expected} == pytest.approx(expected)
    assert values["faa"] != pytest.approx(values["accuracy"])  # which is a mean over tasks
