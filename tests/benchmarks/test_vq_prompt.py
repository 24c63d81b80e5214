"""The benchmark of VQ-Prompt at its smallest: rows, equality column."""

import json

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import VOID_ABOVE


def test_small_benchmark(tmp_path, capsys):
    out = tmp_path / "speed.json"
    main(["vq_prompt", "--small", "--steps", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["cell"] for row in rows] == (
        ["step"] * 3
        + ["statistics, 8 images, two a class"] * 2
        + ["re-training, 8 classes, an epoch"] * 2
        + ["evaluation, 8 images"] * 3
    )
    assert all(row["ms_median"] is not None and row["peak_memory_mib"] > 0 for row in rows)
    compared = [row for row in rows if row["difference"] is not None]
    assert len(compared) == 6 and all(row["difference"] <= VOID_ABOVE and row["ratio"] > 0 for row in compared)
    assert compared[0]["difference"] < 1e-9  # float64
    table = capsys.readouterr().out
    assert all(row["subject"] in table for row in rows)
