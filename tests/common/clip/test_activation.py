"""Which activation a file of weights is computed with, held against open_clip's own models."""

import json
import warnings

import pytest
import torch
from open_clip.model import CLIP as OpenCLIP
from safetensors.torch import save_file

from common import clip
from common.clip.pretrained import fingerprint, load_state_dict
from common.mini import CLIP_FILE
from common.runs import file_md5
from tests.clip_archive import save_archive
from tests.common.clip.test_transformers_keys import of_transformers

TEXT = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2}


def their_model(quick, width=128):
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": width, "head_width": 80 if width == 1280 else 64, "patch_size": 16}
    model = OpenCLIP(embed_dim=64, vision_cfg=vision, text_cfg=TEXT, quick_gelu=quick).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)  # so that the two activations are far apart
    return model


@pytest.fixture(scope="module")
def models():
    return {"quickgelu": their_model(True), "gelu": their_model(False)}


@torch.no_grad()
def computes(path, models, **options):
    """quickgelu or gelu: whose of open_clip's two models of the same weights the loaded CLIP computes, in both towers."""
    images, tokens = torch.rand(4, 3, 32, 32), torch.randint(1, 90, (4, 12))
    ours = clip.load(path, **options)[0]
    for activation, theirs in models.items():
        features = [
            (ours.encode_image(images), theirs.encode_image(images)),
            (ours.encode_text(tokens), theirs.encode_text(tokens)),
        ]
        if all(torch.allclose(a, b, rtol=0, atol=1e-3) for a, b in features):
            return activation
    return None


def told_by_warning(path, models, **options):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = computes(path, models, **options)
    return found, [str(warning.message) for warning in told if "--activation" in str(warning.message)]


NAMES = {  # of a file and its folder, as open_clip and its hub publish them
    "x/vit_b_16-laion400m_e32-55e67d44.pt": "gelu",
    "x/vit_b_32-quickgelu-laion400m_e32-46683a32.pt": "quickgelu",
    "x/laion2b_s34b_b88k.pt": "gelu",
    "CLIP-ViT-B-16-laion2B-s34B-b88K/open_clip_pytorch_model.bin": "gelu",
    "models--laion--CLIP-ViT-B-16-DataComp.XL-s13B-b90K/snapshots/0123/open_clip_pytorch_model.bin": "gelu",
    "models--apple--DFN2B-CLIP-ViT-B-16/snapshots/0123/open_clip_pytorch_model.bin": "quickgelu",
    "x/b16_400m.pt": "quickgelu",  # MetaCLIP's
    "models--timm--vit_base_patch16_clip_224.openai/snapshots/0123/open_clip_pytorch_model.bin": "quickgelu",
    "x/ViT-B-32-laion400m_e31.pt": "quickgelu",
    "x/ViT-B-16-openai.pt": "quickgelu",
}


@pytest.mark.parametrize("name", NAMES)
def test_published_name_decides(name, models, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    torch.save(models["gelu"].state_dict(), path)
    assert told_by_warning(path, models) == (NAMES[name], [])


UNTOLD = ["mine.pt", "laion400m_e32.pt", "ViT-B-16.pt", "checkpoint-v1.pt", "openai/ViT-B-16-laion400m.pt"]


@pytest.mark.parametrize("name", UNTOLD)
def test_bare_weights_are_quickgelu_with_a_warning_and_the_option_decides(name, models, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save({"state_dict": models["gelu"].state_dict()}, tmp_path / name)
    found, (warning,) = told_by_warning(tmp_path / name, models)
    assert found == "quickgelu" and str(tmp_path / name) in warning and "QuickGELU" in warning
    for activation in ("gelu", "quickgelu"):
        assert told_by_warning(tmp_path / name, models, activation=activation) == (activation, [])


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("2024_01_01-model_ViT-B-16-lr_0.001-b_64", "gelu"),
        ("2024_01_01-model_ViT-B-16-quickgelu-lr_0.001-b_64", "quickgelu"),
        ("ViT-L-14", "gelu"),
        ("my run", "quickgelu"),
    ],
)
def test_training_of_open_clip_names_its_model(name, activation, models, tmp_path):
    weights = {f"module.{key}": value for key, value in models["gelu"].state_dict().items()}
    torch.save({"epoch": 32, "name": name, "state_dict": weights}, tmp_path / "epoch_32.pt")
    found, told = told_by_warning(tmp_path / "epoch_32.pt", models)
    assert found == activation and len(told) == 1


def test_configuration_beside_the_file_decides(models, tmp_path):
    weights = models["gelu"].state_dict()
    for quick, activation in ((True, "quickgelu"), (False, "gelu"), (None, "gelu")):
        content = {"model_cfg": {"embed_dim": 64} | ({} if quick is None else {"quick_gelu": quick})}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
        save_file(weights, tmp_path / "open_clip_model.safetensors")
        assert told_by_warning(tmp_path / "open_clip_model.safetensors", models) == (activation, [])
    save_file(of_transformers(weights), tmp_path / "model.safetensors")
    for tower, activation in (({"hidden_act": "gelu"}, "gelu"), ({}, "quickgelu")):
        content = {"model_type": "clip", "text_config": tower, "vision_config": tower}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert told_by_warning(tmp_path / "model.safetensors", models) == (activation, [])
    (tmp_path / "config.json").write_text("{")
    assert told_by_warning(tmp_path / "model.safetensors", models)[0] == "quickgelu"


def test_archive_of_openai_and_the_miniature_are_quickgelu(models, tmp_path):
    weights = {key: value.half().float() for key, value in models["quickgelu"].state_dict().items()}
    save_archive(weights, tmp_path / "any.pt")
    exact = {name: their_model(name == "quickgelu") for name in models}
    for model in exact.values():
        model.load_state_dict(weights)
    assert told_by_warning(tmp_path / "any.pt", exact) == ("quickgelu", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip.load("mini")[0].activation == "quickgelu"


def test_fingerprint_has_gelu_and_is_the_checksum_otherwise(models, tmp_path):
    """Runs recorded before there was a choice, all of them with QuickGELU, go on."""
    torch.save(models["gelu"].state_dict(), tmp_path / "mine.pt")
    torch.save(models["gelu"].state_dict(), tmp_path / "laion2b_s34b_b88k.pt")
    checksum = file_md5(tmp_path / "mine.pt")
    with pytest.warns(UserWarning, match="--activation"):
        assert fingerprint(tmp_path / "mine.pt") == checksum
    assert fingerprint(tmp_path / "mine.pt", "gelu") == f"{checksum} gelu"
    assert fingerprint(tmp_path / "laion2b_s34b_b88k.pt").endswith(" gelu")
    assert fingerprint("mini") == file_md5(CLIP_FILE)


def test_heads_of_vit_h(tmp_path):
    """16 heads of 80, where all other towers have heads of 64."""
    theirs = their_model(True, width=1280)
    torch.save(theirs.state_dict(), tmp_path / "h.pt")
    assert load_state_dict(tmp_path / "h.pt")["visual.conv1.weight"].shape[0] == 1280
    assert computes(tmp_path / "h.pt", {"quickgelu": theirs}, activation="quickgelu") == "quickgelu"


def test_weights_for_another_tokenizer_are_refused(models, tmp_path):
    weights = models["gelu"].state_dict() | {"token_embedding.weight": torch.zeros(250_000, 64)}
    torch.save(weights, tmp_path / "worldwide.pt")
    with pytest.raises(clip.pretrained.UserError, match="another tokenizer, of 250,000 tokens"):
        clip.load(tmp_path / "worldwide.pt")
