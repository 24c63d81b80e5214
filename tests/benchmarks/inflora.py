"""InfLoRA: the training step at the first and the twentieth task, the statistics pass, basis design, evaluation.

Sizes are those of ImageNet-R in 20 tasks: ViT-B/16, rank 10, 10 classes a task, batch 128.
"""

import contextlib
import copy
from functools import partial
from unittest import mock

import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from inflora.gpm import Memory, design, remember, second_moments
from inflora.lora import LoRAAttention, Network
from inflora.training import TrainingOptions, train_task
from tests.benchmarks import flops
from tests.benchmarks.inflora_plain import plain_attention, plain_second_moments
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify

TASKS, RANK, CLASSES, EPSILON = 20, 10, 10, 0.99
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
EQUAL_STEPS, EQUAL_BATCH = 5, 4
TARGET = "<= 1.05"  # of a later task against the first, and of merged branches against the ViT without any


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    network = random_network(sizes.small, sizes.classes[0] if sizes.classes else CLASSES)
    found = step_rows(network, sizes) + statistics_rows(network, sizes)
    return found + design_rows(network, sizes) + evaluation_rows(network, sizes)


def random_network(small: bool, classes: int) -> Network:
    """Random weights in all branches, as if every task were finished."""
    torch.manual_seed(0)
    vit = VisionTransformer(**SMALL) if small else create_model("vit_base_patch16_224", num_classes=0)
    network = Network(vit, [classes] * TASKS, TASKS, RANK)
    with torch.no_grad():
        for task in range(TASKS):
            for parameter in network.branch(task).values():
                nn.init.normal_(parameter, std=0.02)
    return network


class OneBatch:
    """A task of a single batch, the same in every epoch and already on the device."""

    def __init__(self, network: Network, size: int, device: torch.device) -> None:
        generator, classes = torch.Generator().manual_seed(1), network.classifier_pool[0].out_features
        side = network.image_encoder.patch_embed.img_size[0]
        dtype = network.image_encoder.cls_token.dtype
        self.images = torch.rand(size, 3, side, side, generator=generator).to(device, dtype)
        self.labels = torch.randint(classes, (size,), generator=generator).to(device)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def batch_size(sizes: Sizes) -> int:
    return sizes.batch_size or (8 if sizes.small else 128)


def attention_of(plain_tasks: int | None) -> contextlib.AbstractContextManager:
    """Ours, or the plain way over that many tasks."""
    if plain_tasks is None:
        return contextlib.nullcontext()
    return mock.patch.object(LoRAAttention, "forward", plain_attention(plain_tasks))


# The training step


def options(steps: int) -> TrainingOptions:
    return TrainingOptions(epochs=steps, lr=5e-4, optimizer="adam", schedule=lambda epoch, base: base)


def step_rows(network: Network, sizes: Sizes) -> list[Row]:
    """The real training loop at both ends of 20 tasks, and the plain way; whether they are equal at the last."""
    batch, last = OneBatch(network, batch_size(sizes), sizes.device), TASKS - 1
    subjects = {
        "task 1": partial(time_training, network, 0, batch, sizes),
        f"task {TASKS}": partial(time_training, network, last, batch, sizes),
        "the plain way, task 1": partial(time_training, network, 0, batch, sizes, plain=True),
        f"the plain way, task {TASKS}": partial(time_training, network, last, batch, sizes, plain=True),
    }
    tower, size = flops.timm_vit(network.image_encoder), len(batch.images)
    ours, plain = flops.inflora_step(tower, size, RANK), partial(flops.inflora_plain_step, tower, size, RANK)
    found = compare(f"step, {TASKS} tasks", subjects, sizes, size, [ours, ours, plain(1), plain(TASKS)])
    apart = {task: step_difference(task, sizes) for task in (0, last)}
    for row, task in zip(found[1:], (last, 0, last)):
        verify(row, apart[task])
    found[1].target = "" if sizes.small else TARGET
    return found


