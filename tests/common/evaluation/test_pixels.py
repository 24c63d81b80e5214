"""Sets decoded once: the bits of the float transform, whatever is computed from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common import datasets
from common.clip import tokenize
from common.clip.model import CLIP, CLIPConfig
from common.datasets.transforms import clip_eval, clip_eval_pixels
from common.errors import UserError
from common.evaluation.pixels import decode, load_decoded
from common.evaluation.zero_shot import image_features
from tests.fake_data import write


class Pictures(Dataset):
    """RGB, grey and palette pictures of different sizes."""

    def __init__(self, transform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        shape = (40 + 7 * index, 90 - 5 * index)
        colours = np.random.default_rng(index).integers(0, 256, (*shape, 3), dtype=np.uint8)
        mode = ("RGB", "L", "P")[index % 3]
        return self.transform(Image.fromarray(colours).convert(mode)), index


def test_stored_pixels_give_the_bits_of_the_float_transform() -> None:
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)).eval()
    pixels, labels = decode(Pictures(clip_eval_pixels(32)), "pictures", batch_size=4)
    assert pixels.dtype == torch.uint8 and labels.tolist() == list(range(10))
    with torch.no_grad():
        plain = [model.encode_image(images) for images, _ in DataLoader(Pictures(clip_eval(32)), batch_size=4)]
    assert torch.equal(image_features(model, pixels, batch_size=4), torch.cat(plain))


def test_a_decoded_set_has_its_test_images_and_prompts(tmp_path: Path) -> None:
    write(tmp_path, ["EuroSAT"])
    decoded = load_decoded("EuroSAT", tmp_path, 32, batch_size=3, workers=0, verify=False)
    data = datasets.load("EuroSAT", tmp_path, None, clip_eval_pixels(32), verify=False)
    assert decoded.name == "EuroSAT" and decoded.labels.tolist() == data.test.labels
    assert torch.equal(decoded.pixels, torch.stack([image for image, _ in data.test]))
    assert decoded.tokens.shape == (len(data.classnames), len(data.templates), 77)
    last = data.templates[-1].replace("{}", data.classnames[3])
    assert torch.equal(decoded.tokens[3, -1], tokenize(last)[0])
    own = load_decoded("EuroSAT", tmp_path, 32, 3, 0, "seen from above: {}", verify=False).tokens
    assert torch.equal(own, tokenize([f"seen from above: {name}" for name in data.classnames])[:, None])


def test_a_set_of_other_counts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["EuroSAT"])
    with pytest.raises(UserError, match="EuroSAT"):
        load_decoded("EuroSAT", tmp_path, 32, batch_size=3, workers=0)
