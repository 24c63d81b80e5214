"""What the whole runs on MTIL share: the data read from the disk, DDAS and evaluation written out plainly."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, nn

from common.datasets.names import read_names, read_templates
from tests.moe_adapters.pictures import centre_crop, found_in, normalise, whole_view
from tests.moe_adapters.plain import EXACT, ORIGINAL_CLIP, MoE, Stage

FILES = {"OxfordPet": "oxford_pet", "EuroSAT": "eurosat", "MNIST": "mnist", "DTD": "dtd"}
PARTS = ("encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias")

# The data

Images = tuple[list[Image.Image], list[int]]


def pets(root: Path, part: int) -> Images:
    folder = root / "oxford-iiit-pet"
    rows = (folder / "annotations" / f"{('trainval', 'test')[part]}.txt").read_text().splitlines()
    names, labels = zip(*(row.split()[:2] for row in rows))
    return [Image.open(folder / "images" / f"{name}.jpg") for name in names], [int(label) - 1 for label in labels]


def satellite(root: Path, part: int) -> Images:
    """80 % for training, drawn at random with seed 42 from the sorted files of the sorted classes."""
    files = sorted((root / "eurosat" / "2750").glob("*/*.jpg"), key=lambda file: (file.parent.name, file.name))
    classes = sorted({file.parent.name for file in files})
    sizes = [int(0.8 * len(files)), len(files) - int(0.8 * len(files))]
    picked = torch.utils.data.random_split(files, sizes, torch.Generator().manual_seed(42))[part]
    return [Image.open(file) for file in picked], [classes.index(file.parent.name) for file in picked]


def digits(root: Path, part: int) -> Images:
    found = torchvision.datasets.MNIST(root, train=part == 0)
    return [image for image, _ in found], [label for _, label in found]


def textures(root: Path, part: int) -> Images:
    folder = root / "dtd" / "dtd"
    files = (folder / "labels" / f"{('train', 'test')[part]}1.txt").read_text().split()
    names = [file.split("/")[0] for file in files]
    classes = sorted(set(names))
    return [Image.open(folder / "images" / file) for file in files], [classes.index(name) for name in names]


def reference(root: Path, part: int) -> Images:
    files = sorted((root / "tiny-imagenet-200" / "train").glob("*/images/*.JPEG"))
    wnids = sorted({file.parts[-3] for file in files})
    return [Image.open(file) for file in files], [wnids.index(file.parts[-3]) for file in files]


READERS = {"OxfordPet": pets, "EuroSAT": satellite, "MNIST": digits, "DTD": textures, "TinyImagenet": reference}


@dataclass
class TestSet:
    __test__ = False
    pixels: Tensor  # uint8 (N, 3, 32, 32)
    labels: Tensor
    tokens: Tensor  # (C T, 77): a class's templates one after the other
    classes: int
    own: slice | None = None  # X-TAIL: the set's own among the classes of all sets


def decoded(root: Path, name: str, part: int) -> tuple[Tensor, list[int]]:
    """Shorter side to 32 pixels, centre crop; part 0: training images, 1: test images."""
    images, labels = READERS[name](root, part)
    return torch.stack([centre_crop(image, 32) for image in images]), labels


def test_sets(root: Path, names: list[str], template: str | None = None) -> dict[str, TestSet]:
    """Prompts under all templates of a set, or under one for all sets."""
    found = {}
    for name in names:
        pixels, labels = decoded(root, name, 1)
        templates = [template] if template else read_templates(FILES[name])
        found[name] = TestSet(pixels, torch.tensor(labels), prompts(name, templates), len(read_names(FILES[name])))
    return found


def among_all(tests: dict[str, TestSet]) -> dict[str, TestSet]:
    """X-TAIL: every set among the classes of all, one after the other, under one template; digits have other names."""
    names = {name: read_names(FILES[name]) for name in tests} | {"MNIST": [f'number: "{digit}"' for digit in range(10)]}
    tokens = tokenizer()([f"a photo of a {cls}." for name in tests for cls in names[name]])
    found, start = {}, 0
    for name, test in tests.items():
        own = slice(start, start + test.classes)
        found[name], start = TestSet(test.pixels, test.labels + start, tokens, len(tokens), own), own.stop
    return found


test_sets.__test__ = False


@cache
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def prompts(name: str, templates: list[str]) -> Tensor:
    return tokenizer()([text.replace("{}", cls) for cls in read_names(FILES[name]) for text in templates])


def places_of(stage: Stage, root: Path, name: str) -> list[list[int]]:
    """Which training images the batches hold: never a mirror image, and under their labels."""
    images, labels = READERS[name](root, 0)
    places = found_in(stage, torch.stack([whole_view(image, 32) for image in images]))
    assert max(map(max, places)) < len(labels)
    assert [[labels[place] for place in batch] for batch in places] == [batch[1].tolist() for batch in stage.batches]
    return places


# DDAS


def reconstruction(weights: list[Tensor], f: Tensor) -> Tensor:
    """Linear - ReLU - Linear - Sigmoid."""
    encoder, encoder_bias, decoder, decoder_bias = weights
    return torch.sigmoid(F.linear(F.relu(F.linear(f, encoder, encoder_bias)), decoder, decoder_bias))


def check_autoencoder(
    stage: Stage,
    extractor: nn.Module,
    index: int,
    before: dict[str, Tensor] | None,
    left: dict[str, Tensor],
    rates: list[float],
) -> None:
    """Train autoencoder `index` of the file `before` on a stage's batches: Adam, the mean squared error, these rates.

    The stage, and the file it left, are held against it. The first stage (before None) draws all autoencoders.
    """
    weights = [tensor.clone().requires_grad_() for tensor in stage.steps[0].start[0]]
    if before is None:
        for key in left.keys() - {f"{index}.{part}" for part in PARTS}:  # torch's own for linear layers
            inputs = left[key.rsplit(".", 1)[0] + ".weight"].shape[1]
            assert 0.9 < left[key].abs().max() * inputs**0.5 <= 1
    else:
        assert all(torch.equal(before[f"{index}.{part}"], weight) for part, weight in zip(PARTS, weights))
    optimizer = torch.optim.Adam(weights, lr=1.0, weight_decay=1e-4)
    losses = []
    for rate, (images, _) in zip(rates, stage.batches, strict=True):
        f = torch.sigmoid(extractor(images).flatten(1))
        loss = (reconstruction(weights, f) - f).square().mean()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert stage.losses == pytest.approx(losses, rel=1e-9)
    assert [step.groups[0]["lr"] for step in stage.steps] == pytest.approx(rates, rel=1e-12)
    for key, value in left.items():
        number, part = key.split(".", 1)
        plain = weights[PARTS.index(part)] if int(number) == index else (before or left)[key]
        torch.testing.assert_close(value, plain.detach(), **EXACT)


@torch.no_grad()
def errors_of(left: dict[str, Tensor], f: Tensor) -> Tensor:
    """The mean squared error of every autoencoder of a file on each image's features, (N, autoencoders)."""
    numbers = sorted({int(key.split(".")[0]) for key in left})
    found = [reconstruction([left[f"{number}.{part}"] for part in PARTS], f) for number in numbers]
    return torch.stack([(g - f).square().mean(dim=1) for g in found], dim=1)


