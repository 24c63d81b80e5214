"""VQ-Prompt's network (arXiv 2410.20444 Sec. 4.2): a frozen ViT whose first blocks take a prompt each from a pool.

Per prompted block: keys weigh all prompts of the pool for an image, the mixture is replaced by its nearest prompt, and
the two halves of that prompt stand in front of the keys and values of the block's attention. The query that keys are
compared with is the class feature of the ViT without prompts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import CLASS_TOKEN, attend, query_key_value, run_block
from common.errors import UserError
from common.training.distributed import all_gather_rows
from common.training.numerics import full_precision
from common.vit import block_of, class_feature, embed

if TYPE_CHECKING:
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

LAYERS = (0, 1, 2, 3, 4)  # prompted blocks (Table 6)
# weights of the commitment and the codebook term: the code's are those of Eq. 7-9 the other way round
# (models/zoo.py:L44-L45,L73-L84)
CONVENTIONS = {"code": (0.4, 0.1), "paper": (0.1, 0.4)}


@dataclass(frozen=True)
class Selection:
    """What a pool of N prompts gives for B queries."""

    similarity: Tensor  # (B, N) query and key, before the temperature
    alpha: Tensor  # (B, N) weights of the mixture
    soft: Tensor  # (B, Lp, D) the mixture p'
    distance: Tensor  # (B, N) squared Frobenius distance of p' to each prompt, no gradient
    index: Tensor  # (B,) the nearest prompt; of equals the first


def select(prompts: Tensor, keys: Tensor, query: Tensor, tau: float, normalize_query: bool = False) -> Selection:
    """Prompts (N, Lp, D), keys (N, D), query (B, D) -> the mixture and its nearest prompt (models/zoo.py:L51-L72).

    Quirk: keys are normalised, the query is not; the paper's Eq. 4 normalises neither, its Fig. 2 both.
    """
    if normalize_query:
        query = F.normalize(query, dim=1)
    similarity = query @ F.normalize(keys, dim=1).t()
    alpha = (similarity / tau).softmax(dim=1)
    soft = (alpha @ prompts.flatten(1)).view(-1, *prompts.shape[1:])
    with torch.no_grad():
        distance = (soft[:, None] - prompts).square().sum(dim=(2, 3))
    return Selection(similarity, alpha, soft, distance, distance.argmin(dim=1))


def straight_through(soft: Tensor, chosen: Tensor) -> Tensor:
    """The value of the chosen prompt; the whole gradient goes to the mixture (Eq. 6)."""
    return soft + (chosen - soft).detach()


def prompt_losses(soft: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Commitment, which moves the mixture, and codebook loss, which moves the chosen prompt: means of squares, ().

    Quirk: means over all B Lp D elements, where Eq. 7-9 write squared norms (models/zoo.py:L73-L84).
    """
    return F.mse_loss(soft, chosen.detach()), F.mse_loss(chosen, soft.detach())


def prefixed(query: Tensor, key: Tensor, value: Tensor, prefix_k: Tensor, prefix_v: Tensor, heads: int) -> Tensor:
    """Attention (B, n, D), not projected yet, with prefixes (B, m, D) in front of keys and values (B, n, D).

    Prefixes do not pass through the projection of qkv; there are no queries for them, so the length stays that of
    the query.
    """
    return attend(query, torch.cat([prefix_k, key], dim=1), torch.cat([prefix_v, value], dim=1), heads)


def prefix_attention(attention: "Attention", x: Tensor, prefix_k: Tensor, prefix_v: Tensor, read: Any = ...) -> Tensor:
    """timm's attention of x (B, n, D) with prefixes (B, m, D) before its keys and values (models/vit.py:L63-L87)."""
    parts = query_key_value(x, attention.qkv.weight, attention.qkv.bias, read)
    return attention.proj(prefixed(*parts, prefix_k, prefix_v, attention.num_heads))


def prompted_block(block: "Block", x: Tensor, prefix_k: Tensor, prefix_v: Tensor, read: Any = ...) -> Tensor:
    """timm's block of x (B, n, D), or of its tokens x[read], with prefixes in its attention."""
    return block_of(block, x, read, partial(prefix_attention, prefix_k=prefix_k, prefix_v=prefix_v))


