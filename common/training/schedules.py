"""Learning-rate schedules as pure functions of the step number."""

import math


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


def set_lr(optimizer: "torch.optim.Optimizer", lr: float) -> None:  # noqa: F821
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
