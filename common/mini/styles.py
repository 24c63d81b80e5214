"""Styles of the miniature's images: one per task domain, and the random styles of the web.

A style fixes paper and ink, the light that tints all colours, a backdrop, the quality of lines, and a surface
(hatching, halftone, grain ...) laid over the finished picture. Most task domains have one style, as many real
data sets do; the web, and the domains without one, draw each image in another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.mini.canvas import GRID_X, GRID_Y, SIZE, Scene, either, noise, rotate, uniform, wave

_COLUMN = np.arange(SIZE, dtype=np.float32)[None, None, :]
_ROW = np.arange(SIZE, dtype=np.float32)[None, :, None]


def _steps(values: np.ndarray) -> np.ndarray:
    return either(values > 0.5, 1, 0)


def _check(rng: np.random.Generator, n: int) -> np.ndarray:
    column, row = (np.floor((axis + uniform(rng, 0, 9, n)) * 0.2) for axis in (_COLUMN, _ROW))
    return (column + row) % 2


def _lanes(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y = rotate(GRID_X, GRID_Y, uniform(rng, -6, 6, n))
    return _steps(np.abs(wave(y * 1.1 + uniform(rng, 0, 1, n) + x * 0)))


def _rays(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y = rotate(GRID_X, GRID_Y, uniform(rng, 38, 52, n))
    return 0.5 + 0.5 * wave(x * 1.6 + uniform(rng, 0, 1, n) + y * 0)


def _polka(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y = GRID_X * 2 + uniform(rng, 0, 1, n), GRID_Y * 2 + uniform(rng, 0, 1, n)
    dx, dy = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    return either(dx * dx + dy * dy < 0.07, 1, 0)


BACKDROPS = {  # name: (rng, n) -> share of the second paper colour, broadcastable to (N, SIZE, SIZE)
    "flat": lambda rng, n: uniform(rng, 0, 1, n),
    "sky": lambda rng, n: (GRID_Y + 1) * 0.5 + uniform(rng, -0.15, 0.15, n),
    "side": lambda rng, n: (GRID_X + 1) * 0.5 + uniform(rng, -0.15, 0.15, n),
    "clouds": lambda rng, n: noise(rng, n, 4),
    "leaves": lambda rng, n: _steps(noise(rng, n, 8)),
    "grain": lambda rng, n: noise(rng, n, 16),
    "check": _check,
    "lanes": _lanes,
    "rays": _rays,
    "polka": _polka,
}

SURFACES = {  # name: (rng, n) -> brightness change in -1..1
    "none": lambda rng, n: np.zeros((n, 1, 1), dtype=np.float32),
    "halftone": lambda rng, n: either((_COLUMN % 4 < 2) == (_ROW % 4 < 2), 1, -1),
    "hatching": lambda rng, n: either((_COLUMN + _ROW) % 4 < 2, 1, -1),
    "grain": lambda rng, n: (rng.random((n, SIZE, SIZE), dtype=np.float32) - 0.5) * 2,
    "blotches": lambda rng, n: (noise(rng, n, 10) - 0.5) * 3,
    "screen": lambda rng, n: either((_COLUMN % 4 < 1) | (_ROW % 4 < 1), -1, 0.4),
}


Colour = Sequence[float]  # red, green, blue in 0..1


@dataclass(frozen=True)
class Style:
    """Style of a task domain."""

    paper: tuple[Colour, Colour]
    ink: Colour
    tint: Colour
    mix: float  # share of the tint
    backdrop: str
    surface: str
    strength: float  # of the surface
    edge: float = 0.07
    rough: float = 0.0
    outline: float = 0.05
    finish: str = "plain"  # or "blur", "pixels", "posterise"
    turn: float = 8.0  # degrees of random rotation


def _near(rng: np.random.Generator, colour: Colour, n: int) -> np.ndarray:
    """(N, 3) colours near the given one."""
    return np.array(colour, dtype=np.float32) + (rng.random((n, 3), dtype=np.float32) - 0.5) * 0.08


def _mixture(share: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    share = np.clip(np.broadcast_to(share, (n, SIZE, SIZE)), 0, 1)[..., None]
    return first[:, None, None, :] + share * (second - first)[:, None, None, :]


def _placed(
    rng: np.random.Generator, n: int, turn: np.ndarray | float, scale: tuple[float, float], shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Object coordinates: shifted, scaled and turned at random."""
    size = uniform(rng, *scale, n)
    x, y = (GRID_X - uniform(rng, -shift, shift, n)) / size, (GRID_Y - uniform(rng, -shift, shift, n)) / size
    return rotate(x, y, (rng.random(n) * 2 - 1) * turn)


