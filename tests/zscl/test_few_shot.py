"""ZSCL's methods on a few images a class: which ones, their crops, and what else a method may look at."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.zscl.mtil_world import Place, World
from tests.zscl.plain_mtil import TaskDraws, cropped_from, records, tasks_of, watched_run

TASKS, SHOTS = ["MNIST", "EuroSAT", "DTD"], 2
FLAGS = ["--lr", "1e-3", "--batch-size", "9", "--seed", "4", "--warmup_length", "1", "--reference-pass", "separate"]
LWF = ["--method", "ZSCL", "--image_loss", "--text_loss", "--ref-dataset", "current", "--ref-model", "previous"]
ICARL = ["--method", "icarl", "--image_loss", "--text_loss", "--memory_size", "30", "--icarl_lr", "1e-3"]


def run(world: World, folder: Path, flags: list[str]) -> list[TaskDraws]:
    return tasks_of(watched_run(world, folder, [*FLAGS, *flags]), world)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("few_shot")


@pytest.fixture(scope="module")
def lwf(mtil_world: World, folder: Path) -> list[TaskDraws]:
    flags = ["--few-shot", f"{SHOTS}", "--train-dataset", ",".join(TASKS), "--iterations", "5"]
    return run(mtil_world, folder / "lwf", [*flags, *LWF])


def images_of(task: TaskDraws, batches: int) -> list[tuple[int, Tensor]]:
    return [(int(label), image) for images, labels in task.batches[:batches] for image, label in zip(images, labels)]


def picked(task: TaskDraws, name: str, world: World) -> set[Place]:
    """The training images whose crops a task was trained on."""
    images = torch.cat([images for images, _ in task.batches])
    return {(name, "train", index) for index in cropped_from(images, world.domains[name])}


def test_the_first_of_each_class_in_one_pass_each_as_one_crop(
    mtil_world: World, lwf: list[TaskDraws], tmp_path: Path
) -> None:
    """The pass is the first epoch of the run on all images; its crops of the chosen ones are all that is trained on."""
    (whole,) = run(mtil_world, tmp_path / "whole", ["--train-dataset", "MNIST", "--iterations", "3"])  # 34 images
    expected: dict[int, list[Tensor]] = {}
    for label, image in images_of(whole, 4):
        expected.setdefault(label, []).append(image)
    chosen = {(label, image.numpy().tobytes()) for label, found in expected.items() for image in found[:SHOTS]}
    epochs = [images_of(TaskDraws(lwf[0].batches[start : start + 3], [], []), 3) for start in (0, 3)]
    assert [len(epoch) for epoch in epochs] == [20, 20]
    assert [{(label, image.numpy().tobytes()) for label, image in epoch} for epoch in epochs] == [chosen, chosen]
    assert [label for label, _ in epochs[0]] != [label for label, _ in epochs[1]]  # every epoch in another order


def test_lwf_distils_on_the_same_images(mtil_world: World, lwf: list[TaskDraws]) -> None:
    for name, task in zip(TASKS, lwf, strict=True):
        places = {place for batch in task.references for place in batch}
        assert places <= picked(task, name, mtil_world) and len(places) > 9
    assert len(picked(lwf[1], "EuroSAT", mtil_world)) == 20 < len(mtil_world.domains["EuroSAT"].views["train"])


def test_icarl_keeps_exemplars_of_them_alone(mtil_world: World, tmp_path: Path) -> None:
    flags = ["--few-shot", f"{SHOTS}", "--dataset_order", "EuroSAT,MNIST", "--iterations", "3"]
    first, second = run(mtil_world, tmp_path / "icarl", [*flags, *ICARL])
    places, chosen = {place for batch in second.references for place in batch}, picked(first, "EuroSAT", mtil_world)
    assert places <= chosen and len(places) > 9
    memory = json.loads((tmp_path / "icarl" / "EuroSAT.memory.json").read_text())
    assert memory == {"EuroSAT": list(range(20))}  # positions among the chosen images


def test_a_set_with_too_few_is_told_and_counted(
    mtil_world: World, folder: Path, lwf: list[TaskDraws], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """DTD has one image a class; MNIST two of every digit and no more than four."""
    found = {(line["dataset"], line["metric"]): line["value"] for line in records(folder / "lwf")}
    assert (found["DTD", "scarce_classes"], found["DTD", "training_images"]) == (47, 47)
    assert ("MNIST", "scarce_classes") not in found and ("EuroSAT", "scarce_classes") not in found
    capsys.readouterr()
    run(mtil_world, tmp_path / "run", ["--few-shot", "4", "--train-dataset", "MNIST", "--iterations", "1"])
    told = capsys.readouterr().out
    counts = torch.bincount(mtil_world.domains["MNIST"].labels["train"]).tolist()
    scarce = [f"{digit}" for digit, count in enumerate(counts) if count < 4]
    assert f"note: MNIST: {len(scarce)} of 10 classes have fewer than 4 training images" in told
    assert all(f"{digit} - " in told for digit in scarce)
    found = {line["metric"]: line["value"] for line in records(tmp_path / "run", "MNIST.record.jsonl")}
    assert found["training_images"] == sum(min(count, 4) for count in counts)
