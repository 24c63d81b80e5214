"""Heads, buffers and batches of the fixtures."""

import torch
from torch import Tensor

from alta.heads import Head, PromptOptions
from alta.options import OptimSection, Options, TrainSection
from common.clip.model import CLIP, CLIPConfig
from common.clip.pretrained import to_half
from tests.golden_files import Golden

VOCABULARY, CONTEXT = 49408, 77


def golden_clip(golden: Golden) -> CLIP:
    """The fixture's CLIP in float32; its text heads are narrower than 64, so their number comes from meta."""
    meta = golden.meta
    layers = tuple(meta["vl"]) if isinstance(meta["vl"], list) else meta["vl"]
    sizes = (meta["D"], meta["res"], layers, meta["vw"], meta["patch"], CONTEXT, VOCABULARY)
    model = CLIP(CLIPConfig(*sizes, meta["tw"], meta["th"], meta["tl"]))
    weights = golden.under("clip.")
    table = torch.zeros(VOCABULARY, meta["tw"])
    table[weights.pop("token_embedding.ids").long()] = weights.pop("token_embedding.rows").float()
    weights = {key: value.float() for key, value in weights.items()} | {"token_embedding.weight": table}
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    return model


def prompt_options(golden: Golden) -> PromptOptions:
    return PromptOptions(words=golden.meta["prefix"], position=golden.meta["pos"])


def golden_head(golden: Golden, method: str, half: bool = False, encoding: str = "cut") -> Head:
    model = golden_clip(golden)
    if half:
        to_half(model)
    return Head(model, method, golden.meta["names"], prompt_options(golden), encoding)


class TaskBatches:
    """The batches of a task in the fixture's order, the same in every epoch."""

    def __init__(self, golden: Golden, task: int) -> None:
        self.parts = [
            (golden[f"train.t{task}.b{j}.images"].float(), golden[f"train.t{task}.b{j}.labels"])
            for j in range(golden.meta["nb"])
        ]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.parts[step % len(self.parts)]


def training_options(
    policy: str, lr: float, warmup_lr: float, warmup_epochs: int, epochs: int, batch_size=1, alpha=0.0, beta=0.0
) -> Options:
    """Options of which only what a training loop reads is given."""
    optim = OptimSection(LR=lr, WARMUP_CONS_LR=warmup_lr, WARMUP_EPOCH=warmup_epochs, MAX_EPOCH=epochs)
    return Options(lr_policy=policy, OPTIM=optim, train=TrainSection(batch_size=batch_size, alpha=alpha, beta=beta))


def options_of(golden: Golden) -> Options:
    meta = golden.meta
    weights = (meta["alpha"], meta["beta"])
    return training_options("released", 0.002, meta["lr"], 1, meta["epochs"], meta["bs"], *weights)


def optimizer_of(head: Head) -> torch.optim.SGD:
    return torch.optim.SGD(head.trained().values(), lr=1.0, momentum=0.9, weight_decay=5e-4)


def apart(found: Tensor, expected: Tensor) -> float:
    """max |a - b| / max |a|, places that are nan in both left out; infinite where only one is."""
    found, expected = found.detach().double(), expected.detach().double()
    if not torch.equal(found.isnan(), expected.isnan()):
        return float("inf")
    return float((found - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max())
