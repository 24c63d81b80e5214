"""A whole run of the program on a tiny CLIP: its command, what it did, what it left, its batches task by task."""

import contextlib
import copy
import io
import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from alta.main import main
from common.clip.model import CLIP, CLIPConfig
from tests.alta.pictures import DARK, LIGHT, Pictures, classnames, mirrored, numbers_of, raw, spans
from tests.alta.plain import Batch, Numbers, Plain, plain_run
from tests.whole_run import Seen, watched

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
NAMES = {"cifar10": "seq-cifar10", "cifar100": "seq-cifar100", "tiny": "seq-tinyimagenet"}
PIXELS = 48
SIZES = CLIPConfig(32, PIXELS, 1, 64, 24, 20, 49408, 32, 1, 2)  # texts of 20 tokens
# every number another one, and none the papers' own
SECTIONS: dict[str, dict[str, Any]] = {
    "dataset": {"num_workers": 0},
    "model": {"pretrained": True, "use_replay": True},
    "OPTIM": {
        "NAME": "sgd", "LR": 0.04, "MAX_EPOCH": 3, "WEIGHT_DECAY": 0.02, "MOMENTUM": 0.8, "SGD_DAMPNING": 0.1,
        "SGD_NESTEROV": False, "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 0.005,
    },
    "COOP": {"N_CTX": 3, "CTX_INIT": "one picture of", "CLASS_TOKEN_POSITION": "end"},
    "train": {"batch_size": 4, "alpha": 0.7, "beta": 0.3},
    "eval": {"test_epochs": 2, "batch_size": 5},
}  # fmt: skip


def write_clip(path: Path) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(3)
    clip = CLIP(SIZES)
    with torch.no_grad():  # so that images are told apart, and classes: what all have in common is made small
        clip.visual.conv1.weight *= 10
        clip.visual.positional_embedding *= 0.1
        clip.visual.class_embedding *= 0.01
        clip.token_embedding.weight *= 50
        clip.token_embedding.weight[-2:] *= 0.01  # start and end token
        for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks):
            for weight in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_proj.weight):
                weight *= 3
    torch.save(clip.state_dict(), path)
    torch.set_rng_state(before)


def frozen_clip(path: Path) -> CLIP:
    clip = CLIP(SIZES).requires_grad_(False).eval()
    clip.load_state_dict(torch.load(path, weights_only=True))
    return clip


@dataclass
class Place:
    """Where runs find CLIP and the data sets, and leave what they leave."""

    folder: Path
    pictures: dict[str, Pictures]

    @property
    def clip(self) -> Path:
        return self.folder / "clip.pt"


# by data set, some classes and how many images each has, for training and for testing; any other has one for training
IMAGES = {
    "cifar10": (range(10), [3, 4, 2, 7, 3, 3, 5, 1, 2, 2], [6, 5, 7, 3, 4, 6, 3, 5, 8, 4]),
    "cifar100": ([1, 9, 24, 30, 41, 54, 61, 80, 99], [2, 1, 1, 3, 2, 3, 1, 2, 1], [5, 4, 6, 7, 8, 5, 4, 6, 3]),
    "tiny": ([3, 64, 71, 136, 150, 189], [2, 1, 2, 2, 1, 1], [4, 3, 5, 6, 4, 4]),
}


def make_place(folder: Path) -> Place:
    """Data sets whose classes and tasks have unequal numbers of images, in no order, and CLIP."""
    random, pictures = np.random.RandomState(5), {}
    for name, (classes, *counts) in IMAGES.items():
        train, test = (random.permutation(np.repeat(classes, count)).tolist() for count in counts)
        others = [label for label in range(len(classnames(name))) if label not in classes]
        pictures[name] = Pictures(folder / name, name, [*train, *others], test)
    write_clip(folder / "clip.pt")
    return Place(folder, pictures)


