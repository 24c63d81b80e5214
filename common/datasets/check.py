"""Which data sets are complete: a status each, a table of all, one error for everything that is missing."""

import os
import textwrap
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from common.datasets import miniature
from common.datasets.coop import MTIL
from common.datasets.images import ImageFiles, read_rgb
from common.datasets.layout import CAPTION_FILES, CAPTION_ROWS, CAPTIONS, PUBLISHED, absolute, canonical, how_to_get
from common.datasets.listing import nearby
from common.datasets.loading import count_problem, missing_paths, read
from common.datasets.reference import caption_file, captions
from common.errors import UserError
from common.mini import MINI

WIDTH = 118
IMAGES_AT_ONCE = 64  # that a process decodes between two reports


@dataclass
class Status:
    """What exists of a data set. train, test, classes: numbers (None: not counted), of images that exist.

    found: "yes", "partial" or "no"; problems: reasons for the latter two; notes: harmless remarks. cut: accepted with
    other counts than the published ones. also: other names of the same files.
    """

    name: str
    found: str = "yes"
    train: int | None = None
    test: int | None = None
    classes: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cut: bool = False
    also: list[str] = field(default_factory=list)


def inspect(
    name: str,
    root: Path,
    verify: bool = True,
    options: dict[str, object] | None = None,
    decode: bool = False,
    splits: str = MTIL,
) -> Status:
    """Status of one data set; `verify` demands the published counts, `decode` opens every image file."""
    if name == CAPTIONS:
        return _inspect_captions(root, verify)
    status = Status(name)
    try:
        if missing := missing_paths(name, root, splits):
            status.found = "partial" if os.path.exists(_top_folder(name, root)) else "no"
            status.problems.append(f"missing: {', '.join(missing)}")
            status.problems += filter(None, [nearby(root, missing[0])])
            return status
        data = read(name, root, verify, options, splits)
        absent, empty, skipped = (
            [of(part) if isinstance(part, ImageFiles) else [] for part in (data.train, data.test)]
            for of in (ImageFiles.absent, ImageFiles.empty, lambda part: part.skipped)
        )
    except UserError as error:
        status.found = "partial"
        status.problems.append(str(error))
        return status
    status.classes = len({*data.train.labels, *(data.test.labels if data.test else ())})
    status.train = len(data.train) - len(absent[0])
    status.test = None if data.test is None else len(data.test) - len(absent[1])
    if gone := sum(absent, []):
        link = " (a link to nothing)" if os.path.islink(gone[0]) else ""
        status.problems.append(f"{len(gone):,} listed images do not exist, the first is {gone[0]}{link}")
        status.problems += filter(None, [nearby(absolute(root), os.path.relpath(gone[0], absolute(root)))])
    if void := sum(empty, []):
        status.problems.append(f"{len(void):,} images are empty files, the first is {void[0]}")
    if litter := sorted({*sum(skipped, [])}):
        status.notes.append(f"{len(litter):,} entries that are no images are passed over, the first is {litter[0]}")
    if decode:
        files = {path for part in (data.train, data.test) if isinstance(part, ImageFiles) for path in part.paths}
        status.problems += undecodable(sorted(files.difference(gone, void)), name)
    problem = count_problem(name, data, splits)
    status.cut = problem is not None and not verify
    if problem and verify:
        status.problems.append(f"counts differ: {problem}")
    if data.test is None:
        status.notes.append("no validation images of known class; only accuracy on ImageNet itself needs them")
    status.found = "partial" if status.problems else "yes"
    return status


def undecodable(paths: Sequence[str], name: str) -> list[str]:
    """What is wrong with each of these image files that can not be decoded to its end; shows a progress bar."""
    with ProcessPoolExecutor() as pool:
        found = pool.map(_decoding_problem, paths, chunksize=IMAGES_AT_ONCE)
        bar = tqdm(found, name, len(paths), leave=False, unit="image", dynamic_ncols=True, disable=None)
        return [problem for problem in bar if problem]


def _decoding_problem(path: str) -> str | None:
    try:
        read_rgb(path)
    except UserError as error:
        return str(error)
    return None


