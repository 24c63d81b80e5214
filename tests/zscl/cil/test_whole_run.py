"""`python -m zscl.cil` as a whole, with method ZSCL and without any: runs held against plain steps, in float64.

Tasks of 40, 30 and 30 classes; the numbers of the options are all different, and none is a default.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.clip.tokenizer import tokenize
from tests.whole_run import Seen, float64
from tests.zscl.cil.plain import Batch, features, learned, predicted, rates
from tests.zscl.cil.small_world import (
    EXACT,
    LONG,
    TEST_TRANSFORM,
    World,
    checkpoint,
    crops,
    make_world,
    same_weights,
    started,
    traced,
)  # fmt: skip

TASKS = (range(0, 40), range(40, 70), range(70, 100))
SIZES = ["initial_increment=40", "increment=30"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("cil"))


# ZSCL: L = L_CE + 5 (L_img + L_txt) + l2 L_WC, and the weight ensemble

ZSCL = [
    *SIZES, "batch_size=32", "epochs=2", "warmup=3", "lr=2e-4", "ls=0.1", "weight_decay=0.3", "l2=0.05", "avg_freq=4",
    "seed=7", "eval_transform=test", "log_path=tests.json",
]  # fmt: skip
BATCHES = (4, 3, 3)  # an epoch, of three images a class, 32 at a time


@pytest.fixture(scope="module")
def zscl(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    folder = tmp_path_factory.mktemp("runs") / "ZSCL"
    return folder, started(world, folder, "cifar100_10-10-ZSCL", *ZSCL)


def zscl_streams(seen: Seen) -> tuple[list[list[Batch]], list[list[Batch]], list[Batch]]:
    """The batches of the tasks and of the reference images, task by task; the test images, which are decoded once."""
    first, first_reference, test, *later = seen.streams()
    return [first, *later[::2]], [first_reference, *later[1::2]], test


def test_zscl_takes_the_same_steps(world: World, zscl: tuple[Path, Seen]) -> None:
    """Every loss and every task's weights; the teacher is CLIP as pre-trained, the next task starts from the mean."""
    folder, seen = zscl
    training, reference, _ = zscl_streams(seen)
    with float64():
        model, teacher = world.clip(), world.clip()
        captions = tokenize([caption for caption, _ in world.gathered], 200)[:, :77]  # the long one loses its end
        sentences = features(teacher.encode_text, captions)
        losses = []
        for task, classes in enumerate(TASKS):
            prompts, steps = world.prompts(classes), 2 * BATCHES[task] + 1
            assert len(training[task]) == len(reference[task]) == steps

            def distilled(step: int) -> tuple[Tensor, Tensor, Tensor]:
                images = reference[task][step][0]
                return images, features(teacher.encode_image, images), sentences

            losses += learned(
                model, training[task], classes.start, lambda step: prompts, rates(2e-4, 3, 2 * BATCHES[task]),
                weight_decay=0.3, smoothing=0.1, distilled=distilled, consolidation=0.05, average_every=4,
            )  # fmt: skip
            same_weights(checkpoint(folder, task), model.state_dict())
        np.testing.assert_allclose(seen.losses, losses, rtol=1e-9)


