"""VQ-Prompt over a sequence of tasks, its variants, and a bound without prompts (trainer.py, learners/prompt.py).

VQ-Prompt: train, take statistics, re-train the classifier, test, task after task. VQ-Prompt-S leaves statistics and
re-training out (--adaptive_pred), Soft-Prompt the quantisation (quantize: false). NCM is the nearest class mean on the
features of the ViT without prompts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import vit
from common.datasets.images import ImageSet
from common.errors import UserError
from common.incremental.scenario import RemappedSubset, Scenario, require_images, seen_subset, task_subset
from common.incremental.sets import vit_transforms
from common.incremental.tasks import stream_seed, unfinished_tasks
from common.machine import Machine
from common.options import settings
from common.runs import Run, file_md5, load_tensors, save_tensors
from common.training.batches import Batches, leave_signals_to_parent
from common.training.device import seed_everything
from common.training.distributed import all_gather_rows, rank, sum_over_processes, world_size
from common.training.numerics import prepare
from vq_prompt.classifier import (
    ClassStatistics,
    RetrainingOptions,
    draw,
    nearest_mean,
    retrain,
    task_statistics,
)
from vq_prompt.data import PURPOSES, data_set, load_data, scenario, task_count, under
from vq_prompt.options import VQOptions, samples_a_centroid, scale_of
from vq_prompt.prompts import Network
from vq_prompt.report import (
    finish_run,
    is_evaluated,
    open_run,
    record_accuracies,
    record_costs,
    task_folder,
)  # fmt: skip
from vq_prompt.training import TrainingOptions, task_rate, train_task

if TYPE_CHECKING:
    from torchvision.transforms import Compose

VARIANTS = (  # keys of ours that make another method than the released code's
    "vq_weight_convention", "quantize", "normalize_query", "prompt_lr_mult", "coswm_first_step_full_lr",
    "ca_first_step_full_lr", "normalize_input",
)  # fmt: skip
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def check(options: VQOptions) -> None:
    """Raise UserError for weights that are not at hand."""
    vit.find_weights(options.pretrained_weight, options.weights)


def method_name(options: VQOptions) -> str:
    """The method as records name it, and as the paper's tables do, with what is not the released code's way."""
    if options.learner_name == "NCM":
        return "NCM, no prompts"
    if options.quantize:
        name = "VQ-Prompt" if options.adaptive_pred else "VQ-Prompt-S"
    else:
        # Figure 3a goes from Soft-Prompt over VQ-Prompt-S to VQ-Prompt: read here as re-training in the last alone
        name = "Soft-Prompt + re-training" if options.adaptive_pred else "Soft-Prompt"
    told = {"paper": {"quantize"}, "mini": {"quantize", "prompt_lr_mult"}}[scale_of(options)]  # by name, or a preset's
    changed = {key: getattr(options, key) for key in VARIANTS if getattr(options, key) != getattr(VQOptions, key)}
    return ", ".join([name, *(f"{key} {value}" for key, value in changed.items() if key not in told)])


# A run


@dataclass
class Learner:
    """What a run carries from task to task."""

    options: VQOptions
    machine: Machine
    seed: int
    repeat: int
    tasks: Scenario
    data: ImageSet
    network: Network
    run: Run
    queries: Tensor  # (test images, D) of the ViT without prompts; nan where not computed yet
    statistics: ClassStatistics | None = None


def run_seed(options: VQOptions, machine: Machine, seed: int, repeat: int) -> np.ndarray:
    """Learn and evaluate all tasks under one seed; R (T, T), R[j, i] percent of task j after task i, 0 before."""
    learner = start(options, machine, seed, repeat)
    count = task_count(options, learner.tasks)

    def is_done(task: int) -> bool:
        return is_learned(learner, task) and is_evaluated(learner.run, task)

    for task in unfinished_tasks(count, is_done, lambda task: read_task(learner, task)):
        if is_learned(learner, task):
            read_task(learner, task)
        else:
            learn_task(learner, task)
        record_accuracies(learner.run, options, task, evaluate(learner, task))
    return finish_run(learner.run, count)


def start(options: VQOptions, machine: Machine, seed: int, repeat: int) -> Learner:
    """Data, network and run of one repeat, before any task."""
    seed_everything(seed)  # classifier and prompts
    tasks = scenario(options, seed)
    network = build_network(options, len(tasks.class_order)).to(machine.device)
    prepare(machine, network)
    data = load_data(options, seed, *transforms(options, network.feat.patch_embed.img_size[0]))
    require_images(data, tasks, task_count(options, tasks), every_class=True)
    weights = {"backbone": file_md5(vit.find_weights(options.pretrained_weight, options.weights))}
    backbone = vit.LABELS.get(options.pretrained_weight, options.pretrained_weight)
    decides = settings(options) | {"weights": weights}
    run = open_run(options, machine, repeat, seed, method_name(options), backbone, tasks, data, decides)
    queries = torch.full((len(data.test), network.feat.embed_dim), torch.nan, device=machine.device)
    return Learner(options, machine, seed, repeat, tasks, data, network, run, queries)


def build_network(options: VQOptions, classes: int) -> Network:
    backbone = vit.load(options.pretrained_weight, options.weights)
    if options.learner_name == "NCM":
        return Network(backbone, classes)
    size, length, tau = options.prompt_param
    pool = {"size": int(size), "length": int(length), "tau": tau, "quantize": options.quantize}
    pool |= {"normalize_query": options.normalize_query, "convention": options.vq_weight_convention}
    return Network(backbone, classes, pool)


def transforms(options: VQOptions, size: int) -> "tuple[Compose, Compose]":
    """Training and test transform. Quirk: pixels stay in [0, 1] for every set and backbone (dataloaders/utils.py)."""
    from torchvision.transforms import Compose, Normalize

    both = vit_transforms(data_set(options), size)
    if options.normalize_input:
        both = tuple(Compose([*one.transforms, Normalize(IMAGENET_MEAN, IMAGENET_STD)]) for one in both)
    return both


# A task


def learn_task(learner: Learner, task: int) -> None:
    """Train, take statistics, re-train the classifier, then the task's checkpoint, statistics beside the model."""
    options, network, classes = learner.options, learner.network, learner.tasks.tasks[task]
    examples = task_subset(learner.data.train, learner.tasks, task)
    steps = 0
    if network.prompt is not None:
        steps = train(learner, task, examples)
    else:
        learner.run.seconds = 0.0
    folder = task_folder(options, learner.repeat, task)
    folder.mkdir(parents=True, exist_ok=True)
    if network.prompt is None or options.adaptive_pred:
        features, labels = training_features(learner, task, examples)
        centroids = 1 if network.prompt is None else options.n_centroids  # the nearest mean is of one mean a class
        found = task_statistics(features, labels, classes, centroids, learner.seed)
        save_tensors(folder / "statistics.pth", _on_cpu(vars(found)))
        learner.statistics = learner.statistics.joined(found) if learner.statistics else found
        if network.prompt is None:
            nearest_mean(network.last, found)
        elif task > 0:
            retrain_classifier(learner, task)
    trained = 0
    if network.prompt is not None:
        trained = sum(parameter.numel() for part in (network.prompt, network.last) for parameter in part.parameters())
    record_costs(learner.run, options, learner.machine, task, steps, trained)
    save_tensors(folder / "class.pth", _on_cpu(network.state_dict()))


