"""Options of ZSCL that no script of the main table sets, whole: terms, teachers, pulls, evaluation during training.

The programs run in float64 and are held against the same runs in plain steps on the batches that they drew.
"""

import io
from contextlib import redirect_stdout

import pytest
import torch

from common.clip.tokenizer import tokenize
from tests.whole_run import float64
from tests.zscl.mtil_world import TEMPLATES, World, n, normalised
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

# Image encoder alone, pulled to CLIP from weights that are not CLIP's, watched every three steps

PULLED = [
    "--train-dataset", "EuroSAT", "--eval-datasets", "MNIST,EuroSAT", "--train-mode", "image", "--moving_avg",
    "--mv_avg_model", "zeroshot", "--mv_avg_decay", "0.6", "--avg_freq", "2", "--lr", "2e-3", "--iterations", "6",
    "--warmup_length", "4", "--batch-size", "10", "--eval-interval", "3", "--ls", "0.08", "--seed", "9",
]  # fmt: skip


@pytest.fixture(scope="module")
def pulled(mtil_world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str, list[str]]:
    """The run, what it told, and what it should have told of its accuracies."""
    folder, told = tmp_path_factory.mktemp("pulled"), io.StringIO()
    with redirect_stdout(told):
        seen = watched_run(mtil_world, folder, [*PULLED, "--load", str(mtil_world.root / "other.pt")])
    tasks = tasks_of(seen, mtil_world)
    with float64():
        plain, expected = image_encoder_pulled_to_clip(mtil_world, *tasks)
    return Run(mtil_world, seen, tasks, folder, plain), told.getvalue(), expected


def image_encoder_pulled_to_clip(world: World, task: TaskDraws) -> tuple[Plain, list[str]]:
    clip, student, plain, told = parameters(world.clip()), world.clip("other"), Plain(), []
    prompts = world.domains["EuroSAT"].prompts()
    trained = [parameter for key, parameter in student.named_parameters() if key.startswith("visual.")]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    for t, (images, labels) in zip(range(7), task.batches, strict=True):
        if t % 3 == 0:  # before the step, so that step 0 shows the weights that training starts from
            top1 = {name: accuracies(student, world.domains[name])[0] for name in ("MNIST", "EuroSAT")}
            told += [f"step {t}, {name}: {value:.2f}" for name, value in top1.items()]
        optimizer.param_groups[0]["lr"] = rate(t, 2e-3, 4, 6)
        student.zero_grad()
        texts = n(student.encode_text(prompts))  # at each step: a pull moves the text encoder, though no step trains it
        loss = cross_entropy(student.logit_scale.exp() * n(student.encode_image(images)) @ texts.T, labels, 0.08)
        loss.backward()
        plain.note(loss, optimizer)
        optimizer.step()
        if t % 2 == 0:
            theta = parameters(student)
            put({key: 0.6 * theta[key] + 0.4 * clip[key] for key in theta}, student)
    plain.saved.append(parameters(student))
    return plain, told


def test_losses_rates_and_gradients_under_a_pull_to_clip(pulled: tuple[Run, str, list[str]]) -> None:
    run, _, _ = pulled
    assert_training_batches(run.tasks[0], run.world.domains["EuroSAT"], 10, 7)
    assert_steps(run.seen, run.plain)


def test_the_pulled_weights_are_saved(pulled: tuple[Run, str, list[str]]) -> None:
    run, _, _ = pulled
    assert_weights(saved_weights(run.folder, ["EuroSAT"]), run.plain.saved)


def test_training_is_watched_before_the_step_that_is_named(pulled: tuple[Run, str, list[str]]) -> None:
    _, told, expected = pulled
    assert [line for line in told.splitlines() if line.startswith("step ")] == expected
    assert len(set(expected)) == 6


