"""ZSCL, class-incremental: the training step of each method, and the test of all seen classes.

Sizes are those of CIFAR100 in ten tasks: ViT-B/16, batch 64, 10 classes a task, 15,833 captions. The weight ensemble
takes its sample in every tenth step, as the original; the timed steps lie between.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.seen_classes import evaluate_seen
from common.training.schedules import cil_cosine_with_warmup
from tests.benchmarks import zscl
from tests.benchmarks.inputs import one_batch, pooled, prompts, small_or_paper_clip
from tests.benchmarks.measure import Clock, Row, Sizes, Subject, compare, compare_calls
from zscl.cil.options import KD_WEIGHT
from zscl.cil.reference import EXTRA_CAPTIONS, with_captions
from zscl.teacher import Reference
from zscl.training import TrainingOptions

RATES = {"lr": 7.1e-6, "warmup": 30, "schedule": cil_cosine_with_warmup}
TERMS = {"label_smoothing": 0.2, "terms": ("img", "txt"), "kd_weight": KD_WEIGHT}
OPTIONS = TrainingOptions(**RATES, **TERMS, avg_freq=10, loss_interval=None)


def rows(sizes: Sizes) -> list[Row]:
    """Every row, cell by cell."""
    plain, found = small_or_paper_clip(sizes.small).to(sizes.device), []
    apart = max(zscl.step_differences(replace(OPTIONS, lr=1e-2)))
    for classes in sizes.classes or (4 if sizes.small else 10,):
        found += step_rows(plain, prompts(classes), sizes, apart)
    return found + evaluation_rows(plain, sizes)


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes, apart: float) -> list[Row]:
    """Fine-tuning, with captions among the classes, each method with a teacher, and ZSCL the plain way."""
    size, count = sizes.batch(zscl.BATCH), zscl.SMALL_CAPTIONS if sizes.small else zscl.CAPTIONS
    batch, own = one_batch(plain, size, len(tokens)), cut_prompts(tokens).to(sizes.device)
    captions, few = prompts(min(count, 1000), zscl.LONGEST_CAPTION), min(EXTRA_CAPTIONS, count)
    sentences = zscl.unit_vectors(count, plain.config.embed_dim).to(sizes.device)

    def ours(texts: zscl.Prompts, teacher: str | None, known: bool, clock: Clock) -> None:
        model, frozen, images = copy.deepcopy(plain), copy.deepcopy(plain), zscl.ReferenceImages(plain, size, new=True)
        references: dict[str | None, Callable[[], Reference | None]] = {
            None: lambda: None,
            "aliased": lambda: Reference(model, images, own, None, None),
            "lwfvr": lambda: Reference(frozen, images, own, sentences[: zscl.RANDOM_SENTENCES], None),
            "ZSCL": lambda: zscl.reference_of(frozen, sentences, size, known),
        }
        zscl.train(model, texts, batch, references[teacher](), OPTIONS, clock)

    extra = with_captions(tokens, captions, 0, sizes.device, few)
    subjects: dict[str, Subject] = {
        "finetune": partial(ours, own, None, False),
        f"finetune, ce_method ext, {few} captions": partial(ours, extra, None, False),
        zscl.OURS[0]: partial(ours, own, "ZSCL", True),
        zscl.OURS[1]: partial(ours, own, "ZSCL", False),
        f"LwF-VR, {min(count, zscl.RANDOM_SENTENCES)} sentences": partial(ours, own, "lwfvr", False),
        "LwF-VR, aliased teacher, class prompts": partial(ours, own, "aliased", False),
    }
    in_plain_steps = zscl.plain_subject(plain, tokens, batch, OPTIONS, sizes)
    checked = dict.fromkeys([*zscl.OURS, *in_plain_steps], apart)
    cell = f"CIL step, {len(tokens)} classes, {count} captions"
    return compare(cell, subjects | in_plain_steps, sizes, size, True, checked)


def evaluation_rows(plain: CLIP, sizes: Sizes) -> list[Row]:
    """Images a second of the test of all seen classes, their texts encoded once a task and, as the originals, again
    for every batch."""
    classes, size = 16 if sizes.small else 100, sizes.batch(64, small=32)
    count = size * (8 if sizes.small or sizes.device.type == "cuda" else 1)
    tokens, test = prompts(classes), pooled(count, classes, plain, size)

    def predictions(text_per_batch: bool) -> Tensor:
        return torch.as_tensor(evaluate_seen(plain, tokens, test, 0, 0, text_per_batch).predictions)

    calls = {
        "class texts encoded once": partial(predictions, False),
        "class texts encoded for every batch": partial(predictions, True),
    }
    return compare_calls(f"CIL test, {count} images, {classes} classes", calls, sizes, count)
