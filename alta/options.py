"""The command line, the original's flags then ours, and the configuration files, whose keys are the original's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alta.data import LOOKS, SOURCES
from alta.heads import ENCODINGS, METHODS
from common.clip.activation import CLIPOptions
from common.clip.model import GELU
from common.clip.tokenizer import encode
from common.incremental.common_ground import SequenceOptions, class_order, common_rules, protocol_option
from common.incremental.scenario import Scenario, protocol
from common.incremental.sets import CHARACTERS, IncrementalSet, find
from common.machine import PRECISIONS, RunOptions
from common.mini import MINI, MINI_RESNET
from common.options import SEED, SHARE, check_rules, named_file, option, read, read_file, scale_option
from common.protocols import Protocol

PROTOCOLS = {"class-il": "cil", "task-il": "til"}  # kind of a protocol by il_setting
LR_POLICIES = ("released", "global_cosine", "task_cosine", "constant")
CONFIGS = Path(__file__).parent / "configs"
EXAMPLE = "alta/configs/il_cifar100.yaml"
VISUALS = ("RN50", "RN101", "RN50x4", "RN50x16", "ViT-B/32", "ViT-B/16", MINI, MINI_RESNET)


def miniature(options: Any) -> dict[str, Any]:
    """The values of --scale mini over the options so far, whose number of tasks stays one where it is."""
    content = read_file(CONFIGS / "mini.yaml")
    if options.dataset.get("n_tasks") == 1:
        if options.joint_task_classes:
            content["joint_task_classes"] = content["dataset"]["n_classes_per_task"]
        content["dataset"] |= {"n_tasks": 1, "n_classes_per_task": CHARACTERS.classes}
    return content


def whole_words(text: str) -> str | None:
    """A check of CTX_INIT, whose words the original counts as tokens."""
    words = text.replace("_", " ")
    fits = not words or len(encode(words)) == len(words.split(" "))
    return None if fits else "each word, one space between two, must be one token of CLIP's."


# fmt: off
@dataclass(frozen=True)
class DataSection:
    name: str = option(help="data set", group="section dataset of the configuration", choices=tuple(LOOKS))
    num_workers: int = option(help="loader processes, at most one a core", at_least=0, decides=False)
    n_classes_per_task: int = option(help="classes of a task", at_least=1)
    n_tasks: int = option(help="tasks, which make up all classes", at_least=1)
    image_size: int | None = option(None, "must be the tower's", at_least=1)


@dataclass(frozen=True)
class ModelSection:
    pretrained: bool = option(help="CLIP's weights", group="section model of the configuration", choices=(True,))
    use_replay: bool = option(help="whether methods with an adapter replay from a buffer")


@dataclass(frozen=True)
class OptimSection:
    """Keys without effect under sgd may be left out; they are part of a run's settings all the same."""

    NAME: str = option(help="optimiser", group="section OPTIM of the configuration", choices=("sgd",))
    LR: float = option(help="learning rate, from which --lr_policy makes that of an epoch", above=0)
    MAX_EPOCH: int = option(help="epochs of a task", at_least=1)
    WEIGHT_DECAY: float = option(help="weight decay", at_least=0)
    MOMENTUM: float = option(help="momentum", at_least=0, below=1)
    SGD_DAMPNING: float = option(help="dampening of the momentum", **SHARE)
    SGD_NESTEROV: bool = option(help="Nesterov's momentum")
    WARMUP_EPOCH: int = option(help="epochs at WARMUP_CONS_LR", at_least=0)
    WARMUP_TYPE: str = option(help="how the warm-up goes", choices=("constant",))
    WARMUP_CONS_LR: float = option(help="learning rate of the warm-up", at_least=0)
    STAGED_LR: bool = option(False, choices=(False,))
    WARMUP_RECOUNT: bool = option(True, choices=(True,))
    RMSPROP_ALPHA: float | None = option(None, "without effect under sgd, as the next four", **SHARE)
    ADAM_BETA1: float | None = option(None, "", **SHARE)
    ADAM_BETA2: float | None = option(None, "", **SHARE)
    NEW_LAYERS: Any = option(None, empty=True)
    BASE_LR_MULT: float | None = option(None, at_least=0)


