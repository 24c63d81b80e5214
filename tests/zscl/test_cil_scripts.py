"""The class-incremental scripts: the original's name, and all methods of one setting."""

import os
import subprocess
import sys
from pathlib import Path

from common.evaluation.cil_log import read_metrics

SCRIPTS = Path(__file__).parents[2] / "zscl" / "scripts" / "cil"


def run(name: str, *words: str) -> str:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", str(SCRIPTS / name), *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_experiment_takes_a_configuration_and_overrides(cil_world: list[str], tmp_path: Path) -> None:
    words = [*cil_world, "initial_increment=50", "increment=25", "method=zeroshot", f"save={tmp_path / 'run'}"]
    assert "Continual-CLIP, cil-cifar100-50+2x25" in run("run_experiment.sh", "cifar100_5-5-finetune.yaml", *words)
    assert len(read_metrics(tmp_path / "run" / "metrics.json")[0]) == 3
    shown = run("run_experiment.sh", "tinyimagenet_100-5-ZSCL.yaml", "--help")
    assert "class_order=class_orders/tinyimagenet.yaml" in shown and "method=ZSCL" in shown
    assert "class_order=class_orders/cifar100.yaml" in run("run_experiment.sh", "--help")


def test_all_methods_of_a_setting() -> None:
    for arguments, prompt in (([], "bad"), (["imagenet100_50-5"], "good")):
        shown = run("all_methods.sh", *arguments, "--help")
        methods = [line.split()[0] for line in shown.splitlines() if line.strip().startswith("method=")]
        names = ("zeroshot", "finetune", "lwf", "iCaRL", "lwfvr", "ZSCL")
        assert methods == [f"method={name}" for name in names] and f"a {prompt} photo of a" in shown
