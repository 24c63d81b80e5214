"""What plain steps of MTIL share: what a run drew, the paper's formulas, and how both are held against each other."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import tokenize
from tests.whole_run import Batch, Seen, Step, float64, watched
from tests.zscl.mtil_world import TEMPLATES, Domain, Place, World, in_unit_range, n, normalised
from zscl.main import main

Weights = dict[str, Tensor]

# What a run drew


@dataclass
class TaskDraws:
    """Of one task: its training batches (images, labels), and the places of the images of its reference batches."""

    batches: list[tuple[Tensor, Tensor]]
    references: list[list[Place]]
    steps: list[Step]


def tasks_of(seen: Seen, world: World) -> list[TaskDraws]:
    """What each task drew, up to the last step of its optimiser; decoding of whole test sets is left out.

    A batch of which every image is in the evaluation view, exactly, is a reference batch.
    """
    ends = [max(i for i, event in enumerate(seen.events) if event is steps[-1]) for steps in seen.optimizers()]
    found = []
    for start, end in zip([-1, *ends], ends):
        events = [event for event in seen.events[start + 1 : end + 1] if isinstance(event, Batch | Step)]
        task = TaskDraws([], [], [event for event in events if isinstance(event, Step)])
        for images, *labels in (event.content for event in events if isinstance(event, Batch)):
            places = [world.place(image) for image in images]
            if images.dtype == torch.uint8 or len(labels) != 1:
                continue
            if all(places):
                task.references.append(places)
            else:
                task.batches.append((images, *labels))
        found.append(task)
    return found


def decoded(seen: Seen, world: World) -> list[list[Place | None]]:
    """The places of what loaders gave as bytes, loader by loader: test sets on their way to evaluation."""
    streams = [[images for images, _ in stream if images.dtype == torch.uint8] for stream in seen.streams()]
    return [[world.place(image) for image in torch.cat(stream)] for stream in streams if stream]


def assert_training_batches(task: TaskDraws, domain: Domain, batch_size: int, steps: int) -> None:
    """Each epoch has every training image once, in a new order, as a new crop, never mirrored, with its own label."""
    count = len(domain.views["train"])
    epoch = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    sizes = [len(labels) for _, labels in task.batches]
    assert sizes == [epoch[step % len(epoch)] for step in range(steps)]
    order, first_crop, is_new = [], {}, []
    for images, labels in task.batches:
        nearest = cropped_from(images, domain)
        assert torch.equal(domain.labels["train"][nearest], labels)
        order += nearest
        again = [(image, first_crop[index]) for index, image in zip(nearest, images) if index in first_crop]
        is_new += [not torch.equal(image, first) for image, first in again]
        first_crop |= dict(zip(nearest, images))
    assert sum(is_new) >= len(is_new) / 2  # a small image has few crops of nine tenths of its area
    epochs = [order[start : start + count] for start in range(0, len(order), count)]
    assert all(len(set(indices)) == len(indices) for indices in epochs)
    assert all(one[: len(last)] != last for one, last in pairwise(epochs))
    assert order[: epoch[0]] != sorted(order[: epoch[0]])


def cropped_from(images: Tensor, domain: Domain) -> list[int]:
    """The training images that these crops are nearest to; none is nearer to a mirror image."""
    train = domain.views["train"]
    both = torch.cat([train, train.flip(-1)]).flatten(1)
    nearest = torch.cdist(in_unit_range(images).flatten(1), both).argmin(dim=1)
    assert nearest.max() < len(train)
    return nearest.tolist()


# The formulas


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """L_CE: the target is (1 - smoothing) one-hot + smoothing / C."""
    classes = logits.shape[1]
    target = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KD over the rows of two matrices of logits, with the teacher's entropy left in."""
    target, log = (teacher / temperature).softmax(dim=1), (student / temperature).log_softmax(dim=1)
    return temperature**2 * -(target * log).sum(dim=1).mean()


def rate(t: int, peak: float, warmup: int, iterations: int) -> float:
    if t < warmup:
        return peak * (t + 1) / warmup
    return peak * (1 + math.cos(math.pi * (t - warmup) / (iterations - warmup))) / 2


def parameters(model: CLIP) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def put(weights: Weights, model: CLIP) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


