"""MoE-Adapters, class-incremental: the training step and the test of all classes seen.

Sizes are those of CIFAR100 in ten tasks: ViT-B/16, two experts of width 64 for every sample, one router, batch 128,
ten classes a task; the test has 100 classes in batches of 64.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.seen_classes import evaluate_seen
from moe_adapters.adapters import mixture_of_experts
from moe_adapters.cil import TEST_BATCH
from moe_adapters.cil_options import Options, training_options
from tests.benchmarks.inputs import pooled, prompts, small_or_paper_clip
from tests.benchmarks.measure import Row, Sizes, compare_calls, difference, verify
from tests.benchmarks.moe_adapters import routed, way_rows
from tests.moe_adapters.plain_ways import loop_over_experts, with_experts

TASK_CLASSES, ALL_CLASSES = 10, 100
LONGEST_PROMPT = 11  # "a bad photo of a {}." of CIFAR100, with start and end token
EQUAL_STEPS, EQUAL_BATCH = 5, 8  # at most, to show two ways equal


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the table, cell by cell; --classes takes the place of a task's ten."""
    plain, found = small_or_paper_clip(sizes.small).to(sizes.device), []
    for classes in sizes.classes or (4 if sizes.small else TASK_CLASSES,):
        found += step_rows(plain, prompts(classes, LONGEST_PROMPT).to(sizes.device), sizes)
    return found + evaluation_rows(plain, prompts(8 if sizes.small else ALL_CLASSES, LONGEST_PROMPT), sizes)


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Frozen CLIP, our step, the step with gathered weights as MTIL takes it, the step the plain way."""
    ways = {
        "training step": (cut_prompts, None),
        "experts gathered a sample": (cut_prompts, mixture_of_experts),
        "loop over experts, 77 tokens": (Tensor.clone, loop_over_experts),
    }
    cell, options = f"CIL step, {len(tokens)} classes", training_options(Options(lr=1e-3), EQUAL_STEPS)
    return way_rows(cell, plain, partial(with_experts, plain), tokens, ways, sizes.batch(128), options, sizes)


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of a test: the protocol's, texts under new noise every batch; without noise; as the original."""
    count = TEST_BATCH * (2 if sizes.small else 8 if sizes.device.type == "cuda" else 1)
    test, cut, device = pooled(count, len(tokens), plain, TEST_BATCH), cut_prompts(tokens), sizes.device
    noisy, quiet, full = (routed(with_experts(plain), **how) for how in ({"noise": True}, {}, {"cut": False}))
    calls = {
        "plain CLIP, texts once": partial(evaluate_seen, plain, cut, test, 0, 0),
        "texts every batch, under noise": partial(evaluate_seen, noisy, cut, test, 0, 0, True),
        "no noise, texts once": partial(evaluate_seen, quiet, cut, test, 0, 0, False),
        "no noise, 77 tokens every batch": partial(evaluate_seen, full, tokens, test, 0, 0, True),
    }
    found = compare_calls(f"CIL test, {count} images, {len(tokens)} classes", calls, sizes, count, equal=False)
    with torch.no_grad():
        images = F.normalize(quiet.encode_image(test.pixels[:EQUAL_BATCH].to(device).float() / 255), dim=-1)
        once, each = (F.normalize(m.encode_text(t.to(device)), dim=-1) for m, t in ((quiet, cut), (full, tokens)))
    for row in found[2:]:
        verify(row, difference(images @ each.t(), images @ once.t()))
    return found
