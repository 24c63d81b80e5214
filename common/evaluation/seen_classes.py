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
from common.evaluation.metrics import CILStep, cil_summary
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


def evaluate_seen(
    model: CLIP, tokens: Tensor, test: PooledTest, task_id: int, seed: int, text_per_batch: bool = False
) -> CILStep:
    """The test of all images of the classes seen after task `task_id`, in the data set's order, among these classes.

    tokens (C, L): prompts of all classes in class order. Crops and the model's own noise depend on `seed` alone. Of
    classes with equal prompts the first in the order is predicted, as in exact arithmetic. `text_per_batch` encodes the
    prompts after each batch of images, so that a model with noise draws it anew, for equal prompts too. Of several
    processes each encodes its rows of a batch, or with `text_per_batch` all of them.
    """
    rows = seen_rows(test.images.labels, test.scenario, task_id)
    name = f"test/task {task_id}"
    return _tested(model, tokens, test, rows, range(test.scenario.seen(task_id)), seed, text_per_batch, name)


def unseen_accuracy(
    model: CLIP, tokens: Tensor, test: PooledTest, task_id: int, seed: int, text_per_batch: bool = False
) -> float | None:
    """Accuracy in percent on all images of the classes not seen after task `task_id`, among those; as `evaluate_seen`.

    None after the last task.
    """
    classes = range(test.scenario.seen(task_id), len(tokens))
    if not classes:
        return None
    rows, name = np.flatnonzero(np.asarray(test.images.labels) >= classes.start), f"unseen/task {task_id}"
    return cil_summary([_tested(model, tokens, test, rows, classes, seed, text_per_batch, name)]).last


@torch.no_grad()
def _tested(
    model: CLIP, tokens: Tensor, test: PooledTest, rows: np.ndarray, classes: range, seed: int, text_per_batch: bool,
    name: str,
) -> CILStep:  # fmt: skip
    """The images at `rows` among `classes`; within their own tasks from the same logits."""
    model.eval()
    torch.manual_seed(seed)
    device = model.logit_scale.device
    tokens = tokens[classes.start : classes.stop]
    text = None if text_per_batch else class_features(model, tokens)
    labels = torch.tensor(test.images.labels).numpy()[rows]
    task_ids, owners = test.scenario.task_ids(labels), torch.from_numpy(test.scenario.task_ids(classes))
    equals = [first_of_equals(tokens), first_of_equals(torch.cat([owners[:, None], tokens], dim=1))]
    first, owners = to_device(torch.stack(equals, dim=1), device), to_device(owners, device)
    own = iter(to_device(torch.from_numpy(task_ids), device).split(test.batch_size))
    batches = tqdm(
        seen_batches(test, rows, seed, device, whole=text_per_batch), desc=name,
        total=-(-len(rows) // test.batch_size), leave=False, dynamic_ncols=True, disable=None,
    )  # fmt: skip
    predictions = []
    for (images, count), tasks in zip(batches, own):
        tasks = tasks if text_per_batch else tasks[local_rows(count)]
        logits = seen_logits(model, images, tokens, text)
        within = logits.masked_fill(owners != tasks[:, None], -torch.inf)
        chosen = torch.stack([logits.argmax(dim=1), within.argmax(dim=1)], dim=1)
        predictions.append(chosen if text_per_batch else all_gather_rows(first.gather(0, chosen), count))
    among_all, within_task = (torch.cat(predictions) + classes.start).cpu().numpy().T
    return CILStep(among_all, labels, task_ids, within_task)


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
