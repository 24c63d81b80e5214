"""Every way from a name or a file to a CLIP, and the one sentence for each that fails."""

import copy
import hashlib
import os
import urllib.error

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from common.clip import build_model, load
from common.clip.model import CLIP, LayerNorm
from common.clip.pretrained import SIZE_KEYS, available_models, find_weights, load_state_dict
from common.clip.tokenizer import tokenize
from common.errors import UserError
from common.mini import CLIP_FILE
from tests.clip_archive import save_archive
from tests.golden_files import Golden

MODELS = ("vit_tiny", "vit_2heads", "rn_tiny")


def golden_weights(name):
    """The fixture's weights in float32 (stored as float16: exact)."""
    weights = Golden(f"clip/{name}").under("w/")
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def fine_tuned(name):
    """Weights that float16 cannot hold: the golden ones, each value moved by a part in 10^4."""
    generator = torch.Generator().manual_seed(0)
    weights = golden_weights(name)
    for value in weights.values():
        if value.is_floating_point():
            value.mul_(1 + 1e-4 * torch.rand(value.shape, generator=generator))
    return weights


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key].to(value.dtype), value), key


@pytest.mark.parametrize("name", MODELS)
def test_archive_of_openai(name, tmp_path):
    weights, path = golden_weights(name), tmp_path / "model.pt"
    save_archive(weights, path)
    read = load_state_dict(path)
    assert read["text_projection"].dtype == torch.float16
    assert_same(read, weights)
    model, _, _ = load(path)
    assert_same(model.state_dict(), weights)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


