"""ZSCL, class-incremental: the training step of each method, and the test of all seen classes.

Sizes are those of CIFAR100 in ten tasks: ViT-B/16, batch 64, 10 classes a task, 15,833 captions. The weight ensemble
takes its sample in every tenth step, as the original; the timed steps lie between.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.training.schedules import cil_cosine_with_warmup
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.datasets.images import ImageArrays
from common.incremental.scenario import Scenario, seen_subset
from common.datasets.transforms import clip_eval_pixels
from common.evaluation.pixels import decode
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from tests.benchmarks import flops
from tests.benchmarks.inputs import LONGEST_PROMPT, USUAL_PROMPT, OneBatch, evaluation_pixels, prompts
from tests.benchmarks.inputs import small_or_paper_clip
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from tests.benchmarks.zscl import (
    CAPTIONS, LONGEST_CAPTION, PLAIN_CAPTIONS, RANDOM_SENTENCES, SMALL_CAPTIONS, ReferenceImages, every_step, left_by,
    noting, uneven_clip, unit_vectors, without_key_biases,
)  # fmt: skip
from zscl.cil.reference import EXTRA_CAPTIONS, CILReference, Texts, with_captions
from zscl.cil.training import KD_WEIGHT, train_task
from zscl.losses import distillation
from zscl.teacher import KnownFeatures, sentence_features
from zscl.training import TrainingOptions, trainable_parameters

OPTIONS = TrainingOptions(lr=7.1e-6, warmup=30, label_smoothing=0.2, terms=("img", "txt"), avg_freq=10)
EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES = 6, 8, 4
SEEN_CLASSES = {False: 100, True: 16}  # of the test; by --small


def rows(sizes: Sizes) -> list[Row]:
    """Every row, cell by cell."""
    plain, classes = small_or_paper_clip(sizes.small), (sizes.classes or ((4,) if sizes.small else (10,)))
    found, apart = [], step_difference()
    for count in classes:
        found += step_rows(plain, prompts(count, LONGEST_PROMPT.get(count, USUAL_PROMPT)), sizes, apart)
    return found + evaluation_rows(plain, sizes)


# The training step


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes, apart: float) -> list[Row]:
    """Fine-tuning, with captions among the classes, each method with a teacher, and ZSCL the plain way."""
    batch, width, count = OneBatch(plain, len(tokens), sizes), plain.config.embed_dim, SMALL_CAPTIONS
    count = SMALL_CAPTIONS if sizes.small else CAPTIONS
    own, captions = cut_prompts(tokens).to(sizes.device), prompts(min(count, 1000), LONGEST_CAPTION)
    sentences = unit_vectors(count, width).to(sizes.device)
    constant, extra = (lambda step: own), with_captions(tokens, captions, 0, sizes.device, min(EXTRA_CAPTIONS, count))

    def ours(texts: Texts, teacher: str = "", known: bool = False) -> list[float]:
        model = copy.deepcopy(plain).to(sizes.device)
        reference = reference_of(model, plain, teacher, sentences, own, sizes, known) if teacher else None
        return time_training(model, texts, batch, reference, sizes)

    again = SMALL_CAPTIONS if sizes.small else PLAIN_CAPTIONS[sizes.device.type]
    subjects: dict[str, Callable[[], list[float]]] = {
        "finetune": partial(ours, constant),
        f"finetune, ce_method ext, {min(EXTRA_CAPTIONS, count)} captions": partial(ours, extra),
        "ZSCL, teacher's image features known": partial(ours, constant, "ZSCL", known=True),
        "ZSCL, teacher's image features computed": partial(ours, constant, "ZSCL"),
        f"LwF-VR, {min(count, RANDOM_SENTENCES)} sentences": partial(ours, constant, "lwfvr"),
        "LwF-VR, aliased teacher, class prompts": partial(ours, constant, "aliased"),
        f"ZSCL the plain way, {again} captions encoded a step": lambda: time_plain(plain, tokens, batch, again, sizes),
    }
    work = step_work(plain, own, extra(0), len(batch.images), count, again)
    found = compare(f"CIL step, {len(tokens)} classes, {count} captions", subjects, sizes, len(batch.images), work)
    for row in (found[2], found[3], found[-1]):
        verify(row, apart)
    return found


def step_work(plain: CLIP, own: Tensor, extra: Tensor, batch: int, captions: int, again: int) -> list[float]:
    """FLOPs of each of the subjects; an aliased teacher's texts are encoded anew."""
    config, random = plain.config, min(captions, RANDOM_SENTENCES)
    finetune = flops.zscl_step(config, batch, tuple(own.shape))
    known = finetune + flops.zscl_distillation(config, batch, captions, known=True)
    computed = [finetune + flops.zscl_distillation(config, batch, count) for count in (captions, random, len(own))]
    computed[-1] += len(own) * flops.text_tower(config, own.shape[1]).forward
    longest = int(extra.argmax(dim=1).max()) + 1
    with_extra = flops.zscl_step(config, batch, (len(extra), longest))
    return [finetune, with_extra, known, *computed, flops.zscl_plain_step(config, batch, len(own), again)]


