"""Makes the miniature's weights: `python -m common.mini.pretrain clip` and `... vit`.

clip: contrastive pre-training (Radford et al., arXiv 2103.00020) on the web pool's captioned images.
vit: classification of the web pool's true classes, all but the characters of the class-incremental set.
No task image is used for training; task images are only tested, after the last step, for the log.
"""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from tqdm import tqdm

from common.clip.model import CLIP, CLIPConfig, build_model
from common.clip.pretrained import load_state_dict
from common.clip.tokenizer import class_prompts, tokenize
from common.datasets.transforms import clip_normalise
from common.errors import UserError, exit_cleanly
from common.evaluation.zero_shot import accuracy, class_vectors, image_features, zeroshot_logits
from common.files import atomic_write, unwritable
from common.mini import CLIP_FILE, VIT_FILE
from common.mini.domains import (
    DOMAINS,
    INCREMENTAL,
    WEB,
    captioned_pool,
    classnames,
    draw,
    images,
    seeded,
    templates,
    web_pool,
)
from common.options import LARGEST_SEED, option, read
from common.training.schedules import set_lr
from common.vit import MINI_SIZES

DEFAULT_STEPS = {"clip": 2200, "vit": 3000}
BATCH, WARM_UP, LR, DECAY = 256, 100, 5e-3, 0.05
LABELLED = [name for name in WEB if name != INCREMENTAL]


def normalised(pictures: np.ndarray) -> Tensor:
    """uint8 (N, 32, 32, 3) -> float32 (N, 3, 32, 32), with CLIP's normalisation."""
    return clip_normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2))


def store(path: Path, state_dict: dict[str, Tensor], **more: Tensor) -> None:
    """Save weights in half precision, and `more` in its own."""
    stored = {key: value.half().contiguous() for key, value in state_dict.items()}
    atomic_write(path, lambda file: file.write(save(stored | more)))


def optimise(
    model: nn.Module, loss_of: Callable[[np.ndarray], Tensor], size: int, steps: int, seed: int, log: list[str]
) -> None:
    """Muon on the blocks' matrices, AdamW on all else, warm-up and cosine decay, over shuffled passes of the pool.

    Muon reached a loss in less than half the steps that AdamW took.
    """
    decayed = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]
    groups = [
        {"params": [p for name, p in decayed if "blocks." not in name], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    of_blocks = [p for name, p in decayed if "blocks." in name]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(of_blocks, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98)),
    ]
    rng, order, losses = np.random.default_rng(seed), np.empty(0, dtype=np.int64), []
    for step in (bar := tqdm(range(steps), disable=None)):
        if len(order) < BATCH:
            order = rng.permutation(size)
        batch, order = order[:BATCH], order[BATCH:]
        ramp = (step + 1) / WARM_UP if step < WARM_UP else 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(batch)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            set_lr(optimiser, LR * ramp)
            optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            log.append(f"step {step + 1} loss {np.mean(losses[-100:]):.4f}")
            bar.set_postfix_str(log[-1])


