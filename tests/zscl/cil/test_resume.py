"""Stopped anywhere and started again with the same command, a class-incremental run ends with the same bits."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.zscl.cil.runs import cifar
from zscl.cil.__main__ import main

TIMES = ("train_seconds", "peak_memory_mib")  # measured, not computed
RUNS = {
    "ZSCL": ("cifar100_10-10-ZSCL", "avg_freq=2", "l2=0.001"),
    "iCaRL": ("cifar100_10-10-iCaRL", "memory_size=30"),
    "aliased": ("cifar100_10-10-iCaRL", "memory_size=30", "teacher=aliased", "icarl_compat=true"),
    "ext": ("cifar100_2-2_new",),
}


def results(folder: Path) -> dict[str, object]:
    """All that a run leaves but times: records, files, weights."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    keys = ("dataset", "after_task", "metric", "value")
    left: dict[str, object] = {
        "records": sorted(tuple(line[key] for key in keys) for line in lines if line["metric"] not in TIMES)
    }
    for path in folder.glob("*"):
        if path.name in ("metrics.json", "accuracy.csv") or path.name.endswith(".memory.json"):
            left[path.name] = path.read_bytes()
    return left


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("task_*.pth"))
    found = {file.name: torch.load(file, weights_only=True)["state_dict"] for file in files}
    return {f"{file}/{key}": tensor for file, state in found.items() for key, tensor in state.items()}


def assert_same(one: Path, other: Path) -> None:
    assert results(one) == results(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and len({key.split("/")[0] for key in first}) == 3
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not [path.name for path in other.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", RUNS)
def test_stopped_within_every_task(
    cil_world: list[str], tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    config, *words = RUNS[name]
    words += ["initial_increment=40", "increment=30", "batch_size=12", "lr=1e-3", "save_interval=0"]
    main(cifar(cil_world, tmp_path / "whole", config, *words))
    calls = []

    def stop_at_times(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        calls.append(optimizer)
        if len(calls) in (3, 12, 15, 22):  # in the first task, twice in the second, in the third
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(stop_at_times)
    request.addfinalizer(handle.remove)
    stops = 0
    while True:
        try:
            main(cifar(cil_world, tmp_path / "stopped", config, *words))
            break
        except SystemExit as left:
            assert left.code == 130
            stops += 1
    assert stops == 4
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_kept_features_that_were_changed_are_computed_anew(
    cil_world: list[str], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    words = ["avg_freq=2", "initial_increment=40", "increment=30", "batch_size=12", "lr=1e-3"]
    main(cifar(cil_world, tmp_path / "whole", "cifar100_10-10-ZSCL", *words))
    calls = []

    def stop_once(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        calls.append(optimizer)
        if len(calls) == 12:  # at the start of the second task
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(stop_once)
    request.addfinalizer(handle.remove)
    again = cifar(cil_world, tmp_path / "stopped", "cifar100_10-10-ZSCL", *words)
    with pytest.raises(SystemExit):
        main(again)
    assert (tmp_path / "stopped" / "task_0.pth").exists() and not (tmp_path / "stopped" / "task_1.pth").exists()
    (tmp_path / "stopped" / "state.pth").unlink()
    path = tmp_path / "stopped" / "reference_features.pth"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"features": content["features"].roll(1, 0)}, path)
    main(again)
    assert f"note: the features kept in {path} are " in capsys.readouterr().out
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_ctrl_c_saves_and_says_how_to_go_on(cil_world: list[str], tmp_path: Path) -> None:
    words = ["epochs=500", "save_interval=0"]
    arguments = cifar(cil_world, tmp_path / "run", "cifar100_10-10-finetune", *words)
    process = subprocess.Popen(
        [sys.executable, "-m", "zscl.cil", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (tmp_path / "run" / "state.pth").exists():  # until it trains
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 130
    assert "Stopped in train/task 0 after step" in said and "goes on from there" in said and "Traceback" not in said
