"""VQ-Prompt over a sequence of tasks, its variants, and bounds without prompts (trainer.py, learners/prompt.py).

VQ-Prompt: train, take statistics, re-train the classifier, test, task after task. VQ-Prompt-S leaves statistics and
re-training out (--adaptive_pred), Soft-Prompt the quantisation (quantize: false). On the features of the ViT without
prompts NCM is the nearest class mean, LinearProbe a linear classifier of all classes at once.
"""

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import vit
from common.files import metric_lines
from common.incremental.measures import common_metrics, numel
from common.incremental.scenario import seen_subset
from common.incremental.sets import vit_transforms
from common.incremental.tasks import unfinished_tasks
from common.machine import Machine
from common.runs import file_md5, fitting, load_tensors
from common.training.batches import Batches, leave_signals_to_parent
from common.training.device import seed_everything
from common.training.distributed import all_gather_rows, rank, sum_over_processes, world_size
from common.training.numerics import prepare
from vq_prompt.classifier import ClassStatistics, draw, linear_probe, nearest_mean, retrain, task_statistics
from vq_prompt.data import data_set, scenario
from vq_prompt.options import VQOptions, scale_of
from vq_prompt.prompts import Network
from vq_prompt.repeat import Repeat, finish_run, on_cpu, open_repeat, percent, record_accuracies, record_costs
from vq_prompt.training import train_task

if TYPE_CHECKING:
    from torchvision.transforms import Compose

BOUNDS = {"NCM": "NCM, no prompts", "LinearProbe": "Joint linear probe"}  # without prompts
VARIANTS = (  # keys of ours that make another method than the released code's
    "vq_weight_convention", "quantize", "normalize_query", "prompt_lr_mult", "coswm_first_step_full_lr",
    "ca_first_step_full_lr", "normalize_input",
)  # fmt: skip
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def method_name(options: VQOptions) -> str:
    """The method as records name it, and as the paper's tables do, with what is not the released code's way."""
    if options.learner_name in BOUNDS:
        return BOUNDS[options.learner_name]
    if options.quantize:
        name = "VQ-Prompt" if options.adaptive_pred else "VQ-Prompt-S"
    else:
        # Figure 3a goes from Soft-Prompt over VQ-Prompt-S to VQ-Prompt: read here as re-training in the last alone
        name = "Soft-Prompt + re-training" if options.adaptive_pred else "Soft-Prompt"
    silent = {"paper": {"quantize"}, "mini": {"quantize", "prompt_lr_mult"}}[scale_of(options)]  # named, or a preset's
    changed = {key: getattr(options, key) for key in VARIANTS if getattr(options, key) != getattr(VQOptions, key)}
    return ", ".join([name, *(f"{key} {value}" for key, value in changed.items() if key not in silent)])


# A run


@dataclass
class Learner:
    """What a run carries from task to task."""

    options: VQOptions
    repeat: Repeat
    network: Network
    statistics: list[ClassStatistics] = field(default_factory=list)  # by task
    queries: list[Tensor] = field(default_factory=list)  # (B, D) of each batch of test images


def run_seed(options: VQOptions, machine: Machine, seed: int) -> np.ndarray:
    """Learn and evaluate all tasks under one seed; R (T, T), R[j, i] percent of task j after task i, 0 before."""
    seed_everything(seed)  # classifier and prompts
    network = build_network(options, len(scenario(options, seed).class_order)).to(machine.device)
    prepare(machine, network)
    images = transforms(options, network.feat.patch_embed.img_size[0])
    decides = {"weights": {"backbone": file_md5(options.weights_file())}}
    repeat = open_repeat(options, machine, seed, images, method_name(options), decides)
    learner = Learner(options, repeat, network)
    unfinished = unfinished_tasks(
        repeat.task_count,
        lambda task_id: repeat.model_path(task_id).exists() and repeat.is_evaluated(task_id),
        lambda task_id: read_task(learner, task_id),
    )
    for task_id in unfinished:
        learn_task(learner, task_id)
        record_task(learner, task_id)
    return finish_run(repeat)


def build_network(options: VQOptions, classes: int) -> Network:
    """The ViT with prompts and a classifier; without prompts for the bounds."""
    backbone = vit.load(options.pretrained_weight, options.weights)
    if options.learner_name in BOUNDS:
        return Network(backbone, classes)
    size, length, tau = options.prompt_param
    pool: dict[str, Any] = {"size": int(size), "length": int(length), "tau": tau, "quantize": options.quantize}
    pool |= {"normalize_query": options.normalize_query, "convention": options.vq_weight_convention}
    return Network(backbone, classes, pool)


