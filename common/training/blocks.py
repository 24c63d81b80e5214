"""Compiled transformer blocks (--compile) and, for timm's ViT, whose loop over blocks is its own, fewer activations."""

import torch
from torch import nn

from common.clip.model import ResidualAttentionBlock
from common.training.precision import chosen

VARIANTS = 64  # of a block's code: batch sizes, with and without gradient, one a LoRA branch; torch's limit is 8


def prepare(*models: nn.Module) -> None:
    """Do to the models' blocks, in place, what the process has chosen; state dicts keep their keys.

    A paper's block that derives from CLIP's, and may count or draw, has its attention and MLP compiled alone. Blocks
    that run through functions (those with prompts in VQ-Prompt and IT-Prompt) run as they are.
    """
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    modules = [module for model in models for module in model.modules()]
    for vit in modules:
        if isinstance(vit, TimmViT):
            vit.set_grad_checkpointing(chosen().checkpoint_activations)
    if not chosen().compile:
        return
    torch._dynamo.config.recompile_limit = VARIANTS
    for block in modules:
        if type(block) in (ResidualAttentionBlock, Block):
            block.compile()
        elif isinstance(block, ResidualAttentionBlock):
            block.attn.compile()
            block.mlp.compile()