def test_zscl_optimises_anew_at_each_task(world: World, zscl: tuple[Path, Seen]) -> None:
    """AdamW over all but logit_scale; the rate warms up, falls, and is 0 at the step after the last epoch."""
    optimizers = zscl[1].optimizers()
    assert len(optimizers) == 3
    for batches, steps in zip(BATCHES, optimizers):
        (parameters,) = steps[0].start
        everything = world.clip().named_parameters()
        assert [p.shape for p in parameters] == [p.shape for name, p in everything if name != "logit_scale"]
        assert [step.groups[0]["lr"] for step in steps] == pytest.approx(rates(2e-4, 3, 2 * batches), rel=1e-12)
        assert steps[3].groups[0]["lr"] == 2e-4 and steps[-1].groups[0]["lr"] == 0
        for step in steps:
            (group,) = step.groups
            assert step.kind == "AdamW" and group["weight_decay"] == 0.3
            assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_tasks_are_learned_from_their_own_images(world: World, zscl: tuple[Path, Seen]) -> None:
    """An epoch is every image of the task once, in a new order, as a new crop of 90 to 100 % of it, never flipped."""
    with float64():
        training, _, _ = zscl_streams(zscl[1])
        positions = []
        for task, classes in enumerate(TASKS):
            images, labels = (torch.cat(parts) for parts in zip(*training[task]))
            drawn, own, size = traced(images, world.train), world.train.of(classes), len(world.train.of(classes))
            assert labels.tolist() == [world.train.labels[index] for index in drawn]
            first, second, rest = drawn[:size], drawn[size : 2 * size], drawn[2 * size :]
            assert sorted(first) == sorted(second) == own and len(rest) == 32 and set(rest) <= set(own)
            assert first != second and second[:32] != rest and first != own
            again = images[size : 2 * size][[second.index(index) for index in first]]
            assert (again - images[:size]).flatten(1).abs().max(dim=1).values.median() > 0.01
            width, height = crops(images)
            assert 0.87 < (width * height).min() < 0.92 and 0.99 < (width * height).max() < 1.01
            assert width.min() > 0.85 and height.min() > 0.85
            positions.append([own.index(index) for index in first])
        assert positions[1] != positions[2]  # tasks of one size draw from streams of their own


def test_reference_images_under_the_test_transform(world: World, zscl: tuple[Path, Seen]) -> None:
    """32 at a time of the 45 that were gathered, the last batch of an epoch smaller, in other orders at each task."""
    with float64():
        _, reference, _ = zscl_streams(zscl[1])
        plain = torch.stack([TEST_TRANSFORM(Image.open(path)) for _, path in world.gathered])
        orders = []
        for batches in reference:
            assert [len(images) for images, _ in batches] == ([32, 13] * 5)[: len(batches)]
            images = torch.cat([images for images, _ in batches])
            order = torch.cdist(images.flatten(1), plain.flatten(1)).argmin(dim=1)
            torch.testing.assert_close(images, plain[order], **EXACT)
            orders += [order[:45].tolist(), order[45:90].tolist()]
        assert all(sorted(order) == list(range(45)) for order in orders)
        assert len({tuple(order) for order in orders}) == len(orders)


def test_after_each_task_all_seen_classes_compete(world: World, zscl: tuple[Path, Seen]) -> None:
    """The records and the log, from plain predictions of the weights that each task left, under the test transform."""
    folder, seen = zscl
    with float64():
        _, _, decoded = zscl_streams(seen)
        assert torch.cat([labels for _, labels in decoded]).tolist() == world.test.labels
        model, hits = world.clip(), []
        for task, classes in enumerate(TASKS):
            model.load_state_dict(checkpoint(folder, task))
            own = world.test.of(range(classes.stop))
            labels = torch.tensor(world.test.labels)[own]
            chosen = predicted(model, world.test.plain[own], world.prompts(range(classes.stop)))
            hits.append([(chosen == labels)[[y in block for y in labels]].double() for block in TASKS[: task + 1]])
    holds_what_the_hits_say(folder, hits, "tests.json", "ZSCL (WC 0.05, centre-crop test)", trained=True)


