"""Statistics and classifier re-training: the official code's numbers, and direct sampling against the plain way."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from common.errors import UserError
from tests.golden_files import Golden
from vq_prompt.classifier import (
    ClassStatistics,
    class_statistics,
    draw,
    nearest_mean,
    retrain,
    task_statistics,
)  # fmt: skip
from vq_prompt.options import VQOptions

close = torch.testing.assert_close


def options_of(epochs, lr, weight_decay):
    return VQOptions(crct_epochs=epochs, ca_lr=lr, ca_weight_decay=weight_decay)


def stored_statistics(golden):
    """The fixture's Gaussians in the stage's order, labelled by position in seen_original_ids."""
    means, variances = golden["cls_mean"], golden["cls_var"]
    labels = torch.arange(len(means)).repeat_interleave(means.shape[1])
    return ClassStatistics(means.flatten(0, 1), variances.flatten(0, 1), labels)


@pytest.mark.parametrize("name", ["ca_stage", "ca_stage_two_centroids"])
def test_retraining_is_the_official_codes(name):
    """In float32: rates, losses and the classifier after every stored update."""
    golden = Golden(f"vq_prompt/{name}")
    meta, statistics = golden.meta, stored_statistics(golden).spread()
    assert len(statistics.labels) == golden["samples"].shape[1]
    classifier = torch.nn.Linear(golden["weight0"].shape[1], len(golden["bias0"]))
    classifier.load_state_dict({"weight": golden["weight0"], "bias": golden["bias0"]})
    weights, biases = [], []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            weights.append(self.weight.detach().clone())
            biases.append(self.bias.detach().clone())
            return super().forward(x)

    classifier.__class__ = Watched
    options = options_of(meta["epochs"], meta["ca_lr"], meta["weight_decay"])
    draws = zip(golden["samples"], golden["permutations"])
    log = retrain(classifier, draws, statistics.labels, meta["valid_out"], meta["n_old"], options)
    close(torch.tensor(log.lr, dtype=torch.float64), golden["lr"], rtol=0, atol=1e-12)
    close(torch.tensor(log.loss, dtype=torch.float64), golden["loss"], rtol=0, atol=1e-6)
    weights, biases = [*weights, classifier.weight.detach()], [*biases, classifier.bias.detach()]
    for row, step in enumerate(meta["steps_of_weight_snapshots"]):
        close(weights[step + 1], golden["weight_snapshots"][row], rtol=0, atol=1e-6)
        close(biases[step + 1], golden["bias_snapshots"][row], rtol=0, atol=1e-6)
    close(weights[-1], golden["weight_final"], rtol=0, atol=1e-6)
    close(biases[-1], golden["bias_final"], rtol=0, atol=1e-6)


def test_statistics_are_mean_and_population_variance():
    golden = Golden("vq_prompt/ca_stage")
    for features, mean, variance in zip(golden["features"], golden["cls_mean"], golden["cls_var"]):
        found = class_statistics(features, 1, seed=0)
        close(found[0], mean, rtol=0, atol=1e-6)
        close(found[1], variance, rtol=0, atol=1e-6)
        assert found[0].dtype == torch.float64


def test_several_centroids_are_k_means_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    features = (centres[:, None] + torch.randn(3, 20, 2, generator=generator)).flatten(0, 1)
    means, variances = class_statistics(features, 3, seed=1)
    expected = features.view(3, 20, 2).double()
    matched = torch.cdist(means, expected.mean(dim=1)).argmin(dim=1)
    assert sorted(matched.tolist()) == [0, 1, 2]
    close(means, expected.mean(dim=1)[matched], rtol=0, atol=1e-5)
    close(variances, expected.var(dim=1, correction=0)[matched], rtol=0, atol=1e-5)
    repeated = features[:2].repeat(4, 1)
    assert len(class_statistics(repeated, 3, seed=1)[0]) == 2  # never more clusters than distinct features


def test_task_statistics_keep_the_order_of_classes():
    features, labels = torch.randn(40, 3), torch.arange(40) % 4 + 8
    found = task_statistics(features, labels, range(8, 12), 1, seed=0)
    assert found.labels.tolist() == [8, 9, 10, 11]
    for row, label in enumerate(range(8, 12)):
        close(found.means[row], features[labels == label].mean(dim=0).double())
    two = task_statistics(features, labels, range(8, 10), 2, seed=0)
    assert two.labels.tolist() == [8, 8, 9, 9]
    both = ClassStatistics.joined([found, two])
    assert torch.equal(both.means, torch.cat([found.means, two.means])) and len(both.labels) == 8


@pytest.mark.parametrize("count", [1, 5, 16])
def test_draws_are_those_of_a_multivariate_normal(count):
    """The same stream through torch's MultivariateNormal with a full matrix, as the original samples."""
    generator = torch.Generator().manual_seed(4)
    means, variances = (torch.rand(3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    variances[1] = 0  # drawn all the same, unless `spread` has left it out
    statistics = ClassStatistics(means, variances, torch.arange(3))
    epochs = list(draw(statistics, count, 2, torch.Generator().manual_seed(9)))
    torch.manual_seed(9)
    for samples, order in epochs:
        for row in range(3):
            covariance = torch.diag(variances[row].float()) + 1e-4 * torch.eye(7)
            plain = MultivariateNormal(means[row].float(), covariance).sample((count,))
            close(samples[row], plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(order, torch.randperm(3 * count)) and samples.dtype == torch.float32
    assert statistics.spread().labels.tolist() == [0, 2]


def retrained(seen, old, groups, epochs=2):
    torch.manual_seed(0)
    classifier, labels = torch.nn.Linear(6, 9), torch.arange(groups) % seen
    draws = [(torch.randn(groups, 4, 6), torch.randperm(groups * 4)) for _ in range(epochs)]
    return retrain(classifier, draws, labels, seen, old, options_of(epochs, 0.1, 0.01))


def test_samples_that_run_out_end_the_epoch():
    """Gaussians left out for want of variance can leave fewer batches than old classes: no update on nothing."""
    log = retrained(seen=8, old=5, groups=3)
    assert len(log.loss) == 6 and np.isfinite(log.loss).all()


def test_top5_needs_five_classes():
    few, many = retrained(seen=4, old=2, groups=4), retrained(seen=6, old=2, groups=6)
    assert np.isnan(few.top5).all() and all(0 <= one <= five <= 1 for one, five in zip(many.top1, many.top5))
    exact = retrained(seen=5, old=2, groups=5)
    assert exact.top5 == [1.0] * 4


def test_nearest_mean():
    classifier = torch.nn.Linear(5, 9).double()
    features = torch.randn(60, 5, dtype=torch.float64)
    statistics = task_statistics(features, torch.arange(60) % 6, range(6), 1, seed=0)
    nearest_mean(classifier, statistics)
    with torch.no_grad():
        found = classifier(features)[:, :6].argmax(dim=1)
    assert torch.equal(found, torch.cdist(features, statistics.means).argmin(dim=1))


def test_a_re_training_that_diverges_ends_the_run():
    samples, labels = torch.ones(4, 8, 5), torch.arange(4)
    samples[2] = torch.inf
    with pytest.raises(UserError, match="re-training of the classifier: the loss is not finite at step 2"):
        retrain(torch.nn.Linear(5, 4), [(samples, torch.arange(32))], labels, 4, 4, options_of(1, 0.1, 0.0))
