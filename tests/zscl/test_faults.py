"""Both programs stopped everywhere: see tests/faults.py."""

from pathlib import Path

import pytest

from tests.faults import require_the_same_after_stops

CIL = ["initial_increment=50", "increment=50", "batch_size=50", "save_interval=0"]
MTIL = "--dataset_order DTD,MNIST --eval-datasets MNIST --iterations 2 --batch-size 4 --train-mode image"
SHORTER = {"zscl_icarl": [*MTIL.split(), "--save_interval", "0"], "zscl_cil_icarl": CIL}


@pytest.mark.parametrize("name", SHORTER)
def test_stopped_everywhere(name: str, tmp_path: Path) -> None:
    require_the_same_after_stops(name, SHORTER[name], tmp_path)
