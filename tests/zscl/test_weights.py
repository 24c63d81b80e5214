"""WE, WE-WiSE, moving average, WiSE-FT and WC against the official code's arrays."""

import pytest
import torch

from tests.golden_files import Golden
from zscl.weights import MovingAverage, WeightEnsemble, consolidate_, interpolate_

AVERAGING = Golden("zscl_mtil/weight_averaging")
LOSSES = Golden("zscl_mtil/losses")
META = AVERAGING.meta


def start() -> dict[str, torch.Tensor]:
    return {"a": AVERAGING["theta0_a"].clone(), "b": AVERAGING["theta0_b"].clone()}


def samples() -> list[dict[str, torch.Tensor]]:
    return [{"a": a, "b": b} for a, b in zip(AVERAGING["seq_a"], AVERAGING["seq_b"])]


@pytest.mark.parametrize(("name", "alpha"), [("we", 1.0), ("we_wise", META["we_wise_alpha"])])
def test_running_mean_after_each_sample(name: str, alpha: float) -> None:
    ensemble = WeightEnsemble(start(), alpha)
    for k, sample in enumerate(samples()):
        ensemble.add(sample)
        torch.testing.assert_close(ensemble.mean["a"], AVERAGING[f"{name}_a"][k], rtol=0, atol=1e-6)
    torch.testing.assert_close(ensemble.mean["b"], AVERAGING[f"{name}_b_last"], rtol=0, atol=1e-6)


def test_the_mean_of_k_samples_has_k_plus_one_equal_terms_the_start_among_them() -> None:
    ensemble, terms = WeightEnsemble(start()), [start(), *samples()]
    for sample in samples():
        ensemble.add(sample)
    torch.testing.assert_close(ensemble.mean["a"], torch.stack([term["a"] for term in terms]).mean(0))


def test_the_mean_is_updated_in_place_and_the_samples_are_not_touched() -> None:
    ensemble, sample = WeightEnsemble(start()), samples()[0]
    place, before = ensemble.mean["a"].data_ptr(), sample["a"].clone()
    ensemble.add(sample)
    assert ensemble.mean["a"].data_ptr() == place and torch.equal(sample["a"], before)


def test_an_ensemble_goes_on_from_its_state() -> None:
    whole, first, second = WeightEnsemble(start(), 0.9), WeightEnsemble(start(), 0.9), WeightEnsemble(start(), 0.9)
    for sample in samples():
        whole.add(sample)
    for sample in samples()[:3]:
        first.add(sample)
    second.load_state_dict(first.state_dict())
    for sample in samples()[3:]:
        second.add(sample)
    assert all(torch.equal(whole.mean[name], second.mean[name]) for name in whole.mean)


def test_moving_average_to_theta0() -> None:
    average = MovingAverage(start(), META["mv_decay"])
    for k, sample in enumerate(samples()):
        pulled = {name: value.clone() for name, value in sample.items()}
        average.add(pulled)
        torch.testing.assert_close(pulled["a"], AVERAGING["moving_avg_a"][k], rtol=0, atol=1e-6)


def test_moving_average_that_follows_pulls_to_the_weights_before_the_previous_pull() -> None:
    average = MovingAverage({"a": torch.tensor([1.0])}, 0.5, follow=True)
    weights = {"a": torch.tensor([3.0])}
    average.add(weights)
    assert weights["a"].item() == 2.0
    weights["a"].fill_(5.0)
    average.add(weights)
    assert weights["a"].item() == 4.0  # half way to 3, what they were before the first pull


def test_wise_ft_at_evaluation() -> None:
    weights = {name: value.clone() for name, value in samples()[0].items()}
    interpolate_(weights, start(), META["wise_eval_alpha"])
    for name in weights:
        torch.testing.assert_close(weights[name], AVERAGING[f"wise_eval_{name}"], rtol=0, atol=1e-6)


def test_weight_consolidation_equals_what_autograd_gives() -> None:
    parameters = [torch.nn.Parameter(LOSSES[f"wc_param{i}"].float()) for i in range(4)]
    references = [LOSSES[f"wc_ref{i}"].float() for i in range(4)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    value = consolidate_(zip(parameters, references), 1.0)
    torch.testing.assert_close(value, LOSSES["wc_loss"].float(), rtol=1e-5, atol=1e-5)
    for i, parameter in enumerate(parameters):
        torch.testing.assert_close(parameter.grad, LOSSES[f"wc_grad{i}"].float(), rtol=1e-5, atol=1e-5)


def test_weight_consolidation_adds_to_the_gradient_and_scales_it_by_its_strength() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, theta0, other = torch.randn(3, 5, generator=generator)
    plain = torch.nn.Parameter(theta)
    ((plain * other).sum() + 0.3 * (plain - theta0).square().sum()).backward()
    closed = torch.nn.Parameter(theta)
    (closed * other).sum().backward()
    frozen = torch.nn.Parameter(theta, requires_grad=False)
    value = consolidate_([(closed, theta0), (frozen, theta0)], 0.3)
    torch.testing.assert_close(closed.grad, plain.grad)
    torch.testing.assert_close(value, 2 * (theta - theta0).square().sum())
    assert frozen.grad is None
