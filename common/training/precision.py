"""How a run computes, chosen once where its device is picked: rounding, compiled blocks, activations kept or not.

    fp32  float32 everywhere; what the papers' numbers are compared in, and the default
    tf32  float32 whose products on a GPU round their factors to TF32's 10 bits
    bf16  towers under autocast to bfloat16; weights, gradients, losses and the methods' own algebra stay float32

Only fp32 leaves every number where it was, so another precision is part of a run's settings and of its method's name.
Like torch's own flags the choice holds for the process, and every entry point makes it anew.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Choice:
    """device: its type, cpu or cuda. The others as RunOptions of common.machine describes them."""

    precision: str = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    tensorboard: bool = False
    device: str = "cpu"


_choice = Choice()


def chosen() -> Choice:
    return _choice


def choose(options: Any, device: torch.device) -> None:
    """Make the choice of an entry point's options, which have Choice's fields, for this process.

    A precision that is none of PRECISIONS is the paper's own affair (ALTA's fp16, in halved weights) and fp32 here.
    Raises UserError for bf16 on a GPU without it, and for TensorBoard where it is not installed.
    """
    global _choice
    precision = options.precision if options.precision in PRECISIONS else "fp32"
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("precision bf16: this GPU cannot compute in bfloat16. Take fp32, or tf32 where it can.")
    if options.tensorboard and find_spec("tensorboard") is None:
        raise UserError("tensorboard: the package is not installed. Install it: pip install tensorboard")
    if precision == "tf32" and device.type != "cuda":
        print(f"note: precision tf32 has no effect on a {device.type}: it computes in float32")
    if device.type == "cuda":
        _allow_tf32(precision == "tf32")
    compiles = options.compile and _compiler_works(device)
    _choice = Choice(precision, compiles, options.checkpoint_activations, options.tensorboard, device.type)


def _compiler_works(device: torch.device) -> bool:
    """Whether torch.compile does here, tried on two numbers; otherwise one message says why not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, Triton or Python header each raises something else
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"note: blocks are not compiled, torch.compile has no working compiler here ({reason[:200]})")
        return False
    return True


# What a run's folder says of it


def deciding_settings() -> dict[str, str]:
    """What joins a run's settings; nothing for fp32, with which runs began before there was a choice."""
    return {} if _choice.precision == "fp32" else {"precision": _choice.precision}


def label() -> str:
    """What joins a method's name in the records, so that no such run stands for one in fp32: "", " (bf16)"."""
    return "" if _choice.precision == "fp32" else f" ({_choice.precision})"


def provenance() -> dict[str, Any]:
    """What joins a run's provenance: it decides no number beyond rounding."""
    return {"compile": _choice.compile, "checkpoint_activations": _choice.checkpoint_activations}


# Where it acts


def tower(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A part of a tower's forward pass: with bf16 under autocast, its result handed on in float32."""

    @functools.wraps(forward)
    def in_precision(*args: Any, **kwargs: Any) -> Tensor:
        if _choice.precision != "bf16":
            return forward(*args, **kwargs)
        with torch.autocast(_choice.device, torch.bfloat16):
            return forward(*args, **kwargs).float()

    return in_precision


@contextmanager
def full_precision() -> Iterator[None]:
    """Where a method's own algebra stands: float32 whatever the precision, no autocast and no TF32."""
    if _choice.precision == "fp32":
        yield
        return
    with torch.autocast(_choice.device, enabled=False):
        allowed = _allow_tf32(False)
        try:
            yield
        finally:
            _allow_tf32(allowed)


def _allow_tf32(allowed: bool) -> bool:
    """Let products and convolutions on a GPU round to TF32 or not; what was allowed before."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    return before


def run_block(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs), of which with --checkpoint-activations only the inputs are kept for the backward pass.

    It runs the block again: the same gradients. Blocks that draw random numbers or count would do so twice.
    """
    if _choice.checkpoint_activations and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
