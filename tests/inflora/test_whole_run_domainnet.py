"""InfLoRA and InfLoRA-b5 on DomainNet against plain steps: SGD with a rate for the branches and one for the classifier.

A first task of a single class, then two of 172; two seeds, each with a class order of its own.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.inflora import made_up
from tests.inflora.made_up import (
    check_checkpoint, cut, epoch_of, first_classifier, new_branch, plain_views, recorded, same, started, whole,
)  # fmt: skip
from tests.inflora.plain import Model, accuracies, design, remember, second_moments, train

BATCH, RANK = 100, 4
TASKS = [range(0, 1), range(1, 173), range(173, 345)]
CONFIG = {
    "dataset": "domainnet", "optim": "sgd", "shuffle": True, "init_cls": 1, "increment": 172, "total_sessions": 8,
    "batch_size": BATCH, "rank": RANK, "lamb": 0.8, "lame": 0.999, "init_epoch": 2, "epochs": 5, "lrate": 0.03,
    "fc_lrate": 0.07, "lrate_decay": 0.2, "weight_decay": 0.0, "init_lr": 0.5, "init_weight_decay": 0.4,
}  # fmt: skip
LATER = [[0.03, 0.07]] * 4 + [[0.2 * 0.03, 0.2 * 0.07]]  # of the branches and the classifier; the milestone is epoch 4
RATES = [[[0.03, 0.07]] * 2, LATER, LATER]
THRESHOLDS = [0.8, 0.8 + 0.199 * 1 / 8, 0.8 + 0.199 * 2 / 8]
METHODS = {"InfLoRA_domain": ([2, 6], made_up.BLOCKS), "InfLoRAb5_domain": ([2], 5)}  # seeds, blocks with a branch


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    root, (seeds, layers) = tmp_path_factory.mktemp("domainnet"), METHODS[request.param]
    pictures, vit = made_up.domainnet(root), made_up.weights(root / "vit.pth")
    config = CONFIG | {"model_name": request.param, "seed": seeds, "data_path": str(root / "domainnet")}
    seen, folders = started(root / "run", root / "vit.pth", config)
    return SimpleNamespace(seeds=seeds, layers=layers, pictures=pictures, vit=vit, seen=seen, folders=folders)


def test_the_run_is_that_of_the_plain_steps(run):
    losses, steps, batches = iter(run.seen.losses), iter(run.seen.steps), iter(run.seen.of(made_up.Batch))
    for number, seed in enumerate(run.seeds):
        order = np.random.RandomState(seed).permutation(345).tolist()
        model, memories, curves = Model(run.vit), [(None, False)] * run.layers, []
        for task, members in enumerate(TASKS):
            rates = RATES[task]
            before, *training, after = (epoch_of(batches, BATCH, len(members)) for _ in range(len(rates) + 2))
            assert sorted(whole(before)[1].tolist()) == list(members)
            assert task == 0 or 0.3 < cut(whole(before)[0])[2].double().mean() < 0.7  # mirrored, which no test image is
            B = [design(C, *m, RANK) for C, m in zip(second_moments(model, before, run.layers), memories)]
            model.branches.append(new_branch(B))
            model.classifiers.append(first_classifier(run.seen, 3 * number + task, len(members)))
            latest = [A for branch in model.branches[-1] for A in (branch.A_k, branch.A_v)]
            groups = [{"params": parameters} for parameters in (latest, model.classifiers[-1])]
            optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
            plain_losses = train(model, training, members.start, optimizer, rates)
            assert [next(losses) for _ in plain_losses] == pytest.approx(plain_losses, rel=1e-9)
            for at_epoch in (at_epoch for at_epoch, epoch in zip(rates, training) for _ in epoch):
                step = next(steps)
                assert step.kind == "SGD"
                assert [group["lr"] for group in step.groups] == pytest.approx(at_epoch, rel=1e-12)
                assert [group["weight_decay"] for group in step.groups] == [0.0, 0.0]
            moments = second_moments(model, after, run.layers)
            memories = [remember(C, *m, THRESHOLDS[task], dual=False) for C, m in zip(moments, memories)]
            check_checkpoint(run.folders[seed], task, model, memories)

            # the shorter side to 256 of 224 pixels: 32 of the small network's 28
            chosen = run.pictures["test"].of(order[: members.stop])
            images = plain_views(run.pictures["test"], chosen, 32)
            labels = torch.tensor([order.index(run.pictures["test"].labels[i]) for i in chosen])
            tested = whole(epoch_of(batches, BATCH, len(chosen)))
            same(tested[0], images)
            assert torch.equal(tested[1], labels)
            curves.append(accuracies(model.logits(images), labels, TASKS[: task + 1], curves))
            assert recorded(run.folders[seed], task + 1) == pytest.approx(curves[-1], rel=1e-9)
    assert next(losses, None) is None and next(steps, None) is None and next(batches, None) is None


@pytest.mark.parametrize("run", ["InfLoRA_domain"], indirect=True)
def test_a_seed_decides_initial_classifiers_and_views(run):
    """Two seeds of one command start from other classifiers and cut task 0's only image, of one size, otherwise."""
    one, other = (first_classifier(run.seen, 3 * number, 1)[0] for number in range(2))
    assert not torch.equal(one, other)
    singles = [batch.content for batch in run.seen.of(made_up.Batch) if len(batch.content[1]) == 1]
    areas = [cut(images)[1].item() for images, _ in singles]  # four passes and a test, for each seed
    assert len(areas) == 10 and all(one != other for one, other in zip(areas[:4], areas[5:9]))
