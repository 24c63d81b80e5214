"""The first k images of each class: the 5-shot protocol of MoE-Adapters (arXiv 2403.11549)."""

from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import TensorDataset

from common.training.batches import Batches


def first_per_label(labels: Iterable[int], k: int) -> list[int]:
    """Positions of the first k occurrences (or all, if fewer) of each label, labels in order of first appearance.

    Upstream mtil/src/models/finetune.py:L39-L65 keeps the images in a dictionary by label, hence grouped by label and
    not in the order of the visit.
    """
    chosen: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        kept = chosen.setdefault(int(label), [])
        if len(kept) < k:
            kept.append(position)
    return [position for kept in chosen.values() for position in kept]


def few_shot_indices(stream: Batches, labels: Sequence[int], k: int) -> list[int]:
    """Indices of the images of `few_shot`, none of which is decoded."""
    order = stream.order(0)
    return [order[position] for position in first_per_label((labels[index] for index in order), k)]


def few_shot(stream: Batches, labels: Sequence[int], k: int) -> tuple[TensorDataset, list[int]]:
    """TensorDataset (images, labels) of the first k images of each label in one shuffled pass, and their indices.

    The pass is batches 0 .. len(stream) - 1; `labels` are those of the streamed data set, which the indices refer to.
    Quirk of upstream, and of the published numbers: augmentation is frozen, each shot is one fixed crop. A crop depends
    on its position in the stream alone, so only the chosen images are decoded.
    """
    indices = few_shot_indices(stream, labels, k)
    position = {index: place for place, index in enumerate(stream.order(0))}
    images, targets = zip(*(stream.samples[index, position[index]] for index in indices))
    return TensorDataset(torch.stack(images), torch.tensor(targets)), indices
