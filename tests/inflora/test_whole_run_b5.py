"""InfLoRA-b5 on ImageNet-R, under SGD and under Adam, against plain steps: branches in five of seven blocks, GPM.

With Adam once more on the image tower of a CLIP.
Two tasks of 120 and 80 classes, in the order of the labels.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.inflora import made_up
from tests.inflora.made_up import (
    check_checkpoint, cut, epoch_of, first_classifier, new_branch, plain_views, recorded, same, started, whole,
)  # fmt: skip
from tests.inflora.plain import Model, accuracies, design, remember, second_moments, train

LAYERS, SEED, BATCH, RANK = 5, 4, 100, 3
TASKS = [range(0, 120), range(120, 200)]
CONFIG = {
    "dataset": "ImageNet_R", "model_name": "InfLoRAb5", "seed": [SEED], "init_cls": 120, "increment": 80,
    "total_sessions": 4, "batch_size": BATCH, "rank": RANK, "lamb": 0.9, "lame": 0.996,
    "init_epoch": 2, "init_lr": 0.03, "init_weight_decay": 0.3, "epochs": 3, "lrate": 0.02, "weight_decay": 0.2,
}  # fmt: skip
THRESHOLDS = [0.9, 0.9 + 0.096 * 1 / 4]
COSINE = [(1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
SGD = {  # half a cosine; its first task ignores init_weight_decay; finished tasks decay with the later ones
    "kind": "SGD",
    "rates": [[0.03, 0.015], [0.02 * share for share in COSINE]],
    "decays": [0.0, 0.2],
    "finished_decay": True,
}
ADAM = {  # CODA-Prompt's cosine; the first task heeds it; here with --keep-finished
    "kind": "Adam",
    "rates": [[0.03, 0.03], [0.02, 0.02, 0.02 * math.cos(99 * math.pi / 400)]],
    "decays": [0.3, 0.2],
    "finished_decay": False,
}


@pytest.fixture(scope="module", params=["sgd", "adam", "adam on a CLIP's tower"])
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("b5")
    optim, _, on_a_clip = request.param.partition(" on ")
    sets, vit = made_up.imagenet_r(root), made_up.weights(root / "vit.pth", of_clip=bool(on_a_clip))
    config = CONFIG | {"data_path": str(root / "imagenet-r"), "optim": optim}
    if optim == "sgd":
        pictures, flags, expected = made_up.drawn_split(sets, 40), (), SGD  # the published logs' split
    else:
        pictures, flags, expected = sets, ("--split", "folders", "--keep-finished"), ADAM
    seen, folders = started(root / "run", root / "vit.pth", config, *flags)
    return SimpleNamespace(pictures=pictures, vit=vit, seen=seen, folder=folders[SEED], expected=expected)


def test_the_run_is_that_of_the_plain_steps(run):
    model, memories, curves, expected = Model(run.vit), [(None, False)] * LAYERS, [], run.expected
    losses, steps, batches = iter(run.seen.losses), iter(run.seen.steps), iter(run.seen.of(made_up.Batch))
    for task, members in enumerate(TASKS):
        count = len(run.pictures["train"].of(members))
        rates = expected["rates"][task]
        before, *training, after = (epoch_of(batches, BATCH, count) for _ in range(len(rates) + 2))

        assert 0.3 < cut(whole(before)[0])[2].double().mean() < 0.7  # mirrored, which no test image is
        # B_t of the first five blocks alone
        B = [design(C, *memory, RANK) for C, memory in zip(second_moments(model, before, LAYERS), memories)]
        model.branches.append(new_branch(B))
        model.classifiers.append(first_classifier(run.seen, task, len(members)))

        first = 0 if expected["finished_decay"] else task
        held = [A for layers in model.branches[first:] for branch in layers for A in (branch.A_k, branch.A_v)]
        held += [parameter for classifier in model.classifiers[first:] for parameter in classifier]
        kinds = {"SGD": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), "Adam": torch.optim.Adam}
        optimizer = kinds[expected["kind"]](held)
        optimizer.param_groups[0]["weight_decay"] = expected["decays"][task]
        plain_losses = train(model, training, members.start, optimizer, [[rate] for rate in rates])
        assert [next(losses) for _ in plain_losses] == pytest.approx(plain_losses, rel=1e-9)
        for rate in (rate for rate, epoch in zip(rates, training) for _ in epoch):
            step = next(steps)
            assert step.kind == expected["kind"]
            assert [group["lr"] for group in step.groups] == pytest.approx([rate], rel=1e-12)
            assert step.groups[0]["weight_decay"] == expected["decays"][task]

        moments = second_moments(model, after, LAYERS)
        memories = [remember(C, *memory, THRESHOLDS[task], dual=False) for C, memory in zip(moments, memories)]
        check_checkpoint(run.folder, task, model, memories)

        # the shorter side to 256 of 224 pixels: 32 of the small network's 28
        chosen = run.pictures["test"].of(range(members.stop))
        images, labels = plain_views(run.pictures["test"], chosen, 32), [run.pictures["test"].labels[i] for i in chosen]
        tested = whole(epoch_of(batches, BATCH, len(chosen)))
        same(tested[0], images)
        assert tested[1].tolist() == labels
        curves.append(accuracies(model.logits(images), torch.tensor(labels), TASKS[: task + 1], curves))
        assert recorded(run.folder, task + 1) == pytest.approx(curves[-1], rel=1e-9)
    assert next(losses, None) is None and next(steps, None) is None and next(batches, None) is None
