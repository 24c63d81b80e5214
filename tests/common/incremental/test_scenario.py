"""Class-incremental tasks: the split of continuum, class orders, the sets of the CIL protocols."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import load
from common.datasets.imagenet_incremental import imagenet100
from common.datasets.images import ImageArrays
from common.datasets.names import read_names
from common.datasets.transforms import clip_eval_pixels, clip_train
from common.errors import UserError
from common.evaluation.pixels import decode
from common.incremental.scenario import Scenario, protocol, read_class_order, seen_rows, seen_subset, task_subset
from common.incremental.sets import SETS, load_incremental, require_incremental
from common.training.batches import Batches
from tests import fake_data
from tests.golden_files import Golden

SCENARIO = Golden("zscl_cil/scenario")
SHIPPED = {  # file: (classes, md5 of the numbers with spaces between them, first ten)
    "cifar100": (100, "a68c20baf326cc7ac184c974cbd0d6b2", [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]),
    "tinyimagenet": (200, "bcc86e4cb8b4f3de1f37888ee9b1637a", [131, 181, 22, 172, 144, 92, 97, 187, 58, 93]),
    "imagenet100": (100, "6d7dfe1e12ead6ab2aad6090040f3351", [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]),
    "imagenet1000": (1000, "573d32a35395b21b12ad185a5dde4c00", [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]),
    "mini": (40, "d90a1ba2bb96d296e75b346be79169e2", None),
}


def coloured(labels: list[int], transform: object = None) -> ImageArrays:
    """Image i is filled with the value i."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ImageArrays(np.broadcast_to(pixels, (len(labels), 4, 4, 3)), labels, transform)


def case(number: int) -> tuple[Scenario, dict[str, torch.Tensor], int]:
    sizes = SCENARIO.meta["cases"][number]
    arrays = SCENARIO.under(f"c{number}/")
    scenario = Scenario(arrays["class_order"].tolist(), sizes["B"], sizes["I"])
    return scenario, arrays, sizes["n_tasks"]


@pytest.mark.parametrize("number", range(len(SCENARIO.meta["cases"])))
def test_split_of_continuum(number: int) -> None:
    scenario, arrays, n_tasks = case(number)
    labels = arrays["y"].tolist()
    remapped = scenario.remap(labels)
    assert remapped.tolist() == arrays["y_remapped"].tolist()
    assert scenario.task_ids(remapped).tolist() == arrays["task"].tolist()
    assert len(scenario.tasks) == n_tasks
    names = scenario.classnames([f"class {label}" for label in range(len(scenario.class_order))])
    dataset = coloured(labels)
    for t, task in enumerate(scenario.tasks):
        class_ids = arrays[f"class_ids_task{t}"].tolist()
        assert [scenario.class_order[new] for new in task] == class_ids
        assert [names[new] for new in task] == [f"class {label}" for label in class_ids]
        subset = task_subset(dataset, scenario, t)
        indices = arrays[f"sample_index_task{t}"].tolist()
        assert subset.indices == indices and len(subset) == len(indices)
        assert subset.labels == arrays["y_remapped"][indices].tolist()


@pytest.mark.parametrize("number", range(len(SCENARIO.meta["cases"])))
def test_seen_samples_keep_the_order_of_the_data_set(number: int) -> None:
    """scenario[:t + 1] of continuum is one pass over the set, not task after task."""
    scenario, arrays, n_tasks = case(number)
    dataset = coloured(arrays["y"].tolist())
    for t in range(n_tasks):
        subset = seen_subset(dataset, scenario, t)
        assert subset.indices == torch.where(arrays["task"] <= t)[0].tolist()
        assert subset.labels == arrays["y_remapped"][subset.indices].tolist()
        assert scenario.seen(t) == sum(len(arrays[f"class_ids_task{k}"]) for k in range(t + 1))
    assert seen_subset(dataset, scenario, -1).indices == list(range(len(dataset)))


