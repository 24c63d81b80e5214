"""ImageNet and its class-incremental variants, TinyImageNet, and the Conceptual Captions sentences."""

import csv
import os
from pathlib import Path

import pandas as pd
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.layout import CAPTION_FILES, CAPTIONS, how_to_get
from common.datasets.names import read_names
from common.errors import UserError

IMAGENET_TRAINING_PROMPT = "a photo of a {}."


def imagenet(root: Path, verify: bool) -> ImageSet:
    """ImageNet: all training images, validation images from val_in_folder, else from val, else test is None.

    Labels are positions of the sorted wnids. Names and the 80 templates are open_clip's; the training prompt,
    which ZSCL (mtil/src/datasets/imagenet.py) keeps apart, is moved to the front: their mean does not depend
    on the order.
    """
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES  # slow to import

    train, val = _imagenet_folders(root / "ImageNet")
    templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    templates.remove(IMAGENET_TRAINING_PROMPT)
    return ImageSet("ImageNet", train, val, list(IMAGENET_CLASSNAMES), [IMAGENET_TRAINING_PROMPT, *templates])


def imagenet1000(root: Path, verify: bool) -> ImageSet:
    """ImageNet as the class-incremental protocols use it, below imagenet1000, else below ImageNet.

    Label = position of the sorted class folder, names = CLIP's; templates belong to the papers' configs (ZSCL
    cil/continual_clip/datasets.py, cil/dataset_reqs/imagenet1000_classes.txt).
    """
    from open_clip import IMAGENET_CLASSNAMES  # slow to import

    own = root / "imagenet1000"
    folder = own if own.is_dir() else root / "ImageNet"
    train, val = _imagenet_folders(folder)
    if val is None:
        raise UserError(f"ImageNet1000: {folder} has no validation images, which are its test set; add val/<wnid>/.")
    return ImageSet("ImageNet1000", train, val, list(IMAGENET_CLASSNAMES), [])


def _imagenet_folders(folder: Path) -> tuple[ImageFiles, ImageFiles | None]:
    train, place = _image_folder(folder / "train"), _validation_folder(folder)
    val = _image_folder(place) if place.is_dir() else None
    if val is not None and val.classes != train.classes:
        raise UserError(f"ImageNet: the class folders of {val.root} and {train.root} differ.")
    return _listed(train), None if val is None else _listed(val)


def _listed(part: datasets.ImageFolder) -> ImageFiles:
    return ImageFiles([path for path, _ in part.samples], part.targets)


def _validation_folder(folder: Path) -> Path:
    """val_in_folder where it exists, else val, whether it exists or not."""
    return folder / ("val_in_folder" if (folder / "val_in_folder").is_dir() else "val")


def _image_folder(folder: Path) -> datasets.ImageFolder:
    count = sum(entry.is_dir() for entry in os.scandir(folder))
    if count != 1000:
        raise UserError(
            f"ImageNet: {folder} holds {count} class folders, 1000 are expected (one per wnid, images "
            "inside). Labels are positions of the sorted wnids, so all must be there and nothing else."
        )
    return datasets.ImageFolder(str(folder), loader=str)


def imagenet100(root: Path, verify: bool, lists: str | Path | None = None) -> ImageSet:
    """The first 100 ImageNet wnids in sorted order, label = position, as ZSCL cil/dataset_reqs has them.

    This is not the random choice of 100 classes that other papers call ImageNet-100. `lists` is a folder with
    train_100.txt, val_100.txt or both, lines "val/<wnid>/<file> <label>" relative to ImageNet. For what it lacks, and
    without it, all images of these wnids are taken, sorted: val_100.txt is just that, train_100.txt was never
    released. Names are the first 100 of CLIP's; templates belong to the papers' configs.
    """
    from open_clip import IMAGENET_CLASSNAMES  # slow to import

    wnids, folder = read_names("imagenet100_wnids"), root / "ImageNet"
    files = {split: lists and Path(lists).expanduser() / f"{split}_100.txt" for split in ("train", "val")}
    if lists and not any(path.is_file() for path in files.values()):
        raise UserError(f"ImageNet100: {lists} holds neither train_100.txt nor val_100.txt.")
    places = {"train": folder / "train", "val": _validation_folder(folder)}
    parts = [
        _listed_images(files[split], folder, wnids)
        if lists and files[split].is_file()
        else _images_of(places[split], wnids)
        for split in ("train", "val")
    ]
    return ImageSet("ImageNet100", *parts, list(IMAGENET_CLASSNAMES[:100]), [])


