"""The three data sets as ALTA reads them, and the CLIPs that are named rather than downloaded.

Classes in the order of their labels, no validation split. Images are normalised by the data set's statistics, not by
CLIP's, resized bilinearly, and CIFAR-100 is not mirrored (upstream datasets/seq_*.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common import clip, datasets
from common.clip.model import CLIP
from common.clip.pretrained import to_half
from common.datasets.images import ImageSet
from common.datasets.transforms import CLIP_MEAN, CLIP_STD, to_rgb

if TYPE_CHECKING:
    from torchvision.transforms import Compose

MINI, MINI_RESNET, MINI_CLASSES = "mini", "mini-rn", 40
MINI_CROP = (0.75, 1.0)  # a character that is cut or mirrored is another one, see `characters_train`
CROP = (0.08, 1.0)


@dataclass(frozen=True)
class DataSet:
    """name: in common.datasets. label: in records. folder: the flag's own last folder, which that name implies."""

    name: str
    label: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    flag: str
    folder: str = ""


DATASETS = {
    "seq-cifar10": DataSet(
        "CIFAR10", "CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), True, "cifar10_dir"
    ),
    "seq-cifar100": DataSet(
        "CIFAR100", "CIFAR100", 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), False, "cifar100_dir"
    ),
    "seq-tinyimagenet": DataSet(
        "TinyImageNet", "TinyImageNet", 200, (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821), True,
        "tinyimagenet_dir", "tiny-imagenet-200",
    ),
}  # fmt: skip
CHARACTERS = "Characters"  # the miniature's set in records


def transforms(name: str, n_px: int, clip_norm: bool) -> "tuple[Compose, Compose]":
    """Training and test transform: PIL image -> float32 (3, n_px, n_px).

    torchvision's defaults: crops of 8 to 100 % of the area, bilinear. Test images, which are square, are resized whole.
    The miniature's characters, which have no published statistics, are normalised as CLIP's images.
    """
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor

    data = DATASETS.get(name)
    mean, std = (CLIP_MEAN, CLIP_STD) if clip_norm or data is None else (data.mean, data.std)
    crop = RandomResizedCrop(n_px, scale=CROP if data else MINI_CROP)
    flip = [RandomHorizontalFlip()] if data and data.flip else []
    last = [ToTensor(), Normalize(mean, std)]
    return Compose([to_rgb, crop, *flip, *last]), Compose([to_rgb, Resize((n_px, n_px)), *last])


def place(name: str, folder: str) -> tuple[str, Path]:
    """The set's name in common.datasets and the folder it is looked for in, from what the original's flag says."""
    data, root = DATASETS[name], Path(folder).expanduser()
    return data.name, root.parent if data.folder and root.name == data.folder else root


def require(name: str, folder: str, verify: bool) -> None:
    """Return if the data set is there and complete; else raise UserError."""
    if name != MINI:
        known, root = place(name, folder)
        datasets.require([known], root, verify)


def load(name: str, folder: str, n_px: int, clip_norm: bool, verify: bool) -> ImageSet:
    """The data set under its transforms, with the class names that the original lists. Raises UserError."""
    both = transforms(name, n_px, clip_norm)
    if name == MINI:
        from common.datasets.miniature import load_domain

        return load_domain("Characters", *both)
    known, root = place(name, folder)
    data = datasets.load(known, root, *both, verify=verify)
    data.classnames = listed_names(known, data.classnames)
    return data


def listed_names(known: str, names: list[str]) -> list[str]:
    """CIFAR's with underscores, TinyImageNet's without the second of two names (upstream datasets/__init__.py)."""
    if known == "TinyImageNet":
        return [name.split(" / ")[0] for name in names]
    return [name.replace(" ", "_") for name in names]


def load_clip(visual: str, model: str | None, precision: str, device: torch.device) -> CLIP:
    """The CLIP of `--visual`, or of the weights file `model`, in float32 or in the original's mixture of halves."""
    if visual == MINI_RESNET and model is None:
        from common.mini.resnet import resnet_clip

        built = resnet_clip()
        if precision == "fp16":
            to_half(built)
        return built.to(device)
    return clip.load(model or visual, device, precision)[0]
