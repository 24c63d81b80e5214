import pytest
import torch
from torch.utils.data import Dataset

from common.datasets.few_shot import few_shot, first_per_label
from common.training.batches import Batches
from tests.golden_files import Golden

GOLDEN = Golden("moe_adapters/ddas_few")


@pytest.mark.parametrize("task", range(4))
def test_shots_equal_the_official_choice(task: int) -> None:
    labels = GOLDEN[f"task{task}/labels"]
    index = first_per_label(labels.tolist(), GOLDEN.meta["shots"])
    assert index == GOLDEN[f"task{task}/few_images_index"].tolist()
    assert torch.equal(labels[index], GOLDEN[f"task{task}/few_labels"])


def test_grouped_by_label_in_order_of_first_appearance_and_fewer_where_fewer() -> None:
    assert first_per_label([7, 2, 7, 2, 7, 9], 2) == [0, 2, 1, 3, 5]


class Noisy(Dataset):
    """Images that the global generator changes at every look, as a random crop does."""

    labels = [index % 3 for index in range(20)]

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return index + torch.rand(1), self.labels[index]


def test_the_shots_are_what_a_whole_shuffled_pass_shows_first() -> None:
    stream = Batches(Noisy(), 6, seed=4)
    shots, index = few_shot(stream, Noisy.labels, 2)
    images, labels = (torch.cat(parts) for parts in zip(*(stream[step] for step in range(len(stream)))))
    places = first_per_label(labels.tolist(), 2)
    assert torch.equal(shots.tensors[0], images[places]) and torch.equal(shots.tensors[1], labels[places])
    assert index == images[places].flatten().int().tolist()


def test_the_crops_are_frozen() -> None:
    shots, _ = few_shot(Batches(Noisy(), 6, seed=4), Noisy.labels, 2)
    assert torch.equal(shots[3][0], shots[3][0])
    assert len(shots) == 6
