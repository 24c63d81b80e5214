"""MoE-Adapters: the training step, evaluation, class prompts, and checkpoints x data sets.

Sizes are those of the MTIL runs: ViT-B/16, 22 experts of width 64, top-2, 11 routers, batch 64, evaluation batch 128.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from common import clip
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.label_space import LabelSpace
from common.evaluation.zero_shot import class_vectors, image_features
from common.mini import MINI
from moe_adapters.adapters import insert_adapters, use_router
from moe_adapters.evaluation import Checkpoint, EvaluationSet, RoutedSpace
from moe_adapters.options import Options
from moe_adapters.training import TrainingOptions
from tests.benchmarks.inputs import (
    compare_spaces, encoding_call, float64_kept, mini_sets, one_batch, prompts, small_or_paper_clip,
)  # fmt: skip
from tests.benchmarks.measure import Row, Sizes, compare, compare_calls, difference, verify
from tests.moe_adapters import plain_ways
from tests.moe_adapters.plain_ways import OPTIONS, Mixture, loop_over_experts, train, trajectory, with_adapters

EQUAL_BATCH, EQUAL_CLASSES = 8, 16  # at most, to show two ways equal, over `iterations` of the options
Build = Callable[[], CLIP]
Ways = dict[str, tuple[Callable[[Tensor], Tensor], Mixture]]  # how prompts are cut, and experts mixed


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    found, plain = [], small_or_paper_clip(sizes.small).to(sizes.device)
    for classes in sizes.classes or ((4,) if sizes.small else (10, 100, 397)):
        tokens = prompts(classes).to(sizes.device)
        for routing in ("spread", "concentrated"):
            found += step_rows(plain, tokens, routing, sizes)
        found += prompt_rows(plain, tokens, sizes)
    found += evaluation_rows(plain, prompts(10).to(sizes.device), sizes)
    return found + matrix_rows(sizes) + label_space_rows(sizes)


def step_rows(plain: CLIP, tokens: Tensor, routing: str, sizes: Sizes) -> list[Row]:
    """Frozen CLIP, our step, the step the plain way; whether the last two are equal."""
    ways = {"training step": (cut_prompts, None), "loop over experts, 77 tokens": (Tensor.clone, loop_over_experts)}
    cell, build = f"step, {len(tokens)} classes, {routing}", partial(with_adapters, plain, routing)
    rows = way_rows(cell, plain, build, tokens, ways, sizes.batch(64), OPTIONS, sizes)
    rows[1].target = rows[1].target or ("" if sizes.small else "<= 1.25")
    return rows


def way_rows(
    cell: str, plain: CLIP, build: Build, tokens: Tensor, ways: Ways, size: int, options: TrainingOptions, sizes: Sizes
) -> list[Row]:
    """Frozen CLIP, then ways to train: how prompts are cut and experts mixed; what the first differs by from the rest.

    Differences are those over a few steps of a part of the batch, in float64. In float32 a parameter whose gradient is
    rounding noise moves by up to the learning rate in either direction (AdamW divides by the gradient's size), and a
    hidden unit within rounding of zero passes its gradient or not.
    """
    few, steps = min(EQUAL_CLASSES, len(tokens)), min(options.iterations, sizes.steps)
    batch, part = one_batch(plain, size, len(tokens)), one_batch(plain, min(EQUAL_BATCH, size), few)
    subjects = {"frozen CLIP, forward and backward": partial(plain_ways.frozen_clip, plain, cut_prompts(tokens), batch)}
    for name, (cut, mixture) in ways.items():
        inputs = cut(tokens), batch, mixture, options
        subjects[name] = lambda clock, inputs=inputs: train(build(), *inputs, clock.calls, clock.steps)
    with float64_kept():
        ours, *others = (
            trajectory(build().double(), cut(tokens[:few]), part, steps, mixture, options)
            for cut, mixture in ways.values()
        )
    differences = [difference(other, ours) for other in others]
    return compare(cell, subjects, sizes, size, True, dict(zip(ways, (max(differences), *differences))))


def routed(model: CLIP, cut: bool = True, noise: bool = False) -> CLIP:
    """The model with router 0 in use; prompts up to the last end token, or all 77."""
    use_router(model, 0, noise=noise)
    if not cut:
        model.encode_text = partial(model.encode_text, cut=False)
    return model


def prompt_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Class vectors under one router, one template: all 77 columns against those up to the last end token."""
    calls = {}
    for name, cut in {"77 tokens": False, "cut at the last end token": True}.items():
        calls[name] = partial(class_vectors, routed(with_adapters(plain, "concentrated"), cut), tokens[:, None])
    return compare_calls(f"class prompts, {len(tokens)} classes", calls, sizes)


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of plain encode_image and through a router, uint8 pixels on the host in both."""
    encode, pixels, size = encoding_call(plain, sizes)
    prepared, model = (with_adapters(plain, "concentrated") for _ in range(2))
    test = EvaluationSet(model, pixels, torch.zeros(len(pixels), dtype=torch.long), tokens[:, None], size)
    checkpoint = Checkpoint(0, plain_ways.adapters_of(model))
    whole = partial(test.evaluate, checkpoint, Options(no_ddas=True, task_id=0), None)
    calls = {
        "plain encode_image": encode,
        "through a router, text prepared": partial(image_features, routed(prepared), pixels, size),
        f"through a router, {len(tokens)} prompts and checkpoint included": whole,
    }
    found = compare_calls(f"evaluation, {len(pixels)} images", calls, sizes, len(pixels), equal=False)
    found[1].target = "" if sizes.small else "<= 1.18"  # 0.85 of the images a second
    return found


def matrix_rows(sizes: Sizes) -> list[Row]:
    """Checkpoints x data sets, always at small sizes: each cell anew, and with everything shared."""
    few, tasks = replace(sizes, steps=min(sizes.steps, 3), warmup=0), 2 if sizes.small else 5
    matrix = plain_ways.build_matrix(sizes.device, tasks, images=64, batch_size=32)
    ways = {"every cell anew": plain_ways.evaluate_anew, "shared between checkpoints": plain_ways.evaluate_shared}
    calls = {name: partial(way, matrix) for name, way in ways.items()}
    apart = difference(*(call() for call in calls.values()))  # the warm-up
    rows = compare_calls(f"{tasks} checkpoints x {tasks} sets, small", calls, few, equal=False)
    verify(rows[1], apart)
    return rows


def label_space_rows(sizes: Sizes) -> list[Row]:
    """Checkpoints x data sets of the miniature, each learnt set through its own router: MTIL, and X-TAIL."""
    model, (tests, joint) = clip.load(MINI)[0], mini_sets(sizes)
    insert_adapters(model, experts=22, topk=2, routers=len(tests))
    model.to(sizes.device)
    checkpoints = [Checkpoint(task_id, plain_ways.adapters_of(model)) for task_id in range(len(tests))]

    def evaluation(space: LabelSpace | None) -> None:
        routed = RoutedSpace(model, space) if space else None
        for task_id, test in enumerate(tests):
            whole = EvaluationSet(model, test.pixels, test.labels, test.tokens, 128, test.name, routed)
            for checkpoint in checkpoints:
                whole.evaluate(checkpoint, Options(oracle_task_id=True), task_id)

    return compare_spaces(evaluation, joint, len(tests), sizes)
