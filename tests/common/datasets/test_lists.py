"""Lists that came through other systems, name files elsewhere, or lack; validation images in other layouts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import savemat

from common.datasets import captioned_images, load
from common.datasets.check import inspect
from common.datasets.images import ImageArrays, ImageFiles, ImageSet, fingerprint
from common.datasets.loading import count_problem
from common.datasets.names import read_names
from common.errors import UserError
from tests import fake_data

TEXT_LISTS = {
    "Aircraft": ("fgvc-aircraft-2013b/data/images_variant_train.txt", "fgvc-aircraft-2013b/data/variants.txt"),
    "DTD": ("dtd/dtd/labels/train1.txt",),
    "OxfordPet": ("oxford-iiit-pet/annotations/trainval.txt",),
    "SUN397": ("SUN397/ClassName.txt",),
    "CUB200": ("CUB_200_2011/images.txt", "CUB_200_2011/train_test_split.txt"),
    "TinyImageNet": (
        "tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/val/val_annotations.txt",
        "tiny-imagenet-200/train/n01443537/n01443537_boxes.txt",
    ),
}  # fmt: skip


def told(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def pairs(root: Path, name: str, **options: object) -> list[tuple[str, int]]:
    data = load(name, root, verify=False, options=options)
    return [pair for part in (data.train, data.test) for pair in zip(part.paths, part.labels)]


def through_windows(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \r\n")


@pytest.mark.parametrize("name", TEXT_LISTS)
def test_windows_lines_byte_order_mark_and_blank_lines(tmp_path: Path, name: str) -> None:
    fake_data.write(tmp_path, [name])
    clean = pairs(tmp_path, name)
    for file in TEXT_LISTS[name]:
        through_windows(tmp_path / file)
    assert pairs(tmp_path, name) == clean


def test_windows_lines_in_lists_beside_the_images(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["ImageNetR", "DomainNet", "Food"])
    fake_data.imagenet_r_lists(tmp_path, test="imagenet-r_test.txt")
    folder = tmp_path / "imagenet-r"
    clean = pairs(tmp_path, "ImageNetR", split=folder), pairs(tmp_path, "DomainNet"), pairs(tmp_path, "Food")
    for list_of in (folder / "imagenet-r_train.yaml", folder / "imagenet-r_test.txt"):
        through_windows(list_of)
    through_windows(tmp_path / "domainnet/domainnet_train.yaml")
    through_windows(tmp_path / "food-101/meta/train.json")
    assert (pairs(tmp_path, "ImageNetR", split=folder), pairs(tmp_path, "DomainNet"), pairs(tmp_path, "Food")) == clean


def change_first(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


LEADING_OUT = [  # data set, list, first entry, what it becomes, options of the reader
    ("DTD", "dtd/dtd/labels/train1.txt", "banded/banded_0001.jpg", "banded/../../../../../out/x.jpg", {}),
    ("Food", "food-101/meta/train.json", "apple_pie/1000000", "apple_pie/../../../../out/x", {}),
    ("OxfordPet", "oxford-iiit-pet/annotations/trainval.txt", "Abyssinian_1 ", "../../../out/x/Abyssinian_1 ", {}),
    ("Aircraft", "fgvc-aircraft-2013b/data/images_variant_train.txt", "0034310 ", "{out}/x ", {}),
    ("CUB200", "CUB_200_2011/images.txt", "001.Made_up_Bird0/Made_Up_Bird0_0000_1.jpg", "../../../out/x.jpg", {}),
    ("DomainNet", "domainnet/domainnet_train.yaml", "data/domainnet/clipart", "{out}/clipart", {}),
    ("ImageNetR", "imagenet-r/imagenet-r_train.txt", "n01443537/art_0.jpg", "../../out/x.jpg", {"split": "imagenet-r"}),
    ("ImageNetR", "imagenet-r/imagenet-r_train.txt", "n01443537", "{out}/n01443537", {"split": "imagenet-r"}),
    ("ImageNet100", "val_100.txt", "val/n01440764", "../../out/n01440764", {"lists": "."}),
    ("TinyImageNet", "tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG", "../../../../out/x.jpg", {}),
]


@pytest.mark.parametrize("name, file, entry, other, options", LEADING_OUT)
def test_lists_that_lead_out_of_the_folder(
    tmp_path: Path, name: str, file: str, entry: str, other: str, options: dict[str, str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    fake_data.write(root, [name])
    for place in (out, out / "n01440764"):
        place.mkdir()
        for image in ("x.jpg", "ILSVRC2012_val_00000001.JPEG"):
            (place / image).write_bytes(fake_data.jpeg(0, 1))
    if name == "ImageNetR":
        fake_data.imagenet_r_lists(root, "imagenet-r_train.txt", "imagenet-r_test.txt")
    if name == "ImageNet100":
        fake_data.imagenet100_lists(root)
    change_first(root / file, entry, other.format(out=out))
    given = {key: root / value for key, value in options.items()}
    text = told(lambda: load(name, root, verify=False, options=given))
    assert "which is not below" in text and ("out/x" in text or "out/n0" in text or "out/clipart" in text)


def test_captions_of_images_elsewhere(tmp_path: Path) -> None:
    fake_data.gathered_captions(tmp_path / "data")
    (tmp_path / "x.jpg").write_bytes(fake_data.jpeg(0, 1))
    csv = tmp_path / "data/Validation_GCC-1.1.0-Validation_output.csv"
    change_first(csv, "cc_data/val/1/1.jpg", "../x.jpg")
    assert "names ../x.jpg, which is not below" in told(lambda: captioned_images(tmp_path / "data"))


def test_a_folder_number_that_is_not_the_class(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["CUB200"])
    change_first(tmp_path / "CUB_200_2011/images.txt", "001.Made_up_Bird0", "002.Made_up_Bird0")
    text = told(lambda: load("CUB200", tmp_path, verify=False))
    assert "has image 1 in the folder 002.Made_up_Bird0, whose number is not its class 1" in text


def test_two_labels_of_one_class_folder(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["DomainNet"])
    for folder in tmp_path.glob("domainnet/*/thing_7"):
        shutil.copytree(folder, folder.with_name("thing_8"), dirs_exist_ok=True)
    for split in ("train", "test"):
        path = tmp_path / f"domainnet/domainnet_{split}.yaml"
        content = yaml.safe_load(path.read_text())
        content["data"] = [file.replace("/thing_7/", "/thing_8/") for file in content["data"]]
        path.write_text(yaml.safe_dump(content))
    assert "give 345 labels to 344 classes" in told(lambda: load("DomainNet", tmp_path, verify=False))


@pytest.mark.parametrize("content", ["[]", "{", '{"apple_pie": 3}', "", "\x00\x00"])
def test_a_broken_json_list_is_a_sentence(tmp_path: Path, content: str) -> None:
    fake_data.write(tmp_path, ["Food"])
    (tmp_path / "food-101/meta/train.json").write_text(content)
    text = told(lambda: load("Food", tmp_path, verify=False))
    assert text.startswith("Food: ") and "\n" not in text


# Counts


def imagenet100(counts: list[int]) -> ImageSet:
    """Only lists: that many training images of each class, and the published number of test images."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, test = ImageFiles([("x.jpg", label) for label in labels]), ImageFiles([("y.jpg", 0)] * 5000)
    return ImageSet("ImageNet100", train, test, [f"class {label}" for label in range(100)], [])


