"""InfLoRA on CIFAR-100 from the command line to the record, against plain steps.

Three tasks of 40, 30 and 30 classes in a drawn order; of seven sessions that the thresholds count on. Task 0 has a rate,
a weight decay and a number of epochs of its own.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.inflora import made_up
from tests.inflora.made_up import checkpoint, epoch_of, first_classifier, plain_views, recorded, same, started, whole
from tests.inflora.plain import Branch, Model, accuracies, design, remember, second_moments, train

SEED, BATCH, RANK = 3, 32, 5
TASKS = [range(0, 40), range(40, 70), range(70, 100)]
CONFIG = {
    "dataset": "cifar100", "model_name": "InfLoRA", "optim": "adam", "seed": [SEED], "shuffle": True,
    "init_cls": 40, "increment": 30, "total_sessions": 7, "batch_size": BATCH, "rank": RANK, "lamb": 0.6, "lame": 0.9,
    "init_epoch": 3, "init_lr": 0.02, "init_weight_decay": 0.03, "epochs": 4, "lrate": 0.01, "weight_decay": 0.05,
}  # fmt: skip
# CODA-Prompt's cosine: the full rate in epochs 0 and 1, then base cos(99 pi (epoch - 1) / (200 (epochs - 1)))
RATES = [
    [0.02, 0.02, 0.02 * math.cos(99 * math.pi / 400)],
    [0.01, 0.01, 0.01 * math.cos(99 * math.pi / 600), 0.01 * math.cos(198 * math.pi / 600)],
    [0.01, 0.01, 0.01 * math.cos(99 * math.pi / 600), 0.01 * math.cos(198 * math.pi / 600)],
]
DECAYS = [0.03, 0.05, 0.05]
THRESHOLDS = [0.6, 0.6 + 0.3 * 1 / 7, 0.6 + 0.3 * 2 / 7]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    pictures, vit = made_up.cifar100(root), made_up.weights(root / "vit.pth")
    seen, folders = started(root / "run", root / "vit.pth", CONFIG | {"data_path": str(root)})
    order = np.random.RandomState(SEED).permutation(100).tolist()
    return SimpleNamespace(pictures=pictures, vit=vit, seen=seen, folder=folders[SEED], order=order)


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
    for task, (before, *training, after) in ((task, epochs) for task, epochs, _ in passes(run)):
        # B_t from the pass before training, outside the old tasks' space; A_t from zero
        moments = second_moments(model, before, made_up.BLOCKS)
        B = [design(C, *memory, RANK) for C, memory in zip(moments, memories)]
        zero = torch.zeros(made_up.D, RANK, dtype=torch.float64)
        model.branches.append([Branch(b, zero.clone().requires_grad_(), zero.clone().requires_grad_()) for b in B])
        initial = first_classifier(run.seen, task, len(TASKS[task]))
        model.classifiers.append([parameter.clone().requires_grad_() for parameter in initial])

        # one group of all that was ever trained, so weight decay acts on finished tasks too
        held = [A for layers in model.branches for branch in layers for A in (branch.A_k, branch.A_v)]
        held += [parameter for classifier in model.classifiers for parameter in classifier]
        optimizer = torch.optim.Adam(held, weight_decay=DECAYS[task])
        plain_losses = train(model, training, TASKS[task].start, optimizer, [[rate] for rate in RATES[task]])
        assert [next(losses) for _ in plain_losses] == pytest.approx(plain_losses, rel=1e-9)
        for epoch, rate in enumerate(RATES[task]):
            for _ in training[epoch]:
                step = next(steps)
                assert step.kind == "Adam" and [group["lr"] for group in step.groups] == pytest.approx([rate], rel=1e-12)
                assert step.groups[0]["weight_decay"] == DECAYS[task] and step.groups[0]["betas"] == (0.9, 0.999)

        # the memory, DualGPM, from the pass after training
        moments = second_moments(model, after, made_up.BLOCKS)
        memories = [remember(C, *memory, THRESHOLDS[task], dual=True) for C, memory in zip(moments, memories)]
        check_checkpoint(run, task, model, memories)

        # all test images of the classes seen, under the test transform
        chosen = run.pictures["test"].of(run.order[: TASKS[task].stop])
        labels = torch.tensor([run.order.index(run.pictures["test"].labels[i]) for i in chosen])
        logits = model.logits(plain_views(run.pictures["test"], chosen, made_up.PIXELS))
        curves.append(accuracies(logits, labels, TASKS[: task + 1], curves))
        assert recorded(run.folder, task + 1) == pytest.approx(curves[-1], rel=1e-9)
    assert next(losses, None) is None and next(steps, None) is None


def check_checkpoint(run, task, model, memories):
    """Branches by their products: the signs of B's rows are free."""
    saved = checkpoint(run.folder, task)
    state = saved["state_dict"]
    for layer, (M, free) in enumerate(memories):
        for t, branch in ((t, layers[layer]) for t, layers in enumerate(model.branches)):
            for name, A in (("k", branch.A_k), ("v", branch.A_v)):
                prefix = f"image_encoder.blocks.{layer}.attn.lora"
                ours_A, ours_B = state[f"{prefix}_B_{name}.{t}.weight"], state[f"{prefix}_A_{name}.{t}.weight"]
                same(ours_B.T @ ours_B, branch.B.T @ branch.B)
                same(ours_A @ ours_B, A @ branch.B)
        basis = saved["memories"][layer]["basis"]
        assert (basis.shape, saved["memories"][layer]["free"]) == (M.shape, free)
        same(basis @ basis.T, M @ M.T)
    for t, (weight, bias) in enumerate(model.classifiers):
        same(state[f"classifier_pool.{t}.weight"], weight)
        same(state[f"classifier_pool.{t}.bias"], bias)


def test_this_run_reaches_both_kinds_of_memory(run):
    """Else the steps above would hold half of DualGPM."""
    kinds = [[memory["free"] for memory in checkpoint(run.folder, task)["memories"]] for task in range(3)]
    assert not any(kinds[0]) and any(kinds[1]) and not all(kinds[1])
