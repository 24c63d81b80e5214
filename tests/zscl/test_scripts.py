"""Every script at the paper's scale, on made-up data in the true layouts; what each asks for, in both orders."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.datasets import MTIL_ORDER_1, MTIL_ORDER_2
from tests.fake_data import ALL, write
from zscl.methods import method_label
from zscl.options import is_sequence, parse, run_folder, tasks

SCRIPTS = Path(__file__).parents[2] / "zscl" / "scripts"
SHORT = [
    "--iterations",
    "1",
    "--warmup_length",
    "1",
    "--avg_freq",
    "1",
    "--batch-size",
    "8",
    "--batch-size-eval",
    "512",
]
LABELS = {
    "finetune": "Fine-tuning", "lwf": "LwF", "lwf_vr": "LwF-VR", "icarl": "iCaRL", "WiSE_finetune": "WiSE-FT",
    "wc": "WC", "we": "WE", "WE_WiSE": "WE-WiSE 0.99", "ZSCL": "ZSCL", "ZSCL_stars": "ZSCL*", "ZSCL_minus": "ZSCL-",
    "ZSCL_minus_WC": "ZSCL- + WC", "ZSCL_minus_WC_WiSE": "ZSCL- + WC + WiSE-FT (captions)",
    "ZSCL_WiSE": "ZSCL- + WiSE-FT (captions)", "ZSCL_minus_previous_all_text": "ZSCL- (all prompts seen)",
    "table_a": "ZSCL-", "table_b": "ZSCL- (captions)", "table_c": "ZSCL- (current images)",
}  # fmt: skip
RATES = {"Aircraft": 5e-5, "MNIST": 5e-5}  # the others' is 1e-5
ORDERS = {"1": MTIL_ORDER_1, "2": MTIL_ORDER_2}


@pytest.fixture(scope="module")
def world(world_folder: Path, tiny_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("mtil")
    write(root, [name for name in ALL if name not in ("CIFAR10", "TinyImagenet")])
    return [*tiny_world, "--data-location", str(root), *SHORT]


def run_script(name: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    command, environment = ["bash", str(SCRIPTS / f"{name}.sh"), *arguments], {**os.environ, "PYTHON": python}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def succeeds(name: str, *arguments: str) -> str:
    done = run_script(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def matrix(folder: Path) -> list[list[str]]:
    with open(folder / "accuracy.csv") as file:
        return list(csv.reader(file))


# What a script asks for: its command line, taken instead of a run


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stands for python and prints its arguments."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    path.chmod(0o755)
    return str(path)


def asked(echo: str, name: str, *arguments: str) -> list[str]:
    done = run_script(name, *arguments, python=echo)
    assert done.returncode == 0, done.stderr
    module, *flags = done.stdout.splitlines()[1:]
    assert module == "zscl.main"
    return flags


def test_every_script_is_known() -> None:
    others = {"order", "zero_shot", "first_row", "xtail", "common"}
    assert {path.stem for path in SCRIPTS.glob("*.sh")} == {*LABELS, *others}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", LABELS)
def test_scripts_learn_an_order_in_one_process_with_the_papers_values(echo: str, name: str, order: str) -> None:
    options = parse(asked(echo, name, order))
    assert is_sequence(options) and tuple(tasks(options)) == tuple(options.eval_datasets) == ORDERS[order]
    assert (options.iterations, options.batch_size, options.warmup_length, options.wd, options.T, options.seed) == (
        [1000],
        64,
        100,
        0,
        2,
        42,
    )
    assert options.train_mode == "whole" and run_folder(options) == f"ckpt/{name}_order{order}"
    assert method_label(options) == LABELS[name]
    assert options.avg_freq == 100 and options.ls == (0 if name == "icarl" else 0.2)
    if name != "icarl":
        slow_mnist = {"MNIST": 1e-5} if name in ("WE_WiSE", "ZSCL_minus_previous_all_text") else {}
        assert options.lr == [(RATES | slow_mnist).get(task, 1e-5) for task in ORDERS[order]]


@pytest.mark.parametrize("name", [*LABELS, "zero_shot"])
def test_the_order_may_be_left_out_and_further_flags_come_last(echo: str, name: str) -> None:
    flags = asked(echo, name, "--seed", "7")
    assert flags == [*asked(echo, name, "1"), "--seed", "7"] and flags != asked(echo, name, "2", "--seed", "7")
    wrong = run_script(name, "3", python=echo)
    assert wrong.returncode == 2 and "the order is 1, 2 or xtail, not 3" in wrong.stderr and not wrong.stdout


@pytest.mark.parametrize("name", ["finetune", "lwf", "icarl", "lwf_vr", "WiSE_finetune", "ZSCL"])
def test_xtail_keeps_a_methods_flags_and_changes_the_protocol(echo: str, name: str) -> None:
    options, on_mtil = parse(asked(echo, "xtail", name)), parse(asked(echo, name))
    ten = [task for task in MTIL_ORDER_1 if task != "CIFAR100"]
    assert tasks(options) == options.eval_datasets == ten
    changed = {"label_space": "all", "few_shot": 16, "batch_size": 128, "iterations": [500], "eval_datasets": ten}
    changed |= {"save": f"ckpt/{name}_xtail"}
    icarl = name == "icarl"
    changed |= {"dataset_order": ["xtail"]} if icarl else {"train_dataset": ten, "lr": [RATES.get(t, 1e-5) for t in ten]}
    assert options == replace(on_mtil, **changed) and method_label(options) == LABELS[name]


def test_xtail_of_the_pre_trained_model_and_without_a_method(echo: str) -> None:
    options = parse(asked(echo, "xtail", "zero_shot", "--seed", "7"))
    assert (options.eval_only, options.label_space, len(options.eval_datasets), options.seed) == (True, "all", 10, 7)
    without = run_script("xtail", python=echo)
    assert without.returncode and "name a method" in without.stderr and not without.stdout
    for name in ("--scale", "order", "xtail"):  # not the script itself, over and over
        wrong = run_script("xtail", name, "mini", python=echo)
        assert wrong.returncode == 2 and f"{name} is no method's script" in wrong.stderr and not wrong.stdout


@pytest.mark.parametrize("name", LABELS)
def test_mini_overrides_the_papers_values(echo: str, name: str) -> None:
    options = parse(asked(echo, name, "2", "--scale", "mini"))
    assert (options.model, options.data_location, run_folder(options)) == ("mini", "mini", f"ckpt/{name}_order2-mini")
    assert options.iterations != [1000] and method_label(options) == LABELS[name]


@pytest.mark.parametrize(
    ("name", "flags", "label"),
    [
        ("table_a", "--image_loss", "ZSCL- (image loss)"),
        ("table_a", "1 --text_loss", "ZSCL- (text loss)"),
        ("table_a", "--feature_mse", "ZSCL- (feature MSE loss)"),
        ("table_a", "--image_loss --text_loss --ablation_loss_2", "ZSCL- (image + text + image-image loss)"),
        ("table_a", "2 --ref-model previous", "ZSCL- (teacher previous model)"),
        ("table_b", "--ref-sentences ImageNet", "ZSCL-"),
        ("table_b", "2 --ref-sentences random", "ZSCL- (random sentences)"),
        ("table_b", "--ref-sentences current", "ZSCL- (current prompts)"),
        ("table_b", "--text-datasets seen", "ZSCL- (all prompts seen)"),
        ("table_c", "--ref-dataset ImageNetSM --num 100", "ZSCL- (ImageNetSM 100)"),
        ("table_c", "2 --ref-dataset conceptual_captions", "ZSCL- (conceptual_captions images)"),
        ("table_c", "--ref-dataset ImageNet", "ZSCL-"),
    ],
)
def test_other_rows_of_the_ablation_tables_by_flags(echo: str, name: str, flags: str, label: str) -> None:
    assert method_label(parse(asked(echo, name, *flags.split()))) == label


# From start to end


def test_zscl_in_order_1(world: list[str], tmp_path: Path) -> None:
    few = ["MNIST", "DTD"]
    shown = succeeds("ZSCL", "1", *world, "--save", str(tmp_path), "--eval-datasets", ",".join(few))
    assert "zero-shot" in shown
    table = matrix(tmp_path)
    assert table[0] == ["after", *few]
    assert [row[0] for row in table[1:]] == ["zero-shot", *MTIL_ORDER_1]
    line = json.loads((tmp_path / "record.jsonl").read_text().splitlines()[-1])
    assert (line["method"], line["protocol"], line["scale"]) == ("ZSCL", "mtil-order1", "paper")


def test_lwf_in_order_2(world: list[str], tmp_path: Path) -> None:
    succeeds("lwf", "2", *world, "--save", str(tmp_path), "--eval-datasets", "MNIST,DTD", "--first-tasks", "3")
    assert [row[0] for row in matrix(tmp_path)] == ["after", "zero-shot", *MTIL_ORDER_2[:3]]


def test_icarl_in_order_1(world: list[str], tmp_path: Path) -> None:
    succeeds("icarl", "1", *world, "--save", str(tmp_path), "--eval-datasets", "MNIST", "--memory_size", "60")
    assert [row[0] for row in matrix(tmp_path)] == ["after", "zero-shot", *MTIL_ORDER_1]
    memory = json.loads((tmp_path / "StanfordCars.memory.json").read_text())
    assert list(memory) == list(MTIL_ORDER_1[:10]) and sum(map(len, memory.values())) == 9 * 6 + 54


def test_first_row_is_held_against_the_published_one_and_the_run_goes_on(world: list[str], tmp_path: Path) -> None:
    flags, python = [*world, "--save", str(tmp_path / "run")], tmp_path / "python"
    (tmp_path / "shown").mkdir()
    python.write_text(  # the records of the tiny CLIP under the name of the paper's
        f"""#!/bin/sh
