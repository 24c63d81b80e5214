"""InfLoRA and its variants: the entry point. `python -m inflora.main --help`.

Each seed is a run in a folder of its own. A run learns its tasks in order, evaluates after each on all classes seen and
records; the same command again goes on where it stopped.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import datasets, runs, vit
from common.datasets.images import ImageSet
from common.errors import all_checked, exit_cleanly
from common.evaluation.metrics import forgetting_continuum, over_repeats
from common.evaluation.report import metric_lines, task_accuracy_lines, task_accuracy_matrix
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario, protocol, seen_subset, task_subset
from common.incremental.sets import find, vit_transforms
from common.incremental.tasks import stream_seed, task_path, unfinished_tasks
from common.machine import Machine, choose_machine
from common.mini import scale_of
from common.options import settings
from common.runs import Run, file_md5, load_tensors, mini_folder, save_tensors
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare
from inflora.alignment import ClassStatistics, align, cholesky_factors, class_statistics, draw, fresh_norm, scaled_means
from inflora.evaluation import accuracy_by_task, task_metrics
from inflora.gpm import Memory, threshold
from inflora.lora import Network
from inflora.methods import METHODS, logit_norm, training_options
from inflora.options import Options, log_folder, parse, scenario
from inflora.training import design_branch, remember_task, train_task


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options, num_workers=options.num_workers)
    check_inputs(options)
    last = [run_seed(options, machine, seed) for seed in options.seed]
    if len(last) > 1:
        for metric in ("acc", "avg_acc"):
            mean, spread = over_repeats([values[metric] for values in last])
            print(f"{metric}: {mean:.2f} +- {spread:.2f} over seeds {', '.join(map(str, options.seed))}")


def check_inputs(options: Options) -> None:
    """Look for the data and the weights; one message lists all that is missing."""
    data, verify = find(options.dataset, options.data_path), not options.no_verify
    all_checked([
        lambda: datasets.require([data.reader], data.root, verify, options=reader_options(options)),
        lambda: vit.find_weights(options.backbone, options.weights),
    ])  # fmt: skip


def reader_options(options: Options) -> dict[str, object]:
    """What --split means to the reader of the data set."""
    split = options.split
    by_reader = {
        "ImageNetR": {"split": options.seed[0] if split == "upstream" else split},
        "DomainNet": {"lists": None if split.isdecimal() else split},
    }
    return by_reader.get(find(options.dataset, options.data_path).reader, {})


def load_data(options: Options, size: int) -> ImageSet:
    data, verify = find(options.dataset, options.data_path), not options.no_verify
    transforms = vit_transforms(data, size)
    return datasets.load(data.reader, data.root, *transforms, verify, options=reader_options(options))


def data_name(options: Options) -> str:
    """The data set as records name it."""
    return find(options.dataset, options.data_path).label


# A run


@dataclass
class Learned:
    """What a run carries from task to task: the network, the layers' memories, the classes' statistics."""

    network: Network
    memories: list[Memory] | None = None
    statistics: ClassStatistics | None = None


def run_seed(options: Options, machine: Machine, seed: int) -> dict[str, float]:
    """Learn and evaluate all tasks under one seed; the metrics after the last."""
    seed_everything(seed)  # the initial branches and classifiers
    tasks = scenario(options, seed)
    learned = Learned(build_network(options, machine, tasks))
    data = load_data(options, learned.network.image_encoder.patch_embed.img_size[0])
    run = open_run(options, machine, seed, tasks, data)
    unfinished = unfinished_tasks(
        len(tasks.tasks), lambda task: is_done(run, task), lambda task: read_task(run, learned, options, task)
    )
    for task in unfinished:
        if task_path(run.folder, task).exists():
            read_task(run, learned, options, task)
        else:
            learn_task(run, options, machine, tasks, data, learned, task, seed)
        evaluate(run, options, machine, tasks, data, learned.network, task)
    run.finish()
    return {line["metric"]: line["value"] for line in run.find(after_task=len(tasks.tasks))}


def build_network(options: Options, machine: Machine, tasks: Scenario) -> Network:
    method = METHODS[options.model_name]
    backbone = vit.load(options.backbone, options.weights)
    layers = None if method.layers is None else min(method.layers, len(backbone.blocks))
    if method.fresh_norm and options.dataset == "cifar100":
        backbone.norm = fresh_norm(backbone.embed_dim)
    branches = options.total_sessions if method.designed else 1
    network = Network(backbone, [len(task) for task in tasks.tasks], branches, options.rank, layers)
    prepare(machine, network)
    return network.to(machine.device)


def open_run(options: Options, machine: Machine, seed: int, tasks: Scenario, data: ImageSet) -> Run:
    scale = scale_of(options.scale, options.data_path, options.backbone)
    weights = {"md5": file_md5(vit.find_weights(options.backbone, options.weights))}
    decides = settings(options) | {"seed": seed, "weights": weights, "data": data.fingerprint}
    folder = Path(mini_folder(options.save, scale)) / log_folder(options) / str(seed)
    return runs.open_run(
        options, machine, folder, decides, paper="inflora", method=METHODS[options.model_name].label,
        protocol=protocol(data_name(options), tasks), backbone=vit.LABELS.get(options.backbone, options.backbone),
        scale=scale, seed=seed,
    )  # fmt: skip


# Checkpoints


def classes_path(run: Run, task: int) -> Path:
    return run.folder / f"classes_{task}.pth"


def is_done(run: Run, task: int) -> bool:
    return task_path(run.folder, task).exists() and bool(run.find(after_task=task + 1, metric="acc"))


def read_task(run: Run, learned: Learned, options: Options, task: int) -> None:
    """Put the network, the memories and the statistics back to what they were after a task."""
    saved, method, network = load_tensors(task_path(run.folder, task)), METHODS[options.model_name], learned.network
    network.load_state_dict(saved["state_dict"])
    network.finish(task if method.designed else 0)
    device = network.image_encoder.cls_token.device
    if method.designed:
        learned.memories = [Memory(entry["basis"].to(device), entry["free"]) for entry in saved["memories"]]
    if method.aligned:
        parts = [load_tensors(classes_path(run, earlier)) for earlier in range(task + 1)]
        learned.statistics = ClassStatistics(
            *(torch.cat([part[name] for part in parts]).to(device) for name in ("means", "covariances"))
        )


# A task


def learn_task(
    run: Run,
    options: Options,
    machine: Machine,
    tasks: Scenario,
    data: ImageSet,
    learned: Learned,
    task: int,
    seed: int,
) -> None:
    """Design, train, remember and, with +CA, align; then the task's checkpoint."""
    method, network, training = METHODS[options.model_name], learned.network, training_options(options, task)
    branch, first_class = (task if method.designed else 0), tasks.tasks[task].start
    task_seed = stream_seed(seed, task)
    examples = task_subset(data.train, tasks, task)
    batches = Batches(examples, options.batch_size, task_seed, machine.workers, machine.device)
    if method.designed:
        design_or_read(run, network, task, learned.memories, batches)
    log = train_task(network, task, branch, first_class, batches, training, f"task {task}", run.steps)
    if method.designed:
        epsilon = threshold(options.lamb, options.lame, task, options.total_sessions)
        learned.memories = remember_task(network, learned.memories, batches, training.epochs + 1, epsilon, method.dual)
    if method.aligned:
        statistics = statistics_of(network, data, tasks, task, options, machine)
        save_tensors(classes_path(run, task), vars(statistics))
        learned.statistics = learned.statistics.joined(statistics) if learned.statistics else statistics
        if task > 0:
            align_task(network, learned.statistics, tasks, task, options, task_seed)
    epoch = slice(-len(batches), None)
    print(f"task {task}: loss {log.loss[epoch].mean():.3f}, training accuracy {100 * log.accuracy[epoch].mean():.2f}")
    trained = network.branch(branch) | network.classifier(task) | ({} if method.designed else network.reduction(branch))
    about = {"dataset": data_name(options), "after_task": task + 1, "seconds": run.seconds}
    count = {"metric": "trainable_parameters", "value": sum(parameter.numel() for parameter in trained.values())}
    run.record([*cost_records(about["dataset"], task + 1, run.seconds, machine.device), about | count])
    memories = [memory.state_dict() for memory in learned.memories or []]
    save_tensors(task_path(run.folder, task), {"state_dict": network.state_dict(), "memories": memories})


