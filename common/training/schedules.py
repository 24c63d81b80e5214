"""Learning-rate schedules as pure functions of the step number."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer


def cosine_with_warmup(step: int, base_lr: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine: the schedule of ZSCL and MoE-Adapters (upstream mtil/src/utils.py:L13-L32).

    Step n < warmup: base * (n + 1) / warmup. After it 0.5 * base * (1 + cos(pi (n - warmup) / (total - warmup))).
    The originals' loops run steps 0..total inclusive, so the last one has rate 0.
    """
    if step < warmup:
        return base_lr * (step + 1) / warmup
    if total == warmup:  # the closing step of a run that is all warm-up; the formula is 0 / 0 there
        return 0.0
    return 0.5 * base_lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def cil_cosine_with_warmup(step: int, base_lr: float, total: int, warmup: int = 30) -> float:
    """`cosine_with_warmup` for step 0 .. total of a class-incremental task; short tasks end within the warm-up.

    Quirk: tasks of exactly 30 batches divide by zero in the originals (cil/continual_clip/utils.py:L56-L75); their
    last step has the full rate here.
    """
    return base_lr if step == total == warmup else cosine_with_warmup(step, base_lr, warmup, total)


def set_lr(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def coda_cosine(epoch: int, base_lr: float, epochs: int) -> float:
    """base * cos(99 pi (epoch - 1) / (200 (epochs - 1))), and base itself in epoch 0.

    CODA-Prompt's CosineSchedule, stepped as in InfLoRA (utils/schedulers.py:L47-L56) and VQ-Prompt on CUB-200: epochs
    0 and 1 both run at the full rate, and the last one well above zero.
    """
    return base_lr if epoch == 0 else base_lr * math.cos(99 * math.pi * (epoch - 1) / (200 * (epochs - 1)))


def cosine_annealing(epoch: int, base_lr: float, epochs: int) -> float:
    """base (1 + cos(pi epoch / epochs)) / 2: torch's CosineAnnealingLR stepped once an epoch, down to 0."""
    return base_lr * (1 + math.cos(math.pi * epoch / epochs)) / 2


def multistep(epoch: int, base_lr: float, milestones: Sequence[int], gamma: float) -> float:
    """base * gamma^(number of milestones reached): torch's MultiStepLR stepped once an epoch."""
    return base_lr * gamma ** sum(milestone <= epoch for milestone in milestones)