def transforms(options: VQOptions, size: int) -> "tuple[Compose, Compose]":
    """Training and test transform. Quirk: pixels stay in [0, 1] for every set and backbone (dataloaders/utils.py).

    Not so with --transforms common.
    """
    from torchvision.transforms import Compose, Normalize

    train, test = vit_transforms(data_set(options), size, options.normalisation)
    if options.normalize_input:
        normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        train, test = Compose([*train.transforms, normalize]), Compose([*test.transforms, normalize])
    return train, test


# A task


def learn_task(learner: Learner, task_id: int) -> None:
    """Train, take statistics, re-train the classifier, and write model and statistics; or read them if they exist."""
    options, repeat, network = learner.options, learner.repeat, learner.network
    if repeat.model_path(task_id).exists():
        return read_task(learner, task_id)
    classes, stage, updates, trained = repeat.scenario.tasks[task_id], f"task {task_id + 1}", 0, 0
    repeat.run.seconds = 0.0  # of the training, if there is one
    if network.prompt is not None:
        batches = repeat.training_batches(task_id, options.drops_last)
        log = train_task(network, classes, batches, options, stage, repeat.run.steps)
        loss, prompt_loss = (log[name][-len(batches) :].mean() for name in ("loss", "prompt_loss"))
        print(f"{stage}: loss {loss:.3f}, of it prompts {prompt_loss:.4f}", flush=True)
        updates = len(log["loss"])
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    started = time.monotonic()
    if options.learner_name == "LinearProbe":
        linear_probe(network.last, *training_features(learner, task_id))
        trained = numel(network.last.parameters())
    elif takes_statistics(learner):
        take_statistics(learner, task_id)
    if network.prompt is None:
        repeat.run.seconds = time.monotonic() - started  # of the bounds' pass over the images
    elif options.adaptive_pred and task_id > 0:
        retrain_classifier(learner, task_id)
    record_costs(repeat, task_id, updates, trained)
    repeat.save(task_id, on_cpu(network.state_dict()))


def takes_statistics(learner: Learner) -> bool:
    """Whether statistics are taken of each task's classes."""
    is_probe = learner.options.learner_name == "LinearProbe"
    return not is_probe and (learner.network.prompt is None or learner.options.adaptive_pred)


def take_statistics(learner: Learner, task_id: int) -> None:
    """Add the statistics of a task's classes, and write them. For NCM they make the rows of the classifier."""
    repeat, network = learner.repeat, learner.network
    features, labels = training_features(learner, task_id)
    centroids = 1 if network.prompt is None else learner.options.n_centroids  # the nearest mean is of one mean a class
    statistics = task_statistics(features, labels, repeat.scenario.tasks[task_id], centroids, repeat.seed)
    repeat.save(task_id, on_cpu(vars(statistics)), "statistics.pth")
    learner.statistics.append(statistics)
    if network.prompt is None:
        nearest_mean(network.last, statistics)


