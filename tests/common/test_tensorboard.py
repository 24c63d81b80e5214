"""TensorBoard's own reader finds each step of a stage once, whatever stopped the run, and the recorded numbers."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest
import torch

from common.errors import Interrupted, UserError
from common.machine import RunOptions
from common.runs import Run, Tensors


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def learn(run: Run, interrupt_at: int | None = None) -> None:
    """Six steps whose loss is the step, and a term of a half."""
    loss, term = torch.full((2, 6), torch.nan)
    state = {"log": Tensors({"loss": loss, "term": term})}
    for step in run.steps("train/A", 6, state):
        loss[step] = float(step)
        term[step] = 0.5
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)


def test_curves_go_on_where_a_run_was_stopped(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path, {}, {"method": "ZSCL"}, options=RunOptions(tensorboard=True))
    with pytest.raises(Interrupted):
        learn(run, interrupt_at=3)
    run = Run(tmp_path, {}, {"method": "ZSCL"}, options=RunOptions(tensorboard=True))
    learn(run)
    about = {"after_task": 1, "seconds": 0.0}
    run.record([about | {"dataset": "A", "metric": "accuracy", "value": 50.0},
                about | {"dataset": "A", "metric": "accuracy", "value": 75.0, "protocol": "til-a"}])  # fmt: skip
    found = curves(tmp_path / "tensorboard")
    assert found == {
        "train/A/loss": [(step, float(step)) for step in range(6)],
        "train/A/term": [(step, 0.5) for step in range(6)],
        "accuracy/A": [(1, 50.0)],
        "til-a/accuracy/A": [(1, 75.0)],
    }
    mine = tmp_path / "tensorboard/events.out.tfevents.1.mine"
    mine.write_bytes(b"")
    Run(tmp_path, {}, {"method": "ZSCL"}, options=RunOptions(overwrite=True, tensorboard=True))
    assert mine.exists()
    assert curves(tmp_path / "tensorboard") == {}


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    learn(Run(tmp_path, {}, {"method": "ZSCL"}))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="it is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install tensorboard"):
        Run(tmp_path, {}, {"method": "ZSCL"}, options=RunOptions(tensorboard=True))
