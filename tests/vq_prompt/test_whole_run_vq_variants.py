"""What VQ-Prompt's options change, and the nearest class mean: whole runs against the same ones written out.

CUB-200's epoch schedule with what is not the released code's way; Soft-Prompt on CIFAR-100's held-out training images;
VQ-Prompt-S; the nearest class mean under three seeds, with the tables over them.
"""

import random
from types import SimpleNamespace

import numpy as np
import openpyxl
import pytest
import torch
import yaml
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from tests.vq_prompt import plain_vq as plain
from tests.vq_prompt.vq_pictures import codes, is_flipped, made_up, records, shown, write_cifar100, write_cub200
from tests.whole_run import float64, watched
from vq_prompt.run import main

COMMON = "--learner_type prompt --device cpu --workers 0 --pretrained_weight mini --no-verify".split()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
close = {"rtol": 1e-8, "atol": 1e-10}


def shuffled(classes, seed):
    order = list(range(classes))
    random.Random(seed).shuffle(order)
    return order


def started(root, command, *more):
    """What the program did, and its output folder."""
    arguments = [*COMMON, *command.split(), f"dataroot={root}", *more, "--log_dir", str(root / "out")]
    with float64(), watched("randn", "randperm") as seen:
        main(arguments)
    return seen, root / "out-mini"


def saved(out, task, repeat=1, name="class"):
    return torch.load(out / f"models/repeat-{repeat}/task-{task}/{name}.pth", weights_only=True)


def rates_and_decay(seen):
    return [[(group["lr"], group["weight_decay"]) for group in step.groups] for step in seen.steps]


# Two Gaussians a class, the paper's weights, cosines of query and keys, the schedule of epochs


CUB = """
    --learner_name VQPrompt --config configs/cub-200_prompt_vq.yaml --seeds 12 --prompt_param 5 2 0.3
    --crct_epochs 3 --ca_lr 0.03 --ca_weight_decay 0.2 --ca_batch_size_ratio 2 --n_centroids 2
    --set first_split_size=4 other_split_size=2 max_task=2 batch_size=6 schedule=[3] iter_step=9 lr=0.003
    prompt_lr_mult=2.0 vq_weight_convention=paper normalize_query=true ca_first_step_full_lr=false
"""


