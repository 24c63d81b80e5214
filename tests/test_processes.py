"""Two processes leave what one leaves; under torchrun a killed one ends the job; other numbers of processes go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import alta.main
import inflora.main
import moe_adapters.cil
import moe_adapters.main
import vq_prompt.run
import zscl.main
from tests import forked, process_loops
from tests.fake_data import write

TIMES = ("train_seconds", "peak_memory_mib", "seconds_per_batch")  # measured, not computed
MINI = ["--scale", "mini", "--device", "cpu", "--workers", "0", "--threads", "1"]
ORDER = ["--train-dataset", "EuroSAT,MNIST", "--eval-datasets", "MNIST", "--batch-size", "15", "--iterations", "4"]
ZSCL = ["--method", "ZSCL", "--image_loss", "--text_loss", "--we", "--avg_freq", "2", "--l2", "1"]
ZSCL += ["--cache-dir", "none", "--ref-dataset", "DTD", "--ref-sentences", "conceptual_captions"]
ZSCL += ["--warmup_length", "2"]
MOE = ["--ffn_adapt", "--apply_moe", "--experts_num", "4", "--lr", "1e-2", "--is_train", "--frozen", "--train_chooser"]
MOE += ["--chooser-iterations", "3,3", "--autorouter"]
CIL = ["--config-path", "configs/class", "dataset_root={data}", "class_order=class_orders/cifar100.yaml"]
CIL += ["no_verify=true", "model_name=mini", "initial_increment=50", "increment=50", "epochs=1", "batch_size=21"]
CIL += ["device=cpu", "workers=0", "threads=1"]
VQ = ["--no-verify", "--device", "cpu", "--threads", "1", "--workers", "0", "--seeds", "0", "--set", "dataroot={data}"]
VQ += ["first_split_size=50", "other_split_size=50", "batch_size=21"]
COMMANDS: dict[str, tuple[Callable, list[str]]] = {
    "zscl.main": (zscl.main.main, [*MINI, *ORDER, *ZSCL]),
    "moe_adapters.main": (moe_adapters.main.main, [*MINI, *ORDER, *MOE]),
    "moe_adapters.cil": (moe_adapters.cil.main, [*CIL, "--config-name", "cifar100_10-10-MoE-Adapters.yaml"]),
    "vq_prompt.run": (
        vq_prompt.run.main,
        ["--config", "configs/cifar-100_prompt_vq.yaml", "--learner_type", "prompt", "--learner_name", "VQPrompt",
         "--prompt_param", "10", "8", "1", "--pretrained_weight", "mini", *VQ, "schedule=[0, 0, 1]", "iter_step=5"],
    ),
    "vq_prompt.run, IT-Prompt": (
        vq_prompt.run.main,
        ["--config", "configs/cifar-100_it_prompt.yaml", "--learner_type", "it_prompt", "--learner_name", "ITPrompt",
         *VQ, "clip_weights=mini", "prompt_layers=[0, 1, 2, 3]", "n_clusters=1", "epochs=1", "rebalance_epochs=1"],
    ),
    "alta.main": (alta.main.main, ["--visual", "mini", "--device", "cpu", "--threads", "1", "--workers", "0"]),
}  # fmt: skip


def torchrun(*words: str) -> subprocess.Popen:
    """Start a module in two processes, their output joined in one stream."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def numbers(folder: Path) -> dict[tuple, float]:
    (path,) = folder.rglob("record.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [line for line in lines if line["metric"] not in TIMES]
    return {(line["dataset"], line["after_task"], line["metric"]): line["value"] for line in kept}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What every loop of `process_loops` ends with on two processes."""
    path = tmp_path_factory.mktemp("loops") / "two.pth"
    forked.finish(*forked.start(forked.on_two_processes(process_loops.main), [str(path)]))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", process_loops.LOOPS)
def test_a_loop_on_two_processes_equals_one(two_processes: dict[str, dict[str, Tensor]], name: str) -> None:
    one, two = process_loops.LOOPS[name](), two_processes[name]
    assert one.keys() == two.keys()
    for key, expected in one.items():
        found, expected = two[key], expected.detach()
        if key.endswith("in_proj_bias") and name.startswith("zscl"):
            # the softmax does not see the keys' bias: its gradient is nothing but rounding, on which AdamW acts
            found, expected = (torch.cat([part.chunk(3)[0], part.chunk(3)[2]]) for part in (found, expected))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9, msg=lambda text: f"{name} {key}: {text}")


def two_tasks_of_alta(folder: Path) -> Path:
    """A configuration of the miniature in two tasks of one epoch."""
    content = yaml.safe_load((Path(alta.main.__file__).parent / "configs" / "il_cifar100.yaml").read_text())
    content["dataset"] |= {"name": "mini", "n_tasks": 2, "n_classes_per_task": 20}
    content["OPTIM"] |= {"MAX_EPOCH": 1, "WARMUP_CONS_LR": 0.01}
    (folder / "two_tasks.yaml").write_text(yaml.safe_dump(content))
    return folder / "two_tasks.yaml"


@pytest.mark.parametrize("module", COMMANDS)
def test_two_processes_record_what_one_records(tmp_path: Path, module: str) -> None:
    main, words = COMMANDS[module]
    if "{data}" in str(words):
        write(tmp_path, ["CIFAR100"])
        write(tmp_path / "cifar100", ["CIFAR100"])  # where the class-incremental programs look
        words = [word.format(data=tmp_path) for word in words]
    folders = [tmp_path / f"{count}-mini" for count in ("one", "two")]
    saves = [[f"save={folder}"] if module.endswith("cil") else ["--save", str(folder)] for folder in folders]
    if module.startswith("vq_prompt"):
        saves = [["--log_dir", str(folder)] for folder in folders]
    if module == "alta.main":
        words = [*words, "--config-file", str(two_tasks_of_alta(tmp_path))]
    other = forked.start(forked.on_two_processes(main), [*words, *saves[1]])
    main([*words, *saves[0]])
    said = forked.finish(*other)
    assert len(re.findall("^.*after.*MNIST|^task 1 .2 of 2.", said, re.MULTILINE)) <= 1, said  # the first one speaks
    assert numbers(folders[0]) == numbers(folders[1])
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders]
    assert names[0] == names[1]


# A job that loses a process, and one that changes their number


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run of InfLoRA on made-up images in two tasks, which saves at every step."""
    data = tmp_path_factory.mktemp("data")
    write(data, ["CIFAR100"])
    configs = Path(inflora.main.__file__).parent / "configs"
    content = [json.loads((configs / name).read_text()) for name in ("cifar100_inflora.json", "mini.json")]
    changes = {"init_cls": 50, "increment": 50, "total_sessions": 2, "init_epoch": 1, "epochs": 3, "seed": [0]}
    changes |= {"data_path": str(data), "batch_size": 3, "backbone": "mini"}
    path = tmp_path_factory.mktemp("config") / "two_tasks.json"
    path.write_text(json.dumps(content[0] | content[1] | changes))
    return ["--config", str(path), "--no-verify", "--device", "cpu", "--workers", "0", "--threads", "1",
            "--save-interval", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(two_tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, float]:
    folder = tmp_path_factory.mktemp("unbroken") / "run-mini"
    inflora.main.main([*two_tasks, "--save", str(folder)])
    return numbers(folder)


def wait_for_the_second_task(folder: Path, has_ended: Callable[[], int | None]) -> None:
    """Until a run of InfLoRA has saved a step of its second task."""
    found = []
    while not found:
        assert has_ended() is None
        time.sleep(0.02)
        saved = [path for path in folder.rglob("state.pth") if path.with_name("task_0.pth").exists()]
        found = [path for path in saved if torch.load(path, weights_only=True)["stage"] == "task 1"]


def test_a_killed_process_ends_the_job_and_one_goes_on_alone(
    two_tasks: list[str], unbroken: dict[tuple, float], tmp_path: Path
) -> None:
    folder = tmp_path / "run-mini"
    job = torchrun("inflora.main", *two_tasks, "--save", str(folder))
    wait_for_the_second_task(folder, job.poll)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True).stdout
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0 and not list(folder.rglob("task_1.pth"))
    assert "[rank0]: Traceback" not in said and "another process of this job has ended" in said, said
    inflora.main.main([*two_tasks, "--save", str(folder)])
    assert numbers(folder) == unbroken


def test_two_processes_go_on_where_one_was_stopped(
    two_tasks: list[str], unbroken: dict[tuple, float], tmp_path: Path
) -> None:
    folder = tmp_path / "run-mini"
    process, stream = forked.start(inflora.main.main, [*two_tasks, "--save", str(folder)])
    wait_for_the_second_task(folder, lambda: process.exitcode)
    process.terminate()
    said = stream.read()
    process.join()
    assert process.exitcode != 0 and "goes on from there" in said and not list(folder.rglob("task_1.pth")), said
    job = torchrun("inflora.main", *two_tasks, "--save", str(folder))
    said = job.communicate()[0]
    assert job.returncode == 0, said
    assert numbers(folder) == unbroken