class PromptPool(nn.Module):
    """e_p_{l} (N, Lp, D) and e_k_{l} (N, D) of every prompted block l, all of U[0, 1) at first.

    tau: temperature of the selection. quantize False: the mixture itself is the prompt, without losses (Soft-Prompt).
    convention: a key of CONVENTIONS. Raises UserError for a pool or a temperature that makes no sense and for an odd
    prompt length.
    """

    def __init__(
        self,
        size: int,
        length: int,
        width: int,
        tau: float,
        layers: Sequence[int] = LAYERS,
        quantize: bool = True,
        normalize_query: bool = False,
        convention: str = "code",
    ) -> None:
        super().__init__()
        check_pool(size, length, tau)
        self.layers, self.tau = tuple(layers), tau
        self.quantize, self.normalize_query, self.weights = quantize, normalize_query, CONVENTIONS[convention]
        for layer in self.layers:  # prompt, then key, block by block: the order of the draws (models/zoo.py:L36-L46)
            for name, shape in (("p", (size, length, width)), ("k", (size, width))):
                self.register_parameter(f"e_{name}_{layer}", nn.Parameter(torch.empty(shape).uniform_()))

    @full_precision()
    def forward(self, layer: int, query: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, D) -> prefixes for keys and values (B, Lp/2, D), and the block's weighted prompt loss ().

        batch_size: of the whole batch, where this process has only its own rows of it; the loss is of all.
        """
        prompts, keys = getattr(self, f"e_p_{layer}"), getattr(self, f"e_k_{layer}")
        selection = select(prompts, keys, query, self.tau, self.normalize_query)
        prompt, loss = selection.soft, query.new_zeros(())
        if self.quantize:
            chosen = prompts[selection.index]
            commitment, codebook = prompt_losses(*(all_gather_rows(p, batch_size) for p in (selection.soft, chosen)))
            loss = self.weights[0] * commitment + self.weights[1] * codebook
            prompt = straight_through(selection.soft, chosen)
        prefix_k, prefix_v = prompt.chunk(2, dim=1)
        return prefix_k, prefix_v, loss


def check_pool(size: float, length: float, tau: float) -> None:
    """Raise UserError for a pool that can not be built."""
    name = f"--prompt_param {size:g} {length:g} {tau:g} (pool size, prompt length, temperature)"
    if size != int(size) or size < 1:
        raise UserError(f"{name}: the pool needs 1 prompt or more, a whole number.")
    if length != int(length) or length < 2 or length % 2:
        raise UserError(f"{name}: half of a prompt goes to the keys and half to the values; give an even length.")
    if not tau > 0:
        raise UserError(f"{name}: give a temperature above 0.")


class Network(nn.Module):
    """The whole model under the original's keys: feat.* (timm's ViT), last.{weight,bias}, prompt.*.

    The backbone is frozen, which changes no number: the original leaves it out of the optimiser but computes its
    gradients at every step. Gradients still flow through the blocks to the prompts, down to the first prompted block.
    The ViT computes under `autocast()`; `checkpoint_activations`: its blocks run again in the backward pass.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext
    checkpoint_activations = False

    def __init__(self, vit: "VisionTransformer", classes: int, pool: dict[str, Any] | None = None) -> None:
        """pool: the arguments of a PromptPool besides its width; None: no prompts at all."""
        super().__init__()
        self.feat = vit.requires_grad_(False).eval()
        self.last = nn.Linear(vit.embed_dim, classes)  # before the prompts: the order of the draws
        sizes: dict[str, Any] = {"width": vit.embed_dim, "layers": [*LAYERS[: len(vit.blocks)]]}
        self.prompt = None if pool is None else PromptPool(**sizes | pool)

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> the first block's input (B, n, D), which both passes share."""
        with self.autocast():
            return embed(self.feat, images)

    @torch.no_grad()
    def query(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, D) -> the class feature (B, D) of the ViT without prompts."""
        with self.autocast():
            return class_feature(self.feat, tokens)

    def forward(
        self, images: Tensor, query: Tensor | None = None, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) -> class feature (B, D) after the final norm, and the prompt loss, summed over blocks.

        query (B, D): where it is known already, it is not computed again. Without a pool the feature is the query.
        """
        tokens = self.tokens(images)
        query = self.query(tokens) if query is None else query
        loss = query.new_zeros(())
        if self.prompt is None:
            return query, loss
        recompute = self.checkpoint_activations
        with self.autocast():
            for layer, block in enumerate(self.feat.blocks):
                read = CLASS_TOKEN if block is self.feat.blocks[-1] else ...
                if layer in self.prompt.layers:
                    prefix_k, prefix_v, layer_loss = self.prompt(layer, query, batch_size)
                    tokens = run_block(recompute, prompted_block, block, tokens, prefix_k, prefix_v, read)
                    loss = loss + layer_loss
                else:
                    tokens = run_block(recompute, block_of, block, tokens, read)
        return self.feat.norm(tokens[:, 0]), loss