@pytest.mark.parametrize("backbone", ["mini", "clip-mini"])
def test_the_papers_convention_with_two_gaussians_a_class(backbone, tmp_path):
    order, tasks = shuffled(200, 12), [range(0, 4), range(4, 6)]
    pictures = made_up(order[:6], [6, 1, 7, 5, 7, 6], [8, 9, 7, 9, 8, 7])
    write_cub200(tmp_path, pictures)
    seen, out = started(tmp_path, f"--pretrained_weight {backbone} {CUB}")
    streams, found = seen.streams(), records(out / "repeat-1")
    transform = Compose([Resize(36), CenterCrop(32), ToTensor()])
    with float64():
        vit, first = plain.miniature_vit(saved(out, 1)), plain.first_values(12, 200, 5, 2)
        begin = {key: value.detach().clone() for key, value in first.items()}
        model = plain.Model(vit, first, tau=0.3, weights=(0.1, 0.4), normalise_query=True)
        losses, groups, gaussians = [], [], []
        for task, classes in enumerate(tasks):
            training, statistics, test = streams[3 * task : 3 * task + 3]
            batches = [(images, pictures.labels(codes(images), order)) for images, _ in training]
            rates = [plain.cosine(base, 3, len(batches) // 3) for base in (2 * 0.003, 0.003)]
            losses += plain.learn(model, batches, rates, 0, classes.start, classes.stop)
            groups += [[(prompt, 0), (classifier, 0)] for prompt, classifier in zip(*rates)]
            images = torch.cat([images for images, _ in statistics])
            z, own = plain.features(model, images)[0].detach(), codes(images)
            gaussians += plain.statistics(z, pictures.labels(own, order), classes, clusters=2, seed=12)
            assert own == pictures.codes(order[classes.start : classes.stop])
            assert 0 < is_flipped(images).sum() < len(own)  # under the training transform
            if task == 0:  # without weight decay the classes that are not trained keep their first values
                assert torch.equal(saved(out, 1)["last.weight"][4:], begin["last.weight"][4:])
                assert torch.equal(saved(out, 1)["last.bias"][4:], begin["last.bias"][4:])
            else:
                spread = [one for one in gaussians if one[2].mean() != 0]  # a cluster of one picture does not vary
                assert len(spread) < len(gaussians) == 2 * 6 - 1
                drawn = [value for value in seen.draws("randn") if value.shape == (12, 128)]  # others make up a CLIP
                noise = torch.stack(drawn).unflatten(0, (3, len(spread)))
                orders = [value for value in seen.draws("randperm") if len(value) == 12 * len(spread)]
                rates = plain.coswm(0.003, 0, 0, 3 * 4, 1 + 3 * 4)[1:]  # the table from its beginning
                losses += plain.retrain(model, spread, noise, orders, rates, 0.2, 4, 6)
                groups += [[(rate, 0.2)] for rate in rates]
            tests = [shown(pictures.test, order, one, transform) for one in tasks[: task + 1]]
            assert torch.equal(torch.cat([images for images, _ in test]), torch.cat([images for images, _ in tests]))
            accuracies = {f"task {i}": plain.accuracy(model, *one, classes.stop) for i, one in enumerate(tests)}
            assert found[task + 1, "task_accuracy"] == pytest.approx(accuracies, rel=1e-12)
            for key, value in model.parts.items():
                torch.testing.assert_close(saved(out, task + 1)[key], value.detach(), **close, msg=key)
            stored, own = saved(out, task + 1, name="statistics"), [one for one in gaussians if one[0] in classes]
            assert stored["labels"].tolist() == [one[0] for one in own]
            torch.testing.assert_close(stored["means"], torch.stack([one[1] for one in own]), **close)
            torch.testing.assert_close(stored["variances"], torch.stack([one[2] for one in own]), **close)
    assert seen.losses == pytest.approx(losses, rel=1e-9)
    assert rates_and_decay(seen) == [[pytest.approx(pair, rel=1e-12) for pair in expected] for expected in groups]


# On CIFAR-100


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Pictures of the first seven classes."""
    root = tmp_path_factory.mktemp("whole_run_vq_cifar")
    pictures = made_up(list(range(7)), [8, 9, 7, 9, 8, 10, 7], [2] * 7)
    write_cifar100(root, pictures)
    return root, pictures


SOFT = """
    --learner_name VQPrompt --config configs/cifar-100_prompt_vq.yaml --repeat 2 --seeds 2 9 --prompt_param 4 6 1.5
    --adaptive_pred --overwrite 1
    --set first_split_size=4 other_split_size=3 max_task=2 batch_size=7 schedule=[1,2,3] schedule_type=decay lr=0.006
    prompt_lr_mult=0.5 quantize=false normalize_input=true validation=true rand_split=false
"""


def test_soft_prompt_on_held_out_training_pictures(cifar):
    """The mixture itself goes in and has no loss; a fifth of the training images is the test set; no re-training."""
    root, pictures = cifar
    seen, out = started(root, SOFT)
    order, tasks, streams = list(range(100)), [range(0, 4), range(4, 7)], iter(seen.streams())
    transform = Compose([Resize(32), ToTensor(), Normalize(MEAN, STD)])
    losses, groups, flips = [], [], []
    everything = [*pictures.train, *[None] * 93]  # the other classes have a picture each
    for repeat, seed in enumerate([2, 9], start=1):
        places = np.random.RandomState(seed).permutation(len(everything))
        share = int(0.8 * len(everything))
        kept, held_out = ([everything[i] for i in part if everything[i]] for part in (places[:share], places[share:]))
        with float64():
            vit, first = plain.miniature_vit(saved(out, 1, repeat)), plain.first_values(seed, 100, 4, 6)
            model = plain.Model(vit, first, tau=1.5, weights=None)
            for task, classes in enumerate(tasks):
                training, test = next(streams), next(streams)
                batches, flipped = [], []
                for images, _ in training:
                    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
                    own = codes((255 * pixels).round() / 255)
                    assert set(own) <= {one.code for one in kept if one.label in classes}
                    batches.append((images, pictures.labels(own, order)))
                    flipped += is_flipped(pixels).tolist()
                flips.append(tuple(flipped[:20]))
                epoch = len(batches) // 3
                rates = [[base * tenth for tenth in (1, 0.1, 0.01) for _ in range(epoch)] for base in (0.003, 0.006)]
                losses += plain.learn(model, batches, rates, 0, classes.start, classes.stop)
                groups += [[(prompt, 0), (classifier, 0)] for prompt, classifier in zip(*rates)]
                tests = [shown(held_out, order, one, transform, (32, 32)) for one in tasks[: task + 1]]
                expected = torch.cat([images for images, _ in tests])
                torch.testing.assert_close(torch.cat([images for images, _ in test]), expected, rtol=0, atol=1e-12)
                accuracies = {f"task {i}": plain.accuracy(model, *one, classes.stop) for i, one in enumerate(tests)}
                recorded = records(out / f"repeat-{repeat}")[task + 1, "task_accuracy"]
                assert recorded == pytest.approx(accuracies, rel=1e-12)
                for key, value in model.parts.items():
                    torch.testing.assert_close(saved(out, task + 1, repeat)[key], value.detach(), **close, msg=key)
    assert next(streams, None) is None and len(set(flips)) == 4  # no task and no seed draws another's
    assert seen.losses == pytest.approx(losses, rel=1e-9) and len(seen.optimizers()) == 4
    assert rates_and_decay(seen) == [[pytest.approx(pair, rel=1e-12) for pair in expected] for expected in groups]


S = """
    --learner_name VQPrompt --config configs/cifar-100_prompt_vq.yaml --seeds 2 --prompt_param 2 2 1 --no_ca
    --overwrite 1
    --set first_split_size=4 other_split_size=3 max_task=2 batch_size=12 schedule=[1,0,3] iter_step=2 lr=0.006
    coswm_first_step_full_lr=false rand_split=false
"""


def test_vq_prompt_s_and_the_table_from_its_beginning(cifar):
    """No statistics and no re-training; the first update at the table's first rate; prompts at five times the rate."""
    seen, out = started(cifar[0], S)
    for steps in seen.optimizers():
        table = [plain.coswm(base, 1, 0, 6, 1 + len(steps))[1:] for base in (5 * 0.006, 0.006)]
        found = [[group["lr"] for group in step.groups] for step in steps]
        assert found == [pytest.approx(pair, rel=1e-12) for pair in zip(*table)]
    assert [len(steps) for steps in seen.optimizers()] == [3 * 2, 3 * 2]
    assert len(seen.streams()) == 4 and not list(out.rglob("statistics.pth"))


# The nearest class mean of the ViT's features


NCM = """
    --learner_name NCM --config configs/cifar-100_prompt_vq.yaml --repeat 3 --seeds 3 11 --n_centroids 3
    --set first_split_size=4 other_split_size=3 max_task=2 batch_size=16
"""


@pytest.fixture(scope="module")
def nearest(tmp_path_factory):
    """Three seeds, the third one the run's number; R (tested, after) of each, written out."""
    root, tasks, seeds = tmp_path_factory.mktemp("whole_run_ncm"), [range(0, 4), range(4, 7)], [3, 11, 2]
    learned = sorted({label for seed in seeds for label in shuffled(100, seed)[:7]})
    pictures = made_up(learned, [5] * len(learned), [6] * len(learned))
    write_cifar100(root, pictures)
    seen, out = started(root, NCM)
    transform, matrices, images_seen = Compose([Resize(32), ToTensor()]), [], []
    with float64():
        vit = plain.miniature_vit(saved(out, 1))
        for seed in seeds:
            order, R = shuffled(100, seed), np.zeros((2, 2))
            means = torch.zeros(0, 128)
            for after, classes in enumerate(tasks):
                images, labels = shown(pictures.train, order, classes, transform, (32, 32))
                z = vit(images)
                means = torch.cat([means, *(z[labels == label].mean(dim=0, keepdim=True) for label in classes)])
                tests = [shown(pictures.test, order, one, transform, (32, 32)) for one in tasks[: after + 1]]
                for task, (shown_images, truth) in enumerate(tests):
                    predictions = torch.cdist(vit(shown_images), means).argmin(dim=1)
                    R[task, after] = 100 * (predictions == truth).double().mean()
                images_seen += [images, torch.cat([one for one, _ in tests])]
            matrices.append(R)
    return SimpleNamespace(seen=seen, out=out, R=np.stack(matrices, axis=-1), images=images_seen)


def test_nearest_class_mean(nearest):
    """One mean a class, whatever --n_centroids says, of its training images as they are; the nearest of all seen."""
    assert nearest.seen.losses == []
    for stream, images in zip(nearest.seen.streams(), nearest.images, strict=True):
        assert torch.equal(torch.cat([one for one, _ in stream]), images)
    for repeat in range(3):
        found = records(nearest.out / f"repeat-{repeat + 1}")
        for after in range(2):
            expected = {f"task {task}": nearest.R[task, after, repeat] for task in range(after + 1)}
            assert found[after + 1, "task_accuracy"] == pytest.approx(expected, rel=1e-12)


def test_tables_over_seeds(nearest):
    """results-*.yaml and the sheet: means and population deviations of the three runs."""
    R = nearest.R
    assert len({float(R[:, 1, repeat].sum()) for repeat in range(3)}) > 1
    average = np.stack([R[0, 0], (R[0, 1] + R[1, 1]) / 2])
    forgotten = np.stack([0 * R[0, 0], R[0, 0] - R[0, 1]])
    for name, history in (("acc/global", average), ("acc/pt", R), ("fr/global", forgotten)):
        table = yaml.safe_load((nearest.out / f"results-{name}.yaml").read_text())
        np.testing.assert_allclose(table["history"], history)
        np.testing.assert_allclose(table["mean"], history.mean(axis=-1))
        np.testing.assert_allclose(table["std"], history.std(axis=-1))
    header, row = openpyxl.load_workbook(nearest.out / "results.xlsx").active.iter_rows(values_only=True)
    found = dict(zip(header, row))
    for name, values in (("FAA", average[-1]), ("CAA", average.mean(axis=0)), ("FR", forgotten[-1])):
        assert found[f"{name}_m"] == pytest.approx(values.mean()) and found[f"{name}_s"] == pytest.approx(values.std())
