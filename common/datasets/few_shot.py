"""The first k images of each class: the 5-shot protocol of MoE-Adapters (arXiv 2403.11549)."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset


def first_per_label(labels: Iterable[int], k: int) -> list[int]:
    """Positions of the first k occurrences of each label, labels in order of first appearance.

    Needs no image: with the labels of a shuffled order it tells which images few_shot would keep. A label
    that occurs less than k times gives fewer. Upstream mtil/src/models/finetune.py:L39-L65 keeps the images
    in a dictionary by label, hence grouped by label and not in the order of the visit.
    """
    chosen: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        kept = chosen.setdefault(int(label), [])
        if len(kept) < k:
            kept.append(position)
    return [position for kept in chosen.values() for position in kept]


def few_shot(batches: Iterable[Sequence[Tensor]], k: int) -> tuple[TensorDataset, list[int]]:
    """Keep the first k images of each label out of batches (images (B, ...), labels (B,)[, indices (B,)]).

    The batches are read to the end, since a label may first appear in the last one. The images are kept as
    they come, that is after the random transform: augmentation is frozen, each shot is one fixed crop (quirk
    of upstream). Returns the TensorDataset (images, labels) and for each shot its index: the third element of
    the batch where there is one, else its position in the visit.
    """
    kept: list[tuple[Tensor, int, int]] = []
    seen: Counter[int] = Counter()
    position = 0
    for images, labels, *rest in batches:
        indices = rest[0].tolist() if rest else range(position, position + len(labels))
        for image, label, index in zip(images, labels.tolist(), indices):
            seen[label] += 1
            if seen[label] <= k:
                kept.append((image.clone(), label, index))
        position += len(labels)
    shots = [kept[i] for i in first_per_label((label for _, label, _ in kept), k)]
    images, labels, indices = zip(*shots)
    return TensorDataset(torch.stack(images), torch.tensor(labels)), list(indices)
