"""CoOp's splits of eight data sets of MTIL (arXiv 2109.01134), which the released code of X-TAIL reads (2406.18868).

A list split_zhou_<set>.json beside the images has the keys train, val and test; an entry is [path, label, class name].
"""

import hashlib
import json
from pathlib import Path

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.lists import listed_classes, refuse_missing, refuse_outside
from common.datasets.names import read_templates
from common.errors import UserError
from common.protocols import MTIL_ORDER_1

SPLITS = MTIL, COOP = ("mtil", "coop")
# By data set: the folder that the list's paths are relative to, the end of the list's name, MTIL's templates.
LISTS = {
    "Caltech101": ("caltech101/101_ObjectCategories", "Caltech101", "caltech101"),
    "DTD": ("dtd/dtd/images", "DescribableTextures", "dtd"),
    "EuroSAT": ("eurosat/2750", "EuroSAT", "eurosat"),
    "Flowers": ("flowers-102/jpg", "OxfordFlowers", "flowers"),
    "Food": ("food-101/images", "Food101", "food"),
    "OxfordPet": ("oxford-iiit-pet/images", "OxfordPets", "oxford_pet"),
    "StanfordCars": ("stanford_cars", "StanfordCars", "stanford_cars"),
    "SUN397": ("SUN397", "SUN397", "sun397"),
}
UNLISTED = [name for name in MTIL_ORDER_1 if name not in LISTS]


def coop(name: str, root: Path) -> ImageSet:
    """The images, labels and class names ("_" as space) of the list; val is not used.

    Raises UserError for a list that is absent, contradicts itself, or names missing files or files elsewhere.
    """
    (folder, _, templates), source = LISTS[name], list_file(name, root)
    rows = [_entries(name, source, split) for split in ("train", "test")]
    refuse_outside((file for part in rows for file, _, _ in part), root / folder, source, name)
    train, test = (ImageFiles((root / folder / file, label) for file, label, _ in part) for part in rows)
    for part in (train, test):
        refuse_missing(part, source, name)
    classes = [entry.replace("_", " ") for part in rows for _, _, entry in part]
    names = listed_classes(name, source.parent, (train, test), entries=classes)
    return ImageSet(name, train, test, names, read_templates(templates))


def list_file(name: str, root: Path) -> Path:
    """The one list in the folder of the images, or above it below `root`. Raises UserError for none and for several."""
    folder, end, _ = LISTS[name]
    folders = [root / folder, *(root / folder).parents][: len(Path(folder).parts)]
    found = [path for place in folders for path in sorted(place.glob("split_zhou_*.json"))]
    if len(found) > 1:
        raise UserError(f"{name}: there are {len(found)} lists of CoOp's: {', '.join(map(str, found))}. Keep one.")
    if not found:
        raise UserError(
            f"{name}: CoOp's list split_zhou_{end}.json is not in {' or '.join(map(str, folders))}. Put it there, from "
            "DATASETS.md of https://github.com/KaiyangZhou/CoOp, or take MTIL's splits (--splits mtil)."
        )
    return found[0]


def notes(name: str, root: Path) -> list[str]:
    """For a fingerprint: the list that was read, or that there is none for this set of MTIL."""
    if name in LISTS:
        path = list_file(name, root)
        return [f"CoOp's list {path.name}, md5 {hashlib.md5(path.read_bytes()).hexdigest()}"]
    return ["CoOp has no list: MTIL's split"] if name in UNLISTED else []


def _entries(name: str, source: Path, split: str) -> list[tuple[str, int, str]]:
    """File, label and class name of the images of one split."""
    try:
        rows = json.loads(source.read_text(encoding="utf-8-sig"))[split]
        if strange := [row for row in rows if [type(item) for item in row] != [str, int, str]]:
            raise ValueError(f"the {split} entry {str(strange[0])[:80]} is not [path, label, class name]")
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"nothing under the key {split}" if isinstance(error, LookupError) else error
        raise UserError(f"{name}: the list {source} can not be read ({reason}). Get it anew from CoOp.") from error
    return [(file, label, entry) for file, label, entry in rows]
