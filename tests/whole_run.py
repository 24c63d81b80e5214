"""A program's run seen from torch: the batches it drew, the losses it differentiated, the steps of its optimisers.

A whole-run test starts an entry point by its command line, `with float64(), watched() as seen: main([...])`, and holds
what it saw and the files that the run left against the same run written out as plain steps. Nothing here knows the
product, so a rebuild of the product changes nothing here. Give the run `--workers 0`: only this process is seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils._device import _device_constructors
from torch.utils.data import DataLoader


@dataclass
class Batch:
    """What a loader gave; `stream` counts the loaders in the order in which they were begun."""

    stream: int
    content: Any  # as collated: usually [images (B, 3, R, R), labels (B,)]


@dataclass
class Step:
    """An optimiser's step: its hyper-parameters by group, and the norm of all gradients.

    `optimizer` counts the optimisers in the order of their first steps. `start`: copies of the parameters, by group,
    as they were before this optimiser's first step (None at its later ones).
    """

    optimizer: int
    kind: str
    groups: list[dict[str, Any]]
    gradient_norm: float
    start: list[list[Tensor]] | None


@dataclass
class Draw:
    """What a function of torch returned, such as randn or randperm."""

    name: str
    value: Tensor


@dataclass
class Seen:
    """`events` in their order: Batch, float (a loss whose backward() was called), Step, Draw."""

    events: list[Any] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    @property
    def losses(self) -> list[float]:
        return self.of(float)

    @property
    def steps(self) -> list[Step]:
        return self.of(Step)

    def streams(self) -> list[list[Any]]:
        """The contents of the batches, loader by loader; a loader that gave nothing has no entry."""
        found: dict[int, list[Any]] = {}
        for batch in self.of(Batch):
            found.setdefault(batch.stream, []).append(batch.content)
        return [found[stream] for stream in sorted(found)]

    def optimizers(self) -> list[list[Step]]:
        """The steps, optimiser by optimiser."""
        found: dict[int, list[Step]] = {}
        for step in self.steps:
            found.setdefault(step.optimizer, []).append(step)
        return [found[number] for number in sorted(found)]

    def draws(self, name: str) -> list[Tensor]:
        return [draw.value for draw in self.of(Draw) if draw.name == name]


@contextmanager
def watched(*draws: str) -> Iterator[Seen]:
    """See what this process does through torch; `draws` names functions of torch whose results are kept too."""
    _device_constructors()  # the list of what torch.device("meta") redirects, made once: not of these stand-ins
    seen, known, streams = Seen(), [], iter(range(1_000_000))
    backward, iterate = Tensor.backward, DataLoader.__iter__

    def see_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.events.append(loss.detach().item())
        backward(loss, *args, **kwargs)

    def see_batches(loader: DataLoader) -> Iterator[Any]:
        stream = next(streams)
        for content in iterate(loader):
            seen.events.append(Batch(stream, _copied(content)))
            yield content

    def see_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        is_new = not any(optimizer is other for other in known)
        if is_new:
            known.append(optimizer)
        number = next(i for i, other in enumerate(known) if other is optimizer)
        lists = [group["params"] for group in optimizer.param_groups]
        groups = [{key: _plain(value) for key, value in group.items() if key != "params"}
                  for group in optimizer.param_groups]  # fmt: skip
        squares = sum(float(p.grad.square().sum()) for parameters in lists for p in parameters if p.grad is not None)
        start = [[p.detach().clone() for p in parameters] for parameters in lists] if is_new else None
        seen.events.append(Step(number, type(optimizer).__name__, groups, squares**0.5, start))

    def see_draw(name: str, function: Callable) -> Callable:
        def draw(*args: Any, **kwargs: Any) -> Tensor:
            value = function(*args, **kwargs)
            seen.events.append(Draw(name, value.detach().clone()))
            return value

        return draw

    handle = register_optimizer_step_pre_hook(see_step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", see_backward)
        patch.setattr(DataLoader, "__iter__", see_batches)
        for name in draws:
            patch.setattr(torch, name, see_draw(name, getattr(torch, name)))
        try:
            yield seen
        finally:
            handle.remove()


@contextmanager
def float64() -> Iterator[None]:
    """Every float32 of a program becomes float64, so that two ways to compute the same agree to many digits."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(nn.Module, "float", nn.Module.double)
        patch.setattr(torch, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _copied(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.clone()
    return [_copied(part) for part in content] if isinstance(content, (list, tuple)) else content


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
