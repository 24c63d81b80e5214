"""Copies as people have them: litter, links, empty files, other spellings, folders that may not be listed."""

import encodings.utf_8_sig  # noqa: F401  # as a user who may not look into Python's folder can not import it
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
from timm.data import ImageNetInfo

from common.datasets import load, require
from common.datasets.__main__ import main
from common.datasets.check import inspect, require
from common.datasets.listing import list_folder, walk
from common.datasets.names import read_names
from common.errors import UserError
from tests import fake_data

LITTER = (
    ".DS_Store", "._a.jpg", ".hidden.JPEG", "Thumbs.db", "desktop.ini", "Desktop.ini", "x.jpg.part", "x.jpg~", "a.txt"
)  # fmt: skip
CLASS_FOLDERS = {
    "Caltech101": "caltech101/101_ObjectCategories/ant",
    "EuroSAT": "eurosat/2750/River",
    "SUN397": "SUN397/a/abbey",
    "TinyImageNet": "tiny-imagenet-200/train/n01443537/images",
    "ImageNet": "ImageNet/train/n01440764",
    "ImageNet100": "ImageNet/val/n01440764",
    "ImageNet1000": "ImageNet/val/n01440764",
    "ImageNetR": "imagenet-r/n01443537",
}


def made(tmp_path: Path, name: str) -> Path:
    fake_data.write(tmp_path, [name])
    for boxes in tmp_path.glob("tiny-imagenet-200/train/*/*_boxes.txt"):
        boxes.unlink()  # as in copies that come without them: the images are listed
    return tmp_path


def told(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def pairs(root: Path, name: str) -> list[tuple[str, int]]:
    data = load(name, root, verify=False)
    return [pair for part in (data.train, data.test) for pair in zip(part.paths, part.labels)]


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_litter_moves_no_image(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path, name) / CLASS_FOLDERS[name]
    clean = pairs(tmp_path, name)
    real = sorted(folder.iterdir())[0]
    for litter in (*LITTER, f"{real.stem} (1){real.suffix}", f"{real.stem} - Copy{real.suffix}"):
        (folder / litter).write_bytes(b"x")
    for litter in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        for place in (folder, folder.parents[1 if "images" in folder.name else 0]):
            (place / litter).mkdir()
            (place / litter / "a.jpg").write_bytes(b"x")
    assert pairs(tmp_path, name) == clean
    status = inspect(name, tmp_path, verify=False)
    assert status.found == "yes" and "entries that are no images are passed over, the first is /" in status.notes[0]


def test_what_is_an_image(tmp_path: Path) -> None:
    names = ("b.JPG", "a.png", "c (1).jpg", "holiday (2).jpg", "holiday.jpg", "x.jpg.crdownload", "notes.txt")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    listing = list_folder(tmp_path)
    assert listing.images == ["a.png", "b.JPG", "c (1).jpg", "holiday.jpg"] and listing.folders == []
    passed_over = [str(tmp_path / name) for name in ("holiday (2).jpg", "notes.txt", "x.jpg.crdownload")]
    assert listing.skipped == passed_over


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_links_are_followed_and_dangling_ones_named(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "here", name) / CLASS_FOLDERS[name]
    clean = pairs(tmp_path / "here", name)
    shutil.move(folder, tmp_path / "there")
    folder.symlink_to(tmp_path / "there")
    assert pairs(tmp_path / "here", name) == clean
    image = sorted((tmp_path / "there").iterdir())[0]
    image.rename(tmp_path / "file")
    image.symlink_to(tmp_path / "file")
    assert pairs(tmp_path / "here", name) == clean
    (tmp_path / "file").unlink()
    status = inspect(name, tmp_path / "here", verify=False)
    assert status.problems == [f"1 listed images do not exist, the first is {folder / image.name} (a link to nothing)"]


def test_a_folder_in_a_circle_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "b" / "again").symlink_to(tmp_path)
    assert [path for listing in walk(tmp_path) for path in listing.paths] == [str(tmp_path / "a/b/x.jpg")]


