"""SIGKILL within tasks: started again with the same command, a class-incremental run ends with the same bits."""

import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from moe_adapters.cil import main
from tests import forked
from tests.moe_adapters.test_cil import TEN_TASKS, numbers

KILLED_AFTER = ("task 0: step 0", "task 2: step 0")  # what the process has just told
SHORT = ["initial_increment=16", "increment=12", "epochs=1", "batch_size=32", "save_interval=0"]


def command(folder: Path) -> list[str]:
    return [*TEN_TASKS, "--scale", "mini", *SHORT, f"save={folder}"]


def killed_after(folder: Path, line: str, moment: float) -> None:
    process, stream = forked.start(main, command(folder))
    assert any(told.startswith(line) for told in stream), f"never told {line!r}"
    time.sleep(moment)
    forked.kill(process)


def test_a_mini_run_killed_within_tasks_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole-mini", tmp_path / "killed-mini"
    words, moments = [sys.executable, "-m", "moe_adapters.cil", *command(whole)], random.Random(0)
    unbroken = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in KILLED_AFTER:
        killed_after(killed, line, moments.uniform(0, 0.5))
    said = forked.finish(*forked.start(main, command(killed)))
    assert unbroken.wait() == 0, unbroken.stdout.read()
    assert "task 0: step 0" not in said and "task 2 (3 of 3)" in said
    assert numbers(killed) == numbers(whole)
    for task in range(3):
        one, other = (torch.load(run / f"task_{task}.pth", weights_only=True)["state_dict"] for run in (whole, killed))
        assert all(torch.equal(one[key], other[key]) for key in one)
    for name in ("metrics.json", "accuracy.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not list(killed.glob(".*")) and not (killed / "state.pth").exists()
