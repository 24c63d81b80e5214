"""Accuracies after a task, class-IL and task-IL (upstream main.py:L105-L124), and a picture of the features.

The frozen tower sees each test image once a run: test images are not augmented, so their features never change.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from alta.heads import Head
from common.evaluation.metrics import class_and_task_il
from common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TSNE = {"max_iter": 1000, "learning_rate": 100, "perplexity": 28, "early_exaggeration": 12, "angle": 0.3, "init": "pca"}
TSNE_CLASSES, TSNE_POINTS = 40, 2000  # the original's list of colours ends there; more points take minutes
MARKERS = "os^Dv"
Features = tuple[Tensor, Tensor]  # v (N, D) and labels (N,) of a test set


@torch.no_grad()
def accuracies(
    head: Head, tests: Sequence[Features], classes_per_task: int, batch_size: int, seen: int | None = None
) -> tuple[list[float], list[float]]:
    """Class-IL and task-IL accuracy of the test sets of tasks 0, 1, ..., as fractions; texts are encoded once.

    Class-IL chooses among all classes, those of later tasks included, or with `seen` among the first so many.
    """
    texts, cells = head.texts(), []
    for task, (features, labels) in enumerate(tests):
        logits = torch.cat([head.logits(batch, texts) for batch in features.split(batch_size)])
        cells.append(class_and_task_il(logits[:, :seen], labels, task, classes_per_task))
    class_il, task_il = zip(*cells)
    return list(class_il), list(task_il)


# The picture


@torch.no_grad()
def draw_tsne(head: Head, tests: Sequence[Features], path: Path, title: str, seed: int) -> None:
    """PNG of x_f = v and, where the method has an adapter, x_l = g(v), of test images of at most 40 classes."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    features, labels = (torch.cat(parts) for parts in zip(*tests))
    chosen = torch.isin(labels, labels.unique()[:TSNE_CLASSES]).nonzero()[:, 0].cpu()
    shuffled = np.random.RandomState(seed).permutation(chosen.numpy())[:TSNE_POINTS]
    features, labels = features[shuffled], labels[shuffled].cpu().numpy()
    panels = {"task-invariant x_f": features}
    if head.method.adapts:
        panels["task-aware x_l"] = head.adapter(features)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 5), squeeze=False, layout="constrained")
    for panel, (name, values) in zip(axes[0], panels.items()):
        _panel(panel, values.float().cpu().numpy(), labels, name, seed)
    figure.suptitle(title)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    pyplot.close(figure)


def _panel(panel: "Axes", values: np.ndarray, labels: np.ndarray, name: str, seed: int) -> None:
    from matplotlib import colormaps
    from sklearn.manifold import TSNE as Embedding

    perplexity = min(TSNE["perplexity"], max(1, (len(values) - 1) / 3))  # few points have few neighbours
    options = TSNE | {"perplexity": perplexity, "random_state": seed}
    points = Embedding(n_components=2, **options).fit_transform(values)
    for place, label in enumerate(np.unique(labels)):
        mine = points[labels == label]
        marker, colour = MARKERS[place % len(MARKERS)], colormaps["hsv"](place / len(np.unique(labels)))
        panel.scatter(*mine.T, s=14, marker=marker, color=colour)
    panel.set(title=name, xticks=[], yticks=[])
