"""Learning one task of the class-incremental protocol (cil/continual_clip/models.py:L185-L282).

    L = L_CE + lambda L_WC + 5 (L_img + L_txt), each term only where the method has it

The terms are those of `zscl.losses`; what differs from MTIL are the weights 5 and 5, the texts of L_CE, one epoch and
its schedule. Everything starts anew at each task: optimiser, schedule, ensemble, streams.
"""

from dataclasses import replace

import torch

from common.clip.model import CLIP
from common.runs import Steps, Tensors
from common.training.batches import Batches
from common.training.distributed import parallel
from common.training.schedules import cil_cosine_with_warmup, set_lr
from zscl.cil.reference import CILReference, Texts
from zscl.training import TrainingOptions, backward, note_terms, term_log, trainable_parameters
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
    options.iterations: the last has rate 0 where the warm-up is over, and is a full one where it is not.
    """
    options = replace(options, kd_weight=KD_WEIGHT)
    parameters = trainable_parameters(model, "whole")
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    weights = weights_of(model)
    theta0 = copied(weights) if options.l2 else None
    average = WeightEnsemble(weights) if options.ensemble == "we" else None
    log = term_log(options, model.logit_scale, distils=reference is not None)
    state = {"parameters": Tensors(weights), "optimizer": optimizer, "log": Tensors(log)}
    state |= {"average": average} if average else {}
    state |= {"teacher": reference.known} if reference and reference.known else {}
    call = parallel(model, unused=reference is not None and not options.joint_pass)
    model.train()
    for step in steps(stage, options.iterations + 1, state):
        set_lr(optimizer, cil_cosine_with_warmup(step, options.lr, options.iterations, options.warmup))
        images, labels = batches[step]
        optimizer.zero_grad()
        distilled = reference[step] if reference else None
        terms = backward(call, texts(step), images, labels - first_label, distilled, options)
        if options.l2:
            terms["WC"] = consolidate(((p, theta0[name]) for name, p in model.named_parameters()), options.l2)
        note_terms(log, step, terms)
        optimizer.step()
        if average and step % options.avg_freq == 0:
            average.add(weights)
    model.eval()
    if average:
        assign_(weights, average.mean)
