"""MoE-Adapters on class-incremental learning: two experts and one router a block, shared by all tasks.

The loop is MTIL's (`training.py`) under other settings (upstream cil/continual_clip/models.py:L23-L135, section 4.2 of
arXiv 2403.11549): no expert is ever frozen, no DDAS, no zero-shot branch. Both experts see every sample, so the router
only weighs them.
"""

import torch
from torch import Tensor

from common.clip.model import CLIP
from moe_adapters.adapters import image_blocks, insert_adapters, text_blocks, use_router
from moe_adapters.ddas import BatchStream, Steps
from moe_adapters.training import TrainingOptions, clip_logits, train_adapters

EXPERTS, TOPK, BOTTLENECK = 2, 2, 64  # literals upstream (cil/clip/model.py:L289-L292)
ROUTER = 0  # the one that all tasks share
WARMUP = 30  # steps; a task of fewer never leaves the warm-up


def with_shared_router(model: CLIP) -> CLIP:
    """Insert two experts and one router into every block of both encoders, in place. Returns the model.

    Its state dict has the official keys, which here lack the unused ln_3 of MTIL's.
    """
    insert_adapters(model, EXPERTS, TOPK, BOTTLENECK, routers=1)
    for block in image_blocks(model) + text_blocks(model):
        del block.ln_3
    return model


def learn_task(
    model: CLIP, tokens: Tensor, batches: BatchStream, options: TrainingOptions, stage: str, steps: Steps
) -> None:
    """Train experts and router, in place, on one task: cross-entropy over the task's own classes.

    tokens (C, L): the prompt of every class of the task, cut behind the longest. The labels of `batches` are positions
    among these. One epoch is `options.iterations` steps, and one more is taken on the first batch of another.
    """
    train_adapters(model, ROUTER, set(), tokens, batches, options, stage, steps)


@torch.no_grad()
def predict(model: CLIP, images: Tensor, tokens: Tensor, noise: bool) -> Tensor:
    """Logits (B, C) of normalised images (B, 3, R, R) on the prompts (C, L) of all classes seen.

    Upstream the gate noise stays on in evaluation, and every batch encodes the prompts anew, under noise of its own.
    """
    use_router(model, ROUTER, noise=noise)
    return clip_logits(model, images, tokens, image_first=True)
