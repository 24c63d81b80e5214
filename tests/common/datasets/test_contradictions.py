"""Lists and files of a data set that contradict each other, or the published ones, are told by name."""

import shutil
from pathlib import Path

import pytest
from scipy.io import loadmat, savemat

from common.datasets import load
from common.errors import UserError
from tests import fake_data


def told(name: str, root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(name, root, verify=False, options=options)
    return str(caught.value)


def made(root: Path, name: str) -> Path:
    fake_data.write(root, [name])
    return root


def test_labels_from_0_in_a_test_list_are_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "StanfordCars") / "stanford_cars/cars_test_annos_withlabels.mat"
    rows = loadmat(path)["annotations"]
    for row in rows[0]:
        row["class"] = row["class"].astype(int) - 1
    savemat(path, {"annotations": rows})
    assert "there are labels beyond, as -1. Get a complete copy" in told("StanfordCars", tmp_path)


@pytest.mark.parametrize(
    "name, train, test",
    [
        ("DTD", "dtd/dtd/labels/train1.txt", "dtd/dtd/labels/test1.txt"),
        ("OxfordPet", "oxford-iiit-pet/annotations/trainval.txt", "oxford-iiit-pet/annotations/test.txt"),
        ("Food", "food-101/meta/train.json", "food-101/meta/test.json"),
    ],
)
def test_a_training_list_for_testing_is_refused(tmp_path: Path, name: str, train: str, test: str) -> None:
    made(tmp_path, name)
    shutil.copy(tmp_path / train, tmp_path / test)
    text = told(name, tmp_path)
    assert text.startswith(f"{name}: {tmp_path}") and ".jpg stands twice among the images" in text


def test_a_line_that_stands_twice_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "TinyImageNet") / "tiny-imagenet-200/train/n01443537"
    boxes = folder / "n01443537_boxes.txt"
    boxes.write_text(boxes.read_text().splitlines()[0] + "\n" + boxes.read_text())
    assert f"{folder}/images/n01443537_0.JPEG stands twice" in told("TinyImageNet", tmp_path)
