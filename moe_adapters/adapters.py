"""Mixture-of-experts adapters in CLIP's blocks: experts, routers, which are frozen (arXiv 2403.11549, section 3.2).

With h the residual stream after a block's attention and c its token at position 0 (class token of an image,
start-of-text token of a prompt):

    expert   A_e(h) = s * (W_up,e Drop(ReLU(W_down,e h + b_down,e)) + b_up,e)
    router   z = c R_t + eps * (softplus(c N_t) + 0.01),  g = softmax over the k largest z, 0 elsewhere
    block    out = h + MLP(ln_2(h)) + sum_e g_e A_e(h)

One gate a sample, shared by all its tokens. The paper's router, softmax(TopK(R(c))), has no noise; its code has, and
made the numbers. Parameters carry the official key names.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP, LayerNorm, ResidualAttentionBlock, Transformer, VisionTransformer
from common.training.distributed import draw_whole, sum_over_processes
from common.training.numerics import full_precision

ADAPTER_SCALE = 0.1  # s, a constant that multiplies the bias as well
ADAPTER_DROPOUT = 0.1  # between ReLU and up_proj, in train mode
NOISE_EPSILON = 0.01  # the least standard deviation of the gate noise
FROZEN_PER_TASK = 2  # experts a block freezes after each task: a literal upstream, independent of --topk
ORIGINAL_CLIP = -1  # the router id that skips every adapter
TRAINABLE_MARKS = ("adaptmlp", "router", "noise")  # names that contain none of these are CLIP's, always frozen


class Expert(nn.Module):
    """The bottleneck d -> r -> d of one expert; its up projection starts at zero, so it adds nothing at first."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(width, bottleneck)
        self.up_proj = nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for zero in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(zero)


def top_k_gates(z: Tensor, topk: int, stable: bool) -> tuple[Tensor, Tensor]:
    """z (B, E) -> the k chosen experts (B, k), largest first, and their gates (B, k), a softmax over the k values.

    `stable` gives exact ties to the lowest indices, on any device: without noise a router still at zero ties
    everywhere, and upstream's choice there is arbitrary. With noise ties are accidents of the draw, and torch.topk
    settles them as it did upstream.
    """
    if stable:
        values, experts = z.sort(dim=-1, descending=True, stable=True)
        values, experts = values[:, :topk], experts[:, :topk]
    else:
        values, experts = z.topk(topk, dim=-1)
    return experts, values.softmax(dim=-1)


def noise_deviation(c: Tensor, noise_weight: Tensor) -> Tensor:
    """sigma = softplus(c N_t) + 0.01, (B, E)."""
    return F.softplus(c @ noise_weight) + NOISE_EPSILON


