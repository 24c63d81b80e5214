"""ZSCL on a sequence of three tasks, whole: distillation from CLIP, weight consolidation, weight ensemble.

The program runs in float64 and is held against the same run in plain steps on the batches that it drew.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml

from tests.whole_run import float64
from tests.zscl.mtil_world import World, n, normalised
from tests.zscl.plain_mtil import (
    Plain,
    Run,
    TaskDraws,
    accuracies,
    among_all,
    assert_steps,
    assert_training_batches,
    assert_weights,
    cross_entropy,
    distillation,
    parameters,
    put,
    rate,
    recorded_accuracies,
    records,
    saved_weights,
    tasks_of,
    watched_run,
)  # fmt: skip
from zscl.main import main

TASKS, RATES, ITERATIONS = ["MNIST", "EuroSAT", "DTD"], [2e-3, 3e-3, 1e-3], [5, 7, 6]
FLAGS = [
    "--train-dataset", "MNIST,EuroSAT,DTD", "--eval-datasets", "DTD,MNIST", "--method", "ZSCL", "--image_loss",
    "--text_loss", "--we", "--avg_freq", "2", "--l2", "0.7", "--ref-dataset", "CIFAR10", "--ref-sentences",
    "conceptual_captions", "--T", "1.7", "--lr", "2e-3,3e-3,1e-3", "--iterations", "5,7,6", "--warmup_length", "2",
    "--wd", "0.03", "--beta2", "0.95", "--ls", "0.12", "--batch-size", "8", "--batch-size-eval", "13", "--seed", "3",
    "--eval-interval", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def told() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def run(mtil_world: World, tmp_path_factory: pytest.TempPathFactory, told: io.StringIO) -> Run:
    folder = tmp_path_factory.mktemp("zscl")
    with redirect_stdout(told):
        seen = watched_run(mtil_world, folder, FLAGS)
    tasks = tasks_of(seen, mtil_world)
    with float64():
        return Run(mtil_world, seen, tasks, folder, zscl(mtil_world, tasks))


def zscl(world: World, tasks: list[TaskDraws]) -> Plain:
    clip, student, plain = world.clip(), world.clip(), Plain()
    with torch.no_grad():
        sentences = n(clip.encode_text(world.captions()))  # E: the teacher's features on both sides
    for name, peak, iterations, task in zip(TASKS, RATES, ITERATIONS, tasks, strict=True):
        theta0, prompts = parameters(student), world.domains[name].prompts()
        mean, samples = theta0, 1  # of the ensemble: the weights before the task are its first term
        trained = {key: parameter for key, parameter in student.named_parameters() if key != "logit_scale"}
        optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.03)
        for t, (images, labels) in zip(range(iterations + 1), task.batches, strict=True):
            if t % 4 == 0:
                plain.watched.append((t, mean))
            optimizer.param_groups[0]["lr"] = rate(t, peak, 2, iterations)
            optimizer.zero_grad()
            scale = student.logit_scale.exp()
            logits = scale * n(student.encode_image(images)) @ n(student.encode_text(prompts)).T
            references = normalised(world.views(task.references[t]))
            with torch.no_grad():
                teacher = scale * n(clip.encode_image(references)) @ sentences.T
            seen = scale * n(student.encode_image(references)) @ sentences.T
            loss = cross_entropy(logits, labels, 0.12)
            loss = loss + distillation(teacher, seen, 1.7) + distillation(teacher.T, seen.T, 1.7)  # L_img and L_txt
            consolidation = sum(((theta - theta0[key]) ** 2).sum() for key, theta in trained.items())
            (loss + 0.7 * consolidation).backward()
            plain.note(loss, optimizer)  # the program adds the gradient of L_WC in closed form, so its loss has none
            optimizer.step()
            if t % 2 == 0:
                theta, samples = parameters(student), samples + 1
                mean = {key: mean[key] + (theta[key] - mean[key]) / samples for key in mean}
        put(mean, student)  # what is saved, evaluated, and what the next task starts from
        plain.saved.append(mean)
    return plain


def test_batches_are_epochs_of_the_training_images_in_random_crops(run: Run) -> None:
    for name, task in zip(TASKS, run.tasks, strict=True):
        assert_training_batches(task, run.world.domains[name], 8, len(task.steps))


def test_reference_images_are_shuffled_training_images_in_the_evaluation_view(run: Run) -> None:
    """A batch a step; each task draws them from the beginning of the same order, as a process of its own would."""
    count = len(run.world.domains["CIFAR10"].views["train"])
    for task, iterations in zip(run.tasks, ITERATIONS, strict=True):
        assert [len(batch) for batch in task.references] == [8, 8, 8, 8, 8, 8, 2, 8][: iterations + 1]
        drawn = [place for batch in task.references for place in batch]
        assert {(name, kind) for name, kind, _ in drawn} == {("CIFAR10", "train")}
        assert len(set(drawn[:count])) == len(drawn[:count]) and drawn != sorted(drawn)
    longest = run.tasks[1].references
    assert all(task.references == longest[: len(task.references)] for task in run.tasks)
    assert longest[7] != longest[0]  # a second epoch has its own order


def test_losses_rates_and_gradients(run: Run) -> None:
    assert_steps(run.seen, run.plain)


def test_adamw_with_its_weight_decay_and_betas(run: Run) -> None:
    for step in run.seen.steps:
        (group,) = step.groups
        assert (step.kind, group["weight_decay"], group["betas"], group["eps"]) == ("AdamW", 0.03, (0.9, 0.95), 1e-8)


def test_checkpoints_hold_the_ensemble(run: Run) -> None:
    assert_weights(saved_weights(run.folder, TASKS), run.plain.saved)


def test_the_ensemble_is_what_is_evaluated(run: Run) -> None:
    found, expected = recorded_accuracies(run.folder), {}
    with float64():
        model = run.world.clip()
        for after, weights in enumerate([parameters(model), *run.plain.saved]):
            put(weights, model)
            expected |= {(after, name): accuracies(model, run.world.domains[name]) for name in ("DTD", "MNIST")}
    assert found == expected


def test_the_ensemble_as_it_is_before_a_step_is_what_is_watched(run: Run, told: io.StringIO) -> None:
    expected = []
    with float64():
        model = run.world.clip()
        for step, weights in run.plain.watched:
            put(weights, model)
            for name in ("DTD", "MNIST"):
                expected.append(f"step {step}, {name}: {accuracies(model, run.world.domains[name])[0]:.2f}")
    assert [line for line in told.getvalue().splitlines() if line.startswith("step ")] == expected


# X-TAIL: the same checkpoints among the classes of all data sets


def test_among_the_classes_of_all_sets(run: Run) -> None:
    """The folder's checkpoints, two of the three test sets; records lie in xtail/ beside them."""
    with float64():
        main([*AMONG_ALL, "--load", str(run.folder), *run.world.flags()])
    assert xtail_cells(run.folder / "xtail") == among_all_cells(run)
    assert {line["protocol"] for line in records(run.folder / "xtail")} == {"xtail-custom-MNIST+EuroSAT+DTD"}
    config = yaml.safe_load((run.folder / "xtail/config.yaml").read_text())
    assert {*config["settings"]["data"]} == {*TASKS}  # the third set's classes are among the labels
    assert len({cell["domain_accuracy"] for cell in among_all_cells(run).values()}) > 3  # and not all 0 or 100


