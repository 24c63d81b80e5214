"""A small world: made-up data in the true layouts, and configurations that run on it in seconds."""

import json
from pathlib import Path

import pytest

from inflora.main import main
from tests.fake_data import write

CONFIGS = Path(__file__).parents[2] / "inflora" / "configs"
CUT = {
    "backbone": "mini",
    "epochs": 1,
    "init_epoch": 1,
    "rank": 4,
    "num_workers": 0,
    "seed": [0],
    "batch_size": 64,
    "total_sessions": 2,
}
HALVES = {"cifar100": (50, 50), "ImageNet_R": (100, 100)}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("inflora")
    write(root, ["CIFAR100", "ImageNetR"])
    return root


@pytest.fixture
def configured(world, tmp_path):
    """Write a published configuration, cut to two tasks and one epoch, and give the command line that runs it."""

    def command(name, **changes):
        content = json.loads((CONFIGS / f"{name}.json").read_text())
        first, rest = HALVES[content["dataset"]]
        folder = {"cifar100": "", "ImageNet_R": "imagenet-r"}[content["dataset"]]
        content |= CUT | {"init_cls": first, "increment": rest, "data_path": str(world / folder)} | changes
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return ["--config", str(path), "--device", "cpu", "--no-verify", "--save", str(tmp_path / "logs")]

    return command


@pytest.fixture
def run(configured, tmp_path):
    """Run a cut configuration; gives the run's folder of seed 0."""

    def finished(name, *flags, **changes):
        main([*configured(name, **changes), *flags])
        return next(path.parent for path in sorted(tmp_path.rglob("record.jsonl")) if path.parent.name == "0")

    return finished
