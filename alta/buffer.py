"""The replay buffer: a reservoir of image features and logits (upstream utils/fea_buffer.py).

One sample each: the frozen tower's feature of the augmented image, the logits before the step that saw it, the label.
Every sample of every epoch counts as a new one. The draws are those of the original's NumPy stream, in its order.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.training.device import to_device


class Replay(NamedTuple):
    """Samples of the buffer: labels (n,), logits (n, C), image features (n, D)."""

    labels: Tensor
    logits: Tensor
    image_features: Tensor


class Buffer:
    """Reservoir of `size` samples; `seed` is what the original hands to np.random.seed."""

    def __init__(self, size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.size, self.device, self.num_seen = size, torch.device(device), 0
        self.random = np.random.RandomState(seed)
        self.fields: dict[str, Tensor] = {}  # labels (N,), logits (N, C), image_features (N, D), from the first add on

    @property
    def filled(self) -> int:
        """Number of stored samples; not __len__, by which an empty buffer would count as none."""
        return min(self.num_seen, self.size)

    @property
    def floats(self) -> int:
        """Number of stored logits and feature values."""
        return sum(values[: self.filled].numel() for name, values in self.fields.items() if name != "labels")

    def add_data(self, labels: Tensor, logits: Tensor, image_features: Tensor) -> None:
        """Offer a batch on the buffer's device: (B,), (B, C), (B, D); what is stored keeps the first batch's dtypes."""
        batch = {"labels": labels, "logits": logits.detach(), "image_features": image_features.detach()}
        if not self.fields:
            self.fields = {
                name: torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=self.device)
                for name, values in batch.items()
            }
        slots = self.slots(len(labels))
        kept, last = np.unique(slots[::-1], return_index=True)  # of several samples for one slot the last one stays
        pairs = np.stack([kept, len(slots) - 1 - last])[:, kept >= 0]
        index, rows = to_device(torch.from_numpy(pairs), self.device)
        for name, values in batch.items():
            self.fields[name][index] = values[rows].to(self.fields[name].dtype)

    def slots(self, count: int) -> np.ndarray:
        """Slots (count,) of the next `count` samples, -1 for those that are dropped; counts them as seen.

        While there is room, the next free slot; then r of 0 .. seen, inclusive, and dropped if r >= size. NumPy draws
        the same integers for an array of bounds as for one bound after the other.
        """
        seen = np.arange(self.num_seen, self.num_seen + count)
        self.num_seen += count
        slots, drawn = seen.copy(), seen >= self.size
        if drawn.any():
            slots[drawn] = self.random.randint(0, seen[drawn] + 1)
        slots[slots >= self.size] = -1
        return slots

    def choose(self, count: int) -> np.ndarray:
        """Distinct filled slots (n,), n the smaller of `count` and how many there are."""
        return self.random.choice(self.filled, size=min(count, self.filled), replace=False)

    def get_data(self, count: int) -> Replay:
        """The samples of `choose(count)`, in its order."""
        index = to_device(torch.from_numpy(self.choose(count)), self.device)
        return Replay(*(self.fields[name][index] for name in Replay._fields))

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = self.random.get_state(legacy=True)
        generator = [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest]
        return {"fields": dict(self.fields), "num_seen": self.num_seen, "generator": generator}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        name, keys, *rest = saved["generator"]
        self.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        self.num_seen = saved["num_seen"]
        self.fields = {key: values.to(self.device).clone() for key, values in saved["fields"].items()}
