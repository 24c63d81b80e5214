"""LwF on a sequence of three tasks, whole: distillation from the model before, on the task's own images and prompts.

The program runs in float64 and is held against the same run in plain steps on the batches that it drew.
"""

import pytest
import torch

from tests.whole_run import float64
from tests.zscl.mtil_world import World, n, normalised
from tests.zscl.plain_mtil import (
    Plain,
    Run,
    TaskDraws,
    accuracies,
    assert_steps,
    assert_training_batches,
    assert_weights,
    cropped_from,
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

TASKS = ["DTD", "MNIST", "EuroSAT"]
FLAGS = [
    "--train-dataset", "DTD,MNIST,EuroSAT", "--eval-datasets", "MNIST", "--method", "ZSCL", "--image_loss",
    "--text_loss", "--weight_adjust", "--ref-dataset", "current", "--ref-model", "previous", "--T", "3.1", "--lr",
    "3e-3", "--iterations", "5", "--warmup_length", "1", "--ls", "0.05", "--batch-size", "11", "--seed", "8",
    "--reference-pass", "separate",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(mtil_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lwf")
    seen = watched_run(mtil_world, folder, FLAGS)
    tasks = tasks_of(seen, mtil_world)
    with float64():
        return Run(mtil_world, seen, tasks, folder, lwf(mtil_world, tasks))


def lwf(world: World, tasks: list[TaskDraws]) -> Plain:
    before, student, plain = world.clip(), world.clip(), Plain()  # CLIP is the model before the first task
    for name, task in zip(TASKS, tasks, strict=True):
        prompts = world.domains[name].prompts()
        with torch.no_grad():
            sentences = n(before.encode_text(prompts))
        trained = [parameter for key, parameter in student.named_parameters() if key != "logit_scale"]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
        for t, (images, labels) in zip(range(6), task.batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate(t, 3e-3, 1, 5)
            optimizer.zero_grad()
            scale = student.logit_scale.exp()
            logits = scale * n(student.encode_image(images)) @ n(student.encode_text(prompts)).T
            references = normalised(world.views(task.references[t]))
            with torch.no_grad():
                teacher = scale * n(before.encode_image(references)) @ sentences.T
            seen = scale * n(student.encode_image(references)) @ sentences.T
            loss = cross_entropy(logits, labels, 0.05)
            loss = loss + 0.5 * distillation(teacher, seen, 3.1) + 0.5 * distillation(teacher.T, seen.T, 3.1)
            loss.backward()
            plain.note(loss, optimizer)
            optimizer.step()
        plain.saved.append(parameters(student))
        put(plain.saved[-1], before)
    return plain


def test_reference_images_are_the_tasks_own_drawn_apart_from_its_batches(run: Run) -> None:
    for name, task in zip(TASKS, run.tasks, strict=True):
        domain = run.world.domains[name]
        assert_training_batches(task, domain, 11, 6)
        count = len(domain.views["train"])
        drawn = [place for batch in task.references for place in batch]
        assert {(source, kind) for source, kind, _ in drawn} == {(name, "train")}
        assert len(set(drawn[:count])) == len(drawn[:count]) and drawn != sorted(drawn)
        assert [index for _, _, index in task.references[0]] != cropped_from(task.batches[0][0], domain)


def test_losses_rates_and_gradients(run: Run) -> None:
    """The two passes are differentiated one after the other, and a step's gradient is that of their sum."""
    pairs = [sum(run.seen.losses[i : i + 2]) for i in range(0, len(run.seen.losses), 2)]
    assert_steps(run.seen, run.plain, pairs)


def test_checkpoints_hold_the_student(run: Run) -> None:
    assert_weights(saved_weights(run.folder, TASKS), run.plain.saved)


def test_accuracies_of_the_zero_shot_row_and_of_every_checkpoint(run: Run) -> None:
    with float64():
        model, expected = run.world.clip(), {}
        for after, weights in enumerate([parameters(model), *run.plain.saved]):
            put(weights, model)
            expected[after, "MNIST"] = accuracies(model, run.world.domains["MNIST"])
    assert recorded_accuracies(run.folder) == expected
