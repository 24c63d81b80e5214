import pytest
import torch

from common.datasets.few_shot import few_shot, first_per_label
from tests.golden_files import Golden

GOLDEN = Golden("moe_adapters/ddas_few")


def batches(images: torch.Tensor, labels: torch.Tensor, size: int, *rest: torch.Tensor):
    return zip(*(part.split(size) for part in (images, labels, *rest)))


@pytest.mark.parametrize("task", range(4))
def test_shots_equal_the_official_choice(task: int) -> None:
    images, labels = GOLDEN[f"task{task}/images"], GOLDEN[f"task{task}/labels"]
    shots, index = few_shot(batches(images, labels, GOLDEN.meta["B"]), GOLDEN.meta["shots"])
    expected = GOLDEN[f"task{task}/few_images_index"]
    assert index == expected.tolist()
    assert torch.equal(shots.tensors[0], images[expected])
    assert torch.equal(shots.tensors[1], GOLDEN[f"task{task}/few_labels"])
    assert first_per_label(labels.tolist(), GOLDEN.meta["shots"]) == expected.tolist()


def test_grouped_by_label_in_order_of_first_appearance_and_fewer_where_fewer() -> None:
    labels = torch.tensor([7, 2, 7, 2, 7, 9])
    images = torch.arange(6.0)[:, None]
    shots, index = few_shot(batches(images, labels, 4), 2)
    assert index == [0, 2, 1, 3, 5]
    assert shots.tensors[1].tolist() == [7, 7, 2, 2, 9]
    assert shots.tensors[0].flatten().tolist() == index


def test_third_element_names_the_images() -> None:
    labels, names = torch.tensor([0, 1, 0]), torch.tensor([30, 10, 20])
    _, index = few_shot(batches(torch.zeros(3, 1), labels, 2, names), 5)
    assert index == [30, 20, 10]


def test_kept_images_do_not_change_with_the_batch() -> None:
    images = torch.zeros(2, 1)
    shots, _ = few_shot([(images, torch.tensor([0, 1]))], 5)
    images += 1
    assert shots.tensors[0].sum() == 0
