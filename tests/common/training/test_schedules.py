"""Schedules against the official runs' rates and torch's own schedulers."""

import numpy as np
import pytest
import torch

from common.training.schedules import coda_cosine, cosine_annealing, multistep
from tests.golden_files import Golden

GOLDEN = Golden("inflora/schedules")


@pytest.mark.parametrize("facts", GOLDEN.meta["lr"], ids=lambda facts: facts["name"])
def test_rates_of_the_official_code(facts):
    base, epochs = facts["base_lr"], facts["epochs"]
    rate = {
        "cosine_schedule": lambda epoch: coda_cosine(epoch, base, epochs),
        "cosine_annealing": lambda epoch: cosine_annealing(epoch, base, epochs),
        "multistep": lambda epoch: multistep(epoch, base, facts["milestones"], 0.1),
    }[facts["kind"]]
    np.testing.assert_allclose([rate(epoch) for epoch in range(epochs)], GOLDEN[f"lr/{facts['name']}"], rtol=1e-12)


def test_one_epoch_runs_at_the_full_rate():
    assert coda_cosine(0, 0.1, 1) == 0.1


def test_as_torch_steps_them():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    torch_multistep = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5)
    for epoch in range(6):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(multistep(epoch, 0.3, [2, 4], 0.5))
        optimizer.step()
        torch_multistep.step()
