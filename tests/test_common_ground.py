"""Every class-incremental method on every data set of common ground: started, recorded, and taken up where it stopped.

Made-up images in the true layouts, the miniature's networks, a step or so a task. A run is stopped by Ctrl-C, once it
has told of its first task, and on one data set started again.
"""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from alta.learner import build as build_alta
from alta.main import main as alta
from alta.options import parse as parse_alta
from common.clip import load
from common.clip.tokenizer import tokenize
from common.datasets.images import ImageFiles
from common.machine import Machine
from inflora.learner import build as build_inflora
from inflora.main import main as inflora
from inflora.options import parse as parse_inflora
from moe_adapters.cil import main as moe_adapters
from tests import fake_data
from tests.results.settings import asked
from vq_prompt.run import main as vq_prompt
from zscl.cil.__main__ import main as zscl

SETS = {"cifar100": 100, "imagenet_r": 200, "cub200": 200, "tinyimagenet": 200, "characters": 40}
MINI = ["--scale", "mini", "protocol=common"]
HERE = ["no_verify=true", "workers=0", "device=cpu", "threads=1"]
CLASS = ["--config-path", "configs/class", "--config-name"]
NAMES = {"cifar100": "CIFAR100", "imagenet_r": "ImageNet_R", "cub200": "CUB200", "tinyimagenet": "TinyImageNet"}


class Method(NamedTuple):
    main: Callable[[list[str]], None]
    label: str
    words: list[str]  # of a command on any of the data sets
    script: str  # that gives them, and its words for a data set under seed 1
    few: list[str]  # what makes a run short
    told: str  # when a task is on record; its number from 0 and from 1
    names: Callable[[str, str, int], list[str]]  # data set, its location, classes a task -> words
    folder: str  # option that names the output folder


def names_of_cil(name: str, root: str, size: int) -> list[str]:
    return [f"dataset={name}", f"dataset_root={root}", f"initial_increment={size}", f"increment={size}"]


def names_of_inflora(name: str, root: str, size: int) -> list[str]:
    dataset = f"dataset={'ImageNet_R' if name == 'imagenet_r' else name}"
    return [dataset, f"data_path={root}", f"init_cls={size}", f"increment={size}"]


def names_of_vq(name: str, root: str, size: int) -> list[str]:
    return [f"dataset={NAMES[name]}", f"dataroot={root}", f"first_split_size={size}", f"other_split_size={size}"]


def names_of_alta(name: str, root: str, size: int) -> list[str]:
    return [f"dataset.name=seq-{name}", f"{name}_dir={root}", f"dataset.n_classes_per_task={size}"]


METHODS = {
    "zscl": Method(
        zscl, "Fine-tuning", [*CLASS, "cifar100_10-10-finetune.yaml", *MINI, "seed=1"],
        "zscl/scripts/common.sh finetune cub200 1", ["epochs=1", "batch_size=64"],
        "task {before} ({after} of 10): ", names_of_cil, "save",
    ),
    "moe_adapters": Method(
        moe_adapters, "MoE-Adapters", [*CLASS, "cifar100_10-10-MoE-Adapters.yaml", *MINI, "seed=1"],
        "moe_adapters/scripts/common.sh MoE-Adapters cub200 1", ["epochs=1", "batch_size=64"],
        "task {before} ({after} of 10): ", names_of_cil, "save",
    ),
    "inflora": Method(
        inflora, "InfLoRA", ["--config", "inflora/configs/cifar100_inflora.json", *MINI, "seed=1"],
        "inflora/scripts/common.sh inflora cub200 1 clip-vit-b16", ["epochs=1", "init_epoch=1", "batch_size=64"],
        "after task {before}: ", names_of_inflora, "save",
    ),
    "vq_prompt": Method(
        vq_prompt, "VQ-Prompt",
        ["--config", "configs/cifar-100_prompt_vq.yaml", "--learner_type", "prompt", "--learner_name", "VQPrompt", *MINI,
         "--seeds", "1"],
        "vq_prompt/experiments/common.sh VQPrompt cub200 1 clip-vit-b16",
        ["batch_size=8", "schedule_type=cosine", "schedule=[1]", "crct_epochs=1"],
        "after task {after}: ", names_of_vq, "log_dir",
    ),
    "it_prompt": Method(
        vq_prompt, "IT-Prompt + C-NCM (our reading)",
        ["--config", "configs/cifar-100_it_prompt.yaml", "--learner_type", "it_prompt", "--learner_name", "ITPromptCNCM",
         *MINI, "--seeds", "1"],
        "vq_prompt/experiments/common_it_prompt.sh ITPromptCNCM cub200 1", ["batch_size=8", "epochs=1"],
        "after task {after}: ", names_of_vq, "log_dir",
    ),
    "alta": Method(
        alta, "ALTA", ["--config-file", "alta/configs/il_cifar100.yaml", *MINI, "seed=1"],
        "alta/scripts/common.sh oritext_mlp2cprompt_oriimg cub200 1", ["OPTIM.MAX_EPOCH=1"],
        "task {after}: loss", names_of_alta, "save",
    ),
}  # fmt: skip


