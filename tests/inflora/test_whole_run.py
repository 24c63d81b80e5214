"""InfLoRA on CIFAR-100 from the command line to the record, against plain steps.

Three tasks of 40, 30 and 30 classes in a drawn order; of nine sessions that the thresholds count on. Task 0 has a rate,
a weight decay and a number of epochs of its own.
"""

import json
import math
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.inflora import made_up
from tests.inflora.made_up import (
    check_checkpoint, checkpoint, cut, epoch_of, first_classifier, new_branch, plain_views, recorded, same,
    started, whole,
)  # fmt: skip
from tests.inflora.plain import Model, accuracies, design, remember, second_moments, train

SEED, BATCH, RANK = 3, 32, 5
TASKS = [range(0, 40), range(40, 70), range(70, 100)]
CONFIG = {
    "dataset": "cifar100", "model_name": "InfLoRA", "optim": "adam", "seed": [SEED], "shuffle": True,
    "init_cls": 40, "increment": 30, "total_sessions": 9, "batch_size": BATCH, "rank": RANK,
    "lamb": 0.999, "lame": 0.99999,
    "init_epoch": 3, "init_lr": 0.06, "init_weight_decay": 0.03, "epochs": 4, "lrate": 0.04, "weight_decay": 0.05,
}  # fmt: skip
# CODA-Prompt's cosine: the full rate in epochs 0 and 1, then base cos(99 pi (epoch - 1) / (200 (epochs - 1)))
FIRST = [0.06, 0.06, 0.06 * math.cos(99 * math.pi / 400)]
LATER = [0.04, 0.04, 0.04 * math.cos(99 * math.pi / 600), 0.04 * math.cos(198 * math.pi / 600)]
RATES = [FIRST, LATER, LATER]
DECAYS = [0.03, 0.05, 0.05]
THRESHOLDS = [0.999, 0.999 + 0.00099 * 1 / 9, 0.999 + 0.00099 * 2 / 9]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    pictures, vit = made_up.cifar100(root), made_up.weights(root / "vit.pth", made_up.FINE)
    seen, folders = begin(root, "run")
    order = np.random.RandomState(SEED).permutation(100).tolist()
    return SimpleNamespace(root=root, pictures=pictures, vit=vit, seen=seen, folder=folders[SEED], order=order)


def begin(root, name):
    return started(root / name, root / "vit.pth", CONFIG | {"data_path": str(root)}, patch=made_up.FINE)


def passes(run):
    """Task by task, the epochs that were drawn for it, and the test images behind them."""
    batches, train_set, test_set = iter(run.seen.of(made_up.Batch)), run.pictures["train"], run.pictures["test"]
    for task, members in enumerate(TASKS):
        count = len(train_set.of([run.order[label] for label in members]))
        epochs = [epoch_of(batches, BATCH, count) for _ in range(len(RATES[task]) + 2)]
        tested = len(test_set.of(run.order[: members.stop]))
        yield task, epochs, epoch_of(batches, BATCH, tested)
    assert next(batches, None) is None


def test_the_run_is_that_of_the_plain_steps(run):
    """Design, training, memory and accuracies of every task."""
    model, memories, curves = Model(run.vit), [(None, False)] * made_up.BLOCKS, []
    losses, steps = iter(run.seen.losses), iter(run.seen.steps)
    for task, (before, *training, after), tested in passes(run):
        # B_t from the pass before training, outside the old tasks' space; A_t from zero
        moments = second_moments(model, before, made_up.BLOCKS)
        B = [design(C, *memory, RANK) for C, memory in zip(moments, memories)]
        model.branches.append(new_branch(B))
        model.classifiers.append(first_classifier(run.seen, task, len(TASKS[task])))

        # one group of all that was ever trained, so weight decay acts on finished tasks too
        held = [A for layers in model.branches for branch in layers for A in (branch.A_k, branch.A_v)]
        held += [parameter for classifier in model.classifiers for parameter in classifier]
        optimizer = torch.optim.Adam(held, weight_decay=DECAYS[task])
        plain_losses = train(model, training, TASKS[task].start, optimizer, [[rate] for rate in RATES[task]])
        assert [next(losses) for _ in plain_losses] == pytest.approx(plain_losses, rel=1e-9)
        for epoch, rate in enumerate(RATES[task]):
            for _ in training[epoch]:
                step = next(steps)
                assert step.kind == "Adam"
                assert [group["lr"] for group in step.groups] == pytest.approx([rate], rel=1e-12)
                assert step.groups[0]["weight_decay"] == DECAYS[task] and step.groups[0]["betas"] == (0.9, 0.999)

        # the memory, DualGPM, from the pass after training
        moments = second_moments(model, after, made_up.BLOCKS)
        memories = [remember(C, *memory, THRESHOLDS[task], dual=True) for C, memory in zip(moments, memories)]
        check_checkpoint(run.folder, task, model, memories)

        # all test images of the classes seen, under the test transform
        chosen = run.pictures["test"].of(run.order[: TASKS[task].stop])
        labels = torch.tensor([run.order.index(run.pictures["test"].labels[i]) for i in chosen])
        images = plain_views(run.pictures["test"], chosen, made_up.PIXELS)
        same(whole(tested)[0], images)
        assert torch.equal(whole(tested)[1], labels)
        curves.append(accuracies(model.logits(images), labels, TASKS[: task + 1], curves))
        assert recorded(run.folder, task + 1) == pytest.approx(curves[-1], rel=1e-9)
    assert next(losses, None) is None and next(steps, None) is None


