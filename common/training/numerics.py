"""How models compute: autocast, compiled blocks, recomputed activations; and float32 for a method's own algebra."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.clip.model import ResidualAttentionBlock
from common.machine import Machine

VARIANTS = 64  # of a block's code: batch sizes, with and without gradient, one a LoRA branch; torch's limit is 8


def prepare(machine: Machine, *models: nn.Module) -> None:
    """Give models, in place, the machine's autocast and recomputed activations and, with --compile, compiled blocks.

    A module takes the former two where it has attributes of these names. State dicts keep their keys. A paper's block
    that derives from CLIP's, and may count or draw, has its attention and MLP compiled alone. Blocks that run through
    functions (those with prompts in VQ-Prompt and IT-Prompt) run as they are.
    """
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    if machine.compile:
        torch._dynamo.config.recompile_limit = VARIANTS
    for module in (module for model in models for module in model.modules()):
        for name in ("autocast", "checkpoint_activations"):
            if hasattr(module, name):
                setattr(module, name, getattr(machine, name))
        if isinstance(module, TimmViT):
            module.set_grad_checkpointing(machine.checkpoint_activations)
        if machine.compile and type(module) in (ResidualAttentionBlock, Block):
            module.compile()
        elif machine.compile and isinstance(module, ResidualAttentionBlock):
            module.attn.compile()
            module.mlp.compile()


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32 inside, whatever the models around it compute in: no autocast and no TF32."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        with torch.autocast("cuda" if torch.is_autocast_enabled("cuda") else "cpu", enabled=False):
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def run_block(recompute: bool, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs), of which with `recompute` only the inputs are kept: the backward pass runs the block again.

    The gradients are the same. Blocks that draw random numbers or count would do so twice.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
