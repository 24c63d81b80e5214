"""The options: the keys of the original's JSON configurations (configs/*.json), and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import vit
from common.datasets.transforms import Normalisation
from common.incremental.common_ground import SequenceOptions, class_order, common_rules, protocol_option
from common.incremental.scenario import Scenario
from common.incremental.sets import IncrementalSet, find, reader_options
from common.machine import RunOptions
from common.options import LARGEST_SEED, SEED, check_rules, ignored, named_file, option, read, read_file, scale_option
from inflora.methods import METHODS, Method

CONFIGS = Path(__file__).parent / "configs"
DEAD = "prefix memory_size memory_per_class fixed_memory embd_dim num_heads EPSILON init_lr_decay"


def miniature(options: Any) -> dict[str, Any]:
    """The values of --scale mini over the options so far, of whose backbone the miniature has one of each kind."""
    return read_file(CONFIGS / "mini.json") | {"backbone": vit.miniature(options.backbone)}


def first_device(text: str) -> str:
    """Upstream's comma list of CUDA indices, of which the first is used, or torch's own name of a device."""
    first, *others = text.split(",")
    if others:
        print(f"note: --device {text}: one device is used, {first}")
    if first == "-1":
        return "cpu"
    return f"cuda:{first}" if first.isdecimal() else first


def known_split(split: str) -> str | None:
    """A check of ImageNet-R's seeds; the files of other splits are looked for when the data are."""
    return f"a seed is at most {LARGEST_SEED}." if split.isdecimal() and int(split) > LARGEST_SEED else None


def part_of_a_folder(name: str) -> str | None:
    """A check of texts that stand within the name of the output folder."""
    return "it is a part of a folder's name, without / and .. ." if "/" in name or ".." in name else None


Dead: Any = ignored(DEAD, "the code has no use for it")


