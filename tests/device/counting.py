"""What a piece of code would ask of a GPU, counted on a machine that has none."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
NO_LAUNCH = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten._unsafe_view.default, aten._reshape_alias.default,
}  # fmt: skip
CARD = torch.device("meta")  # its tensors stand for those of a GPU, those of the CPU for the host's


class Card(TorchDispatchMode):
    """Counts launches, and what the host would wait for, between tensors on `CARD` and on the CPU.

    launches: operations that compute on the card, no views or allocations; of many tensors (`torch._foreach_*`) one.
    waits: reads of a value, copies to the host, copies to the card that are not said to be `non_blocking`, and indices
    and numbers that come from the host. A value that is read is 1, or 10 of an integer; copies to the host are zeros.
    What has a size that depends on values (nonzero, a mask as an index) raises, for a GPU would wait for it.
    queued: copies to the host for which it does not wait; read_at: the count of launches whenever one of these is used.
    Needs `Functions` beside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.waits = self.queued = 0
        self.copies: list[Tensor] = []
        self.read_at: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and function._can_decompose():  # which comes whole there
            with self:
                return function.decompose(*args, **kwargs)
        if function is aten._local_scalar_dense.default and (isinstance(args[0], FakeTensor) or args[0].is_meta):
            self.waits += 1
            return torch.tensor(1 if args[0].is_floating_point() else 10, dtype=args[0].dtype).item()
        if function is aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            return self.copy(function, source, target, kwargs.get("non_blocking"), args, kwargs)
        if function is aten.copy_.default:
            return self.copy(function, args[1], args[0].device, args[2:] == (True,), args, kwargs)
        if function in (aten.index.Tensor, aten.index_put_.default) and args[0].is_meta:
            self.waits += any(isinstance(index, Tensor) and not index.is_meta for index in args[1])
        returned = function(*args, **kwargs)
        aliases = [one.alias_info for one in function._schema.returns]
        view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
        if not view and function not in NO_LAUNCH:
            self.launches += any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, returned)))
        return returned

    def copy(self, function: Any, source: Tensor, target: torch.device, late: Any, args: tuple, kwargs: dict) -> Any:
        """One that converts on the card, one within the host, or one between the two."""
        self.launches += CARD in (source.device, target)
        if source.is_meta == (target == CARD):
            return function(*args, **kwargs)
        self.waits += not late
        if target == CARD:
            return function(*args, **kwargs)
        zeros = torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        self.queued += bool(late)
        self.copies += [zeros] if late else []
        return zeros if function is aten._to_copy.default else args[0]


class Functions(TorchFunctionMode):
    """What modes of the dispatcher see too late: numbers that become tensors, and the use of a queued copy."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, card = kwargs or {}, self.card
        if any(argument is copy for copy in card.copies for argument in args):
            card.read_at.append(card.launches)
        returned = function(*args, **kwargs)
        made = function in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and not isinstance(args[0], Tensor)
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            made = any(isinstance(part, list) for part in (args[1] if isinstance(args[1], tuple) else args[1:2]))
        card.waits += made and any(isinstance(part, Tensor) and part.is_meta for part in (returned, args[0]))
        return returned


attention = F.scaled_dot_product_attention


def attention_of_a_gpu(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **rest: Any) -> Tensor:
    """The kernel that torch takes on a GPU in float32; of tensors on `CARD` it would go the long way."""
    if query.device != CARD or rest.get("attn_mask") is not None:
        return attention(query, key, value, is_causal=is_causal, **rest)
    gradient = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, gradient, is_causal=is_causal)[0]


@torch.no_grad()
def replace_tensors(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for tensors without values, which torch refuses to exchange in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(convert(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = convert(buffer) if buffer is not None else None
    return module


@contextmanager
def counted() -> Iterator[Card]:
    """A card's counts, with the optimisers and the attention that torch takes by itself on a GPU alone."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replace_tensors))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention_of_a_gpu))
        for kind in ("foreach", "fused"):
            name = f"_get_{kind}_kernels_supported_devices"
            stack.enter_context(mock.patch.object(optimizer, name, lambda: ["cpu", CARD.type]))
        types = [*optimizer._foreach_supported_types, FakeTensor]
        stack.enter_context(mock.patch.object(optimizer, "_foreach_supported_types", types))
        card = stack.enter_context(Card())
        stack.enter_context(Functions(card))
        yield card
