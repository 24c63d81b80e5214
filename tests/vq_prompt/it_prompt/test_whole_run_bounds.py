"""IT-Prompt's bounds without training, plain CLIP and the nearest class mean, and a command's tables over its seeds.

CUB-200 has another class order under each seed; CIFAR-100 has one, and here a fifth of its training part as the test.
"""

import random

import numpy as np
import openpyxl
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.vq_prompt.it_prompt.plain import (
    Pictures, class_distances, clip_features, text_features, values, write_cifar100, write_clip, write_cub200,
)  # fmt: skip
from tests.whole_run import float64, watched
from vq_prompt.run import main

SEEDS, TASKS = (12, 3), [range(0, 5), range(5, 8), range(8, 11)]
NAMES = [f"Made-up Bird{label} of {label % 7}" for label in range(200)]
CIFAR_ORDER = [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]


def shuffled(seed):
    order = list(range(200))
    random.Random(seed).shuffle(order)
    return order


@pytest.fixture(scope="module", autouse=True)
def many_digits():
    with float64():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both data sets, and one CLIP, fitted on the birds."""
    root = tmp_path_factory.mktemp("it_bounds")
    labels = sorted({label for seed in SEEDS for label in shuffled(seed)[:11]})
    birds = write_cub200(root / "data", *({label: 2 + (label + add) % 3 for label in labels} for add in (0, 1)))
    things = write_cifar100(root / "data", dict.fromkeys(CIFAR_ORDER, 6), dict.fromkeys(CIFAR_ORDER, 1), rest="test")
    write_clip(root / "clip.pt", labels, NAMES, "a photo of {}")
    weights = {key: value.double() for key, value in torch.load(root / "clip.pt", weights_only=True).items()}
    return root, birds, things, weights


def command(root, config, learner, seeds, *options):
    """Run a bound; its output folder. Nothing is trained."""
    flags = ["--config", f"configs/{config}_it_prompt.yaml", "--learner_type", "it_prompt", "--no-verify"]
    flags += ["--learner_name", learner, "--repeat", str(len(seeds)), "--seeds", *map(str, seeds), "--workers", "0"]
    files = [f"dataroot={root / 'data'}", f"clip_weights={root / 'clip.pt'}", "first_split_size=5", "batch_size=7"]
    with watched() as seen:
        main([*flags, "--log_dir", str(root / learner), "--device", "cpu", "--set", *files, *options])
    assert not seen.steps and not seen.losses
    return root / learner


def accuracies(predictions_after, labels, tasks):
    """R (T, T), R[j, i] percent of task j after task i, from the predictions after each task among the classes seen."""
    R = np.zeros((len(tasks), len(tasks)))
    for after, found in enumerate(predictions_after):
        for task, own in enumerate(tasks[: after + 1]):
            rows = (labels >= own.start) & (labels < own.stop)
            R[task, after] = 100 * float((found == labels)[rows].double().mean())
    return R


def class_means(u, labels, count):
    return [F.normalize(F.normalize(u[labels == label], dim=1).mean(dim=0), dim=0)[None] for label in range(count)]


def recorded(folder, tasks):
    found, R = values(folder, "task_accuracy"), np.zeros((tasks, tasks))
    for (after, name), value in found.items():
        R[int(name.removeprefix("task ")), after - 1] = value
    return R


def test_zero_shot_over_two_seeds(world):
    """Plain CLIP among the classes seen, each seed in its own order; the tables' mean and population deviation."""
    root, birds, _, weights = world
    out = command(root, "cub-200", "ZeroShot", SEEDS, "other_split_size=3", "max_task=3")
    matrices = []
    for repeat, seed in enumerate(SEEDS, start=1):
        order = shuffled(seed)
        views, labels = birds.of("test", order)
        u = clip_features(weights, views)
        text = text_features(weights, [NAMES[label] for label in order], "a photo of {}")
        matrices.append(accuracies([(u @ text[: own.stop].T).argmax(dim=1) for own in TASKS], labels, TASKS))
        np.testing.assert_allclose(recorded(out / f"repeat-{repeat}", 3), matrices[-1], rtol=1e-12)
    averages = [[R[: task + 1, task].mean() for task in range(3)] for R in matrices]
    history = yaml.safe_load((out / "results-acc" / "global.yaml").read_text())["history"]
    np.testing.assert_allclose(history, np.transpose(averages), rtol=1e-12)
    header, row = ([cell.value for cell in line] for line in openpyxl.load_workbook(out / "results.xlsx").active)
    forgetting = [np.mean(R[:2, :2].max(axis=1) - R[:2, 2]) for R in matrices]
    for name, found in (("FAA", np.array(averages)[:, -1]), ("CAA", np.mean(averages, axis=1)), ("FR", forgetting)):
        assert row[header.index(f"{name}_m")] == pytest.approx(np.mean(found), rel=1e-9)
        assert row[header.index(f"{name}_s")] == pytest.approx(np.std(found), rel=1e-9)
    assert not np.allclose(*matrices) and 0 < np.mean(averages) < 100


def test_nearest_class_mean_on_held_out_pictures(world):
    """`validation`: means from 80 % of the training pictures, the others as the test, all under the test transform.

    One mean a class whatever n_clusters says, and no text.
    """
    root, _, things, weights = world
    place = np.random.RandomState(5).permutation(60)
    kept, held_out = ([things.train[row] for row in rows] for rows in (place[:48], place[48:]))
    split = Pictures(things.names, kept, held_out)
    tasks = [range(0, 5), range(5, 10)]
    options = ("other_split_size=5", "max_task=2", "validation=true", "n_clusters=4")
    out = command(root, "cifar-100", "NCM", (5,), *options)
    views, labels = split.of("train", CIFAR_ORDER)
    means = class_means(clip_features(weights, views), labels, 10)
    views, labels = split.of("test", CIFAR_ORDER)
    distances = class_distances(clip_features(weights, views), means)
    predictions = [distances[:, : own.stop].argmin(dim=1) for own in tasks]
    R = accuracies(predictions, labels, tasks)
    np.testing.assert_allclose(recorded(out / "repeat-1", 2), R, rtol=1e-12)
    assert 0 < R[np.triu_indices(2)].min() and R.max() < 100
