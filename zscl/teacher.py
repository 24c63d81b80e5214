"""The frozen teacher's side of distillation: features of reference sentences and images, each computed once.

Sentences never change while the teacher does not, so they are encoded once (the original encodes all of them at every
step). Reference images have the deterministic evaluation transform, so their features are kept by image index: the
first pass over the images computes them batch by batch; later passes, tasks and runs read them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import clip
from common.clip.model import CLIP
from common.datasets.images import Transform
from common.kept import Kept, fingerprint, image_contents
from common.machine import Machine
from common.training.batches import Batches
from common.training.distributed import all_gather_rows
from common.training.numerics import prepare

SENTENCES_AT_ONCE = 512


@torch.no_grad()
def sentence_features(teacher: CLIP, tokens: Tensor, cut: bool = True) -> Tensor:
    """E = n(g(sentences)), (M, D), from tokens (M, context), which `cut` shortens: the host reads by how much."""
    parts = tokens.split(SENTENCES_AT_ONCE)
    return torch.cat([F.normalize(teacher.encode_text(part, cut), dim=-1) for part in parts])


class FeatureCache:
    """Normalised image features by data-set index, filled as images come along; part of a stage's resume state.

    A batch with an unknown image is computed as a whole and each image keeps its first features, so what is stored
    depends on the stream of batches alone: a resumed run reads the bits that an unbroken one computed. `key` stands for
    the images' contents: what was saved under another one is not read.
    """

    def __init__(self, device: torch.device | str = "cpu", key: str = "") -> None:
        self.device, self.key, self.features = device, key, dict[int, Tensor]()

    def find(self, indices: list[int], compute: Callable[[], Tensor]) -> Tensor:
        """Features (B, D) of these images: remembered, or from `compute` when one of them is new."""
        if all(index in self.features for index in indices):
            return torch.stack([self.features[index] for index in indices])
        features = compute()
        for index, feature in zip(indices, features):
            self.features.setdefault(index, feature)
        return features

    def state_dict(self) -> dict[str, Any]:
        return {**self.tensors(), "key": self.key}

    def tensors(self) -> dict[str, Tensor]:
        """Data-set indices (N,) and their features (N, D)."""
        features = torch.stack(list(self.features.values())) if self.features else torch.empty(0, 0)
        return {"indices": torch.tensor(list(self.features), dtype=torch.long), "features": features}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved.get("key", self.key) == self.key:  # earlier versions saved none
            self.fill(saved)

    def fill(self, saved: dict[str, Tensor]) -> None:
        """Take the features of `tensors` in place of all others."""
        self.features = dict(zip(saved["indices"].tolist(), saved["features"].to(self.device)))


@dataclass
class Reference:
    """Reference images and sentences of a task, and the teacher that sees them: frozen (`frozen_reference`).

    Quirk: the aliased teacher of the released class-incremental code is the student itself, of whose features nothing
    can be kept (`E` and `cache` are None).
    """

    teacher: CLIP
    batches: Batches  # reference images; labels are ignored
    tokens: Tensor  # of the sentences, (M, L), L the length of the longest where E is None
    E: Tensor | None  # their normalised features (M, D)
    cache: FeatureCache | None  # of R
    kept: Kept | None = None  # where the cache is kept for later tasks and runs

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's images (b, 3, R, R), and the teacher's normalised features: R (B, D) of all, E (M, D)."""
        images, indices = self.batches[step][0], self.batches.indices(step)
        encode = partial(self._encode, images, len(indices))
        R = encode() if self.cache is None else self.cache.find(indices, encode)
        return images, R, sentence_features(self.teacher, self.tokens, cut=False) if self.E is None else self.E

    @torch.no_grad()
    def _encode(self, images: Tensor, count: int) -> Tensor:
        # moved when first needed: with all features in the cache the teacher takes no memory on the device
        features = self.teacher.to(images.device).encode_image(images)
        return all_gather_rows(F.normalize(features, dim=-1), count)

    def keep(self) -> None:
        """Leave the teacher's features of the images to later tasks and runs, where they share them."""
        if self.cache and self.kept:
            self.kept.write(self.cache.tensors())


def frozen_reference(
    teacher: CLIP,
    batches: Batches,
    tokens: Tensor,
    device: torch.device,
    kept_sentences: Kept | None = None,
    kept_images: Kept | None = None,
    images_stay: bool = True,
) -> Reference:
    """A reference to a teacher that does not change, so that it encodes the sentences once: here, or in an earlier run.

    Its features are read from `kept_sentences` and `kept_images` where those have them, and kept there. `images_stay`:
    their transform draws nothing, so that each image is encoded once, too.
    """
    if kept := kept_sentences and kept_sentences.read():
        E = kept["features"].to(device)
    else:
        E = sentence_features(teacher.to(device), tokens.to(device))
        teacher.to("cpu")  # until an image comes whose features are not in the cache
        if kept_sentences:
            kept_sentences.write({"features": E.cpu()})
    cache = FeatureCache(device, image_contents(batches.samples.dataset)) if images_stay else None
    if cache and kept_images:
        kept_images = replace(kept_images, key=fingerprint(kept_images.key, cache.key))
        if kept := kept_images.read():
            cache.fill(kept)
    return Reference(teacher, batches, tokens, E, cache, kept_images)


@dataclass
class Models:
    """What a run carries from task to task."""

    student: CLIP
    pretrained: CLIP  # on the CPU until it is needed
    train_transform: Transform
    eval_transform: Transform
    reference: Reference | None = None  # of an earlier task, where later ones distil on the same


def load_models(name: str, activation: str, machine: Machine) -> Models:
    """CLIP in float32 as the student on the machine's device, and as it was pre-trained."""
    pretrained, train_transform, eval_transform = clip.load(name, activation=activation)
    student = copy.deepcopy(pretrained).to(machine.device)
    prepare(machine, student, pretrained)
    return Models(student, pretrained.requires_grad_(False), train_transform, eval_transform)
