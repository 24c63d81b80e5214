"""Learning one task: fine-tuning, and on top of it ZSCL's losses and weight ensemble (arXiv 2303.06628, section 3).

    L = L_CE + w (L_img + L_txt + L_ii) + L_mse + lambda L_WC, each term only with its flag

MTIL's loop (mtil/src/models/finetune.py:L68-L340) and the class-incremental one (cil/continual_clip/models.py:
L185-L282) differ in options alone. Everything starts anew at each task: optimiser, schedule, ensemble, streams.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.clip.model import CLIP
from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.options import TrainingOptions as SharedOptions
from common.training.schedules import set_lr
from zscl.losses import distillation_losses
from zscl.teacher import Reference
from zscl.weights import MovingAverage, WeightEnsemble, Weights, assign_, consolidate_, copied, interpolate_, weights_of

Terms = dict[str, Tensor]  # loss terms by name, unweighted


@dataclass(frozen=True)
class TrainingOptions(SharedOptions):
    """What the command line decides of a task's training; the defaults are the originals'."""

    train_mode: str = "whole"
    temperature: float = 2.0
    terms: tuple[str, ...] = ()  # of distillation: img, txt, ii, mse
    kd_weight: float = 1.0  # w of img, txt and ii; 0.5 with --weight_adjust, 5 in the class-incremental code
    l2: float = 0.0  # lambda of WC
    ensemble: str | None = None  # we, we_wise or moving_avg
    avg_freq: int = 100
    we_wise_alpha: float = 0.98
    mv_avg_decay: float = 0.999
    mv_avg_model: str = "n"  # n: theta0, t: the weights before the previous pull, zeroshot: CLIP
    wise_merge: str | None = None  # WiSE-FT after the last step, with n: theta0, zeroshot: CLIP
    wise_ft_alpha: float = 0.8
    joint_pass: bool = True  # task and reference images through the student together
    eval_interval: int = 0


def train_task(
    model: CLIP,
    prompts: Callable[[int], Tensor],
    batches: BatchStream,
    reference: Reference | None,
    clip_weights: Weights | None,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
    evaluate: Callable[[int, Weights], None] | None = None,
    first_class: int = 0,
) -> Terms:
    """Train `model` in place on one task; it is left with the ensemble's mean where there is one.

    Args:
        prompts: step -> tokens (C, L), one training prompt a class of the task.
        reference: images, teacher and sentences for distillation.
        clip_weights: the pre-trained ones, for the options that pull to them.
        evaluate: evaluate(step, weights) is called before every eval_interval-th step, the first among them.
        first_class: the label of the task's first class in the batches.

    Returns the terms of the loss at every step, (iterations + 1,) each. Quirk: the loop takes iterations + 1 steps as
    the originals: the last has rate 0 (unless the warm-up is not over) and gives the ensemble its last sample.
    """
    parameters = trainable_parameters(model, options.train_mode)
    optimizer = torch.optim.AdamW(
        parameters, lr=options.lr, betas=(0.9, options.beta2), weight_decay=options.weight_decay, fused=True
    )
    weights, zero = weights_of(model), torch.zeros_like(model.logit_scale)
    theta0 = copied(weights) if options.l2 or options.wise_merge == "n" else {}
    average = weight_average(weights, clip_weights or {}, options)
    names = ["CE", *(options.terms if reference else ()), *(["WC"] if options.l2 else [])]
    log = {name: torch.full((options.iterations + 1,), torch.nan, device=zero.device) for name in names}
    cache = reference.cache if reference else None
    parts = {"parameters": Tensors(weights), "optimizer": optimizer, "log": Tensors(log)}
    state = {name: part for name, part in (parts | {"average": average, "teacher": cache}).items() if part}
    separate = reference is not None and not options.joint_pass
    call = parallel(model, unused=separate)
    fixed_text = class_features(model, prompts(0)) if text_stays(options) else None
    for step in steps(stage, options.iterations + 1, state):
        if evaluate and step % options.eval_interval == 0:
            evaluate(step, average.mean if isinstance(average, WeightEnsemble) else weights)
        set_lr(optimizer, options.schedule(step, options.lr, warmup=options.warmup, total=options.iterations))
        optimizer.zero_grad()
        images, labels = batches[step]
        text = prompts(step) if fixed_text is None else fixed_text
        image_batches = [(images, len(labels))]
        if reference:
            reference_images, R, E = reference[step]
            image_batches.append((reference_images, len(R)))
        logit_scale, text, features, *S = call(encode, text, *(image_batches[:1] if separate else image_batches))
        logits = logit_scale * features @ text.t()
        ce = F.cross_entropy(logits, labels - first_class, label_smoothing=options.label_smoothing)
        if separate:  # CE's gradient first: its activations are gone when the reference images pass, half the memory
            ce.backward()
            logit_scale, _, *S = call(encode, None, image_batches[1])
        terms = distillation_losses(S[0], R, E, logit_scale, options.terms, options.temperature) if reference else {}
        img, txt, ii, mse = (terms.get(name, zero) for name in ("img", "txt", "ii", "mse"))
        # CE is part of it unless its gradient is there already
        loss = (zero if separate else ce) + options.kd_weight * (img + txt + ii) + mse
        loss.backward()
        if options.l2:  # + lambda WC, whose gradient has a closed form
            terms["WC"] = consolidate_(((p, theta0[name]) for name, p in model.named_parameters()), options.l2)
        optimizer.step()
        if average and step % options.avg_freq == 0:
            average.add(weights)
        log_step(log, step, {"CE": ce, **terms}, stage, options.loss_interval)
    if options.wise_merge:
        interpolate_(weights, theta0 if options.wise_merge == "n" else clip_weights or {}, options.wise_ft_alpha)
    if isinstance(average, WeightEnsemble):
        assign_(weights, average.mean)
    return log


def log_step(log: Terms, step: int, terms: Terms, stage: str, interval: int | None) -> None:
    """Write a step's terms into the log, and print them every `interval` steps."""
    for name, term in terms.items():
        log[name][step] = term.detach()
    if interval and step % interval == 0:
        values = ", ".join(f"{name} {values[step].item():.4f}" for name, values in log.items())
        tqdm.write(f"{stage}: step {step}, {values}")


def encode(model: CLIP, text: Tensor | None, *image_batches: tuple[Tensor, int]) -> tuple[Tensor | None, ...]:
    """exp(logit_scale), n(g(text)) (C, D), and n(f(images)) (B, D) of every batch, all in one pass of the encoder.

    text: prompts (C, L), or their features (C, D) where they stay the same. A batch is this process's images
    (b, 3, R, R) and the size B of the whole batch, of which all features come back.
    """
    if text is not None and not text.is_floating_point():
        text = class_features(model, text)
    sizes = [len(images) for images, _ in image_batches]
    parts = model.encode_image(torch.cat([images for images, _ in image_batches])).split(sizes)
    features = [all_gather_rows(part, count) for part, (_, count) in zip(parts, image_batches)]
    return model.logit_scale.exp(), text, *(F.normalize(part, dim=-1) for part in features)


def class_features(model: CLIP, tokens: Tensor) -> Tensor:
    """n(g(prompts)), (C, D): encoded with gradient where the text encoder is trained."""
    return F.normalize(model.encode_text(tokens, cut=False), dim=-1)


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
    weights: Weights, clip_weights: Weights, options: TrainingOptions
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
