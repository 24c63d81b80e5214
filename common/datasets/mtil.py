"""The eleven data sets of the multi-domain task-incremental benchmark (MTIL), and CIFAR10.

Splits, label orders, names and templates as in ZSCL mtil/src/datasets/collections.py (arXiv 2303.06628). Each reader
takes the data location, and returns an ImageSet without transforms and fingerprint. torchvision parses MATLAB's
files; with `loader=str` it returns paths instead of decoded images.
"""

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.datasets.images import ImageArrays, ImageFiles, ImageSet, class_files
from common.datasets.listing import match_classes, walk
from common.datasets.lists import parsed_lines, text_lines
from common.datasets.names import agreed_names, read_names, read_templates
from common.datasets.pickles import load_pickle
from common.errors import UserError

if TYPE_CHECKING:
    from torchvision import datasets

CALTECH = Path("caltech101/101_ObjectCategories")
MNIST_IMAGES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # for training, of each digit


def split_80_20(n: int) -> tuple[list[int], list[int]]:
    """Train and test indices of data sets without an official split: 80/20 at random with seed 42, not stratified.

    ZSCL mtil/src/datasets/collections.py:L17-L87. The permutation comes from torch's CPU generator.
    """
    n_train = int(0.8 * n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(42)).tolist()
    return order[:n_train], order[n_train:]


def _files(dataset: Any) -> ImageFiles:
    return ImageFiles([dataset[i] for i in range(len(dataset))])


def _split_files(files: ImageFiles) -> tuple[ImageFiles, ImageFiles]:
    rows = [*zip(files.paths, files.labels)]
    train, test = ([rows[i] for i in part] for part in split_80_20(len(files)))
    return ImageFiles(train, skipped=files.skipped), ImageFiles(test)


def _from_lists(
    name: str, stem: str, classes: list[str], rows: dict[str, list[tuple[str, str]]], images: Path
) -> ImageSet:
    """The data set of rows (file below `images`, class) of train and test; labels are positions in `classes`."""
    names, label = agreed_names(name, stem, classes), {entry: number for number, entry in enumerate(classes)}
    for split, part in rows.items():
        if unknown := [row for row in part if row[1] not in label]:
            raise UserError(
                f"{name}: the {split} list gives {unknown[0][0]} the class {unknown[0][1]!r}, which is none of the "
                f"{len(classes)}. Get a complete copy."
            )
    train, test = (ImageFiles((images / file, label[entry]) for file, entry in part) for part in rows.values())
    return ImageSet(name, train, test, names, read_templates(stem))


def _same_classes(name: str, rows: dict[str, list[tuple[str, str]]], folder: Path) -> list[str]:
    """The sorted classes of both lists: a list cut by a class would shift the labels of the others."""
    train, test = (sorted({entry for _, entry in part}) for part in rows.values())
    if train != test:
        raise UserError(
            f"{name}: the train and test lists in {folder} do not name the same classes. Get a complete copy."
        )
    return train


def aircraft(root: Path, verify: bool) -> ImageSet:
    """FGVC Aircraft, 100 variants, train and test; the val part is not used, as upstream."""
    data, rows = root / "fgvc-aircraft-2013b/data", {}
    for split in ("train", "test"):
        lines = text_lines(data / f"images_variant_{split}.txt", "Aircraft")
        entries = [line.partition(" ") for _, line in lines]
        rows[split] = [(f"{image}.jpg", variant) for image, _, variant in entries]
    variants = [line for _, line in text_lines(data / "variants.txt", "Aircraft")]
    return _from_lists("Aircraft", "aircraft", variants, rows, data / "images")


def caltech101(root: Path, verify: bool) -> ImageSet:
    """Caltech101 without the background class, 80/20 split over sorted folders and files.

    Not torchvision's reader, which needs BACKGROUND_Google to exist, counts every stray entry as a class or image, and
    yields grayscale images. Names are hand-written upstream, in the order of the folders.
    """
    folders = read_names("caltech101_folders")
    files = class_files("Caltech101", root / CALTECH, folders, pattern="image_*.jpg", more=("BACKGROUND_Google",))
    return ImageSet("Caltech101", *_split_files(files), read_names("caltech101"), read_templates("caltech101"))


