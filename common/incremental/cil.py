"""What the class-incremental entry points of ZSCL and MoE-Adapters share: options, protocol, run folder, record.

Both are the same program (cil/main.py of either repository): learn the tasks of a class order one after the other,
and after each classify all test images of the classes seen so far among all these classes. What differs, the learning
of a task, is in the papers' folders.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from torch.utils.data import Dataset

from common.clip.pretrained import MINI, find_weights
from common.clip.tokenizer import training_prompts
from common.datasets import canonical
from common.incremental.scenario import (
    PROTOCOL_SETS, Scenario, load_incremental, protocol, read_class_order, require_incremental, seen_subset,
)  # fmt: skip
from common.datasets.transforms import clip_eval_pixels, clip_train
from common.errors import UserError, all_checked
from common.incremental.released_log import load_steps, save_steps, write_metrics
from common.evaluation.metrics import CILStep, cil_summary, task_accuracies
from common.evaluation.report import heat_map, write_matrix
from common.evaluation.seen_classes import PooledTest
from common.machine import Machine, RunOptions
from common.options import SEED, Rule, did_you_mean, one_placeholder, option, read_file, scale_option, settings
from common.runs import Run, file_md5, free_file, load_tensors, mini_folder, save_tensors
from common.training.schedules import cosine_with_warmup

PREDICTIONS = "predictions.pth"  # of every test so far, from which metrics.json is made
PURPOSES = ("training", "evaluation", "reference", "exemplars", "sentences")  # each draws a random stream of its own


def known_set(name: str) -> str:
    """The name, if `load_incremental` knows it. Raises UserError else."""
    if name.lower() not in (*PROTOCOL_SETS, "characters"):  # the miniature's
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

    config_path: str = option(".", "folder of the configuration, from here or from the paper's folder",
        group="configuration", flags=("--config-path", "-cp"), decides=False)
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
    eval_transform: str = option("train", "ours: test images in random crops, as the originals evaluate, or centred",
        choices=("train", "test"))
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


@dataclass(frozen=True)
class Protocol:
    """The tasks that a run learns and is tested on; labels are positions in the class order."""

    name: str  # cil-cifar100-10x10
    dataset: str  # CIFAR100
    scenario: Scenario
    train: Dataset  # original labels, under the train transform; common.incremental.scenario.task_subset cuts a task
    test: Dataset  # all test images, new labels, under what eval_transform names
    tokens: Tensor  # (C, L) the prompt of every class in class order, cut behind the longest
    fingerprint: dict[str, Any]


# Options


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


def check_inputs(options: CILOptions, *others: Callable[[], Any]) -> None:
    """Look for everything a run reads before CLIP is built; one UserError lists all that is missing."""
    verify = not options.no_verify
    all_checked(
        [
            lambda: read_scenario(options),
            lambda: require_incremental(options.dataset, options.dataset_root, verify, options.imagenet100_lists),
            lambda: None if options.model_name == MINI else find_weights(options.model_name),
            *others,
        ]
    )


def read_scenario(options: CILOptions) -> Scenario:
    return Scenario(read_class_order(options.class_order), options.initial_increment, options.increment)


def load_protocol(options: CILOptions, resolution: int) -> Protocol:
    """The data set in tasks, with its prompts, for a CLIP of this input resolution.

    Raises UserError as `load_incremental` and `Scenario` do, and where the class order is another data set's.
    """
    train = clip_train(resolution)
    test = {"train": train, "test": clip_eval_pixels(resolution)}[options.eval_transform]
    verify = not options.no_verify
    data = load_incremental(options.dataset, options.dataset_root, train, test, verify, options.imagenet100_lists)
    scenario = read_scenario(options)
    tokens = training_prompts(scenario.classnames(data.classnames), options.prompt_template)
    images = seen_subset(data.test, scenario, -1)
    _require_samples(scenario, scenario.remap(data.train.labels), images.labels)
    return Protocol(protocol(data.name, scenario), data.name, scenario, data.train, images, tokens, data.fingerprint)


def _require_samples(scenario: Scenario, train_labels: Sequence[int], test_labels: Sequence[int]) -> None:
    """Cut copies of a data set may lack the images of a task."""
    for split, labels in (("training", train_labels), ("test", test_labels)):
        absent = sorted(set(range(len(scenario.tasks))) - set(scenario.task_ids(labels).tolist()))
        if absent:
            told = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
            raise UserError(
                f"the data set has no {split} image of the classes of task {told}. Take larger increments, or the "
                "whole data set."
            )


def pooled_test(options: CILOptions, machine: Machine, found: Protocol, batch_size: int) -> PooledTest:
    """The protocol's test images, to be handed to `evaluate_seen` after every task."""
    return PooledTest(found.test, found.scenario, options.eval_transform, batch_size, machine.workers)


# Random streams and schedule


def stream_seed(seed: int, task_id: int, purpose: str) -> int:
    """The seed of one random stream of one task: what it yields hangs on nothing drawn before, so resume is exact."""
    return (seed * 1_000 + task_id) * len(PURPOSES) + PURPOSES.index(purpose)


def learning_rate(step: int, lr: float, total: int, warmup: int = 30) -> float:
    """The rate of step 0 .. total of a task: 30 steps of warm-up, which short tasks never leave, then half a cosine.

    Quirk: tasks of exactly 30 batches divide by zero in the originals (cil/continual_clip/utils.py:L56-L75); their
    last step has the full rate here.
    """
    return lr if step == total == warmup else cosine_with_warmup(step, lr, warmup, total)


