"""Batches of a data set in its own order, and a network's features of all its images."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from common.machine import Machine
from common.training.batches import leave_signals_to_parent
from common.training.distributed import all_gather_rows, local_rows


def batches_in_order(
    dataset: Dataset, batch_size: int, workers: int, device: torch.device, progress: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, on the device, of this process's rows (`local_rows`) of a data set."""
    rows = local_rows(len(dataset))  # type: ignore[arg-type]  # torch's Dataset declares no length
    loader = DataLoader(
        Subset(dataset, range(rows.start, rows.stop)),
        batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # the global one is part of what a resumed run restores
    )
    for images, labels in tqdm(loader, desc=progress, unit="batch", leave=False, dynamic_ncols=True, disable=None):
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@torch.no_grad()
def features_in_order(
    encode: Callable[[Tensor], Tensor], dataset: Dataset, batch_size: int, machine: Machine, progress: str = "features"
) -> tuple[Tensor, Tensor]:
    """Features (N, ...) and labels (N,) of a data set, in its order, on the machine's device.

    encode: images (B, 3, R, R) -> features (B, ...). Each process encodes its rows and returns those of all.
    """
    count: int = len(dataset)  # type: ignore[arg-type]
    features, labels = [], []
    for images, targets in batches_in_order(dataset, batch_size, machine.workers, machine.device, progress):
        features.append(encode(images))
        labels.append(targets)
    if not features:  # more processes than images: this one has no row, and takes the features' shape from row 0
        image, _ = dataset[0]
        features.append(encode(image[None].to(machine.device))[:0])
        labels.append(torch.empty(0, dtype=torch.long, device=machine.device))
    return all_gather_rows(torch.cat(features), count), all_gather_rows(torch.cat(labels), count)
