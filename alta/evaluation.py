"""Accuracies after a task, class-IL and task-IL (upstream main.py:L105-L124); a picture of the features.

The frozen tower sees each test image once a run: test images are not augmented, so their features never change.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alta.heads import Head
from alta.learner import Features, Learner
from alta.options import data_set, protocols
from common.evaluation.metrics import backward_transfer_alta, class_and_task_il, forgetting_alta
from common.evaluation.report import run_title, save_matrix, task_accuracy_lines, task_accuracy_matrix
from common.files import atomic_write, metric_lines
from common.incremental.features import features_in_order
from common.incremental.measures import common_metrics, is_common, numel
from common.incremental.scenario import task_subset
from common.mini import ON_SCALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TSNE: dict[str, Any] = {
    "max_iter": 1000, "learning_rate": 100, "perplexity": 28, "early_exaggeration": 12, "angle": 0.3, "init": "pca",
}  # fmt: skip
TSNE_CLASSES, TSNE_POINTS = 40, 2000  # the original's list of colours ends there; more points take minutes
MARKERS = "os^Dv"


@torch.no_grad()
def accuracies(
    head: Head,
    tests: Sequence[Features],
    classes_per_task: int,
    batch_size: int,
    seen: int | None = None,
    first: int = 0,
) -> tuple[list[float], list[float]]:
    """Class-IL and task-IL accuracy of the test sets of tasks 0, 1, ..., as fractions; texts are encoded once.

    Class-IL chooses among all classes, those of later tasks included, or with `seen` among the first so many; from
    `first` on, which is also where tasks and labels are counted from.
    """
    texts, cells = head.texts(), []
    for task_id, (features, labels) in enumerate(tests):
        logits = torch.cat([head.logits(batch, texts) for batch in features.split(batch_size)])
        cells.append(class_and_task_il(logits[:, first:seen], labels, task_id, classes_per_task))
    class_il, task_il = zip(*cells)
    return list(class_il), list(task_il)


def test_features(learner: Learner, count: int) -> list[Features]:
    """Features of the first `count` tasks' test sets."""
    head, size, machine = learner.head, learner.options.eval.batch_size, learner.machine
    for tested in range(len(learner.test_features), count):
        images = task_subset(learner.test, learner.scenario, tested)
        learner.test_features.append(features_in_order(head.features, images, size, machine))
    return learner.test_features[:count]


def test_task(learner: Learner, task_id: int) -> dict[str, list[float]]:
    """By il_setting, the accuracy on the test set of each task up to this one, as fractions."""
    options, scenario, head = learner.options, learner.scenario, learner.head
    size, masked = options.eval.batch_size, options.joint_task_classes
    seen = scenario.seen(task_id) if options.seen_only else None
    tests = test_features(learner, task_id + 1)
    class_il, task_il = accuracies(head, tests, scenario.increment, size, seen)
    if masked:
        features, labels = tests[0]
        owners = labels // masked
        groups = [(features[owners == owner], labels[owners == owner]) for owner in owners.unique()]
        within = accuracies(head, groups, masked, size)[1]
        task_il = [sum(within) / len(within)]
    return {"class-il": class_il, "task-il": task_il}


def print_accuracies(cells: Sequence[float]) -> None:
    """The original's lines: fractions, their mean over tasks last."""
    for task_id, accuracy in enumerate(cells):
        print(f"---model--- task: {task_id} acc: {accuracy:.4f}")
    print(f"---model--- mean_acc: {sum(cells) / len(cells):.4f}", flush=True)


def record_task(learner: Learner, task_id: int) -> None:
    """Evaluate and record both settings: the mean over tasks, each task's accuracy, forgetting, backward transfer."""
    options, run, cells, lines = learner.options, learner.run, test_task(learner, task_id), []
    print_accuracies(cells[options.il_setting])
    for setting, protocol in protocols(options).items():
        percent = [100 * value for value in cells[setting]]
        values = {"accuracy": sum(percent) / len(percent)}
        if task_id > 0:
            matrix = task_accuracy_matrix(run, task_id + 1, protocol=protocol)
            matrix[task_id] = percent
            values |= {"forgetting": forgetting_alta(matrix), "bwt": backward_transfer_alta(matrix)}
        if is_common(run) and setting == "class-il":
            values |= pooled(learner, task_id, cells)
        lines += metric_lines(data_set(options).label, task_id + 1, values, protocol=protocol)
        lines += task_accuracy_lines(percent, protocol=protocol)
    run.record(lines)


