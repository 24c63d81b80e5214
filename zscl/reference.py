"""What ZSCL distils on: reference images, and the sentences that they are compared with.

mtil/src/models/finetune.py:L129-L175, mtil/src/datasets/imagenet.py, imagenet_small.py, imagenet_sub.py, cc.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import datasets
from common.clip.tokenizer import END, START, tokenize
from common.datasets import ImageSet, canonical
from common.datasets.coop import MTIL
from common.datasets.few_shot import first_per_label
from common.datasets.images import ImageArrays, ImageFiles, Transform
from common.datasets.layout import CAPTIONS, PUBLISHED
from common.errors import UserError

CONCEPTUAL_CAPTIONS, RANDOM = "conceptual_captions", "random"
PARTS_OF_IMAGENET = ("ImageNetSM", "ImageNetSUB")
CLASS_SETS = (*(name for name in PUBLISHED if name != CAPTIONS), *PARTS_OF_IMAGENET)
IMAGE_SOURCES = (*CLASS_SETS, CONCEPTUAL_CAPTIONS)
SENTENCE_SOURCES = (*IMAGE_SOURCES, RANDOM)

SEED = 42  # of the random part of ImageNet and of the random sentences
IMAGES_A_CLASS = 100  # of ImageNetSM
CONTEXT, VOCABULARY = 77, 49408


def sentence_sources(
    ref_dataset: str | None, ref_sentences: str | None = None, text_datasets: Sequence[str] = ()
) -> list[str]:
    """What the sentences are made of, the first that is given: --text-datasets, --ref-sentences, --ref-dataset.

    Raises UserError for a name that is no source.
    """
    if text_datasets:
        return [canonical(name, CLASS_SETS) for name in text_datasets]
    if ref_sentences is not None:
        return [canonical(ref_sentences, SENTENCE_SOURCES)]
    if ref_dataset is None:
        raise UserError("distillation needs --ref-dataset: the images, and unless told otherwise the sentences.")
    return [canonical(ref_dataset, IMAGE_SOURCES)]


def required_sets(ref_dataset: str | None, sources: Sequence[str]) -> list[str]:
    """The data sets whose files reference images and sentences are read from, for `datasets.require`.

    ImageNet's prompts are known without its files. Raises UserError for a name that is no source.
    """
    images = [] if ref_dataset is None else [canonical(ref_dataset, IMAGE_SOURCES)]
    texts = [name for name in sources if name not in ("ImageNet", *PARTS_OF_IMAGENET, RANDOM)]
    names = [CAPTIONS if name == CONCEPTUAL_CAPTIONS else _whole(name) for name in (*images, *texts)]
    return list(dict.fromkeys(names))


def check_num(ref_dataset: str | None, sources: Sequence[str], root: str | Path, num: float, verify: bool) -> None:
    """Raise UserError where there are fewer classes or images of ImageNet than --num says."""
    if ref_dataset in PARTS_OF_IMAGENET:
        reference_images(ref_dataset, root, None, num, verify)
    if "ImageNetSM" in sources:
        class_prompts("ImageNetSM", root, num, verify)


def _whole(name: str) -> str:
    return "ImageNet" if name in PARTS_OF_IMAGENET else name


# Images


def reference_images(
    name: str,
    root: str | Path,
    transform: Transform | None = None,
    num: float = 64,
    verify: bool = True,
    splits: str = MTIL,
) -> ImageSet:
    """The images of --ref-dataset as the `train` of an ImageSet without test: items are (transform(image), label).

    ImageNet: the whole train folder. ImageNetSM: its first `num` classes in folder order, of each the first 100
    images in file order. ImageNetSUB: `num` of its images, or that share of them when num <= 1, drawn with seed 42.
    conceptual_captions: the images of the gather script's CSV, each labelled with its row. Any other data set: its
    training split. The fingerprint counts the chosen images; its md5 is that of the list they were chosen from.
    Raises UserError for an unknown name, for missing files and for a `num` that the data set can not give.
    """
    name = canonical(name, IMAGE_SOURCES)
    if name == CONCEPTUAL_CAPTIONS:
        return datasets.captioned_images(root, transform)
    data = datasets.load(_whole(name), root, transform, None, verify, splits=splits)
    notes: Any = data.fingerprint["notes"]
    indices, classnames = None, data.classnames
    if name == "ImageNetSM":
        classnames = classnames[: class_count(num, len(classnames))]
        labels = data.train.labels
        indices = [i for i in first_per_label(labels, IMAGES_A_CLASS) if labels[i] < len(classnames)]
        notes = [*notes, f"the first {len(classnames)} classes, at most {IMAGES_A_CLASS} images each"]
    elif name == "ImageNetSUB":
        indices = random_subset(len(data.train), num)
        notes = [*notes, f"{len(indices)} random images, seed {SEED}"]
    train = data.train if indices is None else _chosen(data.train, indices)
    counts = {"train": len(train), "test": 0, "notes": notes}
    return replace(
        data, name=name, train=train, test=None, classnames=classnames, fingerprint=data.fingerprint | counts
    )


def random_subset(images: int, num: float) -> list[int]:
    """Indices of `num` images, or of that share when num <= 1: the first ones of a permutation drawn with seed 42.

    The split of mtil/src/datasets/imagenet_sub.py:L13-L60. Upstream turns every num into a share and multiplies it
    out again, where rounding can lose an image (its assertion then fails); here a number is taken as it is, and a
    share is multiplied exactly and rounded down: 0.29 of 100 images are 29.
    """
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(images, generator=generator)[: subset_size(num, images)].tolist()


def subset_size(num: float, images: int) -> int:
    """How many of these images ImageNetSUB takes. Raises UserError for a --num that it can not take."""
    if num > 1 and num > images:
        raise UserError(f"--num {num:.10g}: ImageNetSUB has {images:,} images to draw from.")
    if num > 1 and num != int(num):
        raise UserError(f"--num {num:.10g}: ImageNetSUB takes a whole number of images, or a share of at most 1.")
    size = int(num) if num > 1 else int(Fraction(repr(float(num))) * images) if num > 0 else 0
    if size < 1:
        raise UserError(f"--num {num:.10g}: this is not one image of the {images:,} that ImageNetSUB draws from.")
    return size


def class_count(num: float, classes: int) -> int:
    """How many of these classes ImageNetSM takes. Raises UserError for a --num that it can not take."""
    if not 1 <= num <= classes or num != int(num):
        raise UserError(f"--num {num:.10g}: ImageNetSM takes a whole number of classes, from 1 to {classes:,}.")
    return int(num)


def _chosen(part: ImageFiles | ImageArrays, indices: list[int]) -> ImageFiles | ImageArrays:
    if isinstance(part, ImageArrays):
        return ImageArrays(part.arrays[indices], [part.labels[i] for i in indices], part.transform)
    return ImageFiles([(part.paths[i], part.labels[i]) for i in indices], part.transform)


# Sentences


def reference_tokens(
    root: str | Path, sources: Sequence[str], num: float = 64, verify: bool = True, splits: str = MTIL
) -> Tensor:
    """The reference sentences of a run as tokens (M, 77) int64; see `reference_sentences` and `random_sentences`.

    Quirk: ZSCL's tokeniser cuts over-long sentences without restoring the end token, so the features of all of them
    are the same (mtil/clip/clip.py:L306-L308). The published captions and prompts are short enough.
    """
    if list(sources) == [RANDOM]:
        return random_sentences()
    return tokenize(reference_sentences(root, sources, num, verify, splits), CONTEXT, truncate="zscl")


def reference_sentences(
    root: str | Path, sources: Sequence[str], num: float = 64, verify: bool = True, splits: str = MTIL
) -> list[str]:
    """The sentences of `sentence_sources`, one source after the other, repeats kept.

    conceptual_captions: all captions of the validation file. A data set: each class in its first template. `num` cuts
    ImageNetSM's classes. "random" has no words, only tokens. Raises UserError for missing files.
    """
    sentences = []
    for name in sources:
        if name == RANDOM:
            raise UserError("random sentences are token ids without words; ask for their tokens.")
        captions = name == CONCEPTUAL_CAPTIONS
        sentences += datasets.captions(root) if captions else class_prompts(name, root, num, verify, splits)
    return sentences


def class_prompts(name: str, root: str | Path, num: float = 64, verify: bool = True, splits: str = MTIL) -> list[str]:
    """One sentence a class of a data set: its first template. ImageNet's need none of its files."""
    names, templates = datasets.names_and_templates(_whole(name), root, verify, splits)
    if not names:
        raise UserError(f"{name} has no class names to make sentences of. Choose another --ref-sentences.")
    names = names[: class_count(num, len(names))] if name == "ImageNetSM" else names
    return [templates[0].replace("{}", label) for label in names]


def random_sentences(count: int = 1000, length: int = 10, generator: torch.Generator | None = None) -> Tensor:
    """LwF-VR's sentences: tokens (count, 77) int64, START, `length` ids of the whole vocabulary, END, zeros.

    The ids are uniform, START and END among them (mtil/src/models/helpers.py:L54-L62). Upstream draws from the global
    generator, so that its sentences hang on what was drawn before; here from one of their own, seeded with 42.
    """
    generator = torch.Generator().manual_seed(SEED) if generator is None else generator
    tokens = torch.zeros(count, CONTEXT, dtype=torch.int64)
    tokens[:, 0], tokens[:, length + 1] = START, END
    tokens[:, 1 : length + 1] = torch.randint(0, VOCABULARY, (count, length), generator=generator)
    return tokens
