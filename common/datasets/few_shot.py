"""The first k images of each class: the 5-shot protocol of MoE-Adapters (arXiv 2403.11549)."""

from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import TensorDataset

from common.training.batches import Batches


def first_per_label(labels: Iterable[int], k: int) -> list[int]:
    """Positions of the first k occurrences of each label, labels in order of first appearance.

    A label that occurs less than k times gives fewer. Upstream mtil/src/models/finetune.py:L39-L65 keeps the images
    in a dictionary by label, hence grouped by label and not in the order of the visit.
    """
    chosen: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        kept = chosen.setdefault(int(label), [])
        if len(kept) < k:
            kept.append(position)
    return [position for kept in chosen.values() for position in kept]


def few_shot(stream: Batches, labels: Sequence[int], k: int) -> tuple[TensorDataset, list[int]]:
    """Keep the first k images of each label that one shuffled pass, batches 0 .. len(stream) - 1, shows.

    `labels` are those of the streamed set. The images are kept as the random transform made them: augmentation is
    frozen, each shot is one fixed crop (quirk of upstream, which the published numbers have). The stream draws a
    crop by its place alone, so only the images that are kept are decoded. Returns TensorDataset (images, labels) and
    the index of each shot in the full set.
    """
    order = stream.order(0)
    places = first_per_label((labels[index] for index in order), k)
    images, kept = zip(*(stream.samples[order[place], place] for place in places))
    return TensorDataset(torch.stack(images), torch.tensor(kept)), [order[place] for place in places]
