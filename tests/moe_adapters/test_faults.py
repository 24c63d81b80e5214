"""Both programs stopped everywhere: see tests/faults.py."""

from pathlib import Path

import pytest

from tests.faults import require_the_same_after_stops

CIL = ["initial_increment=50", "increment=50", "batch_size=50", "save_interval=0"]
MTIL = "--train-dataset DTD,MNIST --eval-datasets MNIST --iterations 2 --chooser-iterations 1,1 --batch-size 4"
MTIL += " --save_interval 0 --experts_num 2 --ffn_num 2"
SHORTER = {"moe_adapters": MTIL.split(), "moe_adapters_cil": CIL}


@pytest.mark.parametrize("name", SHORTER)
def test_stopped_everywhere(name: str, tmp_path: Path) -> None:
    require_the_same_after_stops(name, SHORTER[name], tmp_path)