def test_samples_are_image_and_new_label_under_the_sets_transform() -> None:
    dataset = coloured([2, 0, 1, 2], clip_eval_pixels(4))
    subset = task_subset(dataset, Scenario([2, 1, 0], 1, 1), 0)
    assert subset.transform is dataset.transform
    items = [subset[i] for i in range(len(subset))]
    assert [(int(image[0, 0, 0]), label) for image, label in items] == [(0, 0), (3, 0)]
    assert type(items[0][1]) is int and type(subset.labels[0]) is int
    assert isinstance(task_subset(coloured([0]), Scenario([0], 1, 1), 0)[0][0], Image.Image)


def test_training_batches_take_a_task() -> None:
    scenario = Scenario([3, 1, 2, 0], 2, 1)
    subset = task_subset(coloured([0, 1, 2, 3] * 5, clip_eval_pixels(4)), scenario, 0)
    batches = Batches(subset, 4, seed=1)
    pairs = [(int(pixel), int(label)) for step in range(3) for pixel, label in _first_pixels(*batches[step])]
    assert sorted(pairs) == sorted((index, {3: 0, 1: 1}[index % 4]) for index in range(20) if index % 4 in (1, 3))


def _first_pixels(images: torch.Tensor, labels: torch.Tensor) -> zip:
    return zip(images[:, 0, 0, 0], labels)


def test_rows_of_the_set_decoded_once_are_the_test_set_of_every_task() -> None:
    labels = np.random.default_rng(0).integers(8, size=60).tolist()
    dataset, scenario = coloured(labels, clip_eval_pixels(4)), Scenario([5, 2, 7, 0, 1, 3, 6, 4], 4, 2)
    pixels, new_labels = decode(seen_subset(dataset, scenario, -1), "all", 16)
    for t in range(3):
        rows = seen_rows(new_labels, scenario, t)
        expected = decode(seen_subset(dataset, scenario, t), "seen", 7)
        assert torch.equal(pixels[rows], expected[0]) and torch.equal(new_labels[rows], expected[1])


def test_one_task_of_all_classes() -> None:
    scenario = Scenario(range(5), 5, 5)
    assert scenario.tasks == [range(5)] and scenario.seen(0) == 5


@pytest.mark.parametrize(
    "order, first, step, message",
    [
        ([], 1, 1, "a class order is a list of class numbers"),
        ([0, "1"], 1, 1, "a list of class numbers, not of '1'"),
        ([0, 1.0], 1, 1, "a list of class numbers, not of 1.0"),
        ([0, 1, 3], 1, 1, "has 3 entries, which must be 0 to 2; 3 is not"),
        ([0, -1, 1], 1, 1, "0 to 2; -1 is not"),
        ([0, 1, 1, 3], 1, 1, "names 1 more than once and never 2"),
        (range(10), 0, 1, "initial_increment 0: the class order has 10 classes; give 1 to 10"),
        (range(10), 11, 1, "initial_increment 11"),
        (range(10), 4, 4, "increment 4 does not divide the 6 classes that follow the first 4 of 10"),
        (range(10), 4, 0, "increment 0 does not divide"),
        (range(10), 4, -2, "increment -2 does not divide"),
    ],
)
def test_a_split_that_can_not_be(order: list, first: int, step: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Scenario(order, first, step)
    assert message in str(caught.value)


def test_an_order_of_another_data_set() -> None:
    scenario = Scenario(range(4), 2, 2)
    with pytest.raises(UserError, match="has 4 classes, the data set has labels from 0 to 4"):
        task_subset(coloured([0, 1, 4]), scenario, 0)
    with pytest.raises(UserError, match="has 4 classes, the data set has 5"):
        scenario.classnames(["a", "b", "c", "d", "e"])


@pytest.mark.parametrize(
    "first, step, name",
    [
        (10, 10, "cil-cifar100-10x10"),
        (5, 5, "cil-cifar100-20x5"),
        (2, 2, "cil-cifar100-50x2"),
        (50, 5, "cil-cifar100-50+10x5"),
        (100, 100, "joint-cifar100"),
    ],
)
def test_protocol_names(first: int, step: int, name: str) -> None:
    assert protocol("CIFAR100", Scenario(range(100), first, step)) == name


# Class orders


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_orders(name: str) -> None:
    classes, md5, first = SHIPPED[name]
    order = read_class_order(f"class_orders/{name}.yaml")
    assert sorted(order) == list(range(classes))
    assert first is None or order[:10] == first
    assert hashlib.md5(" ".join(map(str, order)).encode()).hexdigest() == md5


@pytest.mark.parametrize("name", ["imagenet100", "mini"])
def test_orders_drawn_with_seed_1993(name: str) -> None:
    order = read_class_order(f"class_orders/{name}.yaml")
    assert order == np.random.RandomState(1993).permutation(len(order)).tolist()


def test_a_users_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("class_order: [2, 0, 1]\n")
    assert read_class_order(path) == [2, 0, 1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[2, 0, 1]", "has no list under the key class_order"),
        ("class_order: 3", "has no list under the key class_order"),
        ("class_order: [1, 2", "not YAML"),
        (None, "No such file or directory. Give a YAML file with a list class_order, or one of class_orders/cifar100"),
    ],
)
def test_an_order_that_can_not_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "cifar100.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_class_order(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


