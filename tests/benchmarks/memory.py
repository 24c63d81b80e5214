"""The peak of live tensor bytes in a piece of code, counted without computing: for machines without a GPU."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation returns until nothing refers to it, what autograd saved included.

    Views share their storage's bytes. A kernel's own workspace and the allocator's rounding are not in the count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}  # id -> bytes, while it lives
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.storages:
                self.storages[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, id(storage))
        self.peak = max(self.peak, self.now)
        return returned

    def free(self, storage: int) -> None:
        self.now -= self.storages.pop(storage)


def counted_peak(run: Callable[[], Any]) -> int:
    """Peak bytes of all tensors that `run` makes; it works on tensors that have shapes and no values.

    `run` builds its models and inputs itself. What needs a value (`.item()`, `if tensor:`) raises.
    """
    with FakeTensorMode(), LiveBytes() as live:
        run()
    return live.peak
