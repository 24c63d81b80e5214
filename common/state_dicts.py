"""How the state dict of a file differs from the one that a model takes."""

from collections.abc import Mapping

from torch import Tensor

FAULTS = ("keys missing", "keys unexpected", "keys of another shape")


def misfits(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], faults: tuple[str, ...] = FAULTS
) -> dict[str, list[str]]:
    """Keys, sorted, by what is wrong with them, the shape of `weights` after one that differs; {} if all are right."""
    shared = expected.keys() & weights.keys()
    reshaped = [key for key in shared if expected[key].shape != weights[key].shape]
    keys = (
        expected.keys() - shared,
        weights.keys() - shared,
        [f"{key} {tuple(weights[key].shape)}" for key in reshaped],
    )
    return {fault: sorted(wrong) for fault, wrong in zip(faults, keys) if wrong}


def listed(faults: Mapping[str, list[str]], shown: int = 4) -> str:
    """Such as "5 keys missing: a, b, c, d, ...; 1 keys unexpected: e", the first `shown` keys of each."""
    return "; ".join(
        f"{len(keys)} {fault}: {', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''}"
        for fault, keys in faults.items()
    )