def reference_of(
    model: CLIP, plain: CLIP, teacher: str, sentences: Tensor, own: Tensor, sizes: Sizes, known: bool
) -> CILReference:
    """What a method distils on: ZSCL's images may be known, LwF's never are, an aliased teacher keeps nothing."""
    images = ReferenceImages(plain, sizes, new=not known)
    if teacher == "aliased":
        return CILReference(model, images, own, None, None)
    sentences = sentences if teacher == "ZSCL" else sentences[:RANDOM_SENTENCES]
    features = KnownFeatures(sizes.device) if teacher == "ZSCL" else None
    if known:
        kept = unit_vectors(len(images.images), plain.config.embed_dim)
        features.load_state_dict({"indices": torch.tensor(images.indices(0)), "features": kept})
    return CILReference(copy.deepcopy(plain).to(sizes.device), images, own, features, sentences)


def time_training(
    model: CLIP, texts: Texts, batch: OneBatch, reference: CILReference | None, sizes: Sizes
) -> list[float]:
    """One turn of the real training loop."""
    clock, count = Clock(sizes.device), sizes.warmup + max(1, sizes.steps // sizes.turns)
    options = replace(OPTIONS, iterations=count - 1)
    train_task(model, texts, batch, 0, reference, options, "benchmark", timed_steps(clock))
    return clock.times()[sizes.warmup :]


def time_plain(plain: CLIP, tokens: Tensor, batch: OneBatch, captions: int, sizes: Sizes) -> list[float]:
    """A single timed step of the plain loop, which takes longer than all other rows' together."""
    student, teacher = (copy.deepcopy(plain).to(sizes.device) for _ in range(2))
    clock, texts = Clock(sizes.device), prompts(captions, LONGEST_CAPTION).to(sizes.device)
    images, options = ReferenceImages(plain, sizes, new=True), replace(OPTIONS, iterations=1)
    train_plainly(student, teacher, tokens.to(sizes.device), texts, batch, images, options, timed_steps(clock), [])
    return clock.times()[1:]


def train_plainly(
    student: CLIP,
    teacher: CLIP,
    tokens: Tensor,
    captions: Tensor,
    batch: OneBatch,
    images: OneBatch,
    options: TrainingOptions,
    steps: Callable[[str, int, dict[str, Any]], Iterator[int]],
    losses: list[Tensor],
) -> None:
    """The task as the original goes about it: five passes a step, all captions and all 77 tokens at each."""
    optimizer = torch.optim.AdamW(trainable_parameters(student, "whole"), weight_decay=options.weight_decay)
    for step in steps("plain", options.iterations + 1, {}):
        for group in optimizer.param_groups:
            group["lr"] = cil_cosine_with_warmup(step, options.lr, options.iterations, options.warmup)
        pictures, labels = batch[step]
        text = F.normalize(student.encode_text(tokens, cut=False), dim=-1)
        logits = student.logit_scale.exp() * F.normalize(student.encode_image(pictures), dim=-1) @ text.t()
        cross_entropy = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)(logits, labels)
        reference, _ = images[step]
        with torch.no_grad():
            sentences = F.normalize(teacher.encode_text(captions, cut=False), dim=-1)
            taught = F.normalize(teacher.encode_image(reference), dim=-1)
        learned = F.normalize(student.encode_image(reference), dim=-1)
        scale = student.logit_scale.exp()
        right, ours = scale * taught @ sentences.t(), scale * learned @ sentences.t()
        image, texts = distillation(right, ours, 2.0), distillation(right.t(), ours.t(), 2.0)
        optimizer.zero_grad()
        (cross_entropy + KD_WEIGHT * (image + texts)).backward()
        optimizer.step()
        losses.append(torch.stack([cross_entropy, image, texts]).detach())