# The run


def scale_of(options: CILOptions) -> str:
    """What the records call the scale: a run on rendered images or with the tiny weights is a miniature."""
    return "mini" if MINI in (options.dataset_root, options.model_name) else "paper"


def open_run(
    paper: str,
    method: str,
    options: CILOptions,
    found: Protocol,
    machine: Machine,
    more: dict[str, Any] | None = None,
) -> Run:
    """The run's folder. Raises UserError if another configuration's run, or another program's, lies there.

    `more`: what decides numbers besides the options and the data set.
    """
    scale = scale_of(options)
    folder = Path(mini_folder(options.save or options.hydra.run.dir, scale))
    _refuse_foreign(folder, options.log_path)
    labels = {
        "paper": paper,
        "method": method,
        "protocol": found.name,
        "backbone": options.model_name,
        "scale": scale,
        "seed": options.seed,
    }
    weights = {} if options.model_name == MINI else {"model": file_md5(find_weights(options.model_name))}
    decides = settings(options) | {"class_order": list(found.scenario.class_order), "weights": weights}
    decides |= {"data": found.fingerprint} | (more or {})
    return Run(folder, decides, labels, "", options.overwrite, options.save_interval, machine.about)


def _refuse_foreign(folder: Path, log_path: str) -> None:
    """The originals leave config.yaml and metrics.json under the same names in the same folder."""
    config = folder / "config.yaml"
    if config.exists():
        content = yaml.safe_load(config.read_text())
        if not isinstance(content, dict) or "settings" not in content:
            raise UserError(f"{config} was not written by this program. Choose another folder with save=...")
    else:
        present = [path for path in (folder / log_path, checkpoint_path(folder, 0)) if path.exists()]
        if present:
            raise UserError(f"{present[0]} is there, but no run recorded it. Choose another folder with save=...")


def checkpoint_path(folder: Path, task_id: int) -> Path:
    """task_<k>.pth, k counting from 0 as in metrics.json."""
    return folder / f"task_{task_id}.pth"


def save_checkpoint(run: Run, task_id: int, state_dict: dict[str, Tensor]) -> None:
    """The weights after a task, marked as those of a class-incremental run."""
    content = {"state_dict": state_dict, "protocol": run.labels["protocol"]}
    save_tensors(checkpoint_path(run.folder, task_id), content)


def load_checkpoint(run: Run, task_id: int) -> dict[str, Tensor]:
    """The state dict that `save_checkpoint` wrote; UserError if the file is damaged or missing."""
    return load_tensors(checkpoint_path(run.folder, task_id))["state_dict"]


# Records


def tested_steps(run: Run) -> list[CILStep]:
    """What the tasks finished so far were tested with."""
    return load_steps(run.path(PREDICTIONS))


def record_task(
    run: Run, found: Protocol, steps: Sequence[CILStep], seconds: float, log_path: str = "metrics.json"
) -> None:
    """Record the accuracies after the latest task; the predictions, kept last, make it count as tested.

    Lines: `accuracy` of the data set, all test images of the classes seen together, and `task_accuracy` of each task.
    """
    learned, tasks = len(steps), len(found.scenario.tasks)
    summary, cells = cil_summary(steps), task_accuracies(steps)[-1]
    about = {"after_task": learned, "seconds": seconds}
    lines = [about | {"dataset": found.dataset, "metric": "accuracy", "value": float(summary.acc[-1])}]
    lines += [
        about | {"dataset": f"task {task}", "metric": "task_accuracy", "value": float(cell)}
        for task, cell in enumerate(cells)
    ]
    run.record(lines)
    write_metrics(run.path(log_path), steps, finished=learned == tasks)
    save_steps(run.path(PREDICTIONS), steps)
    print(
        f"task {learned - 1} ({learned} of {tasks}): accuracy {summary.acc[-1]:.2f} among "
        f"{found.scenario.seen(learned - 1)} classes, mean so far {summary.avg:.2f}",
        flush=True,
    )


def finish_run(run: Run, found: Protocol, steps: Sequence[CILStep], trainable_parameters: int) -> None:
    """Avg and Last, the number of trained parameters, accuracy.csv and accuracy.png of all tasks after each."""
    summary, cells = cil_summary(steps), task_accuracies(steps).tolist()
    about = {"dataset": found.dataset, "after_task": len(steps), "seconds": None}
    values = {"avg": summary.avg, "last": summary.last, "trainable_parameters": trainable_parameters}
    run.record([about | {"metric": name, "value": value} for name, value in values.items()])
    names = [f"task {task}" for task in range(len(steps))]
    method, where = run.labels["method"], " on the miniature" if run.labels["scale"] == "mini" else ""
    write_matrix(run.path("accuracy.csv"), cells, names, names)
    heat_map(run.path("accuracy.png"), cells, names, names, f"{method}, {run.labels['protocol']}{where}")
    print(f"\n{method}, {run.labels['protocol']}{where}: Avg {summary.avg:.2f}, Last {summary.last:.2f}")
    print(f"Written: {run.path('record.jsonl')}, metrics.json, accuracy.csv, accuracy.png")
    run.finish()
