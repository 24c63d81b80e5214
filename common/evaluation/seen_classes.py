"""After each class-incremental task: all test images of the classes seen, classified among all these classes.

All tasks are tested together on their pooled test images, class texts encoded once a task (cil/main.py:L42-L60). The
originals encode them again for every batch of images, which only differs if the model draws noise (`text_per_batch`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from common.clip.model import CLIP
from common.datasets.transforms import clip_normalise
from common.evaluation.metrics import CILStep
from common.evaluation.pixels import decode
from common.evaluation.zero_shot import encode_prompts
from common.incremental.scenario import RemappedSubset, Scenario, seen_rows
from common.training.batches import Batches
from common.training.device import to_device
from common.training.distributed import all_gather_rows, local_rows


@dataclass
class PooledTest:
    """The test images of all tasks, and how they are read.

    Quirk: `eval_transform` "train" draws new random crops at each test, as the originals do; with "test" every image
    is decoded once for all tests (150 kB an image at 224 pixels).
    """

    images: RemappedSubset  # new labels; under clip_train, or under clip_eval_pixels for "test"
    scenario: Scenario
    eval_transform: str
    batch_size: int
    workers: int = 0
    pixels: Tensor | None = None  # uint8 (N, 3, R, R), once decoded


@torch.no_grad()
def evaluate_seen(
    model: CLIP, tokens: Tensor, test: PooledTest, task_id: int, seed: int, text_per_batch: bool = False
) -> CILStep:
    """Predictions, labels and task ids of all test images seen after task `task_id`, in the data set's order.

    tokens (C, L): prompts of all classes in class order. Crops and the model's own noise depend on `seed` alone. Of
    classes with equal prompts the first in the order is predicted, as in exact arithmetic. `text_per_batch` encodes the
    prompts after each batch of images, so that a model with noise draws it anew, for equal prompts too. Of several
    processes each encodes its rows of a batch, or with `text_per_batch` all of them.
    """
    model.eval()
    torch.manual_seed(seed)
    device, seen = model.logit_scale.device, test.scenario.seen(task_id)
    tokens = tokens[:seen]
    text = None if text_per_batch else class_features(model, tokens)
    first = to_device(first_of_equals(tokens), device)
    rows = seen_rows(test.images.labels, test.scenario, task_id)
    batches = tqdm(
        seen_batches(test, rows, seed, device, whole=text_per_batch), desc=f"test/task {task_id}",
        total=-(-len(rows) // test.batch_size), leave=False, dynamic_ncols=True, disable=None,
    )  # fmt: skip
    predictions = []
    for images, count in batches:
        chosen = seen_logits(model, images, tokens, text).argmax(dim=1)
        predictions.append(chosen if text_per_batch else all_gather_rows(first[chosen], count))
    labels = torch.tensor(test.images.labels).numpy()[rows]
    return CILStep(torch.cat(predictions).cpu().numpy(), labels, test.scenario.task_ids(labels))


def first_of_equals(tokens: Iterable[Tensor]) -> Tensor:
    """Index (C,) of the first prompt equal to each of (C, L): matrix products may round equal columns differently."""
    indices: dict[tuple[int, ...], int] = {}
    first = [indices.setdefault(tuple(prompt.tolist()), index) for index, prompt in enumerate(tokens)]
    return torch.tensor(first)


@torch.no_grad()
def class_features(model: CLIP, tokens: Tensor) -> Tensor:
    """Normalised text features (C, E) of prompts (C, L)."""
    return F.normalize(encode_prompts(model, tokens), dim=-1)


@torch.no_grad()
def seen_logits(model: CLIP, images: Tensor, tokens: Tensor, text: Tensor | None = None) -> Tensor:
    """exp(logit_scale) x cosine (B, C) of images (B, 3, R, R) and prompts (C, L), images encoded first.

    `text` (C, E): the prompts' normalised features; None: encode them here.
    """
    features = F.normalize(model.encode_image(images), dim=-1)
    text = class_features(model, tokens) if text is None else text
    return model.logit_scale.exp() * features @ text.t()


def seen_batches(
    test: PooledTest, rows: np.ndarray, seed: int, device: torch.device, whole: bool = True
) -> Iterator[tuple[Tensor, int]]:
    """Batches of normalised images (B, 3, R, R) at `rows`, on `device`, each with the number of rows in it.

    `whole` False: each process gets its local rows of a batch.
    """
    if test.eval_transform == "test":
        if test.pixels is None:
            test.pixels, _ = decode(test.images, "test set", test.batch_size, test.workers)
        for part in torch.as_tensor(rows).split(test.batch_size):
            local = part if whole else part[local_rows(len(part))]
            yield clip_normalise(to_device(test.pixels[local], device)), len(part)
        return
    stream = (test.batch_size, seed, test.workers, device)
    batches = Batches(Subset(test.images, rows.tolist()), *stream, shuffle=False, whole=whole)
    for number in range(len(batches)):
        images, labels = batches[number]
        yield images, len(labels)
