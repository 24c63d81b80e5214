"""The command line and the JSON configuration, whose keys are the original's (configs/*.json)."""

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import vit
from common.command_line import add_speed_flags, listed
from common.datasets.incremental import Scenario
from common.errors import UserError
from inflora.methods import METHODS

CONFIGS = Path(__file__).parent / "configs"
REQUIRED = {
    "dataset": str,
    "data_path": str,
    "init_cls": int,
    "increment": int,
    "total_sessions": int,
    "model_name": str,
    "seed": list,
    "optim": str,
    "epochs": int,
    "lrate": float,
    "weight_decay": float,
    "rank": int,
    "lamb": float,
    "lame": float,
    "batch_size": int,
}
OPTIONAL = {
    "shuffle": bool,
    "init_epoch": int,
    "init_lr": float,
    "init_weight_decay": float,
    "fc_lrate": float,
    "lrate_decay": float,
    "num_workers": int,
    "net_type": str,  # a part of the output folder's name
    # ours
    "backbone": str,
    "split": str,
    "decay_finished": bool,
    "milestones": list,
    "decimals": int,
}
DEFAULTS = {
    "shuffle": False,
    "lrate_decay": 0.1,
    "num_workers": None,
    "net_type": "sip",
    "backbone": "sup21k",
    "split": "40",
    "decay_finished": True,
    "decimals": None,
}
DEAD = {
    "prefix": "upstream never reads it",
    "memory_size": "there is no memory of images",
    "memory_per_class": "there is no memory of images",
    "fixed_memory": "there is no memory of images",
    "embd_dim": "the backbone has its own width",
    "num_heads": "the backbone has its own heads",
    "EPSILON": "upstream never reads it",
    "init_lr_decay": "the schedules have no use for it",
    "device": "--device says where",
}
DATASETS = {  # key of the configurations: name in common.datasets, classes
    "cifar100": ("CIFAR100", 100),
    "ImageNet_R": ("ImageNetR", 200),
    "domainnet": ("DomainNet", 345),
}
MINI_CLASSES = 40
NOT_SETTINGS = ("num_workers", "data_path", "seed")  # decide no number, or stand in the run's labels


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inflora.main",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        description="InfLoRA (arXiv 2404.00228): class-incremental learning, one run a seed.",
        epilog="Try: python -m inflora.main --config inflora/configs/cifar100_inflora.json --scale mini --seed 0",
    )
    parser.add_argument("--config", required=True, help="JSON file of settings, as the twelve in inflora/configs")
    parser.add_argument("--device", default="auto", help="CUDA index as upstream (-1: cpu), or auto, cpu, cuda:1")
    group = parser.add_argument_group("instead of the configuration's values")
    group.add_argument("--model-name", choices=list(METHODS), help="the method; SeqLoRA and Joint are its bounds")
    group.add_argument("--seed", type=listed(int), help="seed, or comma list of seeds")
    group.add_argument("--data-path", help="folder of the data, or mini")
    group.add_argument("--backbone", help=f"{', '.join(vit.available())}, or a file in timm's keys")
    group.add_argument(
        "--split",
        help="ImageNet-R: a seed, upstream (the first of the run's), folders, or a folder of lists; DomainNet: lists",
    )
    group.add_argument("--shuffle", action="store_true", help="draw the class order from the seed")
    group.add_argument("--decimals", type=int, help="round accuracies as upstream's curves: 2 (default: not at all)")
    group.add_argument(
        "--keep-finished",
        action="store_true",
        help="weight decay leaves finished branches alone, as under torch 2; default: as torch 1.10",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--scale", choices=["paper", "mini"], default="paper", help="mini: the embedded miniature")
    run.add_argument("--save", default="logs", help="folder that the original's log folders lie in")
    run.add_argument("--weights", default=vit.DEFAULT_FOLDER, help="folder of the backbones' files")
    run.add_argument("--no-verify", action="store_true", help="accept data sets whose counts differ from the published")
    run.add_argument("--threads", type=int, help="CPU threads of torch (its own choice)")
    run.add_argument(
        "--workers", type=int, help="loader processes (the configuration's num_workers, at most one a core)"
    )
    run.add_argument("--save-interval", type=float, default=10.0, help="seconds between saves within a task")
    run.add_argument("--overwrite", action="store_true", help="start the output folders anew")
    add_speed_flags(parser)
    return parser


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line, and the configuration with what the command line changes. Raises UserError."""
    args = build_parser().parse_args(argv)
    config = read_config(args.config)
    if args.scale == "mini":
        config |= json.loads((CONFIGS / "mini.json").read_text())
    given = {
        "model_name": args.model_name,
        "seed": args.seed,
        "data_path": args.data_path,
        "backbone": args.backbone,
        "split": args.split,
        "shuffle": args.shuffle or None,
        "decimals": args.decimals,
        "decay_finished": False if args.keep_finished else None,
    }
    config |= {key: value for key, value in given.items() if value is not None}
    check_config(config, args.config)
    args.device = _device(args.device)
    return args, config


def _device(text: str) -> str:
    """Upstream's comma list of CUDA indices, of which the first is used, or torch's own name of a device."""
    first, *others = text.split(",")
    if others:
        print(f"note: --device {text}: one device is used, {first}")
    if first == "-1":
        return "cpu"
    return f"cuda:{first}" if first.isdigit() else first


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration with the defaults of what it leaves out.

    Dead keys are named and dropped. Raises UserError for a file that is not JSON, unknown keys, missing ones, and
    values of another type.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path}: it can not be read ({error}).") from error
    except json.JSONDecodeError as error:
        raise UserError(f"configuration {path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: a JSON object is expected, with keys such as dataset and model_name.")
    known = REQUIRED | OPTIONAL
    unknown = [key for key in content if key not in known and key not in DEAD]
    if unknown:
        near = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
        told = ", ".join(f"{key} (did you mean {match[0]}?)" if match else key for key, match in near.items())
        raise UserError(f"configuration {path}: unknown keys: {told}.")
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise UserError(f"configuration {path}: missing keys: {', '.join(missing)}.")
    dead = [key for key in content if key in DEAD]
    if dead:
        print("note: these keys have no effect: " + "; ".join(f"{key} ({DEAD[key]})" for key in dead))
    values = {key: _typed(key, value, known[key], path) for key, value in content.items() if key in known}
    return DEFAULTS | values


def _typed(key: str, value: Any, kind: type, path: str | Path) -> Any:
    if key == "seed" and isinstance(value, int):
        return [value]
    if key == "split":
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"configuration {path}: {key} is {value!r}, which is no {kind.__name__}.")
    return value


def check_config(config: dict[str, Any], path: str | Path) -> None:
    """Raise UserError for values that contradict each other or fit no data set, method or number of tasks."""
    method = METHODS.get(config["model_name"])
    if method is None:
        raise UserError(f"configuration {path}: model_name {config['model_name']!r}; known are {', '.join(METHODS)}.")
    if config["dataset"] not in DATASETS:
        raise UserError(f"configuration {path}: dataset {config['dataset']!r}; known are {', '.join(DATASETS)}.")
    tasks = len(scenario(config, seed=0).tasks)
    if tasks > config["total_sessions"]:
        raise UserError(
            f"configuration {path}: total_sessions {config['total_sessions']}, but {classes(config)} classes in steps "
            f"of {config['init_cls']} and then {config['increment']} make {tasks} tasks."
        )
    rules = [
        (config["optim"] not in ("adam", "sgd"), f"optim {config['optim']!r}; known are adam, sgd."),
        (method.two_rates and "fc_lrate" not in config, f"{config['model_name']} needs fc_lrate."),
        (not 0 < config["lamb"] < 1, f"lamb {config['lamb']}: give a share between 0 and 1."),
        (not config["lamb"] <= config["lame"] <= 1, f"lame {config['lame']}: give lamb ({config['lamb']}) to 1."),
        (not config["seed"], "seed is an empty list."),
        *((config.get(key, 1) < 1, f"{key} {config.get(key)}: give 1 or more.") for key in ("epochs", "init_epoch")),
        *((config[key] < 1, f"{key} {config[key]}: give 1 or more.") for key in ("batch_size", "rank")),
    ]
    for wrong, message in rules:
        if wrong:
            raise UserError(f"configuration {path}: {message}")


def classes(config: dict[str, Any]) -> int:
    return MINI_CLASSES if config["data_path"] == "mini" else DATASETS[config["dataset"]][1]


def scenario(config: dict[str, Any], seed: int) -> Scenario:
    """The tasks: classes in the order of their labels, or, with shuffle, in numpy's permutation under the seed.

    Upstream utils/data_manager.py:L148-L160; the published runs do not shuffle, whatever their seed.
    """
    count = classes(config)
    order = np.random.RandomState(seed).permutation(count).tolist() if config["shuffle"] else range(count)
    if METHODS[config["model_name"]].joint:
        return Scenario(order, count, count)
    return Scenario(order, config["init_cls"], config["increment"])


def log_folder(config: dict[str, Any]) -> str:
    """The original's folder of a configuration, without the seed (trainer.py)."""
    sizes = f"{config['init_cls']}_{config['increment']}_{config['net_type']}"
    rates = f"{config['lamb']}_{config['lame']}-{config['lrate']}"
    return f"{config['dataset']}/{sizes}/{config['model_name']}/{config['optim']}/{config['rank']}/{rates}"


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a run's folder is compared by."""
    return {key: value for key, value in config.items() if key not in NOT_SETTINGS}
