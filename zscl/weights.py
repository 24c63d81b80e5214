"""ZSCL's ideas in weight space (arXiv 2303.06628, section 3.3): WE, WC, and the baselines WiSE-FT and moving average.

Weights are a dict of tensors by parameter name; functions ending in _ change their first argument in place. All of a
model's parameters take part, frozen ones and `logit_scale` included (mtil/src/models/helpers.py:L31-L51).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """The model's own parameters, without gradient; what is done to them is done to the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def weights_on(model: nn.Module, device: torch.device | str) -> Weights:
    """The model's parameters on a device, copies where they are on another."""
    return {name: weight.to(device) for name, weight in weights_of(model).items()}


def copied(weights: Weights) -> Weights:
    return {name: weight.clone() for name, weight in weights.items()}


def assign_(weights: Weights, values: Weights) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def interpolate_(weights: Weights, other: Weights, alpha: float) -> None:
    """weights <- alpha x weights + (1 - alpha) x other: WiSE-FT, and every pull towards a reference."""
    tensors, others = zip(*((weight, other[name]) for name, weight in weights.items()))
    torch._foreach_mul_(tensors, alpha)
    torch._foreach_add_(tensors, others, alpha=1 - alpha)


class WeightEnsemble:
    """WE: the running mean of a task's weights; `start`, the weights before the first step, is its first term.

    Each `add` is one sample: mean <- (k mean + sample) / (k + 1). With alpha < 1 (WE-WiSE) every mean is then pulled to
    the start: alpha mean + (1 - alpha) start. The mean is updated in place, so the ensemble costs one copy of the
    weights, two with WE-WiSE (mtil/src/models/finetune.py:L309-L322).
    """

    def __init__(self, start: Weights, alpha: float = 1.0) -> None:
        self.mean, self.samples, self.alpha = copied(start), 0, alpha
        self.start = copied(start) if alpha < 1 else None

    @torch.no_grad()
    def add(self, weights: Weights) -> None:
        self.samples += 1
        means, sample = zip(*((mean, weights[name]) for name, mean in self.mean.items()))
        torch._foreach_mul_(means, self.samples)
        torch._foreach_add_(means, sample)
        torch._foreach_div_(means, self.samples + 1)
        if self.start is not None:
            interpolate_(self.mean, self.start, self.alpha)

    def state_dict(self) -> dict[str, object]:
        return {"mean": self.mean, "samples": self.samples}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        assign_(self.mean, saved["mean"])
        self.samples = saved["samples"]


@torch.no_grad()
def consolidate_(parameters: Iterable[tuple[Tensor, Tensor]], strength: float) -> Tensor:
    """WC: add the gradient of strength x sum (theta - theta0)^2 to .grad of every theta; returns the sum, unweighted.

    `parameters` yields (theta, theta0). The closed form 2 strength (theta - theta0), added after the backward pass,
    is what autograd would give, without a graph over all weights. Call it before the optimiser's step.
    """
    thetas, theta0s = zip(*parameters)
    differences = torch._foreach_sub(thetas, theta0s)
    gradients = [(theta.grad, part) for theta, part in zip(thetas, differences) if theta.grad is not None]
    torch._foreach_add_(*zip(*gradients), alpha=2 * strength)
    norms = torch._foreach_norm(differences, 2, torch.float64)  # in float32 the CPU's is off by thousandths
    return torch.stack(norms).square().sum().to(differences[0].dtype)


class MovingAverage:
    """--moving_avg: pulls the live weights to a reference, theta <- decay theta + (1 - decay) reference.

    The reference stays what it is (theta0 or CLIP); with `follow` it is the weights just before the previous pull.
    """

    def __init__(self, reference: Weights, decay: float, follow: bool = False) -> None:
        self.reference, self.decay, self.follow = copied(reference), decay, follow

    @torch.no_grad()
    def add(self, weights: Weights) -> None:
        before = copied(weights) if self.follow else None
        interpolate_(weights, self.reference, self.decay)
        if before is not None:
            self.reference = before

    def state_dict(self) -> dict[str, object]:
        return {"reference": self.reference} if self.follow else {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if self.follow:
            assign_(self.reference, saved["reference"])