def test_the_zero_shot_row_is_clips_and_not_that_of_the_weights_at_the_start(
    pulled: tuple[Run, str, list[str]],
) -> None:
    run, _, _ = pulled
    with float64():
        clip = run.world.clip()
        expected = {(0, name): accuracies(clip, run.world.domains[name]) for name in ("MNIST", "EuroSAT")}
        put(run.plain.saved[0], clip)
        expected |= {(1, name): accuracies(clip, run.world.domains[name]) for name in ("MNIST", "EuroSAT")}
    assert recorded_accuracies(run.folder, "EuroSAT.record.jsonl") == expected


# The other terms, a teacher between CLIP and theta0, the prompts of all tasks seen, the pulled ensemble

TASKS = ["MNIST", "EuroSAT"]
TERMS = [
    "--train-dataset", "MNIST,EuroSAT", "--method", "ZSCL", "--image_loss", "--ablation_loss_2", "--feature_mse",
    "--weight_adjust", "--T", "2.6", "--ref-dataset", "CIFAR10", "--text-datasets", "seen", "--ref-wise",
    "--ref_wise_alpha", "0.7", "--we_wise", "--we_wise_alpha", "0.9", "--avg_freq", "3", "--epochs", "1", "--lr",
    "2e-3", "--warmup_length", "1", "--batch-size", "12", "--template", "this is {}, seen from afar.", "--seed", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def other_terms(mtil_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("terms")
    seen = watched_run(mtil_world, folder, TERMS)
    tasks = tasks_of(seen, mtil_world)
    with float64():
        return Run(mtil_world, seen, tasks, folder, between_clip_and_theta0(mtil_world, tasks))


def between_clip_and_theta0(world: World, tasks: list[TaskDraws]) -> Plain:
    clip, student, teacher, plain = parameters(world.clip()), world.clip(), world.clip(), Plain()
    own_view = torch.eye(12, dtype=torch.bool)  # an image is not its own neighbour
    seen_prompts: list[str] = []
    for name, iterations, task in zip(TASKS, (3, 6), tasks, strict=True):
        domain, theta0 = world.domains[name], parameters(student)
        put({key: 0.3 * clip[key] + 0.7 * theta0[key] for key in clip}, teacher)
        seen_prompts += [TEMPLATES[name][0].replace("{}", each) for each in domain.classes]
        with torch.no_grad():
            sentences = n(teacher.encode_text(tokenize(seen_prompts)))
        prompts, mean, samples = tokenize([f"this is {each}, seen from afar." for each in domain.classes]), theta0, 1
        trained = [parameter for key, parameter in student.named_parameters() if key != "logit_scale"]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
        for t, (images, labels) in zip(range(iterations + 1), task.batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate(t, 2e-3, 1, iterations)
            optimizer.zero_grad()
            scale = student.logit_scale.exp()
            logits = scale * n(student.encode_image(images)) @ n(student.encode_text(prompts)).T
            references = normalised(world.views(task.references[t]))
            with torch.no_grad():
                theirs = n(teacher.encode_image(references))
            ours, itself = n(student.encode_image(references)), own_view[: len(references), : len(references)]
            loss = cross_entropy(logits, labels, 0) + ((theirs - ours) ** 2).mean()
            loss = loss + 0.5 * distillation(scale * theirs @ sentences.T, scale * ours @ sentences.T, 2.6)
            neighbours = [(scale * each @ each.T).masked_fill(itself, -1e4) for each in (theirs, ours)]
            loss = loss + 0.5 * distillation(*neighbours, 2.6)
            loss.backward()
            plain.note(loss, optimizer)
            optimizer.step()
            if t % 3 == 0:
                theta, samples = parameters(student), samples + 1
                mean = {key: mean[key] + (theta[key] - mean[key]) / samples for key in mean}
                mean = {key: 0.9 * mean[key] + 0.1 * theta0[key] for key in mean}
        put(mean, student)
        plain.saved.append(mean)
    return plain


def test_losses_rates_and_gradients_of_the_other_terms(other_terms: Run) -> None:
    assert_steps(other_terms.seen, other_terms.plain)


def test_the_pulled_ensemble_is_saved(other_terms: Run) -> None:
    assert_weights(saved_weights(other_terms.folder, TASKS), other_terms.plain.saved)
