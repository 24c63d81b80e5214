"""MoE-Adapters, class-incremental: the training step and the test of all classes seen.

Sizes are those of CIFAR100 in ten tasks: ViT-B/16, two experts of width 64 for every sample, one router, batch 128,
ten classes a task; the test has 100 classes in batches of 64.
"""

import contextlib
import copy
import io
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.incremental.scenario import Scenario
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from moe_adapters import adapters
from moe_adapters.adapters import mixture_of_experts, use_router
from moe_adapters.cil import ROUTER, TEST_BATCH, Options, training_options, with_shared_router
from moe_adapters.training import moe_blocks, train_adapters
from tests.benchmarks.inputs import OneBatch, prompts, small_or_paper_clip
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from tests.benchmarks.moe_adapters import drawn_noise, step_work, time_frozen_clip
from tests.benchmarks.moe_adapters_plain import loop_over_experts

EXPERTS = 2, 64  # a sample, their width
BATCH, TASK_CLASSES, ALL_CLASSES = 128, 10, 100
LONGEST_PROMPT = 11  # "a bad photo of a {}." of CIFAR100, with start and end token
EQUAL_STEPS, EQUAL_BATCH = 5, 8  # at most, to show two ways equal


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the table, cell by cell; --classes takes the place of a task's ten."""
    if sizes.batch_size is None and not sizes.small:
        sizes = replace(sizes, batch_size=BATCH)
    plain, found = small_or_paper_clip(sizes.small), []
    for classes in sizes.classes or (4 if sizes.small else TASK_CLASSES,):
        found += step_rows(plain, prompts(classes, LONGEST_PROMPT), sizes)
    return found + evaluation_rows(plain, prompts(8 if sizes.small else ALL_CLASSES, LONGEST_PROMPT), sizes)


def with_experts(plain: CLIP, device: torch.device) -> CLIP:
    """A copy with two random experts a block; the router stays at zero, as a run begins."""
    torch.manual_seed(1)
    model = with_shared_router(copy.deepcopy(plain))
    for name, parameter in model.named_parameters():
        if "adaptmlp" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.to(device)


# The training step


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Frozen CLIP, our step, the step with gathered weights as MTIL takes it, the step the plain way."""
    batch, full = OneBatch(plain, len(tokens), sizes), tokens.to(sizes.device)
    cut = cut_prompts(full)
    ways = {
        "training step": (cut, adapters.mixture_of_all_experts),
        "experts gathered a sample": (cut, mixture_of_experts),
        "loop over experts, 77 tokens": (full, loop_over_experts),
    }
    subjects = {"frozen CLIP, forward and backward": lambda: time_frozen_clip(plain, cut, batch, sizes)}
    for name, (prompt, mixture) in ways.items():
        subjects[name] = partial(time_training, plain, prompt, batch, sizes, mixture)
    work = step_work(plain, (cut, cut, full), len(batch.images), *EXPERTS)
    found = compare(f"CIL step, {len(tokens)} classes", subjects, sizes, len(batch.images), work)
    few = OneBatch(plain, len(tokens), replace(sizes, batch_size=min(EQUAL_BATCH, len(batch.images))))
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):  # layer norm and the experts' sum ask for it
        ours, *others = [trained(plain, prompt, few, sizes, mixture) for prompt, mixture in ways.values()]
    differences = [difference(other, ours) for other in others]
    for row, told in zip(found[1:], (max(differences), *differences)):
        verify(row, told)
    return found


def time_training(plain: CLIP, tokens: Tensor, batch: OneBatch, sizes: Sizes, mixture: object) -> list[float]:
    """One turn of the real training loop, with `mixture` in the blocks."""
    clock, total = Clock(sizes.device), sizes.warmup + max(1, sizes.steps // sizes.turns)
    run_loop(with_experts(plain, sizes.device), tokens, batch, total, mixture, timed_steps(clock))
    return clock.times()[sizes.warmup :]


def run_loop(model: CLIP, tokens: Tensor, batch: OneBatch, total: int, mixture: object, steps: object) -> None:
    options = training_options(Options(lr=1e-3), total - 1)
    with (
        mock.patch.object(adapters, "mixture_of_all_experts", mixture),
        contextlib.redirect_stdout(io.StringIO()),  # the loop tells its loss at step 0
    ):
        train_adapters(model, ROUTER, set(), tokens, batch, options, "benchmark", steps)


def trained(plain: CLIP, tokens: Tensor, batch: OneBatch, sizes: Sizes, mixture: object) -> dict[str, Tensor]:
    """The parameters after a few steps in float64, without dropout, whose mask two ways draw in different orders."""
    model, now = with_experts(plain, sizes.device).double(), [0]
    for index, block in enumerate(moe_blocks(model)):
        block.dropout.p, block.draw_noise = 0.0, partial(drawn_noise, now, index)

    def steps(stage: str, total: int, state: dict) -> range:
        for now[0] in range(total):
            yield now[0]

    run_loop(model, tokens, batch, min(EQUAL_STEPS, sizes.steps), mixture, steps)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


# The test of all classes seen


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of a test: the protocol's, texts under new noise every batch; without noise; as the original."""
    count = TEST_BATCH * (2 if sizes.small else 8 if sizes.device.type == "cuda" else 1)
    test = pooled(count, len(tokens), plain.visual.input_resolution)
    cut, full = cut_prompts(tokens), tokens

    def time_test(prompt: Tensor, noise: bool, each: bool) -> list[float]:
        model = with_experts(plain, sizes.device)
        use_router(model, ROUTER, noise=noise)
        if prompt is full:
            model.encode_text = partial(model.encode_text, cut=False)
        return timed_calls(partial(evaluate_seen, model, prompt, test, 0, 0, each), sizes)

    def time_frozen() -> list[float]:
        return timed_calls(partial(evaluate_seen, copy.deepcopy(plain).to(sizes.device), cut, test, 0, 0), sizes)

    subjects = {
        "plain CLIP, texts once": time_frozen,
        "texts every batch, under noise": partial(time_test, cut, True, True),
        "no noise, texts once": partial(time_test, cut, False, False),
        "no noise, 77 tokens every batch": partial(time_test, full, False, True),
    }
    found = compare(f"CIL test, {count} images, {len(tokens)} classes", subjects, sizes, count)
    once, each = (noise_free_logits(plain, test, prompt, sizes) for prompt in (cut, full))
    for row in found[2:]:
        verify(row, difference({"logits": each}, {"logits": once}))
    return found


def pooled(count: int, classes: int, side: int) -> PooledTest:
    """Random decoded images of one task that holds all classes."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (count, 3, side, side), generator=generator).to(torch.uint8)
    images = TensorDataset(pixels)
    images.labels = torch.randint(classes, (count,), generator=generator).tolist()
    return PooledTest(images, Scenario(range(classes), classes, classes), "test", TEST_BATCH, pixels=pixels)


@torch.no_grad()
def noise_free_logits(plain: CLIP, test: PooledTest, tokens: Tensor, sizes: Sizes) -> Tensor:
    """Cosines of a few images with the prompts as they stand, cut or not."""
    model = with_experts(plain, sizes.device)
    use_router(model, ROUTER)
    images = F.normalize(model.encode_image(test.pixels[:EQUAL_BATCH].to(sizes.device).float() / 255), dim=-1)
    return images @ F.normalize(model.encode_text(tokens.to(sizes.device), cut=False), dim=-1).t()