@dataclass
class Whole:
    """What a run did (`seen`), printed and left, by task where there is one a task."""

    seen: Seen
    printed: str
    folder: Path
    pictures: Pictures
    statistics: str  # by which its images were normalised
    command: list[str]

    def checkpoint(self, task: int) -> dict[str, Any]:
        return torch.load(self.folder / f"task_{task}.pth", weights_only=True)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "record.jsonl").read_text().splitlines()]

    def value(self, protocol: str, metric: str, after_task: int, dataset: str | None = None) -> float:
        wanted = {"protocol": protocol, "metric": metric, "after_task": after_task}
        wanted |= {"dataset": dataset} if dataset else {}
        (line,) = [line for line in self.records() if all(line[key] == value for key, value in wanted.items())]
        return line["value"]

    def printed_accuracies(self) -> list[list[float]]:
        """The original's lines, evaluation by evaluation: the tasks' accuracies, then their mean."""
        rows, row = [], []
        for name, value in re.findall(r"---model--- (task: \d+ acc|mean_acc): ([\d.]+)", self.printed):
            row.append(float(value))
            if name == "mean_acc":
                rows.append(row)
                row = []
        return rows

    def is_training(self, images: Tensor) -> bool:
        return numbers_of(images[:1], self.statistics)[0] < self.pictures.trained

    def training(self, epochs: int) -> list[list[list[Batch]]]:
        """The batches by task and epoch."""
        streams = [stream for stream in self.seen.streams() if self.is_training(stream[0][0])]
        per_epoch = [len(stream) // epochs for stream in streams]
        return [
            [stream[first : first + count] for first in range(0, len(stream), count)]
            for stream, count in zip(streams, per_epoch)
        ]

    def tested(self) -> list[list[Batch]]:
        """The batches of the passes over test images."""
        return [stream for stream in self.seen.streams() if not self.is_training(stream[0][0])]

    def whole_tests(self, tasks: int, size: int) -> list[Batch]:
        """The test images of every task, made by hand."""
        found = []
        for task in range(tasks):
            numbers = self.pictures.numbers("test", range(task * size, (task + 1) * size))
            labels = torch.tensor([self.pictures.labels[number] for number in numbers])
            found.append((self.pictures.whole(numbers, PIXELS, self.statistics), labels))
        return found


def whole_run(
    place: Place, data: str, split: tuple[int, int], *flags: str, statistics: str = "", **changes: dict[str, Any]
) -> Whole:
    """Start the program on `split` (tasks, classes a task) of a data set; to be called within float64()."""
    content = copy.deepcopy(SECTIONS)
    for section, values in changes.items():
        content[section] |= values
    tasks, size = split
    content["dataset"] |= {"name": NAMES[data], "n_tasks": tasks, "n_classes_per_task": size}
    content["TRAINER"] = {"COOP": content.pop("COOP")}
    run = place.folder / f"run_{len(list(place.folder.glob('run_*')))}"
    run.mkdir()
    (run / "given.yaml").write_text(yaml.safe_dump(content))
    root, flag = place.folder / data, {"tiny": "tinyimagenet"}.get(data, data)
    command = ["--config-file", run / "given.yaml", "--model", place.clip, "--visual", "ViT-B/16", "--no-verify"]
    command += [f"--{flag}_dir", root / "tiny-imagenet-200" if data == "tiny" else root, "--save", run / "out"]
    words = [str(word) for word in (*command, "--device", "cpu", "--threads", "1", *flags)]
    return _started(words, run / "out", place.pictures[data], statistics or data)


def taken_up_again(run: Whole, done: int) -> Whole:
    """The same command on a copy of the run's folder in which only the first `done` tasks are finished."""
    folder = run.folder.parent / "again"
    shutil.copytree(run.folder, folder)
    for path in folder.glob("task_*.pth"):
        if int(path.stem.removeprefix("task_")) >= done:
            path.unlink()
    known = [json.dumps(line) for line in run.records() if line["after_task"] <= done]
    (folder / "record.jsonl").write_text("\n".join(known) + "\n")
    return _started([*run.command, "--save", str(folder)], folder, run.pictures, run.statistics)


def _started(command: list[str], folder: Path, pictures: Pictures, statistics: str) -> Whole:
    printed = io.StringIO()
    with watched() as seen, contextlib.redirect_stdout(printed):
        main(command)
    return Whole(seen, printed.getvalue(), folder, pictures, statistics, command)


def plain_twin(run: Whole, place: Place, told: Numbers) -> Plain:
    """The same run as plain steps, from its batches and its initial values; to be called within float64()."""
    (start,) = run.seen.steps[0].start
    batches = run.training(len(told.rates[0]))
    tests = run.whole_tests(len(told.rates), told.task_size)
    return plain_run(frozen_clip(place.clip), classnames(run.pictures.name), start, batches, tests, told)


# What every run must hold


def check_batches(run: Whole, told: Numbers, size: int) -> None:
    """Each epoch every image of the task once, in a new order, newly cut; batches of `size`, the last one smaller."""
    tasks, first_cuts = run.training(len(told.rates[0])), []
    assert len(tasks) == len(told.rates)
    for task, epochs in enumerate(tasks):
        own = run.pictures.numbers("train", range(task * told.task_size, (task + 1) * told.task_size))
        orders = []
        for batches in epochs:
            order = [number for images, _ in batches for number in numbers_of(images, run.statistics)]
            assert sorted(order) == sorted(own)
            assert torch.cat([labels for _, labels in batches]).tolist() == [run.pictures.labels[n] for n in order]
            assert [len(labels) for _, labels in batches] == [min(size, len(own) - n) for n in range(0, len(own), size)]
            assert all(images.shape[1:] == (3, PIXELS, PIXELS) for images, _ in batches)
            orders.append(tuple(order))
            first_cuts.append(tuple(spans(torch.cat([images for images, _ in batches]), run.statistics)))
        assert len(own) < 6 or len({tuple(own), *orders}) == 1 + len(orders)
    assert len({*first_cuts}) == len(first_cuts)  # no epoch, and no task, draws the crops of another one


def check_crops(run: Whole, is_mirrored: bool) -> None:
    """Crops of 8 to 100 % of the area anywhere, resized bilinearly, mirrored or not as the data set's original."""
    images = torch.cat(
        [images for stream in run.seen.streams() if run.is_training(stream[0][0]) for images, _ in stream]
    )
    flipped, widths, blue = (
        mirrored(images, run.statistics),
        spans(images, run.statistics),
        raw(images, run.statistics)[:, 2],
    )
    assert (0.3 < sum(flipped) / len(flipped) < 0.7) if is_mirrored else not any(flipped)
    assert min(widths) < 0.45 and max(widths) > 0.8
    assert DARK - 1e-6 < float(blue.min()) and float(blue.max()) < LIGHT + 1e-6


def check_tests(run: Whole, told: Numbers, size: int) -> None:
    """Test images whole, in the files' order, `size` at a time, of one task after the other."""
    expected = run.whole_tests(len(told.rates), told.task_size)
    passes = run.tested()
    assert len(passes) == len(expected)
    for batches, (images, labels) in zip(passes, expected):
        assert [len(part) for part, _ in batches] == [min(size, len(labels) - n) for n in range(0, len(labels), size)]
        assert torch.equal(torch.cat([part for _, part in batches]), labels)
        assert_close(torch.cat([part for part, _ in batches]), images)


def check_steps(run: Whole, plain: Plain, told: Numbers) -> None:
    """The loss of every step, and what SGD was told in it; one optimiser for the whole run, so momentum goes on."""
    assert run.seen.losses == pytest.approx(plain.losses, rel=1e-9)
    (steps,) = run.seen.optimizers()
    assert {step.kind for step in steps} == {"SGD"} and all(len(step.groups) == 1 for step in steps)
    for name, usual in {"momentum": 0, "weight_decay": 0, "dampening": 0, "nesterov": False}.items():
        assert {step.groups[0][name] for step in steps} == {told.sgd.get(name, usual)}
    rates = []
    for of_task, epochs in zip(told.rates, run.training(len(told.rates[0]))):
        rates += [rate for rate, batches in zip(of_task, epochs) for _ in batches]
    assert [step.groups[0]["lr"] for step in steps] == pytest.approx(rates, abs=1e-15)


def check_checkpoints(run: Whole, plain: Plain, keys: list[str]) -> None:
    """After each task what is trained, under the original's keys, the frozen prompts, and the reservoir."""
    for task, (trained, frozen, memory) in enumerate(zip(plain.trained, plain.frozen, plain.memory)):
        saved = run.checkpoint(task)
        assert list(saved["state_dict"]) == keys
        for found, value in zip(saved["state_dict"].values(), trained, strict=True):
            assert_close(found, value)
        if len(frozen):
            assert_close(saved["frozen_prompts"], frozen)
        else:
            assert saved["frozen_prompts"] is None
        if not memory:
            assert saved["buffer"] is None
            continue
        kept = saved["buffer"]["fields"]
        for name, values in zip(("labels", "logits", "image_features"), map(torch.stack, zip(*memory))):
            assert_close(kept[name][: len(memory)], values)


def check_records(run: Whole, plain: Plain, protocols: tuple[str, str], dataset: str) -> None:
    """Both settings on record: every cell, means over tasks, forgetting and backward transfer, Avg and Last."""
    last = {task: epoch for task, epoch in plain.accuracies}
    for setting, protocol in enumerate(protocols):
        rows = [plain.accuracies[task, epoch][setting] for task, epoch in last.items()]
        for task, row in enumerate(rows):
            after = task + 1
            expected = {("accuracy", dataset): sum(row) / len(row)}
            expected |= {("task_accuracy", f"task {known}"): cell for known, cell in enumerate(row)}
            if task > 0:
                best = [max(rows[t][i] for t in range(i, after)) for i in range(task)]
                expected["forgetting", dataset] = sum(best[i] - row[i] for i in range(task)) / task
                expected["bwt", dataset] = sum(row[i] - rows[i][i] for i in range(task)) / task
            for (metric, name), value in expected.items():
                assert run.value(protocol, metric, after, name) == pytest.approx(value, abs=1e-9), (metric, after)
        means = [sum(row) / len(row) for row in rows]
        assert run.value(protocol, "avg", len(rows)) == pytest.approx(sum(means) / len(means), abs=1e-9)
        assert run.value(protocol, "last", len(rows)) == pytest.approx(means[-1], abs=1e-9)
        assert run.value(protocol, "trainable_parameters", len(rows)) == sum(part.numel() for part in plain.trained[0])
    assert {line["protocol"] for line in run.records()} == {*protocols}


def check_printed(run: Whole, plain: Plain, setting: int, epochs: int) -> None:
    """The original's lines of one setting, once at every evaluation: each task's accuracy, then their mean.

    And after each task the mean loss of its last epoch, replay included.
    """
    rows = [cells[setting] for cells in plain.accuracies.values()]
    expected = [[value / 100 for value in (*row, sum(row) / len(row))] for row in rows]
    found = run.printed_accuracies()
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, told in zip(found, expected):
        assert row == pytest.approx(told, abs=5.1e-5)
    losses = [float(value) for value in re.findall(r"^task \d+: loss ([\d.]+)", run.printed, re.MULTILINE)]
    first = 0
    for loss, batches in zip(losses, run.training(epochs), strict=True):
        first += sum(map(len, batches))
        assert loss == pytest.approx(np.mean(plain.losses[first - len(batches[-1]) : first]), abs=5.1e-4)