class CtrlC(io.StringIO):
    """A stream that is no place for these words: at the end of their line the user presses Ctrl-C."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def write(self, text: str) -> int:
        if any(line.startswith(self.words) for line in text.splitlines()):
            raise KeyboardInterrupt
        return super().write(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("common_ground")
    fake_data.write(folder, ["CIFAR100", "ImageNetR", "CUB200", "TinyImageNet"])
    return folder


def command(method: Method, name: str, root: Path, folder: Path) -> list[str]:
    """The words of a run on made-up images; on the miniature's characters those of its script."""
    if name == "characters":
        _, words = asked(("bash", *method.script.split(), "--scale", "mini"))
    else:
        words = [*method.words, *method.names(name, str(root), SETS[name] // 10)]
    return [*words, *HERE, *method.few, f"{method.folder}={folder / 'run'}"]


def records(folder: Path) -> list[dict]:
    (path,) = folder.rglob("record.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def stop_after(method: Method, words: list[str], task: int) -> None:
    told = method.told.format(before=task, after=task + 1)
    with redirect_stdout(CtrlC(told)), pytest.raises(SystemExit) as stop:
        method.main(words)
    assert stop.value.code == 130


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run(method: Method, name: str, root: Path, tmp_path: Path) -> None:
    words, size = command(method, name, root, tmp_path), SETS[name] // 10
    stop_after(method, words, task=0)
    lines = records(tmp_path)
    assert {line["protocol"] for line in lines} == {f"common-{name}-10x{size}"}
    assert {(line["method"], line["seed"], line["scale"]) for line in lines} == {(method.label, 1, "mini")}
    tested = [line["value"] for line in lines if (line["dataset"], line["metric"]) == ("task 0", "task_accuracy")]
    assert len(tested) == 1 and 0 <= tested[0] <= 100
    (config,) = tmp_path.rglob("config.yaml")
    settings = yaml.safe_load(config.read_text())["settings"]
    assert settings["class_order"] == np.random.RandomState(1).permutation(SETS[name]).tolist()
    assert settings["protocol"] == "common"
    if name == "cifar100":
        stop_after(method, words, task=1)
        assert [line for line in records(tmp_path) if line["after_task"] <= 1] == lines
        cells = [(line["dataset"], line["after_task"]) for line in records(tmp_path) if line["metric"] == "task_accuracy"]
        assert cells == [("task 0", 1), ("task 0", 2), ("task 1", 2)]
        check_metrics(method, records(tmp_path), tmp_path)


def check_metrics(method: Method, lines: list[dict], folder: Path) -> None:
    """After two of ten tasks: the same names from every method, also the classes not seen from those that read text."""
    after_two = [line for line in lines if (line["dataset"], line["after_task"]) == ("CIFAR100", 2)]
    values = {line["metric"]: line["value"] for line in after_two}
    first, fell, second = (line["value"] for line in lines if line["metric"] == "task_accuracy")
    assert values["forgetting"] == pytest.approx(first - fell)
    assert values["accuracy"] == pytest.approx((fell + second) / 2)
    assert values["accuracy"] <= values["accuracy_with_task"] <= 100
    reads_text = method.label not in ("InfLoRA", "VQ-Prompt")
    assert ("unseen_accuracy" in values) == reads_text and not {"avg", "last", "avg_unseen_accuracy"} & values.keys()
    assert (values["stored_floats"] > 0) == (method.main not in (zscl, moe_adapters))
    clip = sum(tensor.numel() for tensor in load("mini")[0].parameters())
    if method.main in (zscl, moe_adapters):  # a file of all weights, or of the adapters and an original's unused one
        (path,) = folder.rglob("task_1.pth")
        weights = torch.load(path, weights_only=True)["state_dict"]
        saved = sum(tensor.numel() for key, tensor in weights.items() if ".adaptmlp." not in key)
        assert values["total_parameters"] == saved + (clip if method.main is moe_adapters else 0)
    else:
        assert clip / 10 < values["total_parameters"] < 1.1 * clip


def check_images(test: ImageFiles) -> None:
    """Test images in PIL's bicubic resize to the input size, normalised as the miniature was pre-trained: as CLIP."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = torch.from_numpy((resized - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)
    torch.testing.assert_close(test.transform(image), expected, rtol=0, atol=1e-5)


def test_the_images_of_inflora(root: Path, tmp_path: Path) -> None:
    options = parse_inflora(command(METHODS["inflora"], "cub200", root, tmp_path))
    check_images(build_inflora(options, Machine(torch.device("cpu")), seed=1).test)


def test_the_images_and_the_names_of_alta(root: Path, tmp_path: Path) -> None:
    learner = build_alta(parse_alta(command(METHODS["alta"], "cub200", root, tmp_path)), Machine(torch.device("cpu")))
    check_images(learner.test)
    names = [f"a photo of a Made up Bird{label}." for label in np.random.RandomState(1).permutation(200)[:3]]
    assert torch.equal(learner.head.prompt_learner.tokens[:3], tokenize(names))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_its_help(method: Method, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        method.main([*method.words, "--help"])
    said = capsys.readouterr().out
    transforms = "--eval_transform" if method.main in (zscl, moe_adapters) else "--transforms"
    assert stop.value.code == 0 and all(flag in said for flag in ("--protocol", "--class_order", transforms))
