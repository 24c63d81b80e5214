"""Protocols: names of task sequences. Runs write them into records, `results` parses them."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

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
# X-TAIL's ten (arXiv 2406.18868): the first without CIFAR100
SEQUENCES = MTIL_ORDERS | {"xtail": tuple(name for name in MTIL_ORDER_1 if name != "CIFAR100")}
MULTI_DOMAIN = ("mtil", "xtail")  # a task is a data set, whose classes are told apart alone or among all
CUSTOM = "custom-"  # before the data sets of another sequence: mtil-custom-Aircraft+DTD
NAMES = (
    re.compile(r"(?P<kind>(?P<dataset>xtail))(-(?P<shots>\d+)shot)?(-(?P<splits>coop))?"),
    re.compile(r"(?P<kind>mtil|xtail)-(?P<dataset>.+?)(-(?P<shots>\d+)shot)?(-(?P<splits>coop))?"),
    re.compile(
        r"(?P<kind>cil|til|dil|joint|common)-(?P<dataset>[a-z0-9_]+)"
        r"(-((?P<base>\d+)\+)?(?P<tasks>\d+)(x(?P<classes>\d+))?)?"
        r"(-buffer(?P<buffer>\d+))?(-first(?P<first>\d+))?(?P<validation>-validation)?"
    ),
)


@dataclass(frozen=True)
class Protocol:
    """A sequence of tasks and how it is tested; `str` gives its name, such as cil-tinyimagenet-100+5x20-buffer200."""

    # mtil, xtail; cil, til, dil: class-, task-, domain-incremental; joint: all classes at once;
    # common: common ground, cil if its tasks are named, else joint; "" if unknown
    kind: str
    # in lower case; of domains order1, order2, xtail, custom-Aircraft+DTD; the whole name if the kind is unknown
    dataset: str
    tasks: int | None = None  # number of tasks, the base task not counted
    classes: int | None = None  # of each task but the base
    base: int | None = None  # classes of the base task, a first task that differs from the others
    buffer: int | None = None  # stored samples
    shots: int | None = None  # training images a class
    first: int | None = None  # number of tasks learned, if not all
    validation: bool = False  # tested on held-out training images
    splits: str | None = None  # whose training and test images, if not MTIL's

    @classmethod
    @cache
    def parse(cls, name: str) -> Self:
        """The protocol of a name; its kind is "" if the name is unknown."""
        match = next((match for pattern in NAMES if (match := pattern.fullmatch(name))), None)
        if match is None:
            return cls("", name)
        fields = match.groupdict()
        values: dict[str, Any] = {key: int(text) if text and text.isdigit() else text for key, text in fields.items()}
        return cls(**values | {"dataset": fields["dataset"], "validation": bool(fields.get("validation"))})

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
        suffix += f"-{self.splits}" if self.splits else ""
        name = self.kind if self.kind == self.dataset else f"{self.kind}-{self.dataset}"  # xtail-16shot
        return f"{name}{suffix}{'-validation' if self.validation else ''}"

    @property
    def length(self) -> int | None:
        """Number of tasks: 11 for MTIL's orders, 1 for joint training; None if the name does not fix it."""
        if self.kind in MULTI_DOMAIN:
            return len(self.order) or None
        if self.tasks is None:
            return 1 if self.kind in ("joint", "common") else None
        if self.first or self.validation:
            return None
        return self.tasks + (self.base is not None)

    @property
    def order(self) -> tuple[str, ...]:
        """Data sets of MTIL's or X-TAIL's sequence in the order learned; () if the name does not fix it."""
        if self.kind not in MULTI_DOMAIN:
            return ()
        if self.dataset.startswith(CUSTOM):
            return tuple(self.dataset.removeprefix(CUSTOM).split("+"))
        return SEQUENCES.get(self.dataset, ())