@pytest.mark.parametrize("name", [*CLASS_FOLDERS, "DomainNet", "Food", "Aircraft", "CUB200"])
def test_empty_files_are_counted_and_the_first_named(tmp_path: Path, name: str) -> None:
    made(tmp_path, name)
    paths = load(name, tmp_path, verify=False).train.paths[2:5]
    for path in paths:
        Path(path).write_bytes(b"")
    status = inspect(name, tmp_path, verify=False)
    assert status.found == "partial" and status.problems == [f"3 images are empty files, the first is {paths[0]}"]
    assert "3 images are empty files" in told(lambda: require([name], tmp_path, verify=False))


# Classes by name


def test_known_names_are_the_published() -> None:
    assert read_names("caltech101_folders") == fake_data.CALTECH_FOLDERS
    assert read_names("imagenet_wnids") == ImageNetInfo("imagenet-1k").label_names()
    rendered = Path(timm.__file__).parent / "data/_info/imagenet_r_synsets.txt"
    assert read_names("imagenet_r_wnids") == rendered.read_text().split()
    assert read_names("imagenet100_wnids") == read_names("imagenet_wnids")[:100]


def test_caltech_folders_of_other_spelling(tmp_path: Path) -> None:
    folder = made(tmp_path, "Caltech101") / "caltech101/101_ObjectCategories"
    for published, other in (("Faces_easy", "faces easy"), ("water_lilly", "water_lily"), ("Motorbikes", "motorbikes")):
        (folder / published).rename(folder / other)
    text = told(lambda: load("Caltech101", tmp_path, verify=False))
    assert "spells 3 classes otherwise: faces easy is published as Faces_easy, motorbikes is published as" in text
    assert "water_lily is published as water_lilly" in text and "lacks" not in text and "no class" not in text


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_a_stray_folder_in_place_of_a_class(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path, name) / CLASS_FOLDERS[name]
    folder = folder.parent if folder.name == "images" else folder
    folder.rename(folder.with_name("n_stray"))
    text = told(lambda: load(name, tmp_path, verify=False))
    label = "a/abbey" if name == "SUN397" else folder.name
    assert f"lacks 1 of {len(set(dict(pairs(made(tmp_path / 'b', name), name)).values()))} classes: {label}" in text
    assert f"holds 1 folders that are no class: {'a/' * (name == 'SUN397')}n_stray" in text


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_a_class_without_an_image_is_never_accepted(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path, name) / CLASS_FOLDERS[name]
    for image in folder.iterdir():
        image.unlink()
    (folder / "a.txt").write_bytes(b"x")
    text = told(lambda: load(name, tmp_path, verify=False))
    if name != "SUN397":  # where a folder without images is no class folder
        assert f"1 class folders hold no image, the first is {folder}. It holds 1 other entries" in text
    else:
        assert "SUN397 lacks 1 of 397 classes: a/abbey" in text


@pytest.mark.parametrize(
    "name, file",
    [
        ("OxfordPet", "oxford-iiit-pet/annotations/trainval.txt"),
        ("Aircraft", "fgvc-aircraft-2013b/data/images_variant_train.txt"),
        ("CUB200", "CUB_200_2011/train_test_split.txt"),
    ],
)
def test_a_list_without_a_class_is_never_accepted(tmp_path: Path, name: str, file: str) -> None:
    path = made(tmp_path, name) / file
    lines = path.read_text().splitlines()
    kept = [f"{n} 0" for n in range(1, 5)] + lines[4:] if name == "CUB200" else lines[1:]
    path.write_text("\n".join(kept))
    text = told(lambda: load(name, tmp_path, verify=False))
    assert "classes 1 have no training image below" in text and ": label 0 (" in text


def test_class_folders_one_folder_deeper(tmp_path: Path) -> None:
    made(tmp_path, "EuroSAT")
    (tmp_path / "eurosat/2750").rename(tmp_path / "eurosat/inner")
    (tmp_path / "eurosat/2750").mkdir()
    (tmp_path / "eurosat/inner").rename(tmp_path / "eurosat/2750/2750")
    text = told(lambda: load("EuroSAT", tmp_path, verify=False))
    assert f"The classes are in {tmp_path / 'eurosat/2750/2750'}: move them up." in text
    (tmp_path / "imagenet-r/imagenet-r/n01443537").mkdir(parents=True)  # the name of a class begins with n
    text = told(lambda: load("ImageNetR", tmp_path, verify=False))
    assert f"The classes are in {tmp_path / 'imagenet-r/imagenet-r'}: move them up." in text


