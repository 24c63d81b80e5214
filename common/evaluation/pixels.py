"""A test set decoded once, for all checkpoints that are evaluated on it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import datasets
from common.clip.tokenizer import class_prompts
from common.datasets.coop import MTIL
from common.datasets.transforms import clip_eval_pixels
from common.errors import UserError
from common.incremental.features import batches_in_order
from common.training.distributed import all_gather_rows, local_rows


@dataclass(frozen=True)
class DecodedSet:
    """A test set in memory, with its class prompts."""

    name: str
    pixels: Tensor  # uint8 (N, 3, R, R)
    labels: Tensor  # (N,)
    tokens: Tensor  # (C, T, 77), C classes under T templates


def load_decoded(
    name: str,
    root: Path | str,
    resolution: int,
    batch_size: int,
    workers: int,
    template: str | None = None,
    verify: bool = True,
    splits: str = MTIL,
) -> DecodedSet:
    """A data set's test images at R = `resolution`, with prompts from `template`, or else from all its templates.

    Raises UserError for a data set that is missing, that has no test images (ImageNet without a val folder), or, with
    `verify`, whose counts differ from the published ones.
    """
    data = datasets.load(name, root, None, clip_eval_pixels(resolution), verify, splits=splits)
    if data.test is None:
        raise UserError(f"{name}: there are no test images in {root}. Add them, or leave it out of the evaluation.")
    pixels, labels = decode(data.test, name, batch_size, workers)
    return DecodedSet(name, pixels, labels, class_prompts(data.classnames, [template] if template else data.templates))


def decode(dataset: Dataset, name: str, batch_size: int, workers: int = 0) -> tuple[Tensor, Tensor]:
    """All images, uint8 (N, 3, R, R), and labels (N,) of a data set under `clip_eval_pixels`, in its order.

    150 kB an image at 224 pixels: 3.8 GB for the largest MTIL test set (Food, 25,250 images). Each process decodes its
    rows and returns those of all.
    """
    count: int = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
    rows, first = local_rows(count), dataset[0][0]
    pixels = torch.empty(rows.stop - rows.start, *first.shape, dtype=torch.uint8)
    labels, filled = torch.empty(len(pixels), dtype=torch.long), 0
    for images, targets in batches_in_order(dataset, batch_size, workers, torch.device("cpu"), f"decode/{name}"):
        pixels[filled : filled + len(images)] = images
        labels[filled : filled + len(images)] = targets
        filled += len(images)
    return all_gather_rows(pixels, count), all_gather_rows(labels, count)