# The sets of the protocols


def test_every_protocol_set_with_its_template(fake_root: Path) -> None:
    for key, entry in ((key, entry) for key, entry in SETS.items() if entry.template):
        data = load_incremental(key, fake_root, verify=False)
        assert data.name == entry.reader
        kind = "good" if key.startswith("imagenet") else "bad"
        assert data.templates == [f"a {kind} photo of a {{}}."]
        scenario = Scenario(read_class_order(f"class_orders/{key}.yaml"), 50, 50)
        assert len(scenario.classnames(data.classnames)) == max(data.test.labels) + 1
        assert len(task_subset(data.train, scenario, 0)) > 0


def test_cifar100_keeps_its_underscores(fake_root: Path) -> None:
    names = load_incremental("cifar100", fake_root, verify=False).classnames
    assert [name for name in names if "_" in name] == [
        "aquarium_fish", "lawn_mower", "maple_tree", "oak_tree", "palm_tree", "pickup_truck", "pine_tree",
        "sweet_pepper", "willow_tree",
    ]  # fmt: skip
    assert [name.replace("_", " ") for name in names] == load("CIFAR100", fake_root, verify=False).classnames


def test_the_originals_folders_or_ours(fake_root: Path, tmp_path: Path) -> None:
    fake_data.cifar100(tmp_path / "cifar100")
    fake_data.tiny_imagenet(tmp_path / "tinyimagenet")
    (tmp_path / "imagenet1000").symlink_to(fake_root / "ImageNet")
    for key in ("cifar100", "tinyimagenet", "imagenet1000"):
        there, here = (load_incremental(key, root, verify=False) for root in (tmp_path, fake_root))
        assert len(there.train) == len(here.train) and there.test.labels == here.test.labels
        require_incremental(key, tmp_path, verify=False)
    assert Path(load_incremental("imagenet1000", tmp_path, verify=False).train.paths[0]).parts[-4] == "imagenet1000"


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 1 data sets are missing.*\n.*CIFAR100"):
        require_incremental("cifar100", tmp_path)
    with pytest.raises(UserError, match="unknown data set 'cifar'. Did you mean CIFAR10"):
        require_incremental("cifar", tmp_path)


def test_other_sets_come_as_they_are(fake_root: Path) -> None:
    data = load_incremental("CIFAR10", fake_root, clip_train(8), verify=False)
    assert data.templates == load("CIFAR10", fake_root, verify=False).templates and data.train[0][0].shape == (3, 8, 8)


def test_the_miniature_whatever_the_name() -> None:
    data = load_incremental("imagenet_r", "mini")
    require_incremental("imagenet_r", "mini")
    scenario = Scenario(read_class_order("class_orders/mini.yaml"), 4, 4)
    assert len(scenario.tasks) == 10 and len(scenario.classnames(data.classnames)) == 40
    assert data.templates[0] == "a photo of the {}."
    sizes = [len(task_subset(data.train, scenario, t)) for t in range(10)]
    assert sizes == [200] * 10 and len(seen_subset(data.test, scenario, 4)) == 300


