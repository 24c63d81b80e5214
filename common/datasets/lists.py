"""Lists of images and labels, as text and as YAML."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from common.datasets.images import ImageFiles
from common.errors import UserError

Row = TypeVar("Row")


def text_lines(path: Path, name: str) -> list[tuple[int, str]]:
    """Number from 1 on and text of a list's lines, without blank ones, a byte order mark and Windows' line ends."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name}: the list {path} can not be read ({reason}). Get it anew from its source.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def parsed_lines(path: Path, name: str, parse: Callable[[str], Row]) -> list[Row]:
    """What `parse` makes of each of a list's `text_lines`. Raises UserError with the first line that it fails for."""
    rows = []
    for number, line in text_lines(path, name):
        try:
            rows.append(parse(line))
        except (ValueError, LookupError) as error:
            raise UserError(
                f"{name}: {path}: not as published (line {number}: {line[:80]!r}). Get it anew from its source."
            ) from error
    return rows


def read_list(path: Path, name: str) -> tuple[list[str], list[int]]:
    """File names and labels of one of CODA-Prompt's YAML lists. Raises UserError for other content."""
    try:
        with open(path, encoding="utf-8-sig") as file:
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
    files, labels = [], []
    for number, line in text_lines(path, name):
        file, _, label = line.rpartition(" ")
        if not (file and label.isdecimal()):
            raise UserError(f"{name}: {path}, line {number} ({line!r}): expected <file> <label>.")
        files.append(file)
        labels.append(int(label))
    return files, labels


def refuse_outside(entries: Iterable[str], folder: Path, source: Path | str, name: str) -> None:
    """Raise UserError for an entry that leads out of `folder`, by ".." or as an absolute path."""
    base = os.path.join(folder, "")
    for entry in entries:
        if (".." in entry or os.path.isabs(entry)) and not os.path.normpath(os.path.join(base, entry)).startswith(base):
            raise UserError(
                f"{name}: {source} names {entry}, which is not below {folder}. Write paths relative to that folder, or "
                "take the list that belongs to it."
            )


def refuse_missing(images: ImageFiles, source: Path, name: str) -> None:
    """Raise UserError with the number and the first ten of the listed files that do not exist, if any."""
    if missing := images.absent():
        more = "" if len(missing) <= 10 else f" and {len(missing) - 10:,} more"
        raise UserError(
            f"{name}: {source} names {len(missing):,} of {len(images):,} files that do not exist: "
            f"{', '.join(missing[:10])}{more}. Unpack the data set there, or give the lists that belong to it."
        )


def listed_classes(
    name: str, folder: Path, parts: Sequence[ImageFiles], count: int | None = None, entries: Sequence[str] = ()
) -> list[str]:
    """The class of each label 0 to count - 1, None: of as many as there are. Raises UserError unless each has its own.

    entries: the classes that the lists in `folder` give the images; without them the class is the image's folder.
    """
    classes: dict[int, str] = {}
    rows = [row for part in parts for row in zip(part.paths, part.labels)]
    for (path, label), entry in zip(rows, entries or [os.path.basename(os.path.dirname(path)) for path, _ in rows]):
        if classes.setdefault(label, entry) != entry:
            raise UserError(
                f"{name}: the lists in {folder} give label {label} to {classes[label]} and {entry}, as for {path}. "
                "Get them anew from one source."
            )
    count = count or len(classes)
    if sorted(classes) != [*range(count)] or len({*classes.values()}) < count:
        raise UserError(
            f"{name}: the lists in {folder} give {len(classes)} labels to {len({*classes.values()})} classes, "
            f"not 0 to {count - 1} to as many. Get them anew from one source."
        )
    return [classes[label] for label in range(count)]
