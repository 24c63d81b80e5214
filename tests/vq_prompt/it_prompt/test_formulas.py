"""C-NCM, task inference and losses of IT-Prompt against the analytic fixtures, in float64 to 1e-10."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from tests.golden_files import Golden
from vq_prompt.it_prompt.cncm import (
    ClassMemory, class_centroids, class_distances, cluster_means, distances, nearest_class, preprocess,
)  # fmt: skip
from vq_prompt.it_prompt.network import (
    Selector, best_class, cross_entropy_over, key_cosines, loss_key, loss_text, loss_text_cosine, task_by_key,
)  # fmt: skip
from vq_prompt.it_prompt.training import PseudoFeatures, cosine_lr

CLOSE = {"rtol": 0, "atol": 1e-10}


def close(found, expected):
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.fixture(params=["it_cncm", "it_cncm_tukey_raw"])
def cncm(request):
    return Golden(f"vq_prompt/{request.param}")


def test_preprocessing(cncm):
    for split in ("train", "test"):
        close(preprocess(cncm[f"{split}_features"], cncm.meta["tukey_beta"]), cncm[f"{split}_phi"])


def test_centroids_of_the_true_partition(cncm):
    for phi, members, expected in zip(cncm["train_phi"], cncm["train_cluster"], cncm["centroids"]):
        close(cluster_means(phi, members, cncm.meta["clusters"], cncm.meta["renorm_centroids"]), expected)


def test_distances_and_predictions(cncm):
    distance = distances(cncm["test_phi"], cncm["centroids"])
    close(distance, cncm["distance"])
    counts = torch.full((cncm.meta["classes"],), cncm.meta["clusters"])
    seen = torch.arange(cncm.meta["classes"]) < cncm.meta["seen_classes_partial"]
    for aggregate in ("min", "mean"):
        by_class = class_distances(distance, counts, aggregate)
        close(by_class, cncm[f"distance_{aggregate}"])
        assert torch.equal(nearest_class(by_class), cncm[f"pred_{aggregate}"])
    assert torch.equal(nearest_class(cncm["distance_min"], seen), cncm["pred_min_seen_partial"])


@pytest.mark.parametrize("clusters, predicted", [(None, "pred_min"), (1, "pred_ncm")])
def test_memory_from_features_to_predictions(cncm, clusters, predicted):
    """k-means finds the fixture's partition; M = 1 is plain NCM. Learnt in two tasks, as if there were two."""
    meta = cncm.meta
    memory = ClassMemory(meta["tukey_beta"], False, clusters or meta["clusters"], meta["renorm_centroids"])
    for task in (range(2), range(2, meta["classes"])):
        labels = torch.arange(task.start, task.stop).repeat_interleave(cncm["train_features"].shape[1])
        memory.learn(cncm["train_features"][task.start : task.stop].flatten(0, 1), labels, task, 3, True, False)
    for found, expected in zip(memory.centroids, cncm["ncm_means"][:, None] if clusters else cncm["centroids"]):
        order = torch.cdist(expected, found).argmin(dim=1)
        close(found[order], expected)
    assert torch.equal(nearest_class(memory.class_distances(cncm["test_features"])), cncm[predicted])


def test_centered_features_use_the_first_tasks_mean_for_ever():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(40, 8, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.arange(40) // 10
    memory = ClassMemory(0.5, centered=True, n_clusters=1)
    memory.learn(features[:20], labels[:20], range(2), 0, True, True)
    mean = (features[:20].sign() * features[:20].abs().sqrt()).mean(dim=0)
    first = [tensor.clone() for tensor in memory.centroids]
    memory.learn(features[20:], labels[20:], range(2, 4), 0, True, True)
    close(memory.center, mean)
    assert all(torch.equal(now, then) for now, then in zip(memory.centroids, first))
    phi = F.normalize(features[20:30].sign() * features[20:30].abs().sqrt() - mean, dim=1)
    close(memory.centroids[2][0], F.normalize(phi.mean(dim=0), dim=0))
    close(memory.variances[3], features[30:].var(dim=0, unbiased=False))
    again = ClassMemory(0.5, True, 1)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.class_distances(features), memory.class_distances(features))


