"""MoE-Adapters written out plainly (arXiv 2403.11549, section 3): what whole runs are held against.

    expert   A_e(h) = 0.1 (W_up,e Drop(ReLU(W_down,e h + b_down,e)) + b_up,e)
    router   z = c R_t + eps (softplus(c N_t) + 0.01),  g = softmax over the k largest z;  c = h's token at position 0
    block    h = x + attention(ln_1(x)),  out = h + MLP(ln_2(h)) + sum over the k experts of g_e A_e(h)
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
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
EXACT = {"rtol": 1e-8, "atol": 1e-10}


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
        self.blocks = [block.name for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks)]

    def learn(
        self,
        stage: "Stage",
        names: list[str],
        prompts: Tensor,
        rate: Callable[[int], float],
        smoothing: float,
        beta2: float = 0.999,
        decay: float = 0.0,
        balance: float = 0.0,
        image_first: bool = False,
    ) -> None:
        """Train the tensors of these names on a stage's batches, and hold the stage's steps against it.

        AdamW on the cross-entropy of exp(logit_scale) x cosine; prompts are encoded at every step. `image_first`: which
        encoder draws its noise first.
        """
        theta, clip = self.theta, self.clip
        theta |= {name: theta[name].clone().requires_grad_() for name in names}
        optimizer = torch.optim.AdamW([theta[name] for name in names], lr=1.0, betas=(0.9, beta2), weight_decay=decay)
        self.counts.clear()
        for n, (images, labels) in enumerate(stage.batches):
            self.noise, self.kept, self.imbalances = stage.drawn(n, "randn_like"), stage.drawn(n, "dropout 0.1"), []
            image = F.normalize(clip.encode_image(images), dim=-1) if image_first else None
            text = F.normalize(clip.encode_text(prompts), dim=-1)
            image = F.normalize(clip.encode_image(images), dim=-1) if image is None else image
            logits = clip.logit_scale.exp() * image @ text.t()
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing) + balance * sum(self.imbalances)
            optimizer.zero_grad()
            loss.backward()
            squares = sum(float(theta[name].grad.square().sum()) for name in names if theta[name].grad is not None)
            optimizer.param_groups[0]["lr"] = rate(n)
            optimizer.step()
            assert not list(self.noise) and not list(self.kept)
            assert stage.losses[n] == pytest.approx(loss.item(), rel=1e-9)
            assert stage.steps[n].gradient_norm == pytest.approx(squares**0.5, rel=1e-8)
            (group,) = stage.steps[n].groups
            assert group["lr"] == pytest.approx(rate(n), rel=1e-12, abs=1e-18)
            assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, beta2), decay, 1e-8)
        theta |= {name: theta[name].detach() for name in names}

    def choose_map(self) -> list[list[int]]:
        """How many samples went through each expert of each block, image blocks first, since `learn` began."""
        return [[self.counts[f"{block} {e}"] for e in range(self.experts)] for block in self.blocks]

    def picks(self, text_index_bug: bool = False) -> list[str]:
        """The two most used experts of each block, ties to the lower number; layer by layer, the image's first."""
        counts = dict(zip(self.blocks, self.choose_map()))
        names = []
        for block in sorted(self.blocks, key=lambda block: block.rsplit(".", 1)[1]):
            used = counts[block]
            if text_index_bug:  # visual experts by the counts of the text block of their layer, where there is one
                used = counts.get(block.removeprefix("visual."), used)
            ranked = sorted(range(self.experts), key=lambda e: -used[e])
            names += [name for e in ranked[:2] for name in expert(block, e)]
        return names


class Block(nn.Module):
    def __init__(self, moe: MoE, name: str, block: nn.Module) -> None:
        super().__init__()
        self.moe, self.name, self.block = moe, name, block

    def forward(self, x: Tensor, read: Any = ...) -> Tensor:
        moe, block, name = self.moe, self.block, self.name
        h = x + block.attn(block.ln_1(x))
        out = h + block.mlp(block.ln_2(h))
        if moe.router == ORIGINAL_CLIP:
            return out[read]
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
        return out[read]


def expert(block: str, e: int) -> list[str]:
    parts = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")
    return [f"{block}.adaptmlp_list.{e}.{part}" for part in parts]


def learns(key: str, task: int, frozen: set[str]) -> bool:
    """All experts but the frozen ones, and the task's own router and noise."""
    if ".router_list." in key or ".w_noise_list." in key:
        return key.endswith(f"_list.{task}")
    return ".adaptmlp_list." in key and key not in frozen


def check_initial(theta: dict[str, Tensor]) -> None:
    """Experts add nothing at first: zero but for the down projections, Kaiming-uniform with a = sqrt(5)."""
    for key, value in theta.items():
        bound = value.shape[-1] ** -0.5 if key.endswith("down_proj.weight") else 0
        assert 0.98 * bound <= value.abs().max() <= bound


def check_checkpoint(
    left: dict[str, Tensor], theta: dict[str, Tensor], original: dict[str, Tensor], experts: int
) -> None:
    """All of CLIP as it was, experts and routers as trained, the last expert once more under its alias."""
    assert {*theta, *original} <= {*left}
    for key, value in left.items():
        trained = theta.get(key.replace(".adaptmlp.", f".adaptmlp_list.{experts - 1}."))
        if trained is not None:
            torch.testing.assert_close(value, trained, **EXACT)
        elif key in original:
            assert torch.equal(value, original[key])
        else:
            assert key.endswith((".mean", ".std", ".ln_3.weight", ".ln_3.bias"))


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


@dataclass(eq=False, repr=False)
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
