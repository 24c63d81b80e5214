"""Parts of classifier alignment that the fixtures leave open: drawing, more than two tasks, failing covariances."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError
from inflora.alignment import (
    DRAWN,
    EPOCHS,
    align,
    cholesky_factors,
    class_statistics,
    draw,
    fresh_norm,
    normalised_logits,
    scaled_means,
)


def test_statistics_of_a_class():
    features = torch.tensor([[1.0, 0], [3, 2], [9, 9]])
    statistics = class_statistics(features, torch.tensor([4, 4, 5]), [4])
    assert torch.equal(statistics.means, torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[2.0001, 2.0], [2.0, 2.0001]])  # divided by n - 1
    torch.testing.assert_close(statistics.covariances[0], expected, rtol=1e-7, atol=0)


def test_classes_with_too_few_images():
    """One image leaves the jitter, none is refused: nan would spread to all classifiers."""
    features, labels = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([0, 2])
    single = class_statistics(features, labels, [2])
    torch.testing.assert_close(single.covariances[0], 1e-4 * torch.eye(2))
    assert single.means[0].tolist() == [3.0, 5.0]
    with pytest.raises(UserError, match="class 1 of the class order has no training images"):
        class_statistics(features, labels, [0, 1])


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="has diverged"):
        cholesky_factors(torch.full((1, 2, 2), torch.nan))


def test_joined_statistics_keep_class_order():
    features, labels = torch.randn(20, 3), torch.arange(4).repeat(5)
    first, rest = class_statistics(features, labels, [0, 1]), class_statistics(features, labels, [2, 3])
    both, joined = class_statistics(features, labels, range(4)), first.joined(rest)
    assert torch.equal(joined.means, both.means) and torch.equal(joined.covariances, both.covariances)


def test_older_means_shrink_more():
    """Three tasks of one, two and one classes: 0.9 + 0.1 (s + 1) / 3."""
    means = torch.full((4, 2), 3.0, dtype=torch.float64)
    scaled = scaled_means(means, torch.tensor([0, 1, 1, 2]))
    assert scaled.dtype == torch.float32
    expected = [3 * (0.9 + 0.1 / 3), 3 * (0.9 + 0.2 / 3), 3 * (0.9 + 0.2 / 3), 3.0]
    torch.testing.assert_close(scaled[:, 0].double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_draws_follow_the_statistics():
    """512 x 5 draws of a class: their mean and covariance within four standard errors; every epoch another order."""
    generator = torch.Generator().manual_seed(0)
    means, factor = torch.tensor([[1.0, -2.0], [5.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    factors = cholesky_factors(torch.stack([factor @ factor.T] * 2))
    torch.testing.assert_close(factors[0], factor)
    epochs = list(draw(means, factors, generator))
    assert len(epochs) == EPOCHS
    samples = torch.cat([samples for samples, _ in epochs], dim=1)
    count = EPOCHS * DRAWN
    assert samples.shape == (2, count, 2)
    for index in range(2):
        spread = 4 * 2 / math.sqrt(count)
        assert (samples[index].mean(dim=0) - means[index]).abs().max() < spread
        assert (samples[index].T.cov() - factor @ factor.T).abs().max() < 4 * spread
    orders = [order for _, order in epochs]
    assert all(torch.equal(order.sort().values, torch.arange(2 * DRAWN)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


def test_a_covariance_that_is_not_positive_definite_gets_more_jitter(capsys):
    broken = torch.diag(torch.tensor([1.0, -1.5e-4]))
    factors = cholesky_factors(torch.stack([torch.eye(2), broken]))
    assert torch.equal(factors[0], torch.eye(2))
    torch.testing.assert_close(factors[1] @ factors[1].T, broken + 2e-4 * torch.eye(2))
    assert "class 1: 2 x 0.0001 I added" in capsys.readouterr().out


def test_logit_norm_of_three_tasks():
    """Each sample over its mean norm of the tasks and 0.1, by hand."""
    logits = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])]
    mean = (5 + 1 + 2 + 3e-7) / 3
    torch.testing.assert_close(normalised_logits(logits), torch.tensor([[3.0, 4, 0, 1, 2]]) / mean / 0.1)


@pytest.mark.parametrize("logit_norm", [True, False])
def test_alignment_of_three_tasks_against_plain_steps(logit_norm):
    """SGD by hand: momentum 0.9, decay 5e-4, half a cosine from 0.01 over five epochs; batches of 256."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    classifiers = [nn.Linear(4, count).requires_grad_(False) for count in (2, 1, 2)]
    weights = [[p.clone().double() for p in classifier.parameters()] for classifier in classifiers]
    epochs = [
        (torch.randn(5, DRAWN, 4, generator=generator), torch.randperm(5 * DRAWN, generator=generator))
        for _ in range(5)
    ]
    losses, rates = align(classifiers, epochs, logit_norm)
    assert len(losses) == 5 * 5 and rates[::5] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * e / 5)) for e in range(5)]
    )
    flat = [p.requires_grad_(True) for pair in weights for p in pair]
    buffers = [torch.zeros_like(p) for p in flat]
    for epoch, (samples, order) in enumerate(epochs):
        for start in range(0, 5 * DRAWN, DRAWN):
            chosen = order[start : start + DRAWN]
            x, y = samples.flatten(0, 1)[chosen].double(), chosen // DRAWN
            parts = [x @ W.T + b for W, b in weights]
            scale = (
                torch.stack([part.norm(dim=1) for part in parts]).mean(dim=0) * 0.1 if logit_norm else torch.ones(DRAWN)
            )
            gradients = torch.autograd.grad(F.cross_entropy(torch.cat(parts, dim=1) / scale[:, None], y), flat)
            with torch.no_grad():
                for p, g, buffer in zip(flat, gradients, buffers):
                    buffer.mul_(0.9).add_(g + 5e-4 * p)
                    p -= 0.005 * (1 + math.cos(math.pi * epoch / 5)) * buffer
    for classifier, (W, b) in zip(classifiers, weights):
        assert not classifier.weight.requires_grad and classifier.weight.grad is None
        torch.testing.assert_close(classifier.weight.double(), W.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier.bias.double(), b.detach(), rtol=1e-4, atol=1e-5)


def test_fresh_norm_of_ca1():
    norm = fresh_norm(6)
    assert norm.eps == 1e-5 and not norm.weight.requires_grad
    assert torch.equal(norm.weight, torch.ones(6)) and torch.equal(norm.bias, torch.zeros(6))


def test_an_alignment_that_diverges_ends_the_run():
    samples = torch.ones(3, 256, 4)
    samples[1, 5] = torch.inf
    with pytest.raises(UserError, match=r"classifier alignment: the loss is not finite at step 2 \(loss\)"):
        align([torch.nn.Linear(4, 3)], [(samples, torch.arange(3 * 256).roll(256))] * 2, logit_norm=False)
