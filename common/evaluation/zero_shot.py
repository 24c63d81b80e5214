"""CLIP's zero-shot classifier: class weights from prompts, features of images, logits, top-k accuracy.

Thunderbeee/ZSCL mtil/src/models/evaluation.py:L10-L58.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.datasets.transforms import clip_normalise
from common.training.device import to_device
from common.training.distributed import all_gather_rows, local_rows

LOGIT_SCALE = 100.0  # a constant, unlike exp(logit_scale) in the model's own logits; the ranking is the same
PROMPTS_AT_ONCE = 256


@torch.no_grad()
def encode_prompts(model: CLIP, tokens: Tensor) -> Tensor:
    """Text features (N, D), not normalised, of prompts (N, L), best on the CPU, where their length is read."""
    device = model.logit_scale.device
    parts = [to_device(cut_prompts(part), device) for part in tokens.split(PROMPTS_AT_ONCE)]
    return torch.cat([model.encode_text(part, cut=False) for part in parts])


def class_vectors(model: CLIP, tokens: Tensor) -> Tensor:
    """Class weights (D, C) from prompts (C, T, L) of C classes under T templates."""
    return zeroshot_weights(encode_prompts(model, tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]))


@torch.no_grad()
def image_features(model: CLIP, pixels: Tensor, batch_size: int) -> Tensor:
    """Features (N, D), not normalised, of uint8 images (N, 3, R, R) on any device; each process encodes its rows."""
    device, local = model.logit_scale.device, pixels[local_rows(len(pixels))]
    features = [model.encode_image(clip_normalise(to_device(batch, device))) for batch in local.split(batch_size)]
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

    Ties are ordered as by torch.topk. With fewer than k classes every label is among the k highest.
    Raises ValueError for N = 0.
    """
    if len(labels) == 0:
        raise ValueError("accuracy of no samples")
    highest = logits.topk(min(max(topk), logits.shape[1]), dim=1).indices
    hits = highest == to_device(labels, highest.device)[:, None]
    counts = torch.stack([hits[:, :k].sum() for k in topk]).tolist()  # the only wait for the device
    return tuple(100.0 * count / len(labels) for count in counts)
