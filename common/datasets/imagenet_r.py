"""ImageNet-R: 30,000 images of 200 ImageNet classes in other styles, and the ways it is split into train and test.

The archive has no split of its own: each paper made one. Nothing is moved here; a copy in which InfLoRA's code has
moved files into train/ and test/ (utils/data.py:L187-L244) is read as if it had not.
"""

import os
from pathlib import Path

import torch
import yaml

from common.datasets.images import ImageFiles, ImageSet
from common.errors import UserError

FOLDER, CLASSES = "imagenet-r", 200
TRAIN_SHARE = 0.8  # 24,000 of 30,000
LISTS = {split: (f"imagenet-r_{split}.yaml", f"imagenet-r_{split}.txt") for split in ("train", "test")}


def imagenet_r(root: Path, verify: bool, split: str | int | Path = 40) -> ImageSet:
    """ImageNet-R below root/imagenet-r; names are the WordNet ids.

    split: a seed, for InfLoRA's rule: all files sorted, then torch.randperm under that seed; 24,000 train. The
    published logs are of seed 40; the released code gives the first seed of the run. Labels are positions of the sorted
    ids.
    "folders": the train/ and test/ that are there. Else a folder with CODA-Prompt's lists, imagenet-r_train.yaml and
    imagenet-r_test.yaml (keys data and targets), or the same as imagenet-r_train.txt and imagenet-r_test.txt (lines
    <wnid>/<file> <label>), whose labels need not be in the order of the ids.
    Raises UserError for what is missing, and for lists that name missing files or contradict themselves.
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


def _class_files(place: Path) -> dict[str, list[Path]]:
    """The images of each class folder of `place`, sorted; nothing where there is no such folder."""
    if not place.is_dir():
        return {}
    folders = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name.startswith("n"))
    return {name: [place / name / file for file in sorted(os.listdir(place / name))] for name in folders}


def _numbered(wnids: list[str], folder: Path) -> dict[str, int]:
    if len(wnids) != CLASSES:
        raise UserError(
            f"ImageNetR: {folder} holds {len(wnids)} class folders, {CLASSES} are expected. Labels are positions of "
            "the sorted names, so all must be there and nothing else."
        )
    return {wnid: label for label, wnid in enumerate(wnids)}


def _split_by_seed(folder: Path, seed: int) -> tuple[list[ImageFiles], list[str]]:
    places = [_class_files(place) for place in (folder, folder / "train", folder / "test")]
    wnids = sorted(set().union(*places))
    label = _numbered(wnids, folder)
    files = [path for wnid in wnids for path in sorted(sum((place.get(wnid, []) for place in places), []), key=_name)]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    train = int(TRAIN_SHARE * len(files))
    # in the order of the files, as upstream's ImageFolder reads them back from where it moved them
    parts = [[files[index] for index in sorted(part)] for part in (order[:train], order[train:])]
    return [ImageFiles(part, [label[path.parent.name] for path in part]) for part in parts], wnids


def _name(path: Path) -> str:
    return path.name


def _split_by_folders(folder: Path) -> tuple[list[ImageFiles], list[str]]:
    places = [_class_files(folder / split) for split in ("train", "test")]
    if not all(places):
        raise UserError(
            f"ImageNetR: split 'folders' needs {folder / 'train'} and {folder / 'test'} with class folders."
        )
    wnids = sorted(set().union(*places))
    label = _numbered(wnids, folder)
    parts = []
    for place in places:
        files = [path for wnid in wnids for path in place.get(wnid, [])]
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


def has_lists(place: Path) -> bool:
    """Whether any of the lists is in this folder."""
    return any((place / name).is_file() for names in LISTS.values() for name in names)


def _list_files(place: Path) -> list[Path]:
    """The training and the test list, the yaml form first. Raises UserError that names the missing ones."""
    missing = [names for names in LISTS.values() if not any((place / name).is_file() for name in names)]
    if missing:
        told = "; ".join(f"the list {place / names[0]} can not be read (nor {names[1]})" for names in missing)
        raise UserError(f"ImageNetR: {told}: no such file. Copy CODA-Prompt's lists there, or choose another split.")
    return [next(place / name for name in names if (place / name).is_file()) for names in LISTS.values()]


def _listed(folder: Path, name: Path) -> Path:
    """The file that a list calls <anything>/<wnid>/<file>, in the archive's layout or where it has been moved."""
    places = [place / name.parent.name / name.name for place in (folder, folder / "train", folder / "test")]
    return next((path for path in places if path.is_file()), places[0])


def read_list(path: Path, name: str) -> tuple[list[str], list[int]]:
    """The file names and labels of one of CODA-Prompt's YAML lists. Raises UserError if it is none."""
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
    """The file names and labels of a list with a line `<file> <label>` each. Raises UserError if it is none."""
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
    """Raise UserError with the first ten and the count of the listed files that do not exist."""
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:  # one directory listing each instead of one look-up a file
        there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [str(path) for path in paths if path.name not in there[path.parent]]
    if missing:
        more = "" if len(missing) <= 10 else f" and {len(missing) - 10:,} more"
        raise UserError(
            f"{name}: {source} names {len(missing):,} of {len(paths):,} files that do not exist: "
            f"{', '.join(missing[:10])}{more}. Unpack the data set there, or give the lists that belong to it."
        )
