"""DDAS training and selection against golden/moe_adapters/ddas_* and the schedules."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from common.training.batches import Batches
from moe_adapters.adapters import ORIGINAL_CLIP
from moe_adapters.ddas import (
    FEW_SHOT_LR,
    FULL_SHOT_LR,
    AutoEncoder,
    autoencoder_input,
    autoencoder_lr,
    reconstruction_errors,
    select_task,
    train_autoencoder,
)
from tests.golden_files import Golden

TRAJECTORY = dict(rtol=1e-4, atol=1e-4)


def tiny_extractor(golden: Golden) -> nn.Module:
    """The fixtures' stand-in for AlexNet, cut as upstream cuts it: the last convolution without its ReLU."""
    first, second = golden["alexnet/features.0.weight"], golden["alexnet/features.3.weight"]
    features = nn.Sequential(
        nn.Conv2d(3, len(first), 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(len(first), len(second), 3, padding=1),
    )
    features.load_state_dict({key.removeprefix("features."): value for key, value in golden.under("alexnet/").items()})
    return features.eval().requires_grad_(False)


class StoredBatches:
    """The batches of the fixture's step n: the data in order, or the stored indices into the chosen shots."""

    def __init__(self, golden: Golden, task: int) -> None:
        self.images, self.batch, self.picked = golden[f"task{task}/images"], golden.meta["B"], None
        if f"task{task}/few_batches" in golden:
            self.images = self.images[golden[f"task{task}/few_images_index"]]
            self.picked = golden[f"task{task}/few_batches"]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.picked is None:
            start = step % -(-len(self.images) // self.batch) * self.batch
            images = self.images[start : start + self.batch]
        else:
            images = self.images[self.picked[step][self.picked[step] >= 0]]
        return images, torch.zeros(len(images))


@pytest.mark.parametrize("name", ["ddas_full", "ddas_few"])
def test_training_of_the_autoencoders(name: str) -> None:
    golden = Golden(f"moe_adapters/{name}")
    meta, extractor = golden.meta, tiny_extractor(golden)
    base_lr = FEW_SHOT_LR if meta["few_shot"] else FULL_SHOT_LR
    assert base_lr == meta["init_lr"]
    autoencoders = [AutoEncoder(meta["feat_dim"], meta["code"]) for _ in range(12)]
    for task in range(12):
        weights = golden.under(f"{'init' if task < meta['tasks'] else 'untrained'}/{task}.")
        autoencoders[task].load_state_dict(weights)
    for task in range(meta["tasks"]):
        epoch_length, rates = -(-meta["n"][task] // meta["B"]), []

        def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
            for step in range(total):
                yield step
                rates.append(state["optimizer"].param_groups[0]["lr"])

        batches = StoredBatches(golden, task)
        log = train_autoencoder(
            autoencoders[task], extractor, batches, epoch_length, meta["N"][task], base_lr, "", steps
        )
        first = autoencoder_input(extractor, batches[0][0])
        assert_close(first, golden[f"task{task}/ae_input_first_batch"], rtol=2e-5, atol=2e-5)
        assert_close(torch.tensor(rates, dtype=torch.double), golden[f"task{task}/lr"], rtol=1e-12, atol=0)
        assert_close(log["loss"], golden[f"task{task}/loss"], **TRAJECTORY)
        for key, value in golden.under(f"task{task}/end/{task}.").items():
            assert_close(autoencoders[task].state_dict()[key], value, **TRAJECTORY)
    for task in range(meta["tasks"]):
        features = autoencoder_input(extractor, golden[f"task{task}/images"])
        errors = reconstruction_errors(autoencoders, features).mean(dim=0)
        assert_close(errors, golden["final_losses_task_by_ae"][task].to(errors.dtype), **TRAJECTORY)


def test_learning_rates_of_the_official_code() -> None:
    golden = Golden("moe_adapters/schedules")
    for batches, total, base in golden.meta["ae"]:
        rates = torch.tensor([autoencoder_lr(step, batches, base) for step in range(total + 1)], dtype=torch.double)
        assert_close(rates, golden[f"ae/batches{batches}_N{total}_init{base}"], rtol=1e-12, atol=0)


def test_selection_rule() -> None:
    assert select_task(torch.tensor([0.3, 0.2, 0.1]), threshold=0.15) == 1
    assert select_task(torch.tensor([0.3, 0.2, 0.1]), threshold=0.05) == ORIGINAL_CLIP
    assert select_task(torch.tensor([0.1, 0.2, 0.3]), threshold=0.15) == ORIGINAL_CLIP
    assert select_task(torch.tensor([0.2, 0.1, 0.1]), threshold=0.1) == 0  # first on ties; equal is not above


def test_batch_error_is_the_mean_over_its_images() -> None:
    torch.manual_seed(0)
    autoencoder, features = AutoEncoder(12, 3), torch.rand(5, 12)
    expected = nn.functional.mse_loss(autoencoder(features), features)
    assert_close(reconstruction_errors([autoencoder], features).mean(), expected.detach())


def test_few_shot_iterator_starts_again_with_every_epoch_of_the_full_set() -> None:
    """Upstream rebuilds it when step % len(full loader) == 0, and whenever the shots are used up."""
    shots = torch.utils.data.TensorDataset(torch.arange(10).float(), torch.arange(10))
    batches = Batches(shots, 4, seed=1, restart=5)
    seen = [batches[step][1].tolist() for step in range(10)]
    assert [len(labels) for labels in seen] == [4, 4, 2, 4, 4] * 2
    for first, last in ((0, 3), (5, 8)):
        assert sorted(sum(seen[first:last], [])) == list(range(10))
    assert seen[3] != seen[5]
