"""C-NCM, the cluster-based nearest class mean classifier of IT-Prompt, and what is kept of a feature.

Only the name, and that it has a preprocessing and a classifier part, is known of it (Applied Sciences 2025, 15(6),
2966, 3.4); the rest is our reading (README, section 7), every choice an argument. Features are unit vectors (N, D) of
any float dtype.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.training.numerics import full_precision
from vq_prompt.classifier import k_means

LISTS = ("centroids", "means", "variances")  # fields of ClassMemory with an entry a class


def power_transform(features: Tensor, beta: float) -> Tensor:
    """The features as sign(v) |v|^beta; beta 1 changes nothing."""
    return features if beta == 1 else features.sign() * features.abs() ** beta


def preprocess(features: Tensor, tukey_beta: float = 1.0, mean: Tensor | None = None) -> Tensor:
    """phi: power transform, minus `mean` (D,) where there is one, to unit length."""
    transformed = power_transform(features, tukey_beta)
    return F.normalize(transformed if mean is None else transformed - mean, dim=-1)


def cluster_means(phi: Tensor, members: Tensor, clusters: int, renorm: bool = True) -> Tensor:
    """Means (M, D) of the rows of phi (n, D) by cluster, of unit length with `renorm`; members (n,): each row's."""
    means = torch.stack([phi[members == cluster].mean(dim=0) for cluster in range(clusters)])
    return F.normalize(means, dim=-1) if renorm else means


def class_centroids(phi: Tensor, n_clusters: int, seed: int, renorm: bool = True) -> Tensor:
    """Centroids (M, D) of one class's features (n, D) by k-means, M at most n_clusters and the distinct rows.

    n_clusters 1 is the class mean, plain NCM.
    """
    members = k_means(phi, n_clusters, seed)
    return cluster_means(phi, members, int(members.max()) + 1, renorm)


def distances(phi: Tensor, centroids: Tensor) -> Tensor:
    """Squared Euclidean distances (N, C, M) of phi (N, D) to centroids (C, M, D), in one product."""
    flat = centroids.flatten(0, 1)
    squared = phi.square().sum(dim=1, keepdim=True) - 2 * phi @ flat.t() + flat.square().sum(dim=1)
    return squared.view(len(phi), *centroids.shape[:2])


def class_distances(distance: Tensor, counts: Tensor, aggregate: str = "min") -> Tensor:
    """Distances (N, C) to classes: the least, or with "mean" the mean, of the first counts[c] of (N, C, M)."""
    absent = torch.arange(distance.shape[2], device=distance.device) >= counts[:, None]
    if aggregate == "min":
        return distance.masked_fill(absent, torch.inf).amin(dim=2)
    return distance.masked_fill(absent, 0).sum(dim=2) / counts


def nearest_class(by_class: Tensor, classes: Tensor | None = None) -> Tensor:
    """Class (N,) of least distance (N, C), ties to the lowest; among `classes`, bool (C,) or (N, C), where given."""
    if classes is not None:
        by_class = by_class.masked_fill(~classes, torch.inf)
    return by_class.argmin(dim=1)


@dataclass
class ClassMemory:
    """What is kept for ever of one feature, u or z, in class order; never refreshed (README, section 4).

    center (D,): subtracted by phi; None until the first task, or always. centroids: (M_c, D) a class. means and
    variances: (D,) a class, of the plain features, for pseudo-features. What is not asked for stays empty.
    """

    tukey_beta: float = 1.0
    centered: bool = False
    n_clusters: int = 10
    renorm: bool = True
    aggregate: str = "min"
    center: Tensor | None = None
    centroids: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    variances: list[Tensor] = field(default_factory=list)

    def learn(
        self, features: Tensor, labels: Tensor, classes: Iterable[int], seed: int, clusters: bool, gaussians: bool
    ) -> None:
        """Add the classes of a task, from its features (n, D) and labels (n,); what exists is not touched.

        Raises UserError for a class without images.
        """
        if self.centered and self.center is None:
            self.center = power_transform(features, self.tukey_beta).mean(dim=0)
        for label in classes:
            members = features[labels == label]
            if len(members) == 0:
                raise UserError(f"class {label} of the class order has no training images.")
            if clusters:
                phi = preprocess(members, self.tukey_beta, self.center)
                self.centroids.append(class_centroids(phi, self.n_clusters, seed, self.renorm))
            if gaussians:
                self.means.append(members.mean(dim=0))
                self.variances.append(members.var(dim=0, correction=0))

    @full_precision()
    def class_distances(self, features: Tensor) -> Tensor:
        """Distances d_c (N, C) of features (N, D) to the C classes so far."""
        counts = torch.tensor([len(part) for part in self.centroids], device=features.device)
        padded = torch.nn.utils.rnn.pad_sequence(self.centroids, batch_first=True)
        phi = preprocess(features, self.tukey_beta, self.center)
        return class_distances(distances(phi, padded), counts, self.aggregate)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        center = [] if self.center is None else [self.center]
        return [*center, *self.centroids, *self.means, *self.variances]

    def state_dict(self) -> dict[str, Any]:
        """All of it on the CPU."""
        center = None if self.center is None else self.center.cpu()
        return {"center": center} | {name: [tensor.cpu() for tensor in getattr(self, name)] for name in LISTS}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` gave, on this device."""
        self.center = None if saved["center"] is None else saved["center"].to(device)
        for name in LISTS:
            setattr(self, name, [tensor.to(device) for tensor in saved[name]])
