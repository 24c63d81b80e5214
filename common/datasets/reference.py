"""Reference data sets: ImageNet, TinyImageNet and Conceptual Captions."""

import csv
import os
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.datasets.imagenet_validation import validation_files
from common.datasets.images import ImageFiles, ImageSet, Transform, class_files, fingerprint
from common.datasets.layout import CAPTION_FILES, CAPTIONS, absolute, how_to_get
from common.datasets.listing import list_folder, match_classes
from common.datasets.lists import parsed_lines, refuse_missing, refuse_outside, text_lines
from common.datasets.miniature import load_captioned
from common.datasets.names import read_names
from common.errors import UserError
from common.mini import MINI
from common.mini.domains import reference_captions

if TYPE_CHECKING:
    import pandas as pd

IMAGENET_TRAINING_PROMPT = "a photo of a {}."


def imagenet(root: Path, verify: bool) -> ImageSet:
    """ImageNet: all training images, validation images from val_in_folder, else from val, else test is None.

    Labels are positions of the sorted wnids. test is None as well where val is one flat folder and nothing tells its
    classes: reference images are training images.
    """
    folder, wnids = root / "ImageNet", read_names("imagenet_wnids")
    train = class_files("ImageNet", folder / "train", wnids)
    return ImageSet("ImageNet", train, validation_files("ImageNet", folder, wnids), *imagenet_names_and_templates())


def imagenet_names_and_templates() -> tuple[list[str], list[str]]:
    """The 1000 class names and the 80 templates, training prompt first, without reading ImageNet's files.

    Names and templates are open_clip's. The training prompt, a separate one in ZSCL (mtil/src/datasets/imagenet.py),
    is moved to the front: the templates' mean does not depend on the order.
    """
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES  # slow to import

    templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
    templates.remove(IMAGENET_TRAINING_PROMPT)
    return list(IMAGENET_CLASSNAMES), [IMAGENET_TRAINING_PROMPT, *templates]


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
    wnids = [line for _, line in text_lines(path, "TinyImageNet")]
    match_classes("TinyImageNet", path, wnids, read_names("tinyimagenet_wnids"))
    return list(dict.fromkeys(wnids))


def _tiny_imagenet_parts(root: Path, wnids: list[str]) -> tuple[ImageFiles, ImageFiles]:
    folder = root / "tiny-imagenet-200"
    within = _within(folder / "train" / wnids[0])
    listed = class_files("TinyImageNet", folder / "train", wnids, within)
    rows: list[tuple[str, int]] = []
    for label, wnid in enumerate(wnids):
        # The order of <wnid>_boxes.txt is continuum's; some copies come without these files.
        boxes, images = folder / "train" / wnid / f"{wnid}_boxes.txt", folder / "train" / wnid / within
        if boxes.exists():
            files = [f"{images}/{line.split(chr(9))[0]}" for _, line in text_lines(boxes, "TinyImageNet")]
        else:
            files = listed.paths[bisect_left(listed.labels, label) : bisect_right(listed.labels, label)]
        rows += [(file, label) for file in files]
    return ImageFiles(rows, skipped=listed.skipped), _tiny_validation(folder / "val", wnids)


def _within(folder: Path) -> str:
    """Where in its class folders images lie: as published, or in the folders themselves, as many copies have them."""
    return "images" if os.path.isdir(folder / "images") else ""


def _tiny_validation(folder: Path, wnids: list[str]) -> ImageFiles:
    """The validation images in the order of their numbers, as published or already sorted into class folders."""
    images = folder / "images"
    if os.path.isdir(images) and list_folder(images).images:
        label = {wnid: number for number, wnid in enumerate(wnids)}
        listed = folder / "val_annotations.txt"

        def row(line: str) -> tuple[Path, int]:
            file, wnid = line.split("\t")[:2]
            return images / file, label[wnid]

        part = ImageFiles(parsed_lines(listed, "TinyImageNet", row))
        if os.path.isdir(folder / wnids[0]):  # half sorted: the others are in folders by class
            refuse_missing(part, listed, "TinyImageNet")
        return part
    part = class_files("TinyImageNet", folder, wnids, _within(folder / wnids[0]), more=("images",))
    rows = [(len(file := os.path.basename(path)), file, path, number) for path, number in zip(part.paths, part.labels)]
    return ImageFiles([row[2:] for row in sorted(rows)], skipped=part.skipped)  # val_9.JPEG before val_10.JPEG


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
    if path.suffix == ".tsv" and ((table["url"] == "").any() or table["title"].str.contains("://").all()):
        raise UserError(f"{path}: not a table of captions and their images' addresses. Download the file again.")
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
    root = absolute(root)
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
    refuse_outside(table["filepath"], path.parent, path, CAPTIONS)
    train = ImageFiles([(path.parent / file, row) for row, file in enumerate(table["filepath"])], transform)
    if absent := train.absent() + train.empty():
        raise UserError(
            f"{path}: {len(absent):,} of {len(train):,} listed images do not exist or are empty files, the first is "
            f"{absent[0]}. Put the folder cc_data beside the list, or gather the images again."
        )
    return ImageSet(CAPTIONS, train, None, table["title"].tolist(), ["{}"], fingerprint(train, None, root))
