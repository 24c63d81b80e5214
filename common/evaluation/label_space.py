"""The labels that a test image is classified among: its own data set's (MTIL), or those of all data sets of a sequence,
learnt or not (X-TAIL, arXiv 2406.18868).

A label of X-TAIL is the position of its class among those of all data sets, in the order of the sequence. Names that
occur in two data sets stay two labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from common.clip.model import CLIP
from common.evaluation.seen_classes import first_of_equals
from common.evaluation.zero_shot import accuracy, class_vectors, zeroshot_logits
from common.training.device import to_device

OWN, ALL = "own", "all"
XTAIL_TEMPLATE = "a photo of a {}."


def xtail_names(name: str, classnames: Sequence[str]) -> Sequence[str]:
    """A data set's class names in X-TAIL: MTIL's, but `number: "0"` for MNIST's "0 - zero"."""
    return [f'number: "{label.split()[0]}"' for label in classnames] if name == "MNIST" else classnames


@dataclass(frozen=True)
class LabelSpace:
    """The prompts (C, T, L) of each data set by its name, C classes under T templates; MTIL's is of one data set."""

    prompts: dict[str, Tensor]

    @cached_property
    def first(self) -> Tensor:
        """For each label (C,) the first one with equal prompts."""
        return first_of_equals(chain.from_iterable(part.flatten(1) for part in self.prompts.values()))

    @property
    def size(self) -> int:
        """Number of labels."""
        return sum(map(len, self.prompts.values()))

    def vectors(self, model: CLIP) -> list[Tensor]:
        """Class vectors (D, C) of each data set."""
        return [class_vectors(model, part) for part in self.prompts.values()]

    def own(self, name: str) -> slice:
        """The labels of one data set among all."""
        sizes = {other: len(part) for other, part in self.prompts.items()}
        start = sum(list(sizes.values())[: list(sizes).index(name)])
        return slice(start, start + sizes[name])

    def accuracies(self, logits: Tensor, labels: Tensor, name: str) -> dict[str, float]:
        """The numbers (%) of the test set `name`, from logits (N, C) on all labels and its own labels (N,).

        MTIL's are `accuracy`, top-1, and `accuracy_top5`. X-TAIL adds `domain_accuracy`, the share whose predicted
        label is of the right data set, and `accuracy_with_domain`, MTIL's number: the best of the data set's own labels
        is right. Of equal logits the one wins that torch.topk returns, as in the released code.
        """
        if len(self.prompts) == 1:
            return dict(zip(("accuracy", "accuracy_top5"), accuracy(logits, labels)))
        own = self.own(name)
        with_domain, _ = accuracy(logits[:, own], labels)
        # matrix products may round equal columns differently
        logits, labels = logits[:, to_device(self.first, logits.device)], labels + own.start
        predicted = logits.topk(1, dim=1).indices
        of_domain = int(((predicted >= own.start) & (predicted < own.stop)).sum())
        (top1,), (top5,) = accuracy(logits, labels, topk=(1,)), accuracy(logits, labels, topk=(5,))
        return {
            "accuracy": top1, "accuracy_top5": top5, "domain_accuracy": 100 * of_domain / len(labels),
            "accuracy_with_domain": with_domain,
        }  # fmt: skip


def space_logits(features: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Logits (N, C) of image features (N, D), not normalised, on all labels.

    Data set by data set: a set's columns are bit for bit those that its class vectors alone would give.
    """
    return torch.cat([zeroshot_logits(features, part) for part in vectors], dim=1)
