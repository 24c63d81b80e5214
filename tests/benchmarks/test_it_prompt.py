"""IT-Prompt's benchmark at its smallest: rows and equality column."""

import json
from pathlib import Path

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import VOID_ABOVE


def test_small_benchmark_of_it_prompt(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    main(["it_prompt", "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["cell"] for row in rows] == (
        ["step"] * 3
        + ["after a task, 16 images from pixels"] * 2
        + ["rebalancing, an epoch of 100 classes"] * 2
        + ["test of 16 images, one entry in 4 new"] * 2
        + ["C-NCM, 100 images"] * 2
    )
    assert all(row["ms_median"] > 0 and row["peak_memory_mib"] > 0 for row in rows)
    compared = [row for row in rows if row["difference"] is not None]
    assert len(compared) == 6
    assert all(row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
