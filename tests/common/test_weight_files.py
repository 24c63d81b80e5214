"""Files that are given as weights and are something else: each has its sentence, whichever program reads it."""

import argparse
import bz2
import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common import clip, vit
from common.clip.model import build_model
from common.errors import UserError
from common.runs import load_tensors
from common.weight_files import read
from moe_adapters.ddas import alexnet_features, build_autoencoders, read_autoencoders
from tests.clip_archive import save_archive
from tests.common.clip.test_pretrained import golden_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def saved(content=WEIGHTS, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(*names, write=lambda name: b"content"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, write(name))
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model/weights.pth"))
    return buffer.getvalue()


def numpy_file(save):
    buffer = io.BytesIO()
    save(buffer, numpy.zeros(3))
    return buffer.getvalue()


class Planted:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


OBJECTS = r"holds pickled Python objects besides tensors \((posix|nt|os).mkdir\), which are not executed"
FOREIGN = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 351\n", "Git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>403</html>", "is a web page"),
    "answer of a store": (b'\xef\xbb\xbf<?xml version="1.0"?><Error>', "is a web page"),
    "text": (b"Entry not found", "is a text of 15 bytes instead of weights: 'Entry not found'"),
    "json": (b'{"error": "Invalid token"}\n', "is a text .*Invalid token"),
    "npy": (numpy_file(numpy.save), "is a NumPy array, the layout of JAX"),
    "npz": (numpy_file(numpy.savez), "holds NumPy arrays, the layout of JAX"),
    "gzip": (gzip.compress(saved()), "is packed with gzip. Unpack it"),
    "bzip2": (bz2.compress(saved()), "is packed with bzip2. Unpack it"),
    "tar": (tarred(), "is a tar archive. Unpack it"),
    "zip": (zipped("clip/model.pt", "clip/README"), "is a zip archive of clip/model.pt, clip/README. Unpack it"),
    "pickle": (pickle.dumps({"a": 1}), "is a Python pickle that torch.save did not write"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\1" * 99, "is an HDF5 file"),
    "unfinished": (bytes(10_000), "begins with zeros: its download was not finished"),
    "picture": (b"\xff\xd8\xff\xe0" + b"\x01\xfe" * 99, "is no file of weights .*begin with ff d8 ff e0"),
    "cut": (saved()[:200], r"cut or damaged \(200 bytes"),
    "objects": (saved({"state_dict": WEIGHTS, "x": Planted()}), OBJECTS),
    "old with objects": (saved({"state_dict": WEIGHTS, "x": Planted()}, _use_new_zipfile_serialization=False), OBJECTS),
}
LOADERS = {
    "clip": clip.load,
    "vit": vit.load,
    "checkpoints": load_tensors,
    "alexnet": alexnet_features,
    "autoencoders": lambda path: read_autoencoders(path, build_autoencoders(2, 4)),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_file_that_is_something_else(kind, loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, told = FOREIGN[kind]
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=told) as caught:
            LOADERS[loader](tmp_path / name)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / name)) and "weights_only" not in message and "\n" not in message
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_folder(loader, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is a folder. Give the file of weights in it, such as model.safetensors"):
        LOADERS[loader](str(tmp_path))


def test_unpacked_archive(tmp_path):
    (tmp_path / "weights.pt").write_bytes(saved())
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:
        archive.extractall(tmp_path / "weights")
    with pytest.raises(UserError, match="weights is a folder. It is what torch.save's zip archive holds, unpacked"):
        read(tmp_path / "weights")


def test_the_name_of_a_file_decides_nothing(tmp_path):
    save_file(WEIGHTS, tmp_path / "written.safetensors")
    written = [(tmp_path / "written.safetensors").read_bytes(), saved(), saved(_use_new_zipfile_serialization=False)]
    for content in written:
        for name in ("weights.bin", "weights.safetensors", "weights"):
            (tmp_path / name).write_bytes(content)
            found = read(tmp_path / name)
            assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


def test_archive_of_torchscript_under_another_name(tmp_path):
    weights = golden_weights("vit_tiny")
    save_archive(weights, tmp_path / "model.safetensors")
    assert torch.equal(read(tmp_path / "model.safetensors")["text_projection"].float(), weights["text_projection"])


def test_options_of_argparse_are_let_through(tmp_path):
    (tmp_path / "a.pt").write_bytes(saved({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=1.0)}))
    assert read(tmp_path / "a.pt")["args"].lr == 1.0


def test_numbers_of_numpy_are_let_through(tmp_path):
    numbers = [numpy.float64(0.5), numpy.float32(2), numpy.int64(3), numpy.bool_(True)]
    for named in (b"numpy._core", b"numpy.core"):  # by numpy 2, and by numpy 1
        (tmp_path / "a.pt").write_bytes(saved({"state_dict": WEIGHTS, "best": numbers}))
        with zipfile.ZipFile(tmp_path / "a.pt") as archive:
            parts = {item.filename: archive.read(item) for item in archive.infolist()}
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content.replace(b"numpy._core", named))
        assert named in (tmp_path / "a.pt").read_bytes() and read(tmp_path / "a.pt")["best"] == numbers


