"""InfLoRA as plain steps (arXiv 2404.00228 and its code), in the paper's order; nothing here comes from this project.

Letters are the paper's. B_t (r, d) is designed and then fixed (`lora_A` in checkpoints), A_t (d, r) is trained from
zero (`lora_B`): keys get x (A_k B)^T and values x (A_v B)^T on top, in every task's turn. M is an orthonormal basis of
the old tasks' space or, once that is the larger half, of the free one.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call

Epoch = list[tuple[Tensor, Tensor]]


@dataclass
class Branch:
    """What a task adds to one layer."""

    B: Tensor
    A_k: Tensor
    A_v: Tensor


@dataclass
class Model:
    """A frozen ViT, branches[t][l] of task t in layer l, and a linear classifier (weight, bias) a task."""

    vit: VisionTransformer
    branches: list[list[Branch]] = field(default_factory=list)
    classifiers: list[list[Tensor]] = field(default_factory=list)

    def features(self, images: Tensor) -> Tensor:
        """W + sum_s A_s B_s in place of the key and value rows of every layer's weights."""
        replaced = {}
        for layer, branches in enumerate(zip(*self.branches)):
            key, value = sum(b.A_k @ b.B for b in branches), sum(b.A_v @ b.B for b in branches)
            name = f"blocks.{layer}.attn.qkv.weight"
            replaced[name] = self.vit.get_parameter(name) + torch.cat([torch.zeros_like(key), key, value])
        return functional_call(self.vit, replaced, (images,))

    def logits(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return torch.cat([F.linear(features, *classifier) for classifier in self.classifiers], dim=1)


@torch.no_grad()
def second_moments(model: Model, epoch: Epoch, layers: int) -> list[Tensor]:
    """C = X^T X / n of each attention layer's inputs X (n, d): all tokens of all images."""
    inputs: list[list[Tensor]] = [[] for _ in range(layers)]
    handles = [
        model.vit.blocks[layer].attn.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0].flatten(0, 1)))
        for layer, kept in enumerate(inputs)
    ]
    for images, _ in epoch:
        model.features(images)
    for handle in handles:
        handle.remove()
    return [torch.cat(kept).T @ torch.cat(kept) / len(torch.cat(kept)) for kept in inputs]


def design(C: Tensor, M: Tensor | None, free: bool, rank: int) -> Tensor:
    """B_t: main directions of the new inputs in the free space, as unit rows over sqrt(3)."""
    if M is not None:
        C = M @ M.T @ C if free else C - M @ M.T @ C
    return torch.linalg.svd(C).U[:, :rank].T / math.sqrt(3)


def remember(C: Tensor, M: Tensor | None, free: bool, epsilon: float, dual: bool) -> tuple[Tensor, bool]:
    """GPM, or DualGPM, after a task; epsilon is compared with squares of C's singular values."""
    if M is None:
        U, S, _ = torch.linalg.svd(C)
        below = (torch.cumsum(S**2, 0) / (S**2).sum() < epsilon).sum().item()
        assert below < len(C) / 2, "the original has a fault there, and these tests do not reach it"
        return U[:, : max(below, 1)], False
    total, r = (C**2).sum(), 0
    U, S, _ = torch.linalg.svd(M @ M.T @ C if free else C - M @ M.T @ C)
    if free:  # take directions out of the free space
        left = (S**2).sum() / total
        while left >= 1 - epsilon and r < len(C):
            left, r = left - S[r] ** 2 / total, r + 1
        return torch.linalg.svd(M - U[:, :r] @ U[:, :r].T @ M).U[:, : M.shape[1] - r], True
    held = (total - (S**2).sum()) / total
    while held < epsilon and r < len(C):
        held, r = held + S[r] ** 2 / total, r + 1
    M = torch.cat([M, U[:, :r]], dim=1)[:, : len(C)]
    if dual and M.shape[1] > len(C) / 2:
        return torch.linalg.svd(M).U[:, M.shape[1] :], True
    return M, False


