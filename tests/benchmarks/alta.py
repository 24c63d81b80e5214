"""ALTA: the training step of CIFAR-100 in RN50 and in ViT-B/16, evaluation, the replay buffer.

Sizes are those of the ten tasks: batch 32, 32 replayed samples, 100 classes; the past tasks' prompts are frozen.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from alta.buffer import Buffer
from alta.evaluation import accuracies
from alta.heads import Head, PromptOptions
from alta.training import train_task
from common.clip.model import CLIP, CLIPConfig
from common.datasets.names import read_names
from common.evaluation.metrics import class_and_task_il
from common.incremental.features import features_in_order
from common.machine import Machine
from tests.alta.learners import training_options
from tests.alta.plain_ways import PlainBuffer, PlainHead
from tests.benchmarks.inputs import SMALL, VIT_B_16, one_batch
from tests.benchmarks.measure import Clock, Row, Sizes, compare, compare_calls, difference, verify

METHOD, BUFFER = "oritext_mlp2cprompt_oriimg", 200
RN50 = CLIPConfig(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
SMALL_RN = CLIPConfig(64, 64, (1, 1, 1, 1), 4, None, 77, 49408, 64, 1, 2)
TARGETS = {"RN50": "<= 0.17", "ViT-B/16": "<= 0.33"}  # of the plain way's time
TASKS, EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES, EQUAL_BUFFER = 10, 6, 8, 20, 12
WAYS = {"the plain way": (PlainHead, PlainBuffer), "ours": (Head, Buffer)}


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    configs = {"RN50": SMALL_RN, "ViT-B/16": SMALL} if sizes.small else {"RN50": RN50, "ViT-B/16": VIT_B_16}
    apart = {task: step_difference(task) for task in (0, TASKS // 2)}
    found, counts = [], sizes.classes or (EQUAL_CLASSES if sizes.small else 100,)
    for name, config in configs.items():
        clip = random_clip(config).to(sizes.device)
        for classes in counts:
            found += step_rows(name, clip, classes, sizes, apart)
    return found + evaluation_rows(random_clip(configs["RN50"]).to(sizes.device), counts[0], sizes) + buffer_rows(sizes)


def random_clip(config: CLIPConfig) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config).eval()


def random_head(kind: type[Head], clip: CLIP, task: int, classes: int) -> Head:
    """As the task before seems to have left it; names of CIFAR-100, numbered from the second hundred on."""
    known = read_names("cifar100")
    names = [known[label % 100] + ("" if label < 100 else f" {label // 100}") for label in range(classes)]
    torch.manual_seed(1)
    head = kind(clip, METHOD, names, PromptOptions())
    if task > 0:
        head.freeze(head.snapshot((task - 1) * classes // TASKS))
    return head


def step_rows(name: str, clip: CLIP, classes: int, sizes: Sizes, apart: dict[int, float]) -> list[Row]:
    """The real loop in the first task, where all prompts are live, and half way, where half of them are frozen."""
    size, found = sizes.batch(32), []
    for task, differs in apart.items():
        subjects = {way: partial(train, kinds, clip, task, classes, size, BUFFER) for way, kinds in WAYS.items()}
        cell = f"step, {name}, {classes} classes, task {task + 1} of {TASKS}"
        found += compare(cell, subjects, sizes, size, True, {"ours": differs}, {"ours": TARGETS[name]})
    return found


def train(
    kinds: tuple[type[Head], type[Buffer]], clip: CLIP, task: int, classes: int, size: int, slots: int, clock: Clock
) -> dict[str, Any]:
    """Losses, trained parameters and buffer that `train_task` leaves. The first step has nothing to replay."""
    head, past, device = random_head(kinds[0], clip, task, classes), task * classes // TASKS, clip.logit_scale.device
    optimizer = torch.optim.SGD(head.trained().values(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    batch, buffer = one_batch(clip, size, range(past, past + classes // TASKS)), kinds[1](slots, 0, device)
    options = training_options("constant", 0.002, 1e-5, 1, clock.calls, size, 0.4, 0.4)
    log = train_task(head, task, past, batch, optimizer, buffer, options, "benchmark", clock.steps)
    return {"losses": log["loss"], "parameters": head.trained(), "buffer": buffer.fields}


def step_difference(task: int) -> float:
    """Between the two ways after a few steps on the small ViT, in float64."""
    sizes = task, EQUAL_CLASSES, EQUAL_BATCH, EQUAL_BUFFER
    clips = [random_clip(SMALL).double() for _ in WAYS]
    return difference(*(train(kinds, clip, *sizes, Clock(EQUAL_STEPS)) for kinds, clip in zip(WAYS.values(), clips)))


@torch.no_grad()
def evaluation_rows(clip: CLIP, classes: int, sizes: Sizes) -> list[Row]:
    """An evaluation of two batches after half of the tasks: both towers a batch; or texts once, images once a run."""
    size, block = sizes.batch(32), classes // TASKS
    plain, ours = (random_head(kind, clip, TASKS // 2, classes) for kind, _ in WAYS.values())
    sets = [one_batch(clip, size, range(block * i, block * (i + 1)))[0] for i in range(2)]
    on_host = [TensorDataset(*(each.cpu() for each in part)) for part in sets]

    def features() -> list[tuple[Tensor, Tensor]]:
        return [features_in_order(ours.features, part, size, Machine(sizes.device, 0)) for part in on_host]

    kept = features()
    calls = {
        "both towers for every batch":  # main.py:L105-L124
            lambda: [class_and_task_il(plain(images), labels, i, block) for i, (images, labels) in enumerate(sets)],
        "texts once, images not met before": lambda: accuracies(ours, features(), block, size),
        "texts once, images met before": partial(accuracies, ours, kept, block, size),
    }  # fmt: skip
    found = compare_calls(f"evaluation, RN50, {classes} classes, {2 * size} images", calls, sizes, 2 * size, False)
    logits = [[head(images) for images, _ in sets] for head in (plain, ours)]
    for row in found[1:]:
        verify(row, difference(*logits))
    return found


def buffer_rows(sizes: Sizes) -> list[Row]:
    """A full reservoir: one draw of 32 samples and one batch of 32 offered."""
    width, classes, size = (64, 20, 8) if sizes.small else (1024, 100, 32)
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(classes, (size,), generator=generator).to(sizes.device)
    logits, features = (torch.randn(size, n, generator=generator).to(sizes.device) for n in (classes, width))

    def filled(kind: type[Buffer]) -> Buffer:
        buffer = kind(BUFFER, 0, sizes.device)
        for _ in range(2 * BUFFER // size):
            buffer.add_data(labels, logits, features)
        return buffer

    def turn(buffer: Buffer) -> None:
        buffer.get_data(size)
        buffer.add_data(labels, logits, features)

    buffers = {"a sample at a time": filled(PlainBuffer), "one draw, one write": filled(Buffer)}
    calls = {name: partial(turn, buffer) for name, buffer in buffers.items()}
    found = compare_calls(f"buffer of {BUFFER}, batch {size}", calls, sizes, equal=False)
    verify(found[1], difference(*(filled(kind).fields for kind in (PlainBuffer, Buffer))))
    return found
