"""The benchmark of MoE-Adapters' class-incremental half at its smallest."""

import torch

from tests.benchmarks.measure import VOID_ABOVE, Sizes
from tests.benchmarks.moe_adapters_cil import rows


def test_small_benchmark() -> None:
    found = rows(Sizes(torch.device("cpu"), True, 1, 0, None, ()))
    assert [row.cell for row in found] == ["CIL step, 4 classes"] * 4 + ["CIL test, 128 images, 8 classes"] * 4
    assert all(row.ms_median > 0 for row in found)
    compared = [row for row in found if row.difference is not None]
    assert len(compared) == 5 and all(row.difference <= VOID_ABOVE and row.ratio > 0 for row in compared)
