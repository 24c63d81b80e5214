"""ALTA's benchmark at its smallest: every row, and that fast and plain compute the same."""

import json

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import VOID_ABOVE


def test_small_benchmark_of_alta(tmp_path):
    main(["alta", "--small", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "speed.json")])
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    steps = [f"step, {tower}, 20 classes, task {task} of 10" for tower in ("RN50", "ViT-B/16") for task in (1, 6)]
    pairs = [cell for cell in steps for _ in range(2)]
    assert [row["cell"] for row in rows] == (
        [*pairs, *["evaluation, RN50, 20 classes, 16 images"] * 3, *["buffer of 200, batch 8"] * 2]
    )
    ours = [row for row in rows if row["ratio"] is not None]
    assert [row["subject"] for row in ours] == ["ours"] * 4 + [
        "texts once, images not met before", "texts once, images met before", "one draw, one write"
    ]  # fmt: skip
    assert all(row["difference"] <= VOID_ABOVE for row in ours)
    assert ours[-1]["difference"] == 0 and max(row["difference"] for row in ours) > 0
