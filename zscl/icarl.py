"""iCaRL as ZSCL's comparison runs it: exemplars of earlier data sets as reference images for distillation.

No label of an exemplar is ever used (mtil/src/dynamic_dataset.py:L40-L110, mtil/src/models/icarl.py:L18-L121). A memory
is a dict: task -> indices into its training images, in learning order; a stored index may occur twice. A task is a data
set's name here, a number in the class-incremental half (cil/memory.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset

from common.clip.model import CLIP
from common.incremental.features import features_in_order
from common.machine import Machine

CANDIDATES = 30_000  # a data set's training images that may become exemplars: the first ones, in index order
Memory = dict[Any, list[int]]


def first_memory(name: str, images: int, memory_size: int) -> Memory:
    """After the first data set: its first `memory_size` images, without herding."""
    return {name: list(range(min(images, memory_size, CANDIDATES)))}


def updated_memory(
    memory: Memory, task: Any, features: Tensor, memory_size: int, quota: str = "upstream", herding: str = "upstream"
) -> Memory:
    """The memory after one more task, from the normalised features (n, D) of its candidates.

    Stored tasks are cut to their first K / t exemplars, t counting the new one. Quirk (quota="upstream"): the new task
    gets K - K / t instead of K / t, all of K if it is the first, so the memory outgrows K from the third task on.
    """
    share = memory_size // (len(memory) + 1)
    kept = {old: indices[:share] for old, indices in memory.items()}
    new = share if quota == "exact" else memory_size - share or memory_size
    return kept | {task: herd(features, new, herding)}


def candidate_features(
    model: CLIP, images: Dataset, limit: int, batch_size: int, machine: Machine, name: str
) -> Tensor:
    """Normalised features (n, D) of the images that may become exemplars: the first `limit` of a task's."""

    def encode(images: Tensor) -> Tensor:
        return F.normalize(model.encode_image(images), dim=-1)

    count: int = len(images)  # type: ignore[arg-type]  # torch's Dataset declares no length
    candidates = Subset(images, range(min(count, limit)))
    return features_in_order(encode, candidates, batch_size, machine, f"herding/{name}")[0]


@torch.no_grad()
def herd(features: Tensor, count: int, rule: str = "upstream") -> list[int]:
    """Indices of up to `count` images whose running mean stays closest to the mean feature, in the order of choice.

    features (n, D), normalised; their mean is not normalised again. Each step takes the image that minimises
    |mean - (feature + sum of the chosen) / (k + 1)|^2 and removes its feature. Quirk (rule="upstream"): the position
    found in the shrunk list of features is used as an index into the full list of images, so the images drift from
    the features chosen and can repeat; rule="fixed" takes the image that was meant.
    """
    mean, chosen_sum = features.mean(dim=0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(min(count, len(features))):
        distances = (mean - (features + chosen_sum) / (k + 1)).square().sum(dim=1).masked_fill(taken, torch.inf)
        index = distances.argmin(dim=0, keepdim=True)
        position_among_left = index - taken.cumsum(dim=0)[index]
        chosen.append(position_among_left if rule == "upstream" else index)
        chosen_sum = chosen_sum + features[index][0]
        taken.index_fill_(0, index, True)
    return torch.cat(chosen).tolist() if chosen else []
