"""Whole class-incremental runs of MoE-Adapters, from their command line, against the same runs in plain steps.

One on CIFAR-100 as the originals test, with random crops and gate noise, one on TinyImageNet with centre crops and
without noise. Recorded from a run are its batches, its random draws and its initial weights; the rest is computed here,
in float64. What the batches hold is checked against the images on the disk.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from common import clip
from common.datasets.names import read_names
from moe_adapters.cil import main
from tests.moe_adapters.mtil_world import tokenizer
from tests.moe_adapters.pictures import centre_crop, found_in, normalise, save_clip, whole_view, write
from tests.moe_adapters.plain import EXACT, MoE, Stage, check_initial, cosine, dropout_watched, learns, stages
from tests.whole_run import float64, watched

QUICK = ["device=cpu", "workers=0", "no_verify=true"]
TEST_BATCH = 64
ORDER = np.random.default_rng(3).permutation(100).tolist()
TINY_ORDER = np.random.default_rng(4).permutation(200).tolist()
CIFAR = """
    --config-path configs/class --config-name cifar100_10-10-MoE-Adapters.yaml
    initial_increment=40 increment=30 batch_size=11 lr=0.01 ls=0.1 weight_decay=0.3 warmup=4 seed=7
""".split()
TINY = """
    --config-path configs/class --config-name tinyimagenet_100-10.yaml
    initial_increment=150 increment=50 batch_size=45 lr=0.02 epochs=2 seed=8 eval_transform=test eval_noise=false
""".split()


@dataclass(eq=False, repr=False)
class Whole:
    """The run as it was seen, and what it left."""

    root: Path
    trainings: list[Stage]
    tests: list[Stage]

    def left(self, task: int) -> dict[str, Tensor]:
        return torch.load(self.root / "run" / f"task_{task}.pth", weights_only=True)["state_dict"]

    def network(self) -> MoE:
        """Two experts a block, both for every sample, and one router; to be called, and used, in `float64`."""
        return MoE(clip.load(str(self.root / "clip.pt"))[0].requires_grad_(False), {}, experts=2, topk=2)

    def predictions(self) -> dict[str, list[Tensor]]:
        return torch.load(self.root / "run" / "predictions.pth", weights_only=True)


def run(root: Path, command: list[str], order: list[int]) -> list[Stage]:
    save_clip(root / "clip.pt")
    (root / "order.yaml").write_text(yaml.safe_dump({"class_order": order}))
    places = [f"model_name={root / 'clip.pt'}", f"dataset_root={root}", f"class_order={root / 'order.yaml'}"]
    with float64(), watched("randn_like") as seen, dropout_watched(seen):
        main([*command, *QUICK, *places, f"save={root / 'run'}"])
    return stages(seen)


def prompts(names: list[str], template: str, order: list[int]) -> Tensor:
    return tokenizer()([template.replace("{}", names[label]) for label in order])


# CIFAR-100: 40 classes, then 30 and 30


TASKS = [range(40), range(40, 70), range(70, 100)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("cil")
    write(root, ["CIFAR100"])
    found = run(root, [*CIFAR, "prompt_template=a rough sketch of a {}."], ORDER)
    return Whole(root, found[::2], found[1::2])


@dataclass
class Split:
    views: Tensor  # uint8 (N, 3, 32, 32)
    labels: Tensor  # positions in the class order

    def rows(self, classes: range) -> list[int]:
        """In the order of the data set."""
        return [row for row, label in enumerate(self.labels.tolist()) if label in classes]


def split(root: Path, name: str) -> Split:
    content = pickle.loads((root / "cifar-100-python" / name).read_bytes())
    views = torch.from_numpy(content["data"]).view(-1, 3, 32, 32)
    return Split(views, torch.tensor([ORDER.index(label) for label in content["fine_labels"]]))


def class_prompts() -> Tensor:
    """CIFAR's names keep their underscores here."""
    names = [name.replace(" ", "_") for name in read_names("cifar100")]
    assert "maple_tree" in names
    return prompts(names, "a rough sketch of a {}.", ORDER)


