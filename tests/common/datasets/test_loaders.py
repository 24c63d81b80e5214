"""Every loader on made-up images in the true layouts: counts, names, which label goes with which image."""

import pickle
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.datasets import MTIL_ORDER_1, MTIL_ORDER_2, ImageSet, canonical, captioned_images, captions, load, require
from common.datasets.layout import CAPTIONS, PUBLISHED
from common.datasets.loading import READERS
from common.datasets.names import read_names
from common.datasets.transforms import clip_eval, clip_train
from tests import fake_data

SIZES = {  # name: (train, test, classes, templates) of the made-up sets
    "Aircraft": (100, 100, 100, 2),
    "Caltech101": (161, 41, 101, 34),
    "CIFAR10": (50, 10, 10, 18),
    "CIFAR100": (200, 200, 100, 18),
    "DTD": (47, 47, 47, 8),
    "EuroSAT": (40, 10, 10, 3),
    "Flowers": (102, 102, 102, 1),
    "Food": (101, 101, 101, 1),
    "MNIST": (20, 10, 10, 1),
    "OxfordPet": (37, 37, 37, 1),
    "StanfordCars": (196, 196, 196, 9),
    "SUN397": (635, 159, 397, 2),
    "TinyImagenet": (400, 200, 0, 0),
    "TinyImageNet": (400, 200, 200, 0),
    "ImageNet": (1000, 1000, 1000, 80),
    "ImageNet100": (100, 100, 100, 0),
    "ImageNet1000": (1000, 1000, 1000, 0),
    "ImageNetR": (960, 240, 200, 0),
    "CUB200": (400, 400, 200, 0),
    "DomainNet": (1380, 345, 345, 0),
}
# How many classes a colour circle of the made-up images has; Caltech101's includes the background class.
CIRCLE = {"Caltech101": 102, "TinyImagenet": 200, "ImageNet100": 1000}


@pytest.fixture(scope="module")
def loaded(fake_root: Path) -> dict[str, ImageSet]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a name that differs would warn
        return {name: load(name, fake_root, verify=False) for name in SIZES}


