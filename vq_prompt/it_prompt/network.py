"""IT-Prompt: a frozen CLIP with one entry of visual prompts a task, task inference, and the losses.

No code was published; what is known of the method, and what is our reading of it, stands in the README beside this
file, whose sections are cited here. Notation: u (B, E) and z (B, E) are the unit features of an image without prompts
and with the prompts of an entry, text (C, E) the unit features w_c of "a photo of {class}". Classes are positions in
the class order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import CLASS_TOKEN, query_key_value, run_block
from common.clip.model import ResidualAttentionBlock
from common.clip.model import VisionTransformer as ClipViT
from common.errors import UserError
from common.incremental.scenario import Scenario
from common.vit import block_of, embed
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.options import ITOptions
from vq_prompt.prompts import prefixed, prompted_block

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer as TimmViT

LOGIT_SCALE = 100.0


# The image encoder


def clip_block(block: ResidualAttentionBlock, x: Tensor, prefix_k: Tensor, prefix_v: Tensor, read: Any = ...) -> Tensor:
    """A block of CLIP's image tower of x (B, L, D), or of its tokens x[read], with prefixes (B, P / 2, D)."""
    attention = block.attn
    parts = query_key_value(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias, read)
    hidden = x[read] + attention.out_proj(prefixed(*parts, prefix_k, prefix_v, attention.heads))
    return hidden + block.mlp(block.ln_2(hidden))


