"""A small world for whole runs: pictures in which a crop, a flip and the picture itself can be seen, and a small ViT.

Red rises from left to right, green from top to bottom, blue is the picture's own number: under the training transform
blue tells which picture it was, the other two how it was cut and whether it was mirrored.
"""

import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm.models._registry
import torch
import yaml
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.nn import LayerNorm
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from common.clip.model import CLIP, CLIPConfig
from common.datasets.names import read_names
from inflora.main import main
from tests.fake_data import write
from tests.inflora.plain import Branch, Model
from tests.whole_run import Batch, Seen, float64, watched

D, BLOCKS, PIXELS = 24, 7, 28  # 256 / 224 of 28 pixels are 32
FINE, COARSE = 7, 14  # patches: sixteen tokens and the class token for memories of many directions, or four for speed


@dataclass
class Pictures:
    """One split in the data set's order: RGB pictures and their original labels."""

    images: list[Image.Image]
    labels: list[int]

    def of(self, classes: list[int]) -> list[int]:
        """Which pictures are of these original classes, in order."""
        return [i for i, label in enumerate(self.labels) if label in set(classes)]


def number(label: int, copy: int) -> int:
    """A picture's own number; one class in two has three training pictures, the others two."""
    return 3 * min(label, 50) + 2 * max(label - 50, 0) + copy


