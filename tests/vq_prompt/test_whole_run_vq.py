"""VQ-Prompt's whole run, by its command line, against the same run written out as plain steps (plain_vq.py).

Three tasks of ImageNet-R, of unequal sizes, with the iteration schedule `coswm`. All values are unlike each other and
unlike the defaults, so that a swapped or an ignored one is seen.
"""

import random
from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from tests.vq_prompt import plain_vq as plain
from tests.vq_prompt.vq_pictures import codes, is_flipped, made_up, records, shown, width_held, write_imagenet_r
from tests.whole_run import float64, watched
from vq_prompt.run import main

SEED, BATCH, EPOCHS = 3, 5, 3
TASKS = [range(0, 5), range(5, 8), range(8, 11)]  # places in the class order
ORDER = list(range(200))
random.Random(SEED).shuffle(ORDER)
TRAIN = [6, 7, 1, 6, 7, 5, 8, 6, 6, 7, 5]  # pictures a class; the features of a single one do not vary
TEST = [8, 9, 7, 6, 8, 9, 6, 8, 7, 9, 8]
TEST_TRANSFORM = Compose([Resize(36), CenterCrop(32), ToTensor()])  # 256 for 224 pixels; in [0, 1], not normalised
SAMPLES, RETRAINING_EPOCHS = 9, 4  # of a Gaussian: int(5 * 1.9)
COMMAND = """
    --learner_type prompt --learner_name VQPrompt --config configs/imnet-r_prompt_vq.yaml --device cpu --workers 0
    --pretrained_weight mini --no-verify --seeds 3 --prompt_param 6 4 2.5
    --crct_epochs 4 --ca_lr 0.02 --ca_weight_decay 0.3 --ca_batch_size_ratio 1.9
    --set first_split_size=5 other_split_size=3 max_task=3 batch_size=5 schedule=[2,1,3] iter_step=4 lr=0.004
    prompt_lr_mult=3.0 weight_decay=0.05
""".split()
close = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The program's run: what it did, batch by batch, and what it left."""
    root = tmp_path_factory.mktemp("whole_run_vq")
    pictures = made_up(ORDER[:11], TRAIN, TEST)
    write_imagenet_r(root, pictures)
    with float64(), watched("randn", "randperm") as seen:
        main([*COMMAND, f"dataroot={root}", "--log_dir", str(root / "out")])
    streams, models = seen.streams(), root / "out-mini/models/repeat-1"
    assert len(streams) == 9
    tasks = []
    for task in range(3):
        passes = dict(zip(("training", "statistics", "test"), streams[3 * task : 3 * task + 3]))
        files = {"model": "class.pth", "gaussians": "statistics.pth"}
        for name, file in files.items():
            files[name] = torch.load(models / f"task-{task + 1}" / file, weights_only=True)
        tasks.append(SimpleNamespace(**passes, **files))
    return SimpleNamespace(seen=seen, pictures=pictures, tasks=tasks, records=records(root / "out-mini/repeat-1"))


@pytest.fixture(scope="module")
def written_out(run):
    """The same run as plain steps on the batches and the noise that the program drew."""
    with float64():
        model = plain.Model(plain.miniature_vit(run.tasks[0].model), plain.first_values(SEED, 200, 6, 4), tau=2.5)
        noise, gaussians = iter(run.seen.draws("randn")), []
        out = SimpleNamespace(losses=[], groups=[], tasks=[])
        for task, (classes, seen) in enumerate(zip(TASKS, run.tasks)):
            batches = [(images, run.pictures.labels(codes(images), ORDER)) for images, _ in seen.training]
            rates = [plain.coswm(base, 2, 1 * 4, 3 * 4, len(batches)) for base in (3 * 0.004, 0.004)]
            out.losses += plain.learn(model, batches, rates, 0.05, classes.start, classes.stop)
            out.groups += [[(prompt, 0.05), (classifier, 0.05)] for prompt, classifier in zip(*rates)]
            z = torch.cat([plain.features(model, images)[0].detach() for images, _ in seen.statistics])
            labels = torch.cat([run.pictures.labels(codes(images), ORDER) for images, _ in seen.statistics])
            gaussians += plain.statistics(z, labels, classes)
            if task > 0:
                spread = [one for one in gaussians if one[2].mean() != 0]
                drawn = torch.stack([next(noise) for _ in range(RETRAINING_EPOCHS) for _ in spread])
                orders = [order for order in run.seen.draws("randperm") if len(order) == SAMPLES * len(spread)]
                updates = RETRAINING_EPOCHS * classes.start
                rates = [0.02, *plain.coswm(0.1 * 0.02, 0, 0, updates, updates)[1:]]
                drawn = drawn.unflatten(0, (RETRAINING_EPOCHS, len(spread)))
                out.losses += plain.retrain(model, spread, drawn, orders, rates, 0.3, classes.start, classes.stop)
                out.groups += [[(rate, 0.3)] for rate in rates]
            tests = [shown(run.pictures.test, ORDER, one, TEST_TRANSFORM) for one in TASKS[: task + 1]]
            accuracies = [plain.accuracy(model, *test, classes.stop) for test in tests]
            trained = {key: value.detach().clone() for key, value in model.parts.items()}
            own = [one for one in gaussians if one[0] in classes]
            out.tasks.append(SimpleNamespace(trained=trained, gaussians=own, accuracies=accuracies))
        assert next(noise, None) is None
    return out


