"""ZSCL: the training step of each method, what captions cost, evaluation, and the memory of a step.

Sizes are those of the MTIL runs: ViT-B/16, batch 64, evaluation batch 128, 15,833 captions (all of the validation file
that the original reads). The weight ensemble takes a sample in one step of a hundred, as the original: not a timed one.
"""

import contextlib
import copy
import gc
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.pixels import DecodedSet
from common.runs import Steps
from tests.benchmarks import flops
from tests.benchmarks.inputs import (
    LONGEST_PROMPT,
    SMALL,
    USUAL_PROMPT,
    VIT_B_16,
    OneBatch,
    evaluation_pixels,
    prompts,
    small_or_paper_clip,
    time_plain_encoding,
)
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from tests.benchmarks.memory import counted_peak
from tests.benchmarks.zscl_plain import train_plainly
from zscl.evaluation import evaluate
from zscl.teacher import KnownFeatures, Reference, sentence_features
from zscl.training import TrainingOptions, distillation_terms, total, train_task

FINETUNE = TrainingOptions(lr=1e-5, warmup=1)
DISTIL = replace(FINETUNE, terms=("img", "txt"))  # LwF-VR and iCaRL
ZSCL = replace(DISTIL, l2=1.0, ensemble="we")
CAPTIONS, FEW_CAPTIONS, RANDOM_SENTENCES = 15_833, 1000, 1000
PLAIN_CAPTIONS = {"cuda": CAPTIONS, "cpu": 64}  # on a CPU all of them take minutes a step
SMALL_CAPTIONS, LONGEST_CAPTION = 32, 20
EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES = 6, 8, 4
STEP_TARGET, MEMORY_TARGET = "<= 2.4", "<= 1.35"
COUNTED_STEPS = range(1, 3)  # AdamW has its state in the second; step 0 would tell a loss, which needs values


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    plain = small_or_paper_clip(sizes.small)
    found_difference, found = step_differences(), []
    for classes in sizes.classes or ((4,) if sizes.small else (10, 100, 397)):
        tokens = prompts(classes, LONGEST_PROMPT.get(classes, USUAL_PROMPT))
        found += step_rows(plain, tokens, sizes, found_difference)
    found += caption_rows(sizes)
    found += evaluation_rows(plain, prompts(10, LONGEST_PROMPT[10]), sizes)
    return found + memory_rows(sizes)


# What a step works on


class ReferenceImages(OneBatch):
    """The same reference images at every step: under the same indices, or with `new` under indices not met before."""

    def __init__(self, plain: CLIP, sizes: Sizes, new: bool) -> None:
        super().__init__(plain, 1, sizes, seed=6)
        self.new = new

    def indices(self, step: int) -> list[int]:
        first = step * len(self.images) if self.new else 0
        return list(range(first, first + len(self.images)))


def reference_of(teacher: CLIP, sentences: Tensor, sizes: Sizes, known: bool) -> Reference:
    """What distillation reads. `known`: the teacher's image features are there, as in every epoch but the first."""
    images = ReferenceImages(teacher, sizes, new=not known)
    reference = Reference(teacher, images, sentences, KnownFeatures(sizes.device))
    if known:
        features = unit_vectors(len(images.images), teacher.config.embed_dim)
        reference.known.load_state_dict({"indices": torch.tensor(images.indices(0)), "features": features})
    return reference


def unit_vectors(count: int, width: int) -> Tensor:
    """Random normalised features: what they say makes no difference to the time of a step."""
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(7)), dim=-1)


