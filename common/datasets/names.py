"""Class names and prompt templates, from text files beside this module (one a line, in label order)."""

import warnings
from pathlib import Path

from common.errors import UserError

HERE = Path(__file__).parent


def read_names(stem: str) -> list[str]:
    """Class names of names/<stem>.txt in label order."""
    return (HERE / "names" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()


def read_templates(stem: str) -> list[str]:
    """Prompt templates of templates/<stem>.txt with "{}" for the class; the first is the training prompt."""
    return (HERE / "templates" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()


def agreed_names(name: str, stem: str, classes: list[str]) -> list[str]:
    """Class names from the data set's files (`classes`, "_" as space), compared with names/<stem>.txt.

    The lists here equal the original's or well-known public ones, in order; SUN397's own ClassName.txt could not be
    found. Where the two differ the names of the data set are returned and a warning lists the differences. Raises
    UserError if the number of classes differs, since labels would be shifted.
    """
    classes = [text.replace("_", " ") for text in classes]
    listed = read_names(stem)
    if len(classes) != len(listed):
        raise UserError(
            f"{name}: its files name {len(classes)} classes, the published set has {len(listed)}. Labels would "
            "be shifted: get a complete copy."
        )
    differing = [f"{i} {a!r} (listed here: {b!r})" for i, (a, b) in enumerate(zip(classes, listed)) if a != b]
    if differing:
        warnings.warn(
            f"{name}: {len(differing)} class names of the data set's own files differ from "
            f"common/datasets/names/{stem}.txt; the data set's own are used: {'; '.join(differing[:5])}"
            f"{' ...' if len(differing) > 5 else ''}",
            stacklevel=2,
        )
    return classes
