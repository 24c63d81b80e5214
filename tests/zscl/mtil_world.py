"""A made-up world of MTIL in the true layouts, read with torchvision alone; its CLIPs are tiny.

Its images have structure, so that every crop of one is seen to be one. Nothing here goes through the product but its
network and its tokeniser, which fixtures of the official code hold.
"""

import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import random_split
from torchvision import datasets
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, PILToTensor, Resize

from common.clip.model import CLIP, CLIPConfig, build_model
from common.clip.tokenizer import tokenize
from tests.clip_archive import save_archive
from tests.fake_data import write

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
        return list(zip(map(Image.fromarray, rows), [label for batch in found for label in batch["labels"]]))

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
    """Images (..., 3, R, R) as they enter a network, or as bytes, back in [0, 1]; they must have been pixels there."""
    if images.dtype == torch.uint8:
        return images.double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    unit = images * std + mean
    assert (255 * unit - (255 * unit).round()).abs().max() < 1e-9
    return unit


def normalised(views: Tensor) -> Tensor:
    return Normalize(MEAN, STD)(views)


def n(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)
