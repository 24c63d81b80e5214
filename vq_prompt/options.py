"""The command line and the yaml configuration, whose flags and keys are the original's (run.py:L18-L64, configs/).

Values come from the defaults, then the yaml file, then flags, then --set; --scale mini stands for the flags and keys of
configs/mini.yaml at its place of the command line. All of them end up in one flat namespace.
"""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common import vit
from common.command_line import add_speed_flags, mini_folder
from common.errors import UserError
from vq_prompt.it_options import CLIP_BACKBONE, OWN_KEYS, PRESETS, settle

CONFIGS = Path(__file__).parent / "configs"
LEARNER_NAMES = {"prompt": ("VQPrompt", "NCM"), "it_prompt": tuple(PRESETS)}  # by learner_type
VQ_OPTIONS: dict[str, Any] = {  # keys of ours, for what the paper and its code disagree on or what can be switched
    "vq_weight_convention": "code",  # code: commitment 0.4, codebook 0.1; paper: the other way round
    "quantize": True,  # False: the soft-prompt ablation
    "normalize_query": False,
    "prompt_lr_mult": 5.0,
    "coswm_first_step_full_lr": True,
    "ca_first_step_full_lr": True,
    "normalize_input": False,
}
# a learner's own yaml keys with their defaults, by learner_type; IT-Prompt's depend on the learner_name
LEARNER_OPTIONS = {"prompt": VQ_OPTIONS, "it_prompt": OWN_KEYS}
MINI_FILES = {"prompt": "mini.yaml", "it_prompt": "mini_it_prompt.yaml"}  # what --scale mini stands for

REQUIRED = {"dataset": str, "first_split_size": int, "other_split_size": int, "batch_size": int}
KEYS: dict[str, Any] = {  # the other yaml keys of every configuration, with the published value or ours
    "schedule": [],
    "schedule_type": "coswm",
    "iter_step": 0,
    "optimizer": "AdamW",
    "lr": 0.0025,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "model_type": "zoo",
    "model_name": "vit_pt_imnet",
    "max_task": -1,
    "dataroot": "data",
    "workers": 4,
    "validation": False,
    "train_aug": True,
    "rand_split": True,
    "split": "auto",  # ours: ImageNet-R's lists (auto, lists, a folder) or the seed of our rule
}
FLAGS: dict[str, Any] = {  # the original's, with its defaults
    "gpuid": [0],
    "log_dir": "outputs/out",
    "learner_type": "default",
    "learner_name": "NormalNN",
    "debug_mode": 0,
    "repeat": 1,
    "seeds": [],
    "overwrite": 0,
    "oracle_flag": False,
    "upper_bound_flag": False,
    "memory": 0,
    "temp": 2.0,
    "DW": False,
    "prompt_param": [1.0, 1.0, 1.0],
    "adaptive_pred": True,
    "n_centroids": 1,
    "crct_epochs": 10,
    "ca_lr": 1e-4,
    "ca_weight_decay": 5e-4,
    "ca_batch_size_ratio": 4.0,
    "pretrained_weight": "sup1k",
    "config": "configs/config.yaml",
}
OURS: dict[str, Any] = {
    "device": None,
    "threads": None,
    "weights": vit.DEFAULT_FOLDER,
    "no_verify": False,
    "save_interval": 10.0,
    "scale": "paper",
    "precision": "fp32",
    "compile": False,
    "checkpoint_activations": False,
    "tensorboard": False,
}
RUN_KEYS = (  # those that decide no number, or stand elsewhere in a run's settings
    "gpuid", "log_dir", "debug_mode", "repeat", "seeds", "overwrite", "temp", "DW", "pretrained_weight", "config",
    "model_type", "model_name", "momentum", "train_aug", "dataroot", "workers", "torch_device", *OURS,
)  # fmt: skip


def preset(file: str) -> type[argparse.Action]:
    """--scale mini: every value of a file in configs/, to be overridden by what follows on the command line."""

    class Preset(argparse.Action):
        def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: str | None = None
        ) -> None:
            setattr(namespace, self.dest, value)
            if value == "mini":
                vars(namespace).update(yaml.safe_load((CONFIGS / file).read_text()))

    return Preset


