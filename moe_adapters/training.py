"""Training one task's adapters (upstream mtil/src/models/finetune.py:L83-L220)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.clip.model import CLIP
from common.errors import UserError
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel, world_size
from common.training.schedules import cosine_with_warmup, set_lr
from moe_adapters.adapters import (
    MoEBlock,
    count_choices,
    drop_unchosen_gradients,
    image_blocks,
    text_blocks,
    trainable_parameters,
    use_router,
)


@dataclass(frozen=True)
class TrainingOptions:
    """What the command line decides of a task's training; the defaults are the originals'."""

    lr: float = 1e-3
    iterations: int = 1000
    warmup: int = 100
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    beta2: float = 0.999
    router_noise: bool = True
    image_first: bool = False  # which encoder draws its noise first: MTIL's loop runs the text's, CIL's the image's
    balance_loss_weight: float = 0.0
    loss_interval: int = 1000
    schedule: Callable[..., float] = cosine_with_warmup  # of the step, the rate, warmup and total


def train_adapters(
    model: CLIP,
    task_id: int,
    frozen: set[str],
    tokens: Tensor,
    batches: BatchStream,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
) -> Tensor:
    """Train the router of `task_id` and the experts that are not frozen, in place, on one data set.

    tokens (C, L): the training prompt of every class. The loop takes iterations + 1 optimiser steps, as the original
    (the last with rate 0). Returns the choose map (blocks, E), image blocks first: how often each expert was chosen
    in this training, with the gate noise on.
    """
    parameters = trainable_parameters(model, task_id, frozen)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=options.lr, betas=(0.9, options.beta2), weight_decay=options.weight_decay, fused=True
    )
    use_router(model, task_id, noise=options.router_noise, keep_balance=options.balance_loss_weight > 0)
    count_choices(model)  # starts the counts at zero
    choose_map = torch.zeros(len(moe_blocks(model)), moe_blocks(model)[0].choices.numel())
    state = {"parameters": Tensors(parameters), "optimizer": optimizer, "choose_map": Tensors({"counts": choose_map})}
    losses = torch.full((options.iterations + 1,), torch.nan, device=model.logit_scale.device)
    state |= {"log": Tensors({"loss": losses})}
    if options.balance_loss_weight and world_size() > 1:
        raise UserError("--balance_loss_weight needs the whole batch in one process. Run it without torchrun.")
    call = parallel(model)
    model.train()
    for step in steps(stage, options.iterations + 1, state):
        set_lr(optimizer, options.schedule(step, options.lr, warmup=options.warmup, total=options.iterations))
        images, labels = batches[step]
        logits = call(clip_logits, images, tokens, options.image_first, len(labels))
        loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        if options.balance_loss_weight:
            loss = loss + options.balance_loss_weight * sum(block.balance for block in moe_blocks(model))
        losses[step] = loss.detach()
        optimizer.zero_grad()
        counts = count_choices(model)  # before the backward pass, whose end on the device the host need not await
        loss.backward()
        drop_unchosen_gradients(model, counts)
        optimizer.step()
        choose_map += counts
        if step % options.loss_interval == 0:
            tqdm.write(f"{stage}: step {step}, loss {loss.item():.4f}")
    model.eval()
    share_batches(model, None)
    return choose_map


def share_batches(model: CLIP, batch_size: int | None) -> None:
    """Tell the image blocks of how many images theirs are a part; None: they see all."""
    for block in image_blocks(model):
        block.batch_size = batch_size


def clip_logits(model: CLIP, images: Tensor, tokens: Tensor, image_first: bool, batch_size: int) -> Tensor:
    """Logits (B, C) of all images on prompts (C, L), cut behind the longest; all encoded at every call.

    images (b, 3, R, R): this process's of the batch of B = batch_size.
    """
    share_batches(model, batch_size if world_size() > 1 else None)
    encoders = {
        "text": lambda: F.normalize(model.encode_text(tokens, cut=False), dim=-1),
        "image": lambda: all_gather_rows(F.normalize(model.encode_image(images), dim=-1), batch_size),
    }
    features = {name: encoders[name]() for name in (("image", "text") if image_first else ("text", "image"))}
    return model.logit_scale.exp() * features["image"] @ features["text"].t()


def moe_blocks(model: CLIP) -> list[MoEBlock]:
    """All MoE blocks, image tower first: the order of the choose map's rows."""
    return image_blocks(model) + text_blocks(model)
