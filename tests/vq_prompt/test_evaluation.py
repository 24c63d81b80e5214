"""A test after a task and what common ground records of it, against every image by itself; six classes, three tasks.

And the bounds on those images' features.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

from common.datasets.images import ImageSet
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.runs import Run
from vq_prompt.classifier import ClassStatistics
from vq_prompt.learner import Learner, evaluate, learn_task, method_name, read_task, record_task
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network
from vq_prompt.repeat import Repeat

LABELS = [0, 3, 1, 2, 5, 4, 1, 0, 3, 3, 2, 5, 1, 1, 0, 4, 2]
POOL = {"size": 3, "length": 2, "tau": 1.0}


class Images(TensorDataset):
    labels, transform = LABELS, None


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


def bound(folder: Path, name: str) -> Learner:
    one = learner(folder, None)
    size = 6 if name == "LinearProbe" else 2
    repeat = replace(one.repeat, scenario=Scenario([3, 1, 4, 0, 5, 2], size, size))
    return replace(one, options=replace(one.options, learner_name=name), repeat=repeat, statistics=[])


def features_of(tested: Learner) -> tuple[np.ndarray, np.ndarray]:
    """Each image by itself, its label its place in the order."""
    with torch.no_grad():
        z = [tested.network.feat(image[None])[0].double().numpy() for image, _ in tested.repeat.data.train]
    return np.stack(z), np.array([[3, 1, 4, 0, 5, 2].index(label) for label in LABELS])


def test_the_joint_linear_probe(tmp_path: Path) -> None:
    """Logistic regression on the features of all images: CLIP's, by its paper and README; read again, not fitted again."""
    probed = bound(tmp_path, "LinearProbe")
    learn_task(probed, 0)
    z, labels = features_of(probed)
    expected = LogisticRegression(C=0.316, max_iter=1000, solver="lbfgs").fit(z, labels)
    with torch.no_grad():
        logits = probed.network.last(torch.from_numpy(z).float()).numpy()
    np.testing.assert_allclose(logits, expected.decision_function(z), atol=1e-4)
    record_task(probed, 0)
    values = {line["metric"]: line["value"] for line in probed.repeat.run.find(after_task=1, dataset="CIFAR100")}
    assert values["accuracy"] == pytest.approx(100 * expected.score(z, labels)) and values["stored_floats"] == 0
    assert values["trainable_parameters"] == 6 * 16 + 6 and values["train_seconds"] > 0
    again = bound(tmp_path, "LinearProbe")
    read_task(again, 0)
    assert torch.equal(again.network.last.weight, probed.network.last.weight) and again.statistics == []
    assert method_name(probed.options) == "Joint linear probe"


def test_the_nearest_class_mean_takes_a_pass(tmp_path: Path) -> None:
    nearest = bound(tmp_path, "NCM")
    for task in range(2):
        learn_task(nearest, task)
    z, labels = features_of(nearest)
    means = np.stack([z[labels == label].mean(axis=0) for label in range(4)])
    np.testing.assert_allclose(nearest.network.last.weight.detach().numpy()[:4], means, atol=1e-5)
    values = {line["metric"]: line["value"] for line in nearest.repeat.run.find(after_task=2, dataset="CIFAR100")}
    assert values["train_seconds"] > 0 and (values["seconds_per_batch"], values["trainable_parameters"]) == (0, 0)