# The training step


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes, differences: dict[str, float]) -> list[Row]:
    """Fine-tuning, each method that distils, and ZSCL the plain way; whether ours and the plain way are equal."""
    batch, width = OneBatch(plain, len(tokens), sizes), plain.config.embed_dim
    cut = cut_prompts(tokens).to(sizes.device)
    count = SMALL_CAPTIONS if sizes.small else CAPTIONS
    captions, random, classes = (
        unit_vectors(n, width).to(sizes.device) for n in (count, min(count, RANDOM_SENTENCES), len(tokens))
    )

    def ours(options: TrainingOptions, sentences: Tensor | None = None, known: bool = False) -> list[float]:
        teacher = copy.deepcopy(plain)
        reference = None if sentences is None else reference_of(teacher, sentences, sizes, known)
        return time_training(copy.deepcopy(plain).to(sizes.device), cut, batch, reference, options, sizes)

    again = SMALL_CAPTIONS if sizes.small else PLAIN_CAPTIONS[sizes.device.type]
    subjects = {
        "finetune": partial(ours, FINETUNE),
        "ZSCL, teacher's image features known": partial(ours, ZSCL, captions, known=True),
        "ZSCL, teacher's image features computed": partial(ours, ZSCL, captions),
        "ZSCL, computed, separate passes": partial(ours, replace(ZSCL, joint_pass=False), captions),
        f"LwF-VR, {len(random)} sentences, computed": partial(ours, DISTIL, random),
        "iCaRL, class prompts, computed": partial(ours, DISTIL, classes),
        f"ZSCL the plain way, {again} captions encoded a step": lambda: time_plain(plain, tokens, batch, again, sizes),
    }
    work = step_work(plain, cut, len(batch.images), count, len(random), again)
    found = compare(f"step, {len(tokens)} classes, {count} captions", subjects, sizes, len(batch.images), work)
    for row, apart in zip(found[1:4], differences.values()):
        row.target = "" if sizes.small else STEP_TARGET
        verify(row, apart)
    verify(found[-1], max(differences.values()))
    return found


def step_work(plain: CLIP, cut: Tensor, batch: int, captions: int, random: int, again: int) -> list[float]:
    """FLOPs of each of the subjects."""
    config, classes = plain.config, len(cut)
    finetune = flops.zscl_step(config, batch, tuple(cut.shape))
    known = finetune + flops.zscl_distillation(config, batch, captions, known=True)
    computed = [finetune + flops.zscl_distillation(config, batch, count) for count in (captions, random, classes)]
    plainly = flops.zscl_plain_step(config, batch, classes, again)
    return [finetune, known, computed[0], *computed, plainly]


def time_training(
    model: CLIP, tokens: Tensor, batch: OneBatch, reference: Reference | None, options: TrainingOptions, sizes: Sizes
) -> list[float]:
    """One turn of the real training loop."""
    clock = Clock(sizes.device)
    count = sizes.warmup + max(1, sizes.steps // sizes.turns)
    options = replace(options, iterations=count - 1)
    with contextlib.redirect_stdout(io.StringIO()):  # the loop tells its losses at step 0
        train_task(model, tokens, batch, reference, None, options, "benchmark", timed_steps(clock))
    return clock.times()[sizes.warmup :]


def time_plain(plain: CLIP, tokens: Tensor, batch: OneBatch, captions: int, sizes: Sizes) -> list[float]:
    """One turn of the plain loop: a single timed step, which on a GPU takes longer than all other rows' together."""
    student, teacher = (copy.deepcopy(plain).to(sizes.device) for _ in range(2))
    clock, options = Clock(sizes.device), replace(ZSCL, iterations=1)
    texts = prompts(captions, LONGEST_CAPTION).to(sizes.device)
    images = ReferenceImages(plain, sizes, new=True)
    student.requires_grad_(True)
    train_plainly(student, teacher, tokens.to(sizes.device), texts, batch, images, options, timed_steps(clock), [])
    return clock.times()[1:]


# Equality


def step_differences() -> dict[str, float]:
    """Between the plain way and each of ours, over a few steps in float64: image features known, computed, two passes.

    On small towers, at any sizes asked for: the code is the same. In float32 a parameter whose gradient is rounding
    noise moves by up to the learning rate in either direction (AdamW divides by the gradient's size). The 6e-7 that are
    left stand in the value of L_WC alone: the share of the key biases (see `without_key_biases`).
    """
    sizes = Sizes(torch.device("cpu"), True, EQUAL_STEPS, 0, EQUAL_BATCH, ())
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):  # layer norm asks for it
        student, teacher = (uneven_clip(seed) for seed in (8, 9))
        plain = plain_trajectory(student, teacher, sizes)
        return {
            name: difference(plain, trajectory(student, teacher, sizes, known, joint_pass))
            for name, known, joint_pass in (
                ("known", True, True),
                ("computed", False, True),
                ("separate", False, False),
            )
        }


def uneven_clip(seed: int) -> CLIP:
    """A small random CLIP in float64 that tells prompts apart; with fresh weights all of them would look the same."""
    torch.manual_seed(seed)
    model = CLIP(SMALL).eval().double()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
    return model


