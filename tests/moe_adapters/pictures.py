"""Made-up data sets whose images have structure, so that pixels tell crops, flips and the order of a set."""

import pickle
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from common.clip.model import CLIP, CLIPConfig
from tests import fake_data
from tests.clip_archive import save_archive
from tests.moe_adapters.plain import Stage

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
END = 49407  # the token behind a prompt
SIZES = ((44, 36), (36, 42), (40, 40))
TINTS = {"oxford-iiit-pet": (60, -30, -30), "eurosat": (-40, 40, -20), "dtd": (-30, -30, 60)}  # else untinted
PALE = 9
COPIES = 13  # EuroSAT's images a class, of which the split at random takes 80 % for training


def picture(*key: object, tint: tuple[int, ...] = (0, 0, 0), contrast: float = 90) -> np.ndarray:
    """A smooth pattern that the key alone decides, uint8 (H, W, 3), wide, tall or square."""
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    grid = np.clip(128 + np.array(tint) + contrast * rng.uniform(-1, 1, (4, 4, 3)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grid).resize(SIZES[rng.integers(3)], Image.Resampling.BICUBIC))


def square(side: int, *key: object, contrast: float = 90) -> np.ndarray:
    return np.asarray(Image.fromarray(picture(*key, contrast=contrast)).resize((side, side)))


def write(root: Path, names: list[str]) -> None:
    """The data sets in their published layouts, as `fake_data` writes them, with a pattern of its own in each image."""
    fake_data.write(root, names)
    if "EuroSAT" in names:
        for folder in (root / "eurosat" / "2750").iterdir():
            for copy in range(COPIES):
                (folder / f"{folder.name}_{copy + 1}.jpg").touch()
    for path in [*root.rglob("*.jpg"), *root.rglob("*.JPEG")]:
        top, file = path.relative_to(root).parts[0], str(path.relative_to(root))
        Image.fromarray(picture(file, tint=TINTS.get(top, (0, 0, 0)))).save(path, "JPEG", quality=95)
    if "OxfordPet" in names:
        _pale_pets(root / "oxford-iiit-pet")
    if "MNIST" in names:
        _mnist(root / "MNIST" / "raw")
    if "CIFAR100" in names:
        _cifar(root / "cifar-100-python")


def _pale_pets(folder: Path) -> None:
    """The first test images are nearly of CLIP's mean colour, which an untrained autoencoder reconstructs best."""
    for row in (folder / "annotations" / "test.txt").read_text().splitlines()[:PALE]:
        path = folder / "images" / f"{row.split()[0]}.jpg"
        Image.fromarray(picture(path.name, tint=(-5, -11, -24), contrast=8)).save(path, "JPEG", quality=95)


def _mnist(folder: Path) -> None:
    for split, count in (("train", 30), ("t10k", 75)):
        images = np.stack([square(28, split, place, contrast=70)[..., 0] for place in range(count)])
        labels, sizes = np.arange(count, dtype=np.uint8) * 7 % 10, np.array(images.shape, dtype=">i4")
        (folder / f"{split}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes.tobytes() + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:1].tobytes() + labels.tobytes())


def _cifar(folder: Path) -> None:
    for split in ("train", "test"):
        content = pickle.loads((folder / split).read_bytes())
        rows = [square(32, split, place).transpose(2, 0, 1).ravel() for place in range(len(content["fine_labels"]))]
        (folder / split).write_bytes(pickle.dumps(content | {"data": np.stack(rows)}, protocol=2))


def whole_view(image: Image.Image, side: int) -> Tensor:
    """The image squeezed into a square, to which random crops of nearly all of it come close; uint8."""
    return TF.pil_to_tensor(TF.resize(image.convert("RGB"), [side, side], TF.InterpolationMode.BICUBIC))


def centre_crop(image: Image.Image, side: int) -> Tensor:
    """The test transform up to the pixels: shorter side to `side`, bicubic, centre crop; uint8 (3, side, side)."""
    image = TF.resize(image.convert("RGB"), side, TF.InterpolationMode.BICUBIC)
    return TF.pil_to_tensor(TF.center_crop(image, side))


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.double).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.double() / 255 - mean) / std


def found_in(stage: Stage, views: Tensor) -> list[list[int]]:
    """For each image of each batch the place of the most alike of `views` (N, 3, R, R) and of their mirror images.

    A place of N or above is a mirror image.
    """
    views = normalise(torch.cat([views, views.flip(-1)])).flatten(1)
    return [torch.cdist(batch[0].double().flatten(1), views).argmin(dim=1).tolist() for batch in stage.batches]


def save_clip(path: Path) -> None:
    """A tiny CLIP of random weights, its attention strong: features hang on what an image shows and a prompt says."""
    torch.manual_seed(2)
    model = CLIP(CLIPConfig(40, 32, 3, 48, 8, 77, 49408, 32, 1, 2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn." in name and parameter.dim() > 1:
                parameter *= 5
        model.visual.conv1.weight *= 3
        model.visual.class_embedding *= 0
        model.token_embedding.weight *= 20
        model.token_embedding.weight[END] *= 0
        model.logit_scale.fill_(2.5)
    save_archive(model.state_dict(), path)
