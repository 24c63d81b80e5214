"""Which card a process computes on and how, as far as it can be seen without one; what a task took, as record lines."""

import os
from collections.abc import Iterator

import pytest
import torch

from common.errors import UserError
from common.machine import RunOptions, choose_machine
from common.training.device import cost_records, pick_device


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A machine with two cards; the list of those that were made the current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set in the test goes with it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    # torch's function besides imports the compiler, for seconds
    monkeypatch.setattr(torch, "use_deterministic_algorithms", torch._C._set_deterministic_algorithms)
    cuda = torch.backends.cuda
    kernels = {cuda.enable_flash_sdp: cuda.flash_sdp_enabled(), cuda.enable_cudnn_sdp: cuda.cudnn_sdp_enabled()}
    kernels |= {cuda.enable_mem_efficient_sdp: cuda.mem_efficient_sdp_enabled()}
    tf32 = cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield chosen
    cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch._C._set_deterministic_algorithms(False)
    for enable, before in kernels.items():
        enable(before)


def test_the_chosen_card_is_the_current_one(cards: list[int]) -> None:
    assert [str(pick_device(name)) for name in ("cuda:1", "cuda")] == ["cuda:1", "cuda"] and cards == [1, 0]
    with pytest.raises(UserError, match="this machine has 2 CUDA devices"):
        pick_device("cuda:2")


def test_a_process_of_srun_takes_the_one_card_that_it_sees(cards: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With --gpus-per-task=1; two processes that torchrun started on a machine of one card are refused."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert str(pick_device("cuda")) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert str(pick_device("cuda")) == "cuda:0" and cards == [1, 0]
    monkeypatch.setenv("SLURM_LOCALID", "0")
    with pytest.raises(UserError, match="process 1 of this machine has no GPU: there are 1"):
        pick_device("cuda")


def test_deterministic_kernels_on_a_card_alone(cards: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    def computes() -> list[bool]:
        cuda = torch.backends.cuda
        attention = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()]
        return [torch.are_deterministic_algorithms_enabled(), *attention]

    plain = [False, True, True, True]
    choose_machine(RunOptions("cpu", workers=3, deterministic=True))
    choose_machine(RunOptions("cuda", workers=0))
    assert computes() == plain
    machine = choose_machine(RunOptions("cuda", workers=0, precision="tf32", deterministic=True))
    assert computes() == [not flag for flag in plain] and machine.provenance["deterministic"]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # without it torch refuses every product
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device: cpu, ") and lines[0].endswith("; precision: fp32; loader processes: 3")
    assert lines[2] == "device: cuda (a card); precision: tf32; loader processes: 0"


def test_cost_records() -> None:
    block = torch.ones(2**24)  # 64 MiB, touched
    seconds, memory = cost_records("DTD", 4, 12.5, block.device)
    about = {"dataset": "DTD", "after_task": 4, "seconds": 12.5}
    assert seconds == about | {"metric": "train_seconds", "value": 12.5}
    assert memory == about | {"metric": "peak_memory_mib", "value": memory["value"]}
    assert 64 < memory["value"] < 2**20
