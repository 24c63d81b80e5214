"""CLIP's zero-shot classifier: class weights from prompts, logits, top-k accuracy.

Thunderbeee/ZSCL mtil/src/models/evaluation.py:L10-L58.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# A constant, not exp(logit_scale) as the model's own logits have; the order of the classes is the same.
LOGIT_SCALE = 100.0


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
