"""What the class-incremental entry points of ZSCL and MoE-Adapters share: options, protocol, run folder, record.

Both are the same program (cil/main.py of either repository): learn the tasks of a class order one after the other,
and after each classify all test images of the classes seen so far among all these classes. What differs, the learning
of a task, is in the papers' folders.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset

from common.clip.pretrained import MINI, find_weights
from common.clip.tokenizer import training_prompts
from common.command_line import SPEED_FLAGS, SPEED_HELP, check_rules, mini_folder
from common.datasets.incremental import (
    Scenario, load_incremental, protocol, read_class_order, require_incremental, seen_subset,
)  # fmt: skip
from common.datasets.transforms import clip_eval_pixels, clip_train
from common.errors import UserError, all_checked
from common.evaluation.cil_log import load_steps, save_steps, write_metrics
from common.evaluation.metrics import CILStep, cil_summary, task_accuracies
from common.evaluation.report import heat_map, write_matrix
from common.evaluation.seen_classes import PooledTest
from common.hydra_style import HydraSection
from common.runs import Run, file_md5, load_tensors, save_tensors
from common.training.device import automatic_workers, device_name
from common.training.precision import PRECISIONS
from common.training.schedules import cosine_with_warmup

PREDICTIONS = "predictions.pth"  # of every test so far, from which metrics.json is made
PURPOSES = ("training", "evaluation", "reference", "exemplars", "sentences")  # each draws a random stream of its own
RUN_KEYS = (  # those that decide no number, or stand elsewhere in a run's settings
    "save", "device", "threads", "workers", "no_verify", "save_interval", "overwrite", "hydra", "workdir", "log_path",
    "dataset_root", "imagenet100_lists", "class_order", *SPEED_FLAGS,
)  # fmt: skip


@dataclass
class CILOptions:
    """The keys that both originals have, then ours. A paper's own follow in a dataclass derived from this one."""

    dataset: str = field(default="???", metadata={"help": "cifar100, tinyimagenet, imagenet100 or imagenet1000"})
    dataset_root: str = field(default="", metadata={"help": "folder of the data sets, or mini"})
    class_order: str = field(default="", metadata={"help": "class_orders/cifar100.yaml and the like, or a file"})
    initial_increment: int = field(default="???", metadata={"help": "classes of the first task"})
    increment: int = field(default="???", metadata={"help": "classes of every later task"})
    prompt_template: str = field(default="???", metadata={"help": "the prompt, {} standing for the class"})
    method: str = "???"
    batch_size: int = 64
    lr: float = field(default="???", metadata={"help": "peak learning rate"})
    ls: float = field(default=0.0, metadata={"help": "label smoothing"})
    weight_decay: float = 0.0
    model_name: str = field(default="ViT-B/16", metadata={"help": "CLIP: a published name, a file, or mini"})
    scenario: str = field(default="class", metadata={"help": "only class has a configuration"})
    log_path: str = field(default="metrics.json", metadata={"help": "within the run's folder"})
    workdir: str = field(default="", metadata={"help": "accepted: paths need no prefix here"})
    epochs: int = field(default=1, metadata={"help": "ours: passes over a task; the originals always make one"})
    warmup: int = field(default=30, metadata={"help": "ours: steps of warm-up; 30 in the originals' code"})
    eval_transform: str = field(
        default="train",
        metadata={"help": "ours: train (random crops, as the originals evaluate) or test (centre crop)"},
    )
    seed: int = 42
    scale: str = field(default="paper", metadata={"help": "ours: mini for the embedded miniature, in seconds"})
    save: str | None = field(default=None, metadata={"help": "ours: output folder instead of hydra.run.dir"})
    device: str = field(default="auto", metadata={"help": "ours: auto, cpu, cuda, cuda:1"})
    threads: int | None = field(default=None, metadata={"help": "ours: CPU threads of torch (its own choice)"})
    workers: int | None = field(default=None, metadata={"help": "ours: loader processes (automatic)"})
    no_verify: bool = field(default=False, metadata={"help": "ours: accept data whose counts are not the published"})
    imagenet100_lists: str | None = field(default=None, metadata={"help": "ours: folder of train_100.txt, val_100.txt"})
    save_interval: float = field(default=10.0, metadata={"help": "ours: seconds between saves within a task"})
    overwrite: bool = field(default=False, metadata={"help": "ours: start the output folder anew"})
    precision: str = field(default="fp32", metadata={"help": f"ours: {SPEED_HELP['precision']}"})
    compile: bool = field(default=False, metadata={"help": f"ours: {SPEED_HELP['compile']}"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": f"ours: {SPEED_HELP['checkpoint_activations']}"}
    )
    tensorboard: bool = field(default=False, metadata={"help": f"ours: {SPEED_HELP['tensorboard']}"})
    hydra: HydraSection = field(default_factory=HydraSection)


@dataclass(frozen=True)
class Protocol:
    """The tasks that a run learns and is tested on; labels are positions in the class order."""

    name: str  # cil-cifar100-10x10
    dataset: str  # CIFAR100
    scenario: Scenario
    train: Dataset  # original labels, under the train transform; common.datasets.incremental.task_subset cuts a task
    test: Dataset  # all test images, new labels, under what eval_transform names
    tokens: Tensor  # (C, L) the prompt of every class in class order, cut behind the longest
    fingerprint: dict[str, Any]


# Options


def check_options(options: CILOptions) -> None:
    """Raise UserError for the first value that is missing or makes no sense, whatever the paper."""
    one_of("eval_transform", options.eval_transform, ("train", "test"))
    one_of("scenario", options.scenario, ("class",))
    one_of("precision", options.precision, PRECISIONS)
    root = "dataset_root is missing: the folder of the data sets, as dataset_root=datasets, or dataset_root=mini."
    order = "class_order is missing, such as class_order=class_orders/cifar100.yaml."
    above_zero = {name: getattr(options, name) for name in ("batch_size", "epochs", "lr")}
    check_rules(
        [
            (not options.dataset_root, root),
            (not options.class_order, order),
            ("{}" not in options.prompt_template, "prompt_template needs {} where the class name stands."),
            *((value <= 0, f"{name}={value}: give a number above 0.") for name, value in above_zero.items()),
            (options.warmup < 0, f"warmup={options.warmup}: give 0 or more."),
            (not 0 <= options.ls < 1, f"ls={options.ls}: label smoothing lies from 0 to below 1."),
        ]
    )


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError, with the nearest one, unless the value is a known one."""
    known = tuple(known)
    if value not in known:
        near = difflib.get_close_matches(value.lower(), {name.lower(): name for name in known}, n=1, cutoff=0.5)
        hint = "".join(f" Did you mean {name}?" for name in known if [name.lower()] == near)
        raise UserError(f"{key}={value}: unknown.{hint} Known are {', '.join(known)}.")


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


def pooled_test(options: CILOptions, found: Protocol, batch_size: int) -> PooledTest:
    """The protocol's test images, to be handed to `evaluate_seen` after every task."""
    return PooledTest(found.test, found.scenario, options.eval_transform, batch_size, workers_of(options))


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
    device: torch.device,
    idle: Sequence[str] = (),
    more: dict[str, Any] | None = None,
) -> Run:
    """The run's folder. Raises UserError if another configuration's run, or another program's, lies there.

    `idle`: keys of the paper's own that decide no number. `more`: what does, besides the keys and the data set.
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
    decides = {key: value for key, value in asdict(options).items() if key not in (*RUN_KEYS, *idle)}
    weights = {} if options.model_name == MINI else {"model": file_md5(find_weights(options.model_name))}
    decides |= {"class_order": list(found.scenario.class_order), "weights": weights, "data": found.fingerprint}
    about = {"device": device_name(device), "workers": workers_of(options)}
    return Run(folder, decides | (more or {}), labels, "", options.overwrite, options.save_interval, about)


def workers_of(options: CILOptions) -> int:
    return automatic_workers() if options.workers is None else options.workers


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
