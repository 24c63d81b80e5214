"""SIGKILL within tasks: started again with the same command, a run ends with the same bits."""

import json
import os
import random
import signal
import time
from pathlib import Path

import torch

from moe_adapters.main import main
from tests import forked
from tests.moe_adapters.conftest import SEQUENCE

TIMES = ("train_seconds", "peak_memory_mib")  # measured, not computed


def records(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return [
        (line["dataset"], line["after_task"], line["metric"], line["value"])
        for line in lines
        if line["metric"] not in TIMES
    ]


def test_a_mini_run_killed_twice_equals_an_unbroken_one(tmp_path: Path) -> None:
    mini = ["--scale", "mini", "--iterations", "15", "--chooser-iterations", "20,20", "--save-interval", "0"]
    mini += ["--eval-datasets", "DTD,MNIST"]
    commands = {name: [*SEQUENCE, *mini, "--save", str(tmp_path / f"{name}-mini")] for name in ("whole", "killed")}
    unbroken = forked.start(main, commands["whole"])
    moments = random.Random(0)
    for stage in ("adapters/MNIST", "adapters/EuroSAT"):
        process, stream = forked.start(main, commands["killed"])
        assert any(line.startswith(f"{stage}: step 0") for line in stream)
        time.sleep(moments.uniform(0, 0.5))
        forked.kill(process)
    forked.finish(*forked.start(main, commands["killed"]))
    forked.finish(*unbroken)
    assert records(tmp_path / "killed-mini") == records(tmp_path / "whole-mini")
    names = sorted(path.name for path in (tmp_path / "whole-mini").glob("*.pth"))
    assert names == sorted(path.name for path in (tmp_path / "killed-mini").glob("*.pth")) and len(names) == 7
    for name in names:
        one, other = (
            torch.load(tmp_path / f"{run}-mini" / name, weights_only=True)["state_dict"] for run in ("whole", "killed")
        )
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for name in ("accuracy.csv", "ddas_confusion.csv", "frozen_list", "DTD.json"):
        assert (tmp_path / "killed-mini" / name).read_bytes() == (tmp_path / "whole-mini" / name).read_bytes()
    assert not list((tmp_path / "killed-mini").glob(".*"))


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_world: list[str], tmp_path: Path) -> None:
    long = ["--iterations", "2000", "--chooser-iterations", "1,1", "--save-interval", "1000"]
    process, stream = forked.start(main, [*SEQUENCE, *tiny_world, *long, "--save", str(tmp_path / "run")])
    assert any(line.startswith("adapters/MNIST: step 0") for line in stream)
    os.kill(process.pid, signal.SIGINT)
    said = stream.read()
    process.join()
    assert process.exitcode == 130
    assert "Stopped in adapters/MNIST after step" in said and "goes on from there" in said and "Traceback" not in said
    assert torch.load(tmp_path / "run" / "state.pth", weights_only=True)["stage"] == "adapters/MNIST"
