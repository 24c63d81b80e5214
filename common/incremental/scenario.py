"""Class-incremental learning: a labelled set in tasks by a class order.

The split is that of continuum's ClassIncremental, which ZSCL and MoE-Adapters build on (Continvvm/continuum
continuum/scenarios/class_incremental.py): a label becomes the position of its class in the order, a task is a block
of positions, and the samples of a task stay in the order of the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from torch.utils.data import Dataset

from common.datasets.images import ImageArrays, ImageFiles, ImageSet, Transform
from common.errors import UserError
from common.protocols import Protocol

ORDERS = Path(__file__).parents[1] / "datasets" / "orders"
UPSTREAM_ORDERS = "class_orders"  # the folder that holds them in the original repositories
Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Scenario:
    """Classes learned in the order `class_order`: the first `initial_increment`, then `increment` a task.

    class_order holds original labels, each of 0 .. C-1 once. A new label is a position in it. Raises UserError if the
    order is no permutation or the increments do not divide the classes.
    """

    class_order: Sequence[int]
    initial_increment: int
    increment: int

    def __post_init__(self) -> None:
        order = tuple(self.class_order)
        _check_order(order)
        object.__setattr__(self, "class_order", tuple(map(int, order)))
        first, step, classes = self.initial_increment, self.increment, len(order)
        if not 1 <= first <= classes:
            raise UserError(f"initial_increment {first}: the class order has {classes} classes; give 1 to {classes}.")
        if step < 1 or (classes - first) % step:
            raise UserError(
                f"increment {step} does not divide the {classes - first} classes that follow the first {first} of "
                f"{classes}; all tasks after the first one have the same size."
            )

    @property
    def tasks(self) -> list[range]:
        """Range of new labels of every task."""
        starts = range(self.initial_increment, len(self.class_order), self.increment)
        return [range(self.initial_increment), *(range(start, start + self.increment) for start in starts)]

    def seen(self, task_id: int) -> int:
        """Number of classes seen after task `task_id`, -1 the last: all new labels below it."""
        return self.tasks[task_id].stop

    def remap(self, labels: Labels) -> np.ndarray:
        """New labels (N,) int64 of original labels. Raises UserError for a label that is not in the order."""
        original, classes = np.asarray(labels, dtype=np.int64), len(self.class_order)
        if original.size and not 0 <= original.min() <= original.max() < classes:
            raise UserError(
                f"the class order has {classes} classes, the data set has labels from {original.min()} to "
                f"{original.max()}. Give the order of this data set."
            )
        return np.argsort(self.class_order)[original]

    def task_ids(self, new_labels: Labels) -> np.ndarray:
        """Task ids (N,) int64 of new labels."""
        stops = [task.stop for task in self.tasks]
        return np.searchsorted(stops, np.asarray(new_labels, dtype=np.int64), side="right")

    def classnames(self, names: Sequence[str]) -> list[str]:
        """Class names by new label, from names by original label."""
        if len(names) != len(self.class_order):
            raise UserError(
                f"the class order has {len(self.class_order)} classes, the data set has {len(names)}. Give the order "
                "of this data set."
            )
        return [names[label] for label in self.class_order]


def _check_order(order: tuple[int, ...]) -> None:
    wrong = [label for label in order if isinstance(label, bool) or not isinstance(label, int | np.integer)]
    if not order or wrong:
        raise UserError(f"a class order is a list of class numbers{f', not of {wrong[0]!r}' if wrong else ''}.")
    outside = sorted({int(label) for label in order if not 0 <= label < len(order)})
    if outside:
        raise UserError(
            f"the class order has {len(order)} entries, which must be 0 to {len(order) - 1}; {_few(outside)} is not."
        )
    if len(set(order)) < len(order):
        missing = sorted(set(range(len(order))) - set(order))
        repeated = sorted({int(label) for label in order if order.count(label) > 1})
        raise UserError(f"the class order names {_few(repeated)} more than once and never {_few(missing)}.")


def _few(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:5])) + (" ..." if len(labels) > 5 else "")


class RemappedSubset(Dataset):
    """Some samples of a data set under new labels: item i is (image of sample indices[i], labels[i])."""

    def __init__(self, dataset: "LabelledImages", indices: Labels, labels: Labels) -> None:
        self.dataset = dataset
        self.indices = [int(index) for index in indices]
        self.labels = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.dataset[self.indices[index]][0], self.labels[index]

    @property
    def transform(self) -> Transform | None:
        """Transform of the underlying data set; to change it, load the set with another one."""
        return self.dataset.transform


LabelledImages = ImageFiles | ImageArrays | RemappedSubset


def task_subset(dataset: LabelledImages, scenario: Scenario, task_id: int) -> RemappedSubset:
    """The samples of one task (continuum's scenario[t]), in the order of the data set, under new labels.

    `dataset.labels` are original labels. Raises UserError if the class order does not fit them.
    """
    labels = scenario.remap(dataset.labels)
    task = scenario.tasks[task_id]
    return _subset(dataset, labels, (labels >= task.start) & (labels < task.stop))


def seen_subset(dataset: LabelledImages, scenario: Scenario, task_id: int) -> RemappedSubset:
    """The samples of tasks 0 .. task_id together (continuum's scenario[:t + 1]), in the order of the data set.

    For evaluation after every task, decode seen_subset(test, scenario, -1) once; `seen_rows` then selects the samples
    of the test set after an earlier task.
    """
    labels = scenario.remap(dataset.labels)
    return _subset(dataset, labels, labels < scenario.seen(task_id))


def _subset(dataset: LabelledImages, labels: np.ndarray, members: np.ndarray) -> RemappedSubset:
    indices = np.flatnonzero(members)
    return RemappedSubset(dataset, indices, labels[indices])


def seen_rows(new_labels: Labels, scenario: Scenario, task_id: int) -> np.ndarray:
    """Positions (n,) int64, rising, of the samples whose class has been seen after task `task_id`."""
    return np.flatnonzero(np.asarray(new_labels) < scenario.seen(task_id))


def require_images(
    data: ImageSet, scenario: Scenario, task_count: int | None = None, every_class: bool = False
) -> None:
    """Raise UserError if one of the first `task_count` tasks (None: of all) has no image in a cut copy of a data set.

    `every_class`: each class of these tasks, not just each task, needs training images.
    """
    tasks, problems = scenario.tasks[:task_count], []
    parts = {"training": data.train, "test": data.test}
    labels = {split: scenario.remap(part.labels if part is not None else []) for split, part in parts.items()}
    if every_class:
        trained = set(labels.pop("training").tolist())
        empty = [scenario.class_order[label] for label in range(tasks[-1].stop) if label not in trained]
        names = ", ".join(f"{label} ({data.classnames[label]})" for label in empty[:5]) + (" ..." if empty[5:] else "")
        if empty:
            problems.append(f"{len(empty)} classes have no training image: {names}. Get the whole data set.")
    for split, present in labels.items():
        empty = sorted({*range(len(tasks))} - {*scenario.task_ids(present).tolist()})
        message = f"no {split} image of the classes of task {_few(empty)}"
        if empty:
            problems.append(f"{message}. Get the whole data set, or take larger tasks.")
    if problems:
        raise UserError("\n".join(f"{data.name}: {problem}" for problem in problems))


def protocol(
    name: str, scenario: Scenario, first: int | None = None, validation: bool = False, kind: str | None = None
) -> str:
    """Protocol as in the records: cil-cifar100-10x10, cil-tinyimagenet-100+5x20, joint-cifar100 for one task.

    The numbers are tasks x classes, where the file names of the original configurations (cifar100_10-10,
    tinyimagenet_100-20) have the classes of the first and of every later task. kind: another than cil and joint.
    """
    joint = Protocol(kind or "joint", name.lower(), first=first, validation=validation)
    count, base, classes = len(scenario.tasks), scenario.initial_increment, scenario.increment
    if count == 1:
        return str(joint)
    equal = replace(joint, kind=kind or "cil", tasks=count, classes=classes)
    return str(equal if base == classes else replace(equal, tasks=count - 1, base=base))


def read_class_order(source: str | Path) -> list[int]:
    """The list under `class_order` of a YAML file.

    The original commands' paths, as "class_orders/cifar100.yaml", name the orders in common/datasets/orders where no
    such file exists: cifar100, tinyimagenet, imagenet100, imagenet1000, mini for the miniature, and those of common
    ground, as class_orders/common/cifar100-seed1.yaml. Raises UserError if the file or the list is missing.
    """
    path = Path(source).expanduser()
    if not path.is_file() and path.parts[0] == UPSTREAM_ORDERS:
        path = next(
            (order for order in ORDERS.rglob("*.yaml") if order.relative_to(ORDERS).parts == path.parts[1:]), path
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = [f"{UPSTREAM_ORDERS}/{order.name}" for order in sorted(ORDERS.glob("*.yaml"))]
        shipped.append(f"{UPSTREAM_ORDERS}/common/cifar100-seed0.yaml and the like")
        raise UserError(
            f"class order {str(source)!r}: {error.strerror}. Give a YAML file with a list class_order, or one of "
            f"{', '.join(shipped)}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"class order {path}: not YAML ({' '.join(str(error).split())}).") from error
    order = content.get("class_order") if isinstance(content, dict) else None
    if not isinstance(order, list):
        raise UserError(f"class order {path}: the file has no list under the key class_order.")
    return order
