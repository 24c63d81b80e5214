"""SIGKILL within a task: started again with the same command, a run ends with the same bits."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.zscl.conftest import KD, LENGTH, ON_CAPTIONS, ZSCL, same_weights
from zscl.main import main

TASKS = "Aircraft,EuroSAT,MNIST"
MINI = ["--scale", "mini", "--iterations", "12", "--warmup_length", "3", "--avg_freq", "3", "--batch-size", "16"]
MINI += ["--eval-datasets", "MNIST", "--save-interval", "0", "--device", "cpu", "--workers", "0", "--ls", "0.2"]
COMMANDS = {
    "zscl": [*MINI, "--train-dataset", TASKS, *ZSCL, "--avg_freq", "3", "--ref-dataset", "EuroSAT"]
    + ["--ref-sentences", "conceptual_captions"],
    "icarl": [*MINI, "--method", "icarl", "--dataset_order", TASKS, *KD, "--memory_size", "60"],
}
TIMES = ("train_seconds", "peak_memory_mib")  # measured, not computed


def records(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return [
        (line["dataset"], line["after_task"], line["metric"], line["value"])
        for line in lines
        if line["metric"] not in TIMES
    ]


def within_a_task(folder: Path) -> bool:
    """Whether some of a task's steps are saved, but not all."""
    states = [torch.load(path, weights_only=True) for path in folder.glob("*state.pth")]
    return any(0 < state["step"] < 12 for state in states)


@pytest.mark.parametrize("method", COMMANDS)
def test_a_mini_run_that_was_killed_equals_an_unbroken_one(tmp_path: Path, method: str) -> None:
    def command(name: str) -> list[str]:
        return [*COMMANDS[method], "--save", str(tmp_path / f"{name}-mini"), "--cache-dir", str(tmp_path / name)]

    whole, killed = tmp_path / "whole-mini", tmp_path / "killed-mini"
    unbroken = forked.start(main, command("whole"))
    process, _ = forked.start(main, command("killed"))
    while not within_a_task(killed):
        assert process.exitcode is None
        time.sleep(0.01)
    forked.kill(process)
    assert process.exitcode == -signal.SIGKILL
    forked.finish(*forked.start(main, command("killed")))
    forked.finish(*unbroken)
    assert records(killed) == records(whole)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in killed.iterdir()) and "state.pth" not in names
    for name in names:
        if name.endswith(".pth"):
            assert same_weights(killed / name, whole / name), name
        elif name.endswith((".csv", ".memory.json")):
            assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_world: list[str], tmp_path: Path) -> None:
    long = ["--train-dataset", "MNIST", *LENGTH, "--iterations", "2000", *ZSCL, *ON_CAPTIONS, "--save-interval", "1000"]
    process, stream = forked.start(main, [*long, *tiny_world, "--save", str(tmp_path)])
    assert any(line.startswith("MNIST: step 0") for line in stream)
    os.kill(process.pid, signal.SIGINT)
    said = stream.read()
    process.join()
    assert process.exitcode == 130
    assert "Stopped in MNIST after step" in said and "goes on from there" in said and "Traceback" not in said
    state = torch.load(tmp_path / "MNIST.state.pth", weights_only=True)
    held = {"parameters", "optimizer", "average", "teacher", "log"}
    assert state["stage"] == "MNIST" and set(state["state"]) == held
