"""VQ-Prompt written out (arXiv 2410.20444 Sec. 4), with the released code's ways, one small function a formula.

Whole-run tests put these together to a run and hold the program's run against it. Nothing here knows the program; the
ViT is timm's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch.nn import LayerNorm


def miniature_vit(weights: dict[str, Tensor]) -> VisionTransformer:
    """The ViT of a checkpoint's `feat.*`: frozen, 32 pixels, patches of 8, four blocks, all of them prompted.

    CLIP's has half the heads, a norm before the blocks, another activation, and 1e-5 in its norms.
    """
    of_clip = "feat.norm_pre.weight" in weights
    other = {"num_heads": 2, "pre_norm": True, "act_layer": "quick_gelu", "norm_layer": partial(LayerNorm, eps=1e-5)}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "num_classes": 0}
    vit = VisionTransformer(**sizes | (other if of_clip else {})).double()
    vit.load_state_dict({key[5:]: value for key, value in weights.items() if key.startswith("feat.")})
    return vit.eval().requires_grad_(False)


@dataclass
class Model:
    """What is trained, under the original's keys: prompts P and keys K of every block, the classifier.

    tau: temperature. weights: of the commitment and of the codebook loss; none: Soft-Prompt, which does not quantise.
    """

    vit: VisionTransformer
    parts: dict[str, Tensor]
    tau: float
    weights: tuple[float, float] | None = (0.4, 0.1)
    normalise_query: bool = False

    @property
    def groups(self) -> list[list[Tensor]]:
        """What AdamW gets: prompts with keys, and the classifier."""
        return [[value for key, value in self.parts.items() if key.startswith(start)] for start in ("prompt", "last")]

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.parts["last.weight"].t() + self.parts["last.bias"]


def first_values(seed: int, classes: int, pool: int, length: int) -> dict[str, Tensor]:
    """The classifier is made before the pools, of every pool the prompts before the keys: the order of the draws."""
    torch.manual_seed(seed)
    last = torch.nn.Linear(128, classes)
    parts = {"last.weight": last.weight.detach(), "last.bias": last.bias.detach()}
    for layer in range(4):
        parts[f"prompt.e_p_{layer}"] = torch.rand(pool, length, 128)
        parts[f"prompt.e_k_{layer}"] = torch.rand(pool, 128)
    return {key: value.requires_grad_() for key, value in parts.items()}


# The prompted network (Sec. 4.2)


def select(model: Model, prompts: Tensor, keys: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 4-9: queries (B, D) -> the prompts (B, Lp, D) put in, and the block's prompt loss."""
    if model.normalise_query:
        query = query / query.norm(dim=1, keepdim=True)
    alpha = (query @ (keys / keys.norm(dim=1, keepdim=True)).t() / model.tau).softmax(dim=1)
    mixture = torch.einsum("bn,nld->bld", alpha, prompts)
    if model.weights is None:
        return mixture, torch.zeros(())
    nearest = prompts[(mixture[:, None] - prompts).square().sum(dim=(2, 3)).argmin(dim=1)]
    commitment = (mixture - nearest.detach()).square().mean()
    codebook = (nearest - mixture.detach()).square().mean()
    return mixture + (nearest - mixture).detach(), model.weights[0] * commitment + model.weights[1] * codebook


def prefix_attention(block: Block, x: Tensor, prompt: Tensor) -> Tensor:
    """x (B, n, D): the prompt's first half stands in front of the keys, its second half in front of the values."""
    half, heads = prompt.shape[1] // 2, block.attn.num_heads
    q, k, v = block.attn.qkv(x).chunk(3, dim=2)
    k, v = torch.cat([prompt[:, :half], k], dim=1), torch.cat([prompt[:, half:], v], dim=1)
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(dim=3)
    return block.attn.proj((attention @ v).transpose(1, 2).flatten(2))


def features(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """z (B, D) after the last norm, and the prompt loss, summed over the blocks."""
    vit, loss = model.vit, torch.zeros(())
    with torch.no_grad():
        query = vit(images)  # without prompts
    x = vit.patch_embed(images)
    x = vit.norm_pre(torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) + vit.pos_embed)
    for layer, block in enumerate(vit.blocks):
        prompt, of_block = select(model, model.parts[f"prompt.e_p_{layer}"], model.parts[f"prompt.e_k_{layer}"], query)
        x, loss = x + prefix_attention(block, block.norm1(x), prompt), loss + of_block
        x = x + block.mlp(block.norm2(x))
    return vit.norm(x)[:, 0], loss


