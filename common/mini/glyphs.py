"""Digits, letters and signs as strokes, so that no font is needed."""

from pathlib import Path

import numpy as np
import yaml

from common.mini.canvas import segment, union

STROKES: dict[str, str] = yaml.safe_load(Path(__file__).with_name("glyphs.yaml").read_text())


def strokes(name: str) -> list[tuple[float, float, float, float]]:
    """Line pieces (ax, ay, bx, by) of a glyph, in -1..1."""
    pieces = []
    for line in STROKES[name].split():
        points = [((int(a) - 2) * 0.3, (int(b) - 3) * 0.25) for a, b in zip(line[::2], line[1::2])]
        pieces += [(*p, *q) for p, q in zip(points, points[1:])]
    return pieces


def glyph(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the strokes of a glyph, from which the caller subtracts half the pen's width."""
    return union(*(segment(x, y, *piece) for piece in strokes(name)))