@torch.no_grad()
def zero_shot(model: CLIP, name: str, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Zero-shot accuracy in percent, with all templates of the domain."""
    weights = class_vectors(model, class_prompts(classnames(name), templates(name)))
    features = image_features(model, torch.from_numpy(pictures).permute(0, 3, 1, 2), BATCH)
    return accuracy(zeroshot_logits(features, weights), torch.from_numpy(labels), topk=(1,))[0]


def pretrain_clip(steps: int, seed: int, out: Path, log: list[str]) -> None:
    """Train, store and test the CLIP; lines are appended to `log`."""
    pictures, captions = captioned_pool(seed)
    distinct, caption_of = np.unique(captions, return_inverse=True)
    tokens = tokenize(list(distinct))
    ids, compact = tokens.unique(return_inverse=True)  # sorted: the end token stays the highest
    torch.manual_seed(seed)
    config = CLIPConfig(
        embed_dim=64, image_resolution=32, vision_layers=4, vision_width=128, vision_patch_size=8, context_length=77,
        vocab_size=len(ids), transformer_width=64, transformer_heads=1, transformer_layers=3,
    )  # fmt: skip
    model = CLIP(config)

    def contrastive(batch: np.ndarray) -> Tensor:
        model.logit_scale.data.clamp_(max=math.log(100))
        logits, transposed = model(normalised(pictures[batch]), compact[caption_of[batch]])
        target = torch.arange(len(batch))
        return (F.cross_entropy(logits, target) + F.cross_entropy(transposed, target)) / 2

    size = sum(p.numel() for p in model.parameters()) - model.token_embedding.weight.numel()
    log.append(
        f"{len(pictures)} images, {len(distinct)} captions, {len(ids)} tokens, "
        f"{size} parameters besides the token table"
    )
    optimise(model, contrastive, len(pictures), steps, seed, log)
    store(out, model.state_dict(), token_ids=ids.int())  # ids of the rows of the token table
    model = build_model(load_state_dict(out))
    log.append(f"learnt exp(logit_scale) {model.logit_scale.exp().item():.2f}")
    scores = []
    for name in (*DOMAINS, INCREMENTAL):
        web = zero_shot(model, name, *held_out(name))
        train, test = (zero_shot(model, name, *images(name, split)) for split in ("train", "test"))
        log.append(f"zero-shot {name}: web {web:.2f} train {train:.2f} test {test:.2f}")
        scores.append(test)
    log.append(f"zero-shot mean over the eleven test sets {np.mean(scores[:-1]):.2f}")


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Web images outside of all pools, with their true labels."""
    labels = np.tile(np.arange(len(classnames(name))), 8)
    return draw(name, labels, "web", seeded("held out", name)), labels


def pretrain_vit(steps: int, seed: int, out: Path, log: list[str]) -> None:
    """Train, store and test the ViT; lines are appended to `log`."""
    pictures, labels, first = [], [], 0
    for name in LABELLED:
        part, classes, _ = web_pool(name, seed)
        pictures.append(part)
        labels.append(classes + first)
        first += len(classnames(name))
    pool, target = np.concatenate(pictures), torch.from_numpy(np.concatenate(labels))
    torch.manual_seed(seed)
    model = VisionTransformer(**{**MINI_SIZES, "num_classes": first})
    size = sum(p.numel() for p in model.parameters())
    log.append(f"{len(pool)} images, {first} classes, {size} parameters")

    def classification(batch: np.ndarray) -> Tensor:
        return F.cross_entropy(model(normalised(pool[batch])), target[batch], label_smoothing=0.1)

    optimise(model, classification, len(pool), steps, seed, log)
    store(out, {key: value for key, value in model.state_dict().items() if not key.startswith("head.")})
    first, model = 0, model.eval()
    for name in LABELLED:
        shown, truth = held_out(name)
        with torch.no_grad():
            guess = torch.cat([model(part).argmax(1) for part in normalised(shown).split(256)])
        log.append(f"held-out web {name}: {100 * (guess.numpy() == truth + first).mean():.2f}")
        first += len(classnames(name))


@dataclass(frozen=True)
class Options:
    model: str = option(help="what to make", positional=True, choices=("clip", "vit"))
    steps: int | None = option(None, f"steps of training ({DEFAULT_STEPS})", at_least=1)
    seed: int = option(0, "of weights and order", at_least=0, at_most=LARGEST_SEED)
    out: Path | None = option(None, "weights file, the log beside it (this folder's)", check=unwritable)
    threads: int = option(1, "CPU threads of torch", at_least=1)


def main(argv: Sequence[str] | None = None) -> None:
    options = read(Options, argv, "common.mini.pretrain", __doc__)
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"pre-training needs torch.optim.Muon of torch 2.9; this is torch {torch.__version__}.")
    torch.set_num_threads(options.threads)
    steps = options.steps or DEFAULT_STEPS[options.model]
    out = options.out or {"clip": CLIP_FILE, "vit": VIT_FILE}[options.model]
    log = [
        f"pretrain {options.model} --steps {steps} --seed {options.seed} --threads {options.threads}",
        f"torch {torch.__version__}, numpy {np.__version__}, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
    ]
    began = time.monotonic()
    {"clip": pretrain_clip, "vit": pretrain_vit}[options.model](steps, options.seed, out, log)
    log.append(f"{time.monotonic() - began:.0f} seconds")
    text = "\n".join(log) + "\n"
    atomic_write(out.with_name(f"pretrain_{options.model}.log"), lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    exit_cleanly(main)()