@torch.no_grad()
def accuracies(model: CLIP, domain: Domain) -> tuple[float, float]:
    """Top-1 and top-5 among the domain's classes, each the normalised mean of its templates' normalised features."""
    templates = TEMPLATES[domain.name]
    texts = [tokenize([each.replace("{}", name) for each in templates]) for name in domain.classes]
    classes = n(torch.stack([n(model.encode_text(text)).mean(dim=0) for text in texts]))
    logits = 100 * n(model.encode_image(normalised(domain.views["test"]))) @ classes.T
    best, labels = logits.argsort(dim=1, descending=True), domain.labels["test"][:, None]
    return tuple(100 * (best[:, :k] == labels).sum().item() / len(labels) for k in (1, 5))


def among_all(model: CLIP, domains: list[Domain], name: str, own_templates: bool = False) -> dict[str, float]:
    """X-TAIL: top-1 among the classes of all domains, in their order; the share in the right domain; top-1 in it."""
    vectors, owners = [], []
    for domain in domains:
        classes = [f'number: "{digit}"' for digit in range(10)] if domain.name == "MNIST" else domain.classes
        classes, templates = (domain.classes, TEMPLATES[domain.name]) if own_templates else (classes, ["a photo of a {}."])
        texts = [tokenize([each.replace("{}", cls) for each in templates]) for cls in classes]
        vectors += [n(n(model.encode_text(text)).mean(dim=0)) for text in texts]
        owners += [domain.name] * len(classes)
    (domain,) = [domain for domain in domains if domain.name == name]
    logits = n(model.encode_image(normalised(domain.views["test"]))) @ torch.stack(vectors).T
    labels, best = domain.labels["test"], logits.argmax(dim=1)
    mine = torch.tensor([owner == name for owner in owners])
    right = best == labels + owners.index(name)
    told = logits[:, mine].argmax(dim=1) == labels
    counts = {"accuracy": right, "domain_accuracy": mine[best], "accuracy_with_domain": told}
    return {metric: 100 * hits.sum().item() / len(labels) for metric, hits in counts.items()}


# A run, and what its plain steps came to


def watched_run(world: World, folder: Path, flags: list[str]) -> Seen:
    """The program, in float64."""
    with float64(), watched() as seen:
        main([*flags, *world.flags(), "--save", str(folder)])
    return seen


@dataclass
class Run:
    world: World
    seen: Seen
    tasks: list[TaskDraws]
    folder: Path
    plain: "Plain"


@dataclass
class Plain:
    """Losses, gradient norms and rates of all steps; the weights that each task saves, and iCaRL's memory after it.

    `watched`: steps before which accuracies are told, and the weights whose they are.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    saved: list[Weights] = field(default_factory=list)
    memories: list[dict[str, list[int]]] = field(default_factory=list)
    watched: list[tuple[int, Weights]] = field(default_factory=list)

    def note(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """A step that is about to be taken, after its backward pass."""
        group = optimizer.param_groups[0]
        squares = sum(float(parameter.grad.square().sum()) for parameter in group["params"])
        self.losses.append(loss.item())
        self.norms.append(squares**0.5)
        self.rates.append(group["lr"])


def saved_weights(folder: Path, names: list[str]) -> list[Weights]:
    return [torch.load(folder / f"{name}.pth", weights_only=True)["state_dict"] for name in names]


def records(folder: Path, file: str = "record.jsonl") -> Iterator[dict[str, Any]]:
    return map(json.loads, (folder / file).read_text().splitlines())


def recorded_accuracies(folder: Path, file: str = "record.jsonl") -> dict[tuple[int, str], tuple[float, float]]:
    """(tasks learnt, data set) -> top-1 and top-5."""
    found = {(line["after_task"], line["dataset"], line["metric"]): line["value"] for line in records(folder, file)}
    return {
        (after, name): (value, found[after, name, "accuracy_top5"])
        for (after, name, metric), value in found.items() if metric == "accuracy"
    }  # fmt: skip


def assert_steps(seen: Seen, plain: Plain, losses: list[float] | None = None) -> None:
    """The same losses, the same rates, gradients of the same size; `losses`: of each step, where it has several."""
    assert (losses or seen.losses) == pytest.approx(plain.losses, rel=1e-8)
    assert [step.groups[0]["lr"] for step in seen.steps] == pytest.approx(plain.rates, rel=1e-12)
    assert [step.gradient_norm for step in seen.steps] == pytest.approx(plain.norms, rel=1e-7)


def assert_weights(found: list[Weights], plain: list[Weights]) -> None:
    """The same weights, but for the biases of attention's keys: their gradient is noise, which Adam amplifies."""
    for task, expected in zip(found, plain, strict=True):
        for name, weight in expected.items():
            pair = task[name], weight
            if name.endswith("attn.in_proj_bias"):
                pair = [torch.cat([each.chunk(3)[0], each.chunk(3)[2]]) for each in pair]
            torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)
