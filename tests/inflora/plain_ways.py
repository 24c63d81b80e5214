"""InfLoRA's fast paths the plain way, as the official code goes about it: what they are held against."""

import contextlib
from collections.abc import Iterable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflora.lora import LoRAAttention, Network


def plain_attention(attention: LoRAAttention, x: Tensor, tasks: int) -> Tensor:
    """B A of tasks 0 .. tasks - 1 rebuilt at every call, the attention matrix written out.

    Upstream models/vit_inflora.py:L232-L262. The update of k and of v is a product of the size of W, and so is its
    gradient.
    """

    def update(ups: nn.ModuleList, downs: nn.ModuleList) -> Tensor:
        return torch.stack([up.weight @ down.weight for up, down in zip(ups[:tasks], downs)]).sum(dim=0)

    query, key, value = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    key = key + F.linear(x, update(attention.lora_B_k, attention.lora_A_k))
    value = value + F.linear(x, update(attention.lora_B_v, attention.lora_A_v))
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    weights = (heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5).softmax(dim=-1)
    return attention.proj((weights @ heads[2]).transpose(1, 2).flatten(2))


def plain_forward(tasks: int | None) -> contextlib.AbstractContextManager:
    """`plain_attention` of so many tasks in every layer; None: ours as it is."""
    forward = lambda attention, x, read=..., **_: plain_attention(attention, x, tasks)[read]
    return mock.patch.object(LoRAAttention, "forward", forward) if tasks is not None else contextlib.nullcontext()


@torch.no_grad()
def plain_second_moments(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """C (d, d) of every layer on the CPU: whole passes, a product an image, a copy a layer and batch, a running mean.

    Upstream methods/inflora.py:L116-L120.
    """
    inputs: list[Tensor] = []
    moments, tokens = [torch.zeros(()) for _ in network.attentions], 0
    hooks = [each.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for each in network.attentions]
    for images, _ in batches:
        inputs.clear()
        network.features(images)
        new = inputs[0].shape[0] * inputs[0].shape[1]
        for layer, x in enumerate(inputs):
            products = torch.bmm(x.mT, x).sum(dim=0).cpu()
            moments[layer] = (moments[layer] * tokens + products) / (tokens + new)
        tokens += new
    for hook in hooks:
        hook.remove()
    return moments
