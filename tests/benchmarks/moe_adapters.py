"""MoE-Adapters: the training step, evaluation, class prompts, and checkpoints x data sets.

Sizes are those of the MTIL runs: ViT-B/16, 22 experts of width 64, top-2, 11 routers, batch 64, evaluation batch 128.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.zero_shot import class_vectors, image_features
from moe_adapters.adapters import use_router
from moe_adapters.evaluation import Checkpoint, EvaluationSet, Routes
from moe_adapters.training import TrainingOptions, moe_blocks, train_adapters
from tests.benchmarks import inputs
from tests.benchmarks.inputs import OneBatch, one_batch, prompts
from tests.benchmarks.measure import Clock, Row, Sizes, compare, compare_calls, difference
from tests.moe_adapters import plain_ways
from tests.moe_adapters.plain_ways import Mixture, adapters_of, drawn_noise, loop_over_experts, replaced, with_adapters

EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES = 20, 8, 16  # at most, to show two ways equal
OPTIONS = TrainingOptions(lr=1e-3, warmup=1)


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    found, plain = [], inputs.small_or_paper_clip(sizes.small).to(sizes.device)
    for classes in sizes.classes or ((4,) if sizes.small else (10, 100, 397)):
        tokens = prompts(classes).to(sizes.device)
        for routing in ("spread", "concentrated"):
            found += step_rows(plain, tokens, routing, sizes)
        found += prompt_rows(plain, tokens, sizes)
    return found + evaluation_rows(plain, prompts(10).to(sizes.device), sizes) + matrix_rows(sizes)


def step_rows(plain: CLIP, tokens: Tensor, routing: str, sizes: Sizes) -> list[Row]:
    """Frozen CLIP, our step, the step the plain way; whether the last two are equal."""
    ways = {"training step": (cut_prompts, None), "loop over experts, 77 tokens": (Tensor.clone, loop_over_experts)}
    build, targets = partial(with_adapters, plain, routing), {"training step": "<= 1.25"}
    return way_rows(f"step, {len(tokens)} classes, {routing}", plain, build, tokens, ways, sizes, sizes.batch(64),
                    min(EQUAL_STEPS, sizes.steps), targets=targets)  # fmt: skip


def way_rows(
    cell: str,
    plain: CLIP,
    build: Callable[[], CLIP],
    tokens: Tensor,
    ways: dict[str, tuple[Callable[[Tensor], Tensor], Mixture]],
    sizes: Sizes,
    size: int,
    equal_steps: int,
    options: TrainingOptions = OPTIONS,
    targets: dict[str, str] | None = None,
) -> list[Row]:
    """Frozen CLIP, then ways to train: how prompts are cut and experts mixed; what the first differs by from the rest.

    Differences are those over a few steps of a part of the batch, in float64. In float32 a parameter whose gradient is
    rounding noise moves by up to the learning rate in either direction (AdamW divides by the gradient's size), and a
    hidden unit within rounding of zero passes its gradient or not.
    """
    batch = one_batch(plain, size, len(tokens))
    few = one_batch(plain, min(EQUAL_BATCH, size), min(EQUAL_CLASSES, len(tokens)))
    subjects = {"frozen CLIP, forward and backward": partial(train_frozen_clip, plain, cut_prompts(tokens), batch)}
    for name, (cut, mixture) in ways.items():
        subjects[name] = partial(train_anew, build, cut(tokens), batch, mixture, options)
    with inputs.float64_kept():
        left = [
            trajectory(build().double(), cut(tokens[:EQUAL_CLASSES]), few, equal_steps, mixture, options)
            for cut, mixture in ways.values()
        ]
    differences = [difference(other, left[0]) for other in left[1:]]
    apart = dict(zip(ways, (max(differences), *differences)))
    return compare(cell, subjects, sizes, size, True, apart, targets)


def train_frozen_clip(plain: CLIP, tokens: Tensor, batch: OneBatch, clock: Clock) -> None:
    """Forward of both towers, and backward through frozen weights down to the first blocks' inputs."""
    model = copy.deepcopy(plain).train()
    for tower in (model.visual.transformer, model.transformer):
        tower.register_forward_pre_hook(lambda module, inputs: inputs[0].detach().requires_grad_())

    def step() -> None:
        text_features = F.normalize(model.encode_text(tokens, cut=False), dim=-1)
        features = F.normalize(model.encode_image(batch.images), dim=-1)
        F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), batch.labels).backward()

    clock.repeat(step)