def holds_what_the_hits_say(folder: Path, hits: list[list[Tensor]], log: str, method: str, trained: bool) -> None:
    """hits[i][j]: of the test images of task j after task i. The log, record.jsonl and accuracy.csv of three tasks."""
    r = [[float(part.mean()) for part in parts] for parts in hits]
    acc = [float(torch.cat(parts).mean()) for parts in hits]
    assert len({*acc, r[0][0], r[1][0], r[2][0], r[1][1], r[2][1]}) > 4  # accuracies of which no two agree by chance
    falls = [0, 0, (r[0][0] - r[2][0]) / 2]  # as released: without the latest old task and the latest earlier test
    gains = [0, 0, (r[2][0] - r[0][0]) / 3]
    past = [0, r[1][0], (r[1][0] + r[2][0] + r[2][1]) / 3]
    true_falls = [0, r[0][0] - r[1][0], (max(r[0][0], r[1][0]) - r[2][0] + r[1][1] - r[2][1]) / 2]
    true_gains = [0, r[1][0] - r[0][0], (r[1][0] - r[0][0] + r[2][0] - r[0][0] + r[2][1] - r[1][1]) / 3]
    lines = [json.loads(line) for line in (folder / log).read_text().splitlines()]
    assert lines.pop() == {"last": percent(acc[2]), "avg": percent(sum(acc) / 3)}
    assert lines == [
        {
            "task": task,
            "acc": percent(acc[task]),
            "avg_acc": percent(sum(acc[: task + 1]) / (task + 1)),
            "forgetting": percent(falls[task], 6),
            "acc_per_task": [percent(rate) for rate in r[task]],
            "bwt": percent(gains[task]),
            "fwt": percent(past[task]),
            "forgetting_std": percent(true_falls[task], 6),
            "bwt_std": percent(true_gains[task]),
        }
        for task in range(3)
    ]
    records = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    values = {(line["metric"], line["dataset"], line["after_task"]): line["value"] for line in records}
    expected = {("accuracy", "CIFAR100", task + 1): 100 * acc[task] for task in range(3)}
    expected |= {("task_accuracy", f"task {j}", i + 1): 100 * r[i][j] for i in range(3) for j in range(i + 1)}
    expected |= {("avg", "CIFAR100", 3): 100 * sum(acc) / 3, ("last", "CIFAR100", 3): 100 * acc[2]}
    expected["trainable_parameters", "CIFAR100", 3] = 0
    if trained:
        weights = checkpoint(folder, 2).values()
        expected["trainable_parameters", "CIFAR100", 3] = sum(value.numel() for value in weights) - 1
        for task in range(3):
            assert values.pop(("train_seconds", f"task {task}", task + 1)) > 0
            assert values.pop(("peak_memory_mib", f"task {task}", task + 1)) > 0
    assert values == pytest.approx(expected, rel=1e-9)
    assert {(line["paper"], line["method"], line["protocol"]) for line in records} == {
        ("zscl", method, "cil-cifar100-40+2x30")
    }
    header, *rows = [line.split(",") for line in (folder / "accuracy.csv").read_text().splitlines()]
    assert header == ["after", "task 0", "task 1", "task 2"] and [row[0] for row in rows] == header[1:]
    for task, row in enumerate(rows):
        assert [float(cell) for cell in row[1 : task + 2]] == pytest.approx([100 * x for x in r[task]], abs=0.006)


def percent(fraction: float, digits: int = 2) -> float:
    return float(np.round(np.float64(100 * fraction), digits))


# Zero-shot CLIP: only the prompts grow. Tests are under random crops, as the originals test