WRONG_NETWORKS = {
    "resnet": ({"module.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "a ResNet"),
    "vit": ({"patch_embed.proj.weight": torch.zeros(1024, 3, 14, 14)}, "a ViT-L/14"),
    "clip": ({"visual.conv1.weight": torch.zeros(768, 3, 32, 32)}, "a CLIP with a ViT-B/32"),
    "transformers": ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(768, 3, 16, 16)}, "a ViT of trans"),
    "swin": ({"layers.0.blocks.0.norm1.weight": torch.zeros(128)}, "a Swin"),
}


@pytest.mark.parametrize("kind", WRONG_NETWORKS)
@pytest.mark.parametrize("loader", ["clip", "vit", "alexnet", "autoencoders"])
def test_weights_of_another_network_are_named(kind, loader, tmp_path):
    weights, told = WRONG_NETWORKS[kind]
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    if loader != kind:
        with pytest.raises(UserError, match=f"other.pth .*looks? like {told}"):
            LOADERS[loader](tmp_path / "other.pth")


def test_alexnet_and_autoencoders_lose_wrappers_and_prefixes(tmp_path):
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = alexnet().state_dict()
    weights = {key: torch.full((1,), 0.5).expand(value.shape) for key, value in shapes.items()}
    torch.save({"model": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "a.pth")
    assert alexnet_features(tmp_path / "a.pth")(torch.ones(1, 3, 224, 224)).shape == (1, 256, 13, 13)
    stored, fresh = build_autoencoders(2, 4), build_autoencoders(2, 4)
    torch.save({"state_dict": stored.state_dict()}, tmp_path / "b.pth")
    read_autoencoders(tmp_path / "b.pth", fresh)
    assert all(torch.equal(a, b) for a, b in zip(stored.parameters(), fresh.parameters()))
    with pytest.raises(UserError, match=r"does not fit 3 autoencoders.*4 keys missing: 2.decoder.0.bias"):
        read_autoencoders(tmp_path / "b.pth", build_autoencoders(3, 4))
    assert isinstance(stored, nn.ModuleList)


def jit_linear(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def holding_itself(path):
    content = {}
    content["model"] = content
    torch.save(content, path)


ODD = {  # what is done to a CLIP's weights, and what is told
    "numbers for names": (lambda weights, path: torch.save({1: torch.zeros(2)}, path), "but keys that are no names, 1. Exp"),
    "itself": (lambda weights, path: holding_itself(path), "but entries that are no tensors, model. Expected"),
    "int8": (
        lambda weights, path: torch.save(weights | {"visual.proj": weights["visual.proj"].to(torch.int8)}, path),
        "1 keys without plain numbers of their kind: visual.proj torch.int8.",
    ),
    "nan": (
        lambda weights, path: torch.save(weights | {"visual.proj": weights["visual.proj"] / 0}, path),
        "1 keys without plain numbers of their kind: visual.proj nan or infinite.",
    ),
    "meta": (
        lambda weights, path: torch.save(weights | {"visual.proj": weights["visual.proj"].to("meta")}, path),
        "1 keys without plain numbers of their kind: visual.proj meta.",
    ),
    "sparse": (
        lambda weights, path: torch.save(weights | {"visual.proj": weights["visual.proj"].to_sparse()}, path),
        "1 keys without plain numbers of their kind: visual.proj torch.sparse_coo.",
    ),
    "archive of another model": (
        lambda weights, path: jit_linear(path),
        "is not a CLIP but another model, whose keys are weight, bias.",
    ),
    "link": (lambda weights, path: path.symlink_to("gone.pt"), "is a link to gone.pt, which does not exist. Repair"),
}


@pytest.mark.parametrize("kind", ODD)
def test_weights_that_no_model_can_take(kind, tmp_path):
    write, told = ODD[kind]
    write(golden_weights("vit_tiny"), tmp_path / "odd.pt")
    with pytest.raises(UserError) as caught:
        clip.load(tmp_path / "odd.pt")
    message = str(caught.value)
    assert f"{tmp_path / 'odd.pt'} " in message and told in message and "\n" not in message


def test_average_of_torch(tmp_path):
    weights = golden_weights("vit_tiny")
    averaged = torch.optim.swa_utils.AveragedModel(build_model(weights)).state_dict()
    assert "n_averaged" in averaged
    torch.save({"state_dict": averaged}, tmp_path / "averaged.pt")
    found = clip.load(tmp_path / "averaged.pt")[0].state_dict()
    assert all(torch.equal(found[key], weights[key].float()) for key in found)