case "$*" in *first-row*) sed 's#"backbone": "[^"]*"#"backbone": "ViT-B/16"#' {tmp_path}/run/record.jsonl > {tmp_path}/shown/record.jsonl
exec {sys.executable} -m results first-row {tmp_path}/shown ;; esac
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    done = run_script("first_row", "WiSE_finetune", "2", *flags, python=str(python))
    assert done.returncode == 1, done.stderr  # made-up images are far from the published accuracies
    assert "after StanfordCars" in done.stdout and "published WiSE-FT" in done.stdout
    assert "nearest published row" in done.stdout
    assert [path.name for path in (tmp_path / "run").glob("*.pth")] == ["StanfordCars.pth"]
    first = (tmp_path / "run" / "StanfordCars.pth").read_bytes()
    succeeds("WiSE_finetune", "2", *flags, "--first-tasks", "2")
    assert (tmp_path / "run" / "StanfordCars.pth").read_bytes() == first
    assert (tmp_path / "run" / "Food.pth").exists()


def test_first_row_of_xtail_is_refused_before_it_is_learnt(tmp_path: Path) -> None:
    done = run_script("first_row", "ZSCL", "xtail", "--save", str(tmp_path / "run"))
    assert done.returncode == 2 and "no number was published for X-TAIL" in done.stderr
    assert not list(tmp_path.iterdir())