@pytest.mark.parametrize(
    "name, there, found, needed",
    [
        ("Caltech101", "caltech-101/101_ObjectCategories", "caltech-101", "caltech101"),
        ("DTD", "dtd/images", "dtd/images", "dtd/dtd/images"),
        ("Food", "food-101/food-101/images", "food-101/food-101/images", "food-101/images"),
        ("ImageNet", "train", "train", "ImageNet/train"),
        ("ImageNet", "imagenet/train", "imagenet", "ImageNet"),
        ("TinyImageNet", "tiny_imagenet_200/train", "tiny_imagenet_200", "tiny-imagenet-200"),
    ],
)
def test_a_misplaced_folder_is_found(tmp_path: Path, name: str, there: str, found: str, needed: str) -> None:
    (tmp_path / there).mkdir(parents=True)
    sentence = f"There is {tmp_path / found} instead: move or rename it to {tmp_path / needed}."
    assert sentence in told(lambda: load(name, tmp_path, verify=False))
    assert sentence in inspect(name, tmp_path, verify=False).problems


def test_images_one_folder_deeper(tmp_path: Path) -> None:
    folder = made(tmp_path, "StanfordCars") / "stanford_cars/cars_train"
    folder.rename(tmp_path / "inner")
    folder.mkdir()
    (tmp_path / "inner").rename(folder / "cars_train")
    absent, hint = inspect("StanfordCars", tmp_path, verify=False).problems
    assert absent == f"196 listed images do not exist, the first is {folder / '00001.jpg'}"
    assert hint.startswith(f"There is {folder / 'cars_train/00001.jpg'} instead: move or rename it")


# What may not be read, and names that are no text


@pytest.fixture
def locked() -> Iterator[Path]:
    """A class folder of DTD, in a data location for all, that only its owner may look into."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        folder = made(Path(root), "DTD") / "dtd/dtd/images/banded"
        folder.chmod(0o000)
        yield folder
        folder.chmod(0o755)


def as_another(call: Callable[[], str]) -> str:
    """The text that `call` returns to a user who owns nothing here, in a process of his own where this is root."""
    if os.geteuid():
        return call()
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([]), os.setgid(54321), os.setuid(54321)
            text = call()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_a_folder_that_may_not_be_listed(locked: Path) -> None:
    root = locked.parents[3]
    text = as_another(lambda: "; ".join(inspect("DTD", root, verify=False).problems))
    assert text.startswith(f"{locked}/banded_0001.jpg: this user may not look into it. Change its permissions")
    root.chmod(0o000)
    text = as_another(lambda: "; ".join(inspect("DTD", root, verify=False).problems))
    root.chmod(0o755)
    assert text.startswith(f"{root}/dtd/dtd/images: this user may not look into it.")


def test_a_location_below_a_folder_that_may_not_be_searched(locked: Path) -> None:
    root = locked.parents[3]
    root.chmod(0o000)
    text = as_another(lambda: require(["DTD"], root / "dtd"))
    root.chmod(0o755)
    assert text.startswith("UserError: ") and f"in {root}/dtd (it can not be reached: Permission denied):" in text


def test_a_file_name_that_is_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, "EuroSAT") / "eurosat/2750/River"
    name = os.fsencode(folder) + b"/River_\xff.jpg"
    with open(name, "wb"):
        pass
    data = load("EuroSAT", tmp_path, verify=False)
    assert len(data.train) + len(data.test) == 51 and len(data.fingerprint["md5"]) == 32
    with pytest.raises(SystemExit):
        main(["check", "--data-location", str(tmp_path), "--no-verify", "EuroSAT"])
    out = capsys.readouterr().out
    assert r"1 images are empty files, the first is" in out and r"River_\udcff.jpg" in out
    out.encode()  # else printing it to a terminal would have failed