def test_every_reader_is_tested() -> None:
    assert set(SIZES) == set(READERS) == set(PUBLISHED) - {CAPTIONS}
    assert set(fake_data.ALL) == set(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_counts_names_templates_fingerprint(loaded: dict[str, ImageSet], name: str) -> None:
    data = loaded[name]
    assert data.name == name
    assert (len(data.train), len(data.test), len(data.classnames), len(data.templates)) == SIZES[name]
    assert (data.fingerprint["train"], data.fingerprint["test"]) == SIZES[name][:2]
    assert len(data.fingerprint["md5"]) == 32


@pytest.mark.parametrize("name", SIZES)
def test_image_and_label_belong_together(loaded: dict[str, ImageSet], name: str) -> None:
    """Each made-up image has its class's colour (or its grey), in mode RGB whatever the file's mode."""
    data = loaded[name]
    classes = CIRCLE.get(name, len(data.classnames))
    if name == "TinyImagenet":
        wnids = read_names("tinyimagenet_wnids")
        colour_of = [wnids.index(wnid) for wnid in sorted(wnids)]
    else:
        colour_of = list(range(classes))
    for part in (data.train, data.test):
        for index in range(0, len(part), max(1, len(part) // 60)):
            image, label = part[index]
            assert isinstance(image, Image.Image) and image.mode == "RGB" and isinstance(label, int)
            assert label == part.labels[index]
            expected = expected_colour(name, colour_of[label], classes)
            middle = image.getpixel((image.width // 2, image.height // 2))
            assert max(abs(a - b) for a, b in zip(middle, expected)) <= 6, (name, index, label)


def expected_colour(name: str, label: int, classes: int) -> tuple[int, int, int]:
    if name == "MNIST":
        return (25 * label,) * 3
    colour = fake_data.colour(label, classes)
    gray = not name.startswith("CIFAR") and label % 11 == 10
    return Image.new("RGB", (1, 1), colour).convert("L").convert("RGB").getpixel((0, 0)) if gray else colour


def test_labels_follow_folders(loaded: dict[str, ImageSet]) -> None:
    for part in (loaded["Caltech101"].train, loaded["Caltech101"].test):
        for path, label in zip(part.paths, part.labels):
            assert Path(path).parent.name == fake_data.CALTECH_FOLDERS[label]
    assert (
        loaded["Caltech101"].classnames[fake_data.CALTECH_FOLDERS.index("yin_yang")] == "yin and yang symbol"
    )
    for path, label in zip(loaded["SUN397"].train.paths, loaded["SUN397"].train.labels):
        name = loaded["SUN397"].classnames[label]
        assert "/".join(Path(path).parts[:-1]).endswith(f"SUN397/{name[0]}/{name.replace(' ', '_')}")
    for path, label in zip(loaded["DTD"].test.paths, loaded["DTD"].test.labels):
        assert Path(path).parent.name == loaded["DTD"].classnames[label]


def test_two_transforms_for_the_two_parts(fake_root: Path) -> None:
    data = load("EuroSAT", fake_root, clip_train(16), clip_eval(24), verify=False)
    assert data.train[0][0].shape == (3, 16, 16)
    assert data.test[0][0].shape == (3, 24, 24)
    half = load("EuroSAT", fake_root, eval_transform=clip_eval(24), verify=False)
    assert isinstance(half.train[0][0], Image.Image) and isinstance(half.test[0][0], torch.Tensor)


def test_loader_workers_get_batches(fake_root: Path) -> None:
    data = load("Aircraft", fake_root, clip_train(16), clip_eval(16), verify=False)
    train = pickle.loads(pickle.dumps(data.train))  # as a process gets it that is spawned, not forked
    loader = torch.utils.data.DataLoader(train, batch_size=8, num_workers=1)
    images, labels = next(iter(loader))
    assert images.shape == (8, 3, 16, 16) and labels.tolist() == data.train.labels[:8]


def test_sun397_is_sorted_before_the_split(fake_root: Path) -> None:
    ordered = load("SUN397", fake_root, verify=False)
    everything = sorted(ordered.train.paths + ordered.test.paths)
    permutation = torch.randperm(len(everything), generator=torch.Generator().manual_seed(42)).tolist()
    assert ordered.train.paths == [everything[i] for i in permutation[:635]]
    assert ordered.fingerprint["notes"] == ["file order: sorted"]


def test_fingerprint_depends_on_files_and_labels_not_on_the_place(fake_root: Path, tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["DTD"])
    here, there = load("DTD", fake_root, verify=False), load("DTD", tmp_path, verify=False)
    assert here.fingerprint == there.fingerprint
    assert load("DTD", f"{tmp_path}/", verify=False).fingerprint == here.fingerprint
    lists = tmp_path / "dtd" / "dtd" / "labels" / "train1.txt"
    lists.write_text("".join(reversed(lists.read_text().splitlines(keepends=True))))
    assert load("DTD", tmp_path, verify=False).fingerprint["md5"] != here.fingerprint["md5"]


def test_imagenet_names_prompt_and_val_folders(
    loaded: dict[str, ImageSet], fake_root: Path, tmp_path: Path
) -> None:
    data = loaded["ImageNet"]
    assert data.classnames[0] == "tench" and data.classnames.count("missile") == 2
    assert data.templates[0] == "a photo of a {}." and len(set(data.templates)) == 80
    folder = tmp_path / "ImageNet"
    folder.mkdir()
    (folder / "train").symlink_to(fake_root / "ImageNet" / "train")
    without_val = load("ImageNet", tmp_path, verify=False)
    assert without_val.test is None and len(without_val.train) == 1000
    require(["ImageNet"], tmp_path, verify=False)
    (folder / "val").mkdir()
    (folder / "val_in_folder").symlink_to(fake_root / "ImageNet" / "val")
    assert len(load("ImageNet", tmp_path, verify=False).test) == 1000  # val_in_folder comes first


def test_tinyimagenet_by_wnids_file(fake_root: Path) -> None:
    data = load("TinyImageNet", fake_root, verify=False)
    wnids = read_names("tinyimagenet_wnids")
    assert [Path(path).parts[-3] for path in data.train.paths[::2]] == wnids
    assert data.train.labels[::2] == data.test.labels == list(range(200))
    assert data.classnames == read_names("tinyimagenet_cil")


def test_captions_from_the_tsv(fake_root: Path) -> None:
    sentences = captions(fake_root)
    assert len(sentences) == 48
    assert sentences[:4] == [
        "a boat on the lake , picture 0",
        "a dog in the snow , picture 0",
        "a actor attends the premiere , picture 0",
        'a sign that says " open " , picture 0',
    ]


def test_captioned_images_of_the_gather_script(tmp_path: Path) -> None:
    fake_data.gathered_captions(tmp_path)
    data = captioned_images(tmp_path, clip_eval(16))
    assert data.classnames == captions(tmp_path) and len(data.train) == 6 and data.test is None
    assert data.classnames[:2] == ["picture 0", 'a sign that says "3" , and more'] and data.templates == ["{}"]
    assert data.train[4][0].shape == (3, 16, 16) and data.train[4][1] == 4
    plain = captioned_images(f"{tmp_path}/").train
    for row in range(6):
        middle = plain[row][0].getpixel((8, 8))
        assert max(abs(a - b) for a, b in zip(middle, fake_data.colour(row, 6))) <= 6
    assert captioned_images(tmp_path).fingerprint == data.fingerprint | {"train": 6, "test": 0, "notes": []}
    fake_data.write(tmp_path, [CAPTIONS])
    assert len(captions(tmp_path)) == 48 and len(captioned_images(tmp_path).train) == 6


def test_orders_hold_the_same_eleven() -> None:
    assert len(MTIL_ORDER_1) == 11 and sorted(MTIL_ORDER_1) == sorted(MTIL_ORDER_2)
    assert [MTIL_ORDER_1[i] for i in (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2)] == list(MTIL_ORDER_2)
    assert all(canonical(name) == name for name in MTIL_ORDER_1)


def test_mini_stands_for_the_miniature() -> None:
    require(MTIL_ORDER_1, "mini")
    data = load("MNIST", "mini", clip_eval(16), clip_eval(16))
    assert data.name == "MNIST" and data.train[0][0].shape == (3, 16, 16)
