"""The data of both learners: class orders, tasks, the sets and their splits (trainer.py:L61-L100)."""

import copy
import random

import numpy as np

from common import datasets
from common.datasets.images import ImageSet, Transform
from common.errors import UserError
from common.incremental import common_ground
from common.incremental.scenario import (
    LabelledImages,
    RemappedSubset,
    Scenario,
    protocol,
    read_class_order,
    require_images,
    task_subset,
)
from common.incremental.sets import IncrementalSet, find, reader_options
from vq_prompt.options import Options

TRAIN_SHARE = 0.8  # under `validation`, of the training images (arXiv 2410.20444 A.2)


def class_order(classes: int, seed: int) -> list[int]:
    """The labels 0 .. classes - 1 in Python's shuffle under the seed; seed 0 keeps the natural order."""
    order = list(range(classes))
    if seed > 0:
        random.Random(seed).shuffle(order)
    return order


def data_set(options: Options) -> IncrementalSet:
    """The entry of the data set: its names, where it lies, how its images are cut."""
    return find(options.dataset, options.dataroot)


def scenario(options: Options, seed: int) -> Scenario:
    """The tasks under one seed; --upper_bound_flag and the linear probe make one of all classes.

    IT-Prompt has one class order for CIFAR-100, TinyImageNet and the miniature (it_prompt/README.md, section 8).
    --class_order stands above both papers' orders.
    """
    data = data_set(options)
    order = class_order(data.classes or 0, seed if options.rand_split else 0)
    if options.fixed_orders and data.order:
        order = read_class_order(f"class_orders/{data.order}.yaml")
    if options.class_order:
        order = common_ground.class_order(options.class_order, data, seed)
    if options.upper_bound_flag or options.learner_name == "LinearProbe":
        return Scenario(order, len(order), len(order))
    return Scenario(order, options.first_split_size, options.other_split_size)


def task_count(options: Options, scenario: Scenario) -> int:
    """Number of tasks that are learned: all, or the first `max_task`."""
    count = len(scenario.tasks)
    return count if options.max_task < 0 else min(options.max_task, count)


def protocol_name(options: Options, scenario: Scenario) -> str:
    """The protocol as records name it; what is no test of the whole sequence says so."""
    first = options.max_task if task_count(options, scenario) < len(scenario.tasks) else None
    return protocol(data_set(options).label, scenario, first, options.validation, options.protocol)


def check_data(options: Options) -> None:
    """Return if the data set is complete, else raise UserError with all that is missing."""
    data, verify = data_set(options), not options.no_verify
    datasets.require([data.reader], data.root, verify, options=reader_options(data, options.split))


def load_data(
    options: Options, seed: int, train_transform: Transform | None, eval_transform: Transform | None
) -> ImageSet:
    """The data set, original labels; with `validation`, 80 % of the training images and the other 20 % as the test.

    Raises UserError as `datasets.load` does.
    """
    entry, verify = data_set(options), not options.no_verify
    reader = reader_options(entry, options.split)
    data = datasets.load(entry.reader, entry.root, train_transform, eval_transform, verify, options=reader)
    # the lists' contents are in the fingerprint, however their folder is spelt
    data.fingerprint |= {key: "lists" if isinstance(value, str) else str(value) for key, value in reader.items()}
    if options.validation:  # after numpy's permutation under the run's seed (the original's generator is not recorded)
        train, order = data.train, np.random.RandomState(seed).permutation(len(data.train))
        labels, first = np.asarray(train.labels), int(TRAIN_SHARE * len(order))
        kept, held_out = order[:first], order[first:]
        data.train = RemappedSubset(train, kept, labels[kept])  # type: ignore[assignment]
        data.test = RemappedSubset(under(train, eval_transform), held_out, labels[held_out])  # type: ignore[assignment]
    return data


def check_tasks(options: Options, seed: int) -> None:
    """Raise UserError if a class has no images, or a task no full batch where others are dropped."""
    tasks, data, size = scenario(options, seed), load_data(options, seed, None, None), options.batch_size
    require_images(data, tasks, task_count(options, tasks), every_class=True)
    for task_id in range(task_count(options, tasks) if options.drops_last else 0):
        count = len(task_subset(data.train, tasks, task_id))
        if count < size:
            few = f"task {task_id + 1} has {count} training images, fewer than a batch of {size}"
            raise UserError(
                f"{few}, and a batch that is not full is dropped. Take a smaller batch_size or larger tasks."
            )


def under(images: LabelledImages, transform: Transform | None) -> LabelledImages:
    """The same samples under another transform."""
    if isinstance(images, RemappedSubset):
        return RemappedSubset(under(images.dataset, transform), images.indices, images.labels)
    other = copy.copy(images)
    other.transform = transform
    return other