SAVED = {
    "plain": lambda weights, path: torch.save(weights, path),
    "wrapped": lambda weights, path: torch.save({"state_dict": weights, "epoch": 3}, path),
    "before zip": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "data parallel": lambda weights, path: torch.save({"state_dict": prefixed("module.", weights)}, path),
    "other prefix": lambda weights, path: torch.save(prefixed("model.clip.", weights), path),
    "with sizes": lambda weights, path: torch.save(weights | dict.fromkeys(SIZE_KEYS, torch.tensor(1)), path),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("name", ["vit_tiny", "rn_tiny"])
def test_fine_tuned_checkpoints_arrive_bit_for_bit(kind, name, tmp_path):
    """Float32 in the file is float32 in the model: nothing passes through half precision."""
    weights, path = fine_tuned(name), tmp_path / "model.pth"
    assert not torch.equal(weights["text_projection"].half().float(), weights["text_projection"])
    SAVED[kind](weights, path)
    assert_same(load_state_dict(path), weights)
    assert_same(load(path)[0].state_dict(), weights)


def test_safetensors(tmp_path):
    weights, path = fine_tuned("vit_tiny"), tmp_path / "model.safetensors"
    save_file(weights, path)
    assert_same(load(path)[0].state_dict(), weights)


def test_a_prefix_before_some_keys_only_stays(tmp_path):
    """A checkpoint with parts beside the CLIP is not silently cut down to it."""
    weights = prefixed("clip.", golden_weights("vit_tiny")) | {"head.weight": torch.zeros(2)}
    torch.save(weights, tmp_path / "model.pth")
    assert load_state_dict(tmp_path / "model.pth").keys() == weights.keys()


def test_extra_modules_of_a_paper_are_kept_by_load_state_dict(tmp_path):
    extra = {"visual.transformer.resblocks.0.adaptmlp_list.0.down_proj.weight": torch.ones(2, 2)}
    torch.save({"state_dict": golden_weights("vit_tiny") | extra}, tmp_path / "model.pth")
    assert extra.keys() <= load_state_dict(tmp_path / "model.pth").keys()


def test_transforms_have_the_size_of_the_model(tmp_path):
    torch.save(golden_weights("vit_2heads"), tmp_path / "model.pth")
    model, train, evaluate = load(tmp_path / "model.pth")
    picture = Image.new("RGB", (50, 40))
    assert train(picture).shape == evaluate(picture).shape == (3, 24, 24)
    assert model.encode_image(evaluate(picture)[None]).shape == (1, 24)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name, tmp_path):
    """OpenAI's rule: convolutions, linear layers, attention and projections in half, all else in float32."""
    weights = golden_weights(name)
    torch.save(weights, tmp_path / "model.pth")
    model, _, _ = load(tmp_path / "model.pth", precision="fp16")
    kept = {"logit_scale", "positional_embedding", "visual.class_embedding", "visual.positional_embedding",
            "visual.attnpool.positional_embedding"}
    for path, module in model.named_modules():
        if isinstance(module, LayerNorm | nn.BatchNorm2d | nn.Embedding):
            kept |= {f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)}
    for key, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if key in kept else torch.float16), key
    assert_same(model.state_dict(), weights)  # these weights are exact in half

    golden = Golden(f"clip/{name}")
    reference = load(tmp_path / "model.pth")[0]
    for encode, inputs in (("encode_image", golden["image"]), ("encode_text", golden["tokens"])):
        features = getattr(model, encode)(inputs)
        expected = getattr(reference, encode)(inputs)
        assert features.dtype == torch.float16
        # eleven bits a rounding, tens of roundings deep
        assert (features.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_unknown_precision():
    with pytest.raises(ValueError, match="fp32"):
        load("ViT-B/16", precision="half")


def test_device(tmp_path):
    torch.save(golden_weights("vit_tiny"), tmp_path / "model.pth")
    assert load(tmp_path / "model.pth", device="meta")[0].logit_scale.device.type == "meta"


def test_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean ViT-B/16\?") as caught:
        load("ViT-B-16")
    assert all(name in str(caught.value) for name in available_models())


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt"):
        load(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="nowhere.pt does not exist"):
        load_state_dict(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="is a folder. Give the file of weights in it"):
        load(tmp_path)


def broken_bytes(tmp_path):
    """Name -> content of files that are no whole checkpoints."""
    weights = golden_weights("vit_tiny")
    for name, save in (("archive", save_archive), ("plain", SAVED["plain"]), ("old", SAVED["before zip"])):
        save(weights, tmp_path / name)
    whole = {name: (tmp_path / name).read_bytes() for name in ("archive", "plain", "old")}
    cut = {f"half of {name}": data[: len(data) // 2] for name, data in whole.items()}
    short = {f"start of {name}": data[:60] for name, data in whole.items()}
    middle = whole["plain"][:2000] + b"\x55" * 500 + whole["plain"][2500:]
    return cut | short | {"damaged": middle}


def test_broken_files(tmp_path):
    for name, content in broken_bytes(tmp_path).items():
        path = tmp_path / "broken.pt"
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable checkpoint: it is cut or damaged") as caught:
            load(path)
        assert str(path) in str(caught.value) and f"{len(content):,} bytes" in str(caught.value), name


def test_broken_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(golden_weights("vit_tiny"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut or damaged"):
        load(path)


def test_pickled_model_is_not_executed(tmp_path):
    torch.save(build_model(golden_weights("vit_tiny")), tmp_path / "model.pt")
    with pytest.raises(UserError, match="pickled Python objects.*weights alone"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": 1}}, {"epoch": 3}])
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        load(tmp_path / "model.pt")


def changed(**changes):
    weights = golden_weights("vit_tiny")
    for key, value in changes.items():
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (changed(**{"visual.ln_post.weight": None}), "1 keys missing: visual.ln_post.weight"),
        (changed(extra=torch.zeros(2)), "1 keys unexpected: extra"),
        (changed(**{"visual.ln_pre.bias": torch.zeros(3)}), "1 keys of another shape: visual.ln_pre.bias"),
        (changed(text_projection=None), "key 'text_projection' is missing"),
        ({"encoder.0.weight": torch.zeros(2, 2)}, "is not a CLIP"),
        (changed(text_projection=torch.zeros(3)), "its shapes do not fit"),
    ],
)
def test_wrong_keys_are_named(weights, named, tmp_path):
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model.pth")
    assert named in str(caught.value) and "model.pth" in str(caught.value)


def test_many_wrong_keys_are_counted(tmp_path):
    weights = {key: value for key, value in golden_weights("vit_tiny").items() if ".ln_" not in key}
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"20 keys missing: .*, \.\.\.\.$"):
        load(tmp_path / "model.pth")


def offline(monkeypatch):
    """A proxy that nobody answers at: every download fails at once."""
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")


PUBLISHED_FILES = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_offline_download_says_where_to_put_the_file(name, tmp_path, monkeypatch):
    offline(monkeypatch)
    checksum, file = PUBLISHED_FILES[name].split("/")
    with pytest.raises(UserError) as caught:
        find_weights(name, cache_dir=tmp_path / "cache")
    told = str(caught.value)
    assert f"https://openaipublic.azureedge.net/clip/models/{checksum}/{file}" in told
    assert str(tmp_path / "cache" / file) in told and f"SHA-256 {checksum}" in told
    assert isinstance(caught.value.__cause__, urllib.error.URLError)
    assert os.listdir(tmp_path / "cache") == []  # nothing half-written


def test_a_cut_file_in_the_cache_is_not_used(tmp_path, monkeypatch):
    offline(monkeypatch)
    (tmp_path / "ViT-B-16.pt").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="downloading"), pytest.raises(UserError, match="another SHA-256"):
        load("ViT-B/16", cache_dir=tmp_path)
    assert (tmp_path / "ViT-B-16.pt").read_bytes() == b"half a file"


def publish(weights, folder, monkeypatch, checksum=None):
    """An archive under a file: URL as OpenAI's are under https:, the SHA-256 in the path for open_clip."""
    save_archive(weights, folder / "archive")
    content = (folder / "archive").read_bytes()
    source = folder / "openaipublic" / (checksum or hashlib.sha256(content).hexdigest()) / "ViT-B-32.pt"
    source.parent.mkdir(parents=True)
    source.write_bytes(content)
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_url", lambda model, tag: source.as_uri())
    return source


def test_download_fills_the_cache_and_is_not_repeated(tmp_path, monkeypatch):
    weights = golden_weights("vit_tiny")
    source = publish(weights, tmp_path, monkeypatch)
    assert_same(load("ViT-B/32", cache_dir=tmp_path / "cache")[0].state_dict(), weights)
    assert os.listdir(tmp_path / "cache") == ["ViT-B-32.pt"]
    source.unlink()
    assert_same(load("ViT-B/32", cache_dir=tmp_path / "cache")[0].state_dict(), weights)


def test_download_replaces_a_cut_file(tmp_path, monkeypatch):
    source = publish(golden_weights("vit_tiny"), tmp_path, monkeypatch)
    (tmp_path / "ViT-B-32.pt").write_bytes(source.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="downloading it again"):
        path = find_weights("ViT-B/32", cache_dir=tmp_path)
    assert path.read_bytes() == source.read_bytes()


def test_download_of_another_content_is_refused(tmp_path, monkeypatch):
    publish(golden_weights("vit_tiny"), tmp_path, monkeypatch, checksum="0" * 64)
    with pytest.raises(UserError, match="SHA256.*Get that file elsewhere"):
        find_weights("ViT-B/32", cache_dir=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_default_cache_is_openais(tmp_path, monkeypatch):
    offline(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load("RN50")
    assert str(tmp_path / ".cache/clip/RN50.pt") in str(caught.value)


def test_the_miniature():
    model, train, evaluate = load("mini")
    assert_same(model.state_dict(), load_state_dict(CLIP_FILE))
    picture = Image.new("RGB", (40, 50))
    for transform in (train, evaluate):
        assert model.encode_image(transform(picture)[None]).isfinite().all()
    assert model.encode_text(tokenize("a photo of a cat.")).isfinite().all()


def test_loading_does_not_change_the_dict():
    weights = golden_weights("rn_tiny")
    before = copy.deepcopy(weights)
    model = build_model(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(weights, before)
    assert isinstance(model, CLIP)
