"""Class names and prompt templates, kept as plain text files beside this module (one a line, label order)."""

import warnings
from pathlib import Path

from common.errors import UserError

HERE = Path(__file__).parent


def read_names(stem: str) -> list[str]:
    """Class names of names/<stem>.txt in label order."""
    return (HERE / "names" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()


def read_templates(stem: str) -> list[str]:
    """Prompt templates of templates/<stem>.txt, "{}" being the class; the first is the training prompt."""
    return (HERE / "templates" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()


def agreed_names(name: str, stem: str, own: list[str]) -> list[str]:
    """The class names that the data set's own files give, with "_" as space, compared with names/<stem>.txt.

    Several of our lists were derived without the original files at hand, so where the two differ the data
    set's own names win and a warning tells which. Raises UserError if the number of classes differs, since
    labels would then be shifted.
    """
    own = [text.replace("_", " ") for text in own]
    ours = read_names(stem)
    if len(own) != len(ours):
        raise UserError(
            f"{name}: its files name {len(own)} classes, the published set has {len(ours)}. Labels would "
            "be shifted: get a complete copy."
        )
    differing = [f"{i} {a!r} (listed here: {b!r})" for i, (a, b) in enumerate(zip(own, ours)) if a != b]
    if differing:
        warnings.warn(
            f"{name}: {len(differing)} class names of the data set's own files differ from "
            f"common/datasets/names/{stem}.txt; the data set's own are used: {'; '.join(differing[:5])}"
            f"{' ...' if len(differing) > 5 else ''}",
            stacklevel=2,
        )
    return own