def test_training_batches(whole: Whole) -> None:
    """A pass over the task's images, and the first batch of another; labels count from the task's first class."""
    train = split(whole.root, "train")
    for classes, stage in zip(TASKS, whole.trainings, strict=True):
        rows = train.rows(classes)
        places = found_in(stage, train.views)
        for batch, (_, labels) in zip(places, stage.batches):
            assert (train.labels[batch] - classes.start).tolist() == labels.tolist()
        visited = sum(places[:-1], [])
        assert sorted(visited) == rows and visited != rows
        assert [len(batch) for batch in places[:-2]] == [11] * (len(places) - 2) and len(places[-2]) == len(rows) % 11
        assert len(places[-1]) == 11 and places[-1] != places[0]
        crops = torch.cat([images for images, _ in stage.batches[:-1]])
        same = [torch.equal(crop, view) for crop, view in zip(crops, normalise(train.views[visited]))]
        assert sum(same) < len(same) / 2


def test_training(whole: Whole) -> None:
    """Task after task from the weights before it: all experts and the one router, among the task's own classes."""
    tokens = class_prompts()
    with float64():
        network = whole.network()
        network.router, theta = 0, network.theta
        for task, (classes, stage) in enumerate(zip(TASKS, whole.trainings, strict=True)):
            left, total = whole.left(task), len(stage.batches) - 1
            names = [key for key in left if learns(key, 0, frozen=set())]
            start = dict(zip(names, stage.steps[0].start[0], strict=True))
            if task == 0:
                theta |= start
                check_initial(theta)
            for key in names:
                torch.testing.assert_close(start[key], theta[key], **EXACT)
            rate = lambda n, total=total: cosine(n, 0.01, 4, total)
            own = tokens[classes.start : classes.stop]
            network.learn(stage, names, own, rate, smoothing=0.1, decay=0.3, image_first=True)
            assert {key.replace(".adaptmlp.", ".adaptmlp_list.1.") for key in left} == set(theta)
            for key, value in left.items():
                torch.testing.assert_close(value, theta[key.replace(".adaptmlp.", ".adaptmlp_list.1.")], **EXACT)


def test_images_under_test(whole: Whole) -> None:
    """After each task the test images of all classes seen, in the data set's order, 64 at a time, cut anew."""
    test, before = split(whole.root, "test"), None
    for classes, stage in zip(TASKS, whole.tests, strict=True):
        rows = test.rows(range(classes.stop))
        assert sum(found_in(stage, test.views), []) == rows
        assert [len(batch[0]) for batch in stage.batches[:-1]] == [TEST_BATCH] * (len(stage.batches) - 1)
        crops = dict(zip(rows, torch.cat([batch[0] for batch in stage.batches])))
        if before:
            same = [torch.equal(crop, crops[row]) for row, crop in before.items()]
            assert sum(same) < len(same) / 2
        before = crops


@torch.no_grad()
def test_predictions(whole: Whole) -> None:
    """Among all classes seen; images, then prompts, under new gate noise at every batch, and without dropout."""
    tokens, test, found = class_prompts(), split(whole.root, "test"), whole.predictions()
    with float64():
        network = whole.network()
        network.router = 0
        for task, (classes, stage) in enumerate(zip(TASKS, whole.tests, strict=True)):
            network.theta |= whole.left(task)
            predictions = []
            for n, (images, _) in enumerate(stage.batches):
                assert [draw.name for draw in stage.draws[n]] == ["randn_like"] * 5
                network.noise = stage.drawn(n, "randn_like")
                image = F.normalize(network.clip.encode_image(images), dim=-1)
                text = F.normalize(network.clip.encode_text(tokens[: classes.stop]), dim=-1)
                predictions += (image @ text.t()).argmax(dim=1).tolist()
            rows = test.rows(range(classes.stop))
            assert found["predictions"][task].tolist() == predictions
            assert found["labels"][task].tolist() == test.labels[rows].tolist()
            assert len(set(predictions)) > 5


def test_streams_of_random_numbers(whole: Whole) -> None:
    """Each training and each test draws numbers of its own."""
    first = [next(stage.drawn(0, "randn_like"))[:2].tolist() for stage in whole.trainings + whole.tests]
    assert all(one != other for i, one in enumerate(first) for other in first[:i])


def accuracies(found: dict[str, list[Tensor]], tasks: list[range]) -> list[tuple[float, list[float]]]:
    """After each task: percent right of all images together, and of those of each task seen."""
    table = []
    for after, (predictions, labels) in enumerate(zip(found["predictions"], found["labels"])):
        right = (predictions == labels).double()
        of = [(labels >= task.start) & (labels < task.stop) for task in tasks[: after + 1]]
        table.append((100 * right.mean().item(), [100 * right[rows].mean().item() for rows in of]))
    return table


def test_metrics(whole: Whole) -> None:
    check_metrics(whole, TASKS, "CIFAR100")


