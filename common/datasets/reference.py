"""Reference data sets: ImageNet, TinyImageNet and Conceptual Captions."""

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.datasets.images import ImageFiles, ImageSet, Transform, fingerprint
from common.datasets.layout import CAPTION_FILES, CAPTIONS, how_to_get
from common.datasets.miniature import load_captioned
from common.datasets.names import read_names
from common.errors import UserError
from common.mini import MINI
from common.mini.domains import reference_captions

if TYPE_CHECKING:
    import pandas as pd
    from torchvision import datasets

IMAGENET_TRAINING_PROMPT = "a photo of a {}."


def imagenet(root: Path, verify: bool) -> ImageSet:
    """ImageNet: all training images, validation images from val_in_folder, else from val, else test is None.

    Labels are positions of the sorted wnids.
    """
    return ImageSet("ImageNet", *imagenet_parts(root / "ImageNet"), *imagenet_names_and_templates())


def imagenet_parts(folder: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """All training images below `folder`, and the validation images or None. Raises UserError without 1000 classes."""
    train, val_folder = _image_folder(folder / "train"), validation_folder(folder)
    val = _image_folder(val_folder) if val_folder.is_dir() else None
    if val is not None and val.classes != train.classes:
        raise UserError(f"ImageNet: the class folders of {val.root} and {train.root} differ.")
    return _files(train), None if val is None else _files(val)


def validation_folder(folder: Path) -> Path:
    """val_in_folder where it exists, else val, whether that exists or not."""
    return folder / ("val_in_folder" if (folder / "val_in_folder").is_dir() else "val")


def _files(part: "datasets.ImageFolder") -> ImageFiles:
    return ImageFiles([path for path, _ in part.samples], part.targets)


def imagenet_names_and_templates() -> tuple[list[str], list[str]]:
    """The 1000 class names and the 80 templates, training prompt first, without reading ImageNet's files.

    Names and templates are open_clip's. The training prompt, a separate one in ZSCL (mtil/src/datasets/imagenet.py),
    is moved to the front: the templates' mean does not depend on the order.
    """
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES  # slow to import

    templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    templates.remove(IMAGENET_TRAINING_PROMPT)
    return list(IMAGENET_CLASSNAMES), [IMAGENET_TRAINING_PROMPT, *templates]


def _image_folder(folder: Path) -> "datasets.ImageFolder":
    from torchvision import datasets

    count = sum(entry.is_dir() for entry in os.scandir(folder))
    if count != 1000:
        raise UserError(
            f"ImageNet: {folder} holds {count} class folders, 1000 are expected (one per wnid, images "
            "inside). Labels are positions of the sorted wnids, so all must be there and nothing else."
        )
    return datasets.ImageFolder(str(folder), loader=str)


def tiny_imagenet_sorted(root: Path, verify: bool) -> ImageSet:
    """TinyImageNet for DDAS of MoE-Adapters (its task 0): label = position of the sorted wnid. No names."""
    train, test = _tiny_imagenet_parts(root, sorted(_tiny_wnids(root)))
    return ImageSet("TinyImagenet", train, test, [], [])


def tiny_imagenet(root: Path, verify: bool) -> ImageSet:
    """TinyImageNet in the class-incremental protocols: label = line of wnids.txt (continuum's rule).

    The names are from ZSCL cil/dataset_reqs/tinyimagenet_classes.txt; the templates are in the papers' configs.
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


def caption_file(root: Path, endings: tuple[str, ...] = (".tsv", ".csv")) -> Path | None:
    """The published TSV, else the CSV of ZSCL's gather script, else None."""
    return next((root / name for name in CAPTION_FILES if name.endswith(endings) and (root / name).is_file()), None)


def captions(root: str | Path) -> list[str]:
    """All sentences of the Conceptual Captions validation file, repeats included, in file order.

    The TSV (caption, url; no header, no quoting) is preferred since it is complete; the gather script's _output.csv
    (title, filepath; header) holds only captions whose image could still be fetched. Root "mini" stands for the
    miniature's sentences. Raises UserError if neither exists or if the file can not be parsed.
    """
    if str(root) == MINI:
        return reference_captions()
    root = Path(root).expanduser()
    path = caption_file(root)
    if path is None:
        paths = ", ".join(str(root / name) for name in CAPTION_FILES)
        raise UserError(f"{CAPTIONS}: not found; looked for {paths}. {how_to_get(CAPTIONS, str(root))}")
    return _caption_table(path)["title"].tolist()


def _caption_table(path: Path) -> "pd.DataFrame":
    """Rows of the file: column title, and url (TSV) or, if the CSV has it, filepath."""
    import pandas as pd

    options: dict[str, Any] = {"sep": "\t", "dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        if path.suffix == ".tsv":
            table = pd.read_csv(path, header=None, names=["title", "url"], quoting=csv.QUOTE_NONE, **options)
        else:
            table = pd.read_csv(path, **options)
    except ValueError as error:
        raise UserError(f"{path}: not a table of captions ({error}). Download the file again.") from error
    if "title" not in table:
        raise UserError(f"{path}: not a table of captions (no column title). Download the file again.")
    if table.empty:
        raise UserError(f"{path}: holds no captions. Download the file again.")
    return table


def captioned_images(root: str | Path, transform: Transform | None = None) -> ImageSet:
    """The images of Conceptual Captions that ZSCL's gather script fetched (mtil/src/datasets/cc.py).

    train yields (image, row); classnames are the captions by row, and the template is the caption itself. Paths are
    relative to the CSV's folder. Root "mini" stands for the miniature's pairs.
    Raises UserError if the CSV, its column filepath or a listed image is missing; the published TSV has no images.
    """
    if str(root) == MINI:
        return load_captioned(transform)
    root = Path(root).expanduser()
    path = caption_file(root, (".csv",))
    if path is None:
        listings = ", ".join(str(root / name) for name in CAPTION_FILES if name.endswith(".csv"))
        raise UserError(
            f"{CAPTIONS}: its images are wanted, but there is no list of them; looked for {listings}. The published "
            ".tsv has sentences only. The list is tab-separated with the header title, filepath and holds the images "
            "that could be fetched, with paths relative to its folder."
        )
    table = _caption_table(path)
    if "filepath" not in table:
        raise UserError(f"{path}: has no column filepath, so its images can not be found. Gather them again.")
    paths = [path.parent / file for file in table["filepath"]]
    absent = [file for file in paths if not file.is_file()]
    if absent:
        raise UserError(
            f"{path}: {len(absent):,} of {len(paths):,} listed images do not exist, the first is {absent[0]}. Put the "
            "folder cc_data beside the list, or gather the images again."
        )
    train = ImageFiles(paths, range(len(paths)), transform)
    return ImageSet(CAPTIONS, train, None, table["title"].tolist(), ["{}"], fingerprint(train, None, root))
