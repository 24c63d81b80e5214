import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets.transforms import CLIP_MEAN, CLIP_STD, clip_eval, clip_eval_pixels, clip_normalise, clip_train
from tests.golden_files import Golden

GOLDEN = Golden("common/transforms")
# The fixture's README: 1e-6 with the same Pillow, one grey level (1 / 255 / the smallest std) with another.
TOLERANCE = 1e-6 if GOLDEN.meta["pil"] == Image.__version__ else 1 / 255 / min(CLIP_STD) + 1e-6


def image(k: int) -> Image.Image:
    return Image.fromarray(GOLDEN.arrays[f"image_{k}"])


@pytest.mark.parametrize("k", range(4))
def test_eval_transform_equals_the_official_one(k: int) -> None:
    result = clip_eval(GOLDEN.meta["n_px"])(image(k))
    assert result.dtype == torch.float32
    assert torch.allclose(result, GOLDEN[f"eval_{k}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("k", range(4))
def test_pixels_then_normalise_give_the_same_bits(k: int) -> None:
    n_px = GOLDEN.meta["n_px"]
    pixels = clip_eval_pixels(n_px)(image(k))
    assert pixels.dtype == torch.uint8
    assert torch.equal(clip_normalise(pixels[None])[0], clip_eval(n_px)(image(k)))


@pytest.mark.parametrize("k", range(4))
def test_train_transform_equals_the_official_one_draw_for_draw(k: int) -> None:
    torch.manual_seed(k)
    result = clip_train(GOLDEN.meta["n_px"])(image(k))
    assert torch.allclose(result, GOLDEN[f"train_{k}"], rtol=0, atol=TOLERANCE)


def test_train_transform_never_flips() -> None:
    half = np.zeros((40, 40, 3), dtype=np.uint8)
    half[:, 20:] = 255
    for seed in range(20):
        torch.manual_seed(seed)
        result = clip_train(16)(Image.fromarray(half))
        assert (result[:, :, 0] < result[:, :, -1]).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("make", [clip_train, clip_eval])
def test_any_mode_becomes_three_channels(mode: str, make) -> None:
    source = Image.fromarray(GOLDEN.arrays["image_0"]).convert(mode)
    assert make(24)(source).shape == (3, 24, 24)


def test_palette_is_resolved_before_the_resize() -> None:
    # Two palette entries far apart in number and equal in colour: mixing numbers would give a third colour.
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([200, 10, 10] + [0, 255, 0] * 254 + [200, 10, 10])
    palette.paste(255, (20, 0, 40, 40))
    expected = (torch.tensor([200, 10, 10]) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    result = clip_eval(10)(palette)
    assert torch.allclose(result, expected[:, None, None].expand(3, 10, 10), atol=1e-5)
