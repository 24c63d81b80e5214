"""From each published form of a checkpoint to timm's ViT, and the message for each file that is not one.

Full-size files hold one random number a key, spread over its shape: every key and shape is there, in kilobytes.
"""

import os
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from timm import create_model, get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer

from common import clip, vit
from common.clip.model import GELU, QUICKGELU
from common.command_line import Parsed
from common.errors import UserError
from common.mini import CLIP_FILE, VIT_FILE
from tests.clip_tower import clip_and_tower
from tests.common.clip.test_pretrained import golden_weights, publish

HEADS = {"head.weight": (21843, 768), "head.bias": (21843,)}
PROJECTION = {"head.mlp.0.weight": (2048, 768), "head.last_layer.weight_g": (8192, 1)}


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=0)
    return {key: value.shape for key, value in model.state_dict().items()}


def spread(shapes, seed=0):
    """A tensor a key: one random number, seen in the whole shape."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(1, generator=generator).expand(tuple(shape)) for key, shape in shapes.items()}


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def ibot21k(weights):
    """iBOT's full checkpoint: student under DistributedDataParallel, teacher, optimiser, options."""
    head = spread(PROJECTION)
    student = prefixed("module.backbone.", weights) | {"module.backbone.masked_embed": torch.zeros(1, 768)}
    teacher = prefixed("backbone.", weights) | head
    return {"student": student, "teacher": teacher, "epoch": 80, "args": Parsed(arch="vit_base", lr=1e-3)}


def moco1k(weights):
    """MoCo v3's release: both encoders and the predictor under DistributedDataParallel."""
    other = {key: value + 1 for key, value in spread({"cls_token": (1, 1, 768)}).items()}
    state = prefixed("module.base_encoder.", weights | spread(PROJECTION))
    state |= prefixed("module.momentum_encoder.", other) | prefixed("module.predictor.", spread(PROJECTION))
    return {"arch": "vit_base", "epoch": 300, "state_dict": state}


FORMS = {
    "sup21k": ("vit_base_patch16_224_augreg_in21k.bin", lambda weights: weights | spread(HEADS)),
    "sup1k": ("vit_base_patch16_224_augreg2_in21k_ft_in1k.bin", lambda weights: weights | spread(HEADS)),
    "ibot1k": ("checkpoint_teacher.pth", lambda weights: {"state_dict": weights | spread(PROJECTION)}),
    "ibot21k": ("checkpoint.pth", ibot21k),
    "dino1k": ("dino_vitbase16_pretrain.pth", lambda weights: weights),
    "moco1k": ("vit-b-300ep.pth.tar", moco1k),
}
RESAVED = [
    ("ibot21k", "checkpoint.pth", lambda weights: {"teacher": prefixed("module.backbone.", weights)}),
    ("moco1k", "mocov3-vit-base-300ep.pth", lambda weights: {"model": weights | spread(PROJECTION)}),
]


def test_every_published_form_is_covered():
    assert FORMS.keys() == vit.PUBLISHED.keys() - {"clip-vit-b16"}


@pytest.mark.parametrize("name, file, form", [(name, *form) for name, form in FORMS.items()] + RESAVED)
def test_published_checkpoint(name, file, form, shapes, tmp_path):
    weights = spread(shapes, seed=1)
    torch.save(form(weights), tmp_path / file)
    loaded = vit.load(name, tmp_path)
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == weights.keys()
    for key, value in weights.items():
        assert state[key].is_contiguous() and torch.equal(state[key], value), key


@pytest.fixture(scope="module")
def tiny():
    """A tiny model and weights for it that no initialisation gave."""
    generator = torch.Generator().manual_seed(2)
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    weights = {key: torch.randn(value.shape, generator=generator) for key, value in model.state_dict().items()}
    return model, weights


@pytest.mark.parametrize("name", list(FORMS))
def test_random_weights_arrive_in_the_right_place(name, tiny, tmp_path):
    """The model filled from a published form computes what timm computes with the same weights."""
    model, weights = tiny
    torch.save(FORMS[name][1](weights), tmp_path / "file.pth")
    found = vit.backbone_weights(tmp_path / "file.pth")
    with torch.device("meta"):
        filled = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    vit.fill(filled, found, name)
    model.load_state_dict(weights)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(filled(images), model.eval()(images), rtol=0, atol=0)