def test_first_row_of_the_miniature_is_refused_before_it_is_learnt(tmp_path: Path) -> None:
    done = run_script("first_row", "ZSCL", "1", "--scale", "mini", "--save", str(tmp_path / "run"))
    assert done.returncode == 2 and "never held against published numbers" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in LABELS if name not in ("ZSCL", "lwf", "icarl", "WiSE_finetune")])
def test_the_other_scripts_learn_two_tasks(
    world: list[str], tmp_path: Path, echo: str, name: str, capsys: pytest.CaptureFixture
) -> None:
    from zscl.main import main

    main([*asked(echo, name, *world), "--first-tasks", "2", "--eval-datasets", "MNIST", "--save", str(tmp_path)])
    assert [row[0] for row in matrix(tmp_path)] == ["after", "zero-shot", "Aircraft", "Caltech101"]
    weights = torch.load(tmp_path / "Caltech101.pth", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_xtail_learns_few_shots_and_tells_the_domain(world: list[str], tmp_path: Path, echo: str) -> None:
    from zscl.main import main

    two = ["--first-tasks", "1", "--eval-datasets", "MNIST", "--batch-size-eval", "512"]
    main([*asked(echo, "xtail", "WiSE_finetune", *world), *two, "--save", str(tmp_path)])
    assert [row[0] for row in matrix(tmp_path)] == ["after", "zero-shot", "Aircraft"]
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert {line["protocol"] for line in lines} == {"xtail-16shot"}
    assert {"domain_accuracy", "accuracy_with_domain", "scarce_classes"} <= {line["metric"] for line in lines}
    assert (tmp_path / "domain_accuracy.csv").exists()


def test_zero_shot_prints_eleven_accuracies(world: list[str]) -> None:
    shown = succeeds("zero_shot", "2", *world)
    assert [line for line in shown.splitlines() if line.startswith("Evaluating")] == [
        f"Evaluating on {name}" for name in MTIL_ORDER_2
    ]