def test_fewer_distinct_images_than_clusters():
    """Two rows, one of them three times: two clusters; a class of its own count is padded beside the others."""
    rows = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), dim=1)
    assert len(class_centroids(rows, 10, seed=0)) == 2
    memory = ClassMemory(n_clusters=10)
    memory.learn(rows, torch.tensor([0, 0, 1, 1]), range(2), 0, True, False)
    assert [len(part) for part in memory.centroids] == [2, 1]
    for aggregate, expected in (("min", [[0.0, 0.0], [0.0, 2.0]]), ("mean", [[1.0, 0.0], [1.0, 2.0]])):
        memory.aggregate = aggregate
        close(memory.class_distances(rows[:2]), torch.tensor(expected))
    with pytest.raises(UserError, match="class 2 of the class order has no training images"):
        memory.learn(rows, torch.tensor([0, 0, 1, 1]), range(2, 3), 0, True, False)


# Task inference and losses


@pytest.fixture(scope="module")
def select():
    return Golden("vq_prompt/it_select_losses")


def of_tasks(select, tasks):
    return torch.tensor([task < tasks for task in select.meta["task_of"]])


def test_softmax_selector(select):
    selector = Selector(16, 10, 12).double()
    weights = {"fc.weight": "W_f", "fc.bias": "b_f", "classifier.weight": "W_c", "classifier.bias": "b_c"}
    selector.load_state_dict({key: select[name] for key, name in weights.items()})
    close(F.normalize(select["image_feature"], dim=1), select["u"])
    logits = selector(select["u"]).detach()
    close(logits, select["selector_logits"])
    predicted = best_class(logits, of_tasks(select, select.meta["seen_tasks"]))
    assert torch.equal(predicted, select["pred_class"])
    assert torch.equal(torch.tensor(select.meta["task_of"])[predicted], select["pred_task"])


def test_key_selector(select):
    close(key_cosines(select["u"], select["keys"]), select["key_cos"])
    seen = select["keys"][: select.meta["seen_tasks"]]
    assert torch.equal(task_by_key(select["u"], seen), select["pred_task_by_key"])


def test_losses_and_the_keys_gradient(select):
    meta, classes = select.meta, torch.tensor(select.meta["current_classes"])
    u, z, text, y = (select[name] for name in ("u", "z", "text", "y"))
    key = select["keys"][meta["current_task"]].clone().requires_grad_()
    cls = cross_entropy_over(z @ select["W_head"].t() + select["b_head"], y, classes)
    guided = loss_text(z, text, y, classes, meta["logit_scale"])
    close(cross_entropy_over(select["selector_logits"], y, classes), select["loss_selector"])
    close(cls, select["loss_cls"])
    close(guided, select["loss_text_ce"])
    close(loss_text_cosine(z, text, y), select["loss_text_cosine"])
    close(loss_key(u, key).detach(), select["loss_key"])
    total = cls + meta["lambda_text"] * guided + meta["lambda_key"] * loss_key(u, key)  # as in train_task
    close(total.detach(), select["loss_total"])
    total.backward()
    close(key.grad, select["grad_current_key"])


def test_ties_go_to_the_lowest_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    assert best_class(scores, torch.tensor([True, False, True, True])).item() == 2
    assert nearest_class(-scores, torch.tensor([True, False, True, True])).item() == 2
    assert task_by_key(torch.ones(1, 3), torch.ones(4, 3)).item() == 0


# Rates and pseudo-features


def test_cosine_rates():
    steps = np.arange(40)
    expected = 1e-6 + 0.5 * (0.0025 - 1e-6) * (1 + np.cos(np.pi * steps / 40))
    np.testing.assert_allclose([cosine_lr(step, 0.0025, 40) for step in steps], expected, rtol=0, atol=1e-12)
    assert cosine_lr(0, 0.0025, 40) == 0.0025


def test_pseudo_features_are_drawn_by_epoch_alone():
    """All samples of all classes, of unit length, about the right directions; any step can be asked for first."""
    means = F.normalize(torch.eye(3, 8, dtype=torch.float64) + 0.1, dim=1)
    memory = ClassMemory(means=list(means), variances=[torch.full((8,), 1e-4, dtype=torch.float64)] * 3)
    drawn = PseudoFeatures(memory, per_class=50, batch_size=32, seed=5)
    assert len(drawn) == 5  # 150 samples
    one = [drawn[step] for step in range(10)]
    for features, labels in one:
        close(features.norm(dim=1), torch.ones(len(features), dtype=torch.float64))
        assert (features @ means.t()).argmax(dim=1).equal(labels)
    counted = torch.cat([labels for _, labels in one[:5]]).bincount()
    assert counted.tolist() == [50, 50, 50]
    fresh = PseudoFeatures(memory, 50, 32, 5)
    assert torch.equal(fresh[7][0], one[7][0]) and not torch.equal(one[7][0], one[2][0])