def test_with_their_own_templates_and_the_domain_told_it_is_mtil(run: Run, tmp_path: Path) -> None:
    with float64():
        main([*AMONG_ALL, "--xtail-template", "own", "--load", str(run.folder), "--save", str(tmp_path), *run.world.flags()])
    found = xtail_cells(tmp_path)
    assert found == among_all_cells(run, own_templates=True)
    mtil = {cell: top1 for cell, (top1, _) in recorded_accuracies(run.folder).items()}
    assert {cell: values["accuracy_with_domain"] for cell, values in found.items()} == mtil


AMONG_ALL = ["--eval-only", "--train-dataset", ",".join(TASKS), "--eval-datasets", "DTD,MNIST", "--label-space", "all"]


def among_all_cells(run: Run, own_templates: bool = False) -> dict[tuple[int, str], dict[str, float]]:
    domains, expected = [run.world.domains[name] for name in TASKS], {}
    with float64(), torch.no_grad():
        model = run.world.clip()
        for after, weights in enumerate([parameters(model), *run.plain.saved]):
            put(weights, model)
            expected |= {(after, name): among_all(model, domains, name, own_templates) for name in ("DTD", "MNIST")}
    return expected


def xtail_cells(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    found = {}
    for line in records(folder):
        if line["metric"] in ("accuracy", "domain_accuracy", "accuracy_with_domain"):
            found.setdefault((line["after_task"], line["dataset"]), {})[line["metric"]] = line["value"]
    return found
