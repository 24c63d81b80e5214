"""What VQ-Prompt and IT-Prompt share, under the original's names (run.py:L18-L64, configs/), and VQ-Prompt's options.

A run's seeds, scale, folder and device are derived from them by the functions at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import mini, vit
from common.datasets.transforms import Normalisation
from common.errors import UserError
from common.incremental.common_ground import SequenceOptions, protocol_option
from common.machine import RunOptions
from common.options import LARGEST_SEED, SEED, Rule, check_rules, option, read_file, scale_option
from common.runs import mini_folder
from vq_prompt.prompts import CONVENTIONS, check_pool

CONFIGS = Path(__file__).parent / "configs"
CONFIG = "configs/config.yaml"  # the original's default, which no configuration here is named
DEAD = "no effect, as in the original"
MEMORY = "old classes' logits are at -inf in training: an image of theirs would make the loss infinite. Leave it at 0."
DEVICES = "a single device only (on several, the original sums the prompt loss over its copies of the model). Give one."
DATASETS = ("CIFAR100", "ImageNet_R", "CUB200", "TinyImageNet")
SCHEDULES = ("coswm", "cosine", "decay")


def miniature(options: Any) -> dict[str, Any]:
    """VQ-Prompt's values of --scale mini over the options so far, of whose ViT the miniature has one of each kind."""
    return read_file(CONFIGS / "mini.yaml") | {"pretrained_weight": vit.miniature(options.pretrained_weight)}


def _check_split(split: str) -> str | None:
    return f"a seed is at most {LARGEST_SEED}." if split.isdecimal() and int(split) > LARGEST_SEED else None


# fmt: off
@dataclass(frozen=True)
class Options(SequenceOptions, RunOptions):
    """The options of both learners; each adds those of its paper in a class derived from this."""

    learner_type: str = option(help="the paper", group="method")
    learner_name: str = option(help="its method")
    scale: str = scale_option(None, decides=False)
    dataset: str = option(help="images", group="data and tasks", choices=DATASETS)
    dataroot: str = option("data", "folder of the data sets, or mini", decides=False)
    protocol: str | None = protocol_option(CONFIGS / "common.yaml")
    first_split_size: int = option(help="classes of the first task", at_least=1)
    other_split_size: int = option(help="classes of every later task", at_least=1)
    max_task: int = option(-1, "learn the first so many tasks; -1 for all", at_least=-1,
        check=lambda count: None if count else "give 1 or more, -1 for all.")
    rand_split: bool = option(True, "shuffle the classes by the seed, of which 0 keeps their order")
    upper_bound_flag: bool = option(False, "one task with all classes")
    validation: bool = option(False, "hold a fifth of the training images out and test on them")
    split: str = option("auto", "ours, ImageNet-R: auto (its lists, else seed 40), lists, their folder, a seed",
        check=_check_split)
    memory: int = option(0, "more than 0 is refused", at_least=0, check=lambda images: MEMORY if images else None)
    oracle_flag: bool = option(False, "refused",
        check=lambda given: "what it did is not known; leave it out." if given else None)
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
    config: str = option(CONFIG, "yaml file; configs/<name>.yaml: the one in vq_prompt", group="files", decides=False)
    log_dir: str = option("outputs/out", "output folder; '-mini' is appended at that scale", decides=False)
    repeat: int = option(1, "runs, one a seed", at_least=1, decides=False)
    seeds: list[int] = option([], "a seed for each run; those missing are the run's index", words=True, empty=True,
        unique=True, decides=False, **SEED)
    overwrite: int = option(0, "0: go on with what is there; 1: start anew", choices=(0, 1), decides=False)  # type: ignore[assignment]
    gpuid: list[int] = option([0], "CUDA index, or the CPU where there is none; negative: the CPU", words=True,
        check=lambda gpuid: None if len(gpuid) == 1 else DEVICES, decides=False)
    device: str | None = option(None, "auto, cpu, cuda, cuda:1, instead of --gpuid", decides=False)  # type: ignore[assignment]
    workers: int = option(4, "loader processes, at most one a core", at_least=0, decides=False)
    weights: str = option(vit.DEFAULT_FOLDER, "folder of the ViTs' files", decides=False)

    @property
    def backbone_weights(self) -> str:
        """Name or file of the backbone's weights."""
        raise NotImplementedError

    @property
    def drops_last(self) -> bool:
        """Whether training leaves out an epoch's last batch unless it is full."""
        raise NotImplementedError

    @property
    def fixed_orders(self) -> bool:
        """Whether data sets that have a class order of their own are learned in it, whatever the seed."""
        return False

    @property
    def normalisation(self) -> Normalisation | None:
        """The ViT's own where --transforms asks for it. Raises UserError for a backbone that tells none."""
        return vit.normalisation(self.backbone_weights) if self.transforms else None

    def weights_file(self) -> Path:
        """The file of the backbone's weights. Raises UserError if it is missing."""
        return vit.find_weights(self.backbone_weights, self.weights)


