"""The same loaders on real files: cut copies beside the repository; skipped where they are absent."""

from pathlib import Path

import numpy as np
import pytest

from common.datasets import captioned_images, captions, load
from common.datasets.check import inspect
from common.datasets.names import read_names
from common.datasets.reference import tiny_imagenet
from common.datasets.transforms import clip_eval
from common.errors import UserError
from common.incremental.scenario import Scenario, read_class_order, task_subset
from common.incremental.sets import load_incremental
from tests import fake_data

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the small real data is not here")


def test_mnist() -> None:
    data = load("MNIST", DATA / "mnist", verify=False)
    assert (len(data.train), len(data.test)) == (1750, 10000)
    assert data.train.labels[:8] == [5, 0, 4, 1, 9, 2, 1, 3]
    assert data.train[0][0].size == (28, 28) and data.train[0][0].mode == "RGB"
    status = inspect("MNIST", DATA / "mnist", verify=True)
    assert status.found == "partial" and (status.train, status.test, status.classes) == (1750, 10000, 10)
    with pytest.raises(UserError, match="1,750 train and 10,000 test images instead of .* 60,000 and 10,000"):
        load("MNIST", DATA / "mnist")


def test_cifar10() -> None:
    data = load("CIFAR10", DATA / "cifar10", verify=False)
    assert (len(data.train), len(data.test)) == (1500, 1017)
    assert data.test.labels[:10] == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert data.classnames == read_names("cifar10")
    assert np.asarray(data.test[0][0]).shape == (32, 32, 3)
    with pytest.raises(UserError, match="is not the published file .checksum.*--no-verify"):
        load("CIFAR10", DATA / "cifar10")


def test_cifar100() -> None:
    data = load("CIFAR100", DATA / "cifar100", eval_transform=clip_eval(32), verify=False)
    assert (len(data.train), len(data.test)) == (486, 916)
    assert data.test.labels[:10] == [49, 33, 72, 51, 71, 92, 15, 14, 23, 0]
    assert data.classnames[49] == "mountain" and data.classnames[1] == "aquarium fish"
    assert data.test[0][0].shape == (3, 32, 32)
    assert inspect("CIFAR100", DATA / "cifar100").problems == [
        f"CIFAR100: {DATA / 'cifar100/cifar-100-python/train'} is not the published file (checksum). "
        "Download it again, or take it as it is with --no-verify (verify=False)."
    ]


def test_tinyimagenet_sorted_and_in_file_order() -> None:
    chooser = load("TinyImagenet", DATA / "tinyimagenet", verify=False)
    assert (len(chooser.train), len(chooser.test)) == (4000, 2000)
    assert chooser.classnames == [] and chooser.templates == []
    assert Path(chooser.train.paths[0]).name == "n01443537_0.JPEG"  # the smallest wnid
    incremental = tiny_imagenet(DATA / "tinyimagenet", verify=False)
    assert Path(incremental.train.paths[20]).name == "n04067472_0.JPEG"  # line 1 of wnids.txt
    assert incremental.classnames[incremental.test.labels[1]] == "fishing casting reel"  # val_1 is n04067472
    assert sorted(incremental.train.paths) == sorted(chooser.train.paths)
    modes = {chooser.train[i][0].mode for i in range(0, 4000, 7)}
    assert modes == {"RGB"}  # about 2 % of the files are grayscale


def test_imagenet_one_image_a_class() -> None:
    data = load("ImageNet", DATA / "imagenet", verify=False)
    assert data.train.labels == list(range(1000)) and data.test is None
    assert Path(data.train.paths[0]).parent.name == "n01440764" and data.classnames[0] == "tench"
    assert Path(data.train.paths[340]).parent.name == "n02391049" and data.classnames[340] == "zebra"
    assert data.train[340][0].mode == "RGB"


