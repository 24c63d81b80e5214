"""The batch stream: a function of seed and step, whatever the workers and wherever it starts."""

import gc
import multiprocessing

import pytest
import torch
from torch.utils.data import Dataset
from torchvision.transforms import RandomCrop

from common.training.batches import Batches


class Noisy(Dataset):
    """Ten images whose crop is drawn from torch's global generator, as torchvision's transforms do."""

    crop = RandomCrop(2)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.crop(torch.arange(25.0).view(1, 5, 5) + 100 * index), index


def equal(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_is_the_same_from_the_start_or_asked_first(workers: int) -> None:
    from_start = Batches(Noisy(), 4, seed=3)
    batches = [from_start[step] for step in range(8)]
    resumed = Batches(Noisy(), 4, seed=3, workers=workers)
    assert all(equal(resumed[step], batches[step]) for step in (5, 6, 7, 2))


def test_an_epoch_visits_every_image_once_in_a_new_order() -> None:
    batches = Batches(Noisy(), 4, seed=3)
    epochs = [torch.cat([batches[3 * epoch + batch][1] for batch in range(3)]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_augmentation_is_drawn_anew_every_epoch_and_leaves_the_global_generator_alone() -> None:
    batches, before = Batches(Noisy(), 10, seed=3), torch.get_rng_state()
    first, second = (dict(zip(labels.tolist(), images)) for images, labels in (batches[0], batches[1]))
    assert any(not torch.equal(first[index], second[index]) for index in range(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ() -> None:
    assert not equal(Batches(Noisy(), 10, seed=3)[0], Batches(Noisy(), 10, seed=4)[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_last_batch_can_be_dropped(workers: int) -> None:
    """Ten images in batches of three: nine an epoch, the tenth another one each time; whole where they fill a batch."""
    batches = Batches(Noisy(), 3, seed=4, workers=workers, drop_last=True)
    assert len(batches) == 3
    for epoch in range(4):
        seen = [batches[3 * epoch + step][1].tolist() for step in range(3)]
        assert [len(labels) for labels in seen] == [3, 3, 3]
        assert sum(seen, []) == batches.order(epoch)[:9]
    assert len(Batches(Noisy(), 5, seed=4, drop_last=True)) == 2
    assert len(Batches(Noisy(), 11, seed=4, drop_last=True)) == 0


@pytest.mark.parametrize("left", ["stream", "place"])
def test_workers_end_with_their_stream(left: str) -> None:
    """Once nobody holds it, or another step than the next is asked for; no garbage collection is waited for."""
    gc.collect()
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        batches = Batches(Noisy(), 4, seed=3, workers=2)
        batches[0]
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        if left == "stream":
            del batches
        else:
            batches[5]
        assert not workers & set(multiprocessing.active_children())
    finally:
        gc.enable()
