"""Differences between a file's state dict and a model's."""

from collections.abc import Mapping

from torch import Tensor

FAULTS = ("keys missing", "keys unexpected", "keys of another shape")


def misfits(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], faults: tuple[str, ...] = FAULTS
) -> dict[str, list[str]]:
    """Sorted keys by fault, {} if there is none; keys of another shape are followed by the shape in `weights`."""
    shared = expected.keys() & weights.keys()
    reshaped = [f"{key} {tuple(weights[key].shape)}" for key in shared if expected[key].shape != weights[key].shape]
    keys = (expected.keys() - shared, weights.keys() - shared, reshaped)
    return {fault: sorted(wrong) for fault, wrong in zip(faults, keys) if wrong}


def listed(faults: Mapping[str, list[str]], shown: int = 4) -> str:
    """A text like "5 keys missing: a, b, c, d, ...; 1 keys unexpected: e", the first `shown` keys of each fault."""
    return "; ".join(
        f"{len(keys)} {fault}: {', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''}"
        for fault, keys in faults.items()
    )
