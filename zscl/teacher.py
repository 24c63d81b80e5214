"""The frozen teacher's side of distillation: features of reference sentences and images, each computed once.

Sentences never change while the teacher does not, so they are encoded once (the original encodes all of them at every
step). Reference images have the deterministic evaluation transform, so their features are kept by image index: the
first pass over the images computes them batch by batch; later passes, tasks and runs read them.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import clip
from common.clip.model import CLIP
from common.datasets.images import Transform
from common.errors import UserError
from common.machine import Machine
from common.runs import load_tensors, save_tensors
from common.training.batches import Batches
from common.training.distributed import all_gather_rows
from common.training.numerics import prepare

SENTENCES_AT_ONCE = 512


@torch.no_grad()
def sentence_features(teacher: CLIP, tokens: Tensor) -> Tensor:
    """E = n(g(sentences)), (M, D), from tokens (M, context)."""
    return torch.cat([F.normalize(teacher.encode_text(part), dim=-1) for part in tokens.split(SENTENCES_AT_ONCE)])


class FeatureCache:
    """Normalised image features by data-set index, filled as images come along; part of a stage's resume state.

    A batch with an unknown image is computed as a whole and each image keeps its first features, so what is stored
    depends on the stream of batches alone: a resumed run reads the bits that an unbroken one computed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.features = device, dict[int, Tensor]()

    def find(self, indices: list[int], compute: Callable[[], Tensor]) -> Tensor:
        """Features (B, D) of these images: remembered, or from `compute` when one of them is new."""
        if all(index in self.features for index in indices):
            return torch.stack([self.features[index] for index in indices])
        features = compute()
        for index, feature in zip(indices, features):
            self.features.setdefault(index, feature)
        return features

    def state_dict(self) -> dict[str, Tensor]:
        features = torch.stack(list(self.features.values())) if self.features else torch.empty(0, 0)
        return {"indices": torch.tensor(list(self.features), dtype=torch.long), "features": features}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.features = dict(zip(saved["indices"].tolist(), saved["features"].to(self.device)))


@dataclass
class Reference:
    """Reference images and sentences of a task, and the teacher that sees them: frozen (`frozen_reference`).

    Quirk: the aliased teacher of the released class-incremental code is the student itself, of whose features nothing
    can be kept (`E` and `cache` are None).
    """

    teacher: CLIP
    batches: Batches  # reference images; labels are ignored
    tokens: Tensor  # of the sentences, (M, L)
    E: Tensor | None  # their normalised features (M, D)
    cache: FeatureCache | None  # of R
    kept_at: Path | None = None  # where the cache is kept for later tasks and runs

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's images (b, 3, R, R), and the teacher's normalised features: R (B, D) of all, E (M, D)."""
        images, indices = self.batches[step][0], self.batches.indices(step)
        encode = partial(self._encode, images, len(indices))
        R = encode() if self.cache is None else self.cache.find(indices, encode)
        return images, R, sentence_features(self.teacher, self.tokens) if self.E is None else self.E

    @torch.no_grad()
    def _encode(self, images: Tensor, count: int) -> Tensor:
        # moved when first needed: with all features in the cache the teacher takes no memory on the device
        features = self.teacher.to(images.device).encode_image(images)
        return all_gather_rows(F.normalize(features, dim=-1), count)

    def keep(self) -> None:
        """Leave the teacher's features of the images to later tasks and runs, where they share them."""
        if self.cache:
            keep(self.kept_at, self.cache.state_dict())


def frozen_reference(
    teacher: CLIP,
    batches: Batches,
    tokens: Tensor,
    device: torch.device,
    sentences_at: Path | None = None,
    images_at: Path | None = None,
    images_stay: bool = True,
) -> Reference:
    """A reference to a teacher that does not change, so that it encodes the sentences once: here, or in an earlier run.

    Its features are read from `sentences_at` and `images_at`, where those files exist, and kept there. `images_stay`:
    their transform draws nothing, so that each image is encoded once, too.
    """
    if kept := read_kept(sentences_at):
        E = kept["features"].to(device)
    else:
        E = sentence_features(teacher.to(device), tokens.to(device))
        teacher.to("cpu")  # until an image comes whose features are not in the cache
        keep(sentences_at, {"features": E.cpu()})
    cache = FeatureCache(device) if images_stay else None
    if cache and (kept := read_kept(images_at)):
        cache.load_state_dict(kept)
    return Reference(teacher, batches, tokens, E, cache, images_at)


@dataclass
class Models:
    """What a run carries from task to task."""

    student: CLIP
    pretrained: CLIP  # on the CPU until it is needed
    train_transform: Transform
    eval_transform: Transform
    reference: Reference | None = None  # of an earlier task, where later ones distil on the same


def load_models(name: str, machine: Machine) -> Models:
    """CLIP in float32 as the student on the machine's device, and as it was pre-trained."""
    pretrained, train_transform, eval_transform = clip.load(name, "cpu", precision="fp32")
    student = copy.deepcopy(pretrained).to(machine.device)
    prepare(machine, student, pretrained)
    return Models(student, pretrained.requires_grad_(False), train_transform, eval_transform)


# Kept on disk, for the next task and the next run


def fingerprint(*parts: Any) -> str:
    """md5 over tensors (their bytes), state dicts and plain values: the name of what was computed from them."""
    digest = hashlib.md5()
    for part in parts:
        state_dict = isinstance(part, dict) and part and all(isinstance(value, Tensor) for value in part.values())
        for key, value in sorted(part.items()) if state_dict else [("", part)]:
            plain = value.cpu().contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            digest.update(key.encode() + plain)
    return digest.hexdigest()


def read_kept(path: Path | None) -> dict[str, Tensor] | None:
    """What an earlier task or run kept under this path; None when there is nothing readable."""
    try:
        return load_tensors(path) if path and path.exists() else None
    except (OSError, UserError):  # out of reach, or cut by a full disk: it will be computed and written anew
        return None


def keep(path: Path | None, content: dict[str, Tensor]) -> None:
    """Write for later; a folder that cannot be written costs time, not the run."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, content)
    except (OSError, UserError) as error:
        print(f"note: the teacher's features were not kept for the next run ({error})")
