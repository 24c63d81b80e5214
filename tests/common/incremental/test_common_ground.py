"""Common ground's class orders, names, rules and transforms, and the split that all its methods read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets.names import read_names
from common.errors import UserError
from common.incremental.common_ground import ORDER, SequenceOptions, class_order, common_rules
from common.incremental.scenario import Scenario, protocol, read_class_order
from common.incremental.sets import SETS, find, imagenet_r_split, load_incremental, vit_transforms
from common.options import check_rules
from common.protocols import Protocol
from tests import fake_data

CLASSES = {"cifar100": 100, "imagenet_r": 200, "cub200": 200, "tinyimagenet": 200, "characters": 40}
OPTIONS = SequenceOptions(class_order=ORDER, transforms="common", protocol="common")


@pytest.mark.parametrize("name", CLASSES)
def test_orders_follow_the_formula(name: str) -> None:
    for seed in range(3):
        count = CLASSES[name]
        expected = np.random.RandomState(seed).permutation(count).tolist() if seed else list(range(count))
        assert read_class_order(f"class_orders/common/{name}-seed{seed}.yaml") == expected
        assert class_order("class_orders/common/{dataset}-seed{seed}.yaml", SETS[name], seed) == expected


def test_an_order_of_another_number_of_classes() -> None:
    with pytest.raises(UserError, match="^the class order has 40 classes, the data set has 100. Give the order of"):
        class_order("class_orders/mini.yaml", SETS["cifar100"], 0)


@pytest.mark.parametrize("name", CLASSES)
def test_names(name: str) -> None:
    size = CLASSES[name] // 10
    found = protocol(SETS[name].label, Scenario(range(CLASSES[name]), size, size), kind="common")
    assert found == f"common-{name}-10x{size}" == str(Protocol.parse(found))
    assert Protocol.parse(found) == Protocol("common", name, 10, size) and Protocol.parse(found).length == 10
    at_once = Scenario(range(CLASSES[name]), CLASSES[name], size)
    found = protocol(SETS[name].label, at_once, kind="common")
    assert found == f"common-{name}" == str(Protocol.parse(found)) and Protocol.parse(found).length == 1
    assert protocol(SETS[name].label, at_once) == f"joint-{name}"


def tasks(name: str, seed: int, first: int = 0, step: int = 0) -> Scenario:
    order = read_class_order(f"class_orders/common/{name}-seed{seed}.yaml")
    return Scenario(order, first or len(order) // 10, step or len(order) // 10)


@pytest.mark.parametrize("name", CLASSES)
def test_what_it_takes(name: str) -> None:
    for seed in range(3):
        for scenario in (tasks(name, seed), tasks(name, seed, CLASSES[name])):  # ten tasks, and all classes at once
            check_rules(common_rules(OPTIONS, SETS[name], scenario, seed))


@pytest.mark.parametrize(
    ("name", "seed", "scenario", "message"),
    [
        (
            "cifar100",
            42,
            tasks("cifar100", 0),
            "CIFAR100 under seed 42 is not on common ground, which has characters, ",
        ),
        ("cifar10", 0, tasks("cifar100", 0), "CIFAR10 under seed 0 is not on common ground"),
        (
            "cifar100",
            0,
            tasks("cifar100", 1),
            "the classes are not in the seed's order. Give class_order=class_orders/",
        ),
        ("cifar100", 1, tasks("cifar100", 0), "the classes are not in the seed's order"),
        ("cub200", 1, tasks("cub200", 1, 10, 10), "20 tasks, of 10 classes, are neither ten equal ones nor"),
        ("cub200", 1, tasks("cub200", 1, 110, 10), "10 tasks, of 10 and 110 classes, are neither ten equal"),
        ("cub200", 1, tasks("cub200", 1, 100), "6 tasks, of 20 and 100 classes, are neither ten equal ones nor one."),
    ],
)
def test_tasks_that_the_name_would_not_tell(name: str, seed: int, scenario: Scenario, message: str) -> None:
    with pytest.raises(UserError, match="^protocol common: ") as caught:
        check_rules(common_rules(OPTIONS, SETS[name], scenario, seed))
    assert message in str(caught.value)
    check_rules(common_rules(replace(OPTIONS, protocol=None), SETS[name], scenario, seed))


def test_images_that_the_name_would_not_tell() -> None:
    data, scenario = SETS["imagenet_r"], tasks("imagenet_r", 2)
    for split in ("41", "folders", "elsewhere"):
        with pytest.raises(UserError, match="^protocol common: ImageNet-R is split by its lists, else by seed 40."):
            check_rules(common_rules(OPTIONS, data, scenario, 2, split))
    check_rules(common_rules(OPTIONS, data, scenario, 2, "40"))
    with pytest.raises(UserError, match="^protocol common: give transforms=common.$"):
        check_rules(common_rules(replace(OPTIONS, transforms=None), data, scenario, 2))


def test_imagenet_r_is_split_by_lists_or_by_the_rule(tmp_path: Path) -> None:
    assert imagenet_r_split(tmp_path) == 40 and imagenet_r_split(tmp_path, "7") == 7
    assert imagenet_r_split(tmp_path, "folders") == "folders"
    beside = tmp_path / "imagenet-r"
    assert imagenet_r_split(tmp_path, "lists") == str(beside)
    fake_data.imagenet_r(tmp_path)
    assert len(load_incremental("imagenet_r", tmp_path, verify=False).train) == 960  # 0.8 of 1,200
    fake_data.imagenet_r_lists(tmp_path)
    assert imagenet_r_split(tmp_path) == str(beside) and imagenet_r_split(tmp_path, "40") == 40
    data = load_incremental("imagenet_r", tmp_path, verify=False)
    assert len(data.train) == 400 and data.test is not None and len(data.test) == 200
    # the lists' labels run against the order of the ids, which is that of the names
    assert data.classnames == read_names("imagenet_r")[::-1]


@pytest.mark.parametrize("size", [(60, 40), (20, 31)])
def test_transforms(size: tuple[int, int]) -> None:
    """Test images in PIL's own bicubic resize; training images differ from the paper's by the normalisation alone."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, data = Image.fromarray(pixels), find("ImageNet_R", "data")

    def normalised(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([(values[channel] - mean[channel]) / std[channel] for channel in range(3)])

    shorter = min(size)
    width, height = (int(16 * length / shorter) for length in size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    expected = normalised(torch.from_numpy(resized[top : top + 16, left : left + 16]).permute(2, 0, 1))
    train, test = vit_transforms(data, 16, (mean, std))
    torch.testing.assert_close(test(image), expected, rtol=0, atol=1e-6)
    torch.manual_seed(1)
    augmented = train(image)
    torch.manual_seed(1)
    torch.testing.assert_close(augmented, normalised(vit_transforms(data, 16)[0](image)), rtol=0, atol=1e-6)
