"""Small images that tell, from the pixels of a batch, which image it was and what a transform did to it.

Red is the image's number at every pixel, which no crop changes. Green rises by 8 a pixel from left to right: it falls
where the image is mirrored, and spans less where it is cut. Blue is a pattern of blocks, by class with a block of the
image's own, of two values between which bilinear resizing stays and bicubic does not.
"""

import io
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.datasets.names import read_names

SIDE = 32
DARK, LIGHT = 64, 192
STATISTICS = {  # of each data set as the original normalises it, and CLIP's
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny": ((0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def picture(number: int, label: int) -> np.ndarray:
    blocks = np.random.RandomState(label).choice((DARK, LIGHT), size=16)
    blocks[number % 16] = DARK + LIGHT - blocks[number % 16]
    red = np.full((SIDE, SIDE), number)
    green = np.broadcast_to(8 * np.arange(SIDE), (SIDE, SIDE))
    return np.stack([red, green, np.kron(blocks.reshape(4, 4), np.ones((8, 8)))], axis=2).astype(np.uint8)


class Pictures:
    """A data set in its true layout: training images are numbered from 0, test images go on from there."""

    def __init__(self, root: Path, name: str, train: list[int], test: list[int]) -> None:
        self.name, self.labels, self.trained = name, [*train, *test], len(train)
        {"cifar10": self._write_cifar10, "cifar100": self._write_cifar100, "tiny": self._write_tiny}[name](root)

    def numbers(self, split: str, classes: range) -> list[int]:
        """The images of these classes, in the order of the data set's files."""
        places = range(self.trained) if split == "train" else range(self.trained, len(self.labels))
        found = [number for number in places if self.labels[number] in classes]
        by_class = self.name == "tiny" and split == "train"  # its training images lie in a folder a class
        return sorted(found, key=lambda number: self.labels[number]) if by_class else found

    def whole(self, numbers: list[int], pixels: int, statistics: str) -> Tensor:
        """The test transform by hand: the whole image resized bilinearly, then normalised."""
        mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in STATISTICS[statistics])
        resized = [
            Image.fromarray(picture(number, self.labels[number])).resize((pixels, pixels), Image.Resampling.BILINEAR)
            for number in numbers
        ]
        raw = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized])
        return (raw.double() / 255 - mean) / std

    # The files

    def _rows(self, numbers: range) -> np.ndarray:
        return np.stack([picture(n, self.labels[n]).transpose(2, 0, 1).reshape(-1) for n in numbers])

    def _write_cifar10(self, root: Path) -> None:
        folder, all_numbers = root / "cifar-10-batches-py", range(len(self.labels))
        folder.mkdir(parents=True)
        fifth = -(-self.trained // 5)
        parts = {f"data_batch_{i + 1}": all_numbers[: self.trained][i * fifth : (i + 1) * fifth] for i in range(5)}
        for file, numbers in (parts | {"test_batch": all_numbers[self.trained :]}).items():
            labels = [self.labels[number] for number in numbers]
            (folder / file).write_bytes(pickle.dumps({"labels": labels, "data": self._rows(numbers)}))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": read_names("cifar10")}))

    def _write_cifar100(self, root: Path) -> None:
        folder, all_numbers = root / "cifar-100-python", range(len(self.labels))
        folder.mkdir(parents=True)
        for file, numbers in (("train", all_numbers[: self.trained]), ("test", all_numbers[self.trained :])):
            labels = [self.labels[number] for number in numbers]
            (folder / file).write_bytes(pickle.dumps({"fine_labels": labels, "data": self._rows(numbers)}))
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": classnames("cifar100")}))

    def _write_tiny(self, root: Path) -> None:
        """Images as PNG under the names that the set's JPEGs have, since JPEG would blur the numbers."""
        folder, wnids = root / "tiny-imagenet-200", read_names("tinyimagenet_wnids")
        (folder / "val" / "images").mkdir(parents=True)
        (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
        for wnid in wnids:
            (folder / "train" / wnid / "images").mkdir(parents=True)
        told = []
        for number, label in enumerate(self.labels):
            file = io.BytesIO()
            Image.fromarray(picture(number, label)).save(file, "PNG")
            if number < self.trained:
                (folder / "train" / wnids[label] / "images" / f"image_{number:03d}.JPEG").write_bytes(file.getvalue())
            else:
                (folder / "val" / "images" / f"val_{number:03d}.JPEG").write_bytes(file.getvalue())
                told.append(f"val_{number:03d}.JPEG\t{wnids[label]}\t0\t0\t31\t31\n")
        (folder / "val" / "val_annotations.txt").write_text("".join(told))


def classnames(name: str) -> list[str]:
    """As the original lists them: CIFAR's with underscores, of two names of TinyImageNet's the first."""
    if name == "tiny":
        return [words.partition(" / ")[0] for words in read_names("tinyimagenet_cil")]
    return [words.replace(" ", "_") for words in read_names(name)]


# What a batch tells


def raw(images: Tensor, statistics: str) -> Tensor:
    """Normalised images (B, 3, R, R) as values of 0 to 255 again."""
    mean, std = (torch.tensor(part, dtype=images.dtype)[:, None, None] for part in STATISTICS[statistics])
    return 255 * (images * std + mean)


def numbers_of(images: Tensor, statistics: str) -> list[int]:
    red = raw(images, statistics)[:, 0]
    numbers = red.mean(dim=(1, 2)).round()
    assert float((red - numbers[:, None, None]).abs().max()) < 1e-4  # the same at every pixel: the right statistics
    return numbers.int().tolist()


def mirrored(images: Tensor, statistics: str) -> list[bool]:
    green = raw(images, statistics)[:, 1].mean(dim=1)
    return (green[:, -1] < green[:, 0]).tolist()


def spans(images: Tensor, statistics: str) -> list[float]:
    """The widths of the crops as shares of the whole image's."""
    green = raw(images, statistics)[:, 1].mean(dim=1)
    return ((green[:, -1] - green[:, 0]).abs() / (8 * (SIDE - 1))).tolist()