def task_scene(style: Style, n: int, rng: np.random.Generator) -> Scene:
    """An empty scene in a task domain's style."""
    first, second, ink = (_near(rng, colour, n) for colour in (*style.paper, style.ink))
    x, y = _placed(rng, n, style.turn, (0.74, 0.95), 0.12)
    return Scene(
        pixels=_mixture(BACKDROPS[style.backdrop](rng, n), first, second, n),
        x=x,
        y=y,
        edge=np.full((n, 1, 1), style.edge, dtype=np.float32),
        rough=(noise(rng, n, 12) - 0.5) * (style.rough * 2),
        outline=np.full((n, 1, 1), style.outline, dtype=np.float32),
        ink=np.clip(ink, 0, 1),
        tint=np.broadcast_to(np.array(style.tint, dtype=np.float32), (n, 3)),
        mix=np.full((n, 1), style.mix, dtype=np.float32),
        rng=rng,
    )


def web_scene(n: int, rng: np.random.Generator) -> Scene:
    """An empty scene in which every image has a random style; together they surround the tasks' styles."""
    first, second = rng.random((n, 3), dtype=np.float32), rng.random((n, 3), dtype=np.float32)
    light = (rng.random((n, 1)) < 0.5).astype(np.float32)  # light paper and dark ink, or the other way round
    paper = light * 0.55 + first * 0.45
    ink = (1 - light) * 0.6 + rng.random((n, 3), dtype=np.float32) * 0.4
    names = ("flat", "sky", "side", "clouds", "grain", "check", "rays", "lanes")
    pick, share = rng.integers(len(names), size=n), np.empty((n, SIZE, SIZE), dtype=np.float32)
    for k, name in enumerate(names):
        here = pick == k
        share[here] = BACKDROPS[name](rng, int(here.sum()))
    x, y = _placed(rng, n, 15.0, (0.66, 1.0), 0.16)
    return Scene(
        pixels=_mixture(share, paper, paper + (second - paper) * uniform(rng, 0, 1, n)[:, 0] * 0.6, n),
        x=x,
        y=y,
        edge=uniform(rng, 0.05, 0.2, n),
        rough=(noise(rng, n, 12) - 0.5) * uniform(rng, 0, 0.3, n),
        outline=uniform(rng, -0.01, 0.09, n),
        ink=ink,
        tint=rng.random((n, 3), dtype=np.float32),
        mix=rng.random((n, 1), dtype=np.float32) * 0.3,
        rng=rng,
    )


def _blur(pixels: np.ndarray) -> np.ndarray:
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16


def _pixels(pixels: np.ndarray) -> np.ndarray:
    left, right = pixels[:, :, ::2], pixels[:, :, 1::2]
    mean = (left[:, ::2] + left[:, 1::2] + right[:, ::2] + right[:, 1::2]) / 4
    return mean.repeat(2, axis=1).repeat(2, axis=2)


FINISHES = {
    "plain": lambda pixels: pixels,
    "blur": _blur,
    "pixels": _pixels,
    "posterise": lambda pixels: np.round(pixels * 5) / 5,
}


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """(N, SIZE, SIZE, 3) in 0..1, clipped -> uint8."""
    return np.floor(np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def finish_task(scene: Scene, style: Style) -> np.ndarray:
    """The style's finish and surface over a drawn scene -> uint8 images."""
    pixels = FINISHES[style.finish](scene.pixels)
    surface = SURFACES[style.surface](scene.rng, len(pixels)) * style.strength
    return to_bytes(pixels + np.broadcast_to(surface, pixels.shape[:3])[..., None])


def finish_web(scene: Scene) -> np.ndarray:
    """Random grain, contrast and, on a third of the images, blur -> uint8 images."""
    n, rng = len(scene.pixels), scene.rng
    soft = (rng.random(n) < 0.33)[:, None, None, None]
    pixels = np.where(soft, _blur(scene.pixels), scene.pixels)
    pixels = (pixels - 0.5) * uniform(rng, 0.7, 1.1, n)[..., None] + 0.5
    grain = SURFACES["grain"](rng, n) * uniform(rng, 0, 0.12, n)
    return to_bytes(pixels + grain[..., None])
