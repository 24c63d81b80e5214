"""Every script at the papers' scale, on made-up data in the true layouts: from `check` to the table."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.datasets import MTIL_ORDER_1, MTIL_ORDER_2
from moe_adapters.options import parse, protocol
from tests.fake_data import write

SCRIPTS = Path(__file__).parents[2] / "moe_adapters" / "scripts"
SHORT = ["--iterations", "1", "--chooser-iterations", "1,1", "--batch-size", "8", "--experts_num", "3"]
ALL_TO_CLIP = ["--threshold", "0"]  # the quick way through the evaluation


@pytest.fixture(scope="module")
def world(tiny_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("mtil")
    write(root)
    checked = subprocess.run(
        [sys.executable, "-m", "common.datasets", "check", "--data-location", str(root), "--no-verify"],
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stdout
    return [*tiny_world, "--data-location", str(root)]


def run_script(name: str, *arguments: str, python: str = sys.executable) -> str:
    command = ["bash", str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": python})
    assert done.returncode == 0, done.stderr
    return done.stdout


def matrix(folder: Path) -> list[list[str]]:
    with open(folder / "accuracy.csv") as file:
        return list(csv.reader(file))


def test_full_shot_order_1_trains_and_its_folder_tests_to_the_same_table(world: list[str], tmp_path: Path) -> None:
    few = ["MNIST", "DTD"]
    world = [*world, "--eval-datasets", ",".join(few)]
    shown = run_script("train_full_shot_order1.sh", *world, *SHORT, "--save", str(tmp_path / "run"))
    assert "zero-shot" in shown and "DDAS sent to their own router" in shown
    table = matrix(tmp_path / "run")
    assert table[0] == ["after", *few]
    assert [row[0] for row in table[1:]] == ["zero-shot", *MTIL_ORDER_1]
    again = ["--experts_num", "3", "--load", str(tmp_path / "run")]
    run_script("test_full_shot_order1.sh", *world, *again, "--save", str(tmp_path / "test"))
    assert matrix(tmp_path / "test") == table


def test_full_shot_order_2(world: list[str], tmp_path: Path) -> None:
    few = ["--eval-datasets", "MNIST"]
    run_script("train_full_shot_order2.sh", *world, *few, *SHORT, *ALL_TO_CLIP, "--save", str(tmp_path / "run"))
    assert [row[0] for row in matrix(tmp_path / "run")[2:]] == list(MTIL_ORDER_2)


def test_xtail_has_the_values_of_the_few_shot_script_without_cifar100(tmp_path: Path) -> None:
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    echo.chmod(0o755)
    asked = [run_script(name, python=str(echo)).splitlines() for name in ("xtail.sh", "train_few_shot_order1.sh")]
    xtail, few_shot = (parse(words[2:]) for words in asked)
    ten = [place for place, name in enumerate(MTIL_ORDER_1) if name != "CIFAR100"]
    names = [MTIL_ORDER_1[place] for place in ten]
    changed = {"train_dataset": names, "eval_datasets": names, "lr": [few_shot.lr[place] for place in ten]}
    changed |= {"few_shot": 16, "batch_size": 128, "label_space": "all", "save": "ckpt/xtail"}
    assert xtail == replace(few_shot, **changed) and protocol(xtail) == "xtail-16shot"


def test_few_shot_with_the_first_preset(world: list[str], tmp_path: Path) -> None:
    save, few = str(tmp_path / "run"), ["--eval-datasets", "MNIST"]
    world = [*world, *few]
    run_script("train_few_shot_order1.sh", *world, "--preset", "fewshot_v1", *SHORT, *ALL_TO_CLIP, "--save", save)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["settings"]["lr"][1] == 1e-4 and config["labels"]["protocol"] == "mtil-order1-5shot"
    run_script(
        "test_few_shot_order1.sh",
        *world,
        "--experts_num",
        "3",
        *ALL_TO_CLIP,
        "--load",
        save,
        "--save",
        str(tmp_path / "test"),
    )
    assert matrix(tmp_path / "test") == matrix(tmp_path / "run")