WRAPPERS = [(), ("state_dict",), ("model",), ("teacher",), ("model_state_dict",), ("model", "state_dict")]
PREFIXES = ["", "module.", "backbone.", "model.", "encoder.", "module.base_encoder.", "module.backbone.", "visual."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_and_prefixes_of_a_path(wrapper, prefix, tiny, tmp_path):
    weights = tiny[1]
    content = prefixed(prefix, weights) | {f"{prefix}head.weight": torch.zeros(3, 12), "head.bias": torch.zeros(3)}
    for entry in reversed(wrapper):
        content = {"epoch": 3, "student": {"a": torch.zeros(1)}, entry: content}
    torch.save(content, tmp_path / "mine.pth")
    found = vit.backbone_weights(tmp_path / "mine.pth")
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def test_two_networks_in_a_file_are_no_guess(tiny, tmp_path):
    """The momentum encoder of MoCo is left out; of any other two neither is taken."""
    weights = tiny[1]
    other = {key: value + 1 for key, value in weights.items()}
    torch.save(prefixed("module.base_encoder.", weights) | prefixed("module.momentum_encoder.", other), tmp_path / "a.pth")
    assert torch.equal(vit.backbone_weights(tmp_path / "a.pth")["cls_token"], weights["cls_token"])
    torch.save(prefixed("first.", weights) | prefixed("second.", other), tmp_path / "b.pth")
    assert "cls_token" not in vit.backbone_weights(tmp_path / "b.pth")


def test_half_precision_safetensors_become_float32(tiny, tmp_path):
    _, weights = tiny
    halves = {key: value.half() for key, value in weights.items()}
    save_file(halves | {"head.weight": torch.zeros(5, 12)}, tmp_path / "model.safetensors")
    found = vit.backbone_weights(tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    state = vit.fill(model, found, "file").state_dict()
    for key, value in halves.items():
        assert torch.equal(state[key], value.float()), key


def test_a_path_takes_the_place_of_a_name(shapes, tmp_path):
    weights = spread(shapes)
    torch.save(weights, tmp_path / "mine.pth")
    assert torch.equal(vit.load(tmp_path / "mine.pth").norm.weight, weights["norm.weight"])


def test_miniature():
    model = vit.load("mini")
    expected = VisionTransformer(**vit.MINI_SIZES, num_classes=0)
    expected.load_state_dict(vit.backbone_weights(VIT_FILE))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), expected.eval()(images))


# CLIP's image tower


def assert_tower(tower, model, size, count=2):
    """A ViT's features, by its forward pass and with the last block in part, are those that CLIP projects."""
    model.visual.proj = torch.nn.Parameter(torch.eye(tower.embed_dim))
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4))
    expected = model.encode_image(images)
    assert expected.abs().max() > 0.5
    for features in (tower(images), vit.class_feature(tower, vit.embed(tower, images))):
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert not tower.training and all(parameter.dtype == torch.float32 for parameter in tower.parameters())


@torch.no_grad()
def test_the_miniatures_clip_tower():
    assert vit.find_weights("clip-mini") == CLIP_FILE
    assert_tower(vit.load("clip-mini"), clip.load("mini")[0], 32, count=9)


@torch.no_grad()
def test_clip_tower_of_vit_b16s_sizes():
    model, tower = clip_and_tower(224, 16, 768, 12)
    with torch.device("meta"):
        named = create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0).state_dict()
    assert {k: v.shape for k, v in tower.state_dict().items()} == {k: v.shape for k, v in named.items()}
    assert_tower(tower, model, 224, count=1)


