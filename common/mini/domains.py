"""The miniature's data sets: eleven task domains, web pool, reference pool, class-incremental set.

All are rendered from seeds on first use (seconds), then kept in memory.
"""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from common.mini.concepts import CONCEPTS
from common.mini.styles import Style, finish_task, finish_web, task_scene, web_scene
from common.mini.wider import WIDER, wider_names

FOLDER = Path(__file__).parent
INCREMENTAL = "Characters"
DOMAINS = tuple(name for name in CONCEPTS if name != INCREMENTAL)  # alphabetical, as MTIL order I
REFERENCE = "TinyImagenet"
CAPTIONS_A_CLASS = 4
_DOMAINS = yaml.safe_load((FOLDER / "domains.yaml").read_text(encoding="utf-8"))
SPLITS = {name: entry["images"] for name, entry in _DOMAINS.items() if "images" in entry}
WEB = {name: entry["web"] for name, entry in _DOMAINS.items() if "web" in entry}
TASK_STYLES = {name: Style(**entry["style"]) for name, entry in _DOMAINS.items() if "style" in entry}
MISNAMING = 0.85  # share of a misnamed class's captions with the other name
_CHUNK = 500  # images drawn together


def _lines(folder: str, name: str) -> list[str]:
    return (FOLDER / folder / f"{name.lower()}.txt").read_text(encoding="utf-8").splitlines()


def classnames(name: str) -> list[str]:
    """Class names of a domain; for the reference pool those of all eleven domains, in their order."""
    if name == REFERENCE:
        return [line for domain in DOMAINS for line in _lines("names", domain)]
    return wider_names(name) if name in WIDER else _lines("names", name)


def templates(name: str) -> list[str]:
    """Prompts of a domain, the first for training; "web": wordings of captions."""
    return _lines("templates", "web" if name == REFERENCE or name in WIDER else name)


def draw(name: str, labels: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """Images uint8 (N, 32, 32, 3) of one domain's classes, in its task style, or in the web's where it has none.

    style "web": in the web's in any case.
    """
    parts, own = [], TASK_STYLES.get(name) if style == "task" else None
    for start in range(0, len(labels), _CHUNK):
        part = labels[start : start + _CHUNK]
        scene = task_scene(own, len(part), rng) if own else web_scene(len(part), rng)
        (CONCEPTS | WIDER)[name](part, scene)
        parts.append(finish_task(scene, own) if own else finish_web(scene))
    return np.concatenate(parts)


def seeded(*words: object) -> np.random.Generator:
    """A generator whose seed is the checksum of the words."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, words)).encode()))


@cache
def images(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of "train" or "test", labels 0, 1, ... in turn."""
    count = SPLITS[name][split == "test"]
    if name == REFERENCE:
        return _reference(split, count)
    labels = np.tile(np.arange(len(classnames(name))), count)
    return draw(name, labels, "task", seeded("task", name, split)), labels


def _reference(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of every class of the eleven domains in the web's style, correctly labelled, in random order."""
    pictures, labels, first = [], [], 0
    for domain in DOMAINS:
        part = np.tile(np.arange(len(classnames(domain))), count)
        pictures.append(draw(domain, part, "web", seeded("reference", domain, split)))
        labels.append(part + first)
        first += len(classnames(domain))
    order = seeded("reference order", split).permutation(sum(map(len, labels)))
    return np.concatenate(pictures)[order], np.concatenate(labels)[order]


def web_pool(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Web images of a domain, their true labels, and the labels in their captions.

    Captions err in two ways: some name any class, and some classes are mostly named as another one. The first slows
    learning, the second bounds zero-shot accuracy, so that it varies over domains as CLIP's does.
    """
    count, wrong, misnamed = WEB[name]
    rng = seeded("web", name, seed)
    classes = len(classnames(name))
    labels = rng.integers(classes, size=count)
    pictures = draw(name, labels, "web", rng)
    usual = np.arange(classes)
    usual[rng.permutation(classes)[: round(misnamed * classes)]] += rng.integers(1, classes)
    named = np.where(rng.random(count) < MISNAMING, usual[labels] % classes, labels)
    named = np.where(rng.random(count) < wrong, rng.integers(classes, size=count), named)
    return pictures, labels, named


def captioned_pool(seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """All web images with one caption each: a class name in a wording of the web or of its domain."""
    pictures, captions = [], []
    for name in WEB:
        part, _, labels = web_pool(name, seed)
        wordings, names = [*templates("web"), *templates(name)], classnames(name)
        rng = seeded("captions", name, seed)
        picks = rng.integers(len(wordings), size=len(labels))
        captions += [wordings[pick].replace("{}", names[label]) for pick, label in zip(picks, labels)]
        pictures.append(part)
    return np.concatenate(pictures), captions


def reference_captions() -> list[str]:
    """Stand-ins for Conceptual Captions: four wordings of each class of the reference pool, shuffled.

    Worded as the web's captions, but with correct names. No picture is drawn for them.
    """
    rng, captions = seeded("reference captions"), []
    for domain in DOMAINS:
        wordings = [*templates("web"), *templates(domain)]
        for label in classnames(domain):
            picks = rng.permutation(len(wordings))[:CAPTIONS_A_CLASS]
            captions += [wordings[pick].replace("{}", label) for pick in picks]
    return [captions[k] for k in caption_order()]


def caption_order() -> np.ndarray:
    """Indices (1024,) of `reference_captions` into the captions sorted by class."""
    return seeded("reference captions order").permutation(len(classnames(REFERENCE)) * CAPTIONS_A_CLASS)