def same_files(statuses: Iterable[Status]) -> list[Status]:
    """The statuses, those of one set of files under several names as one: two papers spell a data set in two ways."""
    merged: dict[tuple[object, ...], Status] = {}
    for status in statuses:
        published = PUBLISHED[status.name]
        looks = (published.train, published.test, published.classes, status.found, status.train, status.test)
        if merged.setdefault(looks, status) is not status:
            merged[looks].also.append(status.name)
    return list(merged.values())


def _inspect_captions(root: Path, verify: bool) -> Status:
    path = caption_file(root)
    if path is None:
        return Status(CAPTIONS, "no", problems=[f"missing: one of {', '.join(CAPTION_FILES)}"])
    try:
        count = len(captions(root))
    except UserError as error:
        return Status(CAPTIONS, "partial", problems=[str(error)])
    status = Status(CAPTIONS, train=count)
    low, high = CAPTION_ROWS
    if path.suffix == ".csv":
        status.notes.append(f"{path.name} holds the sentences of images that could still be fetched; the .tsv has all")
    elif not low <= count <= high:
        status.cut = not verify
        status.problems += [f"{count:,} rows instead of {low:,} to {high:,}"] if verify else []
    status.found = "partial" if status.problems else "yes"
    return status


def _top_folder(name: str, root: Path) -> Path:
    return root / Path(PUBLISHED[name].needs[0]).parts[0] if name != CAPTIONS else root


def require(
    names: Iterable[str],
    root: str | Path,
    verify: bool = True,
    options: dict[str, object] | None = None,
    splits: str = MTIL,
) -> None:
    """Check that every data set named is complete below `root`; the location "mini" has stand-ins for some.

    options, splits: as for `load`, for every data set named. Raises one UserError that lists all missing parts and how
    to get them.
    """
    if str(root) == MINI:
        return miniature.require(dict.fromkeys(names), splits)
    names, root = list(dict.fromkeys(canonical(name) for name in names)), Path(root).expanduser()
    statuses = [inspect(name, root, verify, options, splits=splits) for name in names]
    incomplete = [status for status in statuses if status.found != "yes"]
    if incomplete:
        raise UserError(
            f"{len(incomplete)} of {len(names)} data sets are missing or incomplete in {root}{absence(root)}:\n"
            f"{details(incomplete, root)}\n"
            f"See them all: python -m common.datasets check --data-location {root}"
        )


def absence(root: Path) -> str:
    """What a sentence about a folder adds where it does not exist or can not be reached; "" of one that exists."""
    try:
        return "" if root.is_dir() else " (this folder does not exist)"
    except OSError as error:  # of a folder above it
        return f" (it can not be reached: {error.strerror})"


def details(statuses: Iterable[Status], root: Path) -> str:
    """Problems, notes, folder and how to get it, for each status that has any; wrapped to lines."""
    lines = []
    wrapper = textwrap.TextWrapper(WIDTH, "    ", "      ", break_long_words=False, break_on_hyphens=False)
    for status in statuses:
        rows = [*status.problems, *(f"note: {note}" for note in status.notes)]
        if status.found != "yes":
            rows.append(f"looked in: {_top_folder(status.name, root)}")
            how = how_to_get(status.name, str(root))
            # messages of `read` already contain it
            rows += [] if any(how in problem for problem in status.problems) else [f"how to get it: {how}"]
        if rows:
            lines += [status.name, *map(wrapper.fill, rows)]
    return "\n".join(lines)


def table(statuses: Iterable[Status]) -> str:
    """One line a data set: found, counted and expected train / test / classes, the first problem."""
    rows: list[tuple[str, ...]] = [("data set", "found", "train", "test", "classes", "expected", "what is missing")]
    for status in statuses:
        published = PUBLISHED[status.name]
        expected = f"{_number(published.train)} / {_number(published.test)} / {published.classes:,}"
        if status.name == CAPTIONS:
            expected = f"{CAPTION_ROWS[0]:,} sentences"
        counts = map(_number, (status.train, status.test, status.classes))
        rows.append((", ".join([status.name, *status.also]), status.found, *counts, expected, _short(status)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = "<<>>><<"
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _short(status: Status) -> str:
    if status.found == "no":
        return "all of it"
    if not status.problems:
        return "fewer images than published" if status.cut else ""
    return textwrap.shorten(status.problems[0].removeprefix(f"{status.name}: "), 44, placeholder=" ...")
