"""Labelled images from files or from an array, and `ImageSet`, the result of every reader."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from common.datasets.listing import file_states, list_folder, match_classes, no_image, unlisted
from common.datasets.transforms import to_rgb
from common.errors import UserError, machine_fault

Transform = Callable[[Image.Image], object]
SAMPLED_FILES, SAMPLED_BYTES = 32, 65_536  # of a data set, whose bytes are in its fingerprint


@dataclass
class ImageSet:
    """A data set ready for training and evaluation.

    train, test yield (image, label): image transformed, or an RGB PIL image without a transform; label an int that
    indexes classnames. test is None without evaluation images (ImageNet without a val folder). templates: prompts with
    "{}" for the class, the first one for training. fingerprint: what a run's config holds of it, see `fingerprint`.
    """

    name: str
    train: "ImageFiles | ImageArrays"
    test: "ImageFiles | ImageArrays | None"
    classnames: list[str]
    templates: list[str]
    fingerprint: dict[str, object] = field(default_factory=dict)


class ImageFiles(Dataset):
    """Images read from files, from `rows` of path and label: item i is (transform(RGB image), label).

    A file that is missing, truncated or no image raises UserError with its path when it is read. skipped: paths that
    the listing of the folders passed over, of litter and of files that are no images.
    """

    def __init__(
        self, rows: Iterable[tuple[str | Path, int]], transform: Transform | None = None, skipped: Sequence[str] = ()
    ):
        rows = list(rows)
        self.paths, self.labels = [str(path) for path, _ in rows], [int(label) for _, label in rows]
        self.transform = transform
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = read_rgb(self.paths[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]

    @cached_property
    def states(self) -> np.ndarray:
        """`file_states` of the paths, as they are when this is first asked for."""
        return file_states(self.paths)

    def absent(self) -> list[str]:
        """Paths without a file, in order."""
        return [self.paths[row] for row in np.flatnonzero(self.states[:, 0] < 0)]

    def empty(self) -> list[str]:
        """Paths of files without a byte, in order."""
        return [self.paths[row] for row in np.flatnonzero(self.states[:, 0] == 0)]


def class_files(
    name: str, folder: Path, classes: Sequence[str], within: str = "", pattern: str = "*", more: Collection[str] = ()
) -> ImageFiles:
    """The images of a folder's class folders, or of the folders `within` each, by class, then by file name.

    A label is the position in `classes`. more: other folders that may be there. Raises UserError unless
    there is a folder for each class and no other one, and for a class without an image.
    """
    top, known = list_folder(folder), {*classes}
    match_classes(name, folder, [entry for entry in top.folders if entry in known or entry not in more], classes)
    listings = [list_folder(os.path.join(folder, label, within).rstrip("/"), pattern) for label in classes]
    bare = [listing for listing in listings if not listing.images]
    if bare:
        raise UserError(no_image(name, bare))
    for label, listing in zip(classes, listings):  # as Forest_1.jpg, n01440764_1.JPEG in the folder of another class
        if stray := [file for file in listing.images if (of := file.partition("_")[0]) != label and of in known]:
            raise UserError(
                f"{name}: {listing.folder}/{stray[0]} has the name of another class. Move it there, or get a complete "
                "copy."
            )
    rows = [(path, label) for label, listing in enumerate(listings) for path in listing.paths]
    return ImageFiles(rows, skipped=[path for listing in (top, *listings) for path in listing.skipped])


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
    except PermissionError as error:
        raise UserError(unlisted(path, error)) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if machine_fault(error):  # the file is fine
            raise
        raise UserError(
            f"{path}: this image can not be read ({error}). The file is damaged or was cut in "
            "transfer: delete it and put a fresh copy in its place."
        ) from None


def fingerprint(
    train: ImageFiles | ImageArrays, test: ImageFiles | ImageArrays | None, root: Path, notes: Sequence[str] = ()
) -> dict[str, object]:
    """Counts, notes, md5 of the lines "path below root, label" of train, then test, in order, and md5 of the content.

    Content: the sizes of all files and the first bytes of a few, evenly spaced; all bytes of arrays, which have no
    paths. Neither the root nor how it is spelt changes any of it.
    """
    names, content = hashlib.md5(), hashlib.md5()
    prefix = len(str(root)) + 1
    for part in (train,) if test is None else (train, test):
        files = part.paths if isinstance(part, ImageFiles) else [""] * len(part)
        lines = "".join(f"{path[prefix:]} {label}\n" for path, label in zip(files, part.labels))
        names.update(lines.encode(errors="surrogateescape"))  # file names need not be UTF-8
        _add_content(part, content)
    return {
        "train": len(train),
        "test": 0 if test is None else len(test),
        "md5": names.hexdigest(),
        "content": content.hexdigest(),
        "notes": list(notes),
    }


def _add_content(part: ImageFiles | ImageArrays, digest: "hashlib._Hash") -> None:
    if not isinstance(part, ImageFiles):
        return digest.update(part.arrays.ravel(order="K").data)  # as they lie in memory: no copy
    sizes = part.states[:, 0]
    digest.update(sizes.astype("<i8").data)
    readable = np.flatnonzero(sizes > 0)
    for row in readable[np.linspace(0, len(readable) - 1, min(SAMPLED_FILES, len(readable))).astype(int)]:
        try:
            with open(part.paths[row], "rb") as file:
                digest.update(file.read(SAMPLED_BYTES))
        except OSError as error:
            raise UserError(unlisted(part.paths[row], error)) from error
