"""CLIP's zero-shot classifier: class weights from prompts, features of images, logits, top-k accuracy.

Thunderbeee/ZSCL mtil/src/models/evaluation.py:L10-L58.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.datasets.transforms import clip_normalise
from common.training.distributed import all_gather_rows, local_rows

# A constant, not exp(logit_scale) as the model's own logits have; the order of the classes is the same.
LOGIT_SCALE = 100.0
PROMPTS_AT_ONCE = 256


@torch.no_grad()
def class_vectors(model: CLIP, tokens: Tensor) -> Tensor:
    """Class weights (D, C) under the model as it is now, from prompts (C, T, L) of C classes under T templates."""
    classes, templates, _ = tokens.shape
    features = [model.encode_text(chunk) for chunk in tokens.flatten(0, 1).split(PROMPTS_AT_ONCE)]
    return zeroshot_weights(torch.cat(features).view(classes, templates, -1))


@torch.no_grad()
def image_features(model: CLIP, pixels: Tensor, batch_size: int) -> Tensor:
    """Features (N, D), not normalised, under the model as it is now, of uint8 images (N, 3, R, R) on any device.

    Each process encodes its part.
    """
    device, own = model.logit_scale.device, pixels[local_rows(len(pixels))]
    features = [model.encode_image(clip_normalise(batch.to(device))) for batch in own.split(batch_size)]
    return all_gather_rows(torch.cat(features), len(pixels))


def zeroshot_weights(text_embeddings: Tensor) -> Tensor:
    """Class weights (D, C) from text features (C, T, D), not normalised, of C classes under T templates each.

    Features are normalised, averaged over the templates and normalised again. The dtype is the input's.
    """
    return F.normalize(F.normalize(text_embeddings, dim=-1).mean(dim=1), dim=-1).t()


def zeroshot_logits(image_features: Tensor, weights: Tensor) -> Tensor:
    """100 x cosine (N, C) of image features (N, D), not normalised, and class weights (D, C)."""
    return LOGIT_SCALE * F.normalize(image_features, dim=-1) @ weights


def accuracy(logits: Tensor, labels: Tensor, topk: Sequence[int] = (1, 5)) -> tuple[float, ...]:
    """Percent of the logits (N, C) whose label (N,) is among the k highest, for each k of `topk`.

    Ties fall as torch.topk orders them. With fewer than k classes every label is among the k highest.
    Raises ValueError for N = 0.
    """
    if len(labels) == 0:
        raise ValueError("accuracy of no samples")
    highest = logits.topk(min(max(topk), logits.shape[1]), dim=1).indices
    hits = highest == labels.to(highest.device)[:, None]
    return tuple(100.0 * int(hits[:, :k].sum()) / len(labels) for k in topk)
