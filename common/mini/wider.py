"""Further concepts of the web, which no task shows: runes, blobs, patterns and pairs of objects, by the hundred.

A network pre-trained on few kinds of things has features for these alone, and methods that build on good features
cannot show what they do. Every class is drawn from its number; none is a character of the class-incremental set.
"""

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.mini.canvas import GRID_X, GRID_Y, Scene, choose, disc, polygon, rotate, segment, uniform, union, wave
from common.mini.concepts import OBJECTS

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]
COUNTS = {"Runes": 400, "Blobs": 200, "Patterns": 160, "Pairs": 240}
FOLDER = Path(__file__).parent
JOINED: list[Figure] = [  # two waves as one field
    lambda one, other: (one + other) / 2,
    lambda one, other: one * other * 2,
    np.maximum,
    np.minimum,
    lambda one, other: np.abs(one) - np.abs(other),
]


def _figures(kind: str, of_number: Callable[[int], Figure]) -> list[Figure]:
    return [of_number(number) for number in range(COUNTS[kind])]


def _of_class(kind: str, number: int) -> np.random.Generator:
    return np.random.default_rng([sum(map(ord, kind)), number])


def rune(number: int) -> Figure:
    """Two or three polylines of two to four points on the grid of 5 x 7 that characters are written on."""
    rng, pieces = _of_class("Runes", number), []
    for _ in range(rng.integers(2, 4)):
        columns, rows = rng.integers(5, size=rng.integers(2, 5)), rng.integers(7, size=4)
        points = [((column - 2) * 0.3, (row - 3) * 0.25) for column, row in zip(columns.tolist(), rows.tolist())]
        pieces += [(*one, *other) for one, other in pairwise(points)]
    return lambda x, y: union(*(segment(x, y, *piece) for piece in pieces))


def runes(labels: np.ndarray, scene: Scene) -> None:
    """Signs as if written with a pen, as characters are."""
    width = uniform(scene.rng, 0.07, 0.15, len(labels))
    scene.figure(choose(labels, _figures("Runes", rune), scene.x, scene.y) - width, scene.colour(scene.ink))


def blob(number: int) -> Figure:
    """A polygon of five to nine corners around the centre, some with a hole."""
    rng = _of_class("Blobs", number)
    corners, turn = int(rng.integers(5, 10)), rng.random() * 360
    angles = np.deg2rad(turn + np.arange(corners) * 360 / corners)
    radii = 0.3 + 0.65 * rng.random(corners)
    points = [(round(float(r * np.cos(a)), 6), round(float(r * np.sin(a)), 6)) for r, a in zip(radii, angles)]
    hole = 0.1 + 0.12 * rng.random()
    if rng.random() < 0.4:
        return lambda x, y: np.maximum(polygon(x, y, points), -disc(x, y, hole))
    return lambda x, y: polygon(x, y, points)


def blobs(labels: np.ndarray, scene: Scene) -> None:
    """Filled outlines of any form."""
    scene.figure(choose(labels, _figures("Blobs", blob), scene.x, scene.y), scene.colour(scene.ink))


def pattern(number: int) -> Figure:
    """Two waves over the picture, joined, or one bent by the other."""
    rng = _of_class("Patterns", number)
    (a, b), (c, d) = (rng.random((2, 2)) * 2 - 1).round(3).tolist()
    join = JOINED[rng.integers(len(JOINED))]
    if rng.random() < 0.3:
        return lambda x, y: wave(a * x + b * y + 0.4 * wave(c * x + d * y))
    return lambda x, y: join(wave(a * x + b * y), wave(c * x + d * y))


def patterns(labels: np.ndarray, scene: Scene) -> None:
    """Textures over the whole picture, in two tones of the style."""
    n, rng = len(labels), scene.rng
    x, y = rotate(GRID_X + uniform(rng, -1, 1, n), GRID_Y + uniform(rng, -1, 1, n), uniform(rng, -9, 9, n))
    scale = uniform(rng, 2.2, 3.4, n)
    field = choose(labels, _figures("Patterns", pattern), x * scale, y * scale)
    scene.blend(np.clip(0.5 - field * 2 / (scene.edge * 8), 0, 1), scene.colour(scene.ink))


def pairs(labels: np.ndarray, scene: Scene) -> None:
    """Two objects, small, one beside or above the other, in two colours."""
    first, second, above = pair_of(labels)
    shift = np.where(above, 0.0, 0.5), np.where(above, 0.5, 0.0)
    for kind, sign in ((first, -1), (second, 1)):
        dx, dy = ((sign * part).astype(np.float32)[:, None, None] for part in shift)
        x, y = (scene.x - dx) * 2, (scene.y - dy) * 2
        scene.figure(choose(kind, OBJECTS, x, y) / 2, scene.colour(scene.ink, 0.2))


def pair_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the classes of Pairs: first and second object, which differ, and whether the first is above the second."""
    chosen = _of_class("Pairs", 0).permutation(20 * 19 * 2)[: COUNTS["Pairs"]][labels]
    first, second = chosen // 38, chosen % 38 // 2
    return first, second + (second >= first), chosen % 2 == 1


def wider_names(kind: str) -> list[str]:
    """Class names of a kind: "heart above a star" of pairs, "rune" and a word that no other name has of runes."""
    if kind == "Pairs":
        objects = (FOLDER / "names" / "caltech101.txt").read_text(encoding="utf-8").splitlines()
        places = zip(*pair_of(np.arange(COUNTS["Pairs"])))
        return [f"{objects[one]} {'above' if above else 'beside'} a {objects[other]}" for one, other, above in places]
    first = sum(COUNTS[earlier] for earlier in [*COUNTS][: [*COUNTS].index(kind)])
    return [f"{kind[:-1].lower()} {word}" for word in unused_words()[first : first + COUNTS[kind]]]


@cache
def unused_words() -> list[str]:
    """Words in -ing that are one token of CLIP's and stand in no name or wording of the tasks."""
    from common.clip.tokenizer import single_token_words

    texts = (
        path.read_text(encoding="utf-8") for part in ("names", "templates") for path in FOLDER.glob(f"{part}/*.txt")
    )
    used = {*re.findall("[a-z]+", " ".join(texts).lower())}
    return [word for word in single_token_words() if re.fullmatch("[a-z]{3,7}ing", word) and word not in used]


WIDER = {"Runes": runes, "Blobs": blobs, "Patterns": patterns, "Pairs": pairs}