def check_metrics(whole: Whole, tasks: list[range], dataset: str) -> None:
    """metrics.json, and the same numbers on record."""
    *lines, closing = map(json.loads, (whole.root / "run" / "metrics.json").read_text().splitlines())
    recorded = {}
    for line in map(json.loads, (whole.root / "run" / "record.jsonl").read_text().splitlines()):
        recorded[line["after_task"], line["dataset"], line["metric"]] = line["value"]
    table = accuracies(whole.predictions(), tasks)
    means = [acc for acc, _ in table]
    for task, (line, (acc, by_task)) in enumerate(zip(lines, table, strict=True)):
        assert line["acc"] == pytest.approx(acc, abs=0.006)
        assert line["avg_acc"] == pytest.approx(np.mean(means[: task + 1]), abs=0.006)
        assert line["acc_per_task"] == pytest.approx(by_task, abs=0.006)
        assert recorded[task + 1, dataset, "accuracy"] == pytest.approx(acc, rel=1e-12)
        assert [recorded[task + 1, f"task {j}", "task_accuracy"] for j in range(task + 1)] == pytest.approx(by_task)
    assert closing == {"last": pytest.approx(means[-1], abs=0.006), "avg": pytest.approx(np.mean(means), abs=0.006)}
    assert recorded[len(tasks), dataset, "avg"] == pytest.approx(np.mean(means), rel=1e-12)
    # two experts of bottleneck 64 and one router with its noise in three blocks of width 48 and two of width 32
    counted = sum(2 * (2 * width * 64 + 64 + width) + 2 * width * 2 for width in (48, 48, 48, 32, 32))
    assert recorded[len(tasks), dataset, "trainable_parameters"] == counted


# TinyImageNet: 150 classes, then 50; centre crops and no noise in evaluation


TINY_TASKS = [range(150), range(150, 200)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("tiny")
    write(root, ["TinyImageNet"])
    first, test, second = run(root, TINY, TINY_ORDER)
    return Whole(root, [first, second], [test])


def test_two_passes_that_never_leave_the_warm_up(tiny: Whole) -> None:
    """30 steps of warm-up, of which the tasks have 15 and 7; the passes differ in their crops."""
    folder = tiny.root / "tiny-imagenet-200"
    wnids = (folder / "wnids.txt").read_text().split()
    for task, (stage, total) in enumerate(zip(tiny.trainings, (14, 6), strict=True)):
        assert len(stage.steps) == total + 1
        rates = [0.02 * (n + 1) / 30 for n in range(total + 1)]
        assert [step.groups[0]["lr"] for step in stage.steps] == pytest.approx(rates, rel=1e-12)
        classes = TINY_TASKS[task]
        files = [sorted((folder / "train" / wnids[TINY_ORDER[c]] / "images").iterdir()) for c in classes]
        views = torch.stack([whole_view(Image.open(file), 32) for pair in files for file in pair])
        places = found_in(stage, views)
        assert [[place // 2 for place in batch] for batch in places] == [batch[1].tolist() for batch in stage.batches]
        half = total // 2
        passes = [sum(places[first : first + half], []) for first in (0, half)]
        assert sorted(passes[0]) == sorted(passes[1]) == list(range(2 * len(classes))) and passes[0] != passes[1]


@torch.no_grad()
def test_predictions_without_noise(tiny: Whole) -> None:
    folder, found = tiny.root / "tiny-imagenet-200", tiny.predictions()
    wnids = (folder / "wnids.txt").read_text().split()
    rows = [line.split("\t")[:2] for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    pixels = torch.stack([centre_crop(Image.open(folder / "val" / "images" / file), 32) for file, _ in rows])
    labels = torch.tensor([TINY_ORDER.index(wnids.index(wnid)) for _, wnid in rows])
    assert torch.equal(torch.cat([batch[0] for batch in tiny.tests[0].batches]), pixels)  # decoded once for all tests
    tokens = prompts(read_names("tinyimagenet_cil"), "a bad photo of a {}.", TINY_ORDER)
    with float64():
        network = tiny.network()
        network.router = 0
        for task, classes in enumerate(TINY_TASKS):
            network.theta |= tiny.left(task)
            image = F.normalize(network.clip.encode_image(normalise(pixels[labels < classes.stop])), dim=-1)
            text = F.normalize(network.clip.encode_text(tokens[: classes.stop]), dim=-1)
            assert found["predictions"][task].tolist() == (image @ text.t()).argmax(dim=1).tolist()
            assert found["labels"][task].tolist() == labels[labels < classes.stop].tolist()
    check_metrics(tiny, TINY_TASKS, "TinyImageNet")
