"""ALTA: the training step of CIFAR-100 in RN50 and in ViT-B/16, evaluation, the replay buffer.

Sizes are those of the ten tasks: batch 32, 32 replayed samples, 100 classes; the past tasks' prompts are frozen.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from alta.buffer import Buffer
from alta.evaluation import accuracies, features_of
from alta.heads import Head, PromptOptions
from alta.training import Rate, TrainingLog, TrainingOptions, train_task
from common.clip.model import CLIP, CLIPConfig
from common.clip.tokenizer import tokenize
from common.datasets.names import read_names
from tests.benchmarks import flops
from tests.benchmarks.alta_plain import PlainBuffer, PlainHead, plain_accuracies
from tests.benchmarks.inputs import SMALL, VIT_B_16
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify

METHOD, BUFFER = "oritext_mlp2cprompt_oriimg", 200
RN50 = CLIPConfig(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
SMALL_RN = CLIPConfig(64, 64, (1, 1, 1, 1), 4, None, 77, 49408, 64, 1, 2)
TARGETS = {"RN50": "<= 0.17", "ViT-B/16": "<= 0.33"}  # of the plain way's time
TASKS, EQUAL_STEPS, EQUAL_CLASSES = 10, 6, 20
RATE = Rate("constant", 0.002, 1e-5, 1, 1)


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    apart, found = {half: step_difference(half) for half in (False, True)}, []
    towers = {"RN50": SMALL_RN, "ViT-B/16": SMALL} if sizes.small else {"RN50": RN50, "ViT-B/16": VIT_B_16}
    for name, config in towers.items():
        for classes in sizes.classes or ((EQUAL_CLASSES,) if sizes.small else (100,)):
            found += step_rows(name, random_clip(config), classes, sizes, apart)
    found += evaluation_rows(
        random_clip(towers["RN50"]), (sizes.classes or (EQUAL_CLASSES if sizes.small else 100,))[0], sizes
    )
    return found + buffer_rows(sizes)


def random_clip(config: CLIPConfig) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config).eval()


def names(classes: int) -> list[str]:
    """So many class names of CIFAR-100, numbered from the second hundred on."""
    known = read_names("cifar100")
    return [known[label % 100] + ("" if label < 100 else f" {label // 100}") for label in range(classes)]


class OneBatch:
    """The same batch at every step, already on the device."""

    def __init__(self, clip: CLIP, size: int, classes: range, device: torch.device) -> None:
        generator, side = torch.Generator().manual_seed(2), clip.visual.input_resolution
        self.images = torch.randn(size, 3, side, side, generator=generator).to(device)
        self.labels = (classes.start + torch.randint(len(classes), (size,), generator=generator)).to(device)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


# The training step


def step_rows(name: str, clip: CLIP, classes: int, sizes: Sizes, apart: dict[bool, float]) -> list[Row]:
    """The real loop in the first task, where all prompts are live, and half way, where half of them are frozen."""
    size, found = sizes.batch_size or (8 if sizes.small else 32), []
    for task in (0, TASKS // 2):
        losses: dict[str, Tensor] = {}
        subjects = {
            "the plain way": partial(time_training, PlainHead, PlainBuffer, clip, task, classes, size, sizes, losses),
            "ours": partial(time_training, Head, Buffer, clip, task, classes, size, sizes, losses),
        }
        cell = f"step, {name}, {classes} classes, task {task + 1} of {TASKS}"
        work = step_work(clip, task, classes, size)
        pair = compare(cell, subjects, sizes, size, work)
        at_size = difference({"losses": losses["PlainHead"]}, {"losses": losses["Head"]})
        pair[1].target = "" if sizes.small else TARGETS[name]
        verify(pair[1], max(at_size, apart[task > 0]))
        found += pair
    return found


def step_work(clip: CLIP, task: int, classes: int, size: int) -> list[float]:
    """FLOPs of a step with replay the plain way and ours, which encodes the prompts of no earlier task."""
    tokens = int(tokenize([f"{PromptOptions().words} {name}." for name in names(classes)]).argmax(dim=1).max()) + 1
    live = classes - task * classes // TASKS
    return [flops.alta_plain_step(clip.config, size, classes), flops.alta_step(clip.config, size, live, tokens)]


def build(kind: type[Head], clip: CLIP, task: int, classes: int, device: torch.device) -> tuple[Head, torch.optim.SGD]:
    torch.manual_seed(1)
    head = kind(clip.to(device), METHOD, names(classes), PromptOptions())
    if task > 0:  # so that the task before it seems to have been learned
        head.freeze(head.snapshot((task - 1) * classes // TASKS))
    return head, torch.optim.SGD(head.trained().values(), lr=1.0, momentum=0.9, weight_decay=5e-4)


def training(
    head: Head, optimizer: torch.optim.SGD, buffer: Buffer, batch: OneBatch, task: int, past: int, epochs: int,
    steps: Callable[[str, int, dict[str, Any]], Iterator[int]],
) -> Tensor:  # fmt: skip
    """The losses (epochs,) of so many steps of `train_task`."""
    options = TrainingOptions(epochs, RATE, len(batch.images), 0.4, 0.4)
    log = TrainingLog(epochs, batch.images.device)
    for _ in train_task(head, task, past, batch, optimizer, buffer, options, log, "benchmark", steps):
        pass
    return log.total(options)


def time_training(
    kind: type[Head], store: type[Buffer], clip: CLIP, task: int, classes: int, size: int, sizes: Sizes,
    losses: dict[str, Tensor],
) -> list[float]:  # fmt: skip
    """One turn of the loop; its losses are kept by the head's name. The warm-up's first step has nothing to replay."""
    head, optimizer = build(kind, clip, task, classes, sizes.device)
    past, clock = task * classes // TASKS, Clock(sizes.device)
    batch = OneBatch(clip, size, range(past, past + classes // TASKS), sizes.device)
    epochs = sizes.warmup + max(1, sizes.steps // sizes.turns)
    buffer = store(BUFFER, 0, sizes.device)
    losses[kind.__name__] = training(head, optimizer, buffer, batch, task, past, epochs, timed_steps(clock))
    return clock.times()[sizes.warmup :]


def step_difference(frozen: bool) -> float:
    """Between the two ways after a few steps on the small ViT, in float64: losses, trained parameters, buffer."""
    task = TASKS // 2 if frozen else 0
    past = task * EQUAL_CLASSES // TASKS

    def trained(kind: type[Head], store: type[Buffer]) -> dict[str, Tensor]:
        clip = random_clip(SMALL).double()
        head, optimizer = build(kind, clip, task, EQUAL_CLASSES, torch.device("cpu"))
        batch, buffer = OneBatch(clip, 8, range(past, past + 2), torch.device("cpu")), store(12, 0)
        losses = training(head, optimizer, buffer, batch, task, past, EQUAL_STEPS,
                          lambda stage, total, state: range(total))  # fmt: skip
        moved = {name: parameter.detach() for name, parameter in head.trained().items()}
        return {"losses": losses} | moved | {name: values.double() for name, values in buffer.fields.items()}

    return difference(trained(PlainHead, PlainBuffer), trained(Head, Buffer))


# Evaluation and buffer


def evaluation_rows(clip: CLIP, classes: int, sizes: Sizes) -> list[Row]:
    """An evaluation of two batches after half of the tasks: both towers a batch; or texts once, images once a run."""
    size, task = sizes.batch_size or (8 if sizes.small else 32), TASKS // 2
    block = classes // TASKS
    sets = [(OneBatch(clip, size, range(block * i, block * (i + 1)), sizes.device)) for i in range(2)]
    plain, ours = (build(kind, clip, task, classes, sizes.device)[0] for kind in (PlainHead, Head))
    images = [(part.images, part.labels) for part in sets]

    def tested() -> list[tuple[Tensor, Tensor]]:
        return [
            features_of(ours, TensorDataset(*(each.cpu() for each in part)), size, 0, sizes.device) for part in images
        ]

    kept = tested()
    calls = {
        "both towers for every batch": partial(plain_accuracies, plain, images, block, size),
        "texts once, images not met before": lambda: accuracies(ours, tested(), block, size),
        "texts once, images met before": partial(accuracies, ours, kept, block, size),
    }
    subjects = {name: partial(timed_calls, call, sizes) for name, call in calls.items()}
    found = compare(f"evaluation, RN50, {classes} classes, {2 * size} images", subjects, sizes, 2 * size)
    with torch.no_grad():
        first, second = (torch.cat([head(part) for part, _ in images]) for head in (plain, ours))
    for row in found[1:]:
        verify(row, difference({"logits": first}, {"logits": second}))
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
    subjects = {name: partial(timed_calls, partial(turn, buffer), sizes) for name, buffer in buffers.items()}
    found = compare(f"buffer of {BUFFER}, batch {size}", subjects, sizes)
    plain, ours = (filled(kind).fields for kind in (PlainBuffer, Buffer))
    verify(found[1], difference(*({name: values.double() for name, values in part.items()} for part in (plain, ours))))
    return found
