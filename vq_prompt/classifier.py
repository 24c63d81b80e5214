"""Classifier bias mitigation (arXiv 2410.20444 Sec. 4.3): Gaussians of all classes seen, re-training on their samples.

Statistics are taken once, after the class's own task (trainer.py:L333-L368); the classifier is re-trained from the
second task on (trainer.py:L370-L465) and nothing else with it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from common.training.finite import require_finite
from common.training.schedules import set_lr
from vq_prompt.options import VQOptions
from vq_prompt.training import coswm

RESTARTS = 10  # of k-means
JITTER = 1e-4  # added to every variance
SCHEDULE_SHARE = 0.1  # of ca_lr: the base of the schedule
TOP = 5
PROBE_C, PROBE_ITERATIONS = 0.316, 1000

Draw = tuple[Tensor, Tensor]  # an epoch's samples (G, S, D) and the permutation (G * S,) they are visited in


@dataclass
class ClassStatistics:
    """Means and variances (G, D), float64, of all Gaussians in the order of classes, then centroids.

    labels (G,): positions in the class order.
    """

    means: Tensor
    variances: Tensor
    labels: Tensor

    @classmethod
    def joined(cls, parts: "Iterable[ClassStatistics]") -> "ClassStatistics":
        """The Gaussians of several statistics, one after the other."""
        return cls(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts))))

    def spread(self) -> "ClassStatistics":
        """Those that samples are drawn from: quirk, a variance of zero in all dimensions leaves a Gaussian out."""
        kept = self.variances.mean(dim=1) != 0
        return ClassStatistics(*(part[kept] for part in vars(self).values()))


def k_means(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Number of the cluster (n,) of each of the features (n, D); no more clusters than distinct features.

    In one thread, whose sums always add up alike.
    """
    clusters = min(clusters, len(features.unique(dim=0))) if clusters > 1 else 1
    if clusters == 1:
        return torch.zeros(len(features), dtype=torch.long, device=features.device)
    from sklearn.cluster import KMeans  # before the limit, which holds for the libraries loaded when it is set

    with threadpool_limits(1):
        members = KMeans(clusters, n_init=RESTARTS, random_state=seed).fit_predict(features.cpu().numpy())
    return torch.from_numpy(members).to(features.device)


def class_statistics(features: Tensor, centroids: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, D) of a class -> means and population variances (M, D) of its clusters, float64.

    Taken in the features' precision. One centroid is the class itself.
    """
    members = k_means(features, centroids, seed)
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
    return ClassStatistics.joined(parts)


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
class RetrainingLog:
    """Of every update: loss, learning rate, top-1 and top-5 accuracy (0 to 1) on its samples.

    top5 is nan with fewer than five classes seen.
    """

    loss: list[float]
    lr: list[float]
    top1: list[float]
    top5: list[float]


def retrain(
    classifier: nn.Linear, epochs: Iterable[Draw], labels: Tensor, seen: int, old: int, options: VQOptions
) -> RetrainingLog:
    """Train the classifier, in place, on each epoch's samples (G, S, D), which have the labels (G,).

    seen: classes whose logits count; old: how many of them are of earlier tasks. Quirks: an epoch has `old` updates of
    S samples, so that with one Gaussian a class some of the samples stay unused; update 0 runs at ca_lr, the others
    on a cosine from a tenth of it; AdamW's decay also shrinks the rows of classes not seen yet.
    """
    lr, weight_decay = options.ca_lr, options.ca_weight_decay
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=weight_decay)
    first, total = lr if options.ca_first_step_full_lr else None, old * options.crct_epochs
    log, update = RetrainingLog([], [], [], []), 0
    for samples, order in epochs:
        count = samples.shape[1]
        inputs, targets = samples.flatten(0, 1)[order], labels.repeat_interleave(count)[order]
        measured = []
        for batch, truth in zip(inputs.split(count)[:old], targets.split(count)[:old]):
            set_lr(optimizer, coswm(update, SCHEDULE_SHARE * lr, 0, 0, total, first))
            logits = classifier(batch)[:, :seen]
            loss = F.cross_entropy(logits, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.lr.append(optimizer.param_groups[0]["lr"])
            ranks = (logits.detach() > logits.detach().gather(1, truth[:, None])).sum(dim=1)
            measured.append(torch.stack([loss.detach(), *((ranks < most).float().mean() for most in (1, TOP))]))
            update += 1
        losses, top1, top5 = torch.stack(measured, dim=1).tolist()  # the host waits once an epoch
        require_finite("re-training of the classifier", {"loss": torch.tensor(losses)}, len(log.loss))
        log.loss.extend(losses)
        log.top1.extend(top1)
        log.top5.extend(top5 if seen >= TOP else [torch.nan] * len(top5))
    optimizer.zero_grad()
    return log


def nearest_mean(classifier: nn.Linear, statistics: ClassStatistics) -> None:
    """Make the rows of these classes choose the nearest mean: argmin |z - mu|^2 = argmax mu z - |mu|^2 / 2."""
    with torch.no_grad():
        classifier.weight[statistics.labels] = statistics.means.to(classifier.weight.dtype)
        classifier.bias[statistics.labels] = (-0.5 * statistics.means.square().sum(dim=1)).to(classifier.bias.dtype)


def linear_probe(classifier: nn.Linear, features: Tensor, labels: Tensor) -> None:
    """Make the classifier the logistic regression of features (N, D) on labels (N,), which name all its classes.

    L-BFGS, at most 1,000 iterations, as CLIP is probed (arXiv 2103.00020 A.3), at the C of CLIP's README. The features
    enter as they are, in float64; as many threads as torch has.
    """
    from sklearn.linear_model import LogisticRegression  # before the limit, as k-means

    with threadpool_limits(torch.get_num_threads()):
        probe = LogisticRegression(C=PROBE_C, max_iter=PROBE_ITERATIONS)
        probe.fit(features.double().cpu().numpy(), labels.cpu().numpy())
    print(f"linear probe: {int(probe.n_iter_.max())} of at most {PROBE_ITERATIONS} iterations", flush=True)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(probe.coef_))
        classifier.bias.copy_(torch.from_numpy(probe.intercept_))
