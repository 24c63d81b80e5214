"""Several processes on one batch: `torchrun --nproc-per-node 2 -m inflora.main ...` gives one process's numbers.

Every process holds the whole model. Of a batch it loads and encodes its local rows (`local_rows`), gathers everybody's
results with their gradients (`all_gather_rows`), and from there on computes the same loss over the same whole batch.
DistributedDataParallel (`parallel`) averages gradients over the processes. The backward pass of `all_gather_rows`
multiplies the gradient of the local rows by the number of processes, so that the average is the sum over all rows for
parameters used row by row, and unchanged for parameters that every process uses on the whole batch. Random numbers are
drawn for the whole batch in every process, which takes its rows of them. The first process writes files. In a single
process all of this does nothing.
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

TIMEOUT = timedelta(hours=2)  # the others wait while the first process writes or decodes


def join(name: str) -> str:
    """Under torchrun, initialise the process group and silence all processes but the first; this process's device.

    name: auto, cuda (one GPU a process) or cpu. Raises UserError for another device, and for fewer GPUs than processes.
    In a single process returns `name` itself.
    """
    if world_size() == 1:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"--device {name}: of several processes each has a device of its own; say auto, cuda or cpu.")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    local = int(os.environ["LOCAL_RANK"])
    if os.environ.get("SLURM_LOCALID") == str(local) and torch.cuda.device_count() == 1:
        local = 0  # started by srun with --gpus-per-task=1, which shows each process a GPU of its own alone
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}. Give torchrun as many "
            "processes as GPUs, or say --device cpu."
        )
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)  # its threads must end before the interpreter does
        if not is_main_process():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return f"cuda:{local}" if cuda else "cpu"


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes return the same."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, dist.ReduceOp.MAX)  # on the CPU: no synchronisation with a GPU
    return bool(raised)


# Rows of a batch


def local_rows(count: int, process: int | None = None) -> slice:
    """This process's block of `count` rows, or that of rank `process`; the sizes differ by one at most."""
    process = rank() if process is None else process
    return slice(count * process // world_size(), count * (process + 1) // world_size())


class _Gather(torch.autograd.Function):
    """Gathers the rows of all processes; backwards the local rows' gradient, times the number of processes."""

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
    """Calls a function of a model inside `forward`, where DistributedDataParallel expects the computation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(self.model, *inputs)


def parallel(model: nn.Module, unused: bool = False) -> Callable[..., Any]:
    """`call(function, *inputs)` returns function(model, *inputs); its backward pass averages gradients over processes.

    Call it again when other parameters are to be trained. unused: a call may leave trained parameters unused.
    """
    if world_size() == 1:
        return lambda function, *inputs: function(model, *inputs)
    with warnings.catch_warnings():
        # older versions of torch lack its successor
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(_Call(model), broadcast_buffers=False, find_unused_parameters=unused)