def _arrays(name: str, pixels: np.ndarray, labels: list[int]) -> ImageArrays:
    if pixels.dtype != np.uint8 or np.asarray(labels).dtype.kind not in "iu" or len(pixels) != len(labels):
        raise UserError(
            f"{name}: {len(pixels):,} images of {pixels.dtype} with {len(labels):,} labels of "
            f"{np.asarray(labels).dtype}, not as many bytes and whole numbers. Get a complete copy."
        )
    return ImageArrays(pixels, labels)


def _refuse_changed(name: str, path: Path, md5: str) -> None:
    """Raise UserError for a file with another checksum than the published one."""
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(path, md5):
        raise UserError(
            f"{name}: {path} is not the published file (checksum). Download it again, or take it as it is with "
            "--no-verify (verify=False)."
        )


def _cifar(name: str, stem: str, reader: "type[datasets.CIFAR10]", root: Path, verify: bool) -> ImageSet:
    """The files of torchvision's reader, which would execute what they hold."""
    folder = root / reader.base_folder

    def content(file: str, md5: str) -> dict[str, Any]:
        if verify:
            _refuse_changed(name, folder / file, md5)
        return load_pickle(folder / file)

    def part(files: list[list[str]]) -> ImageArrays:
        batches = [content(*file) for file in files]
        rows = np.vstack([batch["data"] for batch in batches])
        if rows.shape[1:] != (3072,):  # whose colours would be taken for places
            raise UserError(
                f"{name}: {len(rows):,} images of shape {rows.shape[1:]}, not (3072,). Get a complete copy."
            )
        pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = [batch["labels"] if "labels" in batch else batch["fine_labels"] for batch in batches]
        return _arrays(name, pixels, [*chain.from_iterable(labels)])

    train, test = part(reader.train_list), part(reader.test_list)
    names = agreed_names(name, stem, content(reader.meta["filename"], reader.meta["md5"])[reader.meta["key"]])
    return ImageSet(name, train, test, names, read_templates(stem))


def cifar10(root: Path, verify: bool) -> ImageSet:
    """CIFAR10, official split."""
    from torchvision import datasets

    return _cifar("CIFAR10", "cifar10", datasets.CIFAR10, root, verify)


def cifar100(root: Path, verify: bool) -> ImageSet:
    """CIFAR100, official split."""
    from torchvision import datasets

    return _cifar("CIFAR100", "cifar100", datasets.CIFAR100, root, verify)


def dtd(root: Path, verify: bool) -> ImageSet:
    """Describable textures, train1 and test1 lists; the val list is not used, as upstream."""
    folder, rows = root / "dtd/dtd", {}
    for split in ("train", "test"):
        files = [line.removeprefix("./") for _, line in text_lines(folder / f"labels/{split}1.txt", "DTD")]
        rows[split] = [(file, file.partition("/")[0]) for file in files]
    return _from_lists("DTD", "dtd", _same_classes("DTD", rows, folder / "labels"), rows, folder / "images")


def eurosat(root: Path, verify: bool) -> ImageSet:
    """EuroSAT (RGB), 80/20 split over sorted folders and string-sorted file names; hand-written names."""
    files = class_files("EuroSAT", root / "eurosat/2750", read_names("eurosat_folders"))
    return ImageSet("EuroSAT", *_split_files(files), read_names("eurosat"), read_templates("eurosat"))


def flowers(root: Path, verify: bool) -> ImageSet:
    """Oxford Flowers 102, train and test; the val part is not used, as upstream.

    Names are upstream's: torchvision's differ in entry 59, "pink-yellow dahlia?" with a question mark.
    """
    from torchvision import datasets

    files = datasets.Flowers102._file_dict
    for part in ("label", "setid") if verify else ():
        _refuse_changed("Flowers", root / "flowers-102" / files[part][0], files[part][1])

    class Unchecked(datasets.Flowers102):
        """torchvision's reader without the checksums, for cut copies."""

        _file_dict = {part: (file, None) for part, (file, _) in files.items()}

    train, test = (Unchecked(root, split, loader=str) for split in ("train", "test"))
    return ImageSet("Flowers", _files(train), _files(test), read_names("flowers"), read_templates("flowers"))


