"""ALTA under what a command leaves out, all classes at once, without replay: whole runs against plain steps."""

import pytest
import torch

from tests.alta.pictures import raw
from tests.alta.plain import Numbers
from tests.alta.whole import (
    check_batches,
    check_checkpoints,
    check_crops,
    check_printed,
    check_records,
    check_steps,
    check_tests,
    plain_twin,
    whole_run,
)
from tests.whole_run import float64

ALTA = "oritext_mlp2cprompt_oriimg"
KEYS = [
    f"prompt_learner.{name}"
    for name in ("ctx", *(f"mlp_visual.linear{i}.{p}" for i in (1, 2) for p in ("weight", "bias")))
]


def methods(run):
    return {line["method"] for line in run.records()}


# Defaults: CIFAR-100 in four tasks. Its names have underscores, which hard prompts keep; its images are not mirrored.
# `released`: the warm-up's rate throughout. Two words are learned before each name and one behind it.

RELEASED = Numbers(
    method=ALTA, rates=[[0.02, 0.02]] * 4, task_size=25, context="one picture of", position="middle",
    sgd={"momentum": 0.6, "weight_decay": 0.03, "nesterov": True}, alpha=0.2, beta=0.9,
    buffer_size=200, replay_size=12, seed=42, test_epochs=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def released(place):
    optim = {"LR": 0.7, "MAX_EPOCH": 2, "WARMUP_CONS_LR": 0.02, "WEIGHT_DECAY": 0.03, "MOMENTUM": 0.6}
    changes = {
        "OPTIM": optim | {"SGD_DAMPNING": 0, "SGD_NESTEROV": True}, "COOP": {"CLASS_TOKEN_POSITION": "middle"},
        "train": {"batch_size": 12, "alpha": 0.2, "beta": 0.9}, "eval": {"batch_size": 7},
    }  # fmt: skip
    with float64():
        run = whole_run(place, "cifar100", (4, 25), **changes)
        return run, plain_twin(run, place, RELEASED)


def test_what_a_command_leaves_out(released):
    """ALTA on 200 remembered samples, seed 42, one rate, class-IL printed; the usual buffer is not told."""
    run, plain = released
    check_batches(run, RELEASED, size=12)
    check_crops(run, is_mirrored=False)
    check_steps(run, plain, RELEASED)
    check_checkpoints(run, plain, KEYS)
    check_tests(run, RELEASED, size=7)
    check_records(run, plain, ("cil-cifar100-4x25", "til-cifar100-4x25"), "CIFAR100")
    check_printed(run, plain, setting=0, epochs=2)
    assert methods(run) == {"ALTA"} and {line["seed"] for line in run.records()} == {42}


# Without replay, one cosine over the whole run that is never reset: two epochs of warm-up, then LR 0.04 over MAX_EPOCH
# 3, which climbs again behind its minimum. Class-IL among the classes seen, images normalised as CLIP's.

SEQUENTIAL = Numbers(
    method=ALTA, task_size=2, context="one picture of", seed=7, test_epochs=2, seen_only=True,
    rates=[[0.005, 0.005, 0.04], [0.03, 0.01, 0], [0.01, 0.03, 0.04], [0.03, 0.01, 0], [0.01, 0.03, 0.04]],
    sgd={"momentum": 0.8, "weight_decay": 0.02, "dampening": 0.1},
)  # fmt: skip


@pytest.fixture(scope="module")
def sequential(place):
    flags = ["--lr_policy", "global_cosine", "--seed", "7", "--buffer_size", "13", "--seen_only", "--clip_norm"]
    flags += ["--encoding", "original"]  # all texts anew at each step: the same numbers
    changes = {"model": {"use_replay": False}, "OPTIM": {"WARMUP_EPOCH": 2}}
    with float64():
        run = whole_run(place, "cifar10", (5, 2), *flags, statistics="clip", **changes)
        return run, plain_twin(run, place, SEQUENTIAL)


def test_without_replay(sequential):
    run, plain = sequential
    check_batches(run, SEQUENTIAL, size=4)
    check_steps(run, plain, SEQUENTIAL)
    check_checkpoints(run, plain, KEYS)
    check_tests(run, SEQUENTIAL, size=5)
    check_records(run, plain, ("cil-cifar10-5x2", "til-cifar10-5x2"), "CIFAR10")
    check_printed(run, plain, setting=0, epochs=3)
    assert methods(run) == {"ALTA, no replay, global_cosine, CLIP's normalisation, among classes seen"}


# All classes at once, the same rate throughout. Task-IL masks nothing, or is told by which tasks to mask.

JOINT = Numbers(
    method=ALTA, rates=[[0.04, 0.04]], task_size=10, context="one picture of", seed=8, masked_to=2,
    sgd={"momentum": 0.8, "weight_decay": 0.02, "dampening": 0.1},
)  # fmt: skip


@pytest.fixture(scope="module")
def joint(place):
    flags = ["--lr_policy", "constant", "--seed", "8", "--joint_task_classes", "2", "--il_setting", "task-il"]
    changes = {"model": {"use_replay": False}, "OPTIM": {"MAX_EPOCH": 2}, "eval": {"test_epochs": 1}}
    with float64():
        run = whole_run(place, "cifar10", (1, 10), *flags, **changes)
        return run, plain_twin(run, place, JOINT)


def test_all_classes_at_once(joint):
    run, plain = joint
    check_batches(run, JOINT, size=4)
    check_steps(run, plain, JOINT)
    check_checkpoints(run, plain, KEYS)
    check_tests(run, JOINT, size=5)
    check_records(run, plain, ("cil-cifar10-1x10", "til-cifar10-1x10"), "CIFAR10")
    check_printed(run, plain, setting=1, epochs=2)
    assert methods(run) == {"ALTA, joint, constant, masked to tasks of 2"}


def test_the_seed_decides_initial_values_and_crops(released, sequential, joint):
    """Of three runs under seeds 42, 7 and 8 no two draw alike."""
    runs = [run for run, _ in (released, sequential, joint)]
    adapters = [run.seen.steps[0].start[0][1] for run in runs]
    first = [raw(run.seen.streams()[0][0][0], run.statistics)[0, 1] for run in runs]
    cuts = [green.mean(dim=0).sort().values for green in first]  # where an image is cut, mirrored or not
    for i, k in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(adapters[i], adapters[k])
        assert not torch.allclose(cuts[i], cuts[k], atol=1e-3)
