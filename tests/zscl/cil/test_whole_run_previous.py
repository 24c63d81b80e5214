"""`python -m zscl.cil` with LwF, LwF-VR and iCaRL, whose teacher is the model before the task: whole runs, float64.

All three add 5 (L_img + L_txt) to L_CE as ZSCL does; they differ in the images and in the texts that they distil on.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from common.clip.model import build_model
from tests.whole_run import Seen, float64, watched
from tests.zscl.cil.plain import features, herded, learned, rates
from tests.zscl.cil.small_world import (
    World,
    checkpoint,
    command,
    crops,
    make_world,
    put_pickle,
    same_weights,
    started,
    traced,
)  # fmt: skip
from zscl.cil.__main__ import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("cil"))


# LwF, LwF-VR: tasks of 60 and 40 classes

LWF = [
    "initial_increment=60", "increment=40", "batch_size=70", "epochs=2", "warmup=3", "lr=5e-4", "ls=0.15",
    "weight_decay=0.4", "seed=3",
]  # fmt: skip


@pytest.mark.parametrize(
    "method, config, teacher",
    [("lwf", "LwF_only", "snapshot"), ("lwfvr", "LwF", "snapshot"), ("lwf", "LwF_only", "aliased")],
)
def test_lwf(world: World, tmp_path: Path, method: str, config: str, teacher: str) -> None:
    """Distils on crops of the task's own images, from a loader of its own, and on its prompts or on random texts.

    The teacher is a copy of the model before the task; as released, aliased, it is the student itself at every step.
    """
    seen = started(world, tmp_path / "run", f"cifar100_10-10-{config}", *LWF, f"teacher={teacher}")
    with float64():
        model, losses, streams = world.clip(), [], iter(seen.streams())
        ids = [draw for draw in seen.draws("randint") if draw.shape == (1000, 10)]  # LwF-VR's random texts
        assert len(ids) == (2 if method == "lwfvr" else 0) and not any(map(torch.equal, ids, ids[1:]))
        for task, (classes, total) in enumerate(((range(60), 2 * 3), (range(60, 100), 2 * 2))):
            training, reference, _ = next(streams), next(streams), next(streams)
            assert len(training) == len(reference) == total + 1
            draws_apart(training, reference, world, classes)
            texts = prompts = world.prompts(classes)
            if method == "lwfvr":  # start token, ten ids of the whole vocabulary, end token
                texts = torch.nn.functional.pad(ids[task], (1, 0), value=49406)
                texts = torch.nn.functional.pad(texts, (0, 1), value=49407)
            before = build_model(model.state_dict())

            def distilled(step: int) -> tuple[Tensor, Tensor, Tensor]:
                images, old = reference[step][0], before if teacher == "snapshot" else model
                return images, features(old.encode_image, images), features(old.encode_text, texts)

            losses += learned(
                model, training, classes.start, lambda step: prompts, rates(5e-4, 3, total), 0.4, 0.15, distilled
            )
            same_weights(checkpoint(tmp_path / "run", task), model.state_dict())
        np.testing.assert_allclose(seen.losses, losses, rtol=1e-9)


def draws_apart(training: list, reference: list, world: World, classes: range) -> None:
    """Both streams go through the task's images, an epoch each once, in orders and under crops of their own."""
    own, orders = world.train.of(classes), []
    for batches in (training, reference):
        images = torch.cat([images for images, _ in batches])
        drawn = traced(images, world.train)
        orders += [drawn[: len(own)], drawn[len(own) : 2 * len(own)]]
        width, height = crops(images)
        assert width.min() > 0.85 and height.min() > 0.85 and 0.87 < (width * height).min() < 0.92
    assert all(sorted(order) == own for order in orders) and len(set(map(tuple, orders))) == 4
    apart = torch.cdist(*(torch.cat([images for images, _ in stream]).flatten(1) for stream in (training, reference)))
    assert apart.min(dim=1).values.median() > 0  # a few of so many crops of small images are the same by chance


# iCaRL: tasks of 40, 30 and 30 classes, 90 exemplars; L_CE over all classes seen

TASKS = (range(0, 40), range(40, 70), range(70, 100))
BATCHES = (3, 2, 2)  # an epoch, of three images a class, 48 at a time
ICARL = [
    "initial_increment=40", "increment=30", "batch_size=48", "memory_size=90", "ce_method=previous", "lr=6e-4",
    "ls=0.05", "weight_decay=0.2",
]  # fmt: skip
OURS = ["seed=8", "we=1", "avg_freq=2"]  # the ensemble is ZSCL's alone, whatever `we` says
RELEASED = ["seed=9", "icarl_compat=true", "previous_compat=true"]


