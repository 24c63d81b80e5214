"""The options that the class-incremental entry points of ZSCL and MoE-Adapters share.

Both are the same program (cil/main.py of either repository): learn the tasks of a class order one after the other,
and after each classify all test images of the classes seen so far among all these classes. What differs, the learning
of a task, is in the papers' folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command_line import did_you_mean
from common.datasets import canonical
from common.errors import UserError
from common.incremental.sets import SETS
from common.incremental.tasks import stream_seed
from common.machine import RunOptions
from common.options import SEED, Rule, one_placeholder, option, read_file, scale_option
from common.runs import free_file

PURPOSES = ("training", "evaluation", "reference", "exemplars", "sentences")  # each draws a random stream of its own


def known_set(name: str) -> str:
    """The name, if `load_incremental` knows it. Raises UserError else."""
    if name.lower() not in SETS:
        canonical(name)
    return name


@dataclass(frozen=True)
class HydraRun:
    dir: str = option(help="output folder", decides=False)


@dataclass(frozen=True)
class HydraSection:
    """What a configuration says to Hydra itself. Only run.dir has an effect here."""

    run: HydraRun = field(default_factory=HydraRun)
    job: dict[str, Any] = option({}, decides=False)
    job_logging: dict[str, Any] = option({}, decides=False)


@dataclass(frozen=True)
class CILOptions(RunOptions):
    """The keys that both originals have, then ours. A paper's own follow in a class derived from this."""

    config_path: str = option(
        ".",
        "folder of the configuration, from here or from the paper's folder",
        group="configuration",
        flags=("--config-path", "-cp"),
        decides=False,
    )
    config_name: str = option(help="its file", flags=("--config-name", "-cn"), decides=False)
    scale: str = scale_option(None)
    dataset: str = option(help="cifar100, tinyimagenet, imagenet100, imagenet1000", group="protocol", convert=known_set)
    dataset_root: str = option("", "folder of the data sets, or mini", empty=True, decides=False)
    # the order itself is among a run's settings, as is the fingerprint of the data
    class_order: str = option("", "class_orders/cifar100.yaml and the like, or a file", empty=True, decides=False)
    initial_increment: int = option(help="classes of the first task", at_least=1)
    increment: int = option(help="classes of every later task", at_least=1)
    scenario: str = option("class", choices=("class",))
    prompt_template: str = option(help="the prompt, {} standing for the class", check=one_placeholder)
    eval_transform: str = option(
        "train", "ours: test images in random crops, as the originals evaluate, or centred", choices=("train", "test")
    )
    model_name: str = option("ViT-B/16", "CLIP: a published name, a file, or mini")
    batch_size: int = option(64, group="training", at_least=1)
    lr: float = option(help="peak learning rate", above=0)
    ls: float = option(0.0, "label smoothing", at_least=0, below=1)
    weight_decay: float = option(0.0, at_least=0)
    epochs: int = option(1, "ours: passes over a task; the originals always make one", at_least=1)
    warmup: int = option(30, "ours: steps of warm-up; 30 in the originals' code", at_least=0)
    seed: int = option(42, **SEED)
    save: str | None = option(None, "ours: output folder instead of hydra.run.dir", group="output", decides=False)
    log_path: str = option("metrics.json", "file in the run's folder", check=free_file, decides=False)
    workdir: str = option("", "accepted: paths need no prefix here", empty=True, decides=False)
    imagenet100_lists: str | None = option(None, "ours: folder of train_100.txt, val_100.txt", decides=False)
    hydra: HydraSection = field(default_factory=HydraSection)

    def stream_seed(self, task_id: int, purpose: str) -> int:
        """Seed of the random stream that serves a purpose in one task."""
        return stream_seed(self.seed, task_id, purpose, PURPOSES)


def find_configuration(folder: Path) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]]:
    """The `file` of `common.options.read`, for an entry point in this folder.

    A relative --config-path is looked for there, as Hydra does, then in the working directory.
    """

    def find(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        name, where = given.get("config_name"), given.get("config_path", ".")
        places = [folder / where, Path(where)]
        for found in (place / file for place in places for file in (f"{name}", f"{name}.yaml")):
            if name and found.is_file():
                return read_file(found), str(found)
        place = next((place for place in places if place.is_dir()), places[0])
        files = [file.relative_to(place).as_posix() for file in sorted(place.rglob("*.yaml"))]
        there = ", ".join(files) or f"none below {' or '.join(map(str, dict.fromkeys(places)))}"
        if not name:
            raise UserError(f"--config-name: missing. There are {there}.")
        hint = did_you_mean(name, files)
        raise UserError(f"--config-name {name}: none in --config-path {where}.{hint} There are {there}.")

    return find


def missing_rules(options: CILOptions) -> list[Rule]:
    """What the originals' files leave empty, to be given on the command line."""
    root = "dataset_root is missing: the folder of the data sets, as dataset_root=datasets, or dataset_root=mini."
    order = "class_order is missing, such as class_order=class_orders/cifar100.yaml."
    return [(not options.dataset_root, root), (not options.class_order, order)]
