"""Reading the fixtures: numbers that the papers' official code produced."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """One .npz fixture: `g["key"]` is a tensor, `g.meta` its JSON facts, `g.under("sd/")` a dict below a prefix."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def lines(self, key: str) -> list[str]:
        return [str(line) for line in self.arrays[key]]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.arrays.files if key.startswith(prefix)}