@dataclass(frozen=True)
class CoopSection:
    # the class's name must fit into CLIP's 77 tokens too
    N_CTX: int = option(help="context vectors where CTX_INIT is empty", at_least=1, at_most=70,
        group="section TRAINER.COOP of the configuration")
    CTX_INIT: str = option(help="words whose embeddings the context starts from", empty=True, check=whole_words)
    CLASS_TOKEN_POSITION: str = option(help="where the class's name stands", choices=("end", "middle", "front"))
    CSC: bool = option(False, "a context for each class where CTX_INIT is empty")


@dataclass(frozen=True)
class TrainerSection:
    COOP: CoopSection = field(default_factory=CoopSection)


@dataclass(frozen=True)
class TrainSection:
    batch_size: int = option(help="images a step, and samples replayed",
        group="sections train and eval of the configuration", at_least=1)
    alpha: float = option(help="weight of the replayed samples' cross-entropy", at_least=0)
    beta: float = option(help="weight of the squared difference to their recorded logits", at_least=0)
    num_classes: int | None = option(None, "read nowhere, as in the original", at_least=1)


@dataclass(frozen=True)
class EvalSection:
    test_epochs: int = option(help="epochs between two evaluations within a task", at_least=1)
    batch_size: int = option(help="images a batch of evaluation", at_least=1)


@dataclass(frozen=True)
class Options(SequenceOptions, CLIPOptions, RunOptions):
    """The original's flags, ours, and the sections of its configuration files."""

    config_file: str = option(help="YAML file of the keys below, as the nine in alta/configs",
        group="the original's flags", decides=False)
    method: str = option("oritext_mlp2cprompt_oriimg", "the default is ALTA", choices=tuple(METHODS))
    il_setting: str = option("class-il", "what is printed", choices=("class-il", "task-il"), decides=False)
    visual: str = option("RN50", "CLIP", choices=VISUALS)
    buffer_size: int = option(200, "samples in the replay buffer", at_least=0)
    seed: int = option(42, "of everything that is drawn", **SEED)
    cifar10_dir: str = option("./data", "folder of CIFAR-10", decides=False)
    cifar100_dir: str = option("./data", "folder of CIFAR-100", decides=False)
    tinyimagenet_dir: str = option("./data/tiny-imagenet-200", "folder of TinyImageNet", decides=False)
    imagenet_r_dir: str = option("./data", "ours: folder of ImageNet-R", decides=False)
    cub200_dir: str = option("./data", "ours: folder of CUB-200", decides=False)
    lr_policy: str = option("released", "schedule of the learning rate: see alta/README.md",
        group="ours, with effect on the numbers", choices=LR_POLICIES)
    protocol: str | None = protocol_option(CONFIGS / "common.yaml")
    precision: str = option("auto", "auto: fp16, the original's, on a GPU and fp32 on a CPU",
        choices=("auto", "fp16", *PRECISIONS), decides=False)
    encoding: str = option("auto", "of texts; auto: full in fp16, else cut behind the last end token",
        choices=("auto", *ENCODINGS), decides=False)
    clip_norm: bool = option(False, "normalise images as CLIP, not as the data set")
    seen_only: bool = option(False, "class-IL among the classes seen, not among all")
    joint_task_classes: int | None = option(None, "joint_*.yaml: task-IL masks to tasks of so many classes", at_least=1)
    clip_weights: str | None = option(None, "file of --visual's CLIP weights", flags=("--model",), decides=False)
    dataset: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    OPTIM: OptimSection = field(default_factory=OptimSection)
    TRAINER: TrainerSection = field(default_factory=TrainerSection)
    train: TrainSection = field(default_factory=TrainSection)
    eval: EvalSection = field(default_factory=EvalSection)
    scale: str = scale_option(miniature, group="output", decides=False)
    save: str | None = option(None, "output folder (one below runs/alta that names the options)", decides=False)
    tsne: bool = option(False, "draw raw and task-aware representations of test images", decides=False)
