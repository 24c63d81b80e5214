"""InfLoRA: the training step at the first and the twentieth task, the statistics pass, basis design, evaluation.

Sizes are those of ImageNet-R in 20 tasks: ViT-B/16, rank 10, 10 classes a task, batch 128.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inflora.gpm import Memory, design, remember, second_moments
from inflora.lora import Network
from inflora.training import TrainingOptions, train_task
from tests.benchmarks.inputs import OneBatch, small_or_paper_vit
from tests.benchmarks.measure import Clock, Row, Sizes, compare, compare_calls, difference, verify
from tests.inflora.plain_ways import plain_forward, plain_second_moments

TASKS, RANK, CLASSES, EPSILON = 20, 10, 10, 0.99
EQUAL_STEPS, EQUAL_BATCH = 5, 4
TARGET = "<= 1.05"  # of a later task against the first, and of merged branches against the ViT without any


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    network = random_network(sizes.small, sizes.classes[0] if sizes.classes else CLASSES).to(sizes.device)
    batch = one_batch(network, sizes.batch(128))
    found = step_rows(network, batch, sizes) + statistics_rows(network, batch, sizes)
    return found + design_rows(network, sizes) + evaluation_rows(network, batch.images, sizes)


def random_network(small: bool, classes: int) -> Network:
    """Random weights in all branches, as if every task were finished."""
    network = Network(small_or_paper_vit(small), [classes] * TASKS, TASKS, RANK)
    with torch.no_grad():
        for task in range(TASKS):
            for parameter in network.branch(task).values():
                nn.init.normal_(parameter, std=0.02)
    return network


def one_batch(network: Network, size: int) -> OneBatch:
    token, side = network.image_encoder.cls_token, network.image_encoder.patch_embed.img_size[0]
    return OneBatch(size, side, network.classifier_pool[0].out_features, token.device, token.dtype)


def step_rows(network: Network, batch: OneBatch, sizes: Sizes) -> list[Row]:
    """The real training loop at both ends of 20 tasks, and the plain way; whether they are equal at either."""
    ways = {
        "task 1": (0, False),
        f"task {TASKS}": (TASKS - 1, False),
        "the plain way, task 1": (0, True),
        f"the plain way, task {TASKS}": (TASKS - 1, True),
    }
    subjects = {name: partial(train, network, batch, *way) for name, way in ways.items()}
    small = random_network(True, CLASSES).double().to(sizes.device)
    left = [train(small, one_batch(small, EQUAL_BATCH), *way, Clock(EQUAL_STEPS)) for way in ways.values()]
    first, last = difference(left[2], left[0]), difference(left[3], left[1])
    apart = dict(zip(list(ways)[1:], (last, first, last)))
    targets = {f"task {TASKS}": TARGET}
    return compare(f"step, {TASKS} tasks", subjects, sizes, len(batch.images), True, apart, targets)


def train(network: Network, batch: OneBatch, task: int, plain: bool, clock: Clock) -> dict[str, Tensor]:
    """Losses and trained parameters that `train_task` leaves."""
    model = copy.deepcopy(network)
    options = TrainingOptions(clock.calls, lr=5e-4, optimizer="adam", schedule=lambda epoch, base: base)
    with plain_forward(task + 1 if plain else None):
        log = train_task(model, task, task, 0, batch, options, "benchmark", clock.steps)
    return {"losses": log["loss"]} | model.branch(task) | model.classifier(task)


def statistics_rows(network: Network, batch: OneBatch, sizes: Sizes) -> list[Row]:
    """Second moments of the inputs of all layers, over two batches."""
    model, batches = copy.deepcopy(network), [batch[0]] * 2
    model.finish(TASKS - 1)
    calls = {
        "an image at a time, copied to the CPU": partial(plain_second_moments, model, batches),
        "a product a batch, on the device": partial(second_moments, model, batches),
    }
    count = 2 * len(batch.images)
    return compare_calls(f"statistics pass, {count} images", calls, sizes, count)


def design_rows(network: Network, sizes: Sizes) -> list[Row]:
    """One layer between two tasks: its B_t, and its memory afterwards. Seconds a task, not a step."""
    width = network.image_encoder.embed_dim
    C, new = (layer_moment(width, seed).to(sizes.device) for seed in (3, 4))
    kept = remember(C, None, EPSILON, dual=True)
    free = Memory(torch.linalg.qr(new, mode="complete").Q[:, : width // 4], free=True)
    calls: dict[str, Callable[[], Any]] = {
        "first task": partial(design, C, None, RANK),
        "first task, by eigh": partial(torch.linalg.eigh, C),
        "later task": partial(design, new, kept, RANK),
        "memory, old tasks' space kept": partial(remember, new, kept, EPSILON, True),
        "memory, free space kept": partial(remember, C, free, EPSILON, True),
    }
    found = compare_calls(f"basis design, a layer of width {width}", calls, sizes, equal=False)
    svd, eigh = design(C, None, RANK), torch.linalg.eigh(C).eigenvectors[:, -RANK:].t() / 3**0.5
    verify(found[1], difference(svd.t() @ svd, eigh.t() @ eigh))
    return found


def layer_moment(width: int, seed: int) -> Tensor:
    """A second moment (d, d) whose spectrum falls as that of a layer's inputs does."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(4 * width, width, generator=generator) * torch.logspace(1, -1, width)
    tokens = tokens @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return tokens.t() @ tokens / len(tokens)


def evaluation_rows(network: Network, images: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second after 20 tasks, against a ViT that has no branches; images on the device."""
    with_branches, vit = copy.deepcopy(network), small_or_paper_vit(sizes.small).to(sizes.device).eval()
    with_branches.finish(TASKS - 1)

    def features(model: nn.Module, plain_tasks: int | None = None) -> Tensor:
        with torch.inference_mode(), plain_forward(plain_tasks):
            return model.features(images) if isinstance(model, Network) else model(images)

    merged, plain = f"{TASKS} tasks, merged", f"the plain way, {TASKS} tasks"
    calls = {
        "plain ViT": partial(features, vit),
        merged: partial(features, with_branches),
        plain: partial(features, with_branches, TASKS),
    }
    found = compare_calls(f"evaluation, {len(images)} images", calls, sizes, len(images), equal=False)
    found[1].target = "" if sizes.small else TARGET
    for row in found[1:]:
        verify(row, difference(calls[plain](), calls[merged]()))
    return found
