"""Class orders, tasks, splits, transforms: the original's rules."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.datasets.transforms import clip_eval
from common.errors import UserError
from common.evaluation.metrics import over_repeats, vq_prompt_metrics
from common.incremental.sets import find
from common.incremental.tasks import stream_seed
from common.options import declared
from tests.golden_files import Golden
from vq_prompt.data import class_order, protocol_name, scenario, task_count
from vq_prompt.learner import transforms
from vq_prompt.it_prompt.learner import transforms as it_transforms
from vq_prompt.it_prompt.options import ITOptions
from vq_prompt.options import Options, VQOptions, checked
from vq_prompt.repeat import PURPOSES
from vq_prompt.report import as_yaml

ORDERS = Path(__file__).parents[3] / "shared" / "specs" / "class_orders"
FIRST = {  # of Python's shuffle
    (100, 1): [53, 37, 65, 51, 4], (100, 4): [73, 86, 82, 23, 1], (200, 1): [33, 146, 79, 19, 23],
    (200, 12): [82, 134, 185, 178, 11],
}  # fmt: skip


def test_class_orders_are_pythons_shuffle():
    assert class_order(10, 0) == list(range(10))
    for (classes, seed), first in FIRST.items():
        assert class_order(classes, seed)[:5] == first and sorted(class_order(classes, seed)) == list(range(classes))


@pytest.mark.parametrize("name, classes", [("cifar100", 100), ("imagenet_r", 200), ("cub200", 200)])
def test_class_orders_of_every_published_seed(name, classes):
    if not ORDERS.is_dir():
        pytest.skip("the published orders are not at hand")
    orders = yaml.safe_load((ORDERS / f"vq_{name}.yaml").read_text())["orders"]
    assert len(orders) >= 5
    for seed, order in orders.items():
        assert class_order(classes, int(seed)) == order


def options(**changes):
    return VQOptions(**{"dataset": "ImageNet_R", "first_split_size": 20, "other_split_size": 20} | changes)


def test_tasks_and_protocols():
    tasks = scenario(options(), 1)
    assert tasks.tasks[1] == range(20, 40) and list(tasks.class_order) == class_order(200, 1)
    assert list(scenario(options(rand_split=False), 1).class_order) == list(range(200))
    assert protocol_name(options(), tasks) == "cil-imagenet_r-10x20"
    assert protocol_name(options(dataset="CUB200"), tasks) == "cil-cub200-10x20"
    assert protocol_name(options(max_task=3), tasks) == "cil-imagenet_r-10x20-first3"
    assert protocol_name(options(max_task=10), tasks) == "cil-imagenet_r-10x20"
    joint = options(upper_bound_flag=True)
    assert protocol_name(joint, scenario(joint, 0)) == "joint-imagenet_r"
    probe = options(learner_name="LinearProbe", protocol="common")
    assert protocol_name(probe, scenario(probe, 0)) == "common-imagenet_r"
    assert task_count(options(max_task=30), tasks) == 10


def test_every_data_set_that_can_be_chosen_is_known():
    (choices,) = (item.spec.choices for item in declared(Options) if item.key == "dataset")
    assert all(find(name, "data").label == name for name in choices)


def test_streams_are_apart():
    keys = product(range(3), range(20), PURPOSES)
    streams = {stream_seed(*key, PURPOSES) for key in keys}
    assert len(streams) == 180


# Transforms


@pytest.mark.parametrize("name, dataset", [("cifar", "CIFAR100"), ("imr", "ImageNet_R"), ("cub", "CUB200")])
def test_test_transforms_are_the_official_ones(name, dataset):
    golden = Golden("vq_prompt/test_transforms")
    image = Image.fromarray(golden[f"{name}_image"].numpy())
    found = transforms(options(dataset=dataset), 224)[1](image)
    assert list(found.shape) == golden[f"{name}_full_shape"].tolist()
    torch.testing.assert_close(found[:, ::16, ::16], golden[f"{name}_sampled"], rtol=0, atol=1e-2)
    assert float(found.double().sum()) == pytest.approx(float(golden[f"{name}_sum"]), abs=1e-2 * found.numel())


def test_common_ground_normalises_as_the_vit_was_pre_trained():
    """0.5 and 0.5 for augreg's ViTs; test images in a bicubic resize to the input size, also those of ImageNet-R."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 48, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = torch.from_numpy((resized - 0.5) / 0.5).permute(2, 0, 1)
    common = {"dataset": "ImageNet_R", "transforms": "common"}
    prompts = ITOptions(backbone="vit_sup21k", **common)
    for found in (transforms(options(pretrained_weight="sup21k", **common), 32), it_transforms(prompts, 32)):
        torch.testing.assert_close(found[1](image), expected, rtol=0, atol=1e-6)
        assert -1 <= found[0](image).min() < -0.5
    assert torch.equal(it_transforms(ITOptions(**common), 32)[1](image), clip_eval(32)(image))


def test_normalised_once():
    with pytest.raises(UserError, match="^normalize_input: transforms common normalises, as the backbone was"):
        checked(options(transforms="common", normalize_input=True, ca_batch_size_ratio=4, batch_size=8))


def test_a_class_order_stands_above_the_papers(tmp_path):
    path = tmp_path / "order-2.yaml"
    path.write_text(f"class_order: {list(range(199, -1, -1))}\n")
    given = str(tmp_path / "order-{seed}.yaml")
    assert list(scenario(options(class_order=given), 2).class_order) == list(range(199, -1, -1))
    tiny = {"dataset": "TinyImageNet", "first_split_size": 20, "other_split_size": 20}
    assert scenario(ITOptions(**tiny), 2).class_order[:2] == (131, 181)  # IT-Prompt's own
    assert scenario(ITOptions(**tiny, class_order=given), 2).class_order[:2] == (199, 198)


# Metrics


def test_metrics_over_repeats_are_the_official_ones():
    golden = Golden("vq_prompt/metrics")
    found = [vq_prompt_metrics(golden["accuracy"][..., run].numpy()) for run in range(3)]
    history = as_yaml(np.stack([metrics.average for metrics in found], axis=-1))
    np.testing.assert_allclose(history["history"], golden["avg_acc_after_task"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(history["std"], golden["avg_acc_after_task"].numpy().std(axis=-1), rtol=0, atol=1e-9)
    forgetting = np.stack([metrics.forgetting for metrics in found], axis=-1)
    np.testing.assert_allclose(forgetting, golden["forgetting_after_task"], rtol=0, atol=1e-9)
    for name in ("faa", "caa", "ffm"):
        mean, spread = over_repeats([getattr(metrics, name) for metrics in found])
        assert mean == pytest.approx(float(golden[f"{name.upper()}_mean"]), abs=1e-9)
        assert spread == pytest.approx(float(golden[f"{name.upper()}_std"]), abs=1e-9)