def time_training(network: Network, task: int, batch: OneBatch, sizes: Sizes, plain: bool = False) -> list[float]:
    """One turn of `train_task`."""
    clock, model = Clock(sizes.device), copy.deepcopy(network).to(sizes.device)
    total = sizes.warmup + max(1, sizes.steps // sizes.turns)
    with attention_of(task + 1 if plain else None):
        train_task(model, task, task, 0, batch, options(total), "benchmark", timed_steps(clock))
    return clock.times()[sizes.warmup :]


def step_difference(task: int, sizes: Sizes) -> float:
    """Between the two ways after a few steps on the small ViT, in float64: losses and trained parameters."""
    small = random_network(small=True, classes=CLASSES).double()

    def trained(plain: bool) -> dict[str, Tensor]:
        model = copy.deepcopy(small).to(sizes.device)
        batch = OneBatch(model, EQUAL_BATCH, sizes.device)
        with attention_of(task + 1 if plain else None):
            log = train_task(
                model, task, task, 0, batch, options(EQUAL_STEPS), "benchmark", lambda stage, total, state: range(total)
            )
        moved = model.branch(task) | model.classifier(task)
        return {"losses": log.loss} | {key: value.detach() for key, value in moved.items()}

    return difference(trained(plain=True), trained(plain=False))


# Between tasks


def statistics_rows(network: Network, sizes: Sizes) -> list[Row]:
    """Second moments of the inputs of all layers, over two batches."""
    model, count = copy.deepcopy(network).to(sizes.device), batch_size(sizes)
    model.finish(TASKS - 1)
    batches = [OneBatch(model, count, sizes.device)[0]] * 2
    subjects = {
        "an image at a time, copied to the CPU": lambda: timed_calls(
            partial(plain_second_moments, model, batches), sizes
        ),
        "a product a batch, on the device": lambda: timed_calls(partial(second_moments, model, batches), sizes),
    }
    found = compare(f"statistics pass, {2 * count} images", subjects, sizes, 2 * count)
    plain, ours = (
        {str(layer): C.cpu() for layer, C in enumerate(way(model, batches))}
        for way in (plain_second_moments, second_moments)
    )
    verify(found[1], difference(plain, ours))
    return found


def design_rows(network: Network, sizes: Sizes) -> list[Row]:
    """One layer between two tasks: its B_t, and its memory afterwards. Seconds a task, not a step."""
    width = network.image_encoder.embed_dim
    C = layer_moment(width, seed=3).to(sizes.device)
    kept, new = remember(C, None, EPSILON, dual=True), layer_moment(width, seed=4).to(sizes.device)
    free = Memory(torch.linalg.qr(new, mode="complete").Q[:, : width // 4], free=True)
    calls = {
        "first task": partial(design, C, None, RANK),
        "first task, by eigh": partial(torch.linalg.eigh, C),
        "later task": partial(design, new, kept, RANK),
        "memory, old tasks' space kept": partial(remember, new, kept, EPSILON, True),
        "memory, free space kept": partial(remember, C, free, EPSILON, True),
    }
    subjects = {name: partial(timed_calls, call, sizes) for name, call in calls.items()}
    found = compare(f"basis design, a layer of width {width}", subjects, sizes)
    svd, eigh = design(C, None, RANK), torch.linalg.eigh(C).eigenvectors[:, -RANK:].t() / 3**0.5
    verify(found[1], difference({"projector": svd.t() @ svd}, {"projector": eigh.t() @ eigh}))
    return found


def layer_moment(width: int, seed: int) -> Tensor:
    """A second moment (d, d) whose spectrum falls as that of a layer's inputs does."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(4 * width, width, generator=generator) * torch.logspace(1, -1, width)
    tokens = tokens @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return tokens.t() @ tokens / len(tokens)


# Evaluation


def evaluation_rows(network: Network, sizes: Sizes) -> list[Row]:
    """Images a second after 20 tasks, against a ViT that has no branches; images on the device."""
    with_branches = copy.deepcopy(network).to(sizes.device)
    with_branches.finish(TASKS - 1)
    torch.manual_seed(0)
    small = sizes.small
    vit = VisionTransformer(**SMALL) if small else create_model("vit_base_patch16_224", num_classes=0)
    vit = vit.to(sizes.device).eval()
    images = OneBatch(network, batch_size(sizes), sizes.device).images

    def features(model: nn.Module, plain_tasks: int | None = None) -> Tensor:
        with torch.inference_mode(), attention_of(plain_tasks):
            return model.features(images) if isinstance(model, Network) else model(images)

    subjects = {
        "plain ViT": lambda: timed_calls(partial(features, vit), sizes),
        f"{TASKS} tasks, merged": lambda: timed_calls(partial(features, with_branches), sizes),
        f"the plain way, {TASKS} tasks": lambda: timed_calls(partial(features, with_branches, TASKS), sizes),
    }
    found = compare(f"evaluation, {len(images)} images", subjects, sizes, len(images))
    apart = difference({"features": features(with_branches, TASKS)}, {"features": features(with_branches)})
    for row in found[1:]:
        verify(row, apart)
    found[1].target = "" if small else TARGET
    return found