@dataclass(frozen=True)
class Options(SequenceOptions, RunOptions, Dead):
    """A run's settings are the keys of the configuration without the seed, which stands in the run's labels."""

    config: str = option(help="JSON file, as the twelve in inflora/configs", group="configuration", decides=False)
    scale: str = scale_option(miniature, decides=False)
    model_name: str = option(help="the method; SeqLoRA and Joint are its bounds", choices=tuple(METHODS))
    backbone: str = option("sup21k", f"{', '.join(vit.available())}, or a file in timm's keys or a CLIP's")
    weights: str = option(vit.DEFAULT_FOLDER, "folder of the backbones' files", decides=False)
    seed: list[int] = option(help="one, or several: a run each", unique=True, decides=False, **SEED)
    dataset: str = option(help="data set", group="protocol",
        choices=("cifar100", "ImageNet_R", "domainnet", "cub200", "tinyimagenet"))  # fmt: skip
    data_path: str = option(help="folder of the data, or mini", decides=False)
    protocol: str | None = protocol_option(CONFIGS / "common.json")
    split: str = option("40", "ImageNet-R: a seed, upstream (the run's first), folders, lists, auto; DomainNet: lists",
        check=known_split)  # fmt: skip
    shuffle: bool = option(False, "draw the class order from the seed")
    init_cls: int = option(help="classes of the first task", at_least=1)
    increment: int = option(help="classes of every later task", at_least=1)
    total_sessions: int = option(help="tasks over which the threshold rises; there are so many branches", at_least=1)
    decimals: int | None = option(None, "round accuracies, as upstream's curves to 2", at_least=0, at_most=10)
    optim: str = option(help="optimiser", group="training", choices=("adam", "sgd"))
    epochs: int = option(help="passes over a task", at_least=1)
    lrate: float = option(help="learning rate", above=0)
    weight_decay: float = option(help="weight decay", at_least=0)
    init_epoch: int | None = option(None, "of the first task, instead of epochs", at_least=1)
    init_lr: float | None = option(None, "of the first task, instead of lrate", above=0)
    init_weight_decay: float | None = option(None, "of the first task, instead of weight_decay", at_least=0)
    fc_lrate: float | None = option(None, "learning rate of the classifier, of the methods that have one", above=0)
    lrate_decay: float = option(0.1, "of those methods: what a milestone multiplies the rates by", above=0, at_most=1)
    milestones: list[int] | None = option(None, "epochs at which they fall: 18, on DomainNet 4", at_least=1, empty=True)
    batch_size: int = option(help="images a step", at_least=1)
    decay_finished: bool = option(True, "no weight decay of finished branches, as under torch 2, not 1.10",
        off=("--keep-finished",))  # fmt: skip
    num_workers: int | None = option(None, "loader processes, at most one a core", at_least=0, decides=False)
    rank: int = option(help="width of a LoRA branch", group="method", at_least=1)
    lamb: float = option(help="share of the inputs that counts as old, in the first task", above=0, below=1)
    lame: float = option(help="the share that the later tasks' rise towards: lamb to 1", above=0, at_most=1)
    save: str = option("logs", "folder that the original's log folders lie in", group="output", decides=False)
    net_type: str = option("sip", "a part of the folder's name", check=part_of_a_folder)
    device: str = option("auto", "CUDA index as upstream (-1: cpu), or auto, cpu, cuda:1", group="run",
        convert=first_device, decides=False)  # fmt: skip

    @property
    def method(self) -> Method:
        return METHODS[self.model_name]

    @property
    def data_set(self) -> IncrementalSet:
        """The data set's names, location and number of classes."""
        return find(self.dataset, self.data_path)

    @property
    def reader_options(self) -> dict[str, Any]:
        """What --split means to the reader of the data set."""
        if self.data_set.reader == "DomainNet":
            return {"lists": None if self.split.isdecimal() else self.split}
        return reader_options(self.data_set, str(self.seed[0]) if self.split == "upstream" else self.split)

    @property
    def normalisation(self) -> Normalisation | None:
        """The backbone's own where --transforms asks for it. Raises UserError for a backbone that tells none."""
        return vit.normalisation(self.backbone) if self.transforms else None

    def scenario(self, seed: int) -> Scenario:
        """The tasks: classes in the order of their labels, or, with shuffle, in numpy's permutation under the seed.

        Upstream utils/data_manager.py:L148-L160; the published runs do not shuffle, whatever their seed. Or in the
        order of --class-order.
        """
        count = self.data_set.classes
        order = np.random.RandomState(seed).permutation(count).tolist() if self.shuffle else range(count)
        order = class_order(self.class_order, self.data_set, seed) if self.class_order else order
        sizes = (count, count) if self.method.joint else (self.init_cls, self.increment)
        return Scenario(order, *sizes)


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line and the configuration it names.

    Raises UserError for what is unknown, missing or out of range, and for values that contradict each other.
    """
    about = "InfLoRA (arXiv 2404.00228): class-incremental learning, one run a seed."
    usage = "Try: python -m inflora.main --config inflora/configs/cifar100_inflora.json --scale mini --seed 0."
    options = read(Options, argv, "inflora.main", about, usage, configuration)
    tasks = len(options.scenario(options.seed[0]).tasks)
    sizes = f"{options.data_set.classes} classes in steps of {options.init_cls} and then {options.increment}"
    check_rules([
        (tasks > options.total_sessions, f"total_sessions {options.total_sessions}, but {sizes} make {tasks} tasks."),
        (options.method.two_rates and options.fc_lrate is None, f"{options.model_name} needs fc_lrate."),
        (options.lame < options.lamb, f"lame {options.lame}: give lamb ({options.lamb}) to 1."),
        (options.shuffle and options.class_order, "shuffle: class_order says in which order. Leave one of them out."),
    ])  # fmt: skip
    for seed in options.seed:
        check_rules(common_rules(options, options.data_set, options.scenario(seed), seed, options.split))
    return options


def configuration(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The JSON file that --config names, without the original's key `device`: --device says where."""
    content, source = named_file("config", "inflora/configs/cifar100_inflora.json")(given)
    if "device" in content:
        print(f"note: without effect: {source}: device (--device says where)")
    return {key: value for key, value in content.items() if key != "device"}, source


def log_folder(options: Options) -> str:
    """The original's folder of a configuration, without the seed (trainer.py)."""
    sizes = f"{options.init_cls}_{options.increment}_{options.net_type}"
    rates = f"{options.lamb}_{options.lame}-{options.lrate}"
    return f"{options.dataset}/{sizes}/{options.model_name}/{options.optim}/{options.rank}/{rates}"