def train(learner: Learner, task: int, examples: RemappedSubset) -> int:
    """The training of a task; its number of updates."""
    options, machine, classes = learner.options, learner.machine, learner.tasks.tasks[task]
    seed = stream_seed(learner.seed, task, "training", PURPOSES)
    batches = Batches(examples, options.batch_size, seed, machine.workers, machine.device, drop_last=True)
    if len(batches) == 0:
        raise UserError(
            f"task {task + 1} has {len(examples)} training images, fewer than a batch of {options.batch_size}, and the "
            "last batch is dropped when it is not full. Take a smaller batch_size or larger tasks."
        )
    kind, schedule = options.schedule_type, options.schedule
    rate = task_rate(kind, schedule, options.iter_step, len(batches), options.coswm_first_step_full_lr)
    training = TrainingOptions(
        schedule[-1], options.lr * options.prompt_lr_mult, options.lr, rate, options.weight_decay
    )
    stage = f"task {task + 1}"
    log = train_task(learner.network, classes.start, classes.stop, batches, training, stage, learner.run.steps)
    last = slice(-len(batches), None)
    print(f"{stage}: loss {log.loss[last].mean():.3f}, of it prompts {log.prompt_loss[last].mean():.4f}", flush=True)
    return len(log.loss)


@torch.inference_mode()
def training_features(learner: Learner, task: int, examples: RemappedSubset) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of all images of a task, in one pass.

    Quirk: under the training transform, random crops and flips included (trainer.py:L333-L368). NCM, which is no
    original, sees the test transform.
    """
    options, machine = learner.options, learner.machine
    if learner.network.prompt is None:
        examples = under(examples, learner.data.test.transform)
    seed = stream_seed(learner.seed, task, "statistics", PURPOSES)
    batches = Batches(examples, options.batch_size, seed, machine.workers, machine.device, shuffle=False)
    features, labels = [], []
    for step in range(len(batches)):
        images, targets = batches[step]
        features.append(all_gather_rows(learner.network(images)[0], len(targets)))
        labels.append(targets)
    return torch.cat(features), torch.cat(labels)


def retrain_classifier(learner: Learner, task: int) -> None:
    options, classes = learner.options, learner.tasks.tasks[task]
    statistics = learner.statistics.spread()
    if len(statistics.labels) == 0:
        print(f"task {task + 1}: no class varies, so there is nothing to re-train on", flush=True)
        return
    generator = torch.Generator(learner.machine.device)
    generator.manual_seed(stream_seed(learner.seed, task, "retraining", PURPOSES))
    draws = draw(statistics, samples_a_centroid(options), options.crct_epochs, generator)
    retraining = RetrainingOptions(
        options.crct_epochs, options.ca_lr, options.ca_weight_decay, options.ca_first_step_full_lr
    )
    log = retrain(learner.network.last, draws, statistics.labels, classes.stop, classes.start, retraining)
    if log.loss:
        top5 = "" if np.isnan(log.top5[-1]) else f", top-5 {100 * log.top5[-1]:.1f}"
        print(f"task {task + 1}: re-trained, loss {log.loss[-1]:.3f}, top-1 {100 * log.top1[-1]:.1f}{top5}", flush=True)


# Checkpoints


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Readable wherever the file is copied to, as the original's."""
    return {key: tensor.detach().cpu() for key, tensor in tensors.items()}


