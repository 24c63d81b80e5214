"""ImageNet-R: 30,000 images of 200 ImageNet classes in other styles, and the ways it is split into train and test.

The archive has no split: each paper made one. No file is moved here; a copy in which InfLoRA's code has moved files
into train/ and test/ (utils/data.py:L187-L244) gives the same data set.
"""

import os
from pathlib import Path

import torch
import yaml

from common.datasets.images import ImageFiles, ImageSet, absent_files
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
        parts, wnids = _split_by_seed(folder, int(split))
    elif split == "folders":
        parts, wnids = _split_by_folders(folder)
    else:
        parts, wnids = _split_by_lists(folder, Path(split).expanduser())
    train, test = parts
    return ImageSet("ImageNetR", train, test, wnids, [])


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Sorted images of each class folder in `folder`; {} if it does not exist."""
    if not folder.is_dir():
        return {}
    wnids = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.startswith("n"))
    return {wnid: [folder / wnid / file for file in sorted(os.listdir(folder / wnid))] for wnid in wnids}


def _numbered(wnids: list[str], folder: Path) -> dict[str, int]:
    if len(wnids) != CLASSES:
        raise UserError(
            f"ImageNetR: {folder} holds {len(wnids)} class folders, {CLASSES} are expected. Labels are positions of "
            "the sorted names, so all must be there and nothing else."
        )
    return {wnid: label for label, wnid in enumerate(wnids)}


def _split_by_seed(folder: Path, seed: int) -> tuple[list[ImageFiles], list[str]]:
    listings = [_class_files(path) for path in (folder, folder / "train", folder / "test")]
    wnids = sorted(set().union(*listings))
    label = _numbered(wnids, folder)
    by_class = [[path for listing in listings for path in listing.get(wnid, [])] for wnid in wnids]
    files = [path for paths in by_class for path in sorted(paths, key=lambda path: path.name)]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    train = int(TRAIN_SHARE * len(files))
    # in the order of the files, as upstream's ImageFolder reads them back from where it moved them
    parts = [[files[index] for index in sorted(part)] for part in (order[:train], order[train:])]
    return [ImageFiles(part, [label[path.parent.name] for path in part]) for part in parts], wnids


def _split_by_folders(folder: Path) -> tuple[list[ImageFiles], list[str]]:
    listings = [_class_files(folder / split) for split in ("train", "test")]
    if not all(listings):
        raise UserError(
            f"ImageNetR: split 'folders' needs {folder / 'train'} and {folder / 'test'} with class folders."
        )
    wnids = sorted(set().union(*listings))
    label = _numbered(wnids, folder)
    parts = []
    for listing in listings:
        files = [path for wnid in wnids for path in listing.get(wnid, [])]
        parts.append(ImageFiles(files, [label[path.parent.name] for path in files]))
    return parts, wnids


def _split_by_lists(folder: Path, lists: Path) -> tuple[list[ImageFiles], list[str]]:
    wnid_of: dict[int, str] = {}
    parts = []
    for file in _list_files(lists):
        names, labels = read_list(file, "ImageNetR") if file.suffix == ".yaml" else read_text_list(file, "ImageNetR")
        paths = [_listed(folder, Path(name)) for name in names]
        for path, label in zip(paths, labels):
            if wnid_of.setdefault(label, path.parent.name) != path.parent.name:
                raise UserError(f"ImageNetR: {file} gives label {label} to {wnid_of[label]} and {path.parent.name}.")
        refuse_missing(paths, file, "ImageNetR")
        parts.append(ImageFiles(paths, labels))
    if sorted(wnid_of) != list(range(CLASSES)) or len(set(wnid_of.values())) != CLASSES:
        raise UserError(
            f"ImageNetR: the lists in {lists} do not give the labels 0 to {CLASSES - 1} to as many classes."
        )
    return parts, [wnid_of[label] for label in range(CLASSES)]


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


def read_list(path: Path, name: str) -> tuple[list[str], list[int]]:
    """File names and labels of one of CODA-Prompt's YAML lists. Raises UserError for other content."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # minutes without the C one
    except OSError as error:
        raise UserError(f"{name}: the list {path} can not be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: the list {path} is not YAML ({' '.join(str(error).split())[:200]}).") from error
    data, targets = (content.get(key) if isinstance(content, dict) else None for key in ("data", "targets"))
    if not isinstance(data, list) or not isinstance(targets, list) or len(data) != len(targets):
        raise UserError(f"{name}: the list {path} needs the keys data and targets, two lists of one length.")
    if not all(isinstance(label, int) for label in targets):
        raise UserError(f"{name}: the list {path} has targets that are no numbers.")
    return [str(entry) for entry in data], targets


def read_text_list(path: Path, name: str) -> tuple[list[str], list[int]]:
    """File names and labels of a list with lines `<file> <label>`. Raises UserError for other content."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: the list {path} can not be read ({error}).") from error
    files, labels = [], []
    for number, line in enumerate(lines, start=1):
        file, _, label = line.rpartition(" ")
        if not (file and label.isdecimal()):
            raise UserError(f"{name}: {path}, line {number} ({line!r}): expected <file> <label>.")
        files.append(file)
        labels.append(int(label))
    return files, labels


def refuse_missing(paths: list[Path], source: Path, name: str) -> None:
    """Raise UserError with the number and the first ten of the listed files that do not exist, if any."""
    missing = absent_files(paths)
    if missing:
        more = "" if len(missing) <= 10 else f" and {len(missing) - 10:,} more"
        raise UserError(
            f"{name}: {source} names {len(missing):,} of {len(paths):,} files that do not exist: "
            f"{', '.join(missing[:10])}{more}. Unpack the data set there, or give the lists that belong to it."
        )