def build_parser(mini_file: str = MINI_FILES["prompt"]) -> argparse.ArgumentParser:
    """The flags; one that is not given leaves no trace in the namespace, so that the yaml file can set it."""
    parser = argparse.ArgumentParser(
        prog="python -m vq_prompt.run",
        description="VQ-Prompt and IT-Prompt. Flags override the configuration, --set overrides both.",
        argument_default=argparse.SUPPRESS,
    )
    run = parser.add_argument_group("run, as the original")
    run.add_argument("--config", help="yaml file; configs/<name>.yaml stands for the one of that name kept here")
    run.add_argument("--gpuid", nargs="+", type=int, help="CUDA index [0, or the CPU]; negative: CPU; a single one")
    run.add_argument("--log_dir", help="output folder [outputs/out]; '-mini' is appended at that scale")
    run.add_argument("--learner_type", help=f"{', '.join(LEARNER_NAMES)}")
    names = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in LEARNER_NAMES.items())
    run.add_argument("--learner_name", help=names)
    run.add_argument("--debug_mode", type=int, help="accepted; no effect")
    run.add_argument("--repeat", type=int, help="runs, one a seed [1]")
    run.add_argument("--seeds", nargs="+", type=int, help="a seed for each run; those missing are the run's index")
    run.add_argument("--overwrite", type=int, choices=[0, 1], help="0: go on with what is there [0]; 1: start anew")
    run.add_argument("--oracle_flag", action="store_true", help="refused: what it did is not known")
    run.add_argument("--upper_bound_flag", action="store_true", help="one task with all classes")
    method = parser.add_argument_group("method, as the original")
    method.add_argument("--memory", type=int, help="images kept of old tasks [0]; more is refused")
    method.add_argument("--temp", type=float, help="accepted; no effect")
    method.add_argument("--DW", action="store_true", help="accepted; class weights are all ones")
    method.add_argument("--prompt_param", nargs="+", type=float, metavar="X", help="pool size, length, temperature")
    method.add_argument("--adaptive_pred", action="store_false", help="DISABLES statistics and classifier re-training")
    method.add_argument("--no_ca", dest="adaptive_pred", action="store_false", help="ours: --adaptive_pred, well named")
    method.add_argument("--n_centroids", type=int, help="Gaussians a class [1]")
    method.add_argument("--crct_epochs", type=int, help="epochs of re-training [10]")
    method.add_argument("--ca_lr", type=float, help="its rate [1e-4]")
    method.add_argument("--ca_weight_decay", type=float, help="[5e-4]")
    method.add_argument("--ca_batch_size_ratio", type=float, help="samples a Gaussian: batch size times this [4]")
    method.add_argument("--pretrained_weight", help=f"{', '.join(vit.available())}, or a file in timm's keys [sup1k]")
    ours = parser.add_argument_group("ours")
    ours.add_argument("--scale", choices=["paper", "mini"], action=preset(mini_file), help="mini: in minutes")
    ours.add_argument(
        "--set", nargs="+", action="extend", metavar="KEY=VALUE", help="of yaml keys, as dataroot=data quantize=false"
    )
    ours.add_argument("--weights", help=f"folder of the backbones' files [{vit.DEFAULT_FOLDER}]")
    ours.add_argument("--no-verify", action="store_true", help="accept data whose counts differ from the published")
    ours.add_argument("--device", help="auto, cpu, cuda, cuda:1, instead of --gpuid")
    ours.add_argument("--threads", type=int, help="CPU threads of torch (its own choice)")
    ours.add_argument("--workers", type=int, help="loader processes [4, at most one a core]")
    ours.add_argument("--save-interval", type=float, help="seconds between saves within a task [10]")
    add_speed_flags(parser, argparse.SUPPRESS)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """All flags and keys in one namespace. Raises UserError for what is unknown, missing, mistyped or refused."""
    first = vars(build_parser().parse_args(argv))
    content, source = read_config(first.get("config", FLAGS["config"]))
    kind = first.get("learner_type", content.get("learner_type", FLAGS["learner_type"]))
    known_name("learner_type", kind, LEARNER_NAMES)
    given = vars(build_parser(MINI_FILES[kind]).parse_args(argv))
    assignments = given.pop("set", [])
    defaults = KEYS | FLAGS | OURS | LEARNER_OPTIONS[kind]
    values = dict(defaults)
    for layer, place in ((content, source), (given, "command line"), (_assigned(assignments), "--set")):
        values |= {key: _typed(key, value, REQUIRED | defaults, place) for key, value in layer.items()}
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise UserError(f"configuration {source}: missing keys: {', '.join(missing)}.")
    known_name("learner_name", values["learner_name"], LEARNER_NAMES[kind])
    options = argparse.Namespace(**values)
    options.seeds = [*options.seeds[: options.repeat], *range(len(options.seeds), options.repeat)]
    check_options(options)
    if kind == "it_prompt":
        settle(options, source, {*content, *given, *(text.partition("=")[0] for text in assignments)})
    options.scale = scale_of(options)
    options.log_dir = mini_folder(options.log_dir, options.scale)
    return options


