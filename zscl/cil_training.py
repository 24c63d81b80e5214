"""Learning one task of the class-incremental protocol (cil/continual_clip/models.py:L185-L282).

    L = L_CE + lambda L_WC + 5 (L_img + L_txt), each term only where the method has it

The terms are those of `zscl.losses`; what differs from MTIL are the weights 5 and 5, the texts of L_CE, one epoch and
its schedule. Everything starts anew at each task: optimiser, schedule, ensemble, streams.
"""

import torch
from torch import Tensor

from common.cil import learning_rate
from common.clip.model import CLIP
from common.errors import UserError
from common.runs import Tensors
from common.training.batches import Batches
from common.training.schedules import set_lr
from zscl.cil_reference import CILReference, Distilled, Texts
from zscl.training import (
    Steps, Terms, TrainingOptions, class_features, cross_entropy, detached, distillation_terms, trainable_parameters,
)  # fmt: skip
from zscl.weights import WeightEnsemble, assign_, consolidate, copied, weights_of

KD_WEIGHT = 5.0  # of L_img and of L_txt; constants in the original's code


def train_task(
    model: CLIP,
    texts: Texts,
    batches: Batches,
    first_label: int,
    reference: CILReference | None,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
) -> None:
    """Train `model` in place; with the weight ensemble it is left with the ensemble's mean.

    texts(step) -> prompts (K, L) of that step's L_CE, the task's own classes first. Labels of the batches are
    positions in the class order, `first_label` that of the task's first class. Quirk: T + 1 steps, T =
    options.iterations: the last has rate 0 where the warm-up is over, and is a full one where it is not. Raises
    UserError at the first loss that is not finite.
    """
    parameters = trainable_parameters(model, "whole")
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    weights = weights_of(model)
    theta0 = copied(weights) if options.l2 else None
    average = WeightEnsemble(weights) if options.ensemble == "we" else None
    state = {"parameters": Tensors(weights), "optimizer": optimizer}
    state |= {"average": average} if average else {}
    state |= {"teacher": reference.known} if reference and reference.known else {}
    model.train()
    for step in steps(stage, options.iterations + 1, state):
        set_lr(optimizer, learning_rate(step, options.lr, options.iterations, options.warmup))
        images, labels = batches[step]
        optimizer.zero_grad()
        distilled = reference[step] if reference else None
        terms = backward(model, texts(step), images, labels - first_label, distilled, options)
        if options.l2:
            terms["WC"] = consolidate(((p, theta0[name]) for name, p in model.named_parameters()), options.l2)
        refuse_nan(terms, stage, step)
        optimizer.step()
        if average and step % options.avg_freq == 0:
            average.add(weights)
    model.eval()
    if average:
        assign_(weights, average.mean)


def backward(
    model: CLIP, tokens: Tensor, images: Tensor, labels: Tensor, distilled: Distilled | None, options: TrainingOptions
) -> Terms:
    """Add the gradients of all terms but WC; returns the terms, unweighted.

    Quirk: L_CE is over the columns of `tokens`, which by default are the task's own classes: old classes are unknown
    to training and back in every test. Task and reference images go through the student together or one after the
    other (options.joint_pass), which gives the same gradients.
    """
    text = class_features(model, tokens)
    if distilled is None:
        losses = cross_entropy(model, text, model.encode_image(images), labels, options)
        total(losses).backward()
        return detached(losses)
    reference_images, teacher, sentences = distilled
    if options.joint_pass:
        both = model.encode_image(torch.cat([images, reference_images]))
        features, student = both.split([len(images), len(reference_images)])
        losses = cross_entropy(model, text, features, labels, options)
        losses |= distillation_terms(model, student, teacher, sentences, options)
        total(losses).backward()
        return detached(losses)
    losses = cross_entropy(model, text, model.encode_image(images), labels, options)
    total(losses).backward()
    terms = distillation_terms(model, model.encode_image(reference_images), teacher, sentences, options)
    total(terms).backward()
    return detached(losses | terms)


def total(terms: Terms) -> Tensor:
    """The weighted sum that is differentiated (WC apart, whose gradient is added in closed form)."""
    return sum(KD_WEIGHT * loss if name in ("img", "txt") else loss for name, loss in terms.items())


def refuse_nan(terms: Terms, stage: str, step: int) -> None:
    """Stop before a loss that is not finite reaches the weights."""
    if not torch.stack(list(terms.values())).isfinite().all():  # one look at the device a step
        wrong = [name for name, loss in terms.items() if not loss.isfinite()]
        raise UserError(
            f"{stage}: the loss is not finite at step {step} ({', '.join(wrong)}). The checkpoints of the tasks before "
            "are intact. Try a lower lr, and check model_name and the data; then start with another save=... or "
            "overwrite=true."
        )
