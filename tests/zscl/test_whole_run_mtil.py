"""Fine-tuning on a sequence of three tasks, whole: WiSE-FT after each, the matrix and its means at the end.

The program runs in float64 and is held against the same run in plain steps on the batches that it drew.
"""

import numpy as np
import pytest
import torch

from tests.whole_run import float64
from tests.zscl.mtil_world import World, n
from tests.zscl.plain_mtil import (
    Plain,
    Run,
    TaskDraws,
    accuracies,
    assert_steps,
    assert_training_batches,
    assert_weights,
    cross_entropy,
    decoded,
    parameters,
    put,
    rate,
    recorded_accuracies,
    records,
    saved_weights,
    tasks_of,
    watched_run,
)  # fmt: skip

TASKS, RATES, ITERATIONS = ["EuroSAT", "MNIST", "DTD"], [4e-3, 1e-3, 2e-3], [7, 5, 4]
FLAGS = [
    "--train-dataset", "EuroSAT,MNIST,DTD", "--eval-datasets", "EuroSAT,MNIST,DTD", "--lr", "4e-3,1e-3,2e-3",
    "--iterations", "7,5,4", "--warmup_length", "3", "--wd", "0.05", "--beta2", "0.97", "--ls", "0.15",
    "--batch-size", "9", "--batch-size-eval", "16", "--seed", "5", "--wise_merge", "--wise_ft_alpha", "0.7",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(mtil_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finetune")
    seen = watched_run(mtil_world, folder, FLAGS)
    tasks = tasks_of(seen, mtil_world)
    with float64():
        return Run(mtil_world, seen, tasks, folder, fine_tuned(mtil_world, tasks))


def fine_tuned(world: World, tasks: list[TaskDraws]) -> Plain:
    """Every task from the weights saved before it, everything else anew; both encoders learn, the scale does not."""
    model, plain = world.clip(), Plain()
    for name, peak, iterations, task in zip(TASKS, RATES, ITERATIONS, tasks, strict=True):
        theta0, prompts = parameters(model), world.domains[name].prompts()
        trained = [parameter for key, parameter in model.named_parameters() if key != "logit_scale"]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.97), eps=1e-8, weight_decay=0.05)
        for t, (images, labels) in zip(range(iterations + 1), task.batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate(t, peak, 3, iterations)
            optimizer.zero_grad()
            logits = model.logit_scale.exp() * n(model.encode_image(images)) @ n(model.encode_text(prompts)).T
            loss = cross_entropy(logits, labels, 0.15)
            loss.backward()
            plain.note(loss, optimizer)
            optimizer.step()
        theta = parameters(model)
        put({key: 0.7 * theta[key] + 0.3 * theta0[key] for key in theta}, model)  # WiSE-FT
        plain.saved.append(parameters(model))
    return plain


def test_each_task_takes_its_iterations_and_one_more(run: Run) -> None:
    assert [len(task.steps) for task in run.tasks] == [8, 6, 5]


def test_batches_are_epochs_of_the_training_images_in_random_crops(run: Run) -> None:
    for name, task in zip(TASKS, run.tasks, strict=True):
        assert_training_batches(task, run.world.domains[name], 9, len(task.steps))
        assert not task.references


def test_losses_rates_and_gradients(run: Run) -> None:
    assert_steps(run.seen, run.plain)


def test_adamw_with_its_weight_decay_and_betas(run: Run) -> None:
    for step in run.seen.steps:
        (group,) = step.groups
        assert (step.kind, group["weight_decay"], group["betas"], group["eps"]) == ("AdamW", 0.05, (0.9, 0.97), 1e-8)


def test_checkpoints_hold_the_merged_weights(run: Run) -> None:
    assert_weights(saved_weights(run.folder, TASKS), run.plain.saved)


def test_every_checkpoint_on_every_test_set_and_clip_before_them(run: Run) -> None:
    found, expected = recorded_accuracies(run.folder), {}
    with float64():
        model = run.world.clip()
        for after, weights in enumerate([parameters(model), *run.plain.saved]):
            put(weights, model)
            expected |= {(after, name): accuracies(model, run.world.domains[name]) for name in TASKS}
    assert found == expected
    assert len({tuple(found[after, name] for name in TASKS) for after in range(4)}) == 4  # no two rows are alike


def test_whole_test_sets_are_seen_in_the_evaluation_view(run: Run) -> None:
    sizes = {name: len(run.world.domains[name].labels["test"]) for name in TASKS}
    assert decoded(run.seen, run.world) == [[(name, "test", i) for i in range(sizes[name])] for name in TASKS]


def test_transfer_avg_and_last(run: Run) -> None:
    """Transfer: the mean over data sets of their means before they are learnt; the zero-shot row is no part of it."""
    found = recorded_accuracies(run.folder)
    matrix = np.array([[found[after, name][0] for name in TASKS] for after in (1, 2, 3)])
    means = {line["metric"]: line["value"] for line in records(run.folder) if line["dataset"] == "mean"}
    transfer = (matrix[0, 1] + matrix[:2, 2].mean()) / 2
    assert means == pytest.approx({"transfer": transfer, "avg": matrix.mean(), "last": matrix[2].mean()}, abs=1e-9)
