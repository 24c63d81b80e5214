"""The web's further concepts: the same bytes from the same seeds, names of their own, and none of the tasks' classes."""

import hashlib

import numpy as np
import pytest

from common.clip.tokenizer import encode
from common.mini.canvas import GRID_X, GRID_Y
from common.mini.domains import DOMAINS, INCREMENTAL, WEB, classnames, draw, templates
from common.mini.glyphs import STROKES, glyph
from common.mini.wider import COUNTS, WIDER, pair_of, rune

PINNED = {
    "Runes": "dcf17451b8b0237aade9ea35c17401fe",
    "Blobs": "fd3417ed209f073318d2ec26a6c77371",
    "Patterns": "4c03547892e6eb9e1992dd5429a1535e",
    "Pairs": "694a3f7f2330335742a250ff0a7b8409",
}


@pytest.mark.parametrize("kind", WIDER)
def test_bytes_are_pinned(kind: str) -> None:
    pictures = draw(kind, np.arange(COUNTS[kind]), "web", np.random.default_rng(0))
    assert pictures.shape == (COUNTS[kind], 32, 32, 3)
    assert hashlib.md5(pictures.tobytes()).hexdigest() == PINNED[kind]


def test_there_are_a_thousand_classes_and_the_web_shows_them_all() -> None:
    assert sum(COUNTS.values()) == 1000 and {*COUNTS} == {*WIDER} == {*WEB} - {*DOMAINS, INCREMENTAL}


def test_names_are_their_own() -> None:
    names = [label for kind in (*DOMAINS, INCREMENTAL, *WIDER) for label in classnames(kind)]
    assert len(names) == len({*names}) == 1000 + 296
    words = {word for name in (*DOMAINS, INCREMENTAL, "TinyImagenet") for text in templates(name) for word in text.split()}
    for kind in ("Runes", "Blobs", "Patterns"):
        for label in classnames(kind):
            first, second = label.split()
            assert kind.lower() == f"{first}s" and len(encode(second)) == 1 and second not in words


def test_a_pairs_name_says_what_it_shows() -> None:
    objects = classnames("Caltech101")
    first, second, above = pair_of(np.arange(COUNTS["Pairs"]))
    assert (first != second).all() and 0 < above.sum() < COUNTS["Pairs"]
    for k, label in enumerate(classnames("Pairs")):
        assert label == f"{objects[first[k]]} {'above' if above[k] else 'beside'} a {objects[second[k]]}"


def test_no_rune_is_a_character() -> None:
    written = [glyph(name, GRID_X, GRID_Y)[0] < 0.1 for name in STROKES]
    for number in range(COUNTS["Runes"]):
        drawn = rune(number)(GRID_X, GRID_Y)[0] < 0.1
        assert all((drawn & ink).sum() / (drawn | ink).sum() < 0.8 for ink in written), number


def test_classes_of_a_kind_are_told_apart() -> None:
    """Two images of one class, drawn without the web's noise, are the same, of two classes others."""
    drawn = [(rune(number)(GRID_X, GRID_Y)[0] < 0.1) for number in range(COUNTS["Runes"])]
    shared = np.array([[(one & other).sum() / (one | other).sum() for other in drawn] for one in drawn])
    assert (shared - np.eye(len(drawn)) < 0.9).all()