def train(
    model: Model, epochs: list[Epoch], first_class: int, optimizer: torch.optim.Optimizer, rates: list[list[float]]
) -> list[float]:
    """Cross-entropy among the latest task's classes; rates by epoch and group. The losses, step by step.

    What the optimiser holds and this loss does not train has a gradient of zero, on which weight decay acts.
    """
    latest = [t for branch in model.branches[-1] for t in (branch.A_k, branch.A_v)] + model.classifiers[-1]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = []
    for epoch, at_epoch in zip(epochs, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, at_epoch, strict=True):
            group["lr"] = rate
        for images, labels in epoch:
            loss = F.cross_entropy(F.linear(model.features(images), *model.classifiers[-1]), labels - first_class)
            gradients = torch.autograd.grad(loss, latest)
            for parameter in held:
                parameter.grad = torch.zeros_like(parameter)
            for parameter, gradient in zip(latest, gradients):
                parameter.grad = gradient
            optimizer.step()
            losses.append(loss.item())
    for parameter in held:
        parameter.requires_grad_(False).grad = None
    return losses


# +CA


def class_statistics(features: Tensor, labels: Tensor, classes: range) -> tuple[Tensor, Tensor]:
    """Means and unbiased covariances + 1e-4 I of the features of each class."""
    members = [features[labels == label] for label in classes]
    eye = torch.eye(features.shape[1], dtype=torch.float64)
    return torch.stack([x.mean(0) for x in members]), torch.stack([x.T.cov() + 1e-4 * eye for x in members])


def align(
    classifiers: list[list[Tensor]],
    means: Tensor,
    covariances: Tensor,
    noises: list[Tensor],
    orders: list[Tensor],
    norm: bool,
) -> tuple[list[float], list[float]]:
    """Five epochs of 256 draws a class on the classifiers alone; the losses and the rates, step by step."""
    parameters = [parameter.requires_grad_(True) for classifier in classifiers for parameter in classifier]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    factors, losses, rates = torch.linalg.cholesky(covariances), [], []
    for epoch, (noise, order) in enumerate(zip(noises, orders, strict=True)):
        optimizer.param_groups[0]["lr"] = rate = 0.01 * (1 + math.cos(math.pi * epoch / 5)) / 2
        samples = torch.cat([mu + z @ L.T for mu, z, L in zip(means, noise, factors)])
        for chosen in order.split(256):
            parts = [F.linear(samples[chosen], *classifier) for classifier in classifiers]
            logits = torch.cat(parts, dim=1)
            if norm:
                logits = logits / torch.stack([part.norm(dim=1) + 1e-7 for part in parts]).mean(0)[:, None] / 0.1
            loss = F.cross_entropy(logits, chosen // 256)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(rate)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return losses, rates


# Evaluation


def accuracies(logits: Tensor, labels: Tensor, tasks: list[range], curves: list[dict[str, float]]) -> dict[str, float]:
    """What a record holds after a task: all test images of the classes seen, classified among them.

    tasks: the classes of each task so far; curves: what this function gave after each earlier task.
    """
    hits = (logits.argmax(1) == labels).double()
    task_of = torch.tensor([task for task, members in enumerate(tasks) for _ in members])
    inside = logits.where(task_of[None, :] == task_of[labels][:, None], -torch.inf)
    percent = {f"task {task}": 100 * hits[task_of[labels] == task].mean().item() for task in range(len(tasks))}
    values = {
        "acc": 100 * hits.mean().item(),
        "acc_macro": sum(percent.values()) / len(tasks),
        "acc_with_task": 100 * (inside.argmax(1) == labels).double().mean().item(),
        "task_id_accuracy": (task_of[logits.argmax(1)] == task_of[labels]).double().mean().item(),
        "accuracy old": 100 * hits[labels < tasks[-1].start].mean().item() if len(tasks) > 1 else 0.0,
        "accuracy new": 100 * hits[labels >= tasks[-1].start].mean().item(),
    }
    for metric in ("acc", "acc_macro"):
        curve = [*(earlier[metric] for earlier in curves), values[metric]]
        values[f"avg_{metric}"] = sum(curve) / len(curve)
    if len(tasks) > 1:
        best = [max(earlier[f"task {task}"] for earlier in curves[task:]) for task in range(len(tasks) - 1)]
        values["forgetting"] = sum(b - percent[f"task {task}"] for task, b in enumerate(best)) / len(best)
    width = len(tasks[0])  # the original's groups: as many classes as the first task has
    for first in range(0, labels.max().item(), width):
        members = (labels >= first) & (labels < first + width)
        values[f"accuracy {first:02d}-{first + width - 1:02d}"] = 100 * hits[members].mean().item()
    return values | percent
