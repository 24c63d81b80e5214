"""Transforms, folders and the towers that are built rather than downloaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alta.data import DATASETS, load_clip, transforms
from alta.options import DataSection, Options, data_folder, method_label, parse, protocols, scenario
from common.datasets.transforms import CLIP_MEAN, CLIP_STD, clip_eval
from common.errors import UserError
from common.incremental.sets import find
from common.mini import resnet

STATISTICS = {  # upstream datasets/seq_*.py
    "seq-cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
    "seq-cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "seq-tinyimagenet": ((0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)),
}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("clip_norm", [False, True])
def test_normalised_by_the_data_sets_statistics_or_clips(name, clip_norm):
    image = Image.new("RGB", (32, 32), (10, 130, 250))
    mean, std = (CLIP_MEAN, CLIP_STD) if clip_norm else STATISTICS[name]
    expected = (torch.tensor([10, 130, 250]) / 255 - torch.tensor(mean)) / torch.tensor(std)
    for transform in transforms(name, 48, clip_norm):
        pixels = transform(image)
        assert pixels.shape == (3, 48, 48)
        assert torch.allclose(pixels, expected[:, None, None].expand(3, 48, 48), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mirrored"), [("seq-cifar10", True), ("seq-cifar100", False), ("seq-tinyimagenet", True)]
)
def test_who_is_mirrored_and_how_images_are_cut(name, mirrored):
    """A ramp from left to right: rising where it is not mirrored; crops of 8 to 100 % of the area, any place."""
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))
    train, test = transforms(name, 32, clip_norm=False)
    torch.manual_seed(0)
    rows = [train(Image.fromarray(ramp))[0].mean(dim=0) for _ in range(60)]
    rising = [float(row[-1] - row[0]) > 0 for row in rows]
    assert (0.3 < sum(rising) / 60 < 0.7) if mirrored else all(rising)
    spans = torch.tensor([abs(float(row[-1] - row[0])) for row in rows]) * STATISTICS[name][1][0]
    assert spans.min() < 0.35 and spans.max() > 0.8  # of the ramp's whole width
    whole = test(Image.fromarray(ramp))
    assert torch.equal(whole, test(Image.fromarray(ramp))) and whole.shape == (3, 32, 32)
    resized = Image.fromarray(np.ascontiguousarray(ramp)).resize((32, 32), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(part)[:, None, None] for part in STATISTICS[name])
    assert torch.allclose(whole * std + mean, torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255, atol=1e-6)


def test_common_ground_has_clips_transforms():
    """Training images are those of --clip_norm, test images are CLIP's."""
    pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    train, test = transforms("seq-cifar100", 32, clip_norm=False, common=True)
    assert torch.equal(test(image), clip_eval(32)(image))
    torch.manual_seed(0)
    augmented = train(image)
    torch.manual_seed(0)
    assert torch.equal(augmented, transforms("seq-cifar100", 32, clip_norm=True)[0](image))


@pytest.mark.parametrize(("name", "size"), [("cifar100", 10), ("imagenet_r", 20), ("cub200", 20)])
def test_common_ground_is_one_protocol_whatever_the_buffer(name, size):
    words = ["--config-file", "alta/configs/il_cifar100.yaml", f"dataset.name=seq-{name}"]
    words += [f"dataset.n_classes_per_task={size}", "--protocol", "common", "--seed", "1"]
    for flags, label in (([], "ALTA"), (["--buffer_size", "500"], "ALTA, buffer of 500")):
        options = parse([*words, *flags])
        assert protocols(options) == {"class-il": f"common-{name}-10x{size}"} and method_label(options) == label
    at_once = parse([*words, "dataset.n_tasks=1", f"dataset.n_classes_per_task={10 * size}"])
    assert protocols(at_once) == {"class-il": f"common-{name}"} and method_label(at_once) == "ALTA, joint"
    assert list(scenario(options).class_order) == np.random.RandomState(1).permutation(10 * size).tolist()
    assert list(scenario(parse(words[:4])).class_order) == list(range(10 * size))
    for word, message in (("transforms=null", "give transforms=common"), ("seen_only=false", "give --seen_only")):
        with pytest.raises(UserError, match=f"^protocol common: {message}"):
            parse([*words, word])


@pytest.mark.parametrize("folder", ["/data/tiny-imagenet-200", "/data"])
def test_tinyimagenets_folder_may_be_named_itself(folder):
    options = Options(tinyimagenet_dir=folder, cifar100_dir="/c", dataset=DataSection("seq-tinyimagenet"))
    data = find("seq-tinyimagenet", data_folder(options))
    assert (data.reader, data.root) == ("TinyImageNet", Path("/data"))
    options = replace(options, dataset=DataSection("seq-cifar100"))
    data = find("seq-cifar100", data_folder(options))
    assert (data.reader, data.root) == ("CIFAR100", Path("/c"))


def test_the_miniatures_resnet_is_the_same_each_time_and_draws_nothing(monkeypatch):
    monkeypatch.setattr(resnet, "IMAGES", 600)
    torch.manual_seed(7)
    first, after = load_clip("mini-rn", None, "fp32", torch.device("cpu")), torch.rand(1)
    torch.manual_seed(7)
    second = load_clip("mini-rn", None, "fp16", torch.device("cpu"))
    assert torch.equal(after, torch.rand(1))
    assert second.visual.conv1.weight.dtype == torch.float16 and second.visual.bn1.weight.dtype == torch.float32
    assert torch.equal(first.visual.conv1.weight.half(), second.visual.conv1.weight)
    assert torch.equal(first.visual.attnpool.c_proj.weight.half(), second.visual.attnpool.c_proj.weight)
    text = load_clip("mini", None, "fp32", torch.device("cpu"))
    assert torch.equal(first.token_embedding.weight, text.token_embedding.weight)
