"""What the loops of ZSCL and MoE-Adapters are told of a task, whose originals share one program."""

from collections.abc import Callable
from dataclasses import dataclass

from common.training.schedules import cosine_with_warmup


@dataclass(frozen=True)
class TrainingOptions:
    """AdamW over iterations + 1 steps; the defaults are the originals'."""

    lr: float = 1e-3
    iterations: int = 1000
    warmup: int = 100
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    beta2: float = 0.999
    loss_interval: int | None = 1000  # steps between two printed losses; None: none is printed
    schedule: Callable[..., float] = cosine_with_warmup  # of the step, the rate, warmup and total
