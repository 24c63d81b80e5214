"""Learning one task: fine-tuning, and on top of it ZSCL's losses and weight ensemble (arXiv 2303.06628, section 3).

    L = L_CE + lambda L_WC + w (L_img + L_txt + L_ii) + L_mse, each term only with its flag

(mtil/src/models/finetune.py:L68-L340). Everything starts anew at each task: optimiser, schedule, ensemble, streams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.clip.model import CLIP
from common.runs import Steps, Tensors
from common.training.batches import Batches
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import cosine_with_warmup, set_lr
from zscl.losses import feature_mse, image_image_loss, image_loss, text_loss
from zscl.teacher import Reference
from zscl.weights import MovingAverage, WeightEnsemble, Weights, consolidate, copied, interpolate_, weights_of

Call = Callable[..., Any]  # common.training.distributed.parallel's
Terms = dict[str, Tensor]  # loss terms by name, unweighted
Distilled = tuple[Tensor, Tensor, Tensor]  # of a step: reference images, the teacher's features of them, of sentences
KD_TERMS = ("img", "txt", "ii")  # those that kd_weight scales


@dataclass(frozen=True)
class TrainingOptions:
    """What the command line decides of a task's training; the defaults are the originals'."""

    lr: float = 1e-3
    iterations: int = 1000
    warmup: int = 100
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    beta2: float = 0.999
    train_mode: str = "whole"
    temperature: float = 2.0
    terms: tuple[str, ...] = ()  # of distillation: img, txt, ii, mse
    kd_weight: float = 1.0  # of img, txt and ii; 0.5 with --weight_adjust, 5 in the class-incremental code
    l2: float = 0.0  # lambda of WC
    ensemble: str | None = None  # we, we_wise or moving_avg
    avg_freq: int = 100
    we_wise_alpha: float = 0.98
    mv_avg_decay: float = 0.999
    mv_avg_model: str = "n"  # n: theta0, t: the weights before the previous pull, zeroshot: CLIP
    wise_merge: str | None = None  # WiSE-FT after the last step, with n: theta0, zeroshot: CLIP
    wise_ft_alpha: float = 0.8
    joint_pass: bool = True  # task and reference images through the student together
    loss_interval: int = 1000
    eval_interval: int = 0


def train_task(
    model: CLIP,
    tokens: Tensor,
    batches: Batches,
    reference: Reference | None,
    clip_weights: Weights | None,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
    evaluate: Callable[[int, Weights], None] | None = None,
) -> Weights:
    """Train `model` in place on one data set; returns the weights to be saved: its own or the ensemble's mean.

    tokens (C, L): the training prompt of every class. `reference`: for distillation. `clip_weights`: the pre-trained
    ones, for the options that pull to them. `evaluate(step, weights)` is called before every eval_interval-th step, the
    first among them. The loop takes iterations + 1 steps as the original: the last has rate 0, and gives the ensemble
    its last sample.
    """
    optimizer = torch.optim.AdamW(
        trainable_parameters(model, options.train_mode),
        lr=options.lr,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )
    weights = weights_of(model)
    theta0 = copied(weights) if options.l2 or options.wise_merge == "n" else None
    average = weight_average(weights, clip_weights, options)
    log = term_log(options, model.logit_scale, distils=reference is not None)
    state = {"parameters": Tensors(weights), "optimizer": optimizer, "log": Tensors(log)}
    state |= {"average": average} if average else {}
    state |= {"teacher": reference.known} if reference else {}
    call = parallel(model, unused=reference is not None and not options.joint_pass)
    constant_text = class_features(model, tokens) if text_stays(options) else None
    for step in steps(stage, options.iterations + 1, state):
        if evaluate and step % options.eval_interval == 0:
            evaluate(step, average.mean if isinstance(average, WeightEnsemble) else weights)
        set_lr(optimizer, cosine_with_warmup(step, options.lr, options.warmup, options.iterations))
        optimizer.zero_grad()
        distilled = (*reference[step], reference.sentences) if reference else None
        terms = backward(call, tokens if constant_text is None else constant_text, *batches[step], distilled, options)
        if options.l2:
            pairs = [(parameter, theta0[name]) for name, parameter in model.named_parameters()]
            terms["WC"] = consolidate(pairs, options.l2)
        note_terms(log, step, terms)
        optimizer.step()
        if average and step % options.avg_freq == 0:
            average.add(weights)
        if step % options.loss_interval == 0:
            told = ", ".join(f"{name} {loss.item():.4f}" for name, loss in terms.items())
            tqdm.write(f"{stage}: step {step}, {told}")
    if options.wise_merge:
        interpolate_(weights, theta0 if options.wise_merge == "n" else clip_weights, options.wise_ft_alpha)
    return average.mean if isinstance(average, WeightEnsemble) else weights


def joint_pass(reference_pass: str, device: torch.device) -> bool:
    """Whether task and reference images pass together; `auto`: not on a GPU, where memory is what is scarce."""
    return device.type != "cuda" if reference_pass == "auto" else reference_pass == "joint"


def trainable_parameters(model: CLIP, train_mode: str) -> list[nn.Parameter]:
    """Freeze what --train-mode leaves alone; returns the rest. logit_scale is never trained.

    It keeps its gradient, which upstream computes too and which adds up unread over a task.
    """
    picked = {
        "whole": lambda name: name != "logit_scale",
        "image": lambda name: name.startswith("visual."),
        "text": lambda name: not name.startswith("visual.") and name != "logit_scale",
    }[train_mode]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(picked(name) or name == "logit_scale")
    return [parameter for name, parameter in model.named_parameters() if picked(name)]


def weight_average(
    weights: Weights, clip_weights: Weights | None, options: TrainingOptions
) -> WeightEnsemble | MovingAverage | None:
    """The record that --we, --we_wise or --moving_avg keeps, begun with the weights before the first step."""
    if options.ensemble == "moving_avg":
        start = clip_weights if options.mv_avg_model == "zeroshot" else weights
        return MovingAverage(start, options.mv_avg_decay, follow=options.mv_avg_model == "t")
    if options.ensemble:
        return WeightEnsemble(weights, options.we_wise_alpha if options.ensemble == "we_wise" else 1.0)
    return None


def text_stays(options: TrainingOptions) -> bool:
    """Whether no step moves the text encoder: it is not trained, and no pull takes it to other weights than its own."""
    pulled = options.ensemble == "moving_avg" and options.mv_avg_model == "zeroshot"
    return options.train_mode == "image" and not pulled


def class_features(model: CLIP, tokens: Tensor) -> Tensor:
    """n(g(prompts)), (C, D): encoded with gradient where the text encoder is trained."""
    return F.normalize(model.encode_text(tokens, cut=False), dim=-1)


def backward(
    call: Call, text: Tensor, images: Tensor, labels: Tensor, distilled: Distilled | None, options: TrainingOptions
) -> Terms:
    """Add the gradients of CE and of the distillation terms; returns the terms, unweighted.

    call(function, ...) is function(model, ...). text: prompts (C, L), or their features (C, D) where they stay the
    same. Task and reference images go through the student together, or one after the other, which halves the
    activations in memory; both give the same gradients, since no image sees another one.
    """
    if distilled is None:
        passes = [(task_terms, text, images, labels)]
    elif options.joint_pass:
        passes = [(joint_terms, text, images, labels, distilled)]
    else:
        passes = [(task_terms, text, images, labels), (reference_terms, distilled)]
    terms: Terms = {}
    for function, *inputs in passes:
        losses = call(function, *inputs, options)
        total(losses, options).backward()
        terms |= detached(losses)
    return terms


def task_terms(model: CLIP, text: Tensor, images: Tensor, labels: Tensor, options: TrainingOptions) -> Terms:
    """L_CE of the whole batch, from this process's images and all labels."""
    text = text if text.is_floating_point() else class_features(model, text)
    return cross_entropy(model, text, all_gather_rows(model.encode_image(images), len(labels)), labels, options)


