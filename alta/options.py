"""The command line, the original's flags then ours, and the configuration files, whose keys are the original's."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alta.data import DATASETS, MINI, MINI_CLASSES, MINI_RESNET
from alta.heads import ENCODINGS, METHODS
from alta.training import LR_POLICIES
from common.clip.tokenizer import encode
from common.command_line import Rule, add_speed_flags
from common.errors import UserError
from common.training.precision import PRECISIONS

CONFIGS = Path(__file__).parent / "configs"
METHOD = "oritext_mlp2cprompt_oriimg"
IL_SETTINGS = ("class-il", "task-il")
VISUALS = ("RN50", "RN101", "RN50x4", "RN50x16", "ViT-B/32", "ViT-B/16", MINI, MINI_RESNET)
POSITIONS = ("end", "middle", "front")
KEYS: dict[str, dict[str, type]] = {
    "dataset": {"name": str, "num_workers": int, "n_classes_per_task": int, "n_tasks": int},
    "model": {"pretrained": bool, "use_replay": bool},
    "OPTIM": {
        "NAME": str, "LR": float, "MAX_EPOCH": int, "WEIGHT_DECAY": float, "MOMENTUM": float, "SGD_DAMPNING": float,
        "SGD_NESTEROV": bool, "WARMUP_EPOCH": int, "WARMUP_TYPE": str, "WARMUP_CONS_LR": float,
    },
    "TRAINER.COOP": {"N_CTX": int, "CTX_INIT": str, "CLASS_TOKEN_POSITION": str},
    "train": {"batch_size": int, "alpha": float, "beta": float},
    "eval": {"test_epochs": int, "batch_size": int},
}  # fmt: skip
OPTIONAL: dict[str, dict[str, type]] = {
    "dataset": {"image_size": int},
    "model": {},
    # no effect under sgd
    "OPTIM": {
        "RMSPROP_ALPHA": float, "ADAM_BETA1": float, "ADAM_BETA2": float, "STAGED_LR": bool, "NEW_LAYERS": object,
        "BASE_LR_MULT": float, "WARMUP_RECOUNT": bool,
    },
    "TRAINER.COOP": {"CSC": bool},
    "train": {"num_classes": int},  # upstream never reads it
    "eval": {},
}  # fmt: skip
DEFAULTS = {"OPTIM": {"STAGED_LR": False, "WARMUP_RECOUNT": True}, "TRAINER.COOP": {"CSC": False}}
Config = dict[str, dict[str, Any]]  # by section, "TRAINER.COOP" being one


class Scale(argparse.Action):
    """--scale mini sets the flags of configs/mini.yaml where it stands: a later flag overrides them."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        namespace.scale = values
        if values == MINI:
            for name, value in read_preset()["flags"].items():
                setattr(namespace, name, value)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alta.main",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        description="ALTA (IEEE TMM 2023, document 10347466): continual learning on a frozen CLIP.",
        epilog="Try: python -m alta.main --config-file alta/configs/il_cifar100.yaml --scale mini",
    )
    parser.add_argument("--config-file", required=True, help="YAML file of settings, as the nine in alta/configs")
    parser.add_argument("--method", default=METHOD, help=f"{', '.join(METHODS)}; {METHOD} is ALTA")
    parser.add_argument("--il_setting", default="class-il", help="class-il or task-il: which of the two is printed")
    parser.add_argument("--visual", default="RN50", help=f"CLIP: {', '.join(VISUALS)}")
    parser.add_argument("--buffer_size", type=int, default=200, help="samples in the replay buffer")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, cuda:1")
    for name, folder in (("cifar10", ""), ("cifar100", ""), ("tinyimagenet", "/tiny-imagenet-200")):
        parser.add_argument(f"--{name}_dir", default=f"./data{folder}", help=f"folder of {name}")
    ours = parser.add_argument_group("ours, with effect on the numbers")
    ours.add_argument("--lr_policy", default="released", help=f"{', '.join(LR_POLICIES)}: see alta/README.md")
    ours.add_argument("--precision", default="auto", help="fp16 as the original, fp32, tf32, bf16; auto: fp16 on a GPU")
    ours.add_argument(
        "--encoding", default="auto", help=f"of texts: {', '.join(ENCODINGS)}; auto: full in fp16, else cut"
    )
    ours.add_argument("--clip_norm", action="store_true", help="normalise images as CLIP, not as the data set")
    ours.add_argument("--seen_only", action="store_true", help="class-IL among the classes seen, not among all")
    ours.add_argument("--joint_task_classes", type=int, help="joint: task-IL masks to tasks of so many classes")
    ours.add_argument("--model", help="file of CLIP weights to take for --visual's published ones")
    run = parser.add_argument_group("run")
    run.add_argument("--scale", choices=["paper", MINI], default="paper", action=Scale, help="mini: the miniature")
    run.add_argument("--save", help="output folder (runs/alta/<config>-<method>-<visual>-buffer<n>-seed<k>)")
    run.add_argument("--tsne", action="store_true", help="draw raw and task-aware representations of test images")
    run.add_argument("--no-verify", action="store_true", help="accept data sets whose counts differ from the published")
    run.add_argument("--threads", type=int, help="CPU threads of torch (its own choice)")
    run.add_argument(
        "--workers", type=int, help="loader processes (the configuration's num_workers, at most one a core)"
    )
    run.add_argument("--save-interval", type=float, default=10.0, help="seconds between saves within a task")
    run.add_argument("--overwrite", action="store_true", help="start the output folder anew")
    add_speed_flags(parser, precision=None)
    return parser


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """The command line and its configuration, checked against each other. Raises UserError."""
    args = build_parser().parse_args(argv)
    config = read_config(args.config_file)
    if args.scale == MINI:
        apply_preset(args, config)
    check_flags(args)
    check_config(config, args)
    return args, config