def test_zero_shot(world: World, tmp_path: Path) -> None:
    """Of every test the images are those of all classes seen, in the data set's order, as crops of its own."""
    words = [*SIZES, "method=zeroshot", "batch_size=48"]
    seen, other = (
        started(world, tmp_path / f"{seed}", "cifar100_10-10-LwF", *words, f"seed={seed}") for seed in (5, 6)
    )
    with float64():
        model, hits, red = world.clip(), [], []
        for task, (classes, batches) in enumerate(zip(TASKS, seen.streams(), strict=True)):
            own = world.test.of(range(classes.stop))
            cropped, labels = (torch.cat(parts) for parts in zip(*batches))
            assert traced(cropped, world.test) == own and labels.tolist() == [world.test.labels[i] for i in own]
            chosen = predicted(model, cropped, world.prompts(range(classes.stop)))
            hits.append([(chosen == labels)[[y in block for y in labels]].double() for block in TASKS[: task + 1]])
            width, height = crops(cropped)
            assert 0.87 < (width * height).min() < 0.92
            red.append(cropped[:, 0])  # the same in all images, so it tells how each was cropped
        assert not seen.losses and not list((tmp_path / "5").glob("task_*.pth"))
        assert not any(torch.equal(one, later[: len(one)]) for one, later in zip(red, red[1:]))
        assert not torch.equal(other.streams()[0][0][0], seen.streams()[0][0][0])  # the crops follow from the seed
    holds_what_the_hits_say(tmp_path / "5", hits, "metrics.json", "Continual-CLIP", trained=False)


# Other reference images and other texts of L_CE


def test_a_folder_stands_in_for_the_reference_images(world: World, tmp_path: Path) -> None:
    """All classes in one task, without the ensemble. The images lose their captions: the sentences are all captions."""
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    for name in ("b/2.png", "a.png", "b/10.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / name)
    words = ["initial_increment=100", "increment=1", "we=null", f"ref_dataset={folder}", "batch_size=200", "lr=3e-4"]
    seen = started(world, tmp_path / "run", "cifar100_10-10-ZSCL", *words, "weight_decay=0.2", "ls=0.3")
    with float64():
        training, reference, _ = seen.streams()
        plain = torch.stack([TEST_TRANSFORM(Image.open(path)) for path in sorted(folder.rglob("*.png"))])
        for images, _ in reference:
            torch.testing.assert_close(sorted(images.tolist()), sorted(plain.tolist()), **EXACT)
        model, teacher = world.clip(), world.clip()
        sentences = features(teacher.encode_text, tokenize(world.captions, 200)[:, :77])
        assert world.captions[-2] == LONG and torch.equal(sentences[-1], sentences[-2])
        losses = learned(
            model, training, 0, lambda step: world.prompts(range(100)), [1e-5, 2e-5, 3e-5], 0.2, 0.3,
            lambda step: (reference[step][0], features(teacher.encode_image, reference[step][0]), sentences),
        )  # fmt: skip
        np.testing.assert_allclose(seen.losses, losses, rtol=1e-9)
        same_weights(checkpoint(tmp_path / "run", 0), model.state_dict())
    records = (tmp_path / "run" / "record.jsonl").read_text()
    assert '"ZSCL (no WE, reference images: pictures)"' in records and '"joint-cifar100"' in records


def test_captions_join_the_classes_of_the_task(world: World, tmp_path: Path) -> None:
    """ce_method ext: 100 of 130 captions, drawn anew without replacement at each step, behind the task's prompts."""
    words = ["initial_increment=60", "increment=40", "batch_size=50", "lr=6e-4", "ls=0.25", "weight_decay=0.15"]
    seen = started(world, tmp_path / "run", "cifar100_2-2_new", *words, "method=ext", "ce_method=ext")
    with float64():
        captions = tokenize(world.captions, 200)[:, :77]
        drawn = [order[:100] for order in seen.draws("randperm") if len(order) == 130]
        assert len({tuple(order.tolist()) for order in drawn}) == len(drawn) == 5 + 4
        model, losses = world.clip(), []
        for task, (classes, training) in enumerate(zip((range(60), range(60, 100)), seen.streams()[::2])):
            prompts, chosen = world.prompts(classes), iter([drawn[:5], drawn[5:]][task])
            losses += learned(
                model, training, classes.start, lambda step: torch.cat([prompts, captions[next(chosen)]]),
                [2e-5 * (step + 1) for step in range(len(training))], 0.15, 0.25,
            )  # fmt: skip
            same_weights(checkpoint(tmp_path / "run", task), model.state_dict())
        np.testing.assert_allclose(seen.losses, losses, rtol=1e-9)
