"""IT-Prompt with C-NCM (Applied Sciences 2025, 15(6), 2966), from the command line to the records.

CUB-200's classes in the order of the seed, in tasks of 5, 3, 3, ...; the first three are learnt. No head and no
selector: the texts guide the entries, the nearest cluster means tell the entry and the class.
"""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode

from tests.vq_prompt.it_prompt.plain import (
    CLIP_MEAN, CLIP_STD, annealed, by_optimizer, centroids_of, class_distances, clip_features, crop_box, model_after,
    rates, text_features, values, write_clip, write_cub200,
)  # fmt: skip
from tests.whole_run import float64, watched
from vq_prompt.run import main

SEED = 12
ORDER = list(range(200))
random.Random(SEED).shuffle(ORDER)
TASKS = [range(0, 5), range(5, 8), range(8, 11)]
TRAIN = dict(zip(ORDER[:11], (3, 4, 2, 5, 4, 3, 5, 4, 2, 5, 4)))
TEST = dict(zip(ORDER[:14], (4, 3, 3, 4, 3, 2, 4, 3, 4, 3, 2, 3, 3, 3)))
NAMES = [f"Made-up Bird{label} of {label % 7}" for label in range(200)]  # texts have spaces where folders have "_"
TEMPLATE, LAYERS = "a photo of {}", [1]
OPTIONS = [
    "first_split_size=5", "other_split_size=3", "max_task=3", "batch_size=4", "drop_last=true", "epochs=2", "lr=0.017",
    f"prompt_layers={LAYERS}", "prompt_length=6", "logit_scale=40", "lambda_text=0.6", "lambda_key=2.3", "n_clusters=3",
]  # fmt: skip
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture(scope="module", autouse=True)
def many_digits():
    with float64():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("it_cncm_whole")
    pictures = write_cub200(root / "data", TRAIN, TEST)
    write_clip(root / "clip.pt", ORDER[:14], NAMES, TEMPLATE)
    weights = {key: value.double() for key, value in torch.load(root / "clip.pt", weights_only=True).items()}
    return root, pictures, weights, text_features(weights, [NAMES[label] for label in ORDER], TEMPLATE)


@pytest.fixture(scope="module")
def run(world):
    """The run's output folder, and the steps of each task's training; nothing else is trained."""
    root, out = world[0], world[0] / "out"
    command = ["--config", "configs/cub-200_it_prompt.yaml", "--learner_type", "it_prompt", "--no-verify"]
    command += ["--learner_name", "ITPromptCNCM", "--seeds", str(SEED), "--workers", "0", "--log_dir", str(out)]
    files = [f"dataroot={root / 'data'}", f"clip_weights={root / 'clip.pt'}"]
    with watched() as seen:
        main([*command, "--device", "cpu", "--set", *OPTIONS, *files])
    found = by_optimizer(seen)
    assert len(found) == 3
    return out, found


def plain_run(world, stages):
    """The whole method, written out. Taken from the run: its batches and its initial values."""
    _, pictures, weights, text = world
    views, labels = pictures.of("test", ORDER)
    test_u = clip_features(weights, views)
    prompts, u_store, z_store, after = [], [], [], []
    for task, (classes, steps) in enumerate(zip(TASKS, stages)):
        p, k = (value.clone() for value in steps[0]["step"].start[0])
        p = prompts[-1].clone() if task else p  # an entry starts as the one before, its key does not
        p.requires_grad_(), k.requires_grad_()

        def losses_of(step):
            images, targets = step["batch"]
            with torch.no_grad():
                u = clip_features(weights, images)
            z = clip_features(weights, images, p, LAYERS)
            guide = F.cross_entropy(40 * z @ text[classes.start : classes.stop].T, targets - classes.start)
            return {"loss": 0.6 * guide + 2.3 * (1 - u @ (k / k.norm())).mean()}

        losses = annealed([p, k], steps, 0.017, 0.0, losses_of)["loss"]
        prompts.append(p.detach())

        # one look at all of the task's pictures under the test transform, in their order: clusters of u and of z
        images, targets = pictures.of("train", ORDER, task=classes)
        u, z = clip_features(weights, images), clip_features(weights, images, prompts[task], LAYERS)
        for store, features in ((u_store, u), (z_store, z)):
            store += [centroids_of(features[targets == label], 3, SEED) for label in classes]

        # test: the entry by the nearest cluster of u, then the class by the nearest cluster of z
        rows = labels < classes.stop
        nearest = class_distances(test_u[rows], u_store).argmin(dim=1)
        entries = task_of(nearest)
        z = clip_features(weights, views[rows], torch.stack(prompts)[entries], LAYERS)
        answers = {
            "accuracy": class_distances(z, z_store).argmin(dim=1),
            "cncm_u": nearest,
            "zero_shot": (test_u[rows] @ text[: classes.stop].T).argmax(dim=1),
        }
        right = {name: answer == labels[rows] for name, answer in answers.items()}
        stores = {"u": list(u_store), "z": list(z_store)}
        after.append({"losses": losses, "p": p.detach(), "k": k.detach(), "entries": entries, "right": right} | stores)
    return after


