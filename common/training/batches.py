"""An endless shuffled stream of training batches with random access by step.

Order and augmentation are functions of (seed, step) alone: a run that is killed and resumed at step n, or that uses
another number of workers, sees the same pixels as one that was never stopped.
"""

import copy
import signal
import sys
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.training.distributed import all_gather_rows, local_rows


class BatchStream(Protocol):
    """The part of `Batches` that training loops use: batches[step] is (images, labels), len() the steps of an epoch."""

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]: ...

    def __len__(self) -> int: ...


class DrawnSamples(Dataset):
    """The samples of `dataset`, each augmented with a generator seeded by its position in the stream."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int]:
        index, position = drawn
        before = torch.get_rng_state()
        torch.default_generator.manual_seed((self.seed * 1_000_003 + position + 1) % 2**63)
        sample = self.dataset[index]
        torch.set_rng_state(before)
        return sample


class Batches:
    """`batches[step]` is the (images, labels) of a step; read in order, workers prepare the next ones meanwhile.

    Of several processes each gets the images of its local rows and all labels, or with `whole` all images too.

    Every epoch is a new permutation drawn from (seed, epoch), its last batch may be smaller, and `len(batches)` is
    the number of batches in it: the originals rebuild their iterator when step % len(loader) == 0. `restart` starts
    a new epoch early, whenever step % restart == 0. Without `shuffle` every epoch has the data set's order.
    `drop_last` leaves out of every epoch the batch that is not full.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        restart: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        whole: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed = len(dataset), batch_size, seed  # type: ignore[arg-type]
        self.samples, self.workers, self.device = DrawnSamples(dataset, seed), workers, torch.device(device)
        self.drop_last, self.whole = drop_last, whole
        self.restart, self.shuffle = restart or len(self), shuffle
        self._order: tuple[int, list[int]] = (-1, [])  # an epoch and its order
        self._next: int | None = None
        self._iterator: Iterator[tuple[Tensor, Tensor]] = iter(())

    def __len__(self) -> int:
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def order(self, epoch: int) -> list[int]:
        """Sample indices in the order in which epoch number `epoch` visits them."""
        if not self.shuffle:
            return list(range(self.size))
        seed = (self.seed * 1_000_003 + 2**40 + epoch) % 2**63  # 2**40 keeps it apart from the samples' seeds
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).tolist()

    def _epoch_and_batch(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and the index of its batch in that epoch."""
        period, offset = divmod(step, self.restart)
        epoch, batch = divmod(offset, len(self))
        return period * -(-self.restart // len(self)) + epoch, batch

    def _drawn(self, step: int) -> list[tuple[int, int]]:
        """Sample index and position in the stream of every sample of a step's batch."""
        epoch, batch = self._epoch_and_batch(step)
        if epoch != self._order[0]:
            self._order = epoch, self.order(epoch)
        positions = range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.size))
        return [(self._order[1][position], epoch * self.size + position) for position in positions]

    def indices(self, step: int) -> list[int]:
        """Sample indices of a step's batch."""
        return [index for index, _ in self._drawn(step)]

    def _local_from(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """Samples that this process loads of each batch from `step` on; without a row the batch's first sample."""
        while True:
            drawn = self._drawn(step)
            yield drawn if self.whole else drawn[local_rows(len(drawn))] or drawn[:1]
            step += 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if self._next != step:
            # The loader holds a copy: in a cycle of stream and loader the garbage collector would take the queues away
            # first and then wait five seconds for every worker.
            stream = copy.copy(self)
            stream._iterator = iter(())
            loader = DataLoader(
                self.samples,
                batch_sampler=stream._local_from(step),
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=leave_signals_to_parent,
                generator=torch.Generator(),
            )
            self._iterator = iter(loader)
        images, labels = next(self._iterator)
        self._next = step + 1
        if not self.whole:
            count = len(self._drawn(step))
            rows = local_rows(count)
            local = slice(rows.stop - rows.start)  # empty where the loaded sample is a stand-in
            images, labels = images[local], all_gather_rows(labels[local], count)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def leave_signals_to_parent(worker: int) -> None:
    """Ignore Ctrl-C in a loader process: the main process saves, and a worker would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None  # of the thread that hands tensors over, when the main process has ended
