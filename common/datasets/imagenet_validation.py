"""ImageNet's validation images: in class folders, or in one folder as the archive unpacks them."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from common.datasets.images import ImageFiles, class_files
from common.datasets.listing import list_folder
from common.datasets.lists import parsed_lines
from common.datasets.names import read_names
from common.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
NUMBERS, SYNSETS, SOLUTION = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "LOC_val_solution.csv"


def validation_files(name: str, folder: Path, wnids: Sequence[str], more: Collection[str] = ()) -> ImageFiles | None:
    """The validation images of the classes below val_in_folder, else val, by class; None where there are none.

    A flat folder is read with Kaggle's LOC_val_solution.csv, or with the devkit's ground truth and meta.mat; None
    without them. more: other classes that may be there, and are left out.
    """
    places = [list_folder(folder / entry) for entry in ("val_in_folder", "val") if os.path.isdir(folder / entry)]
    listing = next((listing for listing in places if listing.images or listing.folders), None)
    if listing is None:
        return None
    place = Path(listing.folder)
    if not listing.images or {*listing.folders} & {*wnids}:
        return class_files(name, place, wnids, more=more)
    wnid_of = _ground_truth(name, folder, place)
    if wnid_of is None:
        return None
    published = {*read_names("imagenet_wnids")}
    if unknown := [image for image in listing.images if wnid_of.get(Path(image).stem) not in published]:
        raise UserError(f"{name}: the ground truth gives {place / unknown[0]} no class of ImageNet. Remove it.")
    label = {wnid: number for number, wnid in enumerate(wnids)}
    rows = sorted((label.get(wnid_of[Path(image).stem], -1), image) for image in listing.images)
    return ImageFiles([(f"{place}/{image}", of) for of, image in rows if of >= 0], skipped=listing.skipped)


def no_validation(name: str, folder: Path) -> UserError:
    return UserError(
        f"{name}: {folder} has no validation images of known class, which are its test set; add val/<wnid>/, or to a "
        f"flat val {SOLUTION}, or {NUMBERS} and {SYNSETS} of {DEVKIT}/data."
    )


def _solution(line: str) -> tuple[str, str]:
    image, classes = line.replace('"', "").split(",")
    return image, classes.split()[0]


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
        rows = parsed_lines(found[SOLUTION], name, _solution)
        solution, twice = dict(rows), Counter(image for image, _ in rows).most_common(1)
        if twice and twice[0][1] > 1:
            raise UserError(f"{name}: {found[SOLUTION]} has {twice[0][0]} twice. Get it anew from its source.")
        return solution
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
    classes = parsed_lines(found[NUMBERS], name, lambda line: wnid[line])
    return {f"ILSVRC2012_val_{image:08d}": label for image, label in enumerate(classes, start=1)}
