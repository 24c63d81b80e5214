"""What a task took, as record lines."""

import torch

from common.training.device import cost_records


def test_cost_records() -> None:
    block = torch.ones(2**24)  # 64 MiB, touched
    seconds, memory = cost_records("DTD", 4, 12.5, block.device)
    about = {"dataset": "DTD", "after_task": 4, "seconds": 12.5}
    assert seconds == about | {"metric": "train_seconds", "value": 12.5}
    assert memory == about | {"metric": "peak_memory_mib", "value": memory["value"]}
    assert 64 < memory["value"] < 2**20
