"""The data set of a class-incremental run of ZSCL or MoE-Adapters, cut into tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.clip.pretrained import find_weights
from common.clip.tokenizer import training_prompts
from common.datasets.images import ImageArrays, ImageFiles
from common.datasets.transforms import clip_eval_pixels, clip_train
from common.errors import all_checked
from common.incremental.common_ground import class_order, common_rules
from common.incremental.options import CILOptions
from common.incremental.scenario import RemappedSubset, Scenario, protocol, require_images, seen_subset
from common.incremental.sets import find, load_incremental, require_incremental
from common.options import check_rules


@dataclass(frozen=True)
class IncrementalData:
    """The tasks that a run learns and is tested on; labels are positions in the class order."""

    protocol: str  # cil-cifar100-10x10, on common ground common-cifar100-10x10
    dataset: str  # CIFAR100
    scenario: Scenario
    train: ImageFiles | ImageArrays  # original labels, training transform; `task_subset` selects a task
    test: RemappedSubset  # all test images, new labels, the transform that `eval_transform` names
    tokens: Tensor  # (C, L) one prompt a class in class order, L the length of the longest
    fingerprint: dict[str, Any]


def check_inputs(options: CILOptions, *checks: Callable[[], Any]) -> None:
    """Look for every input of a run before CLIP is built, with `checks` for a paper's own.

    Raises one UserError that lists all that is missing.
    """
    verify = not options.no_verify
    all_checked(
        [
            lambda: check_scenario(options),
            lambda: require_incremental(options.dataset, options.dataset_root, verify, options.imagenet100_lists),
            lambda: find_weights(options.model_name),
            *checks,
        ]
    )


def read_scenario(options: CILOptions) -> Scenario:
    """The tasks that the options describe. Raises UserError as `class_order` and `Scenario` do."""
    order = class_order(options.class_order, find(options.dataset, options.dataset_root), options.seed)
    return Scenario(order, options.initial_increment, options.increment)


def check_scenario(options: CILOptions) -> None:
    """Raise UserError as `read_scenario` does, and for tasks or transforms that are not those of protocol common."""
    data, scenario = find(options.dataset, options.dataset_root), read_scenario(options)
    check_rules(common_rules(options, data, scenario, options.seed, ask="eval_transform=test"))


def load_data(options: CILOptions, resolution: int) -> IncrementalData:
    """The data set in tasks, with its prompts, for a CLIP of input size `resolution`.

    Raises UserError as `load_incremental` and `Scenario` do, and if the class order belongs to another data set.
    """
    train = clip_train(resolution)
    test = {"train": train, "test": clip_eval_pixels(resolution)}[options.eval_transform]
    verify = not options.no_verify
    data = load_incremental(options.dataset, options.dataset_root, train, test, verify, options.imagenet100_lists)
    scenario = read_scenario(options)
    tokens = training_prompts(scenario.classnames(data.classnames), options.prompt_template)
    require_images(data, scenario)
    assert data.test is not None  # require_images has raised otherwise
    label = find(options.dataset, options.dataset_root).label
    images, name = seen_subset(data.test, scenario, -1), protocol(label, scenario, kind=options.protocol)
    return IncrementalData(name, label, scenario, data.train, images, tokens, data.fingerprint)