class Encoder(nn.Module):
    """A frozen image tower, CLIP's or timm's, with prompts in the blocks `layers`; features have unit length.

    It computes under `autocast()`; `checkpoint_activations`: its blocks run again in the backward pass. Raises
    UserError for a layer that the tower does not have.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext
    checkpoint_activations = False

    def __init__(self, tower: "ClipViT | TimmViT", layers: Sequence[int]) -> None:
        super().__init__()
        self.tower, self.prompted_block = tower, clip_block if isinstance(tower, ClipViT) else prompted_block
        self.plain_block = ResidualAttentionBlock.__call__ if isinstance(tower, ClipViT) else block_of
        if isinstance(tower, ClipViT):
            self.blocks = list(tower.transformer.resblocks)
            self.width, self.dim, self.resolution = tower.transformer.width, tower.output_dim, tower.input_resolution
        else:
            self.blocks, self.resolution = list(tower.blocks), tower.patch_embed.img_size[0]
            self.width = self.dim = tower.embed_dim
        beyond = [layer for layer in layers if not 0 <= layer < len(self.blocks)]
        if beyond:
            raise UserError(f"prompt_layers {list(layers)}: the backbone has blocks 0 to {len(self.blocks) - 1}.")
        self.layers = {layer: row for row, layer in enumerate(layers)}  # block -> its row of an entry's prompts
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Always in eval mode."""
        return super().train(False)

    def _embed(self, images: Tensor) -> Tensor:
        tower = self.tower
        with self.autocast():
            return tower.embed(images) if isinstance(tower, ClipViT) else embed(tower, images)

    def _run(self, x: Tensor, first: int, last: int, prompts: Tensor | None = None) -> Tensor:
        """Tokens x (B, n, D) through the blocks first .. last - 1; prompts (B, layers, P, D)."""
        recompute = self.checkpoint_activations
        with self.autocast():
            for layer in range(first, last):
                block = self.blocks[layer]
                read = CLASS_TOKEN if block is self.blocks[-1] else ...
                if prompts is not None and layer in self.layers:
                    prefixes = prompts[:, self.layers[layer]].chunk(2, dim=1)
                    x = run_block(recompute, self.prompted_block, block, x, *prefixes, read)
                else:
                    x = run_block(recompute, self.plain_block, block, x, read)
        return x

    def _pool(self, x: Tensor) -> Tensor:
        with self.autocast():
            features = self.tower.pool(x) if isinstance(self.tower, ClipViT) else self.tower.norm(x)[:, 0]
        return F.normalize(features.to(x.dtype), dim=-1)

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """u (B, E) of images (B, 3, R, R), the tower's features without prompts."""
        return self._pool(self._run(self._embed(images), 0, len(self.blocks)))

    def prompted(self, images: Tensor, prompts: Tensor) -> Tensor:
        """z (B, E) with an entry's prompts (layers, P, D), or an entry for each image (B, layers, P, D)."""
        return self._above(self._below(images), prompts)

    def both(self, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """u and z (B, E) each; what lies below the first prompted block is computed once. Only z has a gradient."""
        x = self._below(images)
        with torch.no_grad():
            u = self._pool(self._run(x, min(self.layers), len(self.blocks)))
        return u, self._above(x, prompts)

    @torch.no_grad()
    def _below(self, images: Tensor) -> Tensor:
        return self._run(self._embed(images), 0, min(self.layers))

    def _above(self, x: Tensor, prompts: Tensor) -> Tensor:
        prompts = prompts.expand(len(x), *prompts.shape[-3:])
        return self._pool(self._run(x, min(self.layers), len(self.blocks), prompts))


# What is trained


class Entries(nn.Module):
    """The pool: prompts p_{t} (layers, length, D) and key k_{t} (E,) of every task, drawn from U(-width, width)."""

    def __init__(self, tasks: int, layers: int, length: int, prompt_dim: int, key_dim: int, width: float) -> None:
        super().__init__()
        self.tasks = tasks
        for task_id in range(tasks):
            for name, shape in (("p", (layers, length, prompt_dim)), ("k", (key_dim,))):
                self.register_parameter(f"{name}_{task_id}", nn.Parameter(torch.empty(shape).uniform_(-width, width)))

    def prompts(self, task_id: int) -> nn.Parameter:
        """Prompts (layers, length, D) of a task."""
        return self.get_parameter(f"p_{task_id}")

    def key(self, task_id: int) -> nn.Parameter:
        """Key (E,) of a task."""
        return self.get_parameter(f"k_{task_id}")

    def keys(self, tasks: int) -> Tensor:
        """Keys (tasks, E) of the first entries."""
        return torch.stack([self.key(task_id) for task_id in range(tasks)])

    def gathered(self, entries: Tensor) -> Tensor:
        """Prompts (B, layers, length, D) of each image's entry (B,)."""
        return torch.stack([self.prompts(task_id) for task_id in range(self.tasks)])[entries]

    @torch.no_grad()
    def copy_previous(self, task_id: int) -> None:
        """Give a task the prompts of the task before it; its key stays."""
        self.prompts(task_id).copy_(self.prompts(task_id - 1))


class Selector(nn.Module):
    """The figure's FC and classifier: r(u) = W_c relu(W_f u + b_f) + b_c, (B, E) -> (B, C)."""

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc, self.classifier = nn.Linear(dim, hidden), nn.Linear(hidden, classes)

    def forward(self, u: Tensor) -> Tensor:
        return self.classifier(F.relu(self.fc(u)))


class Parts(nn.Module):
    """All that is ever trained: prompt.*, and where the options ask for them head.* and selector.*.

    The bounds without prompts have no entries, and nothing to train.
    """

    def __init__(self, prompt: Entries, head: nn.Linear | None, selector: Selector | None) -> None:
        super().__init__()
        self.prompt, self.head, self.selector = prompt, head, selector
        self.requires_grad_(False)

    def of_task(self, task_id: int) -> dict[str, nn.Parameter]:
        """What a task trains, by state-dict key: its own entry, the head, the selector."""
        entry = {f"prompt.p_{task_id}", f"prompt.k_{task_id}"}
        return {key: value for key, value in self.named_parameters() if key in entry or not key.startswith("prompt.")}


@dataclass
class Model:
    """What a run carries from task to task.

    text (C, E): w_c in class order, (0, E) for a ViT without texts. u, z: the stores of either feature; without prompts
    z is u.
    """

    options: ITOptions
    encoder: Encoder
    parts: Parts
    text: Tensor
    scenario: Scenario
    u: ClassMemory
    z: ClassMemory

    def task_of(self, classes: Tensor) -> Tensor:
        """Task of each class, int64 on the classes' device."""
        stops = torch.tensor([task.stop for task in self.scenario.tasks], device=classes.device)
        return torch.searchsorted(stops, classes, right=True)


# Losses (README, section 3): means over the batch, over the classes of the current task alone


def cross_entropy_over(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) with all columns but `classes` (K,) left out; labels (B,) are among these."""
    targets = (labels[:, None] == classes).int().argmax(dim=1)
    return F.cross_entropy(logits[:, classes], targets)


def loss_text(z: Tensor, text: Tensor, labels: Tensor, classes: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """L_text, `ce`: cross-entropy over `classes` of scale * <z, w_c>."""
    return cross_entropy_over(scale * z @ text.t(), labels, classes)


def loss_text_cosine(z: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """L_text, `cosine`: 1 - <z, w_y>."""
    return (1 - (z * text[labels]).sum(dim=1)).mean()


def loss_key(u: Tensor, key: Tensor) -> Tensor:
    """L_key: 1 - cos(u, k_t); u (B, E) has no gradient, key (E,) is not normalised."""
    return (1 - F.cosine_similarity(u, key[None], dim=1)).mean()


# Task inference and prediction (README, section 5): scores in, ties to the lowest index


def best_class(scores: Tensor, allowed: Tensor) -> Tensor:
    """The class (B,) of the highest score (B, C) among those allowed, bool (C,) or one row an image (B, C)."""
    return scores.masked_fill(~allowed, -torch.inf).argmax(dim=1)


def key_cosines(u: Tensor, keys: Tensor) -> Tensor:
    """cos(u, k_t), (B, T), of u (B, E) and keys (T, E)."""
    return F.normalize(u, dim=-1) @ F.normalize(keys, dim=-1).t()


def task_by_key(u: Tensor, keys: Tensor) -> Tensor:
    """The entry (B,) whose key is nearest by cosine; keys (T, E) of the tasks so far."""
    return key_cosines(u, keys).argmax(dim=1)