def picture(label: int, copy: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    width, height = size
    red = np.linspace(20, 230, width)[None, :].repeat(height, axis=0)
    green = np.linspace(0, 60, height)[:, None].repeat(width, axis=1) + 37 * label % 190
    blue = np.full((height, width), number(label, copy) % 256)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def copies(label: int, split: str) -> range:
    """Two or three training pictures a class, one or two for testing: no task has as many as another."""
    return range(2 + (label % 100 < 50)) if split == "train" else range(1 + (label % 3 == 0))


# The data sets, in their layouts


def cifar100(root: Path) -> dict[str, Pictures]:
    write(root, ["CIFAR100"])
    sets = {}
    for split in ("train", "test"):
        pairs = [(label, copy) for label in range(100) for copy in copies(label, split)]
        mixed = [pairs[i] for i in np.random.RandomState(len(split)).permutation(len(pairs))]
        images = [picture(label, copy + 10 * (split == "test")) for label, copy in mixed]
        sets[split] = Pictures(images, [label for label, _ in mixed])
        path = root / "cifar-100-python" / split
        rows = np.stack([np.asarray(image).transpose(2, 0, 1).reshape(-1) for image in images])
        content = {"fine_labels": sets[split].labels, "coarse_labels": [0] * len(rows), "data": rows}
        names = {"filenames": [f"{i}.png" for i in range(len(rows))], "batch_label": split}
        path.write_bytes(pickle.dumps(content | names, protocol=2))
    return sets


SHAPES = ((40, 32), (32, 50), (36, 36))


def imagenet_r(root: Path) -> dict[str, Pictures]:
    """In train/ and test/, as the original's code leaves the files."""
    sets = {split: Pictures([], []) for split in ("train", "test")}
    for label, wnid in enumerate(read_names("imagenet_r_wnids")):
        for split, pictures in sets.items():
            for copy in copies(label, split):
                image = picture(label, copy, SHAPES[(label + copy) % 3])
                put(root / "imagenet-r" / split / wnid / f"{split}_{copy}.jpg", image)
                pictures.images.append(image)
                pictures.labels.append(label)
    return sets


def drawn_split(sets: dict[str, Pictures], seed: int) -> dict[str, Pictures]:
    """The original's rule: all files by folder and name, four fifths of torch.randperm under a seed train."""
    files = []
    for label in range(200):
        for split in ("test", "train"):  # "test_0.jpg" stands before "train_0.jpg"
            files += [(sets[split].images[i], label) for i in sets[split].of([label])]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(0.8 * len(files))
    parts = {"train": sorted(order[:cut]), "test": sorted(order[cut:])}
    return {split: Pictures(*map(list, zip(*(files[i] for i in part)))) for split, part in parts.items()}


def domainnet(root: Path) -> dict[str, Pictures]:
    """One picture a class and split, in CODA-Prompt's lists, mixed; folders run against the labels."""
    sets = {}
    for split, domains in (("train", ("clipart", "infograph", "painting", "real")), ("test", ("sketch",))):
        labels = np.random.RandomState(len(domains)).permutation(345).tolist()
        images = [picture(label, int(split == "test"), SHAPES[label % 3]) for label in labels]
        named = [(label, domains[label % len(domains)]) for label in labels]
        files = [f"{domain}/thing_{344 - label}/{domain}_{label + 1:03d}_000001.jpg" for label, domain in named]
        for file, image in zip(files, images):
            put(root / "domainnet" / file, image)
        content = {"data": [f"data/domainnet/{file}" for file in files], "targets": labels}
        (root / "domainnet" / f"domainnet_{split}.yaml").write_text(yaml.safe_dump(content))
        sets[split] = Pictures(images, labels)
    return sets


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image.save(content, "PNG")  # without loss; readers go by the content
    path.write_bytes(content.getvalue())


# What the runs must have seen


def plain_view(image: Image.Image, shorter_side: int) -> torch.Tensor:
    """The test transform: shorter side resized, centre crop, pixels in [0, 1] and not normalised."""
    return pil_to_tensor(center_crop(resize(image, shorter_side), PIXELS)).double() / 255


def cut(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of training views (N, 3, S, S): the pictures' numbers, the shares of their areas, which ones are mirrored."""
    red, green, blue = (255 * images).unbind(1)
    wide = (31 * (red.amax((1, 2)) - red.amin((1, 2))) / 210 + 1) / 32
    high = (31 * (green.amax((1, 2)) - green.amin((1, 2))) / 60 + 1) / 32
    return blue.mean((1, 2)).round().long(), wide * high, red[:, :, 0].mean(1) > red[:, :, -1].mean(1)


def plain_views(pictures: Pictures, chosen: list[int], shorter_side: int) -> torch.Tensor:
    return torch.stack([plain_view(pictures.images[i], shorter_side) for i in chosen])


def epoch_of(batches: Iterator[Batch], batch_size: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The next batches of a run, which must be those of one pass over `count` images, the last one not dropped."""
    contents = [next(batches).content for _ in range(-(-count // batch_size))]
    assert [len(labels) for _, labels in contents] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]
    return [tuple(content) for content in contents]


def whole(epoch: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([images for images, _ in epoch]), torch.cat([labels for _, labels in epoch])


# A run


def small_vit(patch: int) -> VisionTransformer:
    return VisionTransformer(PIXELS, patch, embed_dim=D, depth=BLOCKS, num_heads=3, num_classes=0).eval()


def small_tower() -> VisionTransformer:
    """As the image tower of a CLIP of these sizes is: one head, a norm before the blocks, other activations and norms."""
    kinds = {"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": partial(LayerNorm, eps=1e-5)}
    return VisionTransformer(PIXELS, COARSE, embed_dim=D, depth=BLOCKS, num_heads=1, num_classes=0, **kinds).eval()


CLIPS = {  # names of timm's modules, and CLIP's
    "patch_embed.proj": "conv1", "cls_token": "class_embedding", "pos_embed": "positional_embedding",
    "norm_pre": "ln_pre", "blocks": "transformer.resblocks", "norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm.": "ln_post.",
}  # fmt: skip


def as_clip(tower: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIP's weights with this image tower's; its text tower and its projection have no part in a run."""
    weights = CLIP(CLIPConfig(8, PIXELS, BLOCKS, D, COARSE, 4, 4, 8, 1, 1)).state_dict()
    for key, value in tower.items():
        for name, theirs in CLIPS.items():
            key = key.replace(name, theirs)
        weights[f"visual.{key}"] = value.reshape(weights[f"visual.{key}"].shape)
    return weights


def weights(path: Path, patch: int = COARSE, of_clip: bool = False) -> VisionTransformer:
    """A small ViT, frozen, and its file in timm's keys; its tokens differ enough for memories of many directions.

    of_clip: one such as CLIP's image tower, and a file of a whole CLIP.
    """
    torch.manual_seed(7)
    vit = (small_tower() if of_clip else small_vit(patch)).requires_grad_(False)
    for name, parameter in vit.named_parameters():
        scale = {"pos_embed": 2.0, "blocks": 0.15}.get(name.split(".")[0], 0.4)
        parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, scale)
    torch.save({"state_dict": as_clip(vit.state_dict()), "activation": "quickgelu"} if of_clip else vit.state_dict(), path)
    return vit.double()


def started(
    folder: Path, weights_file: Path, config: dict, *flags: str, patch: int = COARSE
) -> tuple[Seen, dict[int, Path]]:
    """Run a configuration by its command line, in float64; what was seen, and the run's folder by seed.

    timm builds the small ViT under the name of the papers' ViT-B/16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    command = ["--config", str(path), "--backbone", str(weights_file), "--save", str(folder / "logs"), "--no-verify"]
    with pytest.MonkeyPatch.context() as patches, float64(), watched("randn", "randperm") as seen:
        names = timm.models._registry._model_entrypoints
        patches.setitem(names, "vit_base_patch16_224", lambda pretrained=False, **_: small_vit(patch))
        main([*command, "--device", "cpu", "--workers", "0", *flags])
    return seen, {int(record.parent.name): record.parent for record in folder.rglob("record.jsonl")}


def checkpoint(folder: Path, task: int) -> dict:
    return torch.load(folder / f"task_{task}.pth", weights_only=True)


def recorded(folder: Path, after_task: int) -> dict[str, float]:
    """The record's accuracies after a task; those of single tasks as `task 0`, `task 1`, ..."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    own = ("train_seconds", "peak_memory_mib", "trainable_parameters")
    return {
        line["dataset"] if line["metric"] == "task_accuracy" else line["metric"]: line["value"]
        for line in lines
        if line["after_task"] == after_task and line["metric"] not in own
    }


# What a run left against plain steps


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to 1e-9 of the largest entry, or of one."""
    tolerance = 1e-9 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


def first_classifier(seen: Seen, optimizer: int, classes: int) -> list[torch.Tensor]:
    """Weight and bias of a classifier as they were before an optimiser's first step."""
    start = [p for group in seen.optimizers()[optimizer][0].start for p in group]
    return [next(p for p in start if p.shape == shape).clone().requires_grad_() for shape in ((classes, D), (classes,))]


def new_branch(B: list[torch.Tensor]) -> list[Branch]:
    """A task's branch before its training: one designed B_t a layer, A_t zero."""
    zero = torch.zeros(B[0].T.shape, dtype=torch.float64)
    return [Branch(b, zero.clone().requires_grad_(), zero.clone().requires_grad_()) for b in B]


def check_checkpoint(folder: Path, task: int, model: Model, memories: list[tuple[torch.Tensor, bool]]) -> None:
    """Branches and memories by their products: signs of B's rows and bases of a space are free."""
    saved = checkpoint(folder, task)
    state = saved["state_dict"]
    for t, branches in enumerate(model.branches):
        for layer, branch in enumerate(branches):
            for name, A in (("k", branch.A_k), ("v", branch.A_v)):
                prefix = f"image_encoder.blocks.{layer}.attn.lora"
                their_A, their_B = state[f"{prefix}_B_{name}.{t}.weight"], state[f"{prefix}_A_{name}.{t}.weight"]
                same(their_B.T @ their_B, branch.B.T @ branch.B)
                same(their_A @ their_B, A @ branch.B)
    assert not any(f"blocks.{len(memories)}.attn.lora" in key for key in state)
    for t, (weight, bias) in enumerate(model.classifiers):
        same(state[f"classifier_pool.{t}.weight"], weight)
        same(state[f"classifier_pool.{t}.bias"], bias)
    assert [(m["basis"].shape, m["free"]) for m in saved["memories"]] == [(M.shape, free) for M, free in memories]
    for memory, (M, _) in zip(saved["memories"], memories):
        same(memory["basis"] @ memory["basis"].T, M @ M.T)