def train_anew(
    build: Callable[[], CLIP], tokens: Tensor, batch: OneBatch, mixture: Mixture, options: TrainingOptions, clock: Clock
) -> None:
    train(build(), tokens, batch, mixture, options, clock.calls, clock.steps)


def train(
    model: CLIP, tokens: Tensor, batch: OneBatch, mixture: Mixture, options: TrainingOptions, count: int, steps: Any
) -> None:
    """The real training loop of so many steps."""
    with replaced(mixture), inputs.silent():
        train_adapters(model, 0, set(), tokens, batch, replace(options, iterations=count - 1), "benchmark", steps)


def trajectory(
    model: CLIP,
    tokens: Tensor,
    batch: OneBatch,
    count: int,
    mixture: Mixture = None,
    options: TrainingOptions = OPTIONS,
) -> dict[str, Tensor]:
    """What `count` training steps leave: every loss, the last step's gradients, the trained parameters.

    Keys "loss n", "gradient <name>" (experts that were skipped have none) and "<name>". Without dropout, whose mask
    the two ways draw in different shapes; the gate noise is drawn by step and block.
    """
    now, clock = [0], Clock(count)
    for index, block in enumerate(moe_blocks(model)):
        block.dropout.p, block.draw_noise = 0.0, partial(drawn_noise, now, index)

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for now[0] in clock.steps(stage, total, state):
            yield now[0]

    train(model, tokens, batch, mixture, options, count, steps)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = {f"loss {step}": loss for step, loss in enumerate(clock.state["log"].tensors["loss"])}
    gradients = {f"gradient {name}": p.grad for name, p in trained.items() if p.grad is not None}
    return losses | gradients | {name: p.detach() for name, p in trained.items()}


def routed(model: CLIP, cut: bool = True, noise: bool = False) -> CLIP:
    """The model with router 0 in use; prompts up to the last end token, or all 77."""
    use_router(model, 0, noise=noise)
    if not cut:
        model.encode_text = partial(model.encode_text, cut=False)
    return model


def prompt_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Class vectors under one router, one template: all 77 columns against those up to the last end token."""
    models = {"77 tokens": False, "cut at the last end token": True}
    calls = {
        name: partial(class_vectors, routed(with_adapters(plain, "concentrated"), cut), tokens[:, None])
        for name, cut in models.items()
    }
    return compare_calls(f"class prompts, {len(tokens)} classes", calls, sizes)


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of plain encode_image and through a router, uint8 pixels on the host in both."""
    size = sizes.batch(128, small=32)
    pixels = inputs.evaluation_pixels(plain, size, sizes)
    model = with_adapters(plain, "concentrated")
    test = EvaluationSet(model, pixels, torch.zeros(len(pixels), dtype=torch.long), tokens[:, None], size)
    checkpoint = Checkpoint(0, adapters_of(model))
    calls = {
        "plain encode_image": partial(inputs.encode_all, plain, pixels, size),
        "through a router, text prepared": partial(image_features, routed(with_adapters(plain, "concentrated")), pixels, size),
        f"through a router, {len(tokens)} prompts and checkpoint included":
            lambda: test.evaluate(checkpoint, Routes("fixed", fixed=0), None),
    }  # fmt: skip
    found = compare_calls(f"evaluation, {len(pixels)} images", calls, sizes, len(pixels), equal=False)
    found[1].target = "" if sizes.small else "<= 1.18"  # 0.85 of the images a second
    return found


def matrix_rows(sizes: Sizes) -> list[Row]:
    """Checkpoints x data sets, always at small sizes: each cell anew, and with everything shared."""
    few, tasks = replace(sizes, steps=min(sizes.steps, 3), warmup=0), 5
    matrix = plain_ways.build_matrix(sizes.device, tasks, images=64, batch_size=32)
    ways = {"every cell anew": plain_ways.evaluate_anew, "shared between checkpoints": plain_ways.evaluate_shared}
    for way in ways.values():
        way(matrix)  # the warm-up
    calls = {name: partial(way, matrix) for name, way in ways.items()}
    return compare_calls(f"{tasks} checkpoints x {tasks} sets, small", calls, few)
