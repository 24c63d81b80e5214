"""A training that diverges ends with one sentence: which term, which step, what to try; what was saved before stays."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.machine import RunOptions
from common.runs import Run, Tensors, load_tensors
from common.training.finite import require_finite

LABELS = {"paper": "none", "method": "none", "seed": 1}


def test_the_first_value_that_is_not_finite_is_named() -> None:
    log = {"CE": torch.tensor([1.0, 2.0, torch.inf]), "img": torch.tensor([1.0, torch.nan, 3.0])}
    require_finite("task", {name: values[:1] for name, values in log.items()})
    with pytest.raises(UserError, match=r"^task: the loss is not finite at step 8 \(img\)\. .*lower learning rate"):
        require_finite("task", log, first=7)


def steps_until(run: Run, weight: torch.Tensor, log: torch.Tensor, broken: torch.Tensor, at: int) -> None:
    """Five steps that each add 1 to a weight; from step `at` on `broken`, one of the two, is infinite."""
    for step in run.steps("task", 5, {"parameters": Tensors({"w": weight}), "log": Tensors({"loss": log})}):
        weight += 1
        log[step] = 0.5
        if step >= at:
            broken.fill_(torch.inf)


@pytest.mark.parametrize("what, told", [("log", "the loss is not finite at step 3"), ("weight", "the parameters are")])
def test_a_run_saves_nothing_that_is_not_finite(tmp_path: Path, what: str, told: str) -> None:
    tensors = {"weight": torch.zeros(1), "log": torch.zeros(5)}
    run = Run(tmp_path, {}, LABELS, options=RunOptions(save_interval=0.0))
    with pytest.raises(UserError, match=f"task: {told}"):
        steps_until(run, **tensors, broken=tensors[what], at=3)
    saved = load_tensors(tmp_path / "state.pth")
    assert saved["step"] <= 3 and saved["state"]["parameters"]["w"].item() == saved["step"]


@pytest.mark.parametrize("on_gpu, steps", [(False, 2), (True, 5)])
def test_a_loss_is_looked_at_after_each_step_and_a_gpu_s_at_a_save(
    on_gpu: bool, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    weight, log = torch.zeros(1), torch.zeros(5)
    run = Run(tmp_path, {}, LABELS, options=RunOptions(save_interval=1000.0))
    with pytest.raises(UserError, match="task: the loss is not finite at step 1 "):
        steps_until(run, weight, log, broken=log[1:2], at=1)
    assert weight.item() == steps and not (tmp_path / "state.pth").exists()


def test_parameters_are_looked_at_after_the_last_step(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(1), "log": torch.zeros(5)}
    run = Run(tmp_path, {}, LABELS, options=RunOptions(save_interval=1000.0))
    with pytest.raises(UserError, match="task: the parameters are not finite after step 4"):
        steps_until(run, **tensors, broken=tensors["weight"], at=4)
