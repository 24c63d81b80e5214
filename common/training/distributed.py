"""Several processes on one batch: `torchrun --nproc-per-node 2 -m inflora.main ...` gives one process's numbers.

Every process holds the whole model. Of a batch it loads and encodes its local rows (`local_rows`), gathers everybody's
results with their gradients (`all_gather_rows`), and from there on computes the same loss over the same whole batch.
DistributedDataParallel (`parallel`) averages gradients over the processes; `all_gather_rows` hands back the gradient of
the local rows times the number of processes, so that the average is the sum over all rows for what was computed row by
row, and what it was for what every process computed alike. Random numbers are drawn for the whole batch in every
process, which takes its rows of them. The first process writes. In a single process all of this does nothing.
"""

import atexit
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from common.processes import is_main_process, rank, world_size

PATIENCE = timedelta(hours=2)  # the first process may write, or decode what the others know already


def join(name: str) -> str:
    """Under torchrun, meet the other processes; the name of this one's device. All but the first fall silent.

    name: auto, cuda (one GPU a process) or cpu. Raises UserError for a single GPU, and for fewer GPUs than processes.
    """
    if world_size() == 1:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"--device {name}: of several processes each has a device of its own; say auto, cuda or cpu.")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}. Give torchrun as many "
            "processes as GPUs, or say --device cpu."
        )
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # its threads must end before the interpreter does
        if cuda:
            torch.cuda.set_device(local)
        if not is_main_process():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return f"cuda:{local}" if cuda else "cpu"


def barrier() -> None:
    """Go on when every process is here."""
    if dist.is_initialized():
        any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all of them, so that they go the same way."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, dist.ReduceOp.MAX)  # on the CPU: no synchronisation with a GPU
    return bool(raised)


# Rows of a batch


def local_rows(count: int, process: int | None = None) -> slice:
    """Block of `count` rows that is this process's, or that one's; all blocks are as even as can be."""
    process = rank() if process is None else process
    return slice(count * process // world_size(), count * (process + 1) // world_size())


class _Gather(torch.autograd.Function):
    """All processes' rows from each one's; backwards the local rows' gradient, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, count: int) -> Tensor:
        ctx.rows = local_rows(count)
        parts = [local_rows(count, process) for process in range(world_size())]
        longest = max(part.stop - part.start for part in parts)
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        gathered = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[: part.stop - part.start] for rows, part in zip(gathered, parts)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return world_size() * gradient[ctx.rows], None


def all_gather_rows(local: Tensor, count: int | None) -> Tensor:
    """Rows of all processes (count, ...) from this one's, `local_rows(count)` of them; differentiable.

    count None: the local rows are all there is.
    """
    return local if world_size() == 1 or count is None else _Gather.apply(local, count)


def draw_whole(draw: Callable[[Tensor], Tensor], local: Tensor, count: int | None) -> Tensor:
    """Local rows of draw(ones), drawn for all `count` rows of a batch; count None: the local rows are all there is."""
    shape = local.shape if count is None else (count, *local.shape[1:])
    drawn = draw(local.new_ones(shape))
    return drawn if count is None else drawn[local_rows(count)]


def sum_over_processes(total: Tensor) -> Tensor:
    """Sum over all rows from the sums over the local ones, in place; no gradient."""
    if world_size() > 1:
        dist.all_reduce(total)
    return total


# Training


class _Call(nn.Module):
    """A model and whatever function of it computes the loss, for DistributedDataParallel to stand around."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(self.model, *inputs)


def parallel(model: nn.Module, unused: bool = False) -> Callable[..., Any]:
    """`call(function, *inputs)` is function(model, *inputs), whose backward pass averages gradients over processes.

    To be made anew when other parameters are trained. unused: not every call reaches every trained parameter.
    """
    if world_size() == 1:
        return lambda function, *inputs: function(model, *inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # its heir is too new
        return DistributedDataParallel(_Call(model), broadcast_buffers=False, find_unused_parameters=unused)
