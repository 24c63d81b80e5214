"""A small world at the paper's scale: made-up data in the true layouts, captions, a tiny CLIP archive, a cache."""

from pathlib import Path

import pytest
import torch

from common.clip.model import CLIP, CLIPConfig
from tests.clip_archive import save_archive
from tests.fake_data import gathered_captions, write
from tests.zscl.mtil_world import World, write_world

TASKS = ["MNIST", "EuroSAT", "DTD"]
SEQUENCE = ["--train-dataset", ",".join(TASKS), "--eval-datasets", ",".join(TASKS)]
LENGTH = ["--ls", "0.2", "--batch-size", "8", "--warmup_length", "2", "--lr", "1e-3", "--iterations", "4"]
KD = ["--image_loss", "--text_loss"]
ZSCL = ["--method", "ZSCL", *KD, "--we", "--avg_freq", "2", "--l2", "1"]
ON_CAPTIONS = ["--ref-dataset", "CIFAR10", "--ref-sentences", "conceptual_captions"]
LWF = ["--method", "ZSCL", *KD, "--ref-dataset", "current", "--ref-model", "previous"]


def flags_of(root: Path, cache: Path) -> list[str]:
    data = ["--data-location", str(root / "data"), "--no-verify", "--model", str(root / "ViT-tiny.pt")]
    return [*data, "--device", "cpu", "--threads", "1", "--workers", "0", "--cache-dir", str(cache)]


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write(root / "data", ["MNIST", "EuroSAT", "DTD", "CIFAR10", "ConceptualCaptions"])
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    save_archive(CLIP(CLIPConfig(32, 32, 1, 64, 16, 77, 49408, 64, 1, 1)).state_dict(), root / "ViT-tiny.pt")
    torch.set_rng_state(generator_state)
    return root


@pytest.fixture(scope="session")
def tiny_world(world_folder: Path) -> list[str]:
    """Flags that name the data, the CLIP and the cache of this world."""
    return flags_of(world_folder, world_folder / "cache")


@pytest.fixture(scope="session")
def mtil_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Another small world, whose images have structure."""
    root = tmp_path_factory.mktemp("mtil")
    write_world(root)
    return World(root)


@pytest.fixture(scope="session")
def finished_run(tiny_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one unbroken sequence of ZSCL."""
    from zscl.main import main

    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    main([*SEQUENCE, *LENGTH, *ZSCL, *ON_CAPTIONS, *tiny_world, "--save", str(folder)])
    return folder


@pytest.fixture(scope="session")
def cil_world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name made-up data in the class-incremental layouts and a tiny CLIP."""
    root = tmp_path_factory.mktemp("cil")
    write(root / "data" / "cifar100", ["CIFAR100"])
    write(root / "data" / "tinyimagenet", ["TinyImageNet"])
    gathered_captions(root / "data", 40)
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    save_archive(CLIP(CLIPConfig(32, 32, 1, 64, 8, 77, 49408, 64, 1, 1)).state_dict(), root / "ViT-tiny.pt")
    torch.set_rng_state(generator_state)
    data = [f"dataset_root={root / 'data'}", "no_verify=true"]
    return [*data, f"model_name={root / 'ViT-tiny.pt'}", "device=cpu", "workers=0"]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
