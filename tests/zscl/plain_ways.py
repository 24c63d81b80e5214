"""ZSCL's training step the plain way, as the official code goes about it: what fast paths are held against."""

from functools import partial

import torch
from torch import Tensor

from common.clip.model import CLIP
from tests.benchmarks.inputs import SMALL, OneBatch
from tests.benchmarks.measure import Clock
from tests.zscl.cil.plain import features, learned, rates
from zscl.training import TrainingOptions

CAPTIONS_AT_ONCE = 1000  # upstream's one call needs several cards


def train_plainly(
    model: CLIP,
    teacher: CLIP,
    tokens: Tensor,
    captions: Tensor,
    batch: OneBatch,
    images: OneBatch,
    options: TrainingOptions,
    clock: Clock,
) -> dict[str, Tensor]:
    """ZSCL as the official code goes about it, every feature computed where it is used; what it leaves.

    tokens (C, 77) and captions (M, 77) at full length. Each step the teacher encodes all captions and the reference
    images, the student runs once over the task's and once over the reference images, and the distance to theta0 is
    differentiated with the rest (mtil/src/models/finetune.py:L180-L322).
    """
    model.requires_grad_(True).encode_text = partial(model.encode_text, cut=False)
    encode_text, parts = partial(teacher.encode_text, cut=False), captions.split(CAPTIONS_AT_ONCE)

    def distilled(step: int) -> tuple[Tensor, Tensor, Tensor]:
        sentences = torch.cat([features(encode_text, part) for part in parts])
        return images[step][0], features(teacher.encode_image, images[step][0]), sentences

    batches = (batch[step] for step in clock.steps("plain", clock.calls, {}))
    step_rates = rates(options.lr, options.warmup, max(clock.calls - 1, options.warmup + 1))
    numbers = options.weight_decay, options.label_smoothing, distilled, options.l2
    average_every = options.avg_freq if options.ensemble else 0
    numbers = *numbers, average_every, options.kd_weight
    return left_by(model, torch.tensor(learned(model, batches, 0, lambda step: tokens, step_rates, *numbers)))


def left_by(model: CLIP, losses: Tensor) -> dict[str, Tensor]:
    """Losses, last gradients but that of logit_scale, which is not trained, and weights, without biases of the keys.

    Softmax hides a bias of the keys, its gradient is rounding noise, and AdamW with WC blows it up.
    """
    tensors = {"losses": losses}
    for name, parameter in model.named_parameters():
        for key, value in ((f"gradient {name}", parameter.grad), (name, parameter.detach())):
            tensors[key] = value.clone() if name != "logit_scale" else torch.zeros(())
            if name.endswith("attn.in_proj_bias"):
                tensors[key].chunk(3)[1].zero_()
    return tensors


def uneven_clip(seed: int) -> CLIP:
    """A small random CLIP in float64 that tells prompts apart; with fresh weights all of them would look the same."""
    torch.manual_seed(seed)
    model = CLIP(SMALL).eval().double()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
    return model
