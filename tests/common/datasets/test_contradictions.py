"""Lists and files of a data set that contradict each other, or the published ones, are told by name."""

import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
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
    assert "there are labels beyond the 196 classes, as -1. Get a complete copy" in told("StanfordCars", tmp_path)


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


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_a_title_with_the_class_of_another(tmp_path: Path, split: str) -> None:
    path = made(tmp_path, "OxfordPet") / f"oxford-iiit-pet/annotations/{split}.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    rows[0][1] = rows[1][1]
    path.write_text("\n".join(" ".join(row) for row in rows))
    number = 2 if split == "trainval" else 1  # the first row that contradicts one before
    assert f"{path}: not as published (line {number}: " in told("OxfordPet", tmp_path)


def test_an_image_of_food_under_another_key(tmp_path: Path) -> None:
    path = changed(made(tmp_path, "Food") / "food-101/meta/train.json", '["apple_pie/', '["baklava/')
    assert f"{path} lists baklava/1000000.jpg under 'apple_pie'." in told("Food", tmp_path)


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("EuroSAT", "eurosat/2750/Forest/Forest_1.jpg", "eurosat/2750/River/Forest_1.jpg"),
        ("ImageNet", "ImageNet/train/n01440764/n01440764_0.JPEG", "ImageNet/train/n01443537/n01440764_0.JPEG"),
        (
            "TinyImageNet",
            "tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG",
            "tiny-imagenet-200/train/n01629819/images/n01443537_0.JPEG",
        ),
    ],
)
def test_a_file_named_after_another_class(tmp_path: Path, name: str, old: str, new: str) -> None:
    made(tmp_path, name)
    shutil.copy(tmp_path / old, tmp_path / new)
    assert f"{name}: {tmp_path / new} has the name of another class." in told(name, tmp_path)


