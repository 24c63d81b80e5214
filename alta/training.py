"""A task (upstream main.py:L67-L100): every iteration one loss, one backward pass, one SGD step over all that trains.

    v = visual(x);  z = head(v);  L = CE(z, y)
    if the buffer has samples:  L += alpha CE(head(v_b), y_b) + beta mean((head(v_b) - z_b)^2)

Replay begins at the second iteration of the first task. Context, adapter and momentum go on over the tasks.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alta.buffer import Buffer
from alta.heads import Head
from alta.options import Options
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import set_lr

TERMS = ("loss", "ce", "ce_replay", "mse_replay", "accuracy")  # of the log


def learning_rate(options: Options, task_id: int, epoch: int) -> float:
    """Learning rate in an epoch of a task, both counted from 0.

    `released`: the scheduler is built and never stepped, and building it sets the warm-up rate, so the rate of the
    first epoch stays for the whole run (upstream utils/load_model.py:L62-L66 is never called). `global_cosine`: that
    one scheduler stepped at each epoch's end, never reset: behind its minimum it climbs again. `task_cosine`: the same,
    counted from each task's start. `constant`: LR.
    """
    optim, epochs = options.OPTIM, options.OPTIM.MAX_EPOCH
    if options.lr_policy == "constant":
        return optim.LR
    epoch = {"released": 0, "global_cosine": task_id * epochs + epoch, "task_cosine": epoch}[options.lr_policy]
    if epoch < optim.WARMUP_EPOCH:
        return optim.WARMUP_CONS_LR
    return optim.LR * (1 + math.cos(math.pi * (epoch - optim.WARMUP_EPOCH) / epochs)) / 2


def replay_losses(logits: Tensor, labels: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, which alpha weighs, and squared difference to the recorded logits, which beta weighs; both ().

    DER++ names the weights the other way round. Logits (n, C), stored labels (n,), recorded logits (n, C).
    """
    return F.cross_entropy(logits, labels), F.mse_loss(logits, recorded)


def logits_of(head: Head, features: Tensor, replayed_features: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits (B, C) of v (B, D), and (n, C) of the buffer's v_b (n, D), over all classes, later tasks' included."""
    texts = head.texts()
    logits = head.logits(features, texts)
    if replayed_features is None:
        return logits, None
    texts = head.texts() if head.original else texts  # the same values; the gradients are added either way
    return logits, head.logits(replayed_features, texts)


def train_task(
    head: Head,
    task_id: int,
    past_classes: int,
    batches: BatchStream,
    optimizer: torch.optim.Optimizer,
    buffer: Buffer | None,
    options: Options,
    stage: str,
    steps: Steps,
    after_epoch: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Freeze the prompts of the first `past_classes`, those of earlier tasks, then train all of the head, in place.

    What is frozen holds the context of the last forward on a current batch, which is the one before the last step: one
    step older than the model that was evaluated (main.py:L70-L72, L86). buffer: None without replay; as many samples
    are replayed as a full batch has, beside a short one too. after_epoch(n) is called when n epochs are done.

    Returns the loss, its terms unweighted (0 without replay) and the share of correct answers of every step, (steps,).
    """
    if task_id > 0:
        head.freeze(head.snapshot(past_classes))
    train, total = options.train, options.OPTIM.MAX_EPOCH * len(batches)
    log = {name: torch.zeros(total, device=head.clip.logit_scale.device) for name in TERMS}
    state: dict[str, Any] = {"parameters": Tensors(head.trained()), "optimizer": optimizer, "log": Tensors(log)}
    state |= {"last_context": Tensors(head.last_context)} | ({"buffer": buffer} if buffer is not None else {})
    call = parallel(head)
    for step in steps(stage, total, state):
        set_lr(optimizer, learning_rate(options, task_id, step // len(batches)))
        images, labels = batches[step]
        features = all_gather_rows(head.features(images), len(labels))
        replay = buffer.get_data(train.batch_size) if buffer is not None and buffer.filled > 0 else None
        logits, replayed_logits = call(logits_of, features, replay and replay.image_features)
        ce = F.cross_entropy(logits, labels)
        ce_replay = mse_replay = ce.new_zeros(())
        if replay:
            ce_replay, mse_replay = replay_losses(replayed_logits, replay.labels, replay.logits)
        loss = ce + train.alpha * ce_replay + train.beta * mse_replay
        head.remember_context()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if buffer is not None:
            buffer.add_data(labels, logits, features)  # logits of before the step
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        for name, value in zip(TERMS, (loss, ce, ce_replay, mse_replay, accuracy)):
            log[name][step] = value.detach()
        if after_epoch and (step + 1) % len(batches) == 0:
            after_epoch((step + 1) // len(batches))
    return log