def _listed_images(path: Path, folder: Path, wnids: list[str]) -> ImageFiles:
    images, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        file, _, label = line.rpartition(" ")
        if not (label.isdigit() and int(label) < len(wnids)) or Path(file).parent.name != wnids[int(label)]:
            raise UserError(
                f"ImageNet100: {path}, line {number} ({line!r}): expected <split>/<wnid>/<file> <label> with the wnids "
                "of common/datasets/names/imagenet100_wnids.txt. A list of other classes would get wrong names."
            )
        images.append(folder / file)
        labels.append(int(label))
    return ImageFiles(images, labels)


def _images_of(folder: Path, wnids: list[str]) -> ImageFiles:
    if not folder.is_dir():
        raise UserError(f"ImageNet100: {folder} does not exist; class folders <wnid>/ with images belong there.")
    missing = [wnid for wnid in wnids if not (folder / wnid).is_dir()]
    if missing:
        raise UserError(f"ImageNet100: {folder} lacks {len(missing)} of {len(wnids)} classes: {', '.join(missing)}.")
    images, labels = [], []
    for label, wnid in enumerate(wnids):
        files = sorted(file for file in os.listdir(folder / wnid) if has_file_allowed_extension(file, IMG_EXTENSIONS))
        images += [folder / wnid / file for file in files]
        labels += [label] * len(files)
    return ImageFiles(images, labels)


def tiny_imagenet_sorted(root: Path, verify: bool) -> ImageSet:
    """TinyImageNet as the chooser of MoE-Adapters uses it (its task 0): label = position of the sorted wnid.

    It has neither names nor templates there.
    """
    train, test = _tiny_imagenet_parts(root, sorted(_tiny_wnids(root)))
    return ImageSet("TinyImagenet", train, test, [], [])


def tiny_imagenet(root: Path, verify: bool) -> ImageSet:
    """TinyImageNet as the class-incremental protocols use it: label = line of wnids.txt (continuum's rule).

    The names are those of ZSCL cil/dataset_reqs/tinyimagenet_classes.txt; templates belong to the papers'
    configs.
    """
    wnids = _tiny_wnids(root)
    if wnids != read_names("tinyimagenet_wnids"):
        raise UserError(
            f"TinyImageNet: {root / 'tiny-imagenet-200/wnids.txt'} is not in the published order, by "
            "which classes are numbered and named. Unpack the original archive again."
        )
    train, test = _tiny_imagenet_parts(root, wnids)
    return ImageSet("TinyImageNet", train, test, read_names("tinyimagenet_cil"), [])


def _tiny_wnids(root: Path) -> list[str]:
    path = root / "tiny-imagenet-200" / "wnids.txt"
    wnids = path.read_text().split()
    if len(set(wnids)) != 200:
        raise UserError(f"TinyImageNet: {path} lists {len(set(wnids))} classes, 200 are expected.")
    return wnids


def _tiny_imagenet_parts(root: Path, wnids: list[str]) -> tuple[ImageFiles, ImageFiles]:
    folder = root / "tiny-imagenet-200"
    paths, labels = [], []
    for label, wnid in enumerate(wnids):
        # The order of <wnid>_boxes.txt is continuum's; some copies come without these files.
        boxes = folder / "train" / wnid / f"{wnid}_boxes.txt"
        images = folder / "train" / wnid / "images"
        files = (
            [line.split("\t")[0] for line in boxes.read_text().splitlines()]
            if boxes.exists()
            else sorted(os.listdir(images))
        )
        paths += [images / file for file in files]
        labels += [label] * len(files)
    number = {wnid: label for label, wnid in enumerate(wnids)}
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    test = ImageFiles([folder / "val" / "images" / row[0] for row in rows], [number[row[1]] for row in rows])
    return ImageFiles(paths, labels), test


def caption_file(root: Path) -> Path | None:
    """The first that exists of the published TSV and the CSV of ZSCL's gather script, or None."""
    return next((root / name for name in CAPTION_FILES if (root / name).is_file()), None)


def captions(root: str | Path) -> list[str]:
    """All sentences of the Conceptual Captions validation file, repeats included, in file order.

    The TSV (caption, url; no header, no quoting) comes first since it has them all; the gather script's
    _output.csv (title, filepath; header) holds only those whose image could still be fetched. Raises
    UserError if neither exists or if the file can not be parsed.
    """
    root = Path(root).expanduser()
    path = caption_file(root)
    if path is None:
        looked = ", ".join(str(root / name) for name in CAPTION_FILES)
        raise UserError(f"{CAPTIONS}: not found; looked for {looked}. {how_to_get(CAPTIONS, str(root))}")
    options = {"sep": "\t", "dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        if path.suffix == ".tsv":
            table = pd.read_csv(path, header=None, names=["title", "url"], quoting=csv.QUOTE_NONE, **options)
        else:
            table = pd.read_csv(path, usecols=["title"], **options)
    except ValueError as error:
        raise UserError(f"{path}: not a table of captions ({error}). Download the file again.") from error
    if table.empty:
        raise UserError(f"{path}: holds no captions. Download the file again.")
    return table["title"].tolist()
