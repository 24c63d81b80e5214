"""Training of a task's entry, and rebalancing of what softmax parts there are (README, sections 3 and 4)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import cosine_annealing, set_lr
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.network import Model, Parts, cross_entropy_over, loss_key, loss_text, loss_text_cosine
from vq_prompt.it_prompt.options import ITOptions

LAST_LR = 1e-6
LOSSES = ("total", "cls", "text", "key", "sel")


def cosine_lr(step: int, lr: float, total: int) -> float:
    """1e-6 + (lr - 1e-6) (1 + cos(pi step / total)) / 2."""
    return LAST_LR + cosine_annealing(step, lr - LAST_LR, total)


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Turn gradients on or off and drop what there are."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        parameter.grad = None


def train_task(model: Model, task_id: int, batches: BatchStream, steps: Steps) -> dict[str, Tensor]:
    """Train the entry of a task, and head and selector where there are any, in place; all else stays as it is.

    batches[step]: images (B, 3, R, R) and labels (B,), all of the task. The true task's entry is always used. Returns L
    as "total", its terms and L_sel of every step, each (steps,), on the device; what is not in use stays 0.
    """
    options, parts, total = model.options, model.parts, model.options.epochs * len(batches)
    if task_id > 0 and options.init_from_prev:
        parts.prompt.copy_previous(task_id)
    trained = parts.of_task(task_id)
    set_trainable(trained.values(), True)
    optimizer = torch.optim.AdamW(trained.values(), lr=options.lr, weight_decay=options.weight_decay)
    log = dict(zip(LOSSES, parts.prompt.key(task_id).detach().new_zeros(len(LOSSES), total)))
    state = {"parameters": Tensors(dict(trained)), "optimizer": optimizer, "log": Tensors(log)}
    call = parallel(parts)
    for step in steps(f"task {task_id + 1}", total, state):
        set_lr(optimizer, cosine_lr(step, options.lr, total))
        images, labels = batches[step]
        cls, text, key, sel = call(batch_losses, model, images, labels, task_id)
        loss = cls + options.lambda_text * text + options.lambda_key * key  # L, README, section 3
        optimizer.zero_grad()
        (loss + sel).backward()  # they share no parameter
        optimizer.step()
        for values, term in zip(log.values(), (loss, cls, text, key, sel)):
            values[step] = term.detach()
    set_trainable(trained.values(), False)
    return log


def batch_losses(parts: Parts, model: Model, images: Tensor, labels: Tensor, task_id: int) -> tuple[Tensor, ...]:
    """`task_losses` of a whole batch, from this process's images (b, 3, R, R) and all labels (B,)."""
    rows = model.encoder.both(images, parts.prompt.prompts(task_id))
    u, z = (all_gather_rows(features, len(labels)) for features in rows)
    return task_losses(parts, model, u, z, labels, task_id)


def task_losses(parts: Parts, model: Model, u: Tensor, z: Tensor, labels: Tensor, task_id: int) -> tuple[Tensor, ...]:
    """L_cls, L_text, L_key and L_sel of a batch (README, section 3), 0 for what is not in use.

    L_cls and L_sel run over the classes of the task, and L_text too unless text_classes is `seen`. L_sel, of the
    selector's logits on u, is minimised in the same step and no part of L.
    """
    options, task = model.options, model.scenario.tasks[task_id]
    classes = torch.arange(task.start, task.stop, device=z.device)
    cls = text = sel = z.new_zeros(())
    if parts.head is not None:
        cls = cross_entropy_over(parts.head(z), labels, classes)
    if parts.selector is not None:
        sel = cross_entropy_over(parts.selector(u), labels, classes)
    if options.text_guide == "ce":
        compared = classes if options.text_classes == "current" else torch.arange(task.stop, device=z.device)
        text = loss_text(z, model.text, labels, compared, options.logit_scale)
    elif options.text_guide == "cosine":
        text = loss_text_cosine(z, model.text, labels)
    return cls, text, loss_key(u, parts.prompt.key(task_id)), sel


# Rebalancing of softmax parts, from the second task on (README, section 4)


class PseudoFeatures:
    """`drawn[step]` is a batch of unit vectors from N(mu_c, diag sigma_c^2) of all classes so far, and their classes.

    Every epoch has `per_class` new samples a class in one permutation, drawn from (seed, epoch) alone.
    """

    def __init__(self, memory: ClassMemory, per_class: int, batch_size: int, seed: int) -> None:
        self.mean, self.deviation = torch.stack(memory.means), torch.stack(memory.variances).sqrt()
        self.per_class, self.batch_size, self.seed = per_class, batch_size, seed
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}  # the epoch in use

    def __len__(self) -> int:
        """Number of batches an epoch; the last one may be smaller."""
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
        if epoch not in self._drawn:
            self._drawn = {epoch: self.epoch(epoch)}
        samples, classes = self._drawn[epoch]
        rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return samples[rows], classes[rows]


def rebalance(part: nn.Module, batches: BatchStream, seen: int, options: ITOptions, stage: str, steps: Steps) -> Tensor:
    """Re-train a softmax part, in place, on pseudo-features by cross-entropy over the first `seen` classes.

    Returns the losses of all steps. AdamW without decay, cosine rates from rebalance_lr to 1e-6 over all steps.
    """
    parameters, lr, total = dict(part.named_parameters()), options.rebalance_lr, options.rebalance_epochs * len(batches)
    set_trainable(parameters.values(), True)
    first = next(iter(parameters.values())).detach()
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    losses, classes = first.new_zeros(total), torch.arange(seen, device=first.device)
    state = {"parameters": Tensors(dict(parameters)), "optimizer": optimizer, "log": Tensors({"losses": losses})}
    for step in steps(stage, total, state):
        set_lr(optimizer, cosine_lr(step, lr, total))
        features, labels = batches[step]
        loss = cross_entropy_over(part(features), labels, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    set_trainable(parameters.values(), False)
    return losses
