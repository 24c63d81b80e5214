"""MoE-Adapters: the training step, evaluation, class prompts, and checkpoints x data sets.

Sizes are those of the MTIL runs: ViT-B/16, 22 experts of width 64, top-2, 11 routers, batch 64, evaluation batch 128.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.datasets.transforms import clip_normalise
from common.evaluation.zero_shot import class_vectors, image_features
from common.mini.weights import chooser_features
from moe_adapters import adapters
from moe_adapters.adapters import insert_adapters, is_adapter_key, use_router
from moe_adapters.ddas import (
    FULL_SHOT_LR,
    AutoEncoder,
    build_autoencoders,
    chooser_input,
    reconstruction_errors,
    train_autoencoder,
)
from moe_adapters.evaluation import Cell, Checkpoint, EvaluationSet, Routes, distinct
from moe_adapters.training import TrainingOptions, moe_blocks, train_adapters
from tests.benchmarks import flops
from tests.benchmarks.inputs import (
    LONGEST_PROMPT,
    SMALL,
    USUAL_PROMPT,
    OneBatch,
    evaluation_pixels,
    prompts,
    small_or_paper_clip,
    time_plain_encoding,
)
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from tests.benchmarks.moe_adapters_plain import evaluate_cell, loop_over_experts

EXPERTS, TOPK, ROUTERS = 22, 2, 11
BOTTLENECK, SMALL_BOTTLENECK = 64, 4
EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES = 20, 8, 16  # at most, to show two ways equal
MATRIX_TASKS, MATRIX_CLASSES, MATRIX_IMAGES = 5, 4, 64
OPTIONS = TrainingOptions(lr=1e-3, warmup=1)


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    found = []
    plain = small_or_paper_clip(sizes.small)
    for classes in sizes.classes or ((4,) if sizes.small else (10, 100, 397)):
        tokens = prompts(classes, LONGEST_PROMPT.get(classes, USUAL_PROMPT))
        for routing in ("spread", "concentrated"):
            found += step_rows(plain, tokens, routing, sizes)
        found += prompt_rows(plain, tokens, sizes)
    found += evaluation_rows(plain, prompts(10, LONGEST_PROMPT[10]), sizes)
    return found + matrix_rows(sizes)


def with_adapters(plain: CLIP, routing: str, device: torch.device | str) -> CLIP:
    """A copy with random experts. Routers at zero spread the samples by noise, random ones send all to a few."""
    torch.manual_seed(1)
    bottleneck = SMALL_BOTTLENECK if plain.config == SMALL else BOTTLENECK
    model = insert_adapters(copy.deepcopy(plain), EXPERTS, TOPK, bottleneck, ROUTERS)
    for name, parameter in model.named_parameters():
        if "adaptmlp" in name or ("router_list" in name and routing == "concentrated"):
            nn.init.normal_(parameter, std=0.02 if "adaptmlp" in name else 0.5)
    return model.to(device)


# The training step


def step_rows(plain: CLIP, tokens: Tensor, routing: str, sizes: Sizes) -> list[Row]:
    """Frozen CLIP, our step, the step the plain way; whether the last two are equal."""
    batch, device = OneBatch(plain, len(tokens), sizes), sizes.device
    full, cut = tokens.to(device), cut_prompts(tokens).to(device)
    cell = f"step, {len(tokens)} classes, {routing}"
    subjects = {
        "frozen CLIP, forward and backward": lambda: time_frozen_clip(plain, cut, batch, sizes),
        "training step": lambda: time_training(with_adapters(plain, routing, device), cut, batch, sizes),
        "loop over experts, 77 tokens": lambda: time_training(
            with_adapters(plain, routing, device), full, batch, sizes, loop_over_experts
        ),
    }
    work = step_work(plain, (cut, full), len(batch.images), TOPK, SMALL_BOTTLENECK if sizes.small else BOTTLENECK)
    found = compare(cell, subjects, sizes, len(batch.images), work)
    found[1].target = "" if sizes.small else "<= 1.25"
    found_difference = step_difference(plain, tokens, routing, sizes)
    for row in found[1:]:
        verify(row, found_difference)
    return found


def step_work(plain: CLIP, texts: Sequence[Tensor], batch: int, topk: int, bottleneck: int) -> list[float]:
    """FLOPs of a frozen step on the first texts, and with experts on each of the texts (C, L)."""
    frozen = flops.frozen_clip_step(plain.config, batch, tuple(texts[0].shape))
    return [frozen, *(flops.moe_step(plain.config, batch, tuple(text.shape), topk, bottleneck) for text in texts)]


def step_difference(plain: CLIP, tokens: Tensor, routing: str, sizes: Sizes) -> float:
    """Between our step and the plain way, over a few steps of a part of the batch, in float64.

    In float32 a parameter whose gradient is rounding noise moves by up to the learning rate in either direction
    (AdamW divides by the gradient's size), and a hidden unit within rounding of zero passes its gradient or not.
    """
    few = replace(sizes, batch_size=min(EQUAL_BATCH, sizes.batch_size or EQUAL_BATCH))
    tokens = tokens[:EQUAL_CLASSES].to(sizes.device)
    batch, count = OneBatch(plain, len(tokens), few), min(EQUAL_STEPS, sizes.steps)
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):  # layer norm and the experts' sum ask for it
        ours, loop = (with_adapters(plain, routing, sizes.device).double() for _ in range(2))
        ours = trajectory(ours, cut_prompts(tokens), batch, count)
        return difference(trajectory(loop, tokens, batch, count, loop_over_experts), ours)


def time_frozen_clip(plain: CLIP, tokens: Tensor, batch: OneBatch, sizes: Sizes) -> list[float]:
    """Forward of both towers, and backward through frozen weights down to the first blocks' inputs."""
    model = copy.deepcopy(plain).to(sizes.device).train()
    for tower in (model.visual.transformer, model.transformer):
        tower.register_forward_pre_hook(lambda module, inputs: inputs[0].detach().requires_grad_())
    images, labels = batch[0]

    def step() -> None:
        text_features = F.normalize(model.encode_text(tokens, cut=False), dim=-1)
        features = F.normalize(model.encode_image(images), dim=-1)
        F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), labels).backward()

    return timed_calls(step, sizes)


