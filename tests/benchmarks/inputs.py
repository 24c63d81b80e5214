"""Models and inputs that the papers' benchmarks share: random weights, synthetic images and prompts."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import TensorDataset

from common import datasets
from common.clip.model import CLIP, CLIPConfig
from common.clip.tokenizer import class_prompts
from common.datasets.transforms import clip_normalise
from common.evaluation.label_space import XTAIL_TEMPLATE, LabelSpace
from common.evaluation.pixels import DecodedSet, load_decoded
from common.evaluation.seen_classes import PooledTest
from common.incremental.scenario import Scenario
from common.mini import MINI
from common.protocols import MTIL_ORDER_1
from tests.benchmarks.measure import Row, Sizes, compare_calls

VIT_B_16 = CLIPConfig(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
SMALL = CLIPConfig(64, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
LONGEST_PROMPT = {10: 13, 100: 10, 397: 13}  # MNIST, CIFAR100, SUN397 with start and end token
USUAL_PROMPT, SHORTEST_PROMPT, START, END = 13, 7, 49406, 49407


def small_or_paper_clip(small: bool) -> CLIP:
    torch.manual_seed(0)
    return CLIP(SMALL if small else VIT_B_16).eval().requires_grad_(False)


def small_or_paper_vit(small: bool) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL_VIT) if small else create_model("vit_base_patch16_224", num_classes=0)


def prompts(classes: int, longest: int | None = None) -> Tensor:
    """Random prompts (C, 77) of SHORTEST_PROMPT to `longest` tokens, the first one the longest."""
    longest = longest or LONGEST_PROMPT.get(classes, USUAL_PROMPT)
    generator = torch.Generator().manual_seed(classes)
    tokens = torch.zeros(classes, 77, dtype=torch.long)
    lengths = torch.randint(SHORTEST_PROMPT, longest + 1, (classes,), generator=generator)
    lengths[0] = longest
    for row, length in zip(tokens, lengths.tolist()):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


class OneBatch:
    """A stream of a single batch, the same at every step and already on the device."""

    def __init__(
        self, size: int, side: int, classes: int | range, device: Any = "cpu", dtype: Any = torch.float32, seed: int = 2
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        classes = range(classes) if isinstance(classes, int) else classes
        self.images = torch.randn(size, 3, side, side, generator=generator).to(device, dtype)
        self.labels = torch.randint(classes.start, classes.stop, (size,), generator=generator).to(device)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def one_batch(clip: CLIP, size: int, classes: int | range) -> OneBatch:
    """For this CLIP, where it lies."""
    return OneBatch(size, clip.visual.input_resolution, classes, clip.logit_scale.device, clip.dtype)


def encoding_call(plain: CLIP, sizes: Sizes) -> tuple[Callable[[], None], Tensor, int]:
    """Plain encode_image over a test set; its uint8 images, on the host; their batch size.

    Eight batches, one at the papers' sizes on a CPU.
    """
    size, side = sizes.batch(128, small=32), plain.visual.input_resolution
    count = size * (8 if sizes.small or sizes.device.type == "cuda" else 1)
    pixels = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(3)).to(torch.uint8)

    @torch.no_grad()
    def encode_all() -> None:
        for batch in pixels.split(size):
            plain.encode_image(clip_normalise(batch.to(sizes.device)))

    return encode_all, pixels, size


@contextlib.contextmanager
def float64_kept() -> Iterator[None]:
    """Leave out conversions to float32, which layer norm and the experts' sum ask for."""
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):
        yield


def pooled(count: int, classes: int, plain: CLIP, batch_size: int) -> PooledTest:
    """Random decoded images of one task that holds all classes."""
    generator, side = torch.Generator().manual_seed(3), plain.visual.input_resolution
    pixels = torch.randint(256, (count, 3, side, side), generator=generator).to(torch.uint8)
    images = TensorDataset(pixels)
    images.labels = torch.randint(classes, (count,), generator=generator).tolist()
    return PooledTest(images, Scenario(range(classes), classes, classes), "test", batch_size, pixels=pixels)


def mini_sets(sizes: Sizes) -> tuple[list[DecodedSet], LabelSpace]:
    """The miniature's test sets in the first order, two of them where sizes are small, and the label space of all."""
    names = MTIL_ORDER_1[: 2 if sizes.small else None]
    sets = [datasets.load(name, MINI) for name in names]
    joint = LabelSpace({data.name: class_prompts(data.classnames, [XTAIL_TEMPLATE]) for data in sets})
    return [load_decoded(name, MINI, 32, 128, 0) for name in names], joint


def compare_spaces(
    evaluation: Callable[[LabelSpace | None], object], joint: LabelSpace, count: int, sizes: Sizes
) -> list[Row]:
    """An evaluation of `count` checkpoints on as many sets, each among its own labels, and among all."""
    calls = {"MTIL": partial(evaluation, None), "X-TAIL, all labels": partial(evaluation, joint)}
    few = replace(sizes, steps=min(sizes.steps, 3), warmup=0)
    rows = compare_calls(f"{count} checkpoints x {count} sets, miniature", calls, few, equal=False)
    rows[1].target = "" if sizes.small else "<= 1.3"
    return rows