def design_or_read(run: Run, network: Network, task: int, memories: list[Memory] | None, batches: Batches) -> None:
    """The task's lora_A, from the file of a run that was stopped after designing it, else by a pass over the data."""
    path, reduction = run.folder / "design.pth", network.reduction(task)
    saved = load_tensors(path) if path.exists() else {"task": None}
    if saved["task"] != task:
        design_branch(network, task, memories, batches)
        save_tensors(path, {"task": task, "lora_A": {key: value.detach() for key, value in reduction.items()}})
        return
    with torch.no_grad():
        for key, parameter in reduction.items():
            parameter.copy_(saved["lora_A"][key])


def statistics_of(
    network: Network, data: ImageSet, tasks: Scenario, task: int, options: Options, machine: Machine
) -> ClassStatistics:
    """Statistics of the task's classes, from its training images under the test transform."""
    plain = copy.copy(data.train)
    plain.transform = data.test.transform
    features, labels = features_in_order(network.features, task_subset(plain, tasks, task), options.batch_size, machine)
    return class_statistics(features, labels, tasks.tasks[task])


def align_task(
    network: Network, statistics: ClassStatistics, tasks: Scenario, task: int, options: Options, seed: int
) -> None:
    device = statistics.means.device
    task_of_class = torch.from_numpy(tasks.task_ids(range(len(statistics.means)))).to(device)
    means, factors = scaled_means(statistics.means, task_of_class), cholesky_factors(statistics.covariances)
    draws = draw(means, factors, torch.Generator(device).manual_seed(seed))
    align(list(network.classifier_pool[: task + 1]), draws, logit_norm(options.model_name, options.dataset))