def test_every_pass_sees_each_training_image_once_in_crops_of_its_own(run):
    """Design, training and memory alike: 8 to 100 % of the area, every other one mirrored, no two passes the same."""
    all_areas, all_flips, first_areas = [], [], []
    for task, epochs, _ in passes(run):
        chosen = run.pictures["train"].of([run.order[label] for label in TASKS[task]])
        numbers, _, _ = cut(plain_views(run.pictures["train"], chosen, made_up.PIXELS))
        label_of = {int(number): run.pictures["train"].labels[i] for number, i in zip(numbers, chosen)}
        orders, by_number = [], []
        for images, labels in map(whole, epochs):
            numbers, areas, flips = cut(images)
            assert sorted(numbers.tolist()) == sorted(label_of)
            assert [run.order[label] for label in labels] == [label_of[number] for number in numbers.tolist()]
            orders.append(numbers.tolist())
            by_number.append(images[numbers.argsort()])
            all_areas.append(areas)
            all_flips.append(flips)
        assert all(one != other for one, other in combinations(orders, 2))
        assert all((one != other).flatten(1).any(1).all() for one, other in combinations(by_number, 2))
        first_areas.append(cut(epochs[0][0][0])[1])
    assert all((one != other).any() for one, other in combinations(first_areas, 2))  # the tasks' streams
    areas, flips = torch.cat(all_areas), torch.cat(all_flips)
    assert 0.07 < areas.min() < 0.1 and 0.95 < areas.max() and 0.45 < areas.mean() < 0.53
    assert 0.45 < flips.double().mean() < 0.55
    red = torch.cat([images[:, 0] for _, epochs, _ in passes(run) for images, _ in map(whole, epochs)])
    assert 20 <= 255 * red.min() and 255 * red.max() <= 230  # bilinear: no pixel beyond the picture's own


def test_the_record_names_the_run(run):
    lines = [json.loads(line) for line in (run.folder / "record.jsonl").read_text().splitlines()]
    about = {"paper": "inflora", "method": "InfLoRA", "protocol": "cil-cifar100-40+2x30", "seed": SEED}
    assert all(about.items() <= line.items() for line in lines) and {line["after_task"] for line in lines} == {1, 2, 3}
    assert not (run.folder / "state.pth").exists()


def test_a_run_without_its_last_task_ends_as_the_whole_one(run):
    """All that goes from task to task is in the files: branches, memories, accuracies."""
    again = run.root / "again"
    shutil.copytree(run.root / "run", again)
    folder = again / run.folder.relative_to(run.root / "run")
    (folder / "task_2.pth").unlink()
    (folder / "design.pth").unlink()
    lines = (folder / "record.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["after_task"] < 3]
    (folder / "record.jsonl").write_text("".join(f"{line}\n" for line in kept))
    begin(run.root, "again")
    assert recorded(folder, 3) == recorded(run.folder, 3)
    ours, theirs = checkpoint(folder, 2), checkpoint(run.folder, 2)
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    assert all(torch.equal(a["basis"], b["basis"]) for a, b in zip(ours["memories"], theirs["memories"], strict=True))


def test_this_run_reaches_both_kinds_of_memory(run):
    """Else the steps above would hold half of DualGPM."""
    kinds = [[memory["free"] for memory in checkpoint(run.folder, task)["memories"]] for task in range(3)]
    assert not any(kinds[0]) and any(kinds[1]) and not all(kinds[1])