def task_of(classes):
    return torch.tensor([next(task for task, own in enumerate(TASKS) if label in own) for label in classes.tolist()])


@pytest.fixture(scope="module")
def plain(world, run):
    return plain_run(world, run[1])


def test_losses_rates_and_decay_of_every_step(run, plain):
    """Two epochs of full batches of four: of 18, 12 and 11 pictures, the rest of an epoch is left out."""
    for count, steps, after in zip((4, 3, 2), run[1], plain, strict=True):
        assert [len(step["batch"][1]) for step in steps] == [4] * (2 * count)
        torch.testing.assert_close(torch.tensor([step["loss"] for step in steps]), after["losses"], rtol=1e-9, atol=0)
        for rate, step in zip(rates(0.017, 2 * count), steps):
            (group,) = step["step"].groups
            assert group["lr"] == pytest.approx(rate, rel=1e-12) and group["weight_decay"] == 0


def test_training_batches_are_shuffled_crops_of_the_tasks_pictures(world, run):
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    for classes, steps in zip(TASKS, run[1]):
        half = len(steps) // 2
        drawn = [torch.cat([step["batch"][1] for step in epoch]) for epoch in (steps[:half], steps[half:])]
        assert drawn[0].tolist() != drawn[1].tolist() and drawn[0].tolist() != sorted(drawn[0].tolist())
        for labels in drawn:
            counts = (labels - classes.start).bincount(minlength=len(classes)).tolist()
            assert all(count <= TRAIN[ORDER[label]] for count, label in zip(counts, classes, strict=True))
    for step in run[1][2]:
        for view, label in zip(*step["batch"]):
            candidates = [image for image, original in world[1].train if original == ORDER[label]]
            crop_box(view * std + mean, candidates, InterpolationMode.BICUBIC)


def test_entries_and_stores_in_the_checkpoints(run, plain):
    """What was learnt in a task stays, entries, clusters of u and clusters of z; at most three clusters a class.

    Which of three pictures' clusters is the first hangs on a tie in k-means++: clusters are compared in one order.
    """

    def ordered(centroids):
        return [own[own[:, 0].argsort()] for own in centroids]

    for task, found in enumerate(plain):
        saved = model_after(run[0], task)
        for past in range(task + 1):
            torch.testing.assert_close(saved["state_dict"][f"prompt.p_{past}"], plain[past]["p"], **CLOSE)
            torch.testing.assert_close(saved["state_dict"][f"prompt.k_{past}"], plain[past]["k"], **CLOSE)
        assert all(key.startswith("prompt.") for key in saved["state_dict"])
        for store in ("u", "z"):
            torch.testing.assert_close(ordered(saved[store]["centroids"]), ordered(found[store]), **CLOSE)
            assert saved[store]["means"] == saved[store]["variances"] == [] and saved[store]["center"] is None


def test_accuracies(world, run, plain):
    _, labels = world[1].of("test", ORDER)
    folder, R = run[0] / "repeat-1", np.zeros((3, 3))
    for task, found in enumerate(plain):
        tasks = task_of(labels[labels < TASKS[task].stop])
        by_task = {
            name: [100 * right[tasks == past].double().mean() for past in range(task + 1)]
            for name, right in found["right"].items()
        }
        R[: task + 1, task] = by_task["accuracy"]
        expected = {
            "accuracy": 100 * found["right"]["accuracy"].double().mean(),
            "task_id_accuracy": (found["entries"] == tasks).double().mean(),
            "cncm_u": np.mean(by_task["cncm_u"]),
            "zero_shot": np.mean(by_task["zero_shot"]),
            "faa": R[: task + 1, task].mean(),
            "trainable_parameters": 6 * 128 + 20,
        }
        for metric, value in expected.items():
            assert values(folder, metric)[task + 1, "CUB200"] == pytest.approx(float(value), rel=1e-12), metric
        for past in range(task + 1):
            recorded = values(folder, "task_accuracy")[task + 1, f"task {past}"]
            assert recorded == pytest.approx(R[past, task], rel=1e-12)


def test_the_runs_answers_tell_mistakes(plain):
    """Neither all right nor all wrong; prompts, clusters and texts answer differently, and all entries are used."""
    for found in plain[1:]:
        assert all(0 < answers.double().mean() < 1 for answers in found["right"].values())
        assert len({tuple(answers.tolist()) for answers in found["right"].values()}) == 3
    assert [len(set(found["entries"].tolist())) for found in plain] == [1, 2, 3]


def test_plain_clip_on_classes_not_learnt(world, run):
    """Among the names of all 200 classes: each later task before the first one, and again just before itself."""
    _, pictures, weights, text = world
    expected = {}
    for task, classes in enumerate((range(5, 8), range(8, 11), range(11, 14)), start=1):
        views, labels = pictures.of("test", ORDER, task=classes)
        share = ((clip_features(weights, views) @ text.T).argmax(dim=1) == labels).double().mean()
        expected |= dict.fromkeys([(0, f"task {task}"), (task, f"task {task}")], 100 * float(share))
    assert max(expected.values()) > 0
    assert values(run[0] / "repeat-1", "zero_shot_unseen") == pytest.approx(expected, rel=1e-12)
