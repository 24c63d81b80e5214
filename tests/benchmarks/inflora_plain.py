"""InfLoRA the plain way, as the official code goes about it: what the fast paths are held against."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflora.lora import LoRAAttention, Network


def plain_attention(tasks: int) -> Callable[[LoRAAttention, Tensor], Tensor]:
    """A `forward` that rebuilds B A of tasks 0 .. tasks - 1 at every call and writes the attention matrix out.

    Upstream models/vit_inflora.py:L232-L262. The update of k and of v is a product of the size of W, and so is its
    gradient.
    """

    def update(ups: nn.ModuleList, downs: nn.ModuleList) -> Tensor:
        return torch.stack([up.weight @ down.weight for up, down in zip(ups[:tasks], downs)]).sum(dim=0)

    def forward(attention: LoRAAttention, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        query, key, value = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
        key = key + F.linear(x, update(attention.lora_B_k, attention.lora_A_k))
        value = value + F.linear(x, update(attention.lora_B_v, attention.lora_A_v))
        heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
        weights = (heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5).softmax(dim=-1)
        return attention.proj((weights @ heads[2]).transpose(1, 2).flatten(2))

    return forward


@torch.no_grad()
def plain_second_moments(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """C (d, d) of every layer on the CPU: whole passes, a product an image, a copy a layer and batch, a running mean.

    Upstream methods/inflora.py:L116-L120.
    """
    inputs: dict[int, Tensor] = {}
    attentions, tokens = network.attentions, 0
    moments = [torch.zeros(()) for _ in attentions]
    hooks = [
        attention.register_forward_pre_hook(lambda module, given, layer=layer: inputs.update({layer: given[0]}))
        for layer, attention in enumerate(attentions)
    ]
    for images, _ in batches:
        network.features(images)
        new = inputs[0].shape[0] * inputs[0].shape[1]
        for layer, x in inputs.items():
            products = torch.bmm(x.mT, x).sum(dim=0).cpu()
            moments[layer] = (moments[layer] * tokens + products) / (tokens + new)
        tokens += new
    for hook in hooks:
        hook.remove()
    return moments
