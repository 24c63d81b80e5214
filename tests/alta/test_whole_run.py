"""ALTA's whole run by its command line, held against the same run written out as plain steps (plain.py).

Five tasks of two classes of CIFAR-10, three epochs each, on a tiny CLIP, in float64. Initial values and batches are the
run's own; all else, rates and draws of the reservoir included, is computed anew.
"""

import pytest
import torch

from common.clip.tokenizer import tokenize
from tests.alta.plain import Numbers
from tests.alta.whole import (
    check_batches,
    check_checkpoints,
    check_crops,
    check_printed,
    check_records,
    check_steps,
    check_tests,
    frozen_clip,
    plain_twin,
    taken_up_again,
    whole_run,
)
from tests.whole_run import float64

# OPTIM: LR 0.04, WARMUP_CONS_LR 0.005 for one epoch, a cosine over MAX_EPOCH 3 from each task's start
RATES = [0.005, 0.04, 0.03]
TOLD = Numbers(
    method="oritext_mlp2cprompt_oriimg", rates=[RATES] * 5, task_size=2, context="one picture of",
    sgd={"momentum": 0.8, "weight_decay": 0.02, "dampening": 0.1}, alpha=0.7, beta=0.3,
    buffer_size=11, replay_size=4, seed=7, test_epochs=2,
)  # fmt: skip
FLAGS = ["--lr_policy", "task_cosine", "--buffer_size", "11", "--seed", "7", "--il_setting", "task-il"]
PROTOCOLS = ("cil-cifar10-5x2-buffer11", "til-cifar10-5x2-buffer11")
ADAPTER = [f"prompt_learner.mlp_visual.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]


@pytest.fixture(scope="module")
def both(place):
    with float64():
        run = whole_run(place, "cifar10", (5, 2), *FLAGS)
        return run, plain_twin(run, place, TOLD)


def test_training_images(both):
    run, _ = both
    check_batches(run, TOLD, size=4)
    check_crops(run, is_mirrored=True)


def test_initial_values(both, place):
    """The context is the embeddings of CTX_INIT's words; the adapter's bottleneck is a sixteenth of 32 features."""
    run, _ = both
    (context, *adapter), words = run.seen.steps[0].start[0], tokenize("one picture of")[0, 1:4]
    assert torch.equal(context, frozen_clip(place.clip).token_embedding.weight[words].double())
    assert [tuple(part.shape) for part in adapter] == [(2, 32), (2,), (32, 2), (32,)]


def test_losses_and_rates_of_every_step(both):
    """CE + 0.7 CE of the replayed + 0.3 MSE of their logits, over all ten classes; one optimiser for all tasks."""
    check_steps(*both, TOLD)


def test_what_is_trained_frozen_and_remembered(both):
    """Each past class keeps the prompt of before its task's last step; features and logits are of before the step."""
    run, plain = both
    check_checkpoints(run, plain, ["prompt_learner.ctx", *ADAPTER])
    assert run.checkpoint(4)["buffer"]["num_seen"] == plain.seen == 3 * 32  # every epoch offers its samples anew


def test_test_images(both):
    check_tests(both[0], TOLD, size=5)


def test_accuracies(both):
    """Class-IL among all ten classes from the first task on; every second epoch, and at the end of each task."""
    run, plain = both
    check_records(run, plain, PROTOCOLS, "CIFAR10")
    check_printed(run, plain, setting=1, epochs=3)
    about = {key: {line[key] for line in run.records()} for key in ("paper", "method", "backbone", "scale", "seed")}
    assert about == {
        "paper": {"alta"}, "method": {"ALTA, task_cosine"}, "backbone": {"ViT-B/16"}, "scale": {"paper"}, "seed": {7},
    }  # fmt: skip


def test_taken_up_again_after_two_tasks(both):
    """Context, adapter, momentum, frozen prompts, reservoir and its draws go on from the second task's checkpoint."""
    run, plain = both
    with float64():
        again = taken_up_again(run, done=2)
    assert again.seen.losses == run.seen.losses[3 * (2 + 3) :]  # three epochs of two and of three batches
    check_checkpoints(again, plain, ["prompt_learner.ctx", *ADAPTER])
    check_records(again, plain, PROTOCOLS, "CIFAR10")