def equality_inputs(teacher: CLIP, sizes: Sizes) -> tuple[OneBatch, Tensor, Tensor, TrainingOptions]:
    """Task batches, class prompts (C, 77), captions (M, 77), options that sample the ensemble in every other step."""
    options = replace(ZSCL, lr=1e-3, iterations=EQUAL_STEPS - 1, avg_freq=2)
    tokens, captions = prompts(EQUAL_CLASSES, USUAL_PROMPT), prompts(SMALL_CAPTIONS, LONGEST_CAPTION)
    return OneBatch(teacher, EQUAL_CLASSES, sizes), tokens, captions, options


def trajectory(student: CLIP, teacher: CLIP, sizes: Sizes, known: bool, joint_pass: bool) -> dict[str, Tensor]:
    """What our loop leaves: losses of every step, gradients of the last, weights, and their running mean."""
    batch, tokens, captions, options = equality_inputs(teacher, sizes)
    model, losses = copy.deepcopy(student), []
    images = ReferenceImages(teacher, sizes, new=not known)
    reference = Reference(teacher, images, sentence_features(teacher, captions), KnownFeatures())
    if known:
        reference[0]
    options = replace(options, joint_pass=joint_pass)
    steps = noting(losses, ("CE", "img", "txt", "WC"))
    with contextlib.redirect_stdout(io.StringIO()):
        mean = train_task(model, cut_prompts(tokens), batch, reference, None, options, "equality", steps)
    return without_key_biases(left_by(model, losses) | {f"mean {name}": weight for name, weight in mean.items()})


def plain_trajectory(student: CLIP, teacher: CLIP, sizes: Sizes) -> dict[str, Tensor]:
    """The same of the plain loop."""
    batch, tokens, captions, options = equality_inputs(teacher, sizes)
    model, losses, images = copy.deepcopy(student), [], ReferenceImages(teacher, sizes, new=True)
    mean = train_plainly(model, teacher, tokens, captions, batch, images, options, every_step, losses)
    means = {f"mean {name}": weight.detach() for name, weight in mean.named_parameters()}
    return without_key_biases(left_by(model, losses) | means)