# fmt: on


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line and its configuration, checked against each other. Raises UserError."""
    about = "ALTA (IEEE TMM 2023, document 10347466): continual learning on a frozen CLIP."
    example = f"Try: python -m alta.main --config-file {EXAMPLE} --scale mini"
    options = read(Options, argv, "alta.main", about, example, named_file("config_file", EXAMPLE))
    data, optim, group, classes = options.dataset, options.OPTIM, options.joint_task_classes, data_set(options).classes
    split = f"dataset.n_tasks {data.n_tasks} of dataset.n_classes_per_task {data.n_classes_per_task}"
    empty = f"--buffer_size 0, but {options.method} replays from the buffer. Give 1 or more, or a configuration with"
    nesterov = "OPTIM.SGD_NESTEROV: it needs an OPTIM.MOMENTUM above 0 and no OPTIM.SGD_DAMPNING."
    tasks = data.n_tasks * data.n_classes_per_task
    check_rules([
        (tasks != classes, f"{data.name} has {classes} classes, which {split} do not make up."),
        (optim.SGD_NESTEROV and (optim.MOMENTUM == 0 or optim.SGD_DAMPNING != 0), nesterov),
        (replays(options) and options.buffer_size == 0, f"{empty} model.use_replay False (sgd_*.yaml)."),
        (options.activation == GELU and options.visual in SOURCES and not options.clip_weights,
         f"--activation {GELU}: {options.visual} has QuickGELU, which it was trained with."),
        (group and data.n_tasks > 1, "--joint_task_classes is for configurations of one task (joint_*.yaml)."),
        (group and classes % group > 0, f"--joint_task_classes {group} does not divide {classes} classes."),
        (options.protocol and not options.seen_only, "protocol common: give --seen_only, as for all methods."),
    ])  # fmt: skip
    check_rules(common_rules(options, data_set(options), scenario(options), options.seed))
    return options


def replays(options: Options) -> bool:
    """Whether there is a buffer: use_replay, and a method with an adapter; others never replay (main.py:L57-L58)."""
    return options.model.use_replay and METHODS[options.method].adapts


def data_folder(options: Options) -> str:
    """What the data set's own flag says; the miniature, which has none, is a location itself."""
    return getattr(options, LOOKS[options.dataset.name].flag, MINI)


def data_set(options: Options) -> IncrementalSet:
    """The data set's names, location and number of classes."""
    return find(options.dataset.name, data_folder(options))


def scenario(options: Options) -> Scenario:
    """The tasks: classes in the order of their labels, or of --class_order. Raises UserError as `class_order` does."""
    data, size = data_set(options), options.dataset.n_classes_per_task
    order = class_order(options.class_order, data, options.seed) if options.class_order else range(data.classes)
    return Scenario(order, size, size)


# A run's names


def run_folder(options: Options) -> str:
    """--save, or a folder that tells one run from another."""
    name = f"{Path(options.config_file).stem}-{options.method}-{options.visual.replace('/', '-')}"
    return options.save or f"runs/alta/{name}-buffer{options.buffer_size}-seed{options.seed}"


def usual(options: Options, name: str) -> Any:
    """The value of a flag that no name speaks of: the default, or the miniature's."""
    preset = {MINI: read_file(CONFIGS / "mini.yaml")}.get(options.scale, {})
    return preset.get(name, getattr(Options, name))


def protocols(options: Options) -> dict[str, str]:
    """The protocol by il_setting, such as til-cifar100-10x10; with the buffer's size where it is not the usual one.

    Common ground has class-il alone, and tells of the buffer in the method's name.
    """
    label, data, buffer = data_set(options).label, options.dataset, unusual_buffer(options)
    if options.protocol:
        return {"class-il": protocol(label, scenario(options), kind=options.protocol)}
    parts = (label.lower(), data.n_tasks, data.n_classes_per_task)
    return {setting: str(Protocol(kind, *parts, buffer=buffer)) for setting, kind in PROTOCOLS.items()}


def unusual_buffer(options: Options) -> int | None:
    """The size of the buffer, if there is one and its size is not the usual one."""
    size = options.buffer_size
    return size if replays(options) and size != usual(options, "buffer_size") else None


def method_label(options: Options) -> str:
    """The method as records name it, and what is not as usual."""
    method, policy, masked = METHODS[options.method], options.lr_policy, options.joint_task_classes
    trains, joint = method.adapts or method.prompts, options.dataset.n_tasks == 1
    unusual = {
        "joint": trains and joint,
        "no replay": method.adapts and not joint and not options.model.use_replay,
        policy: trains and policy != usual(options, "lr_policy"),
        "CLIP's normalisation": options.clip_norm,
        "among classes seen": options.seen_only and not options.protocol,  # on common ground all are
        f"buffer of {options.buffer_size}": options.protocol and unusual_buffer(options) is not None,
        f"masked to tasks of {masked}": masked is not None,
    }
    return ", ".join([method.label, *(words for words, holds in unusual.items() if holds)])