def ddas(errors: Tensor, size: int, threshold: float) -> list[int]:
    """The router of each image, decided `size` at a time: the least error of all autoencoders, trained or not."""
    chosen = []
    for batch in errors.split(size):
        means = batch.mean(dim=0)
        best = int(means.argmin())
        chosen += [best - 1 if means[best] <= threshold else ORIGINAL_CLIP] * len(batch)
    return chosen


# Evaluation

Table = dict[tuple[int, str, str], float]  # how many tasks are learnt, data set, what is told -> its value
Route = Callable[[int, str], list[int]]  # how many tasks are learnt, data set -> the router of each test image


@torch.no_grad()
def evaluated(
    network: MoE, files: dict[str, dict[str, Tensor]], tests: dict[str, TestSet], route: Route, clip_prompts: bool
) -> Table:
    """Accuracies of the original CLIP, then of each task's checkpoint, on every test set, and where the images went."""
    table: Table = {}
    tasks = list(files)
    for after in range(len(tasks) + 1):
        network.theta |= files[tasks[max(after, 1) - 1]]
        for name, test in tests.items():
            count = len(test.labels)
            routers = torch.tensor(route(after, name) if after else [ORIGINAL_CLIP] * count)
            logits = torch.empty(count, test.classes)
            for router in sorted(set(routers.tolist())):
                rows = (routers == router).nonzero().flatten()
                network.router = ORIGINAL_CLIP if clip_prompts else router
                text = F.normalize(network.clip.encode_text(test.tokens), dim=-1)
                vectors = F.normalize(text.view(logits.shape[1], -1, text.shape[1]).mean(dim=1), dim=-1)
                network.router = router
                image = F.normalize(network.clip.encode_image(normalise(test.pixels[rows])), dim=-1)
                logits[rows] = 100 * image @ vectors.t()
                told = "CLIP" if router < 0 else tasks[router] if router < len(tasks) else f"untrained {router}"
                table |= {(after, name, f"routed_to/{told}"): len(rows)} if after else {}
            if own := test.own:
                best = logits.argmax(dim=1)
                told = logits[:, own].argmax(dim=1) + own.start == test.labels
                hits = {"domain_accuracy": (own.start <= best) & (best < own.stop), "accuracy_with_domain": told}
                table |= {(after, name, metric): 100 * int(hit.sum()) / count for metric, hit in hits.items()}
            better = (logits > logits[torch.arange(count), test.labels, None]).sum(dim=1)
            for metric, k in (("accuracy", 1), ("accuracy_top5", 5)):
                table[after, name, metric] = 100 * int((better < k).sum()) / count
    return table


def records(folder: Path) -> Table:
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return {(line["after_task"], line["dataset"], line["metric"]): line["value"] for line in lines}


def cells(folder: Path) -> Table:
    return {key: value for key, value in records(folder).items() if key[2].startswith(("accuracy", "domain_accuracy", "routed_to/")) and key[1] != "mean"}
