"""The options that the class-incremental entry points of ZSCL and MoE-Adapters share.

Both are the same program (cil/main.py of either repository): learn the tasks of a class order one after the other,
and after each classify all test images of the classes seen so far among all these classes. They differ in how a task is
learned, which is in the papers' folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.clip.activation import CLIPOptions
from common.command_line import did_you_mean
from common.datasets import canonical
from common.declarations import Preset
from common.errors import UserError
from common.incremental.common_ground import ORDER, protocol_option
from common.incremental.sets import CHARACTERS, SETS
from common.incremental.tasks import stream_seed
from common.machine import RunOptions
from common.options import SEED, Rule, one_placeholder, option, read_file, scale_option
from common.runs import free_file

PURPOSES = ("training", "evaluation", "reference", "exemplars", "sentences")  # each draws a random stream of its own


def miniature(file: Path) -> Preset:
    """The values of --scale mini in a file; all classes at once stay so, and common ground keeps its class order."""

    def values(given: Any) -> dict[str, Any]:
        content, data = read_file(file), SETS.get(str(given.get("dataset")).lower())
        if data and given.get("initial_increment") == data.classes:
            content |= dict.fromkeys(("initial_increment", "increment"), CHARACTERS.classes)
        if given.protocol is not None:
            del content["class_order"]
        return content

    return values


def known_set(name: str) -> str:
    """`name` itself. Raises UserError unless `load_incremental` knows it."""
    if name.lower() not in SETS:
        canonical(name)
    return name


@dataclass(frozen=True)
class HydraRun:
    dir: str = option(help="output folder", decides=False)


@dataclass(frozen=True)
class HydraSection:
    """Hydra's own keys in a configuration. Only run.dir has an effect here."""

    run: HydraRun = field(default_factory=HydraRun)
    job: dict[str, Any] = option({}, decides=False)
    job_logging: dict[str, Any] = option({}, decides=False)


@dataclass(frozen=True)
class CILOptions(CLIPOptions, RunOptions):
    """The options of both originals, and ours; a class derived from this adds those of one paper."""

    # a table: an option a line or two
    # fmt: off
    config_path: str = option(".", "folder of the configuration, from here or from the paper's folder",
                              group="configuration", flags=("--config-path", "-cp"), decides=False)
    config_name: str = option(help="its file", flags=("--config-name", "-cn"), decides=False)
    scale: str = scale_option(None)
    dataset: str = option(help="cifar100, tinyimagenet, imagenet100, imagenet1000; imagenet_r, cub200",
                          group="protocol", convert=known_set)
    dataset_root: str = option("", "folder of the data sets, or mini", empty=True, decides=False)
    # a run's settings hold the order itself and the fingerprint of the data
    class_order: str = option("", f"class_orders/cifar100.yaml and the like, {ORDER}, or a file", empty=True,
                              decides=False)
    initial_increment: int = option(help="classes of the first task", at_least=1)
    increment: int = option(help="classes of every later task", at_least=1)
    scenario: str = option("class", choices=("class",))
    prompt_template: str = option(help="the prompt, {} standing for the class", check=one_placeholder)
    eval_transform: str = option("train", "ours: test images in random crops, as the originals evaluate, or centred",
                                 choices=("train", "test"))
    protocol: str | None = protocol_option()
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
    # fmt: on

    def stream_seed(self, task_id: int, purpose: str) -> int:
        """Seed of the random stream for one of `PURPOSES` in one task."""
        return stream_seed(self.seed, task_id, purpose, PURPOSES)


def find_configuration(paper_folder: Path) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]]:
    """The `file` argument of `common.options.read`, for an entry point in `paper_folder`.

    A relative --config-path is looked for in that folder, as Hydra does, then in the working directory.
    """

    def find(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        name, config_path = given.get("config_name"), given.get("config_path", ".")
        folders = [paper_folder / config_path, Path(config_path)]
        for path in (folder / file for folder in folders for file in (f"{name}", f"{name}.yaml")):
            if name and path.is_file():
                return read_file(path), str(path)
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.yaml"))]
        listing = ", ".join(files) or f"none below {' or '.join(map(str, dict.fromkeys(folders)))}"
        if not name:
            raise UserError(f"--config-name: missing. There are {listing}.")
        hint = did_you_mean(name, files)
        raise UserError(f"--config-name {name}: none in --config-path {config_path}.{hint} There are {listing}.")

    return find


def missing_rules(options: CILOptions) -> list[Rule]:
    """Rules for the keys that the originals' files leave empty and the command line has to give."""
    root = "dataset_root is missing: the folder of the data sets, as dataset_root=datasets, or dataset_root=mini."
    order = "class_order is missing, such as class_order=class_orders/cifar100.yaml."
    return [(not options.dataset_root, root), (not options.class_order, order)]
