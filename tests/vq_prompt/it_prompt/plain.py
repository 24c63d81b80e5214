"""What the whole runs of IT-Prompt are held against: made-up pictures, frozen towers in plain tensor operations, C-NCM.

Pictures tell where their pixels lie: red rises from left to right, green from top to bottom, so the box of a random
crop, and whether it was mirrored, can be read off its pixels. Blue holds the class's own pattern and some noise.
"""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms import functional as TF

from common.clip.model import CLIP, CLIPConfig
from common.datasets.names import read_names

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WIDTH, HEADS, BLOCKS, PATCH, SIZE, FEATURES = 128, 2, 3, 8, 24, 20  # of the made-up CLIP


# Pictures


def picture(label: int, number: int, width: int, height: int) -> Image.Image:
    pattern = np.random.RandomState(label).uniform(0, 255, (4, 4))
    noise = np.random.RandomState(10_000 + 100 * label + number).normal(0, 50, (8, 8))
    blue = [np.asarray(Image.fromarray(part).resize((width, height))) for part in (pattern, noise)]
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([12 + 230 * x, 12 + 230 * y, (blue[0] + blue[1]).clip(0, 255)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


@dataclass
class Pictures:
    """Pictures and original labels, in the order of the files; `names` by original label, as texts have them."""

    names: list[str]
    train: list[tuple[Image.Image, int]] = field(default_factory=list)
    test: list[tuple[Image.Image, int]] = field(default_factory=list)

    def of(self, split: str, order: list[int], task: range | None = None, view: Any = None) -> tuple[Tensor, Tensor]:
        """Plain views (N, 3, S, S) and the places of their classes in the order, all or a task's; CLIP's by default."""
        rows = [(image, order.index(label)) for image, label in getattr(self, split) if label in order]
        rows = [row for row in rows if task is None or row[1] in task]
        views = [(view or clip_view)(image) for image, _ in rows]
        return torch.stack(views), torch.tensor([label for _, label in rows])


def clip_view(image: Image.Image) -> Tensor:
    """CLIP's test transform: shorter side bicubic to the network's size, centre crop, normalisation."""
    small = TF.center_crop(TF.resize(image, SIZE, Mode.BICUBIC), SIZE)
    return TF.normalize(TF.to_tensor(small), CLIP_MEAN, CLIP_STD)


def vit_view(image: Image.Image) -> Tensor:
    """A ViT's test transform on CUB-200, 256 then 224 pixels, at the miniature's 32: bilinear, pixels in [0, 1]."""
    return TF.to_tensor(TF.center_crop(TF.resize(image, 36), 32))


def write_cifar100(root: Path, train: dict[int, int], test: dict[int, int], rest: str = "train") -> Pictures:
    """CIFAR-100 with that many pictures of each label, in a mixed order; a black one of each other label, in `rest`."""
    names = read_names("cifar100")
    made = Pictures(names)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, counts, first in (("train", train, 0), ("test", test, 50)):
        rows = [(label, first + number) for number in range(max(counts.values())) for label in counts]
        rows = [(label, number) for label, number in rows if number - first < counts[label]]
        images = getattr(made, split)
        images += [(picture(label, number, 32, 32), label) for label, number in rows]
        data = np.stack([np.asarray(image).transpose(2, 0, 1).reshape(-1) for image, _ in images])
        content = {"data": data, "fine_labels": [label for _, label in images]}
        if split == rest:
            others = sorted({*range(100)} - {*train} - {*test})
            content["data"] = np.concatenate([data, np.zeros((len(others), data.shape[1]), np.uint8)])
            content["fine_labels"] += others
        (folder / split).write_bytes(pickle.dumps(content))
    written = [name.replace(" ", "_") for name in names]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": written}))
    return made


def write_cub200(root: Path, train: dict[int, int], test: dict[int, int]) -> Pictures:
    """CUB-200 with that many pictures of each label, wide and tall; of all other labels one, which no run may open."""
    names = [f"Made-up Bird{label} of {label % 7}" for label in range(200)]
    made = Pictures(names)
    folder, lines, number = root / "CUB_200_2011", {"images": [], "image_class_labels": [], "train_test_split": []}, 0
    for copy in range(8):
        for label in range(200):
            is_train = copy < train.get(label, 1)
            if not is_train and copy - train.get(label, 1) >= test.get(label, 0):
                continue
            number += 1
            kind, width, height = label + 1, *((40, 30), (28, 44), (36, 31))[number % 3]
            file = folder / "images" / f"{kind:03d}.{names[label].replace(' ', '_')}" / f"{copy}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            if label in train or label in test:
                image = picture(label, copy, width, height)
                image.save(file, "PNG")  # read by its content: what is decoded is what was drawn
                (made.train if is_train else made.test).append((image, label))
            else:
                file.write_bytes(b"no picture")
            about = (file.relative_to(folder / "images"), kind, int(is_train))
            for name, value in zip(lines, about):
                lines[name].append(f"{number} {value}\n")
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("".join(content))
    return made


def crop_box(view: Tensor, candidates: list[Image.Image], mode: Mode) -> tuple[float, bool]:
    """The share of a picture's area that a training view (3, S, S), pixels in [0, 1], was cut from; mirrored or not.

    The ramps tell the box to a pixel; exactly one box of one of the pictures must give all pixels of the view.
    """
    size, (columns, rows) = view.shape[-1], (view[0].mean(dim=0), view[1].mean(dim=1))
    inner = torch.arange(2, size - 2)
    slope, at = (np.polyfit(inner + 0.5, values[inner] * 255 / 230 - 12 / 230, 1) for values in (columns, rows))
    is_flipped = bool(slope[0] < 0)
    for image in candidates:
        wide, high = image.size
        width, height = round(abs(slope[0]) * size * wide), round(at[0] * size * high)
        left = round((slope[1] + min(0.0, slope[0]) * size) * wide)
        top = round(at[1] * high)
        for box in np.ndindex(3, 3, 3, 3):
            y, x, h, w = np.add((top, left, height, width), box) - 1
            if h < 1 or w < 1 or y < 0 or x < 0 or y + h > high or x + w > wide:
                continue
            cut = TF.resized_crop(image, int(y), int(x), int(h), int(w), [size, size], mode)
            if torch.allclose(TF.to_tensor(TF.hflip(cut) if is_flipped else cut), view, rtol=0, atol=1e-9):
                return float(h * w) / (wide * high), is_flipped
    raise AssertionError("the view is no crop of these pictures")


# Towers


def attended(qkv: Tensor, prompts: Tensor | None, heads: int) -> Tensor:
    """Attention (B, L, D) with prompts (B, P, D): one half stands before the keys, the other before the values."""
    q, k, v = qkv.chunk(3, dim=-1)
    if prompts is not None:
        before_k, before_v = prompts.expand(len(q), -1, -1).chunk(2, dim=1)
        k, v = torch.cat([before_k, k], dim=1), torch.cat([before_v, v], dim=1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def entry_of(prompts: Tensor | None, layers: list[int], block: int) -> Tensor | None:
    """A block's prompts (1 or B, P, D) of an entry (layers, P, D), or of each image's entry (B, layers, P, D)."""
    if prompts is None or block not in layers:
        return None
    own = prompts[..., layers.index(block), :, :]
    return own if own.ndim == 3 else own[None]


def clip_features(w: dict[str, Tensor], images: Tensor, prompts: Tensor | None = None, layers: Any = ()) -> Tensor:
    """Unit features (B, E) of CLIP's image tower with the weights w: u without prompts, z with an entry's."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"visual.{name}.weight"], w[f"visual.{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"visual.{name}.weight"], w[f"visual.{name}.bias"])

    x = F.conv2d(images, w["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]
    x = norm(x, "ln_pre")
    for number in range(BLOCKS):
        at = f"transformer.resblocks.{number}"
        weight, bias = (w[f"visual.{at}.attn.in_proj_{name}"] for name in ("weight", "bias"))
        qkv = F.linear(norm(x, f"{at}.ln_1"), weight, bias)
        x = x + linear(attended(qkv, entry_of(prompts, layers, number), HEADS), f"{at}.attn.out_proj")
        hidden = linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{at}.mlp.c_proj")
    return F.normalize(norm(x[:, 0], "ln_post") @ w["visual.proj"], dim=-1)


def vit_features(w: dict[str, Tensor], images: Tensor, prompts: Tensor | None = None, layers: Any = ()) -> Tensor:
    """The same of the miniature's ViT under timm's keys: the class token after the last norm."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    for number in range(4):
        at = f"blocks.{number}"
        qkv = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
        x = x + linear(attended(qkv, entry_of(prompts, layers, number), 4), f"{at}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    return F.normalize(norm(x[:, 0], "norm"), dim=-1)


def write_clip(path: Path, labels: list[int], names: list[str], template: str) -> None:
    """A small CLIP with random towers and two fitted projections: texts differ, and pictures come near their texts.

    It is fitted on pictures of these labels that no data set here holds.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        clip = small_clip()
    clip.token_embedding.weight.data *= 100
    clip.token_embedding.weight.data[49407] = 0  # at the end token, where a text is read, stands what the others say
    weights, onto = dict(clip.state_dict()), clip.text_projection.data
    common = F.normalize(text_features(weights, names, template).mean(dim=0), dim=0)  # what all texts share
    weights["text_projection"] = onto - torch.outer(onto @ common, common)
    text = text_features(weights, names, template)[labels].repeat_interleave(12, dim=0)
    pictures = [picture(label, 100 + copy, 32, 32) for label in labels for copy in range(12)]
    views = torch.stack([clip_view(image) for image in pictures]).double()
    identity = weights | {"visual.proj": torch.eye(WIDTH, dtype=torch.float64)}
    pooled = math.sqrt(WIDTH) * clip_features(identity, views)  # about what stands before the projection
    penalty = 1e-3 * len(pooled) * torch.eye(WIDTH, dtype=torch.float64)
    weights["visual.proj"] = torch.linalg.solve(pooled.T @ pooled + penalty, pooled.T @ text)
    torch.save({key: value.float() for key, value in weights.items()}, path)


def small_clip() -> CLIP:
    return CLIP(CLIPConfig(FEATURES, SIZE, BLOCKS, WIDTH, PATCH, 77, 49408, 64, 1, 1)).double().eval()


def text_features(weights: dict[str, Tensor], names: list[str], template: str) -> Tensor:
    """w_c (C, E): unit features of the names in the template, through the network class and open_clip's tokens."""
    clip = small_clip()
    clip.load_state_dict(weights)
    tokens = open_clip.tokenize([template.replace("{}", name) for name in names])
    with torch.no_grad():
        return F.normalize(clip.encode_text(tokens), dim=-1)


# C-NCM


def centroids_of(features: Tensor, clusters: int, seed: int, renorm: bool = True) -> Tensor:
    """k-means over a class's preprocessed features (n, E); the means of the clusters, to unit length."""
    count = min(clusters, len(features))  # all pictures of a class differ
    members = KMeans(n_clusters=count, n_init=10, random_state=seed).fit_predict(features.numpy())
    means = torch.stack([features[torch.tensor(members == number)].mean(dim=0) for number in range(count)])
    return F.normalize(means, dim=1) if renorm else means


def class_distances(features: Tensor, centroids: list[Tensor], aggregate: str = "min") -> Tensor:
    """(N, C): squared distance to the nearest centroid of each class, or the mean over its centroids."""
    squared = [(features[:, None] - own[None]).square().sum(dim=-1) for own in centroids]
    return torch.stack([part.amin(dim=1) if aggregate == "min" else part.mean(dim=1) for part in squared], dim=1)


# What a run did and left


def by_optimizer(seen: Any) -> list[list[dict[str, Any]]]:
    """Optimiser by optimiser its steps: the step itself, and the last batch, loss and draws before it."""
    found: dict[int, list[dict[str, Any]]] = {}
    latest: dict[str, Any] = {}
    for event in seen.events:
        kind = type(event).__name__
        if kind == "Step":
            found.setdefault(event.optimizer, []).append(latest | {"step": event})
        elif kind == "Batch":
            latest["batch"] = event.content
        elif kind == "float":
            latest["loss"] = event
        else:
            latest[event.name] = event.value
    return [found[number] for number in sorted(found)]


def rates(peak: float, steps: int) -> list[float]:
    """lr of update i: 1e-6 + (peak - 1e-6) (1 + cos(pi i / n)) / 2."""
    return [1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def annealed(
    parameters: list[Tensor], steps: list[Any], peak: float, decay: float, losses_of: Callable[[Any], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """AdamW on each step's `loss`, its rate a cosine from the peak to 1e-6; the losses by name, each (steps,)."""
    optimizer, found = torch.optim.AdamW(parameters, weight_decay=decay), []
    for rate, step in zip(rates(peak, len(steps)), steps):
        optimizer.param_groups[0]["lr"] = rate
        found.append(losses_of(step))
        optimizer.zero_grad()
        found[-1]["loss"].backward()
        optimizer.step()
    return {name: torch.stack([losses[name] for losses in found]).detach() for name in found[0]}


def values(folder: Path, metric: str) -> dict[tuple[int, str], float]:
    """A run's recorded values of a metric by (after_task, dataset)."""
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return {(line["after_task"], line["dataset"]): line["value"] for line in lines if line["metric"] == metric}


def model_after(out: Path, task: int, repeat: int = 1) -> dict[str, Any]:
    return torch.load(out / "models" / f"repeat-{repeat}" / f"task-{task + 1}" / "class.pth", weights_only=True)