@dataclass(frozen=True)
class VQOptions(Options):
    """The options of VQ-Prompt and of its bounds on the ViT without prompts: nearest class mean, joint linear probe."""

    learner_type: str = option(help="prompt, or it_prompt, which has options of its own", group="VQ-Prompt")
    learner_name: str = option(choices=("VQPrompt", "NCM", "LinearProbe"))
    scale: str = scale_option(miniature, decides=False)
    # the second spelling stands in cub-200.sh
    pretrained_weight: str = option("sup1k", f"{', '.join(vit.available())}, or a file in timm's keys or a CLIP's",
        flags=("--pretrained_weight", "--pretrained_weigh"), decides=False)
    prompt_param: list[float] = option([1.0, 1.0, 1.0], "pool size, prompt length, temperature", words=True,
        check=lambda values: None if len(values) == 3 else "give pool size, prompt length and temperature.")
    schedule_type: str = option("coswm", "how the rate falls within a task", choices=SCHEDULES)
    schedule: list[int] = option([], "coswm: freeze (iterations), warm-up, epochs; else epochs last", at_least=0)
    iter_step: int = option(0, "iterations that coswm takes for an epoch", at_least=0)
    adaptive_pred: bool = option(True, "NO statistics, NO re-training", off=("--adaptive_pred", "--no_ca"))
    n_centroids: int = option(1, "Gaussians a class", at_least=1)
    crct_epochs: int = option(10, "epochs of re-training", at_least=1)
    ca_lr: float = option(1e-4, "its learning rate", above=0)
    ca_weight_decay: float = option(5e-4, "its weight decay", at_least=0)
    ca_batch_size_ratio: float = option(4.0, "its samples a Gaussian: batch size times this", above=0)
    vq_weight_convention: str = option("code", "commitment and codebook loss: 0.4 and 0.1, or swapped (paper)",
        group="VQ-Prompt, ours", choices=tuple(CONVENTIONS))
    quantize: bool = option(True, "false: the mixture of all prompts itself, Soft-Prompt")
    normalize_query: bool = option(False, "normalise the query as the keys are")
    prompt_lr_mult: float = option(5.0, "the prompts' rate as a multiple of lr", above=0)
    coswm_first_step_full_lr: bool = option(True, "the first update of a task at the full rate, as the code has it")
    ca_first_step_full_lr: bool = option(True, "the same of re-training")
    normalize_input: bool = option(False, "normalise pixels by ImageNet's mean and deviation")

    @property
    def backbone_weights(self) -> str:
        return self.pretrained_weight

    @property
    def drops_last(self) -> bool:
        return self.learner_name == "VQPrompt"

    @property
    def samples_per_centroid(self) -> int:
        """Samples that re-training draws from each Gaussian."""
        return int(self.batch_size * self.ca_batch_size_ratio)
# fmt: on


def checked(options: VQOptions) -> VQOptions:
    """The options themselves. Raises UserError for values that contradict each other."""
    ratio, size = options.ca_batch_size_ratio, options.batch_size
    none_left = f"--ca_batch_size_ratio {ratio}: of batch_size {size} no sample is left."
    twice = "normalize_input: transforms common normalises, as the backbone was pre-trained. Leave one of them out."
    check_rules(
        [(options.samples_per_centroid < 1, none_left), (options.transforms and options.normalize_input, twice)]
    )
    check_schedule(options.schedule_type, options.schedule, options.iter_step)
    if options.learner_name == "VQPrompt":
        check_pool(*options.prompt_param)
    return options


def check_schedule(schedule_type: str, schedule: Sequence[int], iter_step: int) -> None:
    """Raise UserError for a schedule that gives no rates."""
    name = f"schedule_type {schedule_type}, schedule {list(schedule)}, iter_step {iter_step}"
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in schedule)
    if not schedule or not whole or min(schedule) < 0 or schedule[-1] < 1:
        raise UserError(f"{name}: give whole numbers, the last one the epochs of a task.")
    if schedule_type == "coswm" and len(schedule) != 3:
        raise UserError(f"{name}: give [freeze iterations, warm-up epochs, epochs].")
    if schedule_type == "coswm" and (iter_step < 1 or schedule[0] + schedule[1] * iter_step >= schedule[2] * iter_step):
        raise UserError(f"{name}: no iterations are left behind the freeze and the warm-up.")


def run_seeds(options: Options) -> list[int]:
    """Seed of every repeat: those given, then the repeat's index."""
    return [*options.seeds[: options.repeat], *range(len(options.seeds), options.repeat)]


def seed_rules(options: Options) -> list[Rule]:
    """The rule that no two repeats have one seed."""
    seeds = run_seeds(options)
    twice = f"--seeds {' '.join(map(str, seeds))}, one a run: one occurs twice. Those not given are the run's index."
    return [(len(set(seeds)) < len(seeds), twice)]


def scale_of(options: Options) -> str:
    """The scale as records name it: a run on rendered images or with the tiny weights is a miniature."""
    return mini.scale_of(options.scale, options.dataroot, options.backbone_weights)


def log_dir_of(options: Options) -> str:
    """The output folder, '-mini' appended where the run is a miniature."""
    return mini_folder(options.log_dir, scale_of(options)) or ""


def device_of(options: Options) -> str:
    """torch's name of the device: --device, else the CUDA index of --gpuid, CPU where that is negative.

    The original's default, the first GPU, stands for whatever there is.
    """
    if options.device is not None:
        return options.device
    if options.gpuid == [0]:
        return "auto"
    return "cpu" if options.gpuid[0] < 0 else f"cuda:{options.gpuid[0]}"
