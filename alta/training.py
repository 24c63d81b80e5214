"""One task (upstream main.py:L67-L100): every iteration one loss, one backward pass, one SGD step over all that trains.

    v = visual(x);  z = head(v);  L = CE(z, y)
    if the buffer has samples:  L += alpha CE(head(v_b), y_b) + beta mean((head(v_b) - z_b)^2)

Replay begins at the second iteration of the first task. Context, adapter and momentum go on over the tasks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alta.buffer import Buffer
from alta.heads import Head
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import set_lr

LR_POLICIES = ("released", "global_cosine", "task_cosine", "constant")


@dataclass(frozen=True)
class Rate:
    """OPTIM's keys that decide a learning rate."""

    policy: str
    lr: float
    warmup_lr: float
    warmup_epochs: int
    epochs: int


@dataclass(frozen=True)
class TrainingOptions:
    """replay_size: samples drawn from the buffer a step, the nominal batch size also beside a short last batch."""

    epochs: int
    rate: Rate
    replay_size: int
    alpha: float
    beta: float


@dataclass(frozen=True)
class TrainingLog:
    """The loss, its terms unweighted (0 without replay), and the share of correct answers of every step, (steps,)."""

    loss: Tensor
    ce: Tensor
    ce_replay: Tensor
    mse_replay: Tensor
    accuracy: Tensor


def learning_rate(rate: Rate, task: int, epoch: int) -> float:
    """The rate in epoch `epoch` of task `task`, both from 0.

    `released`: the scheduler is built and never stepped, and building it sets the warm-up rate, so the rate of the
    first epoch stays for the whole run (upstream utils/load_model.py:L62-L66 is never called). `global_cosine`: that
    one scheduler stepped at each epoch's end, never reset: behind its minimum it climbs again. `task_cosine`: the same,
    counted from each task's start. `constant`: LR.
    """
    if rate.policy == "constant":
        return rate.lr
    epoch = {"released": 0, "global_cosine": task * rate.epochs + epoch, "task_cosine": epoch}[rate.policy]
    if epoch < rate.warmup_epochs:
        return rate.warmup_lr
    return rate.lr * (1 + math.cos(math.pi * (epoch - rate.warmup_epochs) / rate.epochs)) / 2


def replay_losses(logits: Tensor, labels: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
    """CE against the stored labels, which alpha weighs, and MSE against the recorded logits, which beta weighs.

    DER++ calls them the other way round. Logits (n, C), labels (n,), recorded logits (n, C).
    """
    return F.cross_entropy(logits, labels), F.mse_loss(logits, recorded)


def logits_of(head: Head, features: Tensor, replayed_features: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits (B, C) of v (B, D) and (n, C) of the buffer's v_b (n, D), over all classes, later tasks' included."""
    texts = head.texts()
    logits = head.logits(features, texts)
    if replayed_features is None:
        return logits, None
    texts = head.texts() if head.original else texts  # the same values; the gradients are added either way
    return logits, head.logits(replayed_features, texts)


def train_task(
    head: Head,
    task: int,
    past_classes: int,
    batches: BatchStream,
    optimizer: torch.optim.Optimizer,
    buffer: Buffer | None,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
    after_epoch: Callable[[int], None] | None = None,
) -> TrainingLog:
    """Freeze the prompts of the classes before the task's, then train in place.

    after_epoch(n) is called when n epochs are done. What is frozen holds the context of the last forward on a current batch, which is the one before the last step: one
    step older than the model that was evaluated (main.py:L70-L72, L86). buffer: None without replay.
    """
    if task > 0:
        head.freeze(head.snapshot(past_classes))
    total = options.epochs * len(batches)
    log = TrainingLog(*torch.zeros((5, total), device=head.clip.logit_scale.device))
    state: dict[str, Any] = {"parameters": Tensors(head.trained()), "optimizer": optimizer, "log": Tensors(vars(log))}
    state |= {"last_context": Tensors(head.last_context)} | ({"buffer": buffer} if buffer is not None else {})
    call = parallel(head)
    for step in steps(stage, total, state):
        set_lr(optimizer, learning_rate(options.rate, task, step // len(batches)))
        images, labels = batches[step]
        features = all_gather_rows(head.features(images), len(labels))
        replays = buffer is not None and buffer.filled > 0
        old_labels, old_logits, old_features = buffer.get_data(options.replay_size) if replays else (None, None, None)
        logits, replayed = call(logits_of, features, old_features)
        ce = F.cross_entropy(logits, labels)
        ce_replay, mse_replay = replay_losses(replayed, old_labels, old_logits) if replays else ce.new_zeros(2)
        loss = ce + options.alpha * ce_replay + options.beta * mse_replay
        head.remember_context()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if buffer is not None:
            buffer.add_data(labels, logits, features)  # logits of before the step
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        for values, value in zip(vars(log).values(), (loss, ce, ce_replay, mse_replay, accuracy)):
            values[step] = value.detach()
        if after_epoch and (step + 1) % len(batches) == 0:
            after_epoch((step + 1) // len(batches))
    return log
