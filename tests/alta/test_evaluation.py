"""Accuracies, task masks, forgetting; the tower that sees each test image once."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from alta.buffer import Buffer
from alta.evaluation import accuracies, draw_tsne, pooled
from alta.evaluation import test_task as cells_after
from alta.learner import Learner
from alta.options import EvalSection, Options
from common.evaluation.metrics import backward_transfer_alta, class_and_task_il, forgetting_alta, mask_task
from common.evaluation.report import task_accuracy_lines
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.runs import Run
from tests.alta.learners import golden_head
from tests.golden_files import Golden


def test_masks_and_accuracies_of_the_official_code():
    golden = Golden("alta/mask_metrics")
    tasks, k = golden.meta["n_tasks"], golden.meta["n_classes_per_task"]
    for t in range(tasks):
        cells = []
        for i in range(t + 1):
            logits, labels = golden[f"logits.{t}.{i}"], golden[f"labels.{t}.{i}"]
            assert torch.equal(mask_task(logits, i, k), golden[f"masked.{t}.{i}"])
            cells.append(class_and_task_il(logits, labels, i, k))
            told = (float(golden["acc_class_il"][t, i]), float(golden["acc_task_il"][t, i]))
            assert cells[-1] == told
        means = [sum(column) / len(cells) for column in zip(*cells)]
        assert means == pytest.approx([float(golden["mean_class_il"][t]), float(golden["mean_task_il"][t])], abs=1e-12)


MACHINE = Machine(torch.device("cpu"), 0)
MATRIX = [[90.0, math.nan, math.nan], [80.0, 70.0, math.nan], [85.0, 75.0, 60.0]]


def test_forgetting_and_backward_transfer_by_hand():
    assert forgetting_alta(MATRIX) == pytest.approx((90 - 85 + 0) / 2)  # task 1 is best at the end: 0, not below
    assert backward_transfer_alta(MATRIX) == pytest.approx((85 - 90 + 75 - 70) / 2)
    with pytest.raises(ValueError):
        forgetting_alta([[50.0]])


@pytest.fixture(scope="module")
def learned():
    """A head of three tasks of two classes, after one of them, with its test sets."""
    golden = Golden("alta/train_lr5e-4_replay")
    head = golden_head(golden, "oritext_mlp2cprompt_oriimg")
    head.freeze(head.snapshot(2))
    sets = [TensorDataset(golden[f"test.t{i}.images"].float(), golden[f"test.t{i}.labels"]) for i in range(3)]
    return head, sets


def test_features_are_kept_and_texts_encoded_once(learned, monkeypatch):
    """Against the plain way: every batch through both towers."""
    head, sets = learned
    kept = [features_in_order(head.features, part, 4, MACHINE) for part in sets]
    encoded = []
    plain = head.clip.encode_prompts
    monkeypatch.setattr(head.clip, "encode_prompts", lambda *given: (encoded.append(len(given[0])), plain(*given))[1])
    class_il, task_il = accuracies(head, kept, 2, batch_size=4)
    assert encoded == [4]  # the rows of classes that are not frozen, for all test sets together
    for i, part in enumerate(sets):
        images, labels = part.tensors
        logits = torch.cat([head(batch) for batch in images.split(4)])
        assert (class_il[i], task_il[i]) == class_and_task_il(logits, labels, i, 2)
    assert [len(features) for features, _ in kept] == [10, 10, 10] and not kept[0][0].requires_grad


def test_classes_seen_only(learned):
    head, sets = learned
    kept = [features_in_order(head.features, part, 10, MACHINE) for part in sets[:1]]
    within = accuracies(head, kept, 2, 10, seen=2)
    assert within[0] == within[1] == accuracies(head, kept, 2, 10)[1]


def test_numbers_of_common_ground(learned, tmp_path):
    """After the second of three tasks, with test sets of 10, 4 and 7 images, against every image by itself."""
    head, sets = learned
    head.freeze(head.snapshot(2))
    images = [part[:count] for part, count in zip(sets, (10, 4, 7))]
    tests = [(head.features(pixels), labels) for pixels, labels in images]
    labels = {"paper": "alta", "method": "ALTA", "protocol": "common-cifar10-3x2", "seed": 0}
    run, buffer = Run(tmp_path, {}, labels), Buffer(5, 0)
    run.record(task_accuracy_lines([90.0], protocol=labels["protocol"]))
    buffer.add_data(torch.arange(3), torch.zeros(3, 6), torch.zeros(3, 32))
    options = Options(eval=EvalSection(batch_size=4), seen_only=True)
    parts = {"options": options, "machine": MACHINE, "scenario": Scenario(range(6), 2, 2), "train": None, "test": None}
    learner = Learner(**parts, head=head, optimizer=None, buffer=buffer, run=run, test_features=tests)
    found = pooled(learner, 1, cells_after(learner, 1))
    with torch.no_grad():
        logits = torch.cat([head(pixels[None]) for part in images for pixels in part[0]])
    truth, own = torch.cat([part[1] for part in images]), torch.tensor([0] * 10 + [1] * 4 + [2] * 7)
    within = logits.masked_fill(own[:, None] != torch.arange(6) // 2, -torch.inf).argmax(dim=1) == truth
    hits, later = logits[:14, :4].argmax(dim=1) == truth[:14], logits[14:, 4:].argmax(dim=1) + 4 == truth[14:]
    trained = sum(value.numel() for value in head.trained().values())
    clip = sum(value.numel() for value in head.clip.parameters())
    assert found == pytest.approx({
        "accuracy": 100 * int(hits.sum()) / 14, "accuracy_with_task": 100 * int(within[:14].sum()) / 14,
        "forgetting": 90 - 100 * int(hits[:10].sum()) / 10, "unseen_accuracy": 100 * int(later.sum()) / 7,
        "total_parameters": clip + trained + head.prompt_learner.ctx.numel(), "stored_floats": 3 * (6 + 32),
    })  # fmt: skip


def test_the_picture_of_representations(learned, tmp_path):
    head, sets = learned
    kept = [features_in_order(head.features, part, 10, MACHINE) for part in sets]
    draw_tsne(head, kept, tmp_path / "tsne.png", "t-SNE", seed=0)
    from matplotlib.pyplot import imread

    pixels = imread(tmp_path / "tsne.png")
    assert pixels.shape[1] > 1.5 * pixels.shape[0]  # two panels
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