# Evaluation


def evaluate(
    run: Run, options: Options, machine: Machine, tasks: Scenario, data: ImageSet, network: Network, task: int
) -> None:
    """Record accuracies on all test images of the classes seen, by task too, the curves' means, and forgetting."""
    seen = seen_subset(data.test, tasks, task)
    features, labels = features_in_order(network.features, seen, options.batch_size, machine)
    with torch.inference_mode():
        logits = network.logits(features, task + 1)
    metrics = task_metrics(logits, labels, tasks, task, options.decimals)
    after = task + 1
    values = {
        "acc": metrics.pop("top1"),
        "acc_macro": metrics.pop("top1_macro"),
        "acc_with_task": metrics.pop("top1_with_task"),
        "task_id_accuracy": metrics.pop("task_acc"),
    }
    for metric in ("acc", "acc_macro"):
        earlier = [line["value"] for line in run.find(metric=metric) if line["after_task"] < after]
        values[f"avg_{metric}"] = float(np.mean([*earlier, values[metric]]))
    values |= {f"accuracy {group}": value for group, value in metrics.items()}
    by_task = accuracy_by_task(logits, labels, tasks, task)
    if task > 0:
        matrix = task_accuracy_matrix(run, after)
        matrix[task] = by_task
        values["forgetting"] = float(forgetting_continuum(matrix)[-1])
    lines = [*metric_lines(data_name(options), after, values), *task_accuracy_lines(by_task)]
    # a cut copy of a data set may lack a group's test images
    run.record([line for line in lines if not math.isnan(line["value"])])
    print(
        f"after task {task}: accuracy {values['acc']:.2f}, mean of the curve {values['avg_acc']:.2f}, "
        f"task known {values['acc_with_task']:.2f}, task found {100 * values['task_id_accuracy']:.2f}, "
        f"forgetting {values.get('forgetting', 0):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