@torch.inference_mode()
def training_features(learner: Learner, task_id: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of all images of a task, in one pass.

    Quirk: under the training transform, random crops and flips included (trainer.py:L333-L368). The bounds, which are
    no originals, see the test transform.
    """
    repeat, machine = learner.repeat, learner.repeat.machine
    images = repeat.training_images(task_id, augmented=learner.network.prompt is not None)
    seed = repeat.stream_seed(task_id, "statistics")
    batches = Batches(images, learner.options.batch_size, seed, machine.workers, machine.device, shuffle=False)
    features, labels = [], []
    for step in range(len(batches)):
        pixels, targets = batches[step]
        features.append(all_gather_rows(learner.network(pixels)[0], len(targets)))
        labels.append(targets)
    return torch.cat(features), torch.cat(labels)


def retrain_classifier(learner: Learner, task_id: int) -> None:
    """Re-train the classifier on samples of all Gaussians so far."""
    options, repeat, classes = learner.options, learner.repeat, learner.repeat.scenario.tasks[task_id]
    statistics = ClassStatistics.joined(learner.statistics).spread()
    if len(statistics.labels) == 0:
        print(f"task {task_id + 1}: no class varies, so there is nothing to re-train on", flush=True)
        return
    generator = torch.Generator(repeat.machine.device).manual_seed(repeat.stream_seed(task_id, "retraining"))
    draws = draw(statistics, options.samples_per_centroid, options.crct_epochs, generator)
    log = retrain(learner.network.last, draws, statistics.labels, classes.stop, classes.start, options)
    if log.loss:
        top5 = "" if math.isnan(log.top5[-1]) else f", top-5 {100 * log.top5[-1]:.1f}"
        numbers = f"loss {log.loss[-1]:.3f}, top-1 {100 * log.top1[-1]:.1f}{top5}"
        print(f"task {task_id + 1}: re-trained, {numbers}", flush=True)


def read_task(learner: Learner, task_id: int) -> None:
    """Put the network and the statistics back to what they were after a task; no stage is repeated (upstream's is)."""
    repeat, device = learner.repeat, learner.repeat.machine.device
    with fitting(repeat.model_path(task_id)):
        learner.network.load_state_dict(load_tensors(repeat.model_path(task_id)))
    learner.statistics = []
    for path in (repeat.model_path(earlier, "statistics.pth") for earlier in range(task_id + 1)):
        if takes_statistics(learner):
            with fitting(path):
                part = {name: tensor.to(device) for name, tensor in load_tensors(path).items()}
                learner.statistics.append(ClassStatistics(**part))


# Evaluation


@torch.inference_mode()
def evaluate(learner: Learner, task_id: int) -> list[tuple[float, float, int]]:
    """Of each task so far: accuracy in percent among the classes of all of them, among its own, number of test images.

    Once a task: the original tests after training and again at the end, on the same models. Batches never mix tasks, so
    that they, and their queries, are the same after every task.
    """
    repeat, network, machine, size = learner.repeat, learner.network, learner.repeat.machine, learner.options.batch_size
    images, seen = seen_subset(repeat.test, repeat.scenario, task_id), repeat.scenario.seen(task_id)
    task_ids = repeat.scenario.task_ids(images.labels)
    members = [np.flatnonzero(task_ids == tested) for tested in range(task_id + 1)]
    batches = [rows[start : start + size].tolist() for rows in members for start in range(0, len(rows), size)]
    batches = batches[rank() :: world_size()]
    loader = DataLoader(
        images, batch_sampler=batches, num_workers=machine.workers, pin_memory=machine.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )  # fmt: skip
    right = []  # of each batch, read when all are through
    bar = tqdm(loader, desc=f"test {task_id + 1}", unit="batch", leave=False, dynamic_ncols=True, disable=None)
    for number, (pixels, labels) in enumerate(bar):
        pixels = pixels.to(machine.device, non_blocking=True)
        if number == len(learner.queries):
            learner.queries.append(network.query(network.tokens(pixels)))
        features, _ = network(pixels, learner.queries[number])
        logits = network.last(features)[:, :seen]
        own = repeat.scenario.tasks[task_ids[batches[number][0]]]
        within_task = logits[:, own.start : own.stop].argmax(dim=1) + own.start
        predictions = torch.stack([logits.argmax(dim=1), within_task], dim=1)
        right.append(predictions == labels.to(machine.device, non_blocking=True)[:, None])
    hits = torch.zeros(len(images), 2, dtype=torch.long)
    if right:
        hits[np.concatenate(batches)] = torch.cat(right).long().cpu()
    hits = sum_over_processes(hits)  # each process has tested its part
    return [(percent(hits[rows, 0]), percent(hits[rows, 1]), len(rows)) for rows in members]


def record_task(learner: Learner, task_id: int) -> None:
    """Test after a task, and record what was found."""
    repeat, (by_task, within_task, images) = learner.repeat, zip(*evaluate(learner, task_id))
    accuracy, with_task = (float(np.average(part, weights=images)) for part in (by_task, within_task))
    held = numel(learner.network.parameters()), numel(stored(learner))
    values = common_metrics(repeat.run, accuracy, with_task, by_task, *held)
    repeat.run.record(metric_lines(data_set(learner.options).label, task_id + 1, values))
    record_accuracies(repeat, task_id, by_task)


def stored(learner: Learner) -> list[Tensor]:
    """Means and variances of the Gaussians that re-training draws from; NCM's means are its classifier."""
    gaussians = learner.statistics if learner.network.prompt is not None else []
    return [tensor for part in gaussians for tensor in (part.means, part.variances)]