def test_training_images_of_imagenet100_are_counted_by_class() -> None:
    counts = [1300] * 99 + [732]
    assert count_problem("ImageNet100", imagenet100(counts)) is None
    counts[3], counts[7] = 731, 1301
    problem = count_problem("ImageNet100", imagenet100(counts))
    assert problem is not None and problem.endswith("not 732 to 1,300, as published: 731 of class 3, 1,301 of class 7")


# Validation images


def test_tinyimagenet_sorted_into_class_folders(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["TinyImageNet"])
    val = tmp_path / "tiny-imagenet-200/val"
    data = load("TinyImageNet", tmp_path, verify=False)
    for images in (tmp_path / "tiny-imagenet-200/train").glob("*/images"):  # training images as many copies have them
        shutil.copytree(images, images.parent, dirs_exist_ok=True)
        shutil.rmtree(images)
    moved = load("TinyImageNet", tmp_path, verify=False).train
    assert moved.paths == [path.replace("/images/", "/") for path in data.train.paths]
    assert moved.labels == data.train.labels
    clean = data.test
    wnid_of = dict(line.split("\t")[:2] for line in (val / "val_annotations.txt").read_text().splitlines())
    for within in ("", "images"):
        for path in clean.paths:
            target = val / wnid_of[Path(path).name] / within / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        shutil.move(val / "images", tmp_path / f"images{within}")
        test = load("TinyImageNet", tmp_path, verify=False).test
        assert [Path(path).name for path in test.paths] == [Path(path).name for path in clean.paths]
        assert test.labels == clean.labels and inspect("TinyImageNet", tmp_path, verify=False).found == "yes"
        for wnid in set(wnid_of.values()):
            shutil.rmtree(val / wnid)
        shutil.copytree(tmp_path / f"images{within}", val / "images")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """ImageNet with its validation images in one folder; their numbers run against the classes."""
    fake_data.write(tmp_path, ["ImageNet"])
    val = tmp_path / "ImageNet/val"
    for number, folder in enumerate(sorted(val.iterdir(), reverse=True), start=1):
        (image,) = folder.iterdir()
        image.rename(val / f"ILSVRC2012_val_{number:08d}.JPEG")
        folder.rmdir()
    return tmp_path


