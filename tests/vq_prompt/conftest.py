"""A small world: made-up data in the true layouts, the scripts' own command lines, and what cuts them to seconds."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.fake_data import imagenet_r_lists, write
from vq_prompt.run import main

EXPERIMENTS = Path(__file__).parents[2] / "vq_prompt" / "experiments"
CUT = ["--device", "cpu", "--pretrained_weight", "mini", "--no-verify", "--crct_epochs", "1", "--workers", "0"]
HALVES = {"CIFAR100": 50, "ImageNet_R": 100, "CUB200": 100}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("vq_prompt")
    write(root, ["CIFAR100", "ImageNetR", "CUB200"])
    imagenet_r_lists(root)
    return root


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """The command lines that a script hands to python, taken instead of runs."""
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\037" "$@"\necho\n')
    python.chmod(0o755)

    def commands(script, *flags):
        environment = {**os.environ, "PYTHON": str(python)}
        path, root = EXPERIMENTS / f"{script}.sh", EXPERIMENTS.parents[1]
        done = subprocess.run(["bash", str(path), *flags], capture_output=True, text=True, cwd=root, env=environment)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\037")[:-1] for line in done.stdout.splitlines()]
        assert all(line[:3] == ["-u", "-m", "vq_prompt.run"] for line in lines)
        return [line[3:] for line in lines]

    return commands


@pytest.fixture
def command(asked, world, tmp_path):
    """A script's command line, cut to two tasks, one epoch and one seed."""

    def cut(script, *flags, line=0, **keys):
        (dataset,) = (name for name in HALVES if name[:3].lower() in script.replace("imagenet-r", "ima"))
        half = HALVES[dataset]
        values = {"dataroot": world, "batch_size": 16, "first_split_size": half, "other_split_size": half}
        values |= {"schedule": "[1]" if dataset == "CUB200" else "[1,0,1]", "iter_step": 4} | keys
        assigned = [f"{key}={value}" for key, value in values.items()]
        repeat = ["--repeat", "1", "--log_dir", str(tmp_path / "out")]
        return [*asked(script)[line], *CUT, *repeat, "--set", *assigned, *flags]

    return cut


@pytest.fixture
def run(command, tmp_path):
    """Run a cut command line; gives its output folder."""

    def finished(*arguments, **keys):
        main(command(*arguments, **keys))
        return tmp_path / "out-mini"

    return finished
