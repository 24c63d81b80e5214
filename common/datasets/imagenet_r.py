"""ImageNet-R: 30,000 images of 200 ImageNet classes in other styles, and the ways it is split into train and test.

The archive has no split: each paper made one. No file is moved here; a copy in which InfLoRA's code has moved files
into train/ and test/ (utils/data.py:L187-L244) gives the same data set.
"""

from itertools import pairwise
from pathlib import Path

import torch

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.listing import list_folder, match_classes, no_image
from common.datasets.lists import listed_classes, read_list, read_text_list, refuse_missing, refuse_outside
from common.datasets.names import read_names
from common.errors import UserError

FOLDER, CLASSES = "imagenet-r", 200
TRAIN_SHARE = 0.8  # 24,000 of 30,000
LISTS = {split: (f"imagenet-r_{split}.yaml", f"imagenet-r_{split}.txt") for split in ("train", "test")}


def imagenet_r(root: Path, verify: bool, split: str | int | Path = 40) -> ImageSet:
    """ImageNet-R below root/imagenet-r; names are the WordNet ids.

    split: a seed for InfLoRA's rule: all files sorted, then torch.randperm under that seed; 24,000 train. The
    published logs are of seed 40; the released code gives the first seed of the run. Labels are positions of the sorted
    ids.
    "folders": the existing train/ and test/. Else a folder with CODA-Prompt's lists, imagenet-r_train.yaml and
    imagenet-r_test.yaml (keys data and targets), or the same as imagenet-r_train.txt and imagenet-r_test.txt (lines
    <wnid>/<file> <label>), whose labels need not be in the order of the ids.
    Raises UserError for a missing split, and for lists that name missing files or contradict themselves.
    """
    folder, split = root / FOLDER, str(split)
    if split.isdecimal():
        parts, wnids = _split_by_seed(folder, int(split)), read_names("imagenet_r_wnids")
    elif split == "folders":
        parts, wnids = _split_by_folders(folder), read_names("imagenet_r_wnids")
    else:
        parts, wnids = _split_by_lists(folder, Path(split).expanduser())
    train, test = parts
    return ImageSet("ImageNetR", train, test, wnids, [])


def _class_files(folders: list[Path]) -> tuple[list[tuple[str, int]], list[str]]:
    """Path and label of all images in class folders, by class, then by file name; and litter.

    Raises UserError unless the folders together hold the published classes, each with images, and no image twice.
    """
    known, rows, skipped = read_names("imagenet_r_wnids"), [], []
    present = {folder: {entry for entry in list_folder(folder).folders if entry[0] == "n"} for folder in folders}
    match_classes("ImageNetR", folders[0], set().union(*present.values()), known)
    for label, wnid in enumerate(known):
        listings = {folder: list_folder(folder / wnid) for folder in folders if wnid in present[folder]}
        if not any(listing.images for listing in listings.values()):
            raise UserError(no_image("ImageNetR", list(listings.values())))
        skipped += [path for listing in listings.values() for path in listing.skipped]
        files = sorted((file, folder) for folder, listing in listings.items() for file in listing.images)
        if twice := [(*one, other[1]) for one, other in pairwise(files) if one[0] == other[0]]:
            file, one, other = twice[0]
            raise UserError(
                f"ImageNetR: {wnid}/{file} is in {one} and in {other}. Keep one: it would be trained on and tested."
            )
        rows += [(f"{folder}/{wnid}/{file}", label) for file, folder in files]
    return rows, skipped


def _split_by_seed(folder: Path, seed: int) -> list[ImageFiles]:
    moved = [folder / split for split in ("train", "test") if (folder / split).is_dir()]
    rows, skipped = _class_files([folder, *moved])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    train = int(TRAIN_SHARE * len(rows))
    # in the order of the files, as upstream's ImageFolder reads them back from where it moved them
    return [
        ImageFiles([rows[index] for index in sorted(part)], skipped=skipped) for part in (order[:train], order[train:])
    ]


def _split_by_folders(folder: Path) -> list[ImageFiles]:
    folders = [folder / split for split in ("train", "test")]
    if not all(split.is_dir() for split in folders):
        raise UserError(f"ImageNetR: split 'folders' needs {folders[0]} and {folders[1]} with class folders.")
    rows, skipped = _class_files(folders)
    return [ImageFiles([row for row in rows if row[0].startswith(f"{split}/")], skipped=skipped) for split in folders]


def _split_by_lists(folder: Path, lists: Path) -> tuple[list[ImageFiles], list[str]]:
    parts = []
    for file in _list_files(lists):
        names, labels = read_list(file, "ImageNetR") if file.suffix == ".yaml" else read_text_list(file, "ImageNetR")
        refuse_outside(names, folder, file, "ImageNetR")
        paths = [_listed(folder, Path(name)) for name in names]
        parts.append(ImageFiles(zip(paths, labels)))
        refuse_missing(parts[-1], file, "ImageNetR")
    wnids = listed_classes("ImageNetR", lists, parts, CLASSES)
    match_classes("ImageNetR", lists, wnids, read_names("imagenet_r_wnids"))
    return parts, wnids


def has_lists(folder: Path) -> bool:
    """Whether any of the lists is in this folder."""
    return any((folder / name).is_file() for names in LISTS.values() for name in names)


def _list_files(folder: Path) -> list[Path]:
    """The training and the test list, YAML rather than text. Raises UserError with the names of missing lists."""
    missing = [names for names in LISTS.values() if not any((folder / name).is_file() for name in names)]
    if missing:
        lists = "; ".join(f"the list {folder / names[0]} can not be read (nor {names[1]})" for names in missing)
        raise UserError(f"ImageNetR: {lists}: no such file. Copy CODA-Prompt's lists there, or choose another split.")
    return [next(folder / name for name in names if (folder / name).is_file()) for names in LISTS.values()]


def _listed(folder: Path, name: Path) -> Path:
    """The file listed as <any folder>/<wnid>/<file>: below `folder`, or where InfLoRA's code has moved it."""
    paths = [parent / name.parent.name / name.name for parent in (folder, folder / "train", folder / "test")]
    return next((path for path in paths if path.is_file()), paths[0])
