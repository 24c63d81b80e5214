"""Device, worker processes and seeds of a run."""

import os
import random
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import metric_lines
from common.training.distributed import join


def pick_device(name: str = "auto", threads: int | None = None) -> torch.device:
    """The device of a name: 'auto' (CUDA if available), 'cpu', 'cuda', 'cuda:1', ...

    `threads`: number of CPU threads for torch, its default when None. Under torchrun each process gets a device of its
    own. Raises UserError for a device that this machine lacks.
    """
    name = join(name)
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads {threads}: give 1 or more.")
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device. Use auto, cpu, cuda or cuda:<index>.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported. Use auto, cpu, cuda or cuda:<index>.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices. Use --device cpu or auto."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # or a loader's pinning thread would open a context on card 0
        # float32 means float32: by default torch lets convolutions round to TF32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. The host does not wait for a copy to a GPU, which reads from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def device_name(device: torch.device) -> str:
    """A device as a reader knows it: 'cpu, 2 threads' or 'cuda:0 (NVIDIA ...)'."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads"


def automatic_workers(most: int = 16) -> int:
    """Default number of loader processes: one a usable core, at most `most` (the originals' 16), 0 for two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(most, cores)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and CUDA), and ask cuDNN for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def compute_deterministically() -> None:
    """Let a GPU give the same bits each time: deterministic kernels, attention by plain products; both are slower."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB so far: allocated on a CUDA device, resident in the process on a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource  # only Unix has it

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def cost_records(dataset: str, after_task: int, seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """Record lines of the cost of learning a task: its seconds, and the process's peak memory so far."""
    costs = {"train_seconds": seconds, "peak_memory_mib": peak_memory_mib(device)}
    return metric_lines(dataset, after_task, costs, seconds)
