"""What users meet: missing, misplaced, stray, damaged and cut files, each with a message that helps."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from common.datasets import MTIL_ORDER_1, canonical, captioned_images, captions, load, require
from common.datasets.images import read_rgb
from common.datasets.layout import PUBLISHED
from common.errors import UserError
from tests import fake_data


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Write one made-up data set that the test may change."""

    def make(name: str) -> Path:
        fake_data.write(tmp_path, [name])
        return tmp_path

    return make


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    text = message(lambda: canonical("sun-397"))
    assert text.startswith("unknown data set 'sun-397'. Did you mean SUN397? Known are Aircraft, ")
    assert all(name in text for name in PUBLISHED)
    assert "Did you mean CIFAR100?" in message(lambda: load("cifar100", "."))
    assert "Did you mean" not in message(lambda: canonical("xyzzy"))


def test_require_lists_everything_missing_at_once(fake_root: Path, tmp_path: Path) -> None:
    shutil.copytree(fake_root / "dtd", tmp_path / "dtd")
    text = message(lambda: require(MTIL_ORDER_1, tmp_path, verify=False))
    assert text.startswith(f"10 of 11 data sets are missing or incomplete in {tmp_path}:\n")
    headings = [line for line in text.splitlines() if line in PUBLISHED]
    assert headings == [name for name in MTIL_ORDER_1 if name != "DTD"]
    assert f"looked in: {tmp_path / 'SUN397'}" in text
    assert text.endswith(f"python -m common.datasets check --data-location {tmp_path}")
    require(MTIL_ORDER_1, fake_root, verify=False)


def test_require_says_when_the_folder_is_absent() -> None:
    assert "in /no/such/place (this folder does not exist):" in message(
        lambda: require(["MNIST"], "/no/such/place")
    )


@pytest.mark.parametrize(
    "name, phrases",
    [
        (
            "StanfordCars",
            ["host is gone since 2023", "four parts", "cars_test_annos_withlabels.mat beside devkit"],
        ),
        ("SUN397", ["no longer serves it", "8ca2778205c41d23104230ba66911c7a", "ClassName.txt"]),
        ("EuroSAT", ["certificate has expired", "eurosat/2750/AnnualCrop"]),
        ("Caltech101", ["3138e1922a9193bfa496528edbbc45d0", "BACKGROUND_Google may be absent"]),
        ("Aircraft", ["python -m common.datasets download --data-location"]),
        ("ImageNet", ["ILSVRC2012", "val_in_folder/<wnid>"]),
    ],
)
def test_missing_set_tells_where_and_how(name: str, phrases: list[str], tmp_path: Path) -> None:
    text = message(lambda: load(name, tmp_path))
    assert text.startswith(f"{name}: not found; missing {tmp_path / PUBLISHED[name].needs[0]}")
    assert all(phrase in text for phrase in phrases)


def test_captions_missing_or_broken(tmp_path: Path) -> None:
    text = message(lambda: captions(tmp_path))
    assert (
        str(tmp_path / "Validation_GCC-1.1.0-Validation_output.csv") in text
        and "no images are needed" in text
    )
    assert "sentences, not labelled images" in message(lambda: load("ConceptualCaptions", tmp_path))
    csv = tmp_path / "Validation_GCC-1.1.0-Validation_output.csv"
    csv.write_text("caption\tfile\na dog\tx.jpg\n")
    assert str(csv) in message(lambda: captions(tmp_path))
    csv.write_text("title\tfilepath\n")
    assert "holds no captions" in message(lambda: captions(tmp_path))
    tsv = tmp_path / "Validation_GCC-1.1.0-Validation.tsv"
    for text in ("a dog,http://x.org/1.jpg\n", "http://x.org/1.jpg\ta dog\n", "<html>\n<body>\n"):
        tsv.write_text(text)
        assert "not a table of captions and their images' addresses" in message(lambda: captions(tmp_path))


def test_captioned_images_missing(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["ConceptualCaptions"])
    text = message(lambda: captioned_images(tmp_path))
    csv = tmp_path / "Validation_GCC-1.1.0-Validation_output.csv"
    assert str(csv) in text and "The published .tsv has sentences only." in text
    fake_data.gathered_captions(tmp_path)
    gone = tmp_path / "cc_data" / "val" / "5" / "5.jpg"
    gone.unlink()
    assert f"1 of 6 listed images do not exist or are empty files, the first is {gone}" in message(lambda: captioned_images(tmp_path))
    csv.write_text("title\turl\na dog\thttp://example.org\n")
    assert "no column filepath" in message(lambda: captioned_images(tmp_path))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>404</html>"])
def test_damaged_image_names_the_path(copy, damage: Callable[[bytes], bytes]) -> None:
    data = load("Food", copy("Food"), verify=False)
    path = Path(data.train.paths[3])
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: data.train[3])
    assert text.startswith(f"{path}: this image can not be read") and "delete it and put a fresh copy" in text
    path.unlink()
    assert message(lambda: data.train[3]).startswith(f"{path}: this image is listed but does not exist")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_any_mode_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / "image.tif")
    image = read_rgb(tmp_path / "image.tif")
    assert image.mode == "RGB" and image.getpixel((4, 3)) == (255, 255, 255)


