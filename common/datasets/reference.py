"""Reference material: ImageNet, TinyImageNet and the Conceptual Captions sentences."""

import csv
import os
from pathlib import Path

import pandas as pd
from torchvision import datasets

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

    train = _image_folder(root / "ImageNet" / "train")
    places = [root / "ImageNet" / folder for folder in ("val_in_folder", "val")]
    val = [_image_folder(folder) for folder in [place for place in places if place.is_dir()][:1]]
    if val and val[0].classes != train.classes:
        raise UserError(f"ImageNet: the class folders of {val[0].root} and {train.root} differ.")
    templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    templates.remove(IMAGENET_TRAINING_PROMPT)
    parts = [ImageFiles([path for path, _ in part.samples], part.targets) for part in (train, *val)]
    return ImageSet(
        "ImageNet",
        parts[0],
        parts[1] if val else None,
        list(IMAGENET_CLASSNAMES),
        [IMAGENET_TRAINING_PROMPT, *templates],
    )


def _image_folder(folder: Path) -> datasets.ImageFolder:
    count = sum(entry.is_dir() for entry in os.scandir(folder))
    if count != 1000:
        raise UserError(
            f"ImageNet: {folder} holds {count} class folders, 1000 are expected (one per wnid, images "
            "inside). Labels are positions of the sorted wnids, so all must be there and nothing else."
        )
    return datasets.ImageFolder(str(folder), loader=str)


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
