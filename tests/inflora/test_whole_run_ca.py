"""InfLoRA+CA against plain steps: trained as InfLoRA, then all classifiers aligned on draws from every class seen.

Once without and once with the norm of the logits (it is left out on CIFAR-100), and CA1, the original's other form: two
rates, a final norm of its own on CIFAR-100, and the norm of the logits there too.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.inflora import made_up
from tests.inflora.made_up import (
    check_checkpoint, cut, epoch_of, first_classifier, new_branch, plain_views, recorded, same, started, whole,
)  # fmt: skip
from tests.inflora.plain import Model, accuracies, align, class_statistics, design, remember, second_moments, train

SEED, RANK = 6, 3
CONFIG = {"seed": [SEED], "optim": "sgd", "total_sessions": 6, "rank": RANK, "lamb": 0.9, "lame": 0.99}
THRESHOLDS = [0.9, 0.9 + 0.09 * 1 / 6, 0.9 + 0.09 * 2 / 6]
COSINE = [0.02 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
RUNS = {
    "CA on CIFAR-100": SimpleNamespace(
        config={
            "model_name": "InfLoRA_CA", "dataset": "cifar100", "shuffle": True, "batch_size": 60,
            "init_cls": 40, "increment": 30, "init_epoch": 2, "init_lr": 0.03, "init_weight_decay": 0.3,
            "epochs": 3, "lrate": 0.02, "weight_decay": 0.2,
        },
        tasks=[range(0, 40), range(40, 70), range(70, 100)],
        order=np.random.RandomState(SEED).permutation(100).tolist(),
        rates=[[[0.03], [0.015]], *[[[rate] for rate in COSINE]] * 2],  # half a cosine, one group
        decays=[0.3, 0.2, 0.2],
        shorter_side=28,
        logit_norm=False,
        fresh_norm=False,
    ),
    "CA1 on CIFAR-100": SimpleNamespace(
        config={
            "model_name": "InfLoRA_CA1", "dataset": "cifar100", "batch_size": 200, "init_cls": 60, "increment": 40,
            "init_epoch": 2, "epochs": 20, "lrate": 0.02, "fc_lrate": 0.05, "lrate_decay": 0.3, "weight_decay": 0.2,
            "init_lr": 0.07, "init_weight_decay": 0.7,  # neither is read
        },
        tasks=[range(0, 60), range(60, 100)],
        order=list(range(100)),
        rates=[[[0.02, 0.05]] * 2, [[0.02, 0.05]] * 18 + [[0.3 * 0.02, 0.3 * 0.05]] * 2],  # encoder, classifier
        decays=[0.2, 0.2],
        shorter_side=28,
        logit_norm=True,
        fresh_norm=True,
    ),
    "CA on ImageNet-R": SimpleNamespace(
        config={
            "model_name": "InfLoRA_CA", "dataset": "ImageNet_R", "split": "folders", "batch_size": 90,
            "init_cls": 110, "increment": 90, "init_epoch": 1, "init_lr": 0.03, "epochs": 2, "lrate": 0.02,
            "weight_decay": 0.0,
        },
        tasks=[range(0, 110), range(110, 200)],
        order=list(range(200)),
        rates=[[[0.03]], [[0.02], [0.01]]],
        decays=[0.0, 0.0],
        shorter_side=32,  # 256 where the network takes 224
        logit_norm=True,
        fresh_norm=False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    root, wanted = tmp_path_factory.mktemp("ca"), RUNS[request.param]
    is_cifar = wanted.config["dataset"] == "cifar100"
    pictures, vit = (made_up.cifar100 if is_cifar else made_up.imagenet_r)(root), made_up.weights(root / "vit.pth")
    if wanted.fresh_norm:
        vit.norm = nn.LayerNorm(made_up.D, eps=1e-5, dtype=torch.float64).requires_grad_(False)
    config = CONFIG | wanted.config | {"data_path": str(root if is_cifar else root / "imagenet-r")}
    seen, folders = started(root / "run", root / "vit.pth", config)
    return SimpleNamespace(**vars(wanted), pictures=pictures, vit=vit, seen=seen, folder=folders[SEED])


def optimizer_of(model, rates, decay):
    """SGD with what weight decay acts on: all branches, and with a single rate all classifiers; else the latest."""
    branches = [A for layers in model.branches for branch in layers for A in (branch.A_k, branch.A_v)]
    classifiers = [parameter for classifier in model.classifiers for parameter in classifier]
    groups = [branches + classifiers] if len(rates[0]) == 1 else [branches, model.classifiers[-1]]
    return torch.optim.SGD([{"params": group} for group in groups], lr=0.0, momentum=0.9, weight_decay=decay)


def test_the_run_is_that_of_the_plain_steps(run):
    model, memories, curves = Model(run.vit), [(None, False)] * made_up.BLOCKS, []
    losses, steps, batches = iter(run.seen.losses), iter(run.seen.steps), iter(run.seen.of(made_up.Batch))
    size, means, covariances = run.config["batch_size"], [], []
    for task, members in enumerate(run.tasks):
        chosen = run.pictures["train"].of([run.order[label] for label in members])
        before, *training, after = (epoch_of(batches, size, len(chosen)) for _ in range(len(run.rates[task]) + 2))
        assert 0.3 < cut(whole(before)[0])[2].double().mean() < 0.7  # mirrored, which no test image is
        B = [design(C, *m, RANK) for C, m in zip(second_moments(model, before, made_up.BLOCKS), memories)]
        model.branches.append(new_branch(B))
        optimizer_before = 0 if task == 0 else 2 * task - 1  # alignment has one of its own from task 1 on
        model.classifiers.append(first_classifier(run.seen, optimizer_before, len(members)))
        optimizer = optimizer_of(model, run.rates[task], run.decays[task])
        check_losses(losses, train(model, training, members.start, optimizer, run.rates[task]))
        check_steps(steps, [(rates, run.decays[task]) for rates, e in zip(run.rates[task], training) for _ in e])
        moments = second_moments(model, after, made_up.BLOCKS)
        memories = [remember(C, *m, THRESHOLDS[task], dual=False) for C, m in zip(moments, memories)]

        # each new class's Gaussian, from its training images under the test transform, taken once
        images = plain_views(run.pictures["train"], chosen, run.shorter_side)
        labels = torch.tensor([run.order.index(run.pictures["train"].labels[i]) for i in chosen])
        check_batch(epoch_of(batches, size, len(chosen)), images, labels)
        new_means, new_covariances = class_statistics(model.features(images), labels, members)
        saved = torch.load(run.folder / f"classes_{task}.pth", weights_only=True)
        same(saved["means"], new_means)
        same(saved["covariances"], new_covariances)
        means.append(new_means)
        covariances.append(new_covariances)

        # from the second task on: the older a class, the nearer its mean to zero
        if task > 0:
            scaled = torch.cat([mu * (0.9 + 0.1 * (s + 1) / (task + 1)) for s, mu in enumerate(means)])
            noises, orders = draws_of(run, task)
            plain_losses, rates = align(
                model.classifiers, scaled, torch.cat(covariances), noises, orders, run.logit_norm
            )
            check_losses(losses, plain_losses)
            check_steps(steps, [([rate], 5e-4) for rate in rates])
        check_checkpoint(run.folder, task, model, memories)

        chosen = run.pictures["test"].of(run.order[: members.stop])
        images = plain_views(run.pictures["test"], chosen, run.shorter_side)
        labels = torch.tensor([run.order.index(run.pictures["test"].labels[i]) for i in chosen])
        check_batch(epoch_of(batches, size, len(chosen)), images, labels)
        curves.append(accuracies(model.logits(images), labels, run.tasks[: task + 1], curves))
        assert recorded(run.folder, task + 1) == pytest.approx(curves[-1], rel=1e-9)
    assert next(losses, None) is None and next(steps, None) is None and next(batches, None) is None


def check_losses(losses, expected):
    assert [next(losses) for _ in expected] == pytest.approx(expected, rel=1e-9)


def check_steps(steps, expected):
    """Kind, rate of each group, decay of all of them, step by step."""
    for rates, decay in expected:
        step = next(steps)
        assert step.kind == "SGD" and [group["lr"] for group in step.groups] == pytest.approx(rates, rel=1e-12)
        assert all(group["weight_decay"] == decay and group["momentum"] == 0.9 for group in step.groups)


def check_batch(epoch, images, labels):
    same(whole(epoch)[0], images)
    assert torch.equal(whole(epoch)[1], labels)


def draws_of(run, task):
    """The noise (C, 256, d) and the order of all draws in each of the five epochs of a task's alignment."""
    classes = run.tasks[task].stop
    noises = [noise for noise in run.seen.draws("randn") if noise.shape == (classes, 256, made_up.D)]
    orders = [order for order in run.seen.draws("randperm") if len(order) == 256 * classes]
    return noises, orders


def test_every_alignment_draws_anew(run):
    """No epoch's noise or order, and no task's, is another's."""
    drawn = [draws_of(run, task) for task in range(1, len(run.tasks))]
    firsts = [noise[0, 0, 0].item() for noises, _ in drawn for noise in noises]
    orders = [order[:256].tolist() for _, orders in drawn for order in orders]
    assert len(firsts) == len(set(firsts)) == len(set(map(tuple, orders))) == 5 * len(drawn)
