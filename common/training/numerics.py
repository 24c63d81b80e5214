"""Autocast, compiled blocks and recomputed activations of models; float32 for a method's algebra."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from common.clip.model import ResidualAttentionBlock
from common.machine import Machine

RECOMPILE_LIMIT = 64  # variants of a block: batch sizes, with and without gradient, one a LoRA branch; torch's is 8


def prepare(machine: Machine, *models: nn.Module) -> None:
    """Give models, in place, the machine's autocast and recomputed activations and, with --compile, compiled blocks.

    The first two are set on modules with attributes `autocast` and `checkpoint_activations`. State dicts keep their
    keys. Of blocks that are run through functions (with prompts, and timm's last one), and of a paper's that derive
    from CLIP's and may count or draw, what is compiled is the MLP, and the attention where it is called as a module.
    """
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    if machine.compile:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for module in (module for model in models for module in model.modules()):
        for name in ("autocast", "checkpoint_activations"):
            if hasattr(module, name):
                setattr(module, name, getattr(machine, name))
        if isinstance(module, TimmViT):
            module.set_grad_checkpointing(machine.checkpoint_activations)
        if machine.compile and isinstance(module, ResidualAttentionBlock | Block):
            parts = [module.attn, module.mlp]
            for part in [*parts, module] if type(module) in (ResidualAttentionBlock, Block) else parts:
                part.compile()


@contextmanager
def full_precision() -> Iterator[None]:
    """Context without autocast and TF32: float32 computes in float32 whatever the run's precision."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        with torch.autocast("cuda" if torch.is_autocast_enabled("cuda") else "cpu", enabled=False):
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
