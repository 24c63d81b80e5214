"""Made-up pictures with structure, in the official layouts: what a transform, a crop or a flip did to one can be read.

Red rises from left to right, so that a picture tells how much of its width a crop holds and whether it was flipped.
Green has stripes of the class. Blue is one number all over, another one in every picture, which no crop changes: it
tells which picture a batch holds.
"""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.datasets.names import read_names
from tests.fake_data import write

WIDTH, HEIGHT = 50, 40
DARK, BRIGHT = 20, 235  # red at the left and at the right end


@dataclass(frozen=True)
class Picture:
    label: int  # the data set's own
    code: int  # blue

    def pixels(self, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
        y, x = np.mgrid[0:height, 0:width]
        red = np.linspace(DARK, BRIGHT, width)[None].repeat(height, 0)
        across, down = 1 + self.label % 4, self.label // 4 % 5
        green = 128 + 110 * np.sin(2 * np.pi * (across * x / width + down * y / height) + self.code)
        return np.stack([red, green, np.full_like(red, self.code)], axis=2).round().astype(np.uint8)


@dataclass(frozen=True)
class Pictures:
    """Of the classes learned, in the data set's order. There is one more training picture of every other class."""

    train: list[Picture]
    test: list[Picture]

    def labels(self, codes: list[int], order: list[int]) -> Tensor:
        """The places in the class order of the training pictures with these codes."""
        known = {picture.code: picture.label for picture in self.train}
        return torch.tensor([order.index(known[code]) for code in codes])

    def codes(self, classes: list[int]) -> list[int]:
        """The codes of the training pictures of these classes, in the data set's order."""
        return [picture.code for picture in self.train if picture.label in classes]


def shown(
    part: list[Picture], order: list[int], classes: range, transform: Callable, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> tuple[Tensor, Tensor]:
    """The pictures of the classes at these places of the order, under a transform, and those places."""
    chosen = [picture for picture in part if picture.label in order[classes.start : classes.stop]]
    images = torch.stack([transform(Image.fromarray(picture.pixels(*size))) for picture in chosen])
    return images, torch.tensor([order.index(picture.label) for picture in chosen])


def made_up(learned: list[int], train: list[int], test: list[int]) -> Pictures:
    """So many pictures of each of the learned classes, which take turns."""
    parts, numbers = ([], []), iter(range(1, 256))
    for part, counts in zip(parts, (train, test)):
        for turn in range(max(counts)):
            part += [Picture(label, next(numbers)) for label, count in zip(learned, counts) if turn < count]
    return Pictures(*parts)


def _file(path: Path, picture: Picture) -> None:
    """Without loss, under whatever name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels()).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def _others(pictures: Pictures, classes: int) -> list[Picture]:
    learned = {picture.label for picture in pictures.train}
    return [Picture(label, 0) for label in range(classes) if label not in learned]


def write_imagenet_r(root: Path, pictures: Pictures) -> None:
    """With lists whose labels run against the order of the class folders."""
    folder, wnids = root / "imagenet-r", read_names("imagenet_r_wnids")
    for split, part in (("train", [*pictures.train, *_others(pictures, 200)]), ("test", pictures.test)):
        rows = [(f"{wnids[199 - picture.label]}/art_{picture.code}.jpg", picture) for picture in part]
        for name, picture in rows:
            _file(folder / name, picture)
        (folder / f"imagenet-r_{split}.txt").write_text("".join(f"{name} {one.label}\n" for name, one in rows))


def write_cub200(root: Path, pictures: Pictures) -> None:
    """Training and test pictures take turns in images.txt."""
    folder, rows = root / "CUB_200_2011", []
    parts = [(one, 1) for one in [*pictures.train, *_others(pictures, 200)]], [(one, 0) for one in pictures.test]
    for turn in range(max(map(len, parts))):
        rows += [part[turn] for part in parts if turn < len(part)]
    lists: dict[str, list[object]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for picture, is_train in rows:
        name = f"{picture.label + 1:03d}.Bird_{picture.label}/Bird_{picture.label}_{picture.code:04d}.jpg"
        _file(folder / "images" / name, picture)
        for entries, value in zip(lists.values(), (name, picture.label + 1, is_train)):
            entries.append(value)
    for name, values in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{i + 1} {value}\n" for i, value in enumerate(values)))


def write_cifar100(root: Path, pictures: Pictures) -> None:
    write(root, ["CIFAR100"])  # its `meta` stays
    for split, part in (("train", [*pictures.train, *_others(pictures, 100)]), ("test", pictures.test)):
        path = root / "cifar-100-python" / split
        rows = [picture.pixels(32, 32).transpose(2, 0, 1).ravel() for picture in part]
        content = pickle.loads(path.read_bytes()) | {"data": np.stack(rows), "fine_labels": [one.label for one in part]}
        path.write_bytes(pickle.dumps(content, protocol=2))


# What a batch tells of its pictures


def codes(images: Tensor) -> list[int]:
    """Which picture each of (B, 3, S, S) in [0, 1] is."""
    blue = images[:, 2].flatten(1)
    assert torch.equal(blue.amin(dim=1), blue.amax(dim=1)), "blue is one number all over a picture"
    return (255 * blue[:, 0]).round().long().tolist()


def is_flipped(images: Tensor) -> Tensor:
    """(B,) whether red falls from left to right."""
    return images[:, 0, :, 0].mean(dim=1) > images[:, 0, :, -1].mean(dim=1)


def width_held(images: Tensor) -> Tensor:
    """(B,) the part of its picture's width that each image holds."""
    red = 255 * images[:, 0].flatten(1)
    return (red.amax(dim=1) - red.amin(dim=1)) / (BRIGHT - DARK)


def records(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    """(after_task, metric) -> value by data set, of the record of a run."""
    found: dict[tuple[int, str], dict[str, float]] = {}
    for line in map(json.loads, (folder / "record.jsonl").read_text().splitlines()):
        found.setdefault((line["after_task"], line["metric"]), {})[line["dataset"]] = line["value"]
    return found
