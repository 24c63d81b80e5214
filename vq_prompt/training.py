"""Training of a task: its learning rates and its loop (learners/default.py:L76-L194, learners/prompt.py:L25-L80)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import coda_cosine, multistep
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network

FINAL_LR = 1e-6
DECAY = 0.1  # of `decay` at every milestone

Rate = Callable[[int, float], float]  # (update of the task, the group's base rate) -> its learning rate


# Learning rates


def warm_cosine(index: int, base: float, freeze: int, warmup: int, total: int) -> float:
    """Entry `index` of table S (utils/schedulers.py:L60-L138), and 1e-6 behind its `total` entries.

    `freeze` entries of 1e-6, `warmup` rising from 0 to the base rate, both included, then half a cosine towards 1e-6.
    """
    if index < freeze or index >= total:
        return FINAL_LR
    if index < freeze + warmup:
        return base * (index - freeze) / max(1, warmup - 1)
    m, M = index - freeze - warmup, total - freeze - warmup
    return FINAL_LR + 0.5 * (base - FINAL_LR) * (1 + math.cos(math.pi * m / M))


def coswm(update: int, base: float, freeze: int, warmup: int, total: int, first_full: float | None) -> float:
    """The rate of an update: `first_full` for the very first one, then the table from its beginning.

    Quirk: the scheduler is stepped behind the optimiser, so update 0 runs at the rate the group was made with and
    update i at S[i - 1], whatever the table begins with. None: update i runs at S[i].
    """
    if first_full is None:
        return warm_cosine(update, base, freeze, warmup, total)
    return first_full if update == 0 else warm_cosine(update - 1, base, freeze, warmup, total)


def task_rate(kind: str, schedule: Sequence[int], iter_step: int, batches: int, first_full: bool = True) -> Rate:
    """The rate of every update of a task of `batches` updates an epoch, by the configuration's keys.

    coswm: schedule [freeze iterations, warm-up epochs, epochs]. Quirk: its epochs are `iter_step` iterations long
    whatever the loader's length: shorter tasks stop before the cosine ends, longer ones run their tail at 1e-6.
    cosine, decay: by epoch; `schedule` ends with the number of epochs, and is decay's milestones.
    """
    if kind == "coswm":
        freeze, warmup, epochs = schedule
        sizes = freeze, warmup * iter_step, epochs * iter_step
        return lambda update, base: coswm(update, base, *sizes, base if first_full else None)
    if kind == "cosine":
        return lambda update, base: coda_cosine(update // batches, base, schedule[-1])
    return lambda update, base: multistep(update // batches, base, schedule, DECAY)


# The loop


def task_losses(network: Network, images: Tensor, labels: Tensor, classes: range) -> tuple[Tensor, Tensor]:
    """Cross-entropy among the task's classes, and the prompt loss; both ().

    The original has the logits of older classes at -inf and cuts those of later ones off: the same, without them.
    """
    features, prompt_loss = network(images, batch_size=len(labels))
    rows = slice(classes.start, classes.stop)
    logits = F.linear(features, network.last.weight[rows], network.last.bias[rows])
    return F.cross_entropy(all_gather_rows(logits, len(labels)), labels - classes.start), prompt_loss


def train_task(
    network: Network, classes: range, batches: BatchStream, options: VQOptions, stage: str, steps: Steps
) -> dict[str, Tensor]:
    """Train all prompts, all keys and the classifier on a task, in place.

    classes: new labels of the task. Returns the whole loss and the prompt loss of every update, both (updates,), on the
    device. A new AdamW for each task. Rows of other classes get gradients of zero and, without weight decay, stay as
    they are.
    """
    groups = [
        {"params": list(network.get_submodule("prompt").parameters()), "base_lr": options.lr * options.prompt_lr_mult},
        {"params": list(network.last.parameters()), "base_lr": options.lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay)
    kind, schedule, total = options.schedule_type, options.schedule, options.schedule[-1] * len(batches)
    rate = task_rate(kind, schedule, options.iter_step, len(batches), options.coswm_first_step_full_lr)
    log = dict(zip(("loss", "prompt_loss"), network.last.weight.new_zeros(2, total)))
    state = {"prompt": network.prompt, "last": network.last, "optimizer": optimizer, "log": Tensors(log)}
    call = parallel(network)
    for step in steps(stage, total, state):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, group["base_lr"])
        ce, prompt_loss = call(task_losses, *batches[step], classes)
        loss = ce + prompt_loss  # Eq. 7-9: the commitment and the codebook term, weighted, are in prompt_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log["loss"][step], log["prompt_loss"][step] = loss.detach(), prompt_loss.detach()
    optimizer.zero_grad()
    return log
