"""The options that VQ-Prompt and IT-Prompt share: the original's flags and yaml keys (run.py:L18-L64, configs/), ours.

A run's seeds, scale, folder and device are derived from them by the functions below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import vit
from common.machine import RunOptions
from common.options import LARGEST_SEED, Rule, option
from common.runs import mini_folder

CONFIGS = Path(__file__).parent / "configs"
CONFIG = "configs/config.yaml"  # the original's default, which no configuration here is named
DEAD = "no effect, as in the original"


def _max_task(count: int) -> str | None:
    return "give 1 or more, -1 for all." if count == 0 or count < -1 else None


def _split(split: str) -> str | None:
    return f"a seed is at most {LARGEST_SEED}." if split.isdigit() and int(split) > LARGEST_SEED else None


def _memory(images: int) -> str | None:
    reason = "old classes' logits are at -inf in training, so an image of an old class would make the loss infinite."
    return f"{reason} Leave it at 0." if images > 0 else None


def _oracle(given: bool) -> str | None:
    return "what it did is not known; leave it out." if given else None


def _one_device(gpuid: Sequence[int]) -> str | None:
    reason = "a single device only (on several, the original sums the prompt loss over its copies of the model)."
    return None if len(gpuid) == 1 else f"{reason} Give one."


@dataclass(frozen=True)
class Options(RunOptions):
    """A learner's own follow in a class derived from this."""

    learner_type: str = option(help="the paper", group="method")
    learner_name: str = option(help="its method")
    scale: str = option("paper", "ours: mini is the embedded miniature", presets={"paper": None}, decides=False)
    dataset: str = option(help="images", group="data and tasks",
        choices=("CIFAR100", "ImageNet_R", "CUB200", "TinyImageNet"))
    dataroot: str = option("data", "folder of the data sets, or mini", decides=False)
    first_split_size: int = option(help="classes of the first task", at_least=1)
    other_split_size: int = option(help="classes of every later task", at_least=1)
    max_task: int = option(-1, "learn the first so many tasks; -1 for all", check=_max_task)
    rand_split: bool = option(True, "shuffle the classes by the seed, of which 0 keeps their order")
    upper_bound_flag: bool = option(False, "one task with all classes")
    validation: bool = option(False, "hold a fifth of the training images out and test on them")
    split: str = option("auto",
        "ours: of ImageNet-R: auto (its lists, or where there are none seed 40), lists, their folder, a seed",
        check=_split)
    memory: int = option(0, "images kept of old tasks; more than 0 is refused", at_least=0, check=_memory)
    oracle_flag: bool = option(False, "refused: what it did is not known", check=_oracle)
    optimizer: str = option("AdamW", "the only one", group="training", choices=("AdamW",))
    batch_size: int = option(help="images a step", at_least=1)
    lr: float = option(0.0025, "learning rate at its highest", above=0)
    weight_decay: float = option(0.0, "of AdamW", at_least=0)
    temp: float = option(2.0, ignored=DEAD)
    DW: bool = option(False, ignored="class weights are all ones, as in the original")
    momentum: float = option(0.9, ignored=DEAD)
    train_aug: bool = option(True, ignored=DEAD)
    model_type: str = option("zoo", ignored=DEAD)
    model_name: str = option("vit_pt_imnet", ignored=DEAD)
    debug_mode: int = option(0, ignored=DEAD)
    config: str = option(CONFIG, "yaml file; configs/<name>.yaml stands for the one of that name in vq_prompt/configs",
        group="run", decides=False)
    log_dir: str = option("outputs/out", "output folder; '-mini' is appended at that scale", decides=False)
    repeat: int = option(1, "runs, one a seed", at_least=1, decides=False)
    seeds: list[int] = option([], "a seed for each run; those missing are the run's index", words=True, empty=True,
        unique=True, at_least=0, at_most=LARGEST_SEED, decides=False)
    overwrite: int = option(0, "0: go on with what is there; 1: start anew", choices=(0, 1), decides=False)
    gpuid: list[int] = option([0], "CUDA index of a single card, or the CPU where there is none; negative: the CPU",
        words=True, check=_one_device, decides=False)
    device: str | None = option(None, "auto, cpu, cuda, cuda:1, instead of --gpuid", decides=False)
    workers: int = option(4, "loader processes, at most one a core", at_least=0, decides=False)
    weights: str = option(vit.DEFAULT_FOLDER, "folder of the ViTs' files", decides=False)

    @property
    def backbone_weights(self) -> str:
        """The name or the file of the backbone's weights."""
        raise NotImplementedError


def run_seeds(options: Options) -> list[int]:
    """The seed of every repeat: those given, then the repeat's own index."""
    return [*options.seeds[: options.repeat], *range(len(options.seeds), options.repeat)]


def seed_rules(options: Options) -> list[Rule]:
    """No two repeats under one seed."""
    seeds = run_seeds(options)
    twice = f"--seeds {' '.join(map(str, seeds))}, one a run: one occurs twice. Those not given are the run's index."
    return [(len(set(seeds)) < len(seeds), twice)]


def scale_of(options: Options) -> str:
    """What the records call the scale: a run on rendered images or with the tiny weights is a miniature."""
    return "mini" if vit.MINI in (options.scale, options.dataroot, options.backbone_weights) else "paper"


def log_dir_of(options: Options) -> str:
    """The output folder, '-mini' appended where the run is a miniature."""
    return mini_folder(options.log_dir, scale_of(options))


def device_of(options: Options) -> str:
    """torch's name of the device: --device, else the CUDA index of --gpuid, CPU where that is negative.

    The original's default, the first GPU, stands for whatever there is.
    """
    if options.device is not None:
        return options.device
    if options.gpuid == [0]:
        return "auto"
    return "cpu" if options.gpuid[0] < 0 else f"cuda:{options.gpuid[0]}"
