"""Protocols: names of task sequences. Runs write them into records, `results` parses them."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Self

# The task sequences of MTIL (ZSCL, arXiv 2303.06628, mtil/results.ipynb)
MTIL_ORDER_1 = (
    "Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT", "Flowers", "Food", "MNIST", "OxfordPet", "StanfordCars",
    "SUN397",
)  # fmt: skip
MTIL_ORDER_2 = (
    "StanfordCars", "Food", "MNIST", "OxfordPet", "Flowers", "SUN397", "Aircraft", "Caltech101", "DTD", "EuroSAT",
    "CIFAR100",
)  # fmt: skip
MTIL_ORDERS: dict[str, tuple[str, ...]] = {"order1": MTIL_ORDER_1, "order2": MTIL_ORDER_2}
CUSTOM = "custom-"  # before the data sets of another sequence: mtil-custom-Aircraft+DTD
NAMES = (
    re.compile(r"(?P<kind>mtil)-(?P<dataset>.+?)(-(?P<shots>\d+)shot)?"),
    re.compile(
        r"(?P<kind>cil|til|dil|joint|common)-(?P<dataset>[a-z0-9_]+)"
        r"(-((?P<base>\d+)\+)?(?P<tasks>\d+)(x(?P<classes>\d+))?)?"
        r"(-buffer(?P<buffer>\d+))?(-first(?P<first>\d+))?(?P<validation>-validation)?"
    ),
)


@dataclass(frozen=True)
class Protocol:
    """A sequence of tasks and how it is tested; `str` gives its name, such as cil-tinyimagenet-100+5x20-buffer200."""

    # mtil; cil, til, dil: class-, task-, domain-incremental; common: cil on common ground; joint: all classes at once;
    # "" if unknown
    kind: str
    dataset: str  # in lower case; for MTIL order1, order2, custom-Aircraft+DTD; the whole name if the kind is unknown
    tasks: int | None = None  # number of tasks, the base task not counted
    classes: int | None = None  # of each task but the base
    base: int | None = None  # classes of the base task, a first task that differs from the others
    buffer: int | None = None  # stored samples
    shots: int | None = None  # training images a class
    first: int | None = None  # number of tasks learned, if not all
    validation: bool = False  # tested on held-out training images

    @classmethod
    @cache
    def parse(cls, name: str) -> Self:
        """The protocol of a name; its kind is "" if the name is unknown."""
        match = next((match for pattern in NAMES if (match := pattern.fullmatch(name))), None)
        if match is None:
            return cls("", name)
        fields = match.groupdict()
        numbers = {key: int(text) for key, text in fields.items() if text and text.isdigit() and key != "dataset"}
        return cls(fields["kind"], fields["dataset"], **numbers, validation=bool(fields.get("validation")))

    def __str__(self) -> str:
        if not self.kind:
            return self.dataset
        base = "" if self.base is None else f"{self.base}+"
        classes = "" if self.classes is None else f"x{self.classes}"
        parts = {
            f"-{base}{self.tasks}{classes}": self.tasks,
            f"-buffer{self.buffer}": self.buffer,
            f"-{self.shots}shot": self.shots,
            f"-first{self.first}": self.first,
        }
        suffix = "".join(text for text, number in parts.items() if number is not None)
        return f"{self.kind}-{self.dataset}{suffix}{'-validation' if self.validation else ''}"

    @property
    def length(self) -> int | None:
        """Number of tasks: 11 for MTIL's orders, 1 for joint training; None if the name does not fix it."""
        if self.kind in ("mtil", "joint"):
            return len(self.order) or None if self.kind == "mtil" else 1
        if self.tasks is None or self.first or self.validation:
            return None
        return self.tasks + (self.base is not None)

    @property
    def order(self) -> tuple[str, ...]:
        """Data sets of MTIL's sequence in the order learned; () if the name does not fix it."""
        if self.kind != "mtil":
            return ()
        if self.dataset.startswith(CUSTOM):
            return tuple(self.dataset.removeprefix(CUSTOM).split("+"))
        return MTIL_ORDERS.get(self.dataset, ())
