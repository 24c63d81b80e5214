"""iCaRL on a sequence of three tasks, whole: distillation from CLIP on exemplars of the tasks before.

The program runs in float64 and is held against the same run in plain steps on the batches that it drew.
"""

import json

import pytest
import torch

from common.clip.model import CLIP
from tests.whole_run import float64
from tests.zscl.mtil_world import Domain, Place, World, n, normalised
from tests.zscl.plain_mtil import (
    Plain,
    Run,
    TaskDraws,
    accuracies,
    assert_steps,
    assert_training_batches,
    assert_weights,
    cross_entropy,
    distillation,
    parameters,
    put,
    rate,
    recorded_accuracies,
    saved_weights,
    tasks_of,
    watched_run,
)  # fmt: skip

TASKS, BUDGET = ["EuroSAT", "MNIST", "DTD"], 21
Memory = dict[str, list[int]]
FLAGS = [
    "--method", "icarl", "--dataset_order", "EuroSAT,MNIST,DTD", "--eval-datasets", "EuroSAT,DTD", "--memory_size",
    "21", "--image_loss", "--text_loss", "--T", "1.3", "--iterations", "6,4,5", "--warmup_length", "2", "--ls", "0.1",
    "--batch-size", "9", "--batch-size-eval", "7", "--seed", "6", "--wd", "0.02",
]  # fmt: skip
OWN_RATE = ["--icarl-lr", "4e-3", "--lr", "0.5"]


@pytest.fixture(scope="module")
def run(mtil_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("icarl")
    seen = watched_run(mtil_world, folder, [*FLAGS, *OWN_RATE])
    tasks = tasks_of(seen, mtil_world)
    with float64():
        return Run(mtil_world, seen, tasks, folder, icarl(mtil_world, tasks))


def icarl(world: World, tasks: list[TaskDraws]) -> Plain:
    clip, student, plain = world.clip(), world.clip(), Plain()
    memory: Memory = {}
    for name, iterations, task in zip(TASKS, (6, 4, 5), tasks, strict=True):
        prompts = world.domains[name].prompts()
        with torch.no_grad():
            sentences = n(clip.encode_text(prompts))
        trained = [parameter for key, parameter in student.named_parameters() if key != "logit_scale"]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.02)
        for t, (images, labels) in zip(range(iterations + 1), task.batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate(t, 4e-3, 2, iterations)
            optimizer.zero_grad()
            scale = student.logit_scale.exp()
            logits = scale * n(student.encode_image(images)) @ n(student.encode_text(prompts)).T
            loss = cross_entropy(logits, labels, 0.1)
            if memory:  # the first task is plain fine-tuning
                references = normalised(world.views(exemplars(memory, t)))
                with torch.no_grad():
                    teacher = scale * n(clip.encode_image(references)) @ sentences.T
                seen = scale * n(student.encode_image(references)) @ sentences.T
                loss = loss + distillation(teacher, seen, 1.3) + distillation(teacher.T, seen.T, 1.3)
            loss.backward()
            plain.note(loss, optimizer)
            optimizer.step()
        plain.saved.append(parameters(student))
        memory = updated(memory, world.domains[name], student)
        plain.memories.append(memory)
    return plain


def exemplars(memory: Memory, t: int) -> list[Place]:
    """Nine at a time in the order of learning and choice, the last batch smaller, over and over; no shuffle."""
    places = [(name, "train", index) for name, indices in memory.items() for index in indices]
    batches = [places[start : start + 9] for start in range(0, len(places), 9)]
    return batches[t % len(batches)]


@torch.no_grad()
def updated(memory: Memory, domain: Domain, model: CLIP) -> Memory:
    """The first set gives its first images; later ones are herded, with two quirks of the original.

    The new set gets what the share of one set leaves of the budget, and the position found among the rows that are left
    is read as an index into all images.
    """
    if not memory:
        return {domain.name: list(range(BUDGET))}
    share = BUDGET // (len(memory) + 1)
    rows = n(model.encode_image(normalised(domain.views["train"])))
    mean, total, chosen = rows.mean(dim=0), torch.zeros(rows.shape[1]), []
    for k in range(BUDGET - share):
        best = int(((mean - (rows + total) / (k + 1)) ** 2).sum(dim=1).argmin())
        chosen.append(best)
        total = total + rows[best]
        rows = torch.cat([rows[:best], rows[best + 1 :]])
    return {name: indices[:share] for name, indices in memory.items()} | {domain.name: chosen}


def test_batches_are_epochs_of_the_training_images_in_random_crops(run: Run) -> None:
    for name, task in zip(TASKS, run.tasks, strict=True):
        assert_training_batches(task, run.world.domains[name], 9, len(task.steps))


def test_memories(run: Run) -> None:
    for name, expected in zip(TASKS[:2], run.plain.memories):
        assert json.loads((run.folder / f"{name}.memory.json").read_text()) == expected
        assert list(json.loads((run.folder / f"{name}.memory.json").read_text())) == list(expected)
    assert [len(indices) for indices in run.plain.memories[1].values()] == [10, 11]


def test_exemplars_come_in_their_order_in_the_evaluation_view(run: Run) -> None:
    herding = len(run.world.domains["MNIST"].views["train"])
    first, second, third = (task.references for task in run.tasks)
    assert first == []
    assert second == [exemplars(run.plain.memories[0], t) for t in range(5)]
    assert third[-6:] == [exemplars(run.plain.memories[1], t) for t in range(6)]
    candidates = [place for batch in third[:-6] for place in batch]
    assert candidates == [("MNIST", "train", index) for index in range(herding)]  # herding sees all of them, in order


def test_losses_rates_and_gradients(run: Run) -> None:
    assert_steps(run.seen, run.plain)


def test_checkpoints_hold_the_student(run: Run) -> None:
    assert_weights(saved_weights(run.folder, TASKS), run.plain.saved)


def test_accuracies_of_the_zero_shot_row_and_of_every_checkpoint(run: Run) -> None:
    found, expected = recorded_accuracies(run.folder), {}
    with float64():
        model = run.world.clip()
        for after, weights in enumerate([parameters(model), *run.plain.saved]):
            put(weights, model)
            expected |= {(after, name): accuracies(model, run.world.domains[name]) for name in ("EuroSAT", "DTD")}
    assert found == expected


def test_rates_are_set_by_the_data_set_and_not_by_lr(
    mtil_world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = watched_run(mtil_world, tmp_path_factory.mktemp("rates"), [*FLAGS, "--lr", "0.5", "--first-tasks", "2"])
    rates = [[step.groups[0]["lr"] for step in steps] for steps in seen.optimizers()]
    expected = [[rate(t, 1e-5, 2, 6) for t in range(7)], [rate(t, 5e-5, 2, 4) for t in range(5)]]
    assert rates == [pytest.approx(task, rel=1e-12) for task in expected]
