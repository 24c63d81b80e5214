"""Short runs of every entry point against what the same commands left when they were stored (golden/runs/README.md).

`python -m tests.test_fence NAME ...` stores them anew, all without a name.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_data import gathered_captions, write
from tests.whole_run import float64, watched

RUNS = Path(__file__).parent / "golden" / "runs"
MEASURED = ("train_seconds", "seconds_per_batch", "peak_memory_mib")  # metrics that are not computed


def prepared(run: dict[str, Any], folder: Path) -> tuple[Callable, list[str]]:
    """A stored command's program and arguments, the files and made-up images that they name written to a folder."""
    if "{folder}/data" in str(run["arguments"]):
        write(folder / "data", ["CIFAR100"])
        write(folder / "data" / "cifar100", ["CIFAR100"])  # where the class-incremental programs look
        gathered_captions(folder / "data", 40)
    for name, content in run.get("files", {}).items():
        (folder / name).write_text(json.dumps(content))
    return importlib.import_module(run["program"]).main, [word.format(folder=folder) for word in run["arguments"]]


def outcome(run: dict[str, Any], folder: Path) -> dict[str, list[Any]]:
    """What a stored command leaves: record lines, and of every step the loss, rates and the gradient's norm."""
    main, words = prepared(run, folder)
    with float64(), watched() as seen:
        main(words)
    (path,) = folder.rglob("record.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    records = [[line[key] for key in ("after_task", "dataset", "metric", "value")] for line in lines]
    return {
        "records": sorted(record for record in records if record[2] not in MEASURED),
        "losses": seen.losses,
        "rates": [[group["lr"] for group in step.groups] for step in seen.steps],
        "gradient_norms": [step.gradient_norm for step in seen.steps],
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in RUNS.glob("*.json")))
def test_a_run_ends_as_it_did(name: str, tmp_path: Path) -> None:
    run = json.loads((RUNS / f"{name}.json").read_text())
    found, stored = outcome(run, tmp_path), run["outcome"]
    assert [record[:3] for record in found["records"]] == [record[:3] for record in stored["records"]]
    for one, other in zip(found["records"], stored["records"], strict=True):
        exact = isinstance(other[3], int)  # a count
        assert one[3] == (other[3] if exact else pytest.approx(other[3], rel=1e-6, abs=0)), other[:3]
    assert len(found["losses"]) > 0
    assert found["losses"] == pytest.approx(stored["losses"], rel=1e-6, abs=0)
    assert sum(found["rates"], []) == pytest.approx(sum(stored["rates"], []), rel=1e-6, abs=0)
    assert found["gradient_norms"] == pytest.approx(stored["gradient_norms"], rel=1e-6, abs=0)


def store(name: str) -> None:
    path = RUNS / f"{name}.json"
    run = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        run["outcome"] = outcome(run, Path(folder))
    path.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    for stored in sys.argv[1:] or sorted(path.stem for path in RUNS.glob("*.json")):
        store(stored)
