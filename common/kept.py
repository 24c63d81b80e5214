"""Features kept in a file for later tasks and runs, and read there only if they still are what was kept."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.runs import load_tensors, save_tensors
from common.training.distributed import all_gather_rows, world_size


def fingerprint(*parts: Any) -> str:
    """md5 over tensors (their bytes), state dicts and plain values: the name of what was computed from them."""
    digest = hashlib.md5()
    for part in parts:
        state_dict = isinstance(part, dict) and part and all(isinstance(value, Tensor) for value in part.values())
        for key, value in sorted(part.items()) if state_dict else [("", part)]:
            digest.update(key.encode() + (_content(value) if isinstance(value, Tensor) else repr(value).encode()))
    return digest.hexdigest()


def _content(tensor: Tensor) -> bytes:
    # through uint8, as numpy knows no bfloat16
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + plain


def image_contents(dataset: Any) -> str:
    """md5 of what a data set's images are: size and time of change of every file, or the pixels of arrays.

    dataset: ImageFiles, ImageArrays, a subset or another view of them, and several of these. No file is opened.
    """
    if hasattr(dataset, "datasets"):
        return fingerprint([image_contents(part) for part in dataset.datasets])
    if hasattr(dataset, "dataset"):
        return fingerprint(getattr(dataset, "indices", None), image_contents(dataset.dataset))
    content = dataset.arrays if hasattr(dataset, "arrays") else dataset.states
    return fingerprint(content.shape, hashlib.md5(np.ascontiguousarray(content).data).digest())


@dataclass(frozen=True)
class Kept:
    """A file of features. key: the fingerprint of all that they were computed from."""

    path: Path
    key: str

    def read(self) -> dict[str, Tensor] | None:
        """The tensors as they were written under this key; None, with a note if there is a file, for anything else.

        Of several processes all must call it; they return the same.
        """
        content = self._read() or {"checksum": "0"}
        number = int(content.pop("checksum")[:15], 16)
        numbers = all_gather_rows(torch.tensor([number]), world_size())  # a process may have a disk of its own
        content.pop("key", None)
        return content if content and bool((numbers == number).all()) else None

    def _read(self) -> dict[str, Any] | None:
        try:
            if not self.path.exists():
                return None
            content = load_tensors(self.path)
            tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
            if (content.get("key"), content.get("checksum")) == (self.key, fingerprint(tensors)):
                return content
            reason = "of other images or another model, or were changed since"
        except Exception as error:  # out of reach, cut by a full disk, or no file of tensors by name
            reason = "out of reach" if isinstance(error, OSError) else "damaged"
        print(f"note: the features kept in {self.path} are {reason}; they are computed anew.")
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write for later; a folder that cannot be written costs time, not the run."""
        try:
            save_tensors(self.path, {**tensors, "key": self.key, "checksum": fingerprint(tensors)})
        except (OSError, UserError) as error:
            print(f"note: features were not kept for the next run ({error})")
