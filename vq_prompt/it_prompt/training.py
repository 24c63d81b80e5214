"""One task of IT-Prompt: train its entry, look once at its images, rebalance what softmax parts there are (B2.3, B2.4).

Every loop goes through the run's `steps`, so a killed run goes on from its last saved step to the same bits.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.incremental.features import features_in_order
from common.machine import Machine
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import cosine_annealing, set_lr
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.network import (
    Encoder,
    Parts,
    cross_entropy_over,
    loss_cls,
    loss_key,
    loss_sel,
    loss_text,
    loss_text_cosine,
    loss_total,
)  # fmt: skip
from vq_prompt.it_prompt.options import ITOptions

LAST_LR = 1e-6


@dataclass(frozen=True)
class TrainingLog:
    """L, its parts and L_sel at every step, each (steps,), on the device; what is not in use stays 0."""

    total: Tensor
    cls: Tensor
    text: Tensor
    key: Tensor
    sel: Tensor


def cosine_lr(step: int, lr: float, total: int) -> float:
    """1e-6 + (lr - 1e-6) (1 + cos(pi step / total)) / 2."""
    return LAST_LR + cosine_annealing(step, lr - LAST_LR, total)


def task_losses(
    parts: Parts, u: Tensor, z: Tensor, labels: Tensor, text: Tensor | None, classes: Tensor, task: int, o: ITOptions
) -> dict[str, Tensor]:
    """The losses of a batch, by the names of TrainingLog. classes (K,): those of the task; text (C, E) or None.

    With text_classes `seen` L_text runs over all classes up to the task's last one.
    """
    none = z.new_zeros(())
    found = {"cls": none, "text": none, "key": loss_key(u, parts.prompt.key(task)), "sel": none}
    if parts.head is not None:
        found["cls"] = loss_cls(parts.head(z), labels, classes)
    if parts.selector is not None:
        found["sel"] = loss_sel(parts.selector(u), labels, classes)
    if o.text_guide == "ce":
        over = classes if o.text_classes == "current" else torch.arange(int(classes[-1]) + 1, device=z.device)
        found["text"] = loss_text(z, text, labels, over, o.logit_scale)
    elif o.text_guide == "cosine":
        found["text"] = loss_text_cosine(z, text, labels)
    return found | {"total": loss_total(found["cls"], found["text"], found["key"], o.lambda_text, o.lambda_key)}


def train_task(
    encoder: Encoder,
    parts: Parts,
    text: Tensor | None,
    task: int,
    classes: range,
    batches: BatchStream,
    options: ITOptions,
    steps: Steps,
) -> TrainingLog:
    """Train the entry of `task`, and head and selector where there are any, in place; all else stays as it is.

    batches[step]: images (B, 3, R, R) and labels (B,), all among `classes`. The true task's entry is always used.
    """
    if task > 0 and options.init_from_prev:
        parts.prompt.copy_previous(task)
    trained = parts.of_task(task)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=options.lr, weight_decay=options.weight_decay)
    total, device = options.epochs * len(batches), parts.prompt.key(task).device
    log = TrainingLog(*parts.prompt.key(task).new_zeros(5, total).detach())
    own = torch.arange(classes.start, classes.stop, device=device)
    state = {"parameters": Tensors(trained), "optimizer": optimizer, "log": Tensors(vars(log))}
    call = parallel(parts)
    for step in steps(f"task {task + 1}", total, state):
        set_lr(optimizer, cosine_lr(step, options.lr, total))
        images, labels = batches[step]
        losses = call(batch_losses, encoder, images, labels, text, own, task, options)
        optimizer.zero_grad()
        (losses["total"] + losses["sel"]).backward()  # they share no parameter
        optimizer.step()
        for name, value in losses.items():
            getattr(log, name)[step] = value.detach()
    for parameter in trained.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    return log


def batch_losses(
    parts: Parts, encoder: Encoder, images: Tensor, labels: Tensor, text: Tensor | None, classes: Tensor, task: int,
    options: ITOptions,
) -> dict[str, Tensor]:  # fmt: skip
    """`task_losses` of a whole batch, from this process's images (b, 3, R, R) and all labels (B,)."""
    own = encoder.both(images, parts.prompt.prompts(task))
    u, z = (all_gather_rows(features, len(labels)) for features in own)
    return task_losses(parts, u, z, labels, text, classes, task, options)


# After the task


def task_features(
    encoder: Encoder, prompts: Tensor, images: Dataset, batch_size: int, machine: Machine
) -> tuple[Tensor, Tensor]:
    """u (n, E), and z (n, E) with one entry's prompts, in the order of the data set, one pass for both."""

    def both(batch: Tensor) -> Tensor:
        return torch.stack(encoder.both(batch, prompts), dim=1)

    features, _ = features_in_order(both, images, batch_size, machine, "features of the task")
    u, z = features.unbind(dim=1)
    return u.contiguous(), z.contiguous()


# Rebalancing of softmax parts, from the second task on


class PseudoFeatures:
    """`drawn[step]` is a batch of unit vectors from N(mu_c, diag sigma_c^2) of all classes learnt, and their classes.

    Every epoch has `per_class` new samples a class in one permutation, drawn from (seed, epoch) alone.
    """

    def __init__(self, memory: ClassMemory, per_class: int, batch_size: int, seed: int) -> None:
        self.mean, self.deviation = torch.stack(memory.means), torch.stack(memory.variances).sqrt()
        self.per_class, self.batch_size, self.seed = per_class, batch_size, seed
        self._epoch, self._known = -1, None

    def __len__(self) -> int:
        """The batches of an epoch; the last one may be smaller."""
        return -(-len(self.mean) * self.per_class // self.batch_size)

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """Samples (C per_class, E) and classes (C per_class,) of an epoch in the order of their use."""
        device, count = self.mean.device, len(self.mean)
        generator = torch.Generator(device).manual_seed((self.seed * 1_000_003 + number) % 2**64)
        noise = torch.randn(
            count, self.per_class, self.mean.shape[1], generator=generator, device=device, dtype=self.mean.dtype
        )
        samples = F.normalize(self.mean[:, None] + self.deviation[:, None] * noise, dim=-1).flatten(0, 1)
        order = torch.randperm(len(samples), generator=generator, device=device)
        return samples[order], torch.arange(count, device=device).repeat_interleave(self.per_class)[order]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, batch = divmod(step, len(self))
        if epoch != self._epoch:
            self._epoch, self._known = epoch, self.epoch(epoch)
        rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return self._known[0][rows], self._known[1][rows]


def rebalance(
    part: nn.Module, drawn: BatchStream, epochs: int, seen: int, lr: float, stage: str, steps: Steps
) -> Tensor:
    """Re-train a softmax part, in place, on pseudo-features by cross-entropy over the first `seen` classes.

    The losses of all steps. AdamW without decay, cosine rates from lr to 1e-6 over all steps.
    """
    parameters = dict(part.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    first = next(iter(parameters.values()))
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    total = epochs * len(drawn)
    losses, classes = first.detach().new_zeros(total), torch.arange(seen, device=first.device)
    state = {"parameters": Tensors(parameters), "optimizer": optimizer, "log": Tensors({"losses": losses})}
    for step in steps(stage, total, state):
        set_lr(optimizer, cosine_lr(step, lr, total))
        features, labels = drawn[step]
        loss = cross_entropy_over(part(features), labels, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    for parameter in parameters.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    return losses
