"""What lies in the folders of a data set: its images, without what systems and broken transfers leave beside them."""

import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from common.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# of Windows, macOS, NAS boxes and ext4; hidden entries (.DS_Store, ._name.jpg, .ipynb_checkpoints) are litter anyway
LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
    *("__macosx", "network trash folder", "temporary items", "lost+found", "__pycache__"),
    *("@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "~snapshot"),
}
COPY = re.compile(  # name (1).jpg, name (another copy).jpg, name 2.jpg, name.jpg.jpg ... beside name.jpg
    r"( ?\(\d+\)| - (Copy|Kopie|Copie)( \(\d+\))?| copy( \d+)?| \([^()]*copy[^()]*\)| \d+|\.jpe?g"
    r"|\.sync-conflict-[\w-]+)(?=\.\w+$)"
)


@dataclass(frozen=True)
class Listing:
    """A folder's entries: names of its images and folders, sorted; `skipped`: paths of what is taken for neither."""

    folder: str
    images: list[str]
    folders: list[str]
    skipped: list[str]

    @property
    def paths(self) -> list[str]:
        return [f"{self.folder}/{name}" for name in self.images]


def list_folder(folder: Path | str, pattern: str = "*") -> Listing:
    """The entries of a folder; images have a name like `pattern`, in any case, and an ending of images.

    Links are followed; one to nothing counts as a file, to be told as missing by whoever reads its image. Raises
    UserError for a folder that is not there or that this user may not list.
    """
    images, folders, skipped = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.lower() in LITTER:
                    skipped.append(name)
                elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    folders.append(name)
                elif name.lower().endswith(IMAGE_ENDINGS) and fnmatchcase(name.lower(), pattern):
                    images.append(name)
                else:
                    skipped.append(name)
    except OSError as error:
        raise UserError(unlisted(folder, error)) from error
    images.sort()
    if copies := [name for name in images if " " in name or "(" in name or name.count(".") > 1]:
        present = set(images)
        copies = [name for name in copies if COPY.search(name) and COPY.sub("", name) in present]
        images = [name for name in images if name not in set(copies)]
    skipped = sorted(os.path.join(folder, name) for name in skipped + copies)
    return Listing(os.fspath(folder), images, sorted(folders), skipped)


def unlisted(path: Path | str, error: OSError) -> str:
    """Why a folder or file can not be looked at, and what to do."""
    if isinstance(error, PermissionError):
        return f"{path}: this user may not look into it. Change its permissions (chmod -R a+rX), or have them changed."
    return f"{path}: can not be looked into ({error.strerror}). Put the data set there, or repair the disk or link."


def walk(folder: Path | str, pattern: str = "*") -> Iterator[Listing]:
    """The listings of a folder and of all below it, each folder once; links are followed after all else."""
    seen: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        path = waiting.pop()
        if (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        listing = list_folder(path, pattern)
        below = [f"{path}/{name}" for name in reversed(listing.folders)]
        links = [folder for folder in below if os.path.islink(folder)]
        waiting = [*links, *waiting, *(folder for folder in below if folder not in links)]
        yield listing


def no_image(name: str, bare: Sequence[Listing]) -> str:
    """That class folders, of which these are listings, hold no image; and what the first holds instead."""
    first = bare[0]
    inside = [f"{first.folder}/{entry}" for entry in first.folders] or first.skipped
    held = f" It holds {len(inside):,} other entries, the first is {inside[0]}." if inside else ""
    return (
        f"{name}: {len(bare):,} class folders hold no image, the first is {first.folder}.{held} Every class needs its "
        "images, directly in its folder: get a complete copy, or move them there."
    )


def match_classes(name: str, folder: Path | str, found: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError unless the class folders `found` are the `known` ones.

    The message tells which are missing, spelt otherwise, and not known: labels are positions among the known ones.
    """
    found, expected = set(found), set(known)
    missing, extra = [label for label in known if label not in found], sorted(found - expected)
    if not missing and not extra:
        return
    respelt = {label: other for label in missing if (other := spelt_otherwise(label, extra))}
    stray = sorted({*extra} - {*respelt.values()})
    told = []
    if absent := [label for label in missing if label not in respelt]:
        told.append(f"lacks {len(absent)} of {len(known)} classes: {_some(absent)}")
    if respelt:
        pairs = [f"{other} is published as {label}" for label, other in respelt.items()]
        told.append(f"spells {len(respelt)} classes otherwise: {_some(pairs)}")
    if stray:
        told.append(f"holds {len(stray)} folders that are no class: {_some(stray)}")
    inner = [place.parents[known[0].count("/")] for place in Path(folder).glob(f"*/{known[0]}") if known[0] in missing]
    deeper = f"The classes are in {inner[0]}: move them up. " if inner else ""
    raise UserError(
        f"{name}: {folder} {'; it '.join(told)}. {deeper}Labels follow from the published names of the folders: rename "
        "them to these, remove what does not belong there, or get a complete copy."
    )


def spelt_otherwise(name: str, others: Iterable[str], cutoff: float = 0.9) -> str | None:
    """The one among `others` that is `name` but for case, punctuation or, below a cutoff of 1, a letter."""
    plain = {_plain(other): other for other in others}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def nearby(root: Path, path: str) -> str:
    """Where a missing path below `root` lies instead, as a sentence: a folder deeper, higher, or spelt otherwise."""
    parts = Path(path).parts
    deeper = [(*parts[: i + 1], *parts[i:]) for i in range(len(parts) - 1)]  # cars/cars/1.jpg for cars/1.jpg
    higher = [(*parts[:i], *parts[i + 1 :]) for i in range(len(parts) - 1)]  # dtd/images for dtd/dtd/images
    whole, folder = os.path.join(root, path), os.fspath(root)
    places = [(place, whole) for other in deeper + higher if os.path.exists(place := os.path.join(root, *other))]
    while parts and os.path.lexists(os.path.join(folder, parts[0])):
        folder, parts = os.path.join(folder, parts[0]), parts[1:]
    if parts and os.access(folder, os.R_OK) and (other := spelt_otherwise(parts[0], os.listdir(folder), cutoff=1)):
        places.append((os.path.join(folder, other), os.path.join(folder, parts[0])))
    return "There is {} instead: move or rename it to {}.".format(*places[0]) if places else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count:,} more" if len(names) > count else "")


def file_states(paths: Sequence[str]) -> np.ndarray:
    """(N, 2) int64: size in bytes and time of change in ns of each file; -1 where there is none.

    Raises UserError for a file in a folder that this user may not look into.
    """
    states = np.full((len(paths), 2), -1, np.int64)
    for row, path in enumerate(paths):
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a list named a file with a null byte
            continue
        except OSError as error:
            raise UserError(unlisted(path, error)) from error
        if stat.S_ISREG(state.st_mode):
            states[row] = state.st_size, state.st_mtime_ns
    return states
