"""Image transforms for CLIP and for ViT."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from torchvision.transforms import Compose

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation by channel


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, itself if it already is.

    Palette images must be converted before any resize, or interpolation would mix palette indices. The official code
    of ZSCL and MoE-Adapters converts after the crop (mtil/clip/clip.py:L60-L79): the same values for RGB and grayscale.
    """
    return image if image.mode == "RGB" else image.convert("RGB")


def clip_train(n_px: int, least_area: float = 0.9, flip: bool = False) -> "Compose":
    """PIL image -> float32 (3, n_px, n_px): random crop of 90 to 100 % of the area, CLIP's normalisation.

    No horizontal flip by default (ZSCL mtil/clip/clip.py:L63-L71). IT-Prompt takes crops from 8 % on, and flips.
    """
    from torchvision.transforms import Compose, Normalize, ToTensor

    views = crop_and_flip(n_px, least_area, flip, "bicubic")
    return Compose([to_rgb, *views, ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)])


def crop_and_flip(n_px: int, least_area: float, flip: bool, interpolation: str = "bilinear") -> list[torch.nn.Module]:
    """Random crop of at least `least_area` of the area, resized to n_px, and with `flip` random mirroring."""
    from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop

    crop = RandomResizedCrop(n_px, scale=(least_area, 1.0), interpolation=InterpolationMode(interpolation))
    return [crop, RandomHorizontalFlip()] if flip else [crop]


def clip_eval(n_px: int, normalisation: Normalisation = (CLIP_MEAN, CLIP_STD)) -> "Compose":
    """PIL image -> float32 (3, n_px, n_px): shorter side to n_px, centre crop, CLIP's normalisation or another.

    ZSCL mtil/clip/clip.py:L72-L79.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    resize = Resize(n_px, interpolation=InterpolationMode.BICUBIC)
    return Compose([to_rgb, resize, CenterCrop(n_px), ToTensor(), Normalize(*normalisation)])


def clip_eval_pixels(n_px: int) -> "Compose":
    """`clip_eval` up to the pixels: PIL image -> uint8 (3, n_px, n_px), to be normalised on the device."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    resize = Resize(n_px, interpolation=InterpolationMode.BICUBIC)
    return Compose([to_rgb, resize, CenterCrop(n_px), PILToTensor()])


def clip_normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, R, R) -> float32: the rest of `clip_eval` after `clip_eval_pixels`, equal bit for bit."""

    def by_channel(values: tuple[float, ...]) -> Tensor:  # filled where it is used: the host waits for a copy of a list
        return torch.cat([torch.full((1, 1, 1), value, device=pixels.device) for value in values])

    return pixels.float().div(255).sub(by_channel(CLIP_MEAN)).div(by_channel(CLIP_STD))


def vit_train(n_px: int, least_area: float = 0.08, flip: bool = True) -> "Compose":
    """PIL image -> float32 (3, n_px, n_px) in [0, 1]: random crop of 8 to 100 % of the area, random flip.

    Bilinear, not normalised, as in CODA-Prompt, InfLoRA (utils/data.py:L111-L127) and VQ-Prompt
    (dataloaders/utils.py:L30-L68).
    """
    from torchvision.transforms import Compose, ToTensor

    return Compose([to_rgb, *crop_and_flip(n_px, least_area, flip), ToTensor()])


def vit_eval(n_px: int, shorter_side: int) -> "Compose":
    """PIL image -> float32 (3, n_px, n_px) in [0, 1]: shorter side to `shorter_side`, then centre crop.

    In the sources of `vit_train` 256 for 224 pixels, on CIFAR-100 224 itself.
    """
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    return Compose([to_rgb, Resize(shorter_side), CenterCrop(n_px), ToTensor()])