def kaggle(folder: Path) -> None:
    rows = [f"ILSVRC2012_val_{1000 - label:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for label, wnid in enumerate(wnids())]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))


def devkit(folder: Path) -> None:
    """The devkit numbers the classes in an order of its own, and has classes above them, too."""
    place = folder / "ILSVRC2012_devkit_t12/data"
    place.mkdir(parents=True)
    order = [*wnids()[500:], *wnids()[:500], "n00001740"]
    rows = np.empty(1001, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wnid in enumerate(order, start=1):
        rows[number - 1] = (number, wnid, f"words, {number}")
    savemat(place / "meta.mat", {"synsets": rows})
    numbers = [order.index(wnid) + 1 for wnid in reversed(wnids())]
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))


def wnids() -> list[str]:
    return read_names("imagenet_wnids")


@pytest.mark.parametrize("write", [kaggle, devkit])
def test_flat_imagenet_validation_with_its_ground_truth(flat: Path, write: Callable[[Path], None]) -> None:
    write(flat / "ImageNet")
    for name, classes in (("ImageNet", 1000), ("ImageNet1000", 1000), ("ImageNet100", 100)):
        test = load(name, flat, verify=False).test
        assert test.labels == list(range(classes))
        numbers = [int(Path(path).stem.rpartition("_")[2]) for path in test.paths]
        assert numbers == [1000 - label for label in range(classes)]


def test_flat_imagenet_validation_without_ground_truth(flat: Path) -> None:
    assert load("ImageNet", flat, verify=False).test is None  # for reference images none is needed
    for name in ("ImageNet1000", "ImageNet100"):
        text = told(lambda: load(name, flat, verify=False))
        assert "no validation images of known class" in text and "LOC_val_solution.csv" in text
    devkit(flat / "ImageNet")
    (flat / "ImageNet/ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    assert "numbers the classes as meta.mat of the same devkit does" in told(lambda: load("ImageNet", flat, verify=False))


# Fingerprints


def test_a_fingerprint_is_of_the_content_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    fake_data.write(root, ["EuroSAT"])
    before = load("EuroSAT", root, verify=False).fingerprint
    shutil.copytree(root, tmp_path / "copy")  # other times of change
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    for spelling in (".", "../data", "../copy/", f"{tmp_path}/copy/../data", tmp_path / "link"):
        assert load("EuroSAT", spelling, verify=False).fingerprint == before
    image = root / "eurosat/2750/River/River_1.jpg"
    image.write_bytes(image.read_bytes() + b"x")
    longer = load("EuroSAT", root, verify=False).fingerprint
    assert longer["content"] != before["content"] and longer | {"content": 0} == before | {"content": 0}
    contents = []
    for size in (70_000, 70_001):  # beyond the bytes that are read of a file
        image.write_bytes(b"x" * size)
        contents.append(load("EuroSAT", root, verify=False).fingerprint["content"])
    assert contents[0] != contents[1]
    for image in root.rglob("*.jpg"):
        image.write_bytes(b"x" * image.stat().st_size)
    assert load("EuroSAT", root, verify=False).fingerprint["content"] not in (*contents, before["content"])


def test_pixels_of_arrays_are_in_the_fingerprint() -> None:
    pixels = np.zeros((50, 8, 8, 3), np.uint8)
    one = fingerprint(ImageArrays(pixels, [0] * 50), None, Path("/"))
    pixels[31, 4, 4, 1] = 1
    assert fingerprint(ImageArrays(pixels, [0] * 50), None, Path("/"))["content"] != one["content"]


def test_the_sentence_of_a_damaged_list_names_it(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["DTD", "Aircraft"])
    path = tmp_path / "dtd/dtd/labels/train1.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"DTD: the list {path} can not be read" in told(lambda: load("DTD", tmp_path, verify=False))
    path = tmp_path / "fgvc-aircraft-2013b/data/images_variant_test.txt"
    path.write_text(path.read_text() + "7777777 Made-up Jet\n")
    text = told(lambda: load("Aircraft", tmp_path, verify=False))
    assert "the test list gives 7777777.jpg the class 'Made-up Jet', which is none of the 100" in text