def test_caltech_without_background_and_with_stray_files(copy, fake_root: Path) -> None:
    root = copy("Caltech101")
    folder = root / "caltech101" / "101_ObjectCategories"
    shutil.rmtree(folder / "BACKGROUND_Google")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "accordion" / "Thumbs.db").write_bytes(b"x")
    assert (
        load("Caltech101", root, verify=False).fingerprint
        == load("Caltech101", fake_root, verify=False).fingerprint
    )
    shutil.rmtree(folder / "ant")
    assert f"{folder} lacks 1 of 101 classes: ant." in message(lambda: load("Caltech101", root, verify=False))


def test_eurosat_with_a_stray_folder(copy) -> None:
    root = copy("EuroSAT")
    shutil.copytree(root / "eurosat/2750/River", root / "eurosat/2750/Copy")
    text = message(lambda: load("EuroSAT", root, verify=False))
    assert "2750 holds 1 folders that are no class: Copy." in text and "remove what does not belong there" in text


def test_cars_test_labels_inside_devkit(copy) -> None:
    folder = copy("StanfordCars") / "stanford_cars"
    (folder / "cars_test_annos_withlabels.mat").rename(folder / "devkit" / "cars_test_annos_withlabels.mat")
    text = message(lambda: require(["StanfordCars"], folder.parent, verify=False))
    assert (
        "missing: stanford_cars/cars_test_annos_withlabels.mat\n" in text
        and "beside devkit, not in it" in text.replace("\n      ", " ")
    )


def test_listed_images_that_do_not_exist(copy) -> None:
    root = copy("OxfordPet")
    gone = sorted((root / "oxford-iiit-pet" / "images").glob("*.jpg"))[:3]
    for path in gone:
        path.unlink()
    text = message(lambda: require(["OxfordPet"], root, verify=False)).replace("\n      ", " ")
    assert "3 listed images do not exist, the first is" in text


def test_lists_cut_by_a_class_would_shift_labels(copy) -> None:
    root = copy("DTD")
    lists = root / "dtd" / "dtd" / "labels" / "train1.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    assert "do not name the same classes" in message(lambda: load("DTD", root, verify=False))


@pytest.mark.parametrize(
    "name, file",
    [
        ("Food", "food-101/meta/train.json"),
        ("StanfordCars", "stanford_cars/devkit/cars_train_annos.mat"),
        ("Flowers", "flowers-102/setid.mat"),
        ("CIFAR100", "cifar-100-python/train"),
        ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
        ("Aircraft", "fgvc-aircraft-2013b/data/images_variant_train.txt"),
        ("OxfordPet", "oxford-iiit-pet/annotations/trainval.txt"),
        ("TinyImagenet", "tiny-imagenet-200/wnids.txt"),
        ("SUN397", "SUN397/ClassName.txt"),
    ],
)
def test_damaged_label_file_is_a_message_not_a_traceback(copy, name: str, file: str) -> None:
    root = copy(name)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: len(content) // 2] + b"\nbroken")
    assert message(lambda: load(name, root, verify=False)).startswith((name, "TinyImageNet"))


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path, call: Callable) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple:
        if self.call is os.system:
            return os.system, (f"touch {self.path}",)
        return self.call, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("call", [os.system, eval, exec])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_not_executed(copy, tmp_path: Path, file: str, call: Callable, protocol: int) -> None:
    path = copy("CIFAR100") / "cifar-100-python" / file
    content = pickle.loads(path.read_bytes()) | {"more": [Payload(tmp_path / "executed", call)]}
    path.write_bytes(pickle.dumps(content, protocol))
    text = message(lambda: load("CIFAR100", tmp_path, verify=False))
    assert text.startswith(f"CIFAR100: its files below {tmp_path} can not be read (") and f"{file}: it asks to" in text
    assert not (tmp_path / "executed").exists()
    assert pickle.loads(path.read_bytes())  # the reader that trusts it
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(copy, tmp_path: Path, protocol: int) -> None:
    path = copy("CIFAR100") / "cifar-100-python" / "train"
    content = pickle.loads(path.read_bytes())
    content["fine_labels"] = [np.int64(label) for label in content["fine_labels"]]
    path.write_bytes(pickle.dumps(content, protocol))
    data = load("CIFAR100", tmp_path, verify=False).train
    assert data.labels == [*range(100), *range(100)]
    assert np.array_equal(data.arrays[7], np.full((32, 32, 3), fake_data.colour(7, 100), np.uint8))


def test_checksums_of_flowers_only_with_verify(copy) -> None:
    root = copy("Flowers")
    assert len(load("Flowers", root, verify=False).train) == 102
    text = message(lambda: load("Flowers", root))
    assert "is not the published file (checksum)" in text and "--no-verify" in text


def test_fewer_images_only_without_verify(fake_root: Path) -> None:
    text = message(lambda: load("Aircraft", fake_root))
    assert "100 train and 100 test images instead of the published 3,334 and 3,333" in text
    assert "--no-verify" in text


def test_own_class_names_win_over_ours(copy) -> None:
    root = copy("StanfordCars")
    path = root / "stanford_cars" / "devkit" / "cars_meta.mat"
    names = loadmat(path)["class_names"]
    names[0, 7] = "Another Car 2012"
    savemat(path, {"class_names": names})
    with pytest.warns(UserWarning, match="StanfordCars: 1 class names .* 7 'Another Car 2012'"):
        assert load("StanfordCars", root, verify=False).classnames[7] == "Another Car 2012"
