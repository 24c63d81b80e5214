"""MTIL in plain steps: a made-up world read with torchvision alone, the paper's formulas, and what they are held against.

The world's images have structure, so that every crop of one is seen to be one; its CLIP is tiny and random. Nothing
here goes through the product but its network and its tokeniser, which fixtures of the official code hold.
"""

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import random_split
from torchvision import datasets
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, PILToTensor, Resize

from common.clip.model import CLIP, CLIPConfig, build_model
from common.clip.tokenizer import tokenize
from tests.clip_archive import save_archive
from tests.fake_data import write
from tests.whole_run import Batch, Seen, Step, float64, watched
from zscl.main import main

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 32  # of the network's input
PLAIN_VIEW = Compose([
    Resize(SIDE, InterpolationMode.BICUBIC), CenterCrop(SIDE), lambda image: image.convert("RGB"), PILToTensor(),
    lambda levels: levels.double() / 255,
])  # fmt: skip
TEMPLATES = {
    "EuroSAT": [f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")],
    "MNIST": ['a photo of the number: "{}".'],
    "DTD": [
        f"a photo of {article} {{}} {kind}." for article in ("a", "the")
        for kind in ("texture", "pattern", "thing", "object")
    ],
}  # fmt: skip
EUROSAT = [
    "annual crop land", "forest", "brushland or shrubland", "highway or road",
    "industrial buildings or commercial buildings", "pasture land", "permanent crop land",
    "residential buildings or homes or apartments", "river", "lake or sea",
]  # fmt: skip

Weights = dict[str, Tensor]
Place = tuple[str, str, int]  # data set, train or test, index


# The world


def write_world(root: Path) -> None:
    """Made-up data with structured images, captions, and two tiny CLIPs as archives: ViT-tiny.pt and other.pt.

    Their image projections are fitted to the texts of the training images' classes, which makes accuracies differ.
    """
    data, world = root / "data", World(root)
    write(data, ["EuroSAT", "MNIST", "DTD", "CIFAR10", "ConceptualCaptions"])
    _give_structure(data)
    state = torch.get_rng_state()
    for seed, name in enumerate(("ViT-tiny", "other")):
        torch.manual_seed(seed)
        clip = CLIP(CLIPConfig(16, SIDE, 2, 32, 8, 77, 49408, 16, 1, 1)).requires_grad_(False)
        clip.visual.conv1.weight *= 8
        clip.visual.class_embedding *= 0.1
        clip.visual.positional_embedding *= 0.1
        clip.token_embedding.weight *= 20
        clip.logit_scale += 0.3 * seed
        clip.visual.proj = torch.nn.Parameter(torch.eye(32))
        pairs = [_images_and_texts(clip, world.domains[name]) for name in TEMPLATES]
        images, texts = map(torch.cat, zip(*pairs))
        fitted = torch.linalg.solve(images.T @ images + 1e-4 * torch.eye(32), images.T @ texts)
        save_archive(clip.state_dict() | {"visual.proj": fitted / fitted.std()}, root / f"{name}.pt")
    torch.set_rng_state(state)


def _images_and_texts(clip: CLIP, domain: "Domain") -> tuple[Tensor, Tensor]:
    texts = n(clip.encode_text(domain.prompts()))
    images = n(clip.encode_image(normalised(domain.views["train"]).float()))
    return images, (texts - texts.mean(dim=0))[domain.labels["train"]]


def _give_structure(root: Path) -> None:
    """Every image anew: a coarse random pattern around its class's colour, 44 by 36 pixels where it is a file.

    EuroSAT gets three more images a class, MNIST 34 for training and 25 for testing.
    """
    random = np.random.default_rng(0)

    def pattern(width: int, height: int, label: int) -> Image.Image:
        tint = np.random.default_rng(label).uniform(60, 196, 3)
        coarse = (tint + random.uniform(-60, 60, (4, 5, 3))).astype(np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    files = list(root.rglob("*.jpg"))
    files += [file.with_stem(f"{file.parent.name}_{5 + i}") for file in root.rglob("*_1.jpg") for i in (1, 2, 3)]
    for path in sorted(files):
        pattern(44, 36, sorted(path.parents[1].iterdir()).index(path.parent)).save(path, quality=90)
    for split, count in (("train", 34), ("t10k", 25)):
        raw, labels = root / "MNIST" / "raw", bytes(7 * i % 10 for i in range(count))
        images = b"".join(np.asarray(pattern(28, 28, label).convert("L")).tobytes() for label in labels)
        sizes = np.array([count, 28, 28], dtype=">i4")
        (raw / f"{split}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes.tobytes() + images)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:1].tobytes() + labels)
    for path in (root / "cifar-10-batches-py").glob("*_batch*"):
        content = pickle.loads(path.read_bytes())
        rows = [np.asarray(pattern(32, 32, label)).transpose(2, 0, 1).ravel() for label in content["labels"]]
        path.write_bytes(pickle.dumps(content | {"data": np.stack(rows)}, protocol=2))


@dataclass
class Domain:
    """A data set: class names, its templates, and every image as the evaluation transform shows it, in [0, 1]."""

    name: str
    classes: list[str]
    views: dict[str, Tensor]  # train and test -> (N, 3, R, R)
    labels: dict[str, Tensor]

    def prompts(self) -> Tensor:
        """The prompts that are trained on: each class under the first template."""
        return tokenize([TEMPLATES[self.name][0].replace("{}", name) for name in self.classes])


class World:
    def __init__(self, root: Path) -> None:
        self.root = root

    def flags(self) -> list[str]:
        data = ["--data-location", str(self.root / "data"), "--no-verify", "--model", str(self.root / "ViT-tiny.pt")]
        return [*data, "--device", "cpu", "--threads", "1", "--workers", "0", "--cache-dir", "none"]

    def clip(self, name: str = "ViT-tiny") -> CLIP:
        return build_model(torch.jit.load(self.root / f"{name}.pt").state_dict())

    def captions(self) -> Tensor:
        lines = (self.root / "data" / "Validation_GCC-1.1.0-Validation.tsv").read_text().splitlines()
        return tokenize([line.split("\t")[0] for line in lines])

    @cached_property
    def domains(self) -> dict[str, Domain]:
        return {name: self._read(name) for name in ("EuroSAT", "MNIST", "DTD", "CIFAR10")}

    def _read(self, name: str) -> Domain:
        root = self.root / "data"
        if name == "EuroSAT":
            whole = datasets.ImageFolder(root / "eurosat" / "2750")
            sizes = [int(0.8 * len(whole)), len(whole) - int(0.8 * len(whole))]
            parts, classes = random_split(whole, sizes, torch.Generator().manual_seed(42)), EUROSAT
        elif name == "MNIST":
            parts = [datasets.MNIST(root, train=part) for part in (True, False)]
            classes = parts[0].classes
        elif name == "DTD":
            parts = [datasets.DTD(root, split) for split in ("train", "test")]
            classes = parts[0].classes
        else:
            parts, classes = [self._cifar("data_batch_*"), self._cifar("test_batch")], []
        views = {kind: torch.stack([PLAIN_VIEW(image) for image, _ in part]) for kind, part in zip(KINDS, parts)}
        labels = {kind: torch.tensor([label for _, label in part]) for kind, part in zip(KINDS, parts)}
        return Domain(name, classes, views, labels)

    def _cifar(self, files: str) -> list[tuple[Image.Image, int]]:
        found = [pickle.loads(p.read_bytes()) for p in sorted((self.root / "data/cifar-10-batches-py").glob(files))]
        rows = np.concatenate([batch["data"] for batch in found]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return list(zip(map(Image.fromarray, rows), sum((batch["labels"] for batch in found), [])))

    @cached_property
    def places(self) -> dict[bytes, Place]:
        """Where an image comes from that was seen in the evaluation view, by its pixels."""
        return {
            _bytes(view): (domain.name, kind, index)
            for domain in self.domains.values() for kind in KINDS for index, view in enumerate(domain.views[kind])
        }  # fmt: skip

    def place(self, image: Tensor) -> Place | None:
        return self.places.get(_bytes(in_unit_range(image)))

    def views(self, places: list[Place]) -> Tensor:
        return torch.stack([self.domains[name].views[kind][index] for name, kind, index in places])


KINDS = ("train", "test")


def _bytes(view: Tensor) -> bytes:
    return (view * 255).round().byte().numpy().tobytes()


def in_unit_range(images: Tensor) -> Tensor:
    """Images (..., 3, R, R) as they entered a network, or as bytes, back in [0, 1]; they must have been pixels there."""
    if images.dtype == torch.uint8:
        return images.double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    unit = images * std + mean
    assert (255 * unit - (255 * unit).round()).abs().max() < 1e-9
    return unit


def normalised(views: Tensor) -> Tensor:
    return Normalize(MEAN, STD)(views)


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
    assert all(one[: len(last)] != last for one, last in zip(epochs, epochs[1:]))
    assert order[: epoch[0]] != sorted(order[: epoch[0]])


def cropped_from(images: Tensor, domain: Domain) -> list[int]:
    """The training images that these crops are nearest to; none is nearer to a mirror image."""
    train = domain.views["train"]
    both = torch.cat([train, train.flip(-1)]).flatten(1)
    nearest = torch.cdist(in_unit_range(images).flatten(1), both).argmin(dim=1)
    assert nearest.max() < len(train)
    return nearest.tolist()


# The formulas


def n(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)


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
    """The same weights, without the biases of attention's keys: their gradient is rounding noise, which Adam amplifies."""
    for task, expected in zip(found, plain, strict=True):
        for name, weight in expected.items():
            pair = task[name], weight
            if name.endswith("attn.in_proj_bias"):
                pair = [torch.cat([each.chunk(3)[0], each.chunk(3)[2]]) for each in pair]
            torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)
