"""Both programs stopped everywhere: see tests/faults.py."""

from pathlib import Path

import pytest

from tests.faults import require_the_same_after_stops

SPLIT = ["first_split_size=50", "other_split_size=50", "batch_size=50", "save_interval=0"]
SHORTER = {"it_prompt_cncm": SPLIT, "vq_prompt": [*SPLIT, "schedule=[1, 0, 1]"]}


@pytest.mark.parametrize("name", SHORTER)
def test_stopped_everywhere(name: str, tmp_path: Path) -> None:
    require_the_same_after_stops(name, SHORTER[name], tmp_path)