@torch.no_grad()
def test_the_published_clip_is_found_where_clip_finds_it(tmp_path, monkeypatch):
    """In its cache, after its download; a small archive stands for OpenAI's."""
    publish(golden_weights("vit_tiny"), tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    tower, (model, _, _) = vit.load("clip-vit-b16", tmp_path / "nowhere"), clip.load("ViT-B/16")
    assert vit.find_weights("clip-vit-b16").parent == tmp_path / ".cache/clip"
    assert_tower(tower, model, model.config.image_resolution)


CLIP_FORMS = {
    "plain": lambda weights: weights,
    "wrapped": lambda weights: {"state_dict": prefixed("module.", weights), "activation": QUICKGELU},
    "with GELU": lambda weights: {"state_dict": weights, "activation": GELU},
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*does not tell for certain which activation")
@pytest.mark.parametrize("form", CLIP_FORMS)
def test_a_file_of_ones_own_may_be_a_clips(form, tmp_path):
    torch.save(CLIP_FORMS[form](golden_weights("vit_tiny")), tmp_path / "mine.pt")
    model = clip.load(tmp_path / "mine.pt")[0]
    assert_tower(vit.load(tmp_path / "mine.pt"), model, model.config.image_resolution)


def test_a_clip_in_the_place_of_another_backbone_is_refused(tmp_path):
    torch.save(golden_weights("vit_tiny"), tmp_path / vit.PUBLISHED["sup21k"].files[0])
    with pytest.raises(UserError, match="does not fit the ViT: it looks like a CLIP with a ViT"):
        vit.load("sup21k", tmp_path)


TIMM_NAMES = {
    "sup21k": "vit_base_patch16_224.augreg_in21k",
    "sup1k": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "dino1k": "vit_base_patch16_224.dino",
    "clip-vit-b16": "vit_base_patch16_clip_quickgelu_224.openai",
}


@pytest.mark.parametrize("name", vit.available())
def test_normalisation_of_the_pre_training(name):
    """As timm has it; the miniature's networks are trained as CLIP, iBOT and MoCo as ImageNet's networks usually are."""
    like = "clip-vit-b16" if "mini" in name else name if name in TIMM_NAMES else "dino1k"
    told = get_pretrained_cfg(TIMM_NAMES[like])
    assert vit.normalisation(name) == (told.mean, told.std)


def test_a_file_has_no_normalisation():
    with pytest.raises(UserError, match="mine.pth: a file does not tell .* Give a name: sup21k, .*clip-mini"):
        vit.normalisation("mine.pth")


def test_hub_cache_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--timm--vit_base_patch16_224.augreg_in21k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    file = repository / "snapshots" / "0123" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert vit.find_weights("sup21k", tmp_path) == file
    with pytest.raises(UserError, match=r"download failed.*put it at .*dino_vitbase16_pretrain\.pth"):
        vit.find_weights("dino1k", tmp_path)


def test_a_hub_out_of_reach_is_asked_once(tmp_path):
    """The client by itself tries for 23 seconds."""
    code = "import time\nfrom common import vit\nfrom common.errors import UserError\nstarted = time.monotonic()\n"
    code += "try:\n    vit.find_weights('sup21k', '.')\nexcept UserError as error:\n    print(error)\n"
    code += "print(time.monotonic() - started)"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | nowhere, capture_output=True, text=True)
    told, seconds = done.stdout.splitlines()
    assert "the download failed" in told and float(seconds) < 10


PLACES = [
    "vit_base_patch16_224_augreg_in21k.bin",
    "vit_base_patch16_224_augreg_in21k.safetensors",
    "vit_base_patch16_224.augreg_in21k.safetensors",
    "vit_base_patch16_224.augreg_in21k/model.safetensors",
]


@pytest.mark.parametrize("place", PLACES)
def test_names_of_timms_file(place, tmp_path):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    assert vit.find_weights("sup21k", tmp_path) == tmp_path / place


@pytest.mark.parametrize("name", ["ibot1k", "ibot21k", "moco1k"])
def test_files_that_timm_does_not_host(name, tmp_path):
    with pytest.raises(UserError, match=f"Get .* and put it at {tmp_path / vit.PUBLISHED[name].files[0]}"):
        vit.load(name, tmp_path)


def test_unknown_name():
    with pytest.raises(UserError, match="neither a file nor a known name. Did you mean sup21k"):
        vit.load("sup21")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_large_patch16_224", "looks like a ViT-L/16, not a ViT-B/16"),
        ("vit_small_patch32_224", "looks like a ViT-S/32, not a ViT-B/16"),
        ("resnet18", "looks like a ResNet, not a ViT-B/16"),
    ],
)
def test_architecture_of_another_network_is_named(name, told, tmp_path):
    with torch.device("meta"):
        model = create_model(name)
    torch.save(spread({key: value.shape for key, value in model.state_dict().items() if value.ndim}), tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"other.pth does not fit the ViT: it {told}"):
        vit.load(tmp_path / "other.pth")


def without(weights, *keys):
    return {key: value for key, value in weights.items() if key not in keys}


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda weights: without(weights, "norm.weight", "norm.bias"), "2 keys missing: norm.bias, norm.weight"),
        (lambda weights: weights | {"fc_norm.weight": torch.ones(768)}, "1 keys unexpected: fc_norm.weight"),
        (
            lambda weights: weights | {"pos_embed": torch.ones(1, 50, 768)},
            r"of another shape: pos_embed \(1, 50, 768\)",
        ),
        (lambda weights: prefixed("a.", weights) | prefixed("b.", weights), "150 keys missing.*300 keys unexpected"),
        (lambda weights: {"optimizer": weights}, "holds no state dict, but entries that are no tensors, optimizer"),
        (lambda weights: [1], "holds no state dict, but a list"),
    ],
)
def test_wrong_file_says_which_keys(change, told, shapes, tmp_path):
    torch.save(change(spread(shapes)), tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=told):
        vit.load(tmp_path / "wrong.pth")


def test_checkpoint_of_another_method(shapes, tmp_path):
    torch.save({"student": spread(shapes)}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="entries that are no tensors, student"):
        vit.load("ibot21k", tmp_path)


@pytest.mark.parametrize("file", ["cut.pth", "cut.safetensors"])
def test_cut_file(file, tmp_path):
    (tmp_path / file).write_bytes(b"PK\x03\x04 not all of it")
    with pytest.raises(UserError, match="checkpoint"):
        vit.load(tmp_path / file)