@pytest.fixture(scope="module")
def icarl(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, Seen]]:
    """Two runs, by whether they keep the exemplars, and the names of earlier classes, as the released code does."""
    folder = tmp_path_factory.mktemp("runs")
    runs = ((released, folder / f"{released}") for released in (False, True))
    return {
        released: (place, started(world, place, "cifar100_10-10-iCaRL", *ICARL, *(RELEASED if released else OURS)))
        for released, place in runs
    }


@pytest.mark.parametrize("released", [False, True])
def test_icarl(world: World, icarl: dict[bool, tuple[Path, Seen]], released: bool) -> None:
    """Exemplars are chosen by herding with the model before the task, and their crops stay as they were then.

    Of K = 90 every one of t tasks has K / t. As released the newest has K - K / t (all of K if it is the first), and
    what is stored for it stands at a stale index.
    """
    folder, seen = icarl[released]
    with float64():
        model, losses, memory, streams = world.clip(), [], [], iter(seen.streams())
        for task, (classes, total) in enumerate(zip(TASKS, BATCHES)):
            herding, training, reference, _ = (next(streams) for _ in range(4))
            candidates = torch.cat([images for images, _ in herding])
            assert traced(candidates, world.train) == world.train.of(classes)
            width, height = crops(candidates)
            assert 0.87 < (width * height).min() < 0.92
            share = 90 // (task + 1)
            count = (90 - share or 90) if released else share
            chosen = herded(features(model.encode_image, candidates), count, stale=released)
            memory = [*(images[:share] for images in memory), candidates[chosen]]
            passes_in_order([images for images, _ in reference], torch.cat(memory), total + 1)

            earlier = range(max(0, classes.stop - 40) if released else classes.start)
            texts = torch.cat([world.prompts(classes), world.prompts(earlier)]) if task else world.prompts(classes)
            teacher = build_model(model.state_dict())
            sentences = features(teacher.encode_text, world.prompts(classes))
            losses += learned(
                model, training, classes.start, lambda step: texts,
                [2e-5 * (step + 1) for step in range(total + 1)],  # tasks this short are all warm-up, of 30 steps
                weight_decay=0.2, smoothing=0.05,
                distilled=lambda step: (
                    reference[step][0], features(teacher.encode_image, reference[step][0]), sentences
                ),
            )  # fmt: skip
            same_weights(checkpoint(folder, task), model.state_dict())
        np.testing.assert_allclose(seen.losses, losses, rtol=1e-9)


def passes_in_order(batches: list[Tensor], exemplars: Tensor, steps: int) -> None:
    """64 exemplars at a time whatever the batch size, in the order in which they are stored, again and again."""
    fixed = exemplars.split(64)
    assert len(batches) == steps > len(fixed)
    for step, images in enumerate(batches):
        assert torch.equal(images, fixed[step % len(fixed)])


def test_another_seed_draws_other_batches(icarl: dict[bool, tuple[Path, Seen]]) -> None:
    one, other = (icarl[released][1].streams() for released in (False, True))
    for place in range(2):  # the first task's candidates and its training batches
        assert not torch.equal(one[place][0][0], other[place][0][0])
    assert one[1][0][1].tolist() != other[1][0][1].tolist()


def test_of_a_larger_task_the_first_ten_thousand_images_are_candidates(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10,040 images, all black. Interrupted at the first step: what was drawn before it is what counts."""
    labels = [7 * index % 100 for index in range(10_040)]
    shutil.copytree(world.root / "data", tmp_path / "data")
    put_pickle(
        tmp_path / "data" / "cifar100" / "cifar-100-python" / "train",
        {"data": np.zeros((10_040, 3 * 32 * 32), np.uint8), "fine_labels": labels},
    )
    monkeypatch.setattr(Tensor, "backward", interrupted)
    monkeypatch.setattr(RandomResizedCrop, "forward", lambda self, image: image.crop((0, 0, 24, 24)))  # seconds less
    words = [f"dataset_root={tmp_path / 'data'}", "initial_increment=100", "increment=1", "memory_size=20"]
    with watched() as seen, pytest.raises(SystemExit):
        main([*command(world, "cifar100_10-10-iCaRL"), *words, f"save={tmp_path / 'run'}"])
    position = np.argsort(yaml.safe_load((world.root / "order.yaml").read_text())["class_order"])
    herding = torch.cat([labels for _, labels in seen.streams()[0]])
    assert herding.tolist() == position[labels[:10_000]].tolist()


def interrupted(loss: Tensor) -> None:
    raise KeyboardInterrupt