@pytest.mark.parametrize(
    "name, file, old, new, line",
    [
        ("OxfordPet", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_2 1", "# image class\nAbyssinian_2 1", 1),
        ("TinyImageNet", "tiny-imagenet-200/val/val_annotations.txt", "val_1.JPEG\t", "val_1.JPEG ", 2),
        ("TinyImageNet", "tiny-imagenet-200/val/val_annotations.txt", "val_2.JPEG\tn", "val_2.JPEG\tm", 3),
    ],
)
def test_a_line_that_is_not_as_published(tmp_path: Path, name: str, file: str, old: str, new: str, line: int) -> None:
    path = changed(made(tmp_path, name) / file, old, new)
    text = told(name, tmp_path)
    assert text.startswith(f"{name}: {path}: not as published (line {line}: '{new[:5]}") and "Error" not in text


def flat(root: Path) -> Path:
    """ImageNet's validation images in one folder, as the archive unpacks them, and Kaggle's list of their classes."""
    folder = made(root, "ImageNet") / "ImageNet"
    rows = ["ImageId,PredictionString"]
    for path in sorted(folder.glob("val/*/*")):
        rows.append(f"{path.stem},{path.parent.name} 1 2 3 4")
        path.rename(folder / "val" / path.name)
        path.parent.rmdir()
    (folder / "LOC_val_solution.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize(
    "old, new, phrase",
    [
        ("n01440764", "n99999999", "gives {val}/ILSVRC2012_val_00000001.JPEG no class of ImageNet"),
        ("val_00000002,", "val_00000001,", "LOC_val_solution.csv has ILSVRC2012_val_00000001 twice"),
        ("val_00000002,", "val_00000002;", "LOC_val_solution.csv: not as published (line 3: 'ILSVRC2012_val_00000002;"),
    ],
)
def test_a_ground_truth_that_contradicts_itself(tmp_path: Path, old: str, new: str, phrase: str) -> None:
    folder = flat(tmp_path)
    changed(folder / "LOC_val_solution.csv", old, new)
    for name in ("ImageNet", "ImageNet100"):
        assert phrase.format(val=folder / "val") in told(name, tmp_path)


def test_a_ground_truth_from_0(tmp_path: Path) -> None:
    folder = flat(tmp_path)
    wnids = [line.split(",")[1].split()[0] for line in (folder / "LOC_val_solution.csv").read_text().splitlines()[1:]]
    (folder / "LOC_val_solution.csv").unlink()
    synsets = np.array(list(enumerate(wnids, 1)), [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("\n".join(map(str, range(1, 1001))))
    assert load("ImageNet", tmp_path, verify=False).test.labels == [*range(1000)]
    path.write_text("\n".join(map(str, range(1000))))
    assert f"{path}: not as published (line 1: '0')" in told("ImageNet", tmp_path)


def test_an_empty_folder_of_validation_images_beside_the_full_one(tmp_path: Path) -> None:
    (made(tmp_path, "ImageNet") / "ImageNet/val_in_folder").mkdir()
    assert len(load("ImageNet", tmp_path, verify=False).test) == 1000


def test_validation_images_half_sorted(tmp_path: Path) -> None:
    val = made(tmp_path, "TinyImageNet") / "tiny-imagenet-200/val"
    for line in (val / "val_annotations.txt").read_text().splitlines()[:-1]:
        file, wnid = line.split("\t")[:2]
        (val / wnid).mkdir(exist_ok=True)
        (val / "images" / file).rename(val / wnid / file)
    assert "val_annotations.txt names 199 of 200 files that do not exist" in told("TinyImageNet", tmp_path)


def test_a_packed_file_under_an_unpacked_name(tmp_path: Path) -> None:
    path = made(tmp_path, "MNIST") / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes()))
    text = told("MNIST", tmp_path)
    assert text.startswith("MNIST: its files below") and "Error" not in text


# What lies beside the images


def test_litter_and_copies_beside_images(tmp_path: Path) -> None:
    folder = made(tmp_path, "EuroSAT") / "eurosat/2750"
    clean = load("EuroSAT", tmp_path, verify=False).fingerprint
    for name in ("#snapshot", "~snapshot", "@Recycle", "@tmp", "System Volume Information", "RECYCLER", "__pycache__"):
        (folder / name).mkdir()
    for name in ("Network Trash Folder", "Temporary Items"):
        (folder / name).mkdir()
    for copy in (" (copy)", " (another copy)", " - Kopie", " 2", ".jpg", ".sync-conflict-20240101-ABC"):
        shutil.copy(folder / "Forest/Forest_1.jpg", folder / f"Forest/Forest_1{copy}.jpg")
    assert load("EuroSAT", tmp_path, verify=False).fingerprint == clean


def test_names_in_capitals_tabs_and_dots(tmp_path: Path) -> None:
    for name in ("Caltech101", "CUB200", "DTD"):
        made(tmp_path, name)
    before = {name: load(name, tmp_path, verify=False) for name in ("Caltech101", "CUB200", "DTD")}
    for path in list((tmp_path / "caltech101").rglob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    images, train = tmp_path / "CUB_200_2011/images.txt", tmp_path / "dtd/dtd/labels/train1.txt"
    images.write_text(images.read_text().replace(" ", "\t"))
    train.write_text("".join(f"./{line}\n" for line in train.read_text().splitlines()))
    for name, data in before.items():
        again = load(name, tmp_path, verify=False)
        assert [path.lower() for path in again.train.paths] == [path.lower() for path in data.train.paths]


def test_a_link_to_a_sibling_hides_no_class(tmp_path: Path) -> None:
    folder = made(tmp_path, "SUN397") / "SUN397"
    clean = load("SUN397", tmp_path, verify=False).fingerprint
    (folder / "_all").symlink_to(folder / "a")
    (folder / "a/aaa").symlink_to(folder / "z/zoo")
    assert load("SUN397", tmp_path, verify=False).fingerprint == clean


# Arrays


@pytest.mark.parametrize(
    "field, value",
    [
        ("labels", [*range(9)]),
        ("labels", [0.5] * 10),
        ("data", np.ones((10, 3072))),
        ("data", np.ones((10, 32, 32, 3), np.uint8)),
    ],
)
def test_arrays_of_other_kinds_and_lengths(tmp_path: Path, field: str, value: object) -> None:
    path = made(tmp_path, "CIFAR10") / "cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | {field: value}))
    assert told("CIFAR10", tmp_path).startswith("CIFAR10: 10 images of ")


def test_fashion_under_the_name_of_digits(tmp_path: Path) -> None:
    raw = made(tmp_path, "MNIST") / "MNIST/raw"
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        number = count.to_bytes(4, "big")
        labels = bytes(range(10)) * (count // 10)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + number + labels)
        size = (28).to_bytes(4, "big")
        (raw / f"{split}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + number + size + size + bytes(count * 784))
    with pytest.raises(UserError, match="does not hold the published digits"):
        load("MNIST", tmp_path)
    assert len(load("MNIST", tmp_path, verify=False).train) == 60_000
