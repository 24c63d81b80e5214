"""The test after a class-incremental task, held against the plain way: every image and every text by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common import clip
from common.clip.model import CLIP
from common.datasets.transforms import clip_eval
from common.evaluation.metrics import CILStep, accuracy_with_task
from common.evaluation.seen_classes import PooledTest, evaluate_seen, seen_batches, unseen_accuracy
from common.incremental.data import IncrementalData, load_data
from common.incremental.options import CILOptions
from common.incremental.run import test_task as record_test
from common.incremental.scenario import seen_subset
from common.incremental.sets import load_incremental
from common.machine import Machine
from common.runs import Run
from tests.common.incremental.test_cil import OPTIONS

MACHINE = Machine(torch.device("cpu"), 0)
CENTRE = replace(OPTIONS, eval_transform="test")


def pooled_test(options: CILOptions, machine: Machine, data: IncrementalData, batch_size: int) -> PooledTest:
    return PooledTest(data.test, data.scenario, options.eval_transform, batch_size, machine.workers)


@pytest.fixture(scope="module")
def model() -> CLIP:
    return clip.load("mini")[0]


@pytest.fixture(scope="module")
def found() -> IncrementalData:
    return load_data(CENTRE, 32)


def plain_predictions(model: CLIP, found: IncrementalData, task_id: int) -> tuple[list[int], list[int]]:
    """Batches of 7 under the evaluation transform, the texts anew at each, every column of the prompts."""
    data = load_incremental("characters", "mini", None, clip_eval(32))
    test = seen_subset(data.test, found.scenario, task_id)
    predictions, labels = [], []
    for start in range(0, len(test), 7):
        images, targets = zip(*(test[i] for i in range(start, min(start + 7, len(test)))))
        with torch.no_grad():
            text = F.normalize(model.encode_text(found.tokens[: found.scenario.seen(task_id)], cut=False), dim=-1)
            logits = F.normalize(model.encode_image(torch.stack(images)), dim=-1) @ text.t()
        predictions += logits.argmax(dim=1).tolist()
        labels += targets
    return predictions, labels


def test_decoded_once_and_encoded_once_equals_the_plain_way(model: CLIP, found: IncrementalData) -> None:
    test = pooled_test(CENTRE, MACHINE, found, 64)
    for task_id in (0, 3):  # the second reads what the first has decoded
        step = evaluate_seen(model, found.tokens, test, task_id, seed=5)
        predictions, labels = plain_predictions(model, found, task_id)
        assert step.predictions.tolist() == predictions and step.labels.tolist() == labels
        assert step.task_ids.tolist() == [label // 4 for label in labels]
        assert step.predictions.max() < 4 * (task_id + 1)
    assert test.pixels.dtype == torch.uint8 and len(test.pixels) == 600


@pytest.fixture(scope="module")
@torch.no_grad()
def plain_cosines(model: CLIP, found: IncrementalData) -> tuple[Tensor, Tensor]:
    """Cosines of all test images and all prompts, and labels; images and texts in one batch each."""
    data = load_incremental("characters", "mini", None, clip_eval(32))
    images, labels = zip(*seen_subset(data.test, found.scenario, -1))
    text = F.normalize(model.encode_text(found.tokens, cut=False), dim=-1)
    return F.normalize(model.encode_image(torch.stack(images)), dim=-1) @ text.t(), torch.tensor(labels)


def test_within_the_own_task_and_among_the_classes_not_seen(
    model: CLIP, found: IncrementalData, plain_cosines: tuple[Tensor, Tensor]
) -> None:
    """Of the ten tasks of four characters: among the four of its own, and among the 28 that three tasks leave."""
    test = pooled_test(CENTRE, MACHINE, found, 64)
    cosines, labels = plain_cosines
    own = cosines.masked_fill(labels[:, None] // 4 != torch.arange(40) // 4, -1).argmax(dim=1)
    step = evaluate_seen(model, found.tokens, test, 2, seed=0)
    seen = labels < 12
    assert step.within_task.tolist() == own[seen].tolist() != step.predictions.tolist()
    assert accuracy_with_task(step) == pytest.approx(100 * float((own == labels)[seen].double().mean()))
    later = cosines[~seen, 12:].argmax(dim=1) + 12 == labels[~seen]
    found_later = unseen_accuracy(model, found.tokens, test, 2, seed=0)
    assert found_later == pytest.approx(100 * float(later.double().mean())) and 3 < found_later < 97
    assert unseen_accuracy(model, found.tokens, test, 9, seed=0) is None


def test_on_record_on_common_ground(
    model: CLIP, found: IncrementalData, plain_cosines: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """All that ZSCL and MoE-Adapters record after the second task, of plain CLIP."""
    run = Run(tmp_path, {}, {"paper": "zscl", "method": "CLIP", "protocol": "common-characters-10x4", "seed": 0})
    steps: list[CILStep] = []
    test = pooled_test(CENTRE, MACHINE, found, 64)
    for task_id in range(2):
        record_test(run, CENTRE, found, test, steps, model, (7 + task_id, 30))
    cosines, labels = plain_cosines
    first, seen, own = labels < 4, labels < 8, labels[:, None] // 4 == torch.arange(40) // 4
    hits = cosines[:, :8].argmax(dim=1) == labels
    within = cosines.masked_fill(~own, -1).argmax(dim=1) == labels
    fell = (cosines[:, :4].argmax(dim=1) == labels)[first].double().mean() - hits[first].double().mean()
    expected = {
        "accuracy": 100 * hits[seen].double().mean(), "accuracy_with_task": 100 * within[seen].double().mean(),
        "forgetting": 100 * fell, "total_parameters": 8, "stored_floats": 30,
        "unseen_accuracy": 100 * (cosines[~seen, 8:].argmax(dim=1) + 8 == labels[~seen]).double().mean(),
    }  # fmt: skip
    lines = {line["metric"]: line["value"] for line in run.find(after_task=2, dataset="Characters")}
    assert lines == pytest.approx({metric: float(value) for metric, value in expected.items()})


def test_of_equal_prompts_the_first_of_the_own_task_wins(model: CLIP, found: IncrementalData) -> None:
    """All prompts equal: each image is taken for the first class of its task."""
    tokens = found.tokens[:1].expand(len(found.tokens), -1)
    step = evaluate_seen(model, tokens, pooled_test(CENTRE, MACHINE, found, 64), 1, seed=0)
    assert step.within_task.tolist() == [4 * (label // 4) for label in step.labels.tolist()]
    assert {*step.predictions.tolist()} == {0}


def test_train_crops_are_drawn_anew_at_every_test_and_follow_from_the_seed(model: CLIP) -> None:
    found = load_data(OPTIONS, 32)
    test, rows = pooled_test(OPTIONS, MACHINE, found, 64), np.arange(10)
    crops = {seed: next(seen_batches(test, rows, seed, torch.device("cpu")))[0] for seed in (5, 6)}
    again = next(seen_batches(test, rows, 5, torch.device("cpu")))[0]
    assert torch.equal(crops[5], again) and not torch.equal(crops[5], crops[6])
    first = evaluate_seen(model, found.tokens, test, 1, seed=5)
    torch.rand(1)  # whatever was drawn before
    second = evaluate_seen(model, found.tokens, test, 1, seed=5)
    assert first.predictions.tolist() == second.predictions.tolist()


def test_centre_crops_know_no_seed(model: CLIP, found: IncrementalData) -> None:
    test = pooled_test(CENTRE, MACHINE, found, 50)
    one, other = (evaluate_seen(model, found.tokens, test, 2, seed) for seed in (1, 2))
    assert one.predictions.tolist() == other.predictions.tolist()


def test_of_equal_prompts_the_first_class_in_the_order_wins(model: CLIP, found: IncrementalData) -> None:
    """ImageNet's two "sunglasses": no image of the second is ever right."""
    tokens = found.tokens.clone()
    tokens[3] = tokens[1]
    step = evaluate_seen(model, tokens, pooled_test(CENTRE, MACHINE, found, 64), 0, seed=0)
    assert 3 not in step.predictions and 1 in step.predictions


@pytest.mark.parametrize("batch_size", [1, 64])
def test_of_equal_prompts_the_first_wins_however_their_products_are_rounded(model: CLIP, batch_size: int) -> None:
    """Equal columns of a matrix may give products that differ in the last bit, by their place in a tile."""
    fives = replace(CENTRE, initial_increment=5, increment=5)
    found = load_data(fives, 32)
    test, tokens = pooled_test(fives, MACHINE, found, batch_size), found.tokens[:1].expand(len(found.tokens), -1)
    assert set(evaluate_seen(model, tokens, test, 1, seed=0).predictions.tolist()) == {0}
