"""Models and inputs that the papers' benchmarks share: random weights, synthetic images and prompts."""

import copy

import torch
from torch import Tensor

from common.clip.model import CLIP, CLIPConfig
from common.datasets.transforms import clip_normalise
from tests.benchmarks.measure import Sizes, timed_calls

VIT_B_16 = CLIPConfig(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
SMALL = CLIPConfig(64, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
LONGEST_PROMPT = {10: 13, 100: 10, 397: 13}  # MNIST, CIFAR100, SUN397 with start and end token
USUAL_PROMPT, SHORTEST_PROMPT = 13, 7
START, END = 49406, 49407


def small_or_paper_clip(small: bool) -> CLIP:
    torch.manual_seed(0)
    return CLIP(SMALL if small else VIT_B_16).eval().requires_grad_(False)


def prompts(classes: int, longest: int) -> Tensor:
    """Random prompts (C, 77) of SHORTEST_PROMPT to `longest` tokens, the first one the longest."""
    generator = torch.Generator().manual_seed(classes)
    tokens = torch.zeros(classes, 77, dtype=torch.long)
    lengths = torch.randint(SHORTEST_PROMPT, longest + 1, (classes,), generator=generator)
    lengths[0] = longest
    for row, length in zip(tokens, lengths.tolist()):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


class OneBatch:
    """The same batch at every step, already on the device."""

    def __init__(self, plain: CLIP, classes: int, sizes: Sizes, seed: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        size, side = sizes.batch_size or (8 if sizes.small else 64), plain.visual.input_resolution
        self.images = torch.randn(size, 3, side, side, generator=generator).to(sizes.device)
        self.labels = torch.randint(classes, (size,), generator=generator).to(sizes.device)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def evaluation_pixels(plain: CLIP, batch_size: int, sizes: Sizes) -> Tensor:
    """uint8 images of a test set: eight batches, one at the papers' sizes on a CPU."""
    count = batch_size * (8 if sizes.small or sizes.device.type == "cuda" else 1)
    side = plain.visual.input_resolution
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@torch.no_grad()
def time_plain_encoding(plain: CLIP, pixels: Tensor, batch_size: int, sizes: Sizes) -> list[float]:
    """One turn of plain encode_image over all of `pixels`, which lie on the host."""
    model = copy.deepcopy(plain).to(sizes.device)

    def encode_all() -> None:
        for batch in pixels.split(batch_size):
            model.encode_image(clip_normalise(batch.to(sizes.device)))

    return timed_calls(encode_all, sizes)