def food(root: Path, verify: bool) -> ImageSet:
    """Food-101, official split in the order of its json lists."""
    meta, rows = root / "food-101/meta", {}
    for split in ("train", "test"):
        lists = json.loads((meta / f"{split}.json").read_text(encoding="utf-8-sig"))
        rows[split] = [(f"{file}.jpg", entry) for entry, files in lists.items() for file in files]
        if stray := [row for row in rows[split] if not row[0].startswith(f"{row[1]}/")]:
            raise UserError(
                f"Food: {meta / f'{split}.json'} lists {stray[0][0]} under {stray[0][1]!r}. Get a complete copy."
            )
    return _from_lists("Food", "food", _same_classes("Food", rows, meta), rows, root / "food-101/images")


def mnist(root: Path, verify: bool) -> ImageSet:
    """MNIST; its names are "0 - zero" to "9 - nine", which the prompts contain literally."""
    from torchvision import datasets

    parts = [datasets.MNIST(root, train=part) for part in (True, False)]
    train, test = (_arrays("MNIST", part.data.numpy(), part.targets.tolist()) for part in parts)
    whole = verify and len(train) == sum(MNIST_IMAGES)
    if whole and np.bincount(train.labels).tolist() != MNIST_IMAGES:  # Fashion-MNIST has the same files, 6000 each
        raise UserError(
            f"MNIST: {root / 'MNIST/raw'} does not hold the published digits: the classes have other numbers of "
            "training images. Download it again, or take it as it is with --no-verify (verify=False)."
        )
    return ImageSet("MNIST", train, test, read_names("mnist"), read_templates("mnist"))


def oxford_pet(root: Path, verify: bool) -> ImageSet:
    """Oxford-IIIT Pet, trainval and test.

    Not torchvision's reader, which can not list files without decoding them; names by its rule: the file name without
    the number, each word capitalised, in the order of the ids in the list.
    """
    folder = root / "oxford-iiit-pet"
    parts: list[ImageFiles] = []
    titles: dict[int, str] = {}

    def image(line: str) -> tuple[Path, int]:
        """Raises ValueError where the class is not that of the same title so far."""
        file, label = line.split()[0], int(line.split()[1]) - 1
        title = Path(file).name.rsplit("_", 1)[0].replace("_", " ").title()
        if titles.setdefault(label, title) != title:
            raise ValueError(f"class {label + 1} is {titles[label]}")
        return folder / "images" / f"{file}.jpg", label

    for split in ("trainval", "test"):
        parts.append(ImageFiles(parsed_lines(folder / f"annotations/{split}.txt", "OxfordPet", image)))
    names = agreed_names("OxfordPet", "oxford_pet", [titles[label] for label in sorted(titles)])
    return ImageSet("OxfordPet", parts[0], parts[1], names, read_templates("oxford_pet"))


def stanford_cars(root: Path, verify: bool) -> ImageSet:
    """Stanford Cars, official split; nine templates, one more than OpenAI's list."""
    from torchvision import datasets

    train, test = (datasets.StanfordCars(root, split, loader=str) for split in ("train", "test"))
    names = agreed_names("StanfordCars", "stanford_cars", train.classes)
    return ImageSet("StanfordCars", _files(train), _files(test), names, read_templates("stanford_cars"))


def sun397(root: Path, verify: bool) -> ImageSet:
    """SUN397, 80/20 split of all images in the order of their paths.

    torchvision lists files in the file system's order, so upstream's split can not be reproduced. Classes are those of
    ClassName.txt, in its order.
    """
    folder = root / "SUN397"
    classes = [line.strip("/") for _, line in text_lines(folder / "ClassName.txt", "SUN397")]
    names = agreed_names("SUN397", "sun397", [entry[2:] for entry in classes])
    listings = {listing.folder[len(str(folder)) + 1 :]: listing for listing in walk(folder, "sun_*.jpg")}
    match_classes("SUN397", folder, [entry for entry, listing in listings.items() if listing.images], classes)
    rows = sorted((path, label) for label, entry in enumerate(classes) for path in listings[entry].paths)
    skipped = [path for entry in classes for path in listings[entry].skipped]
    return ImageSet("SUN397", *_split_files(ImageFiles(rows, skipped=skipped)), names, read_templates("sun397"))