def mixture_of_experts(
    h: Tensor, chosen: Tensor, gates: Tensor, experts: Sequence[Expert], dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """sum_e g_e A_e(h_b) for h (B, L, d), chosen (B, k) and gates (B, k); float32 sum as upstream's combine.

    Each sample gathers the weights of its k experts, and two batched products do all samples at once: no loop over
    experts, no synchronisation with the host. The k bottlenecks lie side by side, so the gates scale the hidden
    units and the second product sums over experts. `dropout` sees the hidden units as (B, L, k, r).
    """
    batch, topk = chosen.shape

    def table(tensors: list[Tensor]) -> Tensor:  # (E, ...); through cat and view, whose gradients need no copies
        return torch.cat(tensors).view(len(tensors), *tensors[0].shape)

    def gathered(table: Tensor) -> Tensor:  # (E, ...) -> (B, k, ...); embedding's backward is deterministic
        return F.embedding(chosen, table.flatten(1)).view(batch, topk, *table.shape[1:])

    down = gathered(table([expert.down_proj.weight for expert in experts]))  # (B, k, r, d)
    down_bias = gathered(table([expert.down_proj.bias for expert in experts]))  # (B, k, r)
    up = gathered(table([expert.up_proj.weight for expert in experts]).transpose(1, 2))  # (B, k, r, d)
    up_bias = gathered(table([expert.up_proj.bias for expert in experts]))  # (B, k, d)
    hidden = torch.baddbmm(down_bias.flatten(1).unsqueeze(1), h, down.flatten(1, 2).transpose(1, 2))
    hidden = dropout(F.relu(hidden).unflatten(2, (topk, -1))) * gates.view(batch, 1, topk, 1)
    bias = (gates.unsqueeze(1) @ up_bias).float()
    return (ADAPTER_SCALE * torch.baddbmm(bias, hidden.flatten(2).float(), up.flatten(1, 2).float())).to(h.dtype)


def mixture_of_all_experts(
    h: Tensor, chosen: Tensor, gates: Tensor, experts: Sequence[Expert], dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """`mixture_of_experts` where every sample has all of them (k = E): nothing is gathered, two plain products do."""
    by_expert = torch.zeros_like(gates).scatter(1, chosen, gates)
    down = torch.cat([expert.down_proj.weight for expert in experts])  # (E r, d)
    up = torch.cat([expert.up_proj.weight for expert in experts], dim=1)  # (d, E r)
    hidden = F.linear(h, down, torch.cat([expert.down_proj.bias for expert in experts]))
    hidden = dropout(F.relu(hidden).unflatten(2, (len(experts), -1))) * by_expert.view(len(h), 1, -1, 1)
    bias = (by_expert @ torch.stack([expert.up_proj.bias for expert in experts])).float()
    return (ADAPTER_SCALE * (F.linear(hidden.flatten(2).float(), up.float()) + bias.unsqueeze(1))).to(h.dtype)


def smooth_load(z: Tensor, clean: Tensor, sigma: Tensor, topk: int) -> Tensor:
    """The smooth probability, summed over the batch, that each expert is among the k (arXiv 1701.06538), (E,)."""
    ordered = z.sort(dim=-1, descending=True).values
    inside, outside = ordered[:, topk : topk + 1], ordered[:, topk - 1 : topk]
    threshold = torch.where(z > inside, inside, outside)
    return torch.special.ndtr((clean - threshold) / sigma).sum(dim=0)


def squared_variation(v: Tensor) -> Tensor:
    """CV^2(v) = var / (mean^2 + 1e-10) with the unbiased variance; 0 for a single entry."""
    return v.float().var() / (v.float().mean() ** 2 + 1e-10) if len(v) > 1 else v.new_zeros(())


class MoEBlock(ResidualAttentionBlock):
    """A CLIP block with experts beside its MLP, one router a task.

    `task_id` names the router (ORIGINAL_CLIP skips the experts), `router_noise` adds the gate noise: a switch of its
    own upstream (--is_train), independent of train/eval mode. `choices` counts, since it was last zeroed, the
    samples that gave each expert a gate above zero. `ln_3`, `mean`, `std` and the alias `adaptmlp` are never used:
    they stand in the official checkpoints, which these keys exchange in both directions.
    """

    choices: Tensor

    def __init__(
        self, width: int, heads: int, causal: bool, experts: int, topk: int, bottleneck: int, routers: int
    ) -> None:
        super().__init__(width, heads, causal)
        self.ln_3 = LayerNorm(width)
        self.register_buffer("mean", torch.tensor([0.0]))
        self.register_buffer("std", torch.tensor([1.0]))
        self.register_buffer("choices", torch.zeros(experts), persistent=False)
        self.adaptmlp_list = nn.ModuleList(Expert(width, bottleneck) for _ in range(experts))
        self.router_list = nn.ParameterList(torch.zeros(width, experts) for _ in range(routers))
        self.w_noise_list = nn.ParameterList(torch.zeros(width, experts) for _ in range(routers))
        self.adaptmlp = self.adaptmlp_list[-1]
        self.dropout = nn.Dropout(ADAPTER_DROPOUT)
        self.topk, self.task_id = topk, ORIGINAL_CLIP
        self.router_noise, self.keep_balance = False, False
        self.draw_noise: Callable[[Tensor], Tensor] = torch.randn_like
        self.batch_size: int | None = None  # of several processes each sees its own rows of so many; None: all
        self.balance: Tensor | float = 0.0  # `imbalance` of the latest pass with `keep_balance`

    @property
    def experts(self) -> list[Expert]:
        return [expert for expert in self.adaptmlp_list if isinstance(expert, Expert)]

    def route(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """c (B, d), the token at position 0 -> chosen experts and gates, both (B, k). c is not detached."""
        clean = z = c @ self.router_list[self.task_id]
        sigma = None
        if self.router_noise:
            sigma = noise_deviation(c, self.w_noise_list[self.task_id])
            z = clean + draw_whole(self.draw_noise, clean, self.batch_size) * sigma
        chosen, gates = top_k_gates(z, self.topk, stable=not self.router_noise)
        self.choices.scatter_add_(0, chosen.flatten(), (gates != 0).flatten().to(self.choices.dtype))
        if self.keep_balance:
            self.balance = self.imbalance(clean, z, sigma, chosen, gates)
        return chosen, gates

    def imbalance(self, clean: Tensor, z: Tensor, sigma: Tensor | None, chosen: Tensor, gates: Tensor) -> Tensor:
        """CV^2(importance) + CV^2(load): upstream computes it and never adds it to the loss."""
        dense = torch.zeros_like(clean).scatter(1, chosen, gates)
        if sigma is None or self.topk == dense.shape[1]:
            load = (dense > 0).sum(dim=0)
        else:
            load = smooth_load(z, clean, sigma, self.topk)
        return squared_variation(dense.sum(dim=0)) + squared_variation(load)

    def forward(self, x: Tensor, read: Any = ...) -> Tensor:
        h = x[read] + self.attn(self.ln_1(x), read)
        out = h + self.mlp(self.ln_2(h))
        if self.task_id == ORIGINAL_CLIP:
            return out
        # the end token of a prompt is read, its start token chooses, which sees itself alone
        apart = self.attn.causal and read is not ...
        first = x[:, :1] + self.attn(self.ln_1(x[:, :1])) if apart else h
        with full_precision():  # which experts are the best may hang on the last digit
            chosen, gates = self.route(first[:, 0])
        mixture = mixture_of_all_experts if self.topk == len(self.adaptmlp_list) else mixture_of_experts
        return out + mixture(h, chosen, gates, self.experts, partial(self.drop, x.shape[1], read))

    def drop(self, length: int, read: Any, hidden: Tensor) -> Tensor:
        """Dropout of hidden units (B, L, k, r), or of the tokens [read]; drawn for the whole batch, all tokens."""
        if not self.training or (self.batch_size is None and read is ...):
            return self.dropout(hidden)
        whole = hidden[:, :1].expand(-1, length, -1, -1)
        return hidden * draw_whole(self.dropout, whole, self.batch_size)[read]


def towers(model: CLIP) -> tuple[Transformer, Transformer]:
    """The image encoder's blocks and the text encoder's."""
    return cast(VisionTransformer, model.visual).transformer, model.transformer


def insert_adapters(
    model: CLIP, experts: int, topk: int, bottleneck: int = 64, routers: int = 11, both_encoders: bool = True
) -> CLIP:
    """Replace the blocks of the image tower, and of the text tower if `both_encoders`, by MoE blocks; in place.

    CLIP's own tensors are taken over, everything of CLIP is frozen, `logit_scale` included. Returns the model.
    """
    for tower in towers(model)[: 2 if both_encoders else 1]:
        for index, block in enumerate(tower.resblocks):
            assert isinstance(block, ResidualAttentionBlock)
            moe = MoEBlock(tower.width, block.attn.heads, block.attn.causal, experts, topk, bottleneck, routers)
            moe.load_state_dict(block.state_dict(), strict=False)
            tower.resblocks[index] = moe.to(block.ln_1.weight.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter_key(name))
    return model.eval()


def with_shared_router(model: CLIP) -> CLIP:
    """Insert two experts and one router into every block of both encoders, in place. Returns the model.

    Its state dict has the official keys, which here lack the unused ln_3 of MTIL's.
    """
    insert_adapters(model, experts=2, topk=2, bottleneck=64, routers=1)  # cil/clip/model.py:L289-L292
    for block in moe_blocks(model):
        del block.ln_3
    return model


def is_adapter_key(name: str) -> bool:
    """Whether a parameter or state-dict key belongs to the adapters and not to CLIP."""
    return any(mark in name for mark in TRAINABLE_MARKS)


def image_blocks(model: CLIP) -> list[MoEBlock]:
    return [block for block in towers(model)[0].resblocks if isinstance(block, MoEBlock)]


def moe_blocks(model: CLIP) -> list[MoEBlock]:
    """All MoE blocks, image tower first: the order of the choose map's rows."""
    return [block for tower in towers(model) for block in tower.resblocks if isinstance(block, MoEBlock)]


def use_router(model: CLIP, task_id: int, noise: bool = False, keep_balance: bool = False) -> None:
    """Send both encoders through the router of `task_id`, or through the original CLIP when it is ORIGINAL_CLIP."""
    for block in moe_blocks(model):
        block.task_id, block.router_noise, block.keep_balance, block.balance = task_id, noise, keep_balance, 0.0


def trainable_parameters(model: CLIP, task_id: int, frozen: set[str]) -> dict[str, Tensor]:
    """Mark and return what task `task_id` trains: its router and noise pair, and the experts not in `frozen`.

    Other tasks' routers stay as they are upstream only because they get no gradient and weight decay is 0; here they
    are frozen outright, with the same result. Every gradient is set to None: what the task before left behind on
    parameters frozen since would be stale (upstream starts each task in a process of its own).
    """
    chosen: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.grad = None
        other_router = ("router_list." in name or "w_noise_list." in name) and not name.endswith(f"_list.{task_id}")
        parameter.requires_grad_(is_adapter_key(name) and name not in frozen and not other_router)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


@torch.no_grad()
def count_choices(model: CLIP) -> Callable[[], Tensor]:
    """Take and zero the choice counts of all blocks; what comes back gives them: (blocks, E), image blocks first.

    They are copied to the host, which only waits for them when it asks, and not for what the device was given since.
    Each process sees its own images, but all texts.
    """
    blocks = moe_blocks(model)
    counts = torch.stack([block.choices for block in blocks])
    copy = counts.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.current_stream(counts.device).record_event() if counts.is_cuda else None
    for block in blocks:
        block.choices.zero_()

    def read() -> Tensor:
        if copied:
            copied.synchronize()
        sum_over_processes(copy[: len(image_blocks(model))])
        return copy

    return read


def drop_unchosen_gradients(model: CLIP, counts: Tensor) -> None:
    """Set to None the gradients of experts that no sample of this step chose.

    The gathered form hands them zeros, with which AdamW would go on moving them by momentum and counting their
    steps. Upstream they get None, and AdamW leaves such a tensor alone altogether.
    """
    for block, count in zip(moe_blocks(model), counts.tolist()):
        for expert, chosen in zip(block.experts, count):
            if not chosen:
                for layer in (expert.down_proj, expert.up_proj):
                    layer.weight.grad = layer.bias.grad = None


def most_chosen(counts: Tensor) -> list[int]:
    """The two experts with the highest counts (E,), larger first, ties to the lower index."""
    return counts.sort(descending=True, stable=True).indices[:FROZEN_PER_TASK].tolist()


def experts_to_freeze(model: CLIP, choose_map: Tensor, text_index_bug: bool = False) -> list[str]:
    """The parameter names that the finished task freezes ("activate-freeze"), in the official list file's order.

    choose_map (blocks, E): choices over the task's training, image blocks first. `text_index_bug`: until 2024-07-18
    upstream took the *visual* experts from the text map's indices.
    """
    depth = len(image_blocks(model))
    image_map, text_map = choose_map[:depth], choose_map[depth:]
    names = []
    for block in range(max(len(image_map), len(text_map))):  # the towers of some CLIPs differ in depth
        if block < len(image_map):
            counts = text_map[block] if text_index_bug and block < len(text_map) else image_map[block]
            names += _expert_names("visual.transformer", block, most_chosen(counts))
        if block < len(text_map):
            names += _expert_names("transformer", block, most_chosen(text_map[block]))
    return names


def _expert_names(tower: str, block: int, experts: list[int]) -> list[str]:
    parts = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")
    return [f"{tower}.resblocks.{block}.adaptmlp_list.{expert}.{part}" for expert in experts for part in parts]
