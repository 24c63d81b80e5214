"""ImageNet's validation images: in class folders, or in one folder as the archive unpacks them."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from common.datasets.images import ImageFiles, class_files
from common.datasets.listing import list_folder
from common.datasets.lists import text_lines
from common.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
NUMBERS, SYNSETS, SOLUTION = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "LOC_val_solution.csv"


def validation_files(name: str, folder: Path, wnids: Sequence[str], more: bool = False) -> ImageFiles | None:
    """The validation images of the classes below val_in_folder, else val, by class; None where there are none.

    A flat folder is read with Kaggle's LOC_val_solution.csv, or with the devkit's ground truth and meta.mat; None
    without them. more: there may be other classes, which are left out.
    """
    place = folder / ("val_in_folder" if os.path.isdir(folder / "val_in_folder") else "val")
    if not os.path.isdir(place):
        return None
    listing = list_folder(place)
    if not listing.images or {*listing.folders} & {*wnids}:
        return class_files(name, place, wnids, more=None if more else ()) if listing.folders else None
    wnid_of = _ground_truth(name, folder, place)
    if wnid_of is None:
        return None
    if unknown := [image for image in listing.images if Path(image).stem not in wnid_of]:
        raise UserError(f"{name}: {place / unknown[0]} is not in the ground truth of ImageNet. Remove it.")
    label = {wnid: number for number, wnid in enumerate(wnids)}
    rows = sorted((label.get(wnid_of[Path(image).stem], -1), image) for image in listing.images)
    rows = [row for row in rows if row[0] >= 0]
    return ImageFiles([f"{place}/{image}" for _, image in rows], [row[0] for row in rows], skipped=listing.skipped)


def no_validation(name: str, folder: Path) -> UserError:
    return UserError(
        f"{name}: {folder} has no validation images of known class, which are its test set; add val/<wnid>/, or to a "
        f"flat val {SOLUTION}, or {NUMBERS} and {SYNSETS} of {DEVKIT}/data."
    )


def _ground_truth(name: str, folder: Path, place: Path) -> dict[str, str] | None:
    """The wnid of each validation image by its name without ending, or None without a file that tells them."""
    folders = (folder, place, folder / DEVKIT / "data", folder / DEVKIT, folder / "devkit/data", folder / "data")
    found = {
        file: parent / file
        for file in (NUMBERS, SYNSETS, SOLUTION)
        for parent in folders[::-1]
        if (parent / file).is_file()
    }
    if SOLUTION in found:
        rows = csv.reader(line for _, line in text_lines(found[SOLUTION], name))
        return {row[0]: row[1].split()[0] for row in rows if row[0] != "ImageId"}
    if NUMBERS not in found:
        return None
    if SYNSETS not in found:
        raise UserError(
            f"{name}: {found[NUMBERS]} numbers the classes as {SYNSETS} of the same devkit does, which is missing. Put "
            "it beside that file."
        )
    from scipy.io import loadmat

    synsets = loadmat(found[SYNSETS], squeeze_me=True)["synsets"]
    wnid = {str(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
    lines = text_lines(found[NUMBERS], name)
    return {f"ILSVRC2012_val_{image:08d}": wnid[line] for image, (_, line) in enumerate(lines, start=1)}