def is_learned(learner: Learner, task: int) -> bool:
    return (task_folder(learner.options, learner.repeat, task) / "class.pth").exists()


def read_task(learner: Learner, task: int) -> None:
    """Put the network and the statistics back to what they were after a task; no stage is repeated (upstream's is)."""
    options, device = learner.options, learner.machine.device
    learner.network.load_state_dict(load_tensors(task_folder(options, learner.repeat, task) / "class.pth"))
    if learner.network.prompt is None or options.adaptive_pred:
        files = [task_folder(options, learner.repeat, earlier) / "statistics.pth" for earlier in range(task + 1)]
        parts = [load_tensors(file) for file in files]
        joined = {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
        learner.statistics = ClassStatistics(**joined)


# Evaluation


@torch.inference_mode()
def evaluate(learner: Learner, task: int) -> list[float]:
    """Accuracy in percent on the test images of each task so far, among the classes of all of them.

    Once a task: the original tests after training and again at the end, on the same models. What the ViT gives without
    prompts is computed once per test image; batches never mix tasks, so that they are the same after every task.
    """
    options, machine, network = learner.options, learner.machine, learner.network
    tests, seen = seen_subset(learner.data.test, learner.tasks, task), learner.tasks.seen(task)
    of_task = learner.tasks.task_ids(tests.labels)
    members = [np.flatnonzero(of_task == known) for known in range(task + 1)]
    size = options.batch_size
    batches = [rows[start : start + size].tolist() for rows in members for start in range(0, len(rows), size)]
    batches = batches[rank() :: world_size()]  # the same process for an image after every task: it knows the query
    loader = DataLoader(
        tests,
        batch_sampler=batches,
        num_workers=machine.workers,
        pin_memory=machine.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    places = torch.tensor(tests.indices, device=machine.device)
    hits = torch.zeros(len(tests), dtype=torch.long)
    bar = tqdm(loader, desc=f"test {task + 1}", unit="batch", leave=False, dynamic_ncols=True, disable=None)
    for batch, (images, labels) in zip(batches, bar):
        features = tested_features(learner, images.to(machine.device, non_blocking=True), places[batch])
        predictions = network.last(features)[:, :seen].argmax(dim=1)
        hits[batch] = (predictions.cpu() == labels).long()
    hits = sum_over_processes(hits).double()  # each process has tested its part
    return [100 * float(hits[rows].mean()) for rows in members]


def tested_features(learner: Learner, images: Tensor, rows: Tensor) -> Tensor:
    """Features (B, D) of the test images in these rows of `queries`, which are filled if they are not known yet."""
    if learner.queries[rows[0], 0].isnan():
        learner.queries[rows] = learner.network.query(learner.network.tokens(images))
    return learner.network(images, learner.queries[rows])[0]
