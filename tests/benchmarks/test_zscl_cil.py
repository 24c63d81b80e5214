"""The benchmark of ZSCL's class-incremental half at its smallest."""

import torch

from tests.benchmarks.measure import VOID_ABOVE, Sizes
from tests.benchmarks.zscl_cil import rows


def test_small_benchmark() -> None:
    found = rows(Sizes(torch.device("cpu"), True, 1, 0, None, ()))
    assert [row.cell for row in found] == (
        ["CIL step, 4 classes, 32 captions"] * 7 + ["CIL test, 256 images, 16 classes"] * 2
    )
    assert all(row.ms_median > 0 for row in found)
    compared = [row for row in found if row.difference is not None]
    assert len(compared) == 4 and compared[-1].difference == 0
    assert all(0 < row.difference <= VOID_ABOVE and row.ratio > 0 for row in compared[:-1])