def read_config(source: str | Path) -> tuple[dict[str, Any], Path]:
    """A yaml file's keys and its path. Raises UserError if it can not be read or is no mapping."""
    path = Path(source).expanduser()
    if not path.is_file() and path.parent.name == CONFIGS.name and (CONFIGS / path.name).is_file():
        path = CONFIGS / path.name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = difflib.get_close_matches(path.name, [file.name for file in CONFIGS.glob("*.yaml")], n=1)
        hint = f" Did you mean {CONFIGS / near[0]}?" if near else ""
        raise UserError(f"configuration {path}: it can not be read ({error.strerror}).{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path}: not YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: a mapping is expected, with keys such as dataset and batch_size.")
    return content, path


def _assigned(assignments: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: give KEY=VALUE.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: the value is not YAML.") from error
    return values


def _typed(key: str, value: Any, known: dict[str, Any], source: str | Path) -> Any:
    """The value, in the type of the key's default. Raises UserError for an unknown key and for another type."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"configuration {source}: unknown key: {key}{hint}.")
    kind = known[key] if isinstance(known[key], type) else type(known[key])
    if kind is type(None):
        return value
    if kind is str and key == "split":
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"configuration {source}: {key} is {value!r}, which is no {kind.__name__}.")
    return value


def known_name(key: str, value: str, known: Sequence[str] | dict[str, Any]) -> None:
    """Raise UserError, with the nearest one, unless the value is a known one."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{key} {value!r}: unknown.{hint} Known are {', '.join(known)}.")


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError for the first value that is refused or makes no sense, whatever the learner."""
    counts = {key: getattr(options, key) for key in ("batch_size", "first_split_size", "other_split_size", "repeat")}
    rules = [
        (options.oracle_flag, "--oracle_flag: what it did is not known; leave it out."),
        (
            options.memory > 0,
            f"--memory {options.memory}: old classes' logits are at -inf in training, so an image of an old class "
            "would make the loss infinite. Leave it at 0.",
        ),
        (
            len(options.gpuid) != 1,
            f"--gpuid {' '.join(map(str, options.gpuid))}: a single device only (on several, the original sums the "
            "prompt loss over its copies of the model). Give one.",
        ),
        *((value < 1, f"{key} {value}: give 1 or more.") for key, value in counts.items()),
        (options.max_task == 0 or options.max_task < -1, f"max_task {options.max_task}: give 1 or more, -1 for all."),
        (options.workers < 0, f"workers {options.workers}: give 0 or more."),
        (len(set(options.seeds)) < len(options.seeds), f"seeds {options.seeds}, one a run: one occurs twice."),
        (any(seed < 0 for seed in options.seeds), f"seeds {options.seeds}: give 0 or more."),
    ]
    for wrong, message in rules:
        if wrong:
            raise UserError(message)


def scale_of(options: argparse.Namespace) -> str:
    """What the records call the scale: a run on rendered images or with the tiny weights is a miniature."""
    weights = options.pretrained_weight
    if options.learner_type == "it_prompt":
        is_clip = options.backbone == CLIP_BACKBONE
        weights = options.clip_weights if is_clip else options.backbone.removeprefix("vit_")
    return "mini" if vit.MINI in (options.scale, options.dataroot, weights) else "paper"


def device_of(options: argparse.Namespace) -> str:
    """torch's name of the device: --device, else the CUDA index of --gpuid, CPU where that is negative.

    The original's default, the first GPU, stands for whatever there is.
    """
    if options.device is not None:
        return options.device
    if options.gpuid == FLAGS["gpuid"]:
        return "auto"
    return "cpu" if options.gpuid[0] < 0 else f"cuda:{options.gpuid[0]}"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a run's folder is compared by, before weights and data are added."""
    return {key: value for key, value in vars(options).items() if key not in RUN_KEYS}
