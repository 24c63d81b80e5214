"""The class-incremental scripts: the original's name, and all methods of one setting."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.metrics_json import read_metrics
from zscl.cil.options import Options, parse

SCRIPTS = Path(__file__).parents[3] / "zscl" / "scripts" / "cil"


def run(python: str, name: str, *words: str) -> str:
    environment = {**os.environ, "PYTHON": python}
    done = subprocess.run(["bash", str(SCRIPTS / name), *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked_for(name: str, *words: str) -> list[Options]:
    """The options of every command that a script gives, read as the entry point reads them."""
    commands = [shlex.split(line) for line in run("echo", name, *words).splitlines()]
    assert all(command[:2] == ["-m", "zscl.cil"] for command in commands)
    return [parse(command[2:]) for command in commands]


def test_run_experiment_runs_a_configuration_with_overrides(cil_world: list[str], tmp_path: Path) -> None:
    words = [*cil_world, "initial_increment=50", "increment=25", "method=zeroshot", f"save={tmp_path / 'run'}"]
    shown = run(sys.executable, "run_experiment.sh", "cifar100_5-5-finetune.yaml", *words)
    assert "Continual-CLIP, cil-cifar100-50+2x25" in shown
    assert len(read_metrics(tmp_path / "run" / "metrics.json")[0]) == 3


def test_run_experiment_gives_the_class_order_of_its_data_set() -> None:
    (tiny,) = asked_for("run_experiment.sh", "tinyimagenet_100-5-ZSCL.yaml")
    assert (tiny.class_order, tiny.method) == ("class_orders/tinyimagenet.yaml", "ZSCL")
    (cifar,) = asked_for("run_experiment.sh")
    assert (cifar.class_order, cifar.method, cifar.dataset) == ("class_orders/cifar100.yaml", "ZSCL", "cifar100")


@pytest.mark.parametrize(("setting", "prompt"), [([], "bad"), (["imagenet100_50-5"], "good")])
def test_all_methods_of_a_setting(setting: list[str], prompt: str) -> None:
    runs = asked_for("all_methods.sh", *setting)
    assert [options.method for options in runs] == ["zeroshot", "finetune", "lwf", "iCaRL", "lwfvr", "ZSCL"]
    assert all(options.prompt_template == f"a {prompt} photo of a {{}}." for options in runs)