def time_training(
    model: CLIP, tokens: Tensor, batch: OneBatch, sizes: Sizes, mixture: Callable[..., Tensor] | None = None
) -> list[float]:
    """One turn of the real training loop, with another `mixture_of_experts` where one is given."""
    clock = Clock(sizes.device)
    total = sizes.warmup + max(1, sizes.steps // sizes.turns)
    options = replace(OPTIONS, iterations=total - 1)
    with replaced(mixture), contextlib.redirect_stdout(io.StringIO()):  # the loop tells its loss at step 0
        train_adapters(model, 0, set(), tokens, batch, options, "benchmark", timed_steps(clock))
    return clock.times()[sizes.warmup :]


def replaced(mixture: Callable[..., Tensor] | None) -> contextlib.AbstractContextManager:
    return mock.patch.object(adapters, "mixture_of_experts", mixture) if mixture else contextlib.nullcontext()


def trajectory(
    model: CLIP, tokens: Tensor, batch: OneBatch, count: int, mixture: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """What `count` training steps leave: every loss, the first step's gradients, the trained parameters.

    Keys "loss n", "gradient <name>" (experts that were skipped have none) and "<name>". Without dropout, whose mask
    the two ways draw in different shapes; the gate noise is drawn by step and block.
    """
    now, outputs, found = [0], {}, {}
    for index, block in enumerate(moe_blocks(model)):
        block.dropout.p, block.draw_noise = 0.0, partial(drawn_noise, now, index)
    keep_output(model, "encode_text", outputs)
    keep_output(model, "encode_image", outputs)

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for now[0] in range(total):
            yield now[0]
            image, text = (F.normalize(outputs[side], dim=-1) for side in ("encode_image", "encode_text"))
            if now[0] == 0:
                gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                found.update({f"gradient {name}": gradient.clone() for name, gradient in gradients.items()})
            found[f"loss {now[0]}"] = F.cross_entropy(model.logit_scale.exp() * image @ text.t(), batch[now[0]][1])

    options = replace(OPTIONS, iterations=count - 1)
    with replaced(mixture), contextlib.redirect_stdout(io.StringIO()):
        train_adapters(model, 0, set(), tokens, batch, options, "equality", steps)
    return found | {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def drawn_noise(now: list[int], index: int, clean: Tensor) -> Tensor:
    """Standard normal noise that depends on the step and the block alone."""
    generator = torch.Generator().manual_seed(1000 * now[0] + index)
    return torch.randn(clean.shape, generator=generator).to(clean)


def keep_output(model: CLIP, name: str, outputs: dict[str, Tensor]) -> None:
    """Let the method `name` of this model leave its last output, detached, in `outputs`."""
    method = getattr(model, name)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        output = method(*args, **kwargs)
        outputs[name] = output.detach()
        return output

    setattr(model, name, call)


# Class prompts, evaluation


def prompt_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Class vectors under one router, one template: all 77 columns against those up to the last end token."""

    def router_zero(cut: bool) -> CLIP:
        model = with_adapters(plain, "concentrated", sizes.device)
        use_router(model, 0)
        if not cut:
            model.encode_text = partial(model.encode_text, cut=False)
        return model

    tokens = tokens[:, None].to(sizes.device)
    subjects = {
        "77 tokens": lambda: timed_calls(partial(class_vectors, router_zero(cut=False), tokens), sizes),
        "cut at the last end token": lambda: timed_calls(partial(class_vectors, router_zero(cut=True), tokens), sizes),
    }
    found = compare(f"class prompts, {len(tokens)} classes", subjects, sizes)
    full, cut = ({"vectors": class_vectors(router_zero(cut), tokens)} for cut in (False, True))
    verify(found[1], difference(full, cut))
    return found


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of plain encode_image and through a router, uint8 pixels on the host in both."""
    batch_size = sizes.batch_size or (32 if sizes.small else 128)
    pixels = evaluation_pixels(plain, batch_size, sizes)
    count = len(pixels)
    labels = torch.zeros(count, dtype=torch.long)

    def time_features() -> list[float]:
        model = with_adapters(plain, "concentrated", sizes.device)
        use_router(model, 0)
        return timed_calls(partial(image_features, model, pixels, batch_size), sizes)

    def time_test_set() -> list[float]:
        model = with_adapters(plain, "concentrated", sizes.device)
        test = EvaluationSet(model, pixels, labels, tokens[:, None], batch_size)
        checkpoint = Checkpoint(0, adapters_of(model))
        return timed_calls(partial(test.evaluate, checkpoint, Routes("fixed", fixed=0), None), sizes)

    subjects = {
        "plain encode_image": lambda: time_plain_encoding(plain, pixels, batch_size, sizes),
        "through a router, text prepared": time_features,
        f"through a router, {len(tokens)} prompts and checkpoint included": time_test_set,
    }
    found = compare(f"evaluation, {count} images", subjects, sizes, count)
    if not sizes.small:
        found[1].target = "<= 1.18"  # 0.85 of the images a second
    return found


def adapters_of(model: CLIP) -> dict[str, Tensor]:
    return {
        key: value.clone()
        for key, value in model.state_dict().items()
        if is_adapter_key(key) and ".adaptmlp." not in key
    }


# Checkpoints x data sets


@dataclass
class Matrix:
    """A small sequence as it stands after training: its checkpoints, test sets and autoencoders."""

    model: CLIP
    checkpoints: list[Checkpoint]
    sets: list[tuple[Tensor, Tensor, Tensor]]  # pixels, labels, tokens (C, T, 77)
    extractor: nn.Module
    autoencoders: list[AutoEncoder]
    threshold: float
    batch_size: int


class DomainBatches:
    """Normalised batches of one domain for its autoencoder."""

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        self.batches = [clip_normalise(batch.to(device)) for batch in pixels.split(32)]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        images = self.batches[step % len(self.batches)]
        return images, torch.zeros(len(images))


def domain_pixels(domain: int, count: int, side: int) -> Tensor:
    """uint8 images that share a random picture of their domain under noise of their own."""
    generator = torch.Generator().manual_seed(domain)
    picture = torch.rand(3, 4, 4, generator=generator).repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    noise = torch.randn(count, 3, side, side, generator=generator)
    return (255 * (picture + 0.15 * noise).clamp(0, 1)).to(torch.uint8)


def build_matrix(device: torch.device, tasks: int, images: int, batch_size: int) -> Matrix:
    """Random adapters a task, trained autoencoders: test batches of learnt domains go to routers, others to CLIP."""
    plain = small_or_paper_clip(small=True)
    plain.token_embedding.weight.mul_(50)  # with fresh weights every prompt and every image would look the same
    for parameter in [*plain.visual.parameters(), *plain.transformer.parameters()]:
        parameter.mul_(2 if parameter.dim() > 1 else 1)
    side = plain.visual.input_resolution
    tokens = prompts(3 * MATRIX_CLASSES, USUAL_PROMPT).view(MATRIX_CLASSES, 3, -1).to(device)
    pixels = [domain_pixels(domain, images, side) for domain in range(tasks + 1)]
    labels = [torch.randint(MATRIX_CLASSES, (images,), generator=torch.Generator().manual_seed(4)) for _ in pixels]
    extractor = chooser_features().to(device)
    features = extractor(torch.zeros(1, 3, side, side, device=device)).numel()
    torch.manual_seed(5)
    modules = build_autoencoders(tasks + 1, features).to(device)
    known, checkpoints, own_errors = [], [], []
    for domain in range(tasks + 1):
        batches = DomainBatches(pixels[domain], device)
        train_autoencoder(
            modules[domain], extractor, batches, 4, 60, FULL_SHOT_LR, "", lambda stage, total, state: range(total)
        )
        own = chooser_input(extractor, batches[0][0])
        own_errors.append(float(reconstruction_errors([modules[domain]], own).mean()))
        if domain > 0:
            model = with_adapters(plain, "concentrated", device)
            torch.manual_seed(domain)
            for parameter in (p for block in moe_blocks(model) for p in block.adaptmlp_list.parameters()):
                nn.init.normal_(parameter, std=0.3)
            places = [distinct(known, module) for module in modules]
            checkpoints.append(Checkpoint(domain - 1, adapters_of(model), places))
    sets = [(own, label.to(device), tokens) for own, label in zip(pixels[1:], labels[1:])]
    return Matrix(model, checkpoints, sets, extractor, known, 1.5 * max(own_errors), batch_size)


def evaluate_shared(matrix: Matrix) -> list[list[Cell]]:
    """A row of cells a data set by the real code: what checkpoints share is computed once."""
    routes, found = Routes("ddas", matrix.threshold), []
    for pixels, labels, tokens in matrix.sets:
        test = EvaluationSet(matrix.model, pixels, labels, tokens, matrix.batch_size)
        test.measure_errors(matrix.extractor, matrix.autoencoders)
        found.append([test.evaluate(checkpoint, routes, None) for checkpoint in matrix.checkpoints])
    return found


def evaluate_anew(matrix: Matrix) -> list[list[Cell]]:
    """The same cells the plain way, one after the other."""
    m = matrix
    return [
        [
            evaluate_cell(
                m.model, checkpoint, test, m.extractor, m.autoencoders, len(m.checkpoints), m.threshold, m.batch_size
            )
            for checkpoint in m.checkpoints
        ]
        for test in m.sets
    ]


def matrix_rows(sizes: Sizes) -> list[Row]:
    """Checkpoints x data sets, always at small sizes: each cell anew, and with everything shared."""
    few = replace(sizes, steps=min(sizes.steps, 3), warmup=0)
    matrix = build_matrix(sizes.device, MATRIX_TASKS, MATRIX_IMAGES, 32)
    anew, shared = evaluate_anew(matrix), evaluate_shared(matrix)  # also the warm-up
    subjects = {
        "every cell anew": lambda: timed_calls(partial(evaluate_anew, matrix), few),
        "shared between checkpoints": lambda: timed_calls(partial(evaluate_shared, matrix), few),
    }
    found = compare(f"{MATRIX_TASKS} checkpoints x {MATRIX_TASKS} sets, small", subjects, few)
    verify(found[1], float(anew != shared))  # accuracies and routing: same or not
    return found
