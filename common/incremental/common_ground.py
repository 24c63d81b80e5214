"""Common ground: one protocol on which every class-incremental method is compared, common-cifar100-10x10 and the like.

The same tasks, images, transforms and metrics for all; where all classes are learned at once, common-cifar100. What it
takes are values of the entry points' options; the rules here keep its name from a run of other values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.incremental.scenario import ORDERS, UPSTREAM_ORDERS, Scenario, read_class_order
from common.incremental.sets import RULE_SEED, IncrementalSet, imagenet_r_split
from common.options import Rule, option

COMMON = "common"
TASKS = 10
ORDER = f"{UPSTREAM_ORDERS}/{COMMON}/{{dataset}}-seed{{seed}}.yaml"


def protocol_option(values: Path | None = None) -> Any:
    """The option --protocol, whose value common sets a paper's values of common ground, from their file.

    Not given, the records name the paper's own.
    """
    help = "ours: common sets the values of common ground, and names the run so"
    return option(None, help, presets={COMMON: values}, decides=False)


@dataclass(frozen=True)
class SequenceOptions:
    """Options of the entry points whose originals fix class order and transforms; None: as there."""

    # `sequence_settings` has them, where they are given, and the order itself
    class_order: str | None = option(None, f"ours: its file, such as {ORDER}", group="tasks, ours", decides=False)
    transforms: str | None = option(None, "ours: common resizes test images to the input size, bicubic, and normalises "
        "all as the backbone was pre-trained", choices=(COMMON,), decides=False)  # fmt: skip
    protocol: str | None = protocol_option()


def class_order(source: str, data: IncrementalSet, seed: int) -> list[int]:
    """`read_class_order` of a path in which {dataset} and {seed} stand for the run's, the data set in lower case.

    Raises UserError as there, and for an order of another number of classes.
    """
    order = read_class_order(source.replace("{dataset}", data.label.lower()).replace("{seed}", str(seed)))
    if data.classes and len(order) != data.classes:
        raise UserError(
            f"the class order has {len(order)} classes, the data set has {data.classes}. Give the order of this data "
            "set."
        )
    return order


def sequence_settings(options: Any, tasks: Scenario) -> dict[str, Any]:
    """Additions to a run's settings: order, transforms and protocol, where given; the runs of before have none."""
    order = {"class_order": list(tasks.class_order)} if options.class_order else {}
    return order | {name: COMMON for name in ("transforms", "protocol") if getattr(options, name, None)}


def common_rules(
    options: Any, data: IncrementalSet, tasks: Scenario, seed: int, split: str = "auto", ask: str = "transforms=common"
) -> Iterator[Rule]:
    """Rules of a run of these tasks under a seed: what protocol common refuses; none of another protocol.

    split: of ImageNet-R, as in `imagenet_r_split`. ask: the option that asks for its transforms, and its value.
    """
    if options.protocol != COMMON:
        return
    name, known = f"{data.label.lower()}-seed{seed}", {path.stem for path in (ORDERS / COMMON).glob("*.yaml")}
    names, seeds = (", ".join(sorted({stem.split("-seed")[part] for stem in known})) for part in (0, 1))
    absent = f"{data.label} under seed {seed} is not on common ground, which has {names}, and the seeds {seeds}."
    order = f"the classes are not in the seed's order. Give class_order={ORDER}."
    sizes = {len(task) for task in tasks.tasks}
    told = f"{len(tasks.tasks)} tasks, of {' and '.join(map(str, sorted(sizes)))} classes,"
    equal = f"{told} are neither ten equal ones nor one."
    lists = f"ImageNet-R is split by its lists, else by seed {RULE_SEED}. Give split=auto."
    yield name not in known, f"protocol common: {absent}"
    yield tasks.class_order != tuple(class_order(ORDER, data, seed)), f"protocol common: {order}"
    yield len(tasks.tasks) not in (1, TASKS) or len(sizes) > 1, f"protocol common: {equal}"
    if data.reader == "ImageNetR":
        yield imagenet_r_split(data.root, split) != imagenet_r_split(data.root), f"protocol common: {lists}"
    transforms, value = ask.split("=")
    yield getattr(options, transforms) != value, f"protocol common: give {ask}."
