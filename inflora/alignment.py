"""InfLoRA+CA: a Gaussian for every class, and classifiers aligned on what is drawn from them (methods/inflora_ca.py).

Class c of task s has mean mu_c and covariance Sigma_c, taken once, after its own task, from training images under the
test transform. Alignment after task t trains all classifiers and nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import UserError
from common.training.finite import require_finite
from common.training.schedules import cosine_annealing, set_lr

EPOCHS, DRAWN = 5, 256  # epochs of alignment, samples a class and epoch; also the batch size
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
JITTER = 1e-4  # added to the diagonal of every covariance
LOGIT_NORM = 0.1


@dataclass
class ClassStatistics:
    """means (C, d) float64 and covariances (C, d, d) float32 of the classes seen, in class order."""

    means: Tensor
    covariances: Tensor

    def joined(self, newer: "ClassStatistics") -> "ClassStatistics":
        return ClassStatistics(torch.cat([self.means, newer.means]), torch.cat([self.covariances, newer.covariances]))


def class_statistics(features: Tensor, labels: Tensor, classes: Iterable[int]) -> ClassStatistics:
    """Mean and unbiased covariance (+ 1e-4 I) of each class: features (N, d), labels (N,); sums in float64.

    Upstream methods/inflora_ca.py:L557-L628. A single image, of which upstream makes nan, leaves the jitter alone.
    Raises UserError for a class without images.
    """
    means, covariances = [], []
    for label in classes:
        members = features[labels == label].double()
        if len(members) == 0:
            raise UserError(f"classifier alignment: class {label} of the class order has no training images.")
        means.append(members.mean(dim=0))
        jitter = JITTER * torch.eye(members.shape[1], dtype=torch.float64, device=members.device)
        covariance = torch.cov(members.t(), correction=min(1, len(members) - 1))
        covariances.append((covariance + jitter).float())
    return ClassStatistics(torch.stack(means), torch.stack(covariances))


def scaled_means(means: Tensor, task_of_class: Tensor) -> Tensor:
    """mu_c (0.9 + 0.1 (s + 1) / (t + 1)), (C, d) float32 from float64: the older its task s, the nearer to zero.

    t, the latest task, is the last entry's of task_of_class (C,).
    """
    scale = 0.9 + 0.1 * (task_of_class.double() + 1) / (task_of_class[-1].double() + 1)
    return (means * scale[:, None]).float()


def cholesky_factors(covariances: Tensor) -> Tensor:
    """Lower factors (C, d, d), once for all epochs: only means are rescaled.

    A class with fewer images than dimensions rests on the jitter alone and may fail in float32; it then gets the same
    jitter once more, as often as it takes, and a note. Upstream repeats the attempt for one data set only. Raises
    UserError for what no jitter helps: features that are not finite.
    """
    if not covariances.isfinite().all():
        raise UserError("classifier alignment: features are not finite; the training before it has diverged.")
    factors, failed = torch.linalg.cholesky_ex(covariances)
    eye = torch.eye(covariances.shape[1], device=covariances.device)
    for index in failed.nonzero().flatten().tolist():
        tries = 0
        while failed[index]:
            tries += 1
            factors[index], failed[index] = torch.linalg.cholesky_ex(covariances[index] + tries * JITTER * eye)
        tqdm.write(f"covariance of class {index}: {tries} x {JITTER} I added, it was not positive definite")
    return factors


def draw(means: Tensor, factors: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Every epoch's samples (C, 256, d) of N(means, L L^T) and the order (C * 256,) they are visited in, class-major.

    generator: of the device of `means`.
    """
    count, width = means.shape
    for _ in range(EPOCHS):
        noise = torch.randn(count, DRAWN, width, generator=generator, device=means.device)
        order = torch.randperm(count * DRAWN, generator=generator, device=means.device)
        yield means[:, None] + noise @ factors.mT, order


def normalised_logits(logits: list[Tensor], temperature: float = LOGIT_NORM) -> Tensor:
    """The logits (B, C) of all tasks, given by task, over temperature x the mean over tasks of their norms."""
    norms = [part.norm(dim=1, keepdim=True) + 1e-7 for part in logits]
    return torch.cat(logits, dim=1) / torch.cat(norms, dim=1).mean(dim=1, keepdim=True) / temperature


def align(
    classifiers: Sequence[nn.Module], epochs: Iterable[tuple[Tensor, Tensor]], logit_norm: bool
) -> tuple[list[Tensor], list[float]]:
    """Train the classifiers of all tasks seen, in place, on each epoch's (samples, order); losses and rates by step.

    Upstream methods/inflora_ca.py:L459-L552.
    """
    parameters = [parameter for classifier in classifiers for parameter in classifier.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses, rates = [], []
    for epoch, (samples, order) in enumerate(epochs):
        set_lr(optimizer, cosine_annealing(epoch, LR, EPOCHS))
        classes = torch.arange(len(samples), device=samples.device).repeat_interleave(samples.shape[1])
        inputs, targets = samples.flatten(0, 1)[order], classes[order]
        for batch, labels in zip(inputs.split(DRAWN), targets.split(DRAWN)):
            logits = [classifier(batch) for classifier in classifiers]
            loss = F.cross_entropy(normalised_logits(logits) if logit_norm else torch.cat(logits, dim=1), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            rates.append(optimizer.param_groups[0]["lr"])
            require_finite("classifier alignment", {"loss": losses[-1][None]}, len(losses) - 1)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return losses, rates


def fresh_norm(width: int) -> nn.LayerNorm:
    """The final norm that InfLoRA_CA1 puts in the pre-trained one's place on CIFAR-100: weight 1, bias 0, eps 1e-5."""
    return nn.LayerNorm(width).requires_grad_(False)
