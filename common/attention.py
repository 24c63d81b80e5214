"""Multi-head attention in torch's fused kernel, and how a block is run, as CLIP's and timm's towers share them.

Of a tower's last block one token is read, whose query, projection and MLP are all that has to be computed of it, with
the keys and values of all tokens. An index `read` of the tokens x (B, L, D) says which one x[read] is; `...`: all.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CLASS_TOKEN = (slice(None), slice(1))  # (B, L, D) -> (B, 1, D)


def query_key_value(x: Tensor, weight: Tensor, bias: Tensor, read: Any = ...) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, L, D) -> query of the tokens x[read], key and value of all; weight (3 D, D), bias (3 D,)."""
    if read is ...:
        query, key, value = F.linear(x, weight, bias).chunk(3, dim=-1)
    else:
        sizes = [x.shape[-1], 2 * x.shape[-1]]
        (query_weight, weight), (query_bias, bias) = weight.split(sizes), bias.split(sizes)
        # contiguous rows, of which half precision rounds the product and the bias together, as it does of all tokens
        query = F.linear(x[read].contiguous(), query_weight, query_bias)
        key, value = F.linear(x, weight, bias).chunk(2, dim=-1)
    return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """query (B, K, D), key and value (B, L, D) -> (B, K, D), not projected yet."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2).flatten(2)


def run_block(recompute: bool, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs); with `recompute` only the inputs are kept, and the backward pass runs the block again.

    The gradients are the same. Blocks that draw random numbers or count would do so twice.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