def test_incremental_sets_in_the_originals_folders() -> None:
    cifar = load_incremental("cifar100", DATA, verify=False)
    scenario = Scenario(read_class_order("class_orders/cifar100.yaml"), 10, 10)
    names = scenario.classnames(cifar.classnames)
    assert names[:4] == ["television", "apple", "oak_tree", "pickup_truck"]
    parts = [task_subset(cifar.test, scenario, t) for t in range(10)]
    assert sorted(index for part in parts for index in part.indices) == list(range(916))
    for index, new in zip(parts[3].indices, parts[3].labels):
        assert names[new] == cifar.classnames[cifar.test.labels[index]]
    tiny = load_incremental("tinyimagenet", DATA, verify=False)
    scenario = Scenario(read_class_order("class_orders/tinyimagenet.yaml"), 100, 20)
    assert [len(task_subset(tiny.train, scenario, t)) for t in range(6)] == [2000, 400, 400, 400, 400, 400]


def test_imagenet100_of_the_real_wnids(tmp_path: Path) -> None:
    folder = tmp_path / "ImageNet"
    folder.mkdir()
    for split in ("train", "val"):  # there is no validation image in the copy
        (folder / split).symlink_to(DATA / "imagenet" / "ImageNet" / "train")
    data, whole = (load(name, tmp_path, verify=False) for name in ("ImageNet100", "ImageNet1000"))
    assert data.train.paths == whole.train.paths[:100] and data.train.labels == whole.train.labels[:100]
    assert data.classnames == whole.classnames[:100] and len(data.test) == 100


def test_conceptual_captions_tsv() -> None:
    sentences = captions(DATA / "conceptual_captions")
    lines = (
        (DATA / "conceptual_captions" / "Validation_GCC-1.1.0-Validation.tsv").read_text().split("\n")[:-1]
    )
    assert sentences == [line.split("\t")[0] for line in lines]
    assert len(sentences) == 15833 and len(sentences) - len(set(sentences)) == 290
    status = inspect("ConceptualCaptions", DATA / "conceptual_captions", verify=True)
    assert status.found == "yes" and status.train == 15833


def test_captions_of_the_gather_script() -> None:
    sentences = captions(DATA / "cc_pairs")
    assert len(sentences) == 32
    assert sentences[0].startswith("This is the best recipe I have ever tried for Cuban bread.")
    status = inspect("ConceptualCaptions", DATA / "cc_pairs")
    assert status.found == "yes" and "the .tsv has all" in status.notes[0]
    pairs = captioned_images(DATA / "cc_pairs", clip_eval(32))
    assert pairs.classnames == sentences and len(pairs.train) == 32
    assert pairs.train.paths[0].endswith("cc_data/val/1/1.jpg") and pairs.train[31][0].shape == (3, 32, 32)


def test_flowers_label_files_pass_their_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for file in ("imagelabels.mat", "setid.mat"):
        (folder / file).symlink_to(DATA / "flowers" / "flowers-102" / file)
    status = inspect("Flowers", tmp_path, verify=True)
    assert (status.found, status.train, status.test, status.classes) == ("partial", 0, 0, 102)
    assert "7,169 listed images do not exist" in status.problems[0]
    for number in range(1, 8190):
        (folder / "jpg" / f"image_{number:05d}.jpg").write_bytes(b"x")
    data = load("Flowers", tmp_path)
    assert (len(data.train), len(data.test)) == (1020, 6149)
    assert sorted(set(data.train.labels)) == list(range(102))
    assert inspect("Flowers", tmp_path).found == "yes"


def test_stanford_cars_devkit(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["StanfordCars"])
    for file in ("cars_meta.mat", "cars_train_annos.mat"):
        target = tmp_path / "stanford_cars" / "devkit" / file
        target.unlink()
        target.symlink_to(DATA / "stanford_cars" / "stanford_cars" / "devkit" / file)
    data = load("StanfordCars", tmp_path, verify=False)
    assert len(data.train) == 8144 and sorted(set(data.train.labels)) == list(range(196))
    assert data.train.labels[:2] == [13, 2] and Path(data.train.paths[0]).name == "00001.jpg"
    assert data.classnames == read_names("stanford_cars")
    assert inspect("StanfordCars", tmp_path, verify=False).found == "partial"
