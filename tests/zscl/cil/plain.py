"""Class-incremental ZSCL and its baselines in plain steps, to hold whole runs against.

Nothing here calls the training code or reads its options: CLIP as a network, torch, and the formulas of the paper
(arXiv 2303.06628) and of the released code (cil/continual_clip).
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP

Batch = tuple[Tensor, Tensor]  # images, labels as positions in the class order
Distilled = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # step -> reference images, the teacher's features, texts'


def features(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Normalised features, no gradient: a teacher's."""
    with torch.no_grad():
        return F.normalize(encode(inputs), dim=-1)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """(1 - ls)(-log p_y) + ls / K sum_k(-log p_k), mean over the batch."""
    log_p = logits.log_softmax(dim=1)
    return -((1 - smoothing) * log_p[torch.arange(len(labels)), labels] + smoothing * log_p.mean(dim=1)).mean()


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """The soft cross-entropy of rows at temperature 2, times 4."""
    return -4 * ((teacher / 2).softmax(dim=1) * (student / 2).log_softmax(dim=1)).sum(dim=1).mean()


def rates(peak: float, warmup: int, total: int) -> list[float]:
    """Of the total + 1 steps of a task: linear warm-up, then half a cosine down to 0."""
    rise = [peak * (step + 1) / warmup for step in range(min(warmup, total + 1))]
    return rise + [
        peak / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) for step in range(warmup, total + 1)
    ]


def herded(features: Tensor, count: int, stale: bool) -> list[int]:
    """Greedily the images whose mean stays nearest to that of all; `stale`: by place in the list that shrinks."""
    mean, left, chosen, total = features.mean(dim=0), list(range(len(features))), [], 0
    for picks in range(1, min(count, len(features)) + 1):
        place = int((mean - (features[left] + total) / picks).square().sum(dim=1).argmin())
        total = total + features[left[place]]
        chosen.append(place if stale else left[place])
        del left[place]
    return chosen


# A task, and the test after it


def learned(
    model: CLIP,
    batches: Iterable[Batch],
    first_label: int,
    texts: Callable[[int], Tensor],
    rates: Sequence[float],
    weight_decay: float,
    smoothing: float,
    distilled: Distilled | None = None,
    consolidation: float = 0.0,
    average_every: int = 0,
    weight: float = 5.0,
) -> list[float]:
    """Train on these batches, in place; returns L_CE + weight (L_img + L_txt) of every step.

    The weights that are left are the mean over those before the task and those after every `average_every`-th step.
    """
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    mean, samples, losses = start, 1, []
    parameters = [value for name, value in model.named_parameters() if name != "logit_scale"]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    for step, (images, labels) in enumerate(batches):
        scale = model.logit_scale.detach().exp()
        text = F.normalize(model.encode_text(texts(step)), dim=-1)
        logits = scale * F.normalize(model.encode_image(images), dim=-1) @ text.T
        loss = cross_entropy(logits, labels - first_label, smoothing)
        if distilled:
            references, teacher, sentences = distilled(step)
            student = F.normalize(model.encode_image(references), dim=-1)
            ours, theirs = scale * student @ sentences.T, scale * teacher @ sentences.T
            loss = loss + weight * (distillation(theirs, ours) + distillation(theirs.T, ours.T))
        losses.append(loss.item())
        moved = sum((value - start[name]).square().sum() for name, value in model.named_parameters())
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        (loss + consolidation * moved).backward()
        optimizer.step()
        if average_every and step % average_every == 0:
            now = {name: value.detach() for name, value in model.named_parameters()}
            mean = {name: (samples * mean[name] + now[name]) / (samples + 1) for name in mean}
            samples += 1
    if average_every:
        model.load_state_dict(mean)
    return losses


@torch.no_grad()
def predicted(model: CLIP, images: Tensor, prompts: Tensor) -> Tensor:
    """The class of every image among the classes of these prompts."""
    image, text = (F.normalize(value, dim=-1) for value in (model.encode_image(images), model.encode_text(prompts)))
    return (image @ text.T).argmax(dim=1)
