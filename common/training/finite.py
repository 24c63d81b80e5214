"""Stops training that has diverged: a loss or a parameter is no longer finite."""

from typing import Any

import torch
from torch import Tensor

from common.errors import UserError

ADVICE = (
    "The checkpoints of the tasks before are intact. Try a lower learning rate or a longer warm-up, and check the "
    "weights it starts from and the data; then start with another output folder or overwrite this one."
)


def require_finite(stage: str, log: dict[str, Tensor], first: int = 0) -> None:
    """Raise UserError for the first value that is not finite. log: loss terms (steps,) by name, from step `first`."""
    finite = torch.stack([values.isfinite() for values in log.values()])
    if not finite.all():  # the only synchronisation with the device
        step = int(finite.all(dim=0).logical_not().nonzero()[0])
        wrong = ", ".join(name for name, values in log.items() if not values[step].isfinite())
        raise UserError(f"{stage}: the loss is not finite at step {first + step} ({wrong}). {ADVICE}")


def require_finite_state(stage: str, step: int, state: dict[str, Any]) -> None:
    """Raise UserError if an item of `state` (see `Run.steps`) is not finite after a step."""
    for name, item in state.items():
        values = [] if name == "log" or isinstance(item, torch.Generator) else item.state_dict().values()
        floating = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        if floating and not torch.stack([value.isfinite().all() for value in floating]).all():
            raise UserError(f"{stage}: the {name} are not finite after step {step}. {ADVICE}")
