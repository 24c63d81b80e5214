"""ZSCL the plain way, as the official code goes about it: what the fast paths are held against."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.runs import Steps
from common.training.schedules import cosine_with_warmup, set_lr
from tests.benchmarks.inputs import OneBatch
from zscl.training import TrainingOptions

CAPTIONS_AT_ONCE = 1000  # upstream's one call needs several cards


def train_plainly(
    model: CLIP,
    teacher: CLIP,
    tokens: Tensor,
    captions: Tensor,
    batches: OneBatch,
    reference_images: OneBatch,
    options: TrainingOptions,
    steps: Steps,
    losses: list[Tensor],
) -> CLIP:
    """ZSCL with every feature computed where it is used; returns the running mean as a model.

    tokens (C, 77) and captions (M, 77) at full length. Each step the teacher encodes all captions and the reference
    images, the student runs once over the task's and once over the reference images, and the distance to theta0 is
    differentiated with the rest; a sample of the mean is a new model (mtil/src/models/finetune.py:L180-L322).
    `losses` gets CE, L_img, L_txt and L_WC of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, options.beta2), weight_decay=0.0)
    start, mean, samples = copy.deepcopy(model), copy.deepcopy(model), 0
    model.logit_scale.requires_grad_(False)
    for step in steps("plain", options.iterations + 1, {}):
        set_lr(optimizer, cosine_with_warmup(step, options.lr, options.warmup, options.iterations))
        images, labels = batches[step]
        text = F.normalize(model.encode_text(tokens, cut=False), dim=-1)
        features = F.normalize(model.encode_image(images), dim=-1)
        scale = model.logit_scale.exp()
        cross_entropy = F.cross_entropy(scale * features @ text.t(), labels)
        images, _ = reference_images[step]
        sentences, target = teacher_features(teacher, captions, images)
        student = F.normalize(model.encode_image(images), dim=-1)
        teacher_logits, student_logits = scale * target @ sentences.t(), scale * student @ sentences.t()
        image_loss = distillation(teacher_logits, student_logits, options.temperature)
        text_loss = distillation(teacher_logits.t(), student_logits.t(), options.temperature)
        consolidation = distance(model, start)
        optimizer.zero_grad()
        (cross_entropy + image_loss + text_loss + options.l2 * consolidation).backward()
        optimizer.step()
        losses.append(torch.stack([cross_entropy, image_loss, text_loss, consolidation]).detach())
        if step % options.avg_freq == 0:
            samples += 1
            mean = merged(mean, model, samples)
    return mean


@torch.no_grad()
def teacher_features(teacher: CLIP, captions: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised features of all captions (M, D) and of the images (B, D)."""
    sentences = torch.cat([teacher.encode_text(part, cut=False) for part in captions.split(CAPTIONS_AT_ONCE)])
    return F.normalize(sentences, dim=-1), F.normalize(teacher.encode_image(images), dim=-1)


def distillation(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 x the mean over rows of the cross-entropy of softmax(student / T) under softmax(teacher / T)."""
    target = F.softmax(teacher_logits / temperature, dim=1)
    return -(target * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean() * temperature**2


def distance(model: CLIP, start: CLIP) -> Tensor:
    """sum (theta - theta0)^2 over all parameters."""
    loss = 0.0
    for parameter, before in zip(model.parameters(), start.parameters()):
        loss = loss + (parameter - before.detach()).square().sum()
    return loss


@torch.no_grad()
def merged(mean: CLIP, model: CLIP, samples: int) -> CLIP:
    """The running mean after sample number `samples`, as a copy of the model that is given its weights."""
    new = copy.deepcopy(model)
    for average, before, sample in zip(new.parameters(), mean.parameters(), model.parameters()):
        average.copy_((samples * before + sample) / (samples + 1))
    return new
