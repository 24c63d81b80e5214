"""The program stopped everywhere: see tests/faults.py."""

from pathlib import Path

from tests.faults import require_the_same_after_stops

SHORTER = "dataset.n_tasks=2 dataset.n_classes_per_task=20 OPTIM.MAX_EPOCH=1 --save_interval 0"


def test_stopped_everywhere(tmp_path: Path) -> None:
    require_the_same_after_stops("alta", SHORTER.split(), tmp_path)
