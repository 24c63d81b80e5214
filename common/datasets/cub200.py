"""CUB-200-2011: 11,788 images of 200 kinds of birds, in the official split (VQ-Prompt dataloaders/dataloader.py).

Each line of three lists starts with an image's number: images.txt gives its file, image_class_labels.txt its class from
1 on, train_test_split.txt 1 for training and 0 for test.
"""

from pathlib import Path

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.lists import listed_classes, refuse_missing, refuse_outside, text_lines
from common.errors import UserError

FOLDER, CLASSES = "CUB_200_2011", 200


def cub200(root: Path, verify: bool) -> ImageSet:
    """CUB-200 below root/CUB_200_2011; label = class - 1, images in the order of images.txt.

    Names are the image folders' without the number, "_" as space. Raises UserError for lists that are damaged,
    contradict each other or name missing files.
    """
    folder = root / FOLDER
    files = _numbered(folder / "images.txt")
    classes, flags = (_numbered(folder / f"{name}.txt") for name in ("image_class_labels", "train_test_split"))
    for name, other in (("image_class_labels.txt", classes), ("train_test_split.txt", flags)):
        if other.keys() != files.keys():
            differing = sorted(files.keys() ^ other.keys(), key=int)
            raise UserError(
                f"CUB200: {folder / name} and images.txt do not list the same images; {len(differing)} stand in one "
                f"only, the first is number {differing[0]}. Get both from the same archive."
            )
    refuse_outside(files.values(), folder / "images", folder / "images.txt", "CUB200")
    rows: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
    for number, file in files.items():
        label, flag, bird = classes[number], flags[number], file.split("/")[0]
        if not label.isdecimal() or not 1 <= int(label) <= CLASSES:
            raise UserError(f"CUB200: image_class_labels.txt gives image {number} the class {label!r}, not 1 to 200.")
        if flag not in rows:
            raise UserError(f"CUB200: train_test_split.txt gives image {number} the flag {flag!r}, not 0 or 1.")
        if bird.split(".")[0].lstrip("0") != label:
            raise UserError(
                f"CUB200: images.txt has image {number} in the folder {bird}, whose number is not its class {label}. "
                "Get both lists and the folders from the same archive."
            )
        rows[flag].append((folder / "images" / file, int(label) - 1))
    parts = []
    for part in rows.values():
        parts.append(ImageFiles(part))
        refuse_missing(parts[-1], folder / "images.txt", "CUB200")
    birds = listed_classes("CUB200", folder, parts, CLASSES)
    return ImageSet("CUB200", parts[0], parts[1], [_bird(bird) for bird in birds], [])


def _numbered(path: Path) -> dict[str, str]:
    """Values of a list by number, in the list's order."""
    entries: dict[str, str] = {}
    for row, line in text_lines(path, "CUB200"):
        number, value = (*line.split(maxsplit=1), "")[:2]
        if not number.isdecimal() or not value:
            raise UserError(f"CUB200: {path}, line {row} ({line!r}): expected a number and a value.")
        if number in entries:
            raise UserError(f"CUB200: {path}, line {row}: number {number} occurs twice.")
        entries[number] = value
    return entries


def _bird(folder: str) -> str:
    """001.Black_footed_Albatross -> Black footed Albatross"""
    return folder.partition(".")[2].replace("_", " ") or folder
