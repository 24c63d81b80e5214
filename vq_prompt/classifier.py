"""Classifier bias mitigation (arXiv 2410.20444 Sec. 4.3): Gaussians of all classes seen, re-training on their samples.

Statistics are taken once, after the class's own task (trainer.py:L333-L368); the classifier is re-trained from the
second task on (trainer.py:L370-L465) and nothing else with it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.training.finite import require_finite
from common.training.schedules import set_lr
from vq_prompt.training import coswm

JITTER = 1e-4  # added to every variance
SCHEDULE_SHARE = 0.1  # of ca_lr: the base of the schedule
TOP = 5

Draw = tuple[Tensor, Tensor]  # an epoch's samples (G, S, D) and the permutation (G * S,) they are visited in


@dataclass
class ClassStatistics:
    """means, variances (G, D) float64 and labels (G,) of all Gaussians, in the order of classes, then centroids.

    labels: positions in the class order.
    """

    means: Tensor
    variances: Tensor
    labels: Tensor

    def joined(self, newer: "ClassStatistics") -> "ClassStatistics":
        return ClassStatistics(*(torch.cat([mine, vars(newer)[name]]) for name, mine in vars(self).items()))

    def spread(self) -> "ClassStatistics":
        """Those that samples are drawn from: quirk, a variance of zero in all dimensions leaves a Gaussian out."""
        kept = self.variances.mean(dim=1) != 0
        return ClassStatistics(*(part[kept] for part in vars(self).values()))


def class_statistics(features: Tensor, centroids: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, D) of a class -> means and population variances (M, D) of its clusters, float64.

    Taken in the features' precision. M = 1 is the class itself; else k-means, of at most as many clusters as there are
    distinct features.
    """
    count = min(centroids, len(features.unique(dim=0))) if centroids > 1 else 1
    if count == 1:
        parts = [features]
    else:
        from sklearn.cluster import KMeans

        found = KMeans(count, n_init=10, random_state=seed).fit(features.cpu().numpy())
        members = torch.from_numpy(found.labels_).to(features.device)
        parts = [features[members == cluster] for cluster in range(int(members.max()) + 1)]
    means = torch.stack([part.mean(dim=0) for part in parts])
    variances = torch.stack([part.var(dim=0, correction=0) for part in parts])
    return means.double(), variances.double()


def task_statistics(
    features: Tensor, labels: Tensor, classes: Iterable[int], centroids: int, seed: int
) -> ClassStatistics:
    """Statistics of a task's classes from features (N, D) and labels (N,) of its images."""
    parts = []
    for label in classes:
        means, variances = class_statistics(features[labels == label], centroids, seed)
        parts.append(ClassStatistics(means, variances, torch.full((len(means),), label, device=labels.device)))
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.joined(part)
    return joined


def draw(statistics: ClassStatistics, count: int, epochs: int, generator: torch.Generator) -> Iterator[Draw]:
    """Every epoch's `count` samples of each N(mu, diag(var) + 1e-4 I), float32, and their permutation.

    The covariance is diagonal, so mean + sqrt(var + 1e-4) * noise is what a MultivariateNormal makes of the same
    stream, without a Cholesky factor a class and epoch. generator: of the statistics' device.
    """
    means, deviations = statistics.means.float(), (statistics.variances.float() + JITTER).sqrt()
    for _ in range(epochs):
        noise = [torch.randn(count, means.shape[1], generator=generator, device=means.device) for _ in means]
        samples = means[:, None] + deviations[:, None] * torch.stack(noise)
        yield samples, torch.randperm(len(means) * count, generator=generator, device=means.device)


@dataclass(frozen=True)
class RetrainingOptions:
    """What the flags --ca_* decide. first_full_lr: update 0 at ca_lr itself (coswm_first_step_full_lr's twin)."""

    epochs: int
    lr: float
    weight_decay: float
    first_full_lr: bool = True


@dataclass(frozen=True)
class RetrainingLog:
    """Of every update: loss, learning rate, shares of samples whose class is the first or among the first five.

    top5 is nan with fewer than five classes seen.
    """

    loss: list[float]
    lr: list[float]
    top1: list[float]
    top5: list[float]


def retrain(
    classifier: nn.Linear, epochs: Iterable[Draw], labels: Tensor, seen: int, old: int, options: RetrainingOptions
) -> RetrainingLog:
    """Train the classifier, in place, on each epoch's samples (G, S, D), which have the labels (G,).

    seen: classes whose logits count; old: how many of them are of earlier tasks. Quirks: an epoch has `old` updates of
    S samples, so that with one Gaussian a class some of the samples stay unused; update 0 runs at ca_lr, the others
    on a cosine from a tenth of it; AdamW's decay also shrinks the rows of classes not seen yet.
    """
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    first, total = options.lr if options.first_full_lr else None, old * options.epochs
    log, update = RetrainingLog([], [], [], []), 0
    for samples, order in epochs:
        count = samples.shape[1]
        inputs, targets = samples.flatten(0, 1)[order], labels.repeat_interleave(count)[order]
        for batch, truth in zip(inputs.split(count)[:old], targets.split(count)[:old]):
            set_lr(optimizer, coswm(update, SCHEDULE_SHARE * options.lr, 0, 0, total, first))
            logits = classifier(batch)[:, :seen]
            loss = F.cross_entropy(logits, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.loss.append(loss.detach())
            require_finite("re-training of the classifier", {"loss": log.loss[-1][None]}, update)
            log.lr.append(optimizer.param_groups[0]["lr"])
            ranks = (logits.detach() > logits.detach().gather(1, truth[:, None])).sum(dim=1)
            log.top1.append((ranks < 1).float().mean())
            log.top5.append((ranks < TOP).float().mean() if seen >= TOP else torch.nan)
            update += 1
    optimizer.zero_grad()
    return RetrainingLog(*([float(value) for value in column] for column in vars(log).values()))


def nearest_mean(classifier: nn.Linear, statistics: ClassStatistics) -> None:
    """Make the rows of these classes choose the nearest mean: argmin |z - mu|^2 = argmax mu z - |mu|^2 / 2."""
    with torch.no_grad():
        classifier.weight[statistics.labels] = statistics.means.to(classifier.weight.dtype)
        classifier.bias[statistics.labels] = (-0.5 * statistics.means.square().sum(dim=1)).to(classifier.bias.dtype)
