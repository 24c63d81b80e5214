"""Feeding the recorded batches of an official run to our loop, and holding what comes out against its arrays."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.clip.model import build_model
from tests.golden_files import Golden
from zscl.teacher import FeatureCache, Reference, sentence_features
from zscl.training import TrainingOptions, train_task
from zscl.weights import Weights, copied, weights_of

FLAGS = {  # upstream's flags -> our options
    "--lr": ("lr", float), "--ls": ("label_smoothing", float), "--iterations": ("iterations", int),
    "--warmup_length": ("warmup", int), "--T": ("temperature", float), "--wd": ("weight_decay", float),
    "--avg_freq": ("avg_freq", int), "--l2": ("l2", float), "--we_wise_alpha": ("we_wise_alpha", float),
    "--mv_avg_decay": ("mv_avg_decay", float), "--mv_avg_model": ("mv_avg_model", str),
    "--wise_ft_alpha": ("wise_ft_alpha", float), "--train-mode": ("train_mode", str),
    "--wise_ft_model": ("wise_merge", str),
}  # fmt: skip
TERMS = {"--image_loss": "img", "--text_loss": "txt", "--ablation_loss_2": "ii", "--feature_mse": "mse"}
ENSEMBLES = {"--we": "we", "--we_wise": "we_wise", "--moving_avg": "moving_avg"}


class RecordedBatches:
    """The batches that the official loader drew, by step: images and labels of recorded indices (-1 is padding)."""

    def __init__(self, images: Tensor, labels: Tensor | None, drawn: list[list[int]]) -> None:
        self.images = images.float()
        self.labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels.long()
        self.drawn = [[index for index in row if index >= 0] for row in drawn]

    def indices(self, step: int) -> list[int]:
        return self.drawn[step]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images[self.drawn[step]], self.labels[self.drawn[step]]


def weights_under(golden: Golden, prefix: str) -> Weights:
    return {key: value.float() for key, value in golden.under(prefix).items()}


def options_of(argv: list[str], **changes: Any) -> TrainingOptions:
    """Our options for an upstream command line."""
    values: dict[str, Any] = {}
    for flag, value in zip(argv, [*argv[1:], ""]):
        if flag in FLAGS:
            name, kind = FLAGS[flag]
            values[name] = kind(value)
    values["terms"] = tuple(term for flag, term in TERMS.items() if flag in argv)
    values["kd_weight"] = 0.5 if "--weight_adjust" in argv else 1.0
    values["ensemble"] = next((name for flag, name in ENSEMBLES.items() if flag in argv), None)
    return TrainingOptions(**values | changes)


def reference_of(teacher: Weights, batches: RecordedBatches, tokens: Tensor) -> Reference:
    model = build_model(teacher)
    tokens = tokens.long()
    return Reference(model, batches, tokens, sentence_features(model, tokens), FeatureCache())


class Trajectory:
    """A run of our loop, and what it looked like at every step; `saved` is what it would save."""

    def __init__(self, start: Weights, names: list[str]) -> None:
        self.model, self.names = build_model(start), names
        self.parameters: list[Tensor] = []
        self.averages: list[Weights] = []
        self.gradients: list[Weights] = []
        self.weights: list[Weights] = []
        self.terms: list[dict[str, Tensor]] = []
        self.saved: Weights = {}

    def run(
        self,
        tokens: Tensor,
        batches: RecordedBatches,
        reference: Reference | None,
        clip_weights: Weights | None,
        options: TrainingOptions,
    ) -> "Trajectory":
        train_task(
            self.model, lambda step: tokens.long(), batches, reference, clip_weights, options, "task", self.steps
        )
        self.saved = copied(weights_of(self.model))
        return self

    def steps(self, stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for step in range(total):
            yield step
            self.terms.append({name: values[step].clone() for name, values in state["log"].tensors.items()})
            named = dict(self.model.named_parameters())
            self.weights.append({name: p.detach().clone() for name, p in named.items()})
            self.gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
            if "average" in state and hasattr(state["average"], "mean"):
                self.averages.append({name: mean.clone() for name, mean in state["average"].mean.items()})

    def losses(self, name: str) -> Tensor:
        return torch.stack([terms[name] for terms in self.terms])


def fingerprints(tensors: Weights, names: list[str]) -> Tensor:
    """(names, 3) float64: sum, norm, sum of v_k cos(k).

    The key third of attn.in_proj_bias, whose gradient is rounding noise, counts as 0.
    """
    rows = []
    for name in names:
        value = tensors[name].detach().double().flatten().clone()
        if name.endswith("attn.in_proj_bias"):
            third = len(value) // 3
            value[third : 2 * third] = 0
        position = torch.arange(len(value), dtype=torch.float64)
        rows.append(torch.stack([value.sum(), value.norm(), (value * position.cos()).sum()]))
    return torch.stack(rows)


def assert_losses(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), rtol=1e-5, atol=1e-5)


def assert_fingerprints(trajectory: list[Weights], names: list[str], expected: Tensor) -> None:
    actual = torch.stack([fingerprints(weights, names) for weights in trajectory])
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


def assert_weights(actual: Weights, expected: Weights, atol: float = 1e-6) -> None:
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].double(), value.double(), rtol=0, atol=atol)


def assert_gradients(actual: Weights, expected: Weights) -> None:
    assert expected
    for name, value in expected.items():  # 1.3e-5: one entry of an independent implementation came to 1.2e-5
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1.3e-5)
