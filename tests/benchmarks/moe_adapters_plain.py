"""MoE-Adapters the plain way, as the official code goes about it: what the fast paths are held against."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP
from common.datasets.transforms import clip_normalise
from common.evaluation.zero_shot import accuracy, zeroshot_logits, zeroshot_weights
from moe_adapters.adapters import ADAPTER_SCALE, ORIGINAL_CLIP, use_router
from moe_adapters.ddas import AutoEncoder, chooser_input, select_task
from moe_adapters.evaluation import Cell, Checkpoint


def loop_over_experts(h: Tensor, chosen: Tensor, gates: Tensor, experts: nn.ModuleList, dropout: nn.Module) -> Tensor:
    """`mixture_of_experts` by dispatch: every expert is called, on the samples that chose it (none at times).

    Upstream mtil/clip/model.py:L495-L509. `nonzero` waits for the device once an expert.
    """
    combined = torch.zeros_like(h).float()
    for index, expert in enumerate(experts):
        samples, place = (chosen == index).nonzero(as_tuple=True)
        out = ADAPTER_SCALE * expert.up_proj(dropout(F.relu(expert.down_proj(h[samples]))))
        combined = combined.index_add(0, samples, (gates[samples, place, None, None] * out).float())
    return combined.to(h.dtype)


@torch.no_grad()
def full_class_vectors(model: CLIP, tokens: Tensor) -> Tensor:
    """Class weights (D, C) from prompts (C, T, context), a call a class, every token column."""
    return zeroshot_weights(torch.stack([model.encode_text(prompts, cut=False) for prompts in tokens]))


@torch.no_grad()
def evaluate_cell(
    model: CLIP,
    checkpoint: Checkpoint,
    test: tuple[Tensor, Tensor, Tensor],
    extractor: nn.Module,
    autoencoders: list[AutoEncoder],
    routers: int,
    threshold: float,
    batch_size: int,
) -> Cell:
    """One checkpoint on one data set (pixels, labels, tokens), nothing kept from any other cell.

    Class vectors of the original CLIP and of every router; each batch's errors under every autoencoder; then the
    batch through the router they choose (upstream mtil/src/models/evaluation.py:L20-L84).
    """
    pixels, labels, tokens = test
    model.load_state_dict(checkpoint.adapters, strict=False)
    vectors = {}
    for task_id in range(ORIGINAL_CLIP, routers):
        use_router(model, task_id)
        vectors[task_id] = full_class_vectors(model, tokens)
    logits, routed = [], {}
    for batch in pixels.split(batch_size):
        images = clip_normalise(batch.to(tokens.device))
        features = chooser_input(extractor, images)
        errors = torch.stack([F.mse_loss(autoencoders[i](features), features) for i in checkpoint.autoencoders])
        task_id = select_task(errors, threshold)
        use_router(model, task_id)
        logits.append(zeroshot_logits(model.encode_image(images), vectors[task_id]))
        routed[task_id] = routed.get(task_id, 0) + len(batch)
    return Cell(checkpoint.task_id, *accuracy(torch.cat(logits), labels), dict(sorted(routed.items())))
