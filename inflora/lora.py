"""The network of InfLoRA (arXiv 2404.00228, Sec. 3, Eq. 1): a ViT whose keys and values carry one LoRA branch a task.

The paper and its code use opposite letters. Here, as in the code's checkpoints, `lora_A` (r, d) reduces the dimension:
it is the paper's B_t, designed before a task and fixed. `lora_B` (d, r) is the paper's A_t, trained, zero at first.

Finished branches are merged into the weights, W_t = W_{t-1} + A_t B_t (Sec. 3.3): the original rebuilds the sum over
all tasks at every forward pass (models/vit_inflora.py:L245-L249). The task at hand is a path of its own, of rank r.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import attend, query_key_value
from common.errors import UserError
from common.vit import class_feature, embed

if TYPE_CHECKING:
    from timm.layers import Attention
    from timm.models.vision_transformer import VisionTransformer


class LoRAAttention(nn.Module):
    """timm's attention with branches k + x (B_k A_k)^T and v + x (B_v A_v)^T, neither scaled nor dropped out.

    Keys of the state dict are the original's: qkv.*, proj.*, lora_{A,B}_{k,v}.{t}.weight. `active` is the branch that
    is a path of its own; None: all that count are merged.
    """

    lora_A_k: Sequence[nn.Linear]  # as the next three an nn.ModuleList, one entry a branch
    lora_A_v: Sequence[nn.Linear]
    lora_B_k: Sequence[nn.Linear]
    lora_B_v: Sequence[nn.Linear]
    merged: Tensor  # qkv's weight with the merged branches

    def __init__(self, attention: "Attention", branches: int, rank: int) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, width = attention.num_heads, attention.qkv.in_features
        for name in ("k", "v"):
            setattr(self, f"lora_A_{name}", nn.ModuleList(_linear(width, rank) for _ in range(branches)))
            setattr(self, f"lora_B_{name}", nn.ModuleList(_linear(rank, width) for _ in range(branches)))
            for branch in getattr(self, f"lora_A_{name}"):
                nn.init.kaiming_uniform_(branch.weight, a=5**0.5)
            for branch in getattr(self, f"lora_B_{name}"):
                nn.init.zeros_(branch.weight)
        self.register_buffer("merged", self.qkv.weight.detach().clone(), persistent=False)
        self.active: int | None = None

    @torch.no_grad()
    def merge(self, count: int, active: int | None) -> None:
        """Set the weights to the pre-trained ones plus the first `count` branches, in one product each (Sec. 3.3)."""
        self.active = active
        self.merged.copy_(self.qkv.weight)
        if count == 0:
            return
        _, key, value = self.merged.chunk(3)
        for part, ups, downs in ((key, self.lora_B_k, self.lora_A_k), (value, self.lora_B_v, self.lora_A_v)):
            up = torch.cat([branch.weight for branch in ups[:count]], dim=1)
            part.addmm_(up, torch.cat([branch.weight for branch in downs[:count]]))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, read: Any = ...) -> Tensor:
        """x (B, N, d) -> (B, N, d), or of the tokens x[read] alone (common/attention.py).

        The two arguments between are timm's and not used by its image models.
        """
        if self.active is None:
            parts = query_key_value(x, self.merged, self.qkv.bias, read)
        else:
            parts = self._with_branch(x, self.active, read)
        return self.proj(attend(*parts, self.num_heads))

    def _with_branch(self, x: Tensor, branch: int, read: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, the branch as x A^T B^T: no product of the size of W, forwards or backwards (Eq. 1)."""
        width = x.shape[-1]
        query = F.linear(x[read].contiguous(), self.merged[:width], self.qkv.bias[:width])
        key, value = F.linear(x, self.merged[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        down = torch.cat([self.lora_A_k[branch].weight, self.lora_A_v[branch].weight])
        reduced_key, reduced_value = F.linear(x, down).flatten(0, 1).chunk(2, dim=-1)
        key = torch.addmm(key.flatten(0, 1), reduced_key, self.lora_B_k[branch].weight.t())
        value = torch.addmm(value.flatten(0, 1), reduced_value, self.lora_B_v[branch].weight.t())
        return query, key.view_as(x), value.view_as(x)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias; its default initial values, which nobody uses, are not drawn."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)


class Network(nn.Module):
    """The ViT with LoRA in its first `layers` blocks (None: all) and one classifier a task, of so many `classes`.

    State-dict keys: image_encoder.* (timm's, and the branches), classifier_pool.{t}.{weight,bias}; the original's
    unused tensors (image_encoder.head, *_grow, classifier_pool_backup) have no part in it. Everything is frozen;
    `train_only` says what trains. The ViT computes under `autocast()`. Raises UserError for a rank above the width and
    for more layers than blocks.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext

    def __init__(
        self, vit: "VisionTransformer", classes: Sequence[int], branches: int, rank: int, layers: int | None = None
    ) -> None:
        super().__init__()
        layers = len(vit.blocks) if layers is None else layers
        if not 1 <= rank <= vit.embed_dim:
            raise UserError(f"rank {rank}: the backbone is {vit.embed_dim} wide; give 1 to {vit.embed_dim}.")
        if layers > len(vit.blocks):
            raise UserError(f"LoRA in the first {layers} blocks: the backbone has {len(vit.blocks)}.")
        self.image_encoder = vit
        blocks: Any = vit.blocks[:layers]
        for block in blocks:
            block.attn = LoRAAttention(block.attn, branches, rank)
        self.classifier_pool = nn.ModuleList(nn.Linear(vit.embed_dim, count) for count in classes)
        self.requires_grad_(False)
        self.eval()

    @property
    def attentions(self) -> list[LoRAAttention]:
        """The attention layers with LoRA, first block first."""
        return [block.attn for block in self.image_encoder.blocks if isinstance(block.attn, LoRAAttention)]

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> (B, d): the class token after the final norm."""
        vit: Any = self.image_encoder
        with self.autocast():
            attention = LoRAAttention.__call__ if isinstance(vit.blocks[-1].attn, LoRAAttention) else None
            return class_feature(vit, embed(vit, images), vit.grad_checkpointing, attention).to(images.dtype)

    def logits(self, features: Tensor, tasks: int) -> Tensor:
        """Features (B, d) -> the logits (B, classes) of the classifiers 0 .. tasks - 1 side by side."""
        return torch.cat([classifier(features) for classifier in self.classifier_pool[:tasks]], dim=1)

    def activate(self, branch: int) -> None:
        """Merge the branches before this one, which gets a path of its own."""
        for attention in self.attentions:
            attention.merge(branch, active=branch)

    def finish(self, branch: int) -> None:
        """Merge the branches up to and with this one: from here a forward pass costs what the plain ViT's does."""
        for attention in self.attentions:
            attention.merge(branch + 1, active=None)

    def branch(self, index: int) -> dict[str, nn.Parameter]:
        """The trained part of a branch, lora_B of k and v in every layer, by state-dict key."""
        return self._parameters_of(f"lora_B_k.{index}.weight", f"lora_B_v.{index}.weight")

    def reduction(self, index: int) -> dict[str, nn.Parameter]:
        """The designed part of a branch, lora_A of k and v in every layer, by state-dict key."""
        return self._parameters_of(f"lora_A_k.{index}.weight", f"lora_A_v.{index}.weight")

    def classifier(self, task_id: int) -> dict[str, nn.Parameter]:
        """Weight and bias of a task's classifier, by state-dict key."""
        return self._parameters_of(f"classifier_pool.{task_id}.weight", f"classifier_pool.{task_id}.bias")

    def _parameters_of(self, *endings: str) -> dict[str, nn.Parameter]:
        return {key: parameter for key, parameter in self.named_parameters() if key.endswith(endings)}

    def train_only(self, parameters: dict[str, nn.Parameter]) -> None:
        """Let these parameters have gradients, and no other."""
        self.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
