"""Labelled images from files or from an array, and `ImageSet`, the result of every reader."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from common.datasets.transforms import to_rgb
from common.errors import UserError

Transform = Callable[[Image.Image], object]


@dataclass
class ImageSet:
    """A data set ready for training and evaluation.

    train, test yield (image, label): image transformed, or an RGB PIL image without a transform; label an int that
    indexes classnames. test is None without evaluation images (ImageNet without a val folder). templates: prompts with
    "{}" for the class, the first one for training. fingerprint: counts (train, test), md5 of the list of files and
    labels, and notes, for a run's config.
    """

    name: str
    train: "ImageFiles | ImageArrays"
    test: "ImageFiles | ImageArrays | None"
    classnames: list[str]
    templates: list[str]
    fingerprint: dict[str, object] = field(default_factory=dict)


class ImageFiles(Dataset):
    """Images read from files: item i is (transform(RGB image), label).

    A file that is missing, truncated or no image raises UserError with its path when it is read.
    """

    def __init__(self, paths: Sequence[str | Path], labels: Sequence[int], transform: Transform | None = None):
        self.paths = [str(path) for path in paths]
        self.labels = [int(label) for label in labels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = read_rgb(self.paths[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]


class ImageArrays(Dataset):
    """Images in memory, uint8 (N, H, W, 3) or (N, H, W): item i is (transform(RGB image), label)."""

    def __init__(self, arrays: np.ndarray, labels: Iterable[int], transform: Transform | None = None):
        self.arrays = arrays
        self.labels = [int(label) for label in labels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = to_rgb(Image.fromarray(self.arrays[index]))
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def absent_files(paths: Iterable[str | Path]) -> list[str]:
    """Paths without a file, in order; lists each folder once instead of looking up every file."""
    listings: dict[str, set[str]] = {}
    absent = []
    for path in map(str, paths):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            absent.append(path)
    return absent


def read_rgb(path: str | Path) -> Image.Image:
    """The image at `path` in mode RGB. Raises UserError with the path if it is missing, cut or no image."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(
            f"{path}: this image is listed but does not exist. Unpack or download the data set again."
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: this image can not be read ({error}). The file is damaged or was cut in "
            "transfer: delete it and put a fresh copy in its place."
        ) from None


def fingerprint(
    train: ImageFiles | ImageArrays, test: ImageFiles | ImageArrays | None, root: Path, notes: Sequence[str] = ()
) -> dict[str, object]:
    """Counts, md5 of the lines "path below root, label" of train, then test, in order, and notes.

    Arrays have no paths: the md5 is of their labels.
    """
    digest = hashlib.md5()
    prefix = len(str(root)) + 1
    for part in (train,) if test is None else (train, test):
        names = [path[prefix:].replace(os.sep, "/") for path in getattr(part, "paths", [""] * len(part))]
        digest.update("".join(f"{name} {label}\n" for name, label in zip(names, part.labels)).encode())
    return {
        "train": len(train),
        "test": 0 if test is None else len(test),
        "md5": digest.hexdigest(),
        "notes": list(notes),
    }
