"""Streaming linear discriminant analysis on CLIP's frozen image features: the method of adding-a-method.md.

    python -m docs.slda --data-location /data            CIFAR-100 in ten tasks
    python -m docs.slda --scale mini                     the miniature, in seconds

Hayes and Kanan, CVPR Workshops 2020, arXiv 1909.01520. Nothing is trained: each class has a mean, all share one
covariance, both from sums that every image is added to once. Their streaming estimate of the covariance depends on the
order of the images; the sums give the exact one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from common import mini
from common.clip.model import CLIP
from common.clip.pretrained import find_weights, fingerprint, load
from common.errors import all_checked, exit_cleanly
from common.evaluation.report import run_title, save_matrix, task_accuracy_lines, task_accuracy_matrix
from common.files import metric_lines
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario, protocol, read_class_order, require_images, seen_subset, task_subset
from common.incremental.sets import find, load_incremental, require_incremental
from common.incremental.tasks import task_path, unfinished_tasks
from common.machine import Machine, RunOptions, choose_machine
from common.options import SHARE, option, read, scale_option, settings
from common.runs import Run, Tensors, fitting, load_tensors, mini_folder, save_tensors
from common.training.batches import Batches
from common.training.distributed import all_gather_rows
from common.training.numerics import prepare


@dataclass(frozen=True)
class Options(RunOptions):
    scale: str = scale_option(lambda options: {"data_location": mini.MINI, "model": mini.MINI, "increment": 4})
    data_location: Path = option(help="folder of the data sets, or mini", decides=False)
    dataset: str = option("cifar100", choices=("cifar100", "tinyimagenet"))
    increment: int = option(10, "classes of every task", at_least=1)
    model: str = option("ViT-B/16", "CLIP: a published name, a file, or mini")
    shrinkage: float = option(1e-4, "of the covariance towards the identity", **SHARE)
    batch_size: int = option(128, at_least=1)
    save: str = option("runs/slda", "output folder", decides=False)


def discriminants(sums: dict[str, Tensor], seen: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weights (seen, D) and biases (seen,) of the linear classifier of the classes seen, float64.

    sums: `counts` (C,) images of a class, `features` (C, D) their sum, `products` (D, D) the sum of z z' of all images.
    """
    means = sums["features"][:seen] / sums["counts"][:seen, None]
    scatter = sums["products"] - sums["features"].T[:, :seen] @ means
    covariance = scatter / sums["counts"].sum()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weights = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * identity, means.T).T
    return weights, -(weights * means).sum(dim=1) / 2


def learn_task(run: Run, clip: CLIP, sums: dict[str, Tensor], batches: Batches, task_id: int) -> None:
    """Add every image of a task to the sums, in place."""
    for step in run.steps(f"task {task_id}", len(batches), {"sums": Tensors(sums)}):
        images, labels = batches[step]
        features = all_gather_rows(clip.encode_image(images), len(labels)).double()
        sums["counts"].index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        sums["features"].index_add_(0, labels, features)
        sums["products"] += features.T @ features


@exit_cleanly
@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    options = read(Options, argv, "docs.slda", __doc__ or "")
    machine, about = choose_machine(options), find(options.dataset, options.data_location)
    images, verify = (options.dataset, options.data_location), not options.no_verify
    all_checked([lambda: require_incremental(*images, verify), lambda: find_weights(options.model)])
    clip, _, transform = load(options.model, machine.device)
    prepare(machine, clip)
    data = load_incremental(*images, transform, transform, verify)
    scenario = Scenario(read_class_order(f"class_orders/{about.order}.yaml"), options.increment, options.increment)
    require_images(data, scenario, every_class=True)
    assert data.test is not None  # require_images has raised otherwise
    run = open_run(options, machine, protocol(about.label, scenario), data.fingerprint)

    test = features_in_order(clip.encode_image, seen_subset(data.test, scenario, -1), options.batch_size, machine)
    classes, width, count = len(scenario.class_order), test[0].shape[1], len(scenario.tasks)
    shapes = {"counts": (classes,), "features": (classes, width), "products": (width, width)}
    sums = {name: torch.zeros(shape, dtype=torch.float64, device=machine.device) for name, shape in shapes.items()}

    def read_task(task_id: int) -> None:
        with fitting(task_path(run.folder, task_id)):
            Tensors(sums).load_state_dict(load_tensors(task_path(run.folder, task_id)))

    for task_id in unfinished_tasks(count, lambda task: is_tested(run, task), read_task):
        part = task_subset(data.train, scenario, task_id)
        batches = Batches(part, options.batch_size, 0, machine.workers, machine.device, shuffle=False)
        learn_task(run, clip, sums, batches, task_id)
        save_tensors(task_path(run.folder, task_id), sums)
        weights, biases = discriminants(sums, scenario.seen(task_id), options.shrinkage)
        hits = (test[0].double() @ weights.T + biases).argmax(dim=1) == test[1]
        record_task(run, about.label, hits.cpu().numpy(), scenario.task_ids(test[1].cpu().numpy()), task_id)
    finish(run, about.label, count)


def open_run(options: Options, machine: Machine, protocol: str, data: dict[str, object]) -> Run:
    """The run's folder. Raises UserError if it holds a run of other options, weights or data."""
    scale = mini.scale_of(str(options.data_location), options.model)
    labels: dict[str, str | int] = {"paper": "slda", "method": "SLDA", "protocol": protocol, "backbone": options.model}
    labels |= {"scale": scale, "seed": 0}
    decides = settings(options) | {"weights": fingerprint(options.model), "data": data}
    return Run(mini_folder(options.save, scale) or "", decides, labels, options=options, machine=machine)


def is_tested(run: Run, task_id: int) -> bool:
    return bool(run.find(metric="accuracy", after_task=task_id + 1))


def record_task(run: Run, dataset: str, hits: np.ndarray, task_ids: np.ndarray, task_id: int) -> None:
    """Record the accuracies in percent on the test images of the classes seen, of all (N,) and of each task."""
    accuracy = 100.0 * float(np.mean(hits[task_ids <= task_id]))
    cells = [100.0 * float(np.mean(hits[task_ids == task])) for task in range(task_id + 1)]
    run.record([*metric_lines(dataset, task_id + 1, {"accuracy": accuracy}), *task_accuracy_lines(cells)])
    print(f"task {task_id}: accuracy {accuracy:.2f}", flush=True)


def finish(run: Run, dataset: str, count: int) -> None:
    """Record Avg and Last, and write the matrix of accuracies."""
    curve = [line["value"] for line in run.find(metric="accuracy")]
    values = {"avg": fmean(curve), "last": curve[-1], "trainable_parameters": 0}
    run.record(metric_lines(dataset, count, values, None))
    names, title = [f"task {task_id}" for task_id in range(count)], run_title(run)
    save_matrix(run, task_accuracy_matrix(run, count).tolist(), names, names, title)
    print(f"{title}: Avg {values['avg']:.2f}, Last {values['last']:.2f}; written to {run.folder}")
    run.finish()


if __name__ == "__main__":
    main()
