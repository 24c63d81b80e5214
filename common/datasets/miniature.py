"""The miniature's rendered images as data sets, for the data location "mini"."""

import hashlib
from collections.abc import Iterable

import numpy as np

from common.datasets.coop import MTIL
from common.datasets.images import ImageArrays, ImageSet, Transform
from common.datasets.layout import CAPTIONS, canonical
from common.errors import UserError
from common.mini.domains import (
    CAPTIONS_A_CLASS,
    DOMAINS,
    INCREMENTAL,
    REFERENCE,
    caption_order,
    classnames,
    images,
    reference_captions,
    templates,
)

IMAGENET = "ImageNet"  # the reference pool with prompts
STAND_INS = (*DOMAINS, REFERENCE, IMAGENET, CAPTIONS)


def require(names: Iterable[str], splits: str = MTIL) -> None:
    """Raise UserError unless the miniature has a stand-in for every data set named, and for its own splits alone."""
    if splits != MTIL:
        raise UserError(f"--splits {splits}: the miniature's images are rendered, no list splits them. Leave it out.")
    absent = [canonical(name) for name in names if name not in (*STAND_INS, INCREMENTAL)]
    if absent:
        raise UserError(f"the miniature has nothing for {', '.join(absent)}; it stands for {', '.join(STAND_INS)}.")


def load_domain(
    name: str, train_transform: Transform | None = None, eval_transform: Transform | None = None
) -> ImageSet:
    """One of the eleven domains, the reference pool ("TinyImagenet", and with prompts "ImageNet"), or "Characters".

    Characters is the class-incremental data set: 40 written characters on a blackboard. Items are (image, label): the
    transform's output or an RGB PIL image of 32 x 32, and an int. Raises KeyError for other names, see `require`.
    """
    (train, train_labels), (test, test_labels) = (images(_drawn(name), split) for split in ("train", "test"))
    pixels_and_labels = (train, train_labels.astype("<i8"), test, test_labels.astype("<i8"))
    parts = ImageArrays(train, train_labels, train_transform), ImageArrays(test, test_labels, eval_transform)
    prompts = ["a photo of a {}.", *templates("web")] if name == IMAGENET else templates(name)
    fingerprint = _fingerprint(pixels_and_labels, len(train), len(test), "mini: rendered, md5 over pixels and labels")
    return ImageSet(name, *parts, classnames(_drawn(name)), prompts, fingerprint)


def _drawn(name: str) -> str:
    return REFERENCE if name == IMAGENET else name


def load_captioned(transform: Transform | None = None) -> ImageSet:
    """An image of the reference pool for each of its captions: train yields (image, row), classnames are the captions.

    The template is the caption itself.
    """
    pictures, labels = images(REFERENCE, "train")
    by_class = np.argsort(labels, kind="stable").reshape(len(classnames(REFERENCE)), -1)
    shown = pictures[by_class[:, :CAPTIONS_A_CLASS].reshape(-1)[caption_order()]]
    train = ImageArrays(shown, range(len(shown)), transform)
    fingerprint = _fingerprint([shown], len(shown), 0, "mini: rendered, md5 over pixels")
    return ImageSet(CAPTIONS, train, None, reference_captions(), ["{}"], fingerprint)


def _fingerprint(arrays: Iterable[np.ndarray], train: int, test: int, note: str) -> dict[str, object]:
    digest = hashlib.md5(b"".join(array.tobytes() for array in arrays))
    return {"train": train, "test": test, "md5": digest.hexdigest(), "notes": [note]}
