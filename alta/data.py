"""The data sets as ALTA reads its three, two that it has not, and the CLIPs that are named rather than downloaded.

Classes in the order of their labels, no validation split. Images are normalised by the data set's statistics, not by
CLIP's, resized bilinearly, and CIFAR-100 is not mirrored (upstream datasets/seq_*.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common import clip, datasets
from common.clip.activation import AUTO
from common.clip.model import CLIP
from common.clip.pretrained import to_half
from common.datasets.images import ImageSet
from common.datasets.transforms import CLIP_MEAN, CLIP_STD, clip_eval, crop_and_flip, to_rgb
from common.incremental.sets import CHARACTERS, IncrementalSet, class_names, reader_options
from common.mini import MINI, MINI_RESNET
from common.mini.resnet import resnet_clip

if TYPE_CHECKING:
    from torchvision.transforms import Compose


@dataclass(frozen=True)
class Look:
    """The data set's own flag, how its images are normalised, whether training images are mirrored, and their crops."""

    flag: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    least_area: float = 0.08


DATASETS = {
    "seq-cifar10": Look("cifar10_dir", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), True),
    "seq-cifar100": Look("cifar100_dir", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), False),
    "seq-tinyimagenet": Look("tinyimagenet_dir", (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821), True),
}
# without published statistics; the miniature's characters have no flag either
LOOKS = DATASETS | {
    "seq-imagenet_r": Look("imagenet_r_dir", CLIP_MEAN, CLIP_STD, True),
    "seq-cub200": Look("cub200_dir", CLIP_MEAN, CLIP_STD, True),
    MINI: Look("", CLIP_MEAN, CLIP_STD, CHARACTERS.flip, CHARACTERS.least_area),
}
SOURCES = {MINI_RESNET: MINI}  # the weights that a tower is made of, where it has none of its own


def transforms(name: str, n_px: int, clip_norm: bool, common: bool = False) -> "tuple[Compose, Compose]":
    """Training and test transform: PIL image -> float32 (3, n_px, n_px).

    torchvision's defaults: crops of 8 to 100 % of the area, bilinear. Test images, which are square, are resized whole.
    common: CLIP's normalisation, and CLIP's test transform, which cuts their centre out.
    """
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor

    if common:
        return transforms(name, n_px, clip_norm=True)[0], clip_eval(n_px)
    look = LOOKS[name]
    mean, std = (CLIP_MEAN, CLIP_STD) if clip_norm else (look.mean, look.std)
    last = [ToTensor(), Normalize(mean, std)]
    crop = crop_and_flip(n_px, look.least_area, look.flip)
    return Compose([to_rgb, *crop, *last]), Compose([to_rgb, Resize((n_px, n_px)), *last])


def load(
    name: str, data_set: IncrementalSet, n_px: int, clip_norm: bool, verify: bool, common: bool = False
) -> ImageSet:
    """The data set under its transforms, with the class names that the original lists. Raises UserError."""
    views, reader = transforms(name, n_px, clip_norm, common), reader_options(data_set)
    data = datasets.load(data_set.reader, data_set.root, *views, verify, options=reader)
    data.classnames = listed_names(data_set.reader, class_names(data))
    return data


def listed_names(reader: str, names: list[str]) -> list[str]:
    """CIFAR's with underscores, TinyImageNet's without the second of two names (upstream datasets/__init__.py)."""
    if reader == "TinyImageNet":
        return [name.split(" / ")[0] for name in names]
    return [name.replace(" ", "_") for name in names] if reader.startswith("CIFAR") else names


def weights_of(visual: str, file: str | None) -> str:
    """What names CLIP's weights to `common.clip`: the file of `--model`, or `--visual`'s name."""
    return file or SOURCES.get(visual, visual)


def load_clip(visual: str, file: str | None, precision: str, device: torch.device, activation: str = AUTO) -> CLIP:
    """The CLIP of `--visual`, or of the weights file, in float32 or in the original's mixture of halves."""
    if visual in SOURCES and file is None:
        model = resnet_clip()
        if precision == "fp16":
            to_half(model)
        return model.to(device)
    return clip.load(file or visual, device, precision, activation=activation)[0]
