"""A small world at the paper's scale: made-up data in the true layouts, tiny CLIP archives of both kinds of tower."""

from pathlib import Path

import pytest
import torch
import yaml

from alta.main import main
from common.clip.model import CLIP, CLIPConfig
from tests.alta.whole import make_place
from tests.clip_archive import save_archive
from tests.fake_data import write

CONFIGS = Path(__file__).parents[2] / "alta" / "configs"
TEXT = (77, 49408, 64, 1, 1)
CLIPS = {"ViT": CLIPConfig(32, 32, 1, 64, 16, *TEXT), "RN": CLIPConfig(32, 64, (1, 1, 1, 1), 4, None, *TEXT)}
TASKS = {"cifar10": (5, 2), "cifar100": (2, 50), "tiny": (2, 100)}  # cut: tasks, classes a task
CUT = {"OPTIM": {"MAX_EPOCH": 2}, "train": {"batch_size": 64}, "eval": {"test_epochs": 1, "batch_size": 100}}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("alta")
    write(root / "data", ["CIFAR10", "CIFAR100", "TinyImageNet"])
    before = torch.get_rng_state()
    torch.manual_seed(0)
    for name, sizes in CLIPS.items():
        save_archive(CLIP(sizes).state_dict(), root / f"{name}.pt")
    torch.set_rng_state(before)
    return root


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Images that tell which they are, and a CLIP that tells them apart, for whole runs."""
    return make_place(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def configured(world, tmp_path):
    """Write a configuration, cut to few steps, and give the flags that run it; `changes` by section."""

    def flags(name, tower="ViT", **changes):
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        tasks, size = TASKS[name.split("_")[1]]
        size, tasks = (tasks * size, 1) if name.startswith("joint") else (size, tasks)
        content["dataset"] |= {"n_tasks": tasks, "n_classes_per_task": size, "num_workers": 0}
        for section, values in [*CUT.items(), *changes.items()]:
            content[section] |= values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        data = world / "data"
        folders = ["--cifar10_dir", str(data), "--cifar100_dir", str(data)]
        folders += ["--tinyimagenet_dir", str(data / "tiny-imagenet-200")]
        run = ["--device", "cpu", "--threads", "1", "--no-verify", "--save", str(tmp_path / "run")]
        return ["--config-file", str(path), "--model", str(world / f"{tower}.pt"), *folders, *run]

    return flags


@pytest.fixture
def run(configured, tmp_path):
    """Run a cut configuration; gives the run's folder."""

    def finished(name, *words, visual="ViT-B/16", **changes):
        tower = "RN" if visual.startswith("RN") else "ViT"
        main([*configured(name, tower, **changes), "--visual", visual, *words])
        return tmp_path / "run"

    return finished