def step_difference() -> float:
    """The largest between the plain way and ours, image features known or not, one pass or two, in float64."""
    sizes = Sizes(torch.device("cpu"), True, EQUAL_STEPS, 0, EQUAL_BATCH, ())
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):  # layer norm asks for it
        student, teacher = (uneven_clip(seed) for seed in (8, 9))
        batch, tokens = OneBatch(teacher, EQUAL_CLASSES, sizes), prompts(EQUAL_CLASSES, USUAL_PROMPT)
        captions, images = prompts(SMALL_CAPTIONS, LONGEST_CAPTION), ReferenceImages(teacher, sizes, new=True)
        options = replace(OPTIONS, lr=1e-2, iterations=EQUAL_STEPS - 1)
        model, losses = copy.deepcopy(student), []
        train_plainly(model, teacher, tokens, captions, batch, images, options, every_step, losses)
        plain = without_key_biases(left_by(model, losses))
        return max(
            difference(plain, our_trajectory(copy.deepcopy(student), teacher, sizes, known, joint))
            for known, joint in ((True, True), (False, True), (False, False))
        )


def our_trajectory(model: CLIP, teacher: CLIP, sizes: Sizes, known: bool, joint: bool) -> dict[str, Tensor]:
    """What our loop leaves of the same task: losses of every step, gradients of the last, weights."""
    batch, own = OneBatch(teacher, EQUAL_CLASSES, sizes), cut_prompts(prompts(EQUAL_CLASSES, USUAL_PROMPT))
    captions = prompts(SMALL_CAPTIONS, LONGEST_CAPTION)
    images, losses = ReferenceImages(teacher, sizes, new=not known), []
    reference = CILReference(teacher, images, captions, KnownFeatures(), sentence_features(teacher, captions))
    if known:
        reference[0]
    options = replace(OPTIONS, lr=1e-2, iterations=EQUAL_STEPS - 1, joint_pass=joint)
    steps = noting(losses, ("CE", "img", "txt"))
    train_task(model, lambda step: own, batch, 0, reference, options, "equality", steps)
    return without_key_biases(left_by(model, losses))


# The test of all seen classes


def evaluation_rows(plain: CLIP, sizes: Sizes) -> list[Row]:
    """Images a second, the class texts encoded once a task and, as the originals, again for every batch."""
    classes, batch_size = SEEN_CLASSES[sizes.small], sizes.batch_size or (32 if sizes.small else 64)
    pixels = evaluation_pixels(plain, batch_size, sizes)
    tokens, test = prompts(classes, USUAL_PROMPT), pooled(pixels, classes, batch_size)
    model = copy.deepcopy(plain).to(sizes.device)
    once, again = (partial(evaluate_seen, model, tokens, test, 0, 0, text_per_batch=each) for each in (False, True))
    subjects = {
        "class texts encoded once": lambda: timed_calls(once, sizes),
        "class texts encoded for every batch": lambda: timed_calls(again, sizes),
    }
    found = compare(f"CIL test, {len(pixels)} images, {classes} classes", subjects, sizes, len(pixels))
    verify(found[1], float((once().predictions != again().predictions).mean()))
    return found


def pooled(pixels: Tensor, classes: int, batch_size: int) -> PooledTest:
    """A test set in memory, decoded, of one task."""
    scenario = Scenario(range(classes), classes, classes)
    images = ImageArrays(pixels.permute(0, 2, 3, 1).numpy(), [n % classes for n in range(len(pixels))], None)
    images.transform = clip_eval_pixels(pixels.shape[-1])
    test = PooledTest(seen_subset(images, scenario, 0), scenario, "test", batch_size)
    test.pixels, _ = decode(test.images, "benchmark", batch_size)
    return test