# Learning rates: of every update of a task, for a group's base rate


def coswm(base: float, freeze: int, warmup: int, total: int, updates: int) -> list[float]:
    """The scheduler is stepped behind the optimiser, so the first update has the full rate; behind the table: 1e-6."""
    rising = torch.linspace(0, base, warmup, dtype=torch.float64).tolist()
    rest = total - freeze - warmup
    falling = [1e-6 + 0.5 * (base - 1e-6) * (1 + math.cos(math.pi * m / rest)) for m in range(rest)]
    return [base, *[1e-6] * freeze, *rising, *falling, *[1e-6] * updates][:updates]


def cosine(base: float, epochs: int, batches: int) -> list[float]:
    """By epoch; the first two have the full rate, and the last one is well above zero."""
    later = [base * math.cos(99 * math.pi * (epoch - 1) / (200 * (epochs - 1))) for epoch in range(1, epochs)]
    return [rate for rate in [base, *later] for _ in range(batches)]


# A task (learners/default.py, trainer.py)


def learn(
    model: Model, batches: Sequence[tuple[Tensor, Tensor]], rates: list[list[float]], decay: float, old: int, seen: int
) -> list[float]:
    """Train prompts, keys and classifier on the batches; the losses.

    rates: by group, of every update. Logits of classes not seen yet are cut off, those of earlier tasks are -inf.
    """
    optimizer, losses = torch.optim.AdamW([{"params": group} for group in model.groups], weight_decay=decay), []
    for (images, labels), pair in zip(batches, zip(*rates), strict=True):
        for group, rate in zip(optimizer.param_groups, pair):
            group["lr"] = rate
        z, prompt_loss = features(model, images)
        logits = model.logits(z)[:, :seen]
        logits = torch.cat([torch.full_like(logits[:, :old], -math.inf), logits[:, old:]], dim=1)
        loss = F.cross_entropy(logits, labels) + prompt_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


Gaussian = tuple[int, Tensor, Tensor]  # class (its position in the order), mean (D,), variance (D,)


@torch.no_grad()
def statistics(z: Tensor, labels: Tensor, classes: range, clusters: int = 1, seed: int = 0) -> list[Gaussian]:
    """Mean and population variance of every class's features, or of each cluster that k-means finds in them."""
    found = []
    for label in classes:
        own = z[labels == label]
        count, members = min(clusters, len(own)), torch.zeros(len(own))
        if count > 1:
            members = torch.from_numpy(KMeans(count, n_init=10, random_state=seed).fit(own.numpy()).labels_)
        for cluster in range(count):
            part = own[members == cluster]
            mean = part.sum(dim=0) / len(part)
            found.append((label, mean, (part - mean).square().sum(dim=0) / len(part)))
    return found


def retrain(
    model: Model, gaussians: list[Gaussian], noise: Tensor, orders: list[Tensor], rates: Sequence[float], decay: float,
    old: int, seen: int,
) -> list[float]:  # fmt: skip
    """Train the classifier alone on samples of all classes seen (Sec. 4.3); the losses.

    noise: standard normal (epochs, G, S, D); orders: an epoch's permutation of its G S samples. There are as many
    updates an epoch, of S samples each, as there are classes of earlier tasks: some samples stay unused.
    """
    optimizer = torch.optim.AdamW(model.groups[1], weight_decay=decay)
    means, variances = (torch.stack([one[part] for one in gaussians]) for part in (1, 2))
    size, losses, rates = noise.shape[2], [], iter(rates)
    labels = torch.tensor([one[0] for one in gaussians]).repeat_interleave(size)
    for drawn, order in zip(noise, orders, strict=True):
        samples = (means[:, None] + (variances + 1e-4).sqrt()[:, None] * drawn).flatten(0, 1)
        for step in range(old):
            rows = order[step * size : (step + 1) * size]
            optimizer.param_groups[0]["lr"] = next(rates)
            loss = F.cross_entropy(model.logits(samples[rows])[:, :seen], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: Model, images: Tensor, labels: Tensor, seen: int) -> float:
    """Percent of a task's test images whose class is the likeliest of all classes seen."""
    predictions = model.logits(features(model, images)[0])[:, :seen].argmax(dim=1)
    return 100 * (predictions == labels).double().mean().item()
