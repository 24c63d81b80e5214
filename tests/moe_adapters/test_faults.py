"""Both programs stopped everywhere: see tests/faults.py."""

from pathlib import Path

import pytest

from tests.faults import require_the_same_after_stops

CIL = ["initial_increment=50", "increment=50", "batch_size=50", "save_interval=0"]
MTIL = ["--iterations", "2", "--save_interval", "0", "--batch-size", "4", "--eval-datasets", "MNIST"]
SHORTER = {
    "moe_adapters": [
        *MTIL,
        "--train-dataset",
        "DTD,MNIST",
        "--chooser-iterations",
        "1,1",
        "--experts_num",
        "2",
        "--ffn_num",
        "2",
    ],
    "moe_adapters_cil": CIL,
}


@pytest.mark.parametrize("name", SHORTER)
def test_stopped_everywhere(name: str, tmp_path: Path) -> None:
    require_the_same_after_stops(name, SHORTER[name], tmp_path)
