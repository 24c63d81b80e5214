"""Image transforms of the CLIP-based papers."""

from PIL import Image
from torchvision.transforms import (CenterCrop, Compose, InterpolationMode, Normalize, RandomResizedCrop, Resize,
                                    ToTensor)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; unchanged if it is already.

    Palette images must be converted before any resize, or interpolation would mix palette indices. The official
    code of ZSCL and MoE-Adapters converts after the crop (mtil/clip/clip.py:L60-L79), which for RGB and grayscale
    images gives the same values.
    """
    return image if image.mode == "RGB" else image.convert("RGB")


def clip_train(n_px: int) -> Compose:
    """PIL image -> float32 (3, n_px, n_px): random crop of 90 to 100 % of the area, CLIP's normalisation.

    No horizontal flip (ZSCL mtil/clip/clip.py:L63-L71).
    """
    crop = RandomResizedCrop(n_px, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    return Compose([to_rgb, crop, ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)])


def clip_eval(n_px: int) -> Compose:
    """PIL image -> float32 (3, n_px, n_px): shorter side to n_px, centre crop (ZSCL mtil/clip/clip.py:L72-L79)."""
    resize = Resize(n_px, interpolation=InterpolationMode.BICUBIC)
    return Compose([to_rgb, resize, CenterCrop(n_px), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)])
