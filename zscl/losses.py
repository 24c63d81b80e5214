"""The losses of ZSCL (arXiv 2303.06628, section 3.2) and of its ablations, as pure functions of features and logits.

Student and teacher logits are A = s S E^T and A* = s R E^T: S the student's and R the teacher's normalised features of
the same reference images (B, D), E the *teacher's* features of the reference sentences (M, D) on both sides, s the
student's exp(logit_scale). So distillation reaches the image encoder only (mtil/src/models/finetune.py:L246-L301).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SELF_SIMILARITY = -1e4  # what stands on the diagonal of image-image logits: an image is not its own neighbour


def distillation(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KD: T^2 x mean over rows of -sum softmax(teacher / T) log_softmax(student / T), from logits (R, C).

    A cross-entropy: it keeps the teacher's entropy, so equal inputs do not give 0; the gradient is that of the KL
    divergence (mtil/src/models/helpers.py:L64-L67).
    """
    target = (teacher_logits / temperature).softmax(dim=1)
    return temperature**2 * F.cross_entropy(student_logits / temperature, target)


def image_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """L_img: every image's distribution over the M sentences, from logits (B, M)."""
    return distillation(teacher_logits, student_logits, temperature)


def text_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """L_txt: every sentence's distribution over the B images, from the same logits (B, M) read by columns."""
    return distillation(teacher_logits.t(), student_logits.t(), temperature)


def image_image_loss(teacher: Tensor, student: Tensor, logit_scale: Tensor, temperature: float = 2.0) -> Tensor:
    """L_ii (--ablation_loss_2): every image's distribution over the other images, from normalised features (B, D)."""
    return distillation(similarities(teacher, logit_scale), similarities(student, logit_scale), temperature)


def similarities(features: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines (B, B) of normalised features (B, D), the diagonal a constant without gradient."""
    logits = logit_scale * features @ features.t()
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    return logits.masked_fill(itself, SELF_SIMILARITY)


def feature_mse(teacher: Tensor, student: Tensor) -> Tensor:
    """L_mse (--feature_mse): mean squared difference of the normalised features (B, D)."""
    return F.mse_loss(student, teacher)


def distillation_losses(
    S: Tensor, R: Tensor, E: Tensor, logit_scale: Tensor, names: Sequence[str], temperature: float = 2.0
) -> dict[str, Tensor]:
    """The named ones of img, txt, ii and mse, unweighted, from normalised features S, R (B, D) and E (M, D).

    Quirk: E is the teacher's on both sides and s the student's, so no term reaches the student's text encoder.
    """
    A_star, A = logit_scale * R @ E.t(), logit_scale * S @ E.t()
    losses = {
        "img": lambda: image_loss(A_star, A, temperature),
        "txt": lambda: text_loss(A_star, A, temperature),
        "ii": lambda: image_image_loss(R, S, logit_scale, temperature),
        "mse": lambda: feature_mse(R, S),
    }
    return {name: losses[name]() for name in names}