def test_miniature_lacks_other_sets() -> None:
    with pytest.raises(UserError, match="the miniature has nothing for ImageNet100; it stands for Aircraft"):
        load("ImageNet100", "mini")


# ImageNet100


def test_imagenet100_is_rebuilt_from_the_wnids(fake_root: Path) -> None:
    data = load("ImageNet100", fake_root, verify=False)
    wnids = read_names("imagenet100_wnids")
    assert wnids == sorted(wnids) and (wnids[0], wnids[-1], len(set(wnids))) == ("n01440764", "n01855672", 100)
    for part in (data.train, data.test):
        assert [Path(path).parent.name for path in part.paths] == wnids and part.labels == list(range(100))
    assert (data.classnames[0], data.classnames[99]) == ("tench", "goose")


def test_imagenet100_from_subset_lists(fake_root: Path, tmp_path: Path) -> None:
    fake_data.imagenet100_lists(tmp_path)
    rebuilt = load("ImageNet100", fake_root, verify=False)
    listed = load_incremental("imagenet100", fake_root, verify=False, imagenet100_lists=tmp_path)
    require_incremental("imagenet100", fake_root, False, tmp_path)
    assert listed.train.paths == rebuilt.train.paths[::-1] and listed.train.labels == rebuilt.train.labels[::-1]
    assert listed.test.paths == rebuilt.test.paths
    (tmp_path / "train_100.txt").unlink()  # only val_100.txt was released
    assert load("ImageNet100", fake_root, verify=False, options={"lists": tmp_path}).train.paths == rebuilt.train.paths
    (tmp_path / "val_100.txt").unlink()
    with pytest.raises(UserError, match="holds neither train_100.txt nor val_100.txt"):
        load("ImageNet100", fake_root, verify=False, options={"lists": tmp_path})


@pytest.mark.parametrize("line", ["val/n01440764/a.JPEG 1", "val/n01440764/a.JPEG", "val/n01440764/a.JPEG 100"])
def test_a_list_of_other_classes(fake_root: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "val_100.txt").write_text(f"val/n01440764/b.JPEG 0\n{line}\n")
    with pytest.raises(UserError, match="val_100.txt, line 2 .*expected <split>/<wnid>/<file> <label>"):
        load("ImageNet100", fake_root, verify=False, options={"lists": tmp_path})


def test_listed_images_that_do_not_exist(fake_root: Path, tmp_path: Path) -> None:
    (tmp_path / "val_100.txt").write_text("val/n01440764/none.JPEG 0\n")
    with pytest.raises(UserError, match="1 listed images do not exist"):
        require_incremental("imagenet100", fake_root, False, tmp_path)


def test_missing_wnids_are_listed(tmp_path: Path) -> None:
    fake_data.imagenet(tmp_path)
    for wnid in ("n01443537", "n01855672"):
        shutil.rmtree(tmp_path / "ImageNet" / "train" / wnid)
    with pytest.raises(UserError, match="lacks 2 of 100 classes: n01443537, n01855672"):
        imagenet100(tmp_path, verify=False)
    shutil.rmtree(tmp_path / "ImageNet" / "val")
    with pytest.raises(UserError, match="ImageNet/train lacks"):
        imagenet100(tmp_path, verify=False)
    fake_data.imagenet(tmp_path)
    shutil.rmtree(tmp_path / "ImageNet" / "val")
    for name in ("ImageNet100", "ImageNet1000"):
        with pytest.raises(UserError, match="ImageNet.*val"):
            load(name, tmp_path, verify=False)


def test_imagenet100_counts(fake_root: Path) -> None:
    """The training images are counted nowhere in print, the 5,000 test images are."""
    with pytest.raises(UserError, match="100 train and 100 test images instead of the published 100 and 5,000"):
        load("ImageNet100", fake_root)