def apply_preset(args: argparse.Namespace, config: Config) -> None:
    """The miniature's values in a configuration, whose number of tasks stays one where it is."""
    joint = config["dataset"]["n_tasks"] == 1
    for section, values in read_preset()["config"].items():
        config[section] |= values
    if joint and args.joint_task_classes:
        args.joint_task_classes = config["dataset"]["n_classes_per_task"]
    if joint:
        config["dataset"] |= {"n_tasks": 1, "n_classes_per_task": MINI_CLASSES}


def read_preset() -> dict[str, dict[str, Any]]:
    """What `--scale mini` changes: `flags`, and `config`, keys of the configuration by section."""
    return yaml.safe_load((CONFIGS / "mini.yaml").read_text())


# The configuration


def read_config(path: str | Path) -> Config:
    """The sections of a configuration with the defaults of what may be left out.

    Raises UserError for a file that is not such a YAML, and once for all its unknown keys, missing ones, and values of
    another type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(Path(path).name, [found.name for found in CONFIGS.glob("*_*.yaml")], n=1)
        hint = f" Did you mean alta/configs/{near[0]}?" if near else ""
        raise UserError(f"configuration {path}: it can not be read ({error}).{hint}") from error
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path}: not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: expected are sections such as dataset, model, OPTIM.")
    sections, problems = _sections(content)
    config: Config = {}
    for section, required in KEYS.items():
        known, values = required | OPTIONAL[section], sections.get(section)
        if values is None:
            problems.append(f"missing section {section}")
            continue
        problems += [f"unknown key {section}.{key}{_near(key, known)}" for key in values if key not in known]
        problems += [f"missing key {section}.{key}" for key in required if key not in values]
        wrong = {key for key in values if key in known and not _fits(values[key], known[key])}
        problems += [f"{section}.{key} is {values[key]!r}, which is no {known[key].__name__}" for key in sorted(wrong)]
        config[section] = DEFAULTS.get(section, {}) | values
    if problems:
        raise UserError(f"configuration {path}: {'; '.join(problems)}.")
    return config


def _sections(content: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The sections that are mappings, and what is wrong with the rest. TRAINER holds COOP."""
    sections, problems = dict(content), []
    trainer = sections.pop("TRAINER", None)
    if trainer is not None:
        inner = trainer if isinstance(trainer, dict) else {"": trainer}
        sections |= {f"TRAINER.{name}": values for name, values in inner.items()}
    for name in list(sections):
        if name not in KEYS:
            problems.append(f"unknown section {name}{_near(name, KEYS)}")
        elif not isinstance(sections[name], dict):
            problems.append(f"section {name} holds no keys")
            sections[name] = {}
    return sections, problems


