"""Training one task's adapters (upstream mtil/src/models/finetune.py:L83-L220)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.clip.model import CLIP
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel, world_size
from common.training.options import TrainingOptions as SharedOptions
from common.training.schedules import set_lr
from moe_adapters.adapters import (
    count_choices,
    drop_unchosen_gradients,
    image_blocks,
    moe_blocks,
    trainable_parameters,
    use_router,
)


@dataclass(frozen=True)
class TrainingOptions(SharedOptions):
    """What the command line decides of a task's training; the defaults are the originals'."""

    router_noise: bool = True
    image_first: bool = False  # which encoder draws its noise first: MTIL's loop runs the text's, CIL's the image's
    balance_loss_weight: float = 0.0  # needs the whole batch in one process


def train_task(
    model: CLIP,
    task_id: int,
    frozen: set[str],
    tokens: Tensor,
    batches: BatchStream,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
) -> dict[str, Tensor]:
    """Train the router of `task_id` and all experts but the parameters named in `frozen`, in place, on one data set.

    tokens (C, L): the training prompt of every class. The loop takes iterations + 1 optimiser steps, as the original;
    the last has rate 0.

    Returns `loss` (iterations + 1,) by step, and `choose_map` (blocks, E), image blocks first: to how many samples the
    routers gave each expert in all of these steps, under the gate noise.
    """
    parameters = trainable_parameters(model, task_id, frozen)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=options.lr, betas=(0.9, options.beta2), weight_decay=options.weight_decay, fused=True
    )
    use_router(model, task_id, noise=options.router_noise, keep_balance=options.balance_loss_weight > 0)
    choose_map = torch.zeros_like(count_choices(model)())  # the call also sets the blocks' counts to zero
    losses = torch.full((options.iterations + 1,), torch.nan, device=model.logit_scale.device)
    state = {"parameters": Tensors(parameters), "optimizer": optimizer, "choose_map": Tensors({"counts": choose_map})}
    state |= {"log": Tensors({"loss": losses})}
    call = parallel(model)
    model.train()
    for step in steps(stage, options.iterations + 1, state):
        set_lr(optimizer, options.schedule(step, options.lr, warmup=options.warmup, total=options.iterations))
        images, labels = batches[step]
        logits = call(clip_logits, images, tokens, options.image_first, len(labels))
        ce = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        balance = sum(block.balance for block in moe_blocks(model))  # 0 unless it is asked for
        loss = ce + options.balance_loss_weight * balance
        optimizer.zero_grad()
        read_counts = count_choices(model)  # before the backward pass, whose end on the device the host need not await
        loss.backward()
        counts = read_counts()
        drop_unchosen_gradients(model, counts)
        optimizer.step()
        choose_map += counts
        losses[step] = loss.detach()
        if options.loss_interval and step % options.loss_interval == 0:
            tqdm.write(f"{stage}: step {step}, loss {loss.item():.4f}")
    model.eval()
    share_batches(model, None)
    return {"loss": losses, "choose_map": choose_map}


def share_batches(model: CLIP, batch_size: int | None) -> None:
    """Tell the image blocks of how many images theirs are a part; None: they see all."""
    for block in image_blocks(model):
        block.batch_size = batch_size


def clip_logits(model: CLIP, images: Tensor, tokens: Tensor, image_first: bool, batch_size: int) -> Tensor:
    """Logits (B, C) of all images on prompts (C, L), which are encoded anew at every call.

    images (b, 3, R, R): this process's of the batch of B = batch_size.
    """
    share_batches(model, batch_size if world_size() > 1 else None)
    text = None if image_first else F.normalize(model.encode_text(tokens, cut=False), dim=-1)
    image = all_gather_rows(F.normalize(model.encode_image(images), dim=-1), batch_size)
    if text is None:
        text = F.normalize(model.encode_text(tokens, cut=False), dim=-1)
    return model.logit_scale.exp() * image @ text.t()
