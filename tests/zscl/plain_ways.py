"""ZSCL's training step the plain way, as the official code goes about it: what fast paths are held against."""

from functools import partial

import torch
from torch import Tensor

from common.clip.model import CLIP
from tests.benchmarks.inputs import OneBatch
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
) -> list[float]:
    """ZSCL as the official code goes about it, every feature computed where it is used; the losses.

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
    return learned(model, batches, 0, lambda step: tokens, step_rates, *numbers, average_every, options.kd_weight)
