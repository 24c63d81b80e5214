"""MoE-Adapters written out plainly (arXiv 2403.11549, section 3): what whole runs are held against.

    expert   A_e(h) = 0.1 (W_up,e Drop(ReLU(W_down,e h + b_down,e)) + b_up,e)
    router   z = c R_t + eps (softplus(c N_t) + 0.01),  g = softmax over the k largest z;  c = h's token at position 0
    block    h = x + attention(ln_1(x)),  out = h + MLP(ln_2(h)) + sum over the k experts of g_e A_e(h)
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP
from tests.whole_run import Batch, Draw, Seen, Step

ORIGINAL_CLIP = -1


class MoE:
    """A CLIP whose blocks have experts: `theta` holds their tensors under the official names.

    `router`: the task whose router is used, ORIGINAL_CLIP for none. `noise` and `kept`: a draw of the gates' noise and
    of the dropout's factors for each block in the order in which the blocks run; no noise, no dropout where empty.
    """

    def __init__(self, clip: CLIP, theta: dict[str, Tensor], experts: int, topk: int) -> None:
        self.clip, self.theta, self.experts, self.topk, self.router = clip, theta, experts, topk, ORIGINAL_CLIP
        self.noise, self.kept = iter(()), iter(())
        self.counts: Counter[str, int] = Counter()  # "<block> <expert>": the samples that went through it
        self.imbalances: list[Tensor] = []
        for tower, name in ((clip.visual.transformer, "visual.transformer"), (clip.transformer, "transformer")):
            for i, block in enumerate(tower.resblocks):
                tower.resblocks[i] = Block(self, f"{name}.resblocks.{i}", block)


class Block(nn.Module):
    def __init__(self, moe: MoE, name: str, block: nn.Module) -> None:
        super().__init__()
        self.moe, self.name, self.block = moe, name, block

    def forward(self, x: Tensor) -> Tensor:
        moe, block, name = self.moe, self.block, self.name
        h = x + block.attn(block.ln_1(x))
        out = h + block.mlp(block.ln_2(h))
        if moe.router == ORIGINAL_CLIP:
            return out
        c = h[:, 0]
        clean = z = c @ moe.theta[f"{name}.router_list.{moe.router}"]
        sigma = F.softplus(c @ moe.theta[f"{name}.w_noise_list.{moe.router}"]) + 0.01
        noise = next(moe.noise, None)
        if noise is not None:
            z = clean + noise * sigma
        values, chosen = z.sort(dim=1, descending=True, stable=True)  # among equals the lowest index
        chosen, gates = chosen[:, : moe.topk], values[:, : moe.topk].softmax(dim=1)
        if noise is not None and moe.topk < moe.experts:
            moe.imbalances.append(imbalance(z, clean, sigma, chosen, gates))
        kept = next(moe.kept, None)  # (B, L, k, r), the k experts in the order of `chosen`, or of their numbers if all
        for e in range(moe.experts):
            for k in range(moe.topk):
                rows = ((chosen[:, k] == e) & (gates[:, k] != 0)).nonzero().flatten()
                if len(rows) == 0:  # an expert without samples has no gradient, and AdamW leaves it alone
                    continue
                moe.counts[f"{name} {e}"] += len(rows)
                down_w, down_b, up_w, up_b = (moe.theta[key] for key in expert(name, e))
                hidden = F.relu(F.linear(h[rows], down_w, down_b))
                if kept is not None:
                    hidden = hidden * kept[rows, :, e if moe.topk == moe.experts else k]
                out = out.index_add(0, rows, gates[rows, k, None, None] * 0.1 * F.linear(hidden, up_w, up_b))
        return out


def expert(block: str, e: int) -> list[str]:
    parts = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")
    return [f"{block}.adaptmlp_list.{e}.{part}" for part in parts]


def imbalance(z: Tensor, clean: Tensor, sigma: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    """CV^2(importance) + CV^2(load) with the smooth load of arXiv 1701.06538, which the originals never add."""
    k = chosen.shape[1]
    importance = torch.zeros_like(z).scatter(1, chosen, gates).sum(dim=0)
    ordered = z.sort(dim=1, descending=True).values
    threshold = torch.where(z > ordered[:, k : k + 1], ordered[:, k : k + 1], ordered[:, k - 1 : k])
    load = torch.special.ndtr((clean - threshold) / sigma).sum(dim=0)
    return sum(v.var() / (v.mean() ** 2 + 1e-10) for v in (importance, load))


def cosine(n: int, peak: float, warmup: int, total: int) -> float:
    """The rate of step n = 0 .. total."""
    if n < warmup:
        return peak * (n + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (n - warmup) / (total - warmup)))


@dataclass
class Stage:
    """One training loop, or one pass over test images, as the process was seen to do it."""

    batches: list[Any] = field(default_factory=list)
    draws: list[list[Draw]] = field(default_factory=list)  # by batch
    losses: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def drawn(self, n: int, name: str) -> Iterator[Tensor]:
        return iter([draw.value for draw in self.draws[n] if draw.name == name])


def stages(seen: Seen) -> list[Stage]:
    """What was seen, loader by loader."""
    found: dict[int, Stage] = {}
    stage = Stage()
    for event in seen.events:
        if isinstance(event, Batch):
            stage = found.setdefault(event.stream, Stage())
            stage.batches.append(event.content)
            stage.draws.append([])
        elif isinstance(event, Draw):
            stage.draws[-1].append(event)
        elif isinstance(event, Step):
            stage.steps.append(event)
        else:
            stage.losses.append(event)
    return list(found.values())


@contextmanager
def dropout_watched(seen: Seen) -> Iterator[None]:
    """See what dropout multiplies by, 0 or 1 / (1 - p); its results stay what they were."""
    plain = F.dropout

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training:
            return x
        factors = plain(torch.ones_like(x), p, training)
        seen.events.append(Draw(f"dropout {p}", factors.detach()))
        return x * factors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", dropout)
        yield