def pooled(learner: Learner, task_id: int, cells: dict[str, list[float]]) -> dict[str, float]:
    """`common_metrics` after a task, from what `test_task` found: test sets weigh as many images as they have."""
    head, scenario, buffer = learner.head, learner.scenario, learner.buffer
    tests, seen = test_features(learner, len(scenario.tasks)), scenario.seen(task_id)
    images = [len(labels) for _, labels in tests]
    by_task = [100 * fraction for fraction in cells["class-il"]]
    accuracy, with_task = (100 * float(np.average(part, weights=images[: task_id + 1])) for part in cells.values())
    later, unseen = [(features, labels - seen) for features, labels in tests[task_id + 1 :]], None
    if later:
        among, _ = accuracies(head, later, scenario.increment, learner.options.eval.batch_size, first=seen)
        unseen = 100 * float(np.average(among, weights=images[task_id + 1 :]))
    parameters: list[Tensor] = [*head.parameters()]
    if head.frozen_prompts is not None:  # each task has left a context, or each class
        ctx = head.last_context["ctx"]
        parameters += [ctx] * task_id if ctx.dim() == 2 else [ctx[: len(head.frozen_prompts)]]
    stored = 0 if buffer is None else buffer.floats
    return common_metrics(learner.run, accuracy, with_task, by_task, numel(parameters), stored, unseen)


def finish(learner: Learner) -> None:
    """Avg and Last, the count of trained parameters, accuracy matrices as CSV and picture; the t-SNE picture."""
    options, run, head, count = learner.options, learner.run, learner.head, len(learner.scenario.tasks)
    trained = sum(parameter.numel() for parameter in head.trained().values())
    columns = [f"task {task_id}" for task_id in range(count)]
    for setting, protocol in protocols(options).items():
        recorded = {line["after_task"]: line["value"] for line in run.find(protocol=protocol, metric="accuracy")}
        curve = [recorded[after_task] for after_task in range(1, count + 1)]
        values = {"avg": sum(curve) / len(curve), "last": curve[-1], "trainable_parameters": trained}
        run.record(metric_lines(data_set(options).label, count, values, None, protocol=protocol))
        matrix, title = task_accuracy_matrix(run, count, protocol=protocol), run_title(run, protocol)
        save_matrix(run, matrix.tolist(), columns, columns, title, f"accuracy_{setting}")
        print(f"{title}: Avg {values['avg']:.2f}, Last {values['last']:.2f}")
    if options.tsne and not run.path("tsne.png").exists():
        learner.load(count - 1)
        test_task(learner, count - 1)
        name = f"{options.il_setting}_{options.visual}_{options.method}_{options.dataset.name}_bf{options.buffer_size}"
        title = f"t-SNE: {name}{ON_SCALE[run.labels['scale']]}"
        draw_tsne(head, learner.test_features, run.path("tsne.png"), title, options.seed)
    run.finish()


# The picture


@torch.no_grad()
def draw_tsne(head: Head, tests: Sequence[Features], path: Path, title: str, seed: int) -> None:
    """Write a PNG of x_f = v and, where the method has an adapter, of x_l = g(v): test images of at most 40 classes."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    features, labels = (torch.cat(parts) for parts in zip(*tests))
    chosen = torch.isin(labels, labels.unique()[:TSNE_CLASSES]).nonzero()[:, 0].cpu()
    shuffled = np.random.RandomState(seed).permutation(chosen.numpy())[:TSNE_POINTS]
    features, classes = features[shuffled], labels[shuffled].cpu().numpy()
    panels = {"task-invariant x_f": features}
    if head.method.adapts:
        panels["task-aware x_l"] = head.adapter(features)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 5), squeeze=False, layout="constrained")
    for panel, (name, values) in zip(axes[0], panels.items()):
        _panel(panel, values.float().cpu().numpy(), classes, name, seed)
    figure.suptitle(title)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    pyplot.close(figure)


def _panel(panel: "Axes", values: np.ndarray, labels: np.ndarray, name: str, seed: int) -> None:
    from matplotlib import colormaps
    from sklearn.manifold import TSNE as Embedding

    perplexity = min(TSNE["perplexity"], max(1, (len(values) - 1) / 3))  # few points have few neighbours
    options = TSNE | {"perplexity": perplexity, "random_state": seed}
    points = Embedding(n_components=2, **options).fit_transform(values)
    classes = np.unique(labels)
    for index, label in enumerate(classes):
        marker, colour = MARKERS[index % len(MARKERS)], colormaps["hsv"](index / len(classes))
        x, y = points[labels == label].T
        panel.scatter(x, y, s=14, marker=marker, color=colour)
    panel.set(title=name, xticks=[], yticks=[])
