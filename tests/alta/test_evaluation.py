"""Accuracies, task masks, forgetting; the tower that sees each test image once."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from alta.evaluation import accuracies, draw_tsne
from common.evaluation.metrics import backward_transfer_alta, class_and_task_il, forgetting_alta, mask_task
from common.incremental.features import features_in_order
from common.machine import Machine
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


def test_the_picture_of_representations(learned, tmp_path):
    head, sets = learned
    kept = [features_in_order(head.features, part, 10, MACHINE) for part in sets]
    draw_tsne(head, kept, tmp_path / "tsne.png", "t-SNE", seed=0)
    from matplotlib.pyplot import imread

    pixels = imread(tmp_path / "tsne.png")
    assert pixels.shape[1] > 1.5 * pixels.shape[0]  # two panels
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