def reference_terms(model: CLIP, distilled: Distilled, options: TrainingOptions) -> Terms:
    """The distillation terms of all reference images, of which this process encodes its own."""
    images, teacher, sentences = distilled
    student = all_gather_rows(model.encode_image(images), len(teacher))
    return distillation_terms(model, student, teacher, sentences, options)


def joint_terms(
    model: CLIP, text: Tensor, images: Tensor, labels: Tensor, distilled: Distilled, options: TrainingOptions
) -> Terms:
    """L_CE and the distillation terms in one pass through the image encoder."""
    text = text if text.is_floating_point() else class_features(model, text)
    reference_images, teacher, sentences = distilled
    both = model.encode_image(torch.cat([images, reference_images]))
    features, student = both.split([len(images), len(reference_images)])
    losses = cross_entropy(model, text, all_gather_rows(features, len(labels)), labels, options)
    return losses | distillation_terms(model, all_gather_rows(student, len(teacher)), teacher, sentences, options)


def cross_entropy(model: CLIP, text: Tensor, features: Tensor, labels: Tensor, options: TrainingOptions) -> Terms:
    """L_CE from image features (B, D), not normalised, against class features (C, D)."""
    logits = model.logit_scale.exp() * F.normalize(features, dim=-1) @ text.t()
    return {"CE": F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)}


def distillation_terms(
    model: CLIP, features: Tensor, teacher: Tensor, sentences: Tensor, options: TrainingOptions
) -> Terms:
    """The terms asked for, from the student's features (B, D), not normalised, and the teacher's R (B, D), E (M, D).

    Quirk: E is the teacher's on both sides and s the student's, so no term reaches the student's text encoder.
    """
    logit_scale, student = model.logit_scale.exp(), F.normalize(features, dim=-1)
    temperature, terms = options.temperature, {}
    if "img" in options.terms or "txt" in options.terms:
        student_logits = logit_scale * student @ sentences.t()
        teacher_logits = logit_scale * teacher @ sentences.t()
    if "img" in options.terms:
        terms["img"] = image_loss(teacher_logits, student_logits, temperature)
    if "txt" in options.terms:
        terms["txt"] = text_loss(teacher_logits, student_logits, temperature)
    if "ii" in options.terms:
        terms["ii"] = image_image_loss(teacher, student, logit_scale, temperature)
    if "mse" in options.terms:
        terms["mse"] = feature_mse(teacher, student)
    return terms


def total(terms: Terms, options: TrainingOptions) -> Tensor:
    """The weighted sum that is differentiated (WC apart, whose gradient is added in closed form)."""
    return sum(options.kd_weight * loss if name in KD_TERMS else loss for name, loss in terms.items())


def detached(terms: Terms) -> Terms:
    return {name: loss.detach() for name, loss in terms.items()}


def term_log(options: TrainingOptions, like: Tensor, distils: bool) -> Terms:
    """Every term of the loss at every step, (steps,), nan until it is known; on the device of `like`."""
    names = ["CE", *(options.terms if distils else ()), *(["WC"] if options.l2 else [])]
    return {name: torch.full((options.iterations + 1,), torch.nan, device=like.device) for name in names}


def note_terms(log: Terms, step: int, terms: Terms) -> None:
    for name, loss in terms.items():
        log[name][step] = loss
