"""The small world of the class-incremental whole runs: data, network, and how a run is started in it.

100 classes in CIFAR-100's layout, three training images a class, one to three test images. Red rises from left to
right and green from top to bottom, so that a crop and a flip can be read off an image; blue is a pattern of the class
and of the image, so that a crop can be traced to its image.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from common.clip.model import CLIP, CLIPConfig, build_model
from common.clip.tokenizer import tokenize
from common.datasets.names import read_names
from tests.whole_run import Seen, float64, watched
from zscl.cil.__main__ import main

SIZE = 24  # of CLIP's input; the files have 32 pixels and more, so a resize is seen
IMAGE, TEXT, EMBED = 64, 16, 32  # widths of CLIP's towers, and its features
TEMPLATE = "one photo of the {} here."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEST_TRANSFORM = Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE), ToTensor(), Normalize(MEAN, STD)])
RISE = 160  # of red and green from one side of an image to the other
LONG = "word " * 90  # a caption that CLIP's 77 tokens do not hold


@dataclass(frozen=True)
class Split:
    """Images in the order of the data set, as arrays and under the test transform; labels as positions in the order."""

    arrays: np.ndarray  # (N, 32, 32, 3)
    labels: list[int]

    @property
    def plain(self) -> Tensor:
        return torch.stack([TEST_TRANSFORM(Image.fromarray(array)) for array in self.arrays])

    def of(self, classes: range) -> list[int]:
        """The images of these classes, in the order of the data set."""
        return [index for index, label in enumerate(self.labels) if label in classes]


@dataclass(frozen=True)
class World:
    root: Path
    train: Split
    test: Split
    names: list[str]  # in class order
    captions: list[str]  # of Conceptual Captions, all
    gathered: list[tuple[str, Path]]  # those whose images could be fetched

    @property
    def words(self) -> list[str]:
        """What every command line says: the data, the order, the network."""
        return [
            f"dataset_root={self.root / 'data'}", f"cc_root={self.root / 'captions'}", "no_verify=true",
            f"class_order={self.root / 'order.yaml'}", f"model_name={self.root / 'clip.pt'}", "device=cpu", "threads=1",
            "workers=0", f"prompt_template={TEMPLATE}",
        ]  # fmt: skip

    def clip(self) -> CLIP:
        """The pre-trained network."""
        return build_model(torch.load(self.root / "clip.pt", weights_only=True)["state_dict"])

    def prompts(self, classes: range) -> Tensor:
        return tokenize([TEMPLATE.replace("{}", self.names[label]) for label in classes])


def make_world(root: Path) -> World:
    random = np.random.default_rng(3)
    order, names = random.permutation(100).tolist(), [name.replace(" ", "_") for name in read_names("cifar100")]
    patterns = random.uniform(size=(100, 4, 4))
    position = np.argsort(order)  # of an original label in the class order
    splits = {}
    for name, copies in (("train", [3] * 100), ("test", [1 + position[label] % 3 for label in range(100)])):
        labels = random.permutation(np.repeat(np.arange(100), copies))
        arrays = np.stack([picture(32, 32, 0.6 * patterns[y] + 0.4 * random.uniform(size=(4, 4))) for y in labels])
        splits[name] = Split(arrays, [int(position[label]) for label in labels])
        content = {"data": arrays.transpose(0, 3, 1, 2).reshape(len(labels), -1), "fine_labels": labels.tolist()}
        put_pickle(root / "data" / "cifar100" / "cifar-100-python" / name, content)
    put_pickle(root / "data" / "cifar100" / "cifar-100-python" / "meta", {"fine_label_names": names})
    (root / "order.yaml").write_text(yaml.safe_dump({"class_order": order}))
    captions, gathered = make_captions(root / "captions", random)
    world = World(root, splits["train"], splits["test"], [names[label] for label in order], captions, gathered)
    torch.save({"state_dict": fitted_clip(world).state_dict()}, root / "clip.pt")
    return world


@torch.no_grad()
def fitted_clip(world: World) -> CLIP:
    """A random CLIP whose two projections are fitted to the classes, so that accuracies are well above chance."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(EMBED, SIZE, 1, IMAGE, 12, 77, 49408, TEXT, 1, 1))
    torch.set_rng_state(state)
    model.visual.proj = torch.nn.Parameter(torch.eye(IMAGE))
    images = model.encode_image(world.train.plain)
    directions = torch.linalg.svd(images - images.mean(dim=0)).Vh[:EMBED].T
    away = images.mean(dim=0) / images.mean(dim=0).norm()  # what all images share is projected out
    model.visual.proj = torch.nn.Parameter(directions - away[:, None] * (away @ directions))
    images, labels = F.normalize(model.encode_image(world.train.plain), dim=-1), torch.tensor(world.train.labels)
    means = torch.stack([images[labels == label].mean(dim=0) for label in range(100)])
    model.text_projection = torch.nn.Parameter(torch.eye(TEXT))
    texts = model.encode_text(world.prompts(range(100)))
    model.text_projection = torch.nn.Parameter(torch.linalg.lstsq(texts, means).solution)
    return model


