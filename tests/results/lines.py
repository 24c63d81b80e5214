"""Record lines as runs write them, for the tests of results."""

import json
from pathlib import Path
from typing import Any

from common.protocols import MTIL_ORDER_1
from results.collect import read_runs
from results.compare import AccuracyMatrix, compare, matrices

LINE = {
    "schema": 1,
    "paper": "zscl",
    "method": "ZSCL",
    "protocol": "mtil-order1",
    "backbone": "ViT-B/16",
    "scale": "paper",
    "seed": 42,
    "run": "runs/zscl/order1",
    "commit": "0" * 40,
    "dataset": "mean",
    "after_task": 11,
    "seconds": None,
    "metric": "last",
    "value": 83.6,
}


def write_lines(folder: Path, lines: list[dict[str, Any] | str], name: str = "record.jsonl") -> Path:
    """A record file of whole lines (dicts, over the default one) and of raw text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(line if isinstance(line, str) else json.dumps(LINE | line) + "\n" for line in lines))
    return path


def matrix_lines(zero_shot: list[float], rows: list[list[float]], **fields: Any) -> list[dict[str, Any]]:
    """Accuracy cells of a sequence in order 1: the row before any task, then one a task."""
    sets = MTIL_ORDER_1[: len(zero_shot)]
    return [
        {"dataset": name, "after_task": task, "metric": "accuracy", "value": value}
        | fields
        | ({} if task else {"method": "Zero-shot CLIP"})
        for task, row in enumerate([zero_shot, *rows])
        for name, value in zip(sets, row)
    ]


def shown(folder: Path) -> tuple[AccuracyMatrix, dict[tuple[str, str, str], float]]:
    """The only accuracy matrix of a run's folder, and its numbers by method, metric and data set."""
    records, _, problems = read_runs([folder])
    assert problems == []
    (matrix,) = matrices(records)
    return matrix, {(item.method, item.metric, item.dataset): item.mean for item in compare([], records)}
