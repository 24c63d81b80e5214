"""The program stopped everywhere: see tests/faults.py."""

from pathlib import Path

from tests.faults import require_the_same_after_stops

SHORTER = "--init_cls 50 --increment 50 --total_sessions 2 --init_epoch 1 --epochs 1 --batch_size 50 --save_interval 0"


def test_stopped_everywhere(tmp_path: Path) -> None:
    require_the_same_after_stops("inflora", SHORTER.split(), tmp_path)
