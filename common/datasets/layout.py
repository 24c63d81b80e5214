"""Facts about the published data sets: paths of their files, how to get them."""

import difflib
import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from common.errors import UserError
from common.published_sets import PUBLISHED

CAPTIONS = "ConceptualCaptions"
CAPTION_FILES = tuple(
    f"{folder}Validation_GCC-1.1.0-Validation{ending}"
    for ending in (".tsv", "_output.csv")
    for folder in ("", "conceptual_captions/")
)
# Announced as 15,840 rows; the copies that can be had today hold 15,833.
CAPTION_ROWS = (15_833, 15_840)


def absolute(root: str | Path) -> Path:
    """The folder by its full path, without "~", "." and "..", however it was spelt."""
    return Path(os.path.abspath(Path(root).expanduser()))


def how_to_get(name: str, root: str) -> str:
    """How to get a data set into the data location `root`."""
    return PUBLISHED[name].how.format(root=root, name=name)


def canonical(name: str, names: Collection[str] = tuple(PUBLISHED)) -> str:
    """`name` itself. Raises UserError with all names and the nearest one unless it is among `names`."""
    if name in names:
        return name
    lower = defaultdict(list)
    for other in names:
        lower[other.lower()].append(other)  # TinyImagenet and TinyImageNet are two numberings of one set
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" Did you mean {' or '.join(lower[near[0]])}?" if near else ""
    raise UserError(f"unknown data set {name!r}.{hint} Known are {', '.join(names)}.")