def make_captions(folder: Path, random: np.random.Generator) -> tuple[list[str], list[tuple[str, Path]]]:
    """130 captions in the published list; 45 of them, with images of several shapes, in the gathered one."""
    captions = [f"picture {i} of a {' '.join(['very'] * (i % 4))} old boat" for i in range(128)] + [LONG, LONG + "end"]
    gathered = []
    (folder / "images").mkdir(parents=True)
    for row, i in enumerate([129, *range(126, 38, -2)]):
        path = folder / "images" / f"{7 * row % 45:02d}.png"  # not in the order of the rows
        width, height = ((40, 26), (24, 38), (30, 30))[row % 3]
        Image.fromarray(picture(width, height, random.uniform(size=(4, 4)))).save(path)
        gathered.append((captions[i], path))
    rows = [f"{caption}\timages/{path.name}" for caption, path in gathered]
    name = "Validation_GCC-1.1.0-Validation"
    (folder / f"{name}_output.csv").write_text("\n".join(["title\tfilepath", *rows]) + "\n")
    (folder / f"{name}.tsv").write_text("".join(f"{caption}\thttp://example.org\n" for caption in captions))
    return captions, gathered


def picture(width: int, height: int, blue: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): red from left to right, green from top to bottom, blue the pattern (4, 4) in [0, 1]."""
    red, green = (40 + RISE * (np.arange(side) + 0.5) / side for side in (width, height))
    pattern = Image.fromarray((255 * blue).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    planes = np.broadcast_to(red, (height, width)), np.broadcast_to(green[:, None], (height, width)), pattern
    return np.stack([np.asarray(plane) for plane in planes], axis=2).astype(np.uint8)


def put_pickle(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


# What can be read off an image


def pixels(images: Tensor) -> Tensor:
    """Normalised images (B, 3, R, R) back in 0 .. 255."""
    return 255 * (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1))


def traced(images: Tensor, split: Split) -> list[int]:
    """Which image of the split each of these (B, 3, R, R), plain or cropped, was taken from: the nearest in blue."""
    return torch.cdist(images[:, 2].flatten(1), split.plain[:, 2].flatten(1)).argmin(dim=1).tolist()


def crops(images: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height (B,) of what each was cropped from an image of width and height 1; negative if flipped."""
    red, green = pixels(images)[:, 0], pixels(images)[:, 1]
    across, down = red[:, :, 17] - red[:, :, 5], green[:, 17] - green[:, 5]  # half the crop, away from its edges
    return across.mean(dim=1) / (RISE / 2), down.mean(dim=1) / (RISE / 2)


# A run and what it leaves

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def command(world: World, config: str) -> list[str]:
    return ["--config-path", "configs/class", "--config-name", f"{config}.yaml", *world.words]


def started(world: World, folder: Path, config: str, *words: str) -> Seen:
    """A run in float64, by its command line."""
    with float64(), watched("randperm", "randint") as seen:
        main([*command(world, config), f"save={folder}", *words])
    return seen


def checkpoint(folder: Path, task: int) -> dict[str, Tensor]:
    return torch.load(folder / f"task_{task}.pth", weights_only=True)["state_dict"]


def same_weights(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """All but the key third of in_proj_bias, whose gradient is 0 in theory and rounding in practice."""
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        thirds = [2, 0] if name.endswith("in_proj_bias") else [2, 1, 0]
        one, other = (
            torch.cat([tensor.flatten().tensor_split(3)[i] for i in thirds]) for tensor in (ours[name], value)
        )
        torch.testing.assert_close(one, other, **EXACT)