def every_step(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
    yield from range(total)


def noting(losses: list[Tensor], names: tuple[str, ...]) -> Steps:
    """Every step; behind each, these terms of the log join `losses` as a tensor."""

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for step in range(total):
            yield step
            losses.append(torch.stack([state["log"].tensors[name][step] for name in names]))

    return steps


def left_by(model: CLIP, losses: list[Tensor]) -> dict[str, Tensor]:
    """Losses, last gradients and weights; logit_scale, which is not trained, without its gradient."""
    named = dict(model.named_parameters())
    gradients = {f"gradient {name}": p.grad for name, p in named.items() if name != "logit_scale"}
    return {"losses": torch.stack(losses)} | gradients | {name: p.detach() for name, p in named.items()}


def without_key_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Set to zero: softmax hides a bias of the keys, its gradient is rounding noise, and AdamW with WC blows it up."""
    for name, tensor in tensors.items():
        if name.endswith("attn.in_proj_bias"):
            tensor.chunk(3)[1].zero_()
    return tensors


# The number of captions


def caption_rows(sizes: Sizes) -> list[Row]:
    """A step's time at few and at all captions, and that of the B x M similarity with its two losses alone.

    Captions never reach the towers, so these are small in every case: beside them the similarity can be seen at all.
    The last row is the difference of the two steps; its ratio says how much of the similarity's own time that is.
    """
    few, many = (SMALL_CAPTIONS, 10 * SMALL_CAPTIONS) if sizes.small else (FEW_CAPTIONS, CAPTIONS)
    sizes = replace(sizes, batch_size=8 if sizes.small else 64, steps=max(20, sizes.steps), warmup=max(3, sizes.warmup))
    torch.manual_seed(0)
    plain = CLIP(replace(SMALL, embed_dim=VIT_B_16.embed_dim)).eval().requires_grad_(False)
    batch, tokens = OneBatch(plain, 4, sizes), prompts(4, USUAL_PROMPT).to(sizes.device)
    sentences = {count: unit_vectors(count, plain.config.embed_dim).to(sizes.device) for count in (few, many)}

    def step(count: int) -> list[float]:
        reference = reference_of(copy.deepcopy(plain), sentences[count], sizes, known=True)
        return time_training(copy.deepcopy(plain).to(sizes.device), tokens, batch, reference, ZSCL, sizes)

    def similarity() -> list[float]:
        model, features = copy.deepcopy(plain).to(sizes.device), sentences[many][: len(batch.images)]
        model.logit_scale.requires_grad_()  # as in the loop, where it takes a gradient from the teacher's logits too
        student = features.clone().requires_grad_()
        terms = lambda: distillation_terms(model, student, features, sentences[many], ZSCL)
        return timed_calls(lambda: total(terms(), ZSCL).backward(), sizes)

    subjects: dict[str, Callable[[], list[float]]] = {
        f"similarity and losses alone, {many} captions": similarity,
        f"ZSCL step, {few} captions": partial(step, few),
        f"ZSCL step, {many} captions": partial(step, many),
    }
    found = compare(f"captions, small towers, batch {sizes.batch_size}", subjects, sizes)
    added = found[2].ms_median - found[1].ms_median
    target = "" if sizes.small else "<= 1"
    row = Row(found[0].cell, f"added by {many - few} captions", added, ratio=added / found[0].ms_median, target=target)
    return [*found, row]


# Evaluation


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of plain encode_image and of the whole evaluation, uint8 pixels on the host in both."""
    batch_size = sizes.batch_size or (32 if sizes.small else 128)
    pixels = evaluation_pixels(plain, batch_size, sizes)
    test = DecodedSet("random", pixels, torch.zeros(len(pixels), dtype=torch.long), tokens[:, None])

    def time_evaluation() -> list[float]:
        return timed_calls(partial(evaluate, copy.deepcopy(plain).to(sizes.device), test, batch_size), sizes)

    subjects = {
        "plain encode_image": lambda: time_plain_encoding(plain, pixels, batch_size, sizes),
        f"evaluation, {len(tokens)} prompts included": time_evaluation,
    }
    return compare(f"evaluation, {len(pixels)} images", subjects, sizes, len(pixels))


# Memory


def memory_rows(sizes: Sizes) -> list[Row]:
    """Peak memory of a step; the ratio is (peak - one CLIP in float32) / fine-tuning's peak.

    Parameters, gradients, AdamW's state, activations, inputs, and for ZSCL the teacher, theta0, the mean and the
    captions' features; the teacher computes and the ensemble takes its sample in the same step. On a GPU as allocated
    (torch.cuda.max_memory_allocated), on a CPU counted at the papers' batch size from the shapes alone.
    """
    on_gpu, classes = sizes.device.type == "cuda", 4 if sizes.small else 10
    sizes = sizes if on_gpu else replace(sizes, batch_size=None)
    peak = allocated_peak if on_gpu else counted_peak
    subjects = {
        "finetune": FINETUNE,
        "ZSCL, joint pass": replace(ZSCL, avg_freq=1),
        "ZSCL, separate passes": replace(ZSCL, avg_freq=1, joint_pass=False),
    }
    found, clip_mib = [], clip_bytes(sizes.small) / 2**20
    for subject, options in subjects.items():
        row = Row("", subject, peak_memory_mib=peak(partial(memory_steps, options, classes, sizes)) / 2**20)
        if found:
            row.ratio = (row.peak_memory_mib - clip_mib) / found[0].peak_memory_mib
            row.target = "" if sizes.small else MEMORY_TARGET
        found.append(row)
    batch_size = sizes.batch_size or (8 if sizes.small else 64)
    for row in found:
        row.cell = f"memory {'allocated' if on_gpu else 'counted'}, batch {batch_size}, {classes} classes, less a CLIP"
    return found


def memory_steps(options: TrainingOptions, classes: int, sizes: Sizes) -> None:
    """The real loop over COUNTED_STEPS, all that it works on made here."""
    config = SMALL if sizes.small else VIT_B_16
    with sizes.device:
        model, teacher = CLIP(config), CLIP(config).requires_grad_(False) if options.terms else None
    tokens = torch.zeros(classes, LONGEST_PROMPT[10], dtype=torch.long, device=sizes.device)
    reference = None
    if teacher:
        teacher.to = lambda device: teacher  # it is there already, and tensors without values refuse to be moved
        sentences = torch.zeros(SMALL_CAPTIONS if sizes.small else CAPTIONS, config.embed_dim, device=sizes.device)
        reference = reference_of(teacher, sentences, sizes, known=False)
    steps = lambda stage, total, state: iter(COUNTED_STEPS)
    train_task(model, tokens, OneBatch(model, classes, sizes), reference, None, options, "memory", steps)


def allocated_peak(run: Callable[[], None]) -> int:
    """Peak bytes that `run` adds to what is allocated on the GPU."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def clip_bytes(small: bool) -> int:
    """One CLIP's parameters in float32."""
    with torch.device("meta"):
        return 4 * sum(parameter.numel() for parameter in CLIP(SMALL if small else VIT_B_16).parameters())