# The pictures that each pass saw


def test_training_sees_crops_and_flips_of_the_tasks_pictures(run):
    """Shuffled anew in every epoch; the batch that would not be full is left out."""
    for classes, task in zip(TASKS, run.tasks):
        own = run.pictures.codes(ORDER[classes.start : classes.stop])
        batches = len(own) // BATCH
        assert [len(images) for images, _ in task.training] == [BATCH] * batches * EPOCHS
        epochs = torch.cat([images for images, _ in task.training]).split(batches * BATCH)
        for images in epochs:
            found = codes(images)
            assert len(set(found)) == len(found) and set(found) <= set(own) and found != sorted(found, key=own.index)
            assert 0.2 < is_flipped(images).double().mean() < 0.8
            assert width_held(images).min() < 0.5 and width_held(images).max() > 0.8  # 8 to 100 % of the area
        for one, other in combinations(epochs, 2):
            assert codes(one) != codes(other) and not torch.equal(is_flipped(one), is_flipped(other))


def test_statistics_see_every_picture_once_under_the_training_transform(run):
    """In the list's order; a class can be smaller than a batch, and nothing is left out."""
    for classes, task in zip(TASKS, run.tasks):
        images = torch.cat([images for images, _ in task.statistics])
        assert codes(images) == run.pictures.codes(ORDER[classes.start : classes.stop])
        assert 0.2 < is_flipped(images).double().mean() < 0.8
        assert width_held(images).min() < 0.5


def test_every_test_sees_the_pictures_of_all_tasks_so_far_as_they_are(run):
    for task, seen in enumerate(run.tasks):
        with float64():
            expected = torch.cat([shown(run.pictures.test, ORDER, one, TEST_TRANSFORM)[0] for one in TASKS[: task + 1]])
        assert torch.equal(torch.cat([images for images, _ in seen.test]), expected)


def test_no_two_passes_draw_the_same(run):
    passes = [stream for task in run.tasks for stream in (task.training, task.statistics)]
    flips = [is_flipped(torch.cat([images for images, _ in stream]))[:15].tolist() for stream in passes]
    assert all(one != other for one, other in combinations(flips, 2))
    noise = torch.stack(run.seen.draws("randn"))
    assert noise.shape[1:] == (SAMPLES, 128) and len(noise.unique(dim=0)) == len(noise)
    orders = [order.tolist() for order in run.seen.draws("randperm") if len(order) in (SAMPLES * 7, SAMPLES * 10)]
    assert len(orders) == 2 * RETRAINING_EPOCHS and all(one != other for one, other in pairwise(orders))


# What the run computed


def test_losses_of_every_update(run, written_out):
    assert run.seen.losses == pytest.approx(written_out.losses, rel=1e-9)


def test_rates_and_weight_decay_of_every_update(run, written_out):
    """A new AdamW for every training and every re-training."""
    assert [len(steps) for steps in run.seen.optimizers()] == [3 * 5, 3 * 3, 4 * 5, 3 * 3, 4 * 8]
    found = [[(group["lr"], group["weight_decay"]) for group in step.groups] for step in run.seen.steps]
    for step, groups, expected in zip(run.seen.steps, found, written_out.groups, strict=True):
        assert groups == [pytest.approx(one, rel=1e-12) for one in expected]
        assert step.kind == "AdamW" and step.groups[0]["betas"] == (0.9, 0.999) and step.groups[0]["eps"] == 1e-8


def test_what_is_trained_and_the_vit_that_is_not(run, written_out):
    for task, expected in zip(run.tasks, written_out.tasks):
        assert task.model.keys() == run.tasks[0].model.keys()
        for key, value in task.model.items():
            wanted = run.tasks[0].model[key] if key.startswith("feat.") else expected.trained[key]
            torch.testing.assert_close(value, wanted, **close, msg=key)


def test_statistics_are_of_the_tasks_own_classes(run, written_out):
    for task, expected in zip(run.tasks, written_out.tasks):
        labels, means, variances = zip(*expected.gaussians)
        assert task.gaussians["labels"].tolist() == list(labels)
        torch.testing.assert_close(task.gaussians["means"], torch.stack(means), **close)
        torch.testing.assert_close(task.gaussians["variances"], torch.stack(variances), **close)


def test_accuracies_and_what_is_made_of_them(run, written_out):
    R = [task.accuracies for task in written_out.tasks]
    assert 20 < R[2][0] < R[1][0] < R[0][0] < 100  # so that a mistake would be seen
    means = [sum(row) / len(row) for row in R]
    for after, row in enumerate(R, start=1):
        accuracies = {f"task {task}": value for task, value in enumerate(row)}
        assert run.records[after, "task_accuracy"] == pytest.approx(accuracies, rel=1e-12)
        assert run.records[after, "faa"] == {"ImageNet_R": pytest.approx(means[after - 1])}
        assert run.records[after, "caa"] == {"ImageNet_R": pytest.approx(sum(means[:after]) / after)}
    forgetting = [0, R[0][0] - R[1][0], (max(R[0][0], R[1][0]) - R[2][0] + R[1][1] - R[2][1]) / 2]
    for after, value in enumerate(forgetting, start=1):
        assert run.records[after, "forgetting"] == {"ImageNet_R": pytest.approx(value)}