def _near(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


# Checks


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError, with the nearest known one, for a flag's value that is none of its choices."""
    choices = {
        "method": METHODS, "il_setting": IL_SETTINGS, "visual": VISUALS, "lr_policy": LR_POLICIES,
        "precision": ("auto", "fp16", *PRECISIONS), "encoding": ("auto", *ENCODINGS),
    }  # fmt: skip
    problems = []
    for flag, known in choices.items():
        value = getattr(args, flag)
        if value not in known:
            problems.append(f"--{flag} {value}: unknown{_near(value, known)}. Known are {', '.join(known)}.")
    if args.buffer_size < 0:
        problems.append(f"--buffer_size {args.buffer_size}: give 0 or more.")
    if problems:
        raise UserError("\n".join(problems))


def replays(args: argparse.Namespace, config: Config) -> bool:
    """Whether there is a buffer: use_replay, and a method with an adapter; others never replay (main.py:L57-L58)."""
    return config["model"]["use_replay"] and METHODS[args.method].adapts


def classes_of(config: Config) -> int:
    return MINI_CLASSES if config["dataset"]["name"] == MINI else DATASETS[config["dataset"]["name"]].classes


def check_config(config: Config, args: argparse.Namespace) -> None:
    """Raise one UserError for all values that mean nothing here or contradict each other."""
    name = config["dataset"]["name"]
    if name not in (*DATASETS, MINI):
        known = f"{_near(name, DATASETS)}. Known are {', '.join(DATASETS)}"
        raise UserError(f"configuration {args.config_file}: dataset.name {name!r}: unknown{known}.")
    rules = [*_number_rules(config), *_choice_rules(config), *_flag_rules(config, args)]
    problems = [message for wrong, message in rules if wrong]
    if problems:
        raise UserError(f"configuration {args.config_file}: {'; '.join(problems)}.")


def _number_rules(config: Config) -> list[Rule]:
    data, classes = config["dataset"], classes_of(config)
    above_zero = {
        "dataset": ("n_tasks", "n_classes_per_task"), "OPTIM": ("MAX_EPOCH", "LR"), "TRAINER.COOP": ("N_CTX",),
        "train": ("batch_size",), "eval": ("test_epochs", "batch_size"),
    }  # fmt: skip
    tasks, size, warmup = data["n_tasks"], data["n_classes_per_task"], config["OPTIM"]["WARMUP_EPOCH"]
    split = f"n_tasks {tasks} of n_classes_per_task {size}"
    return [
        *(
            (config[section][key] <= 0, f"{section}.{key} {config[section][key]}: give a number above 0")
            for section, keys in above_zero.items()
            for key in keys
        ),
        (tasks * size != classes, f"{data['name']} has {classes} classes, which {split} do not make up"),
        (warmup < 0, f"OPTIM.WARMUP_EPOCH {warmup}: give 0 or more"),
    ]


def _choice_rules(config: Config) -> list[Rule]:
    """What the originals' keys can say and no configuration does: unknown, or not of this method."""
    optim, coop = config["OPTIM"], config["TRAINER.COOP"]
    words, position = coop["CTX_INIT"].replace("_", " "), coop["CLASS_TOKEN_POSITION"]
    only = {"NAME": "sgd", "STAGED_LR": False, "WARMUP_TYPE": "constant", "WARMUP_RECOUNT": True}
    known = f"{_near(position, POSITIONS)}; known are {', '.join(POSITIONS)}"
    return [
        (not config["model"]["pretrained"], "model.pretrained False: there is no model without CLIP's weights"),
        *(
            (optim[key] != value, f"OPTIM.{key} {optim[key]!r}: only {value} is known here")
            for key, value in only.items()
        ),
        (position not in POSITIONS, f"TRAINER.COOP.CLASS_TOKEN_POSITION {position!r}{known}"),
        (
            bool(words) and len(encode(words)) != len(words.split(" ")),
            f"TRAINER.COOP.CTX_INIT {words!r}: each word, one space between two, must be one token of CLIP's",
        ),
    ]


def _flag_rules(config: Config, args: argparse.Namespace) -> list[Rule]:
    """Flags that do not go with the configuration."""
    group, classes = args.joint_task_classes, classes_of(config)
    empty = f"--buffer_size 0, but {args.method} replays from the buffer. Give 1 or more, or a configuration with"
    return [
        (replays(args, config) and args.buffer_size == 0, f"{empty} model.use_replay False (sgd_*.yaml)"),
        (
            group is not None and config["dataset"]["n_tasks"] > 1,
            "--joint_task_classes is for configurations of one task (joint_*.yaml)",
        ),
        (
            group is not None and (group < 1 or classes % group > 0),
            f"--joint_task_classes {group} does not divide {classes} classes",
        ),
    ]
