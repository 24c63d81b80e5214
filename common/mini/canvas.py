"""Drawing on many small images at once: distance fields, soft masks, noise.

All pictures of the miniature are drawn with these functions from a seeded numpy generator. Pixels depend only on
exactly rounded operations (+ - * / sqrt, comparisons) and on sines of random angles rounded to six decimals, so the
bytes are equal on all processors: vectorised exp, sin or arctan2 differ in their last bits. Everything is float32:
Python's numbers do not widen a numpy array.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SIZE = 32  # pixels a side
_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) / (SIZE / 2) - 1
GRID_X = np.broadcast_to(_AXIS[None, None, :], (1, SIZE, SIZE))  # -1 left .. 1 right
GRID_Y = np.broadcast_to(_AXIS[None, :, None], (1, SIZE, SIZE))  # -1 top .. 1 bottom


def per_image(values: ArrayLike) -> np.ndarray:
    """(N,) numbers as float32 (N, 1, 1), to be broadcast to (N, SIZE, SIZE)."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)


def uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    """(N, 1, 1) float32 numbers between low and high."""
    return per_image(low + (high - low) * rng.random(n))


def rotate(x: np.ndarray, y: np.ndarray, degrees: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Turn coordinate fields; a figure drawn on them turns clockwise by `degrees` (N,)."""
    angle = np.asarray(degrees, dtype=np.float64) * (np.pi / 180)
    cos, sin = per_image(np.round(np.cos(angle), 6)), per_image(np.round(np.sin(angle), 6))
    return x * cos + y * sin, y * cos - x * sin


def either(condition: np.ndarray, yes: float, no: float) -> np.ndarray:
    """float32 `yes` where the condition holds, else `no`."""
    return np.where(condition, np.float32(yes), np.float32(no))


def wave(phase: np.ndarray) -> np.ndarray:
    """A smooth periodic function of period 1, between -1 and 1 (two parabolas in place of a sine)."""
    turn = phase - np.floor(phase)
    half = np.where(turn < 0.5, turn, turn - 0.5) * 4 - 1
    return either(turn < 0.5, 1, -1) * (1 - half * half)


def noise(rng: np.random.Generator, n: int, cells: int) -> np.ndarray:
    """Smooth random fields (N, SIZE, SIZE) in 0..1: a grid of `cells` random values a side, interpolated."""
    values = rng.random((n, cells + 1, cells + 1), dtype=np.float32)
    position = (np.arange(SIZE, dtype=np.float32) + 0.5) * (cells / SIZE)
    low = position.astype(np.int64)
    part = position - low.astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = values[:, low] * (1 - part)[None, :, None] + values[:, low + 1] * part[None, :, None]
    return rows[:, :, low] * (1 - part)[None, None, :] + rows[:, :, low + 1] * part[None, None, :]


def length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean length, without hypot (whose last bits depend on the platform)."""
    return np.sqrt(x * x + y * y)


def disc(x: np.ndarray, y: np.ndarray, radius: float, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """Signed distance to a disc, negative inside; centre and radius are numbers or (N, 1, 1)."""
    return length(x - cx, y - cy) - radius


def ellipse(x: np.ndarray, y: np.ndarray, rx: float, ry: float, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """Approximate signed distance to an ellipse, exact on the outline, as masks require."""
    inner = length((x - cx) / rx, (y - cy) / ry)
    return (inner - 1) * min(rx, ry)


def ring(x: np.ndarray, y: np.ndarray, radius: float, width: float, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """Signed distance to a ring of the given mean radius and half width."""
    return np.abs(disc(x, y, radius, cx, cy)) - width


def box(x: np.ndarray, y: np.ndarray, rx: float, ry: float, cx: float = 0.0, cy: float = 0.0) -> np.ndarray:
    """Signed distance (by the larger coordinate) to an upright rectangle of half sides rx, ry."""
    return np.maximum(np.abs(x - cx) - rx, np.abs(y - cy) - ry)


def segment(x: np.ndarray, y: np.ndarray, ax: float, ay: float, bx: float, by: float) -> np.ndarray:
    """Distance to the line from (ax, ay) to (bx, by)."""
    dx, dy = bx - ax, by - ay
    along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = np.clip(along, 0, 1)
    return length(x - ax - along * dx, y - ay - along * dy)


def polygon(x: np.ndarray, y: np.ndarray, corners: list) -> np.ndarray:
    """Signed distance to a polygon of (x, y) corners, negative inside (even-odd rule)."""
    distances, inside = [], np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        distances.append(segment(x, y, ax, ay, bx, by))
        if ay != by:
            crosses = (y >= ay) != (y >= by)
            inside ^= crosses & (x < (y - ay) * ((bx - ax) / (by - ay)) + ax)
    distance = union(*distances)
    return np.where(inside, -distance, distance)


def union(*distances: np.ndarray) -> np.ndarray:
    """Signed distance to several figures together."""
    joined = distances[0]
    for distance in distances[1:]:
        joined = np.minimum(joined, distance)
    return joined


def choose(kind: np.ndarray, figures: list, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fields (N, SIZE, SIZE) where image n is figures[kind[n]](x[n], y[n])."""
    out = np.empty(x.shape, dtype=np.float32)
    for k, figure in enumerate(figures):
        here = kind == k
        if here.any():
            out[here] = figure(x[here], y[here])
    return out


@dataclass
class Scene:
    """N images being drawn, and their style; fields are (N, SIZE, SIZE), colours (N, 3) in 0..1."""

    pixels: np.ndarray  # (N, SIZE, SIZE, 3)
    x: np.ndarray  # object coordinates, jittered by the style
    y: np.ndarray
    edge: np.ndarray  # (N, 1, 1) softness of outlines
    rough: np.ndarray  # raggedness, added to every distance
    outline: np.ndarray  # (N, 1, 1) width of the line around a coloured figure
    ink: np.ndarray  # colour of lines and of figures without a colour
    tint: np.ndarray  # colour of the light, mixed into every colour
    mix: np.ndarray  # (N, 1) share of the tint
    rng: np.random.Generator

    def mask(self, distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - (distance + self.rough) / self.edge, 0, 1)

    def paint(self, distance: np.ndarray, colour: np.ndarray) -> None:
        """Fill the inside of `distance` with `colour` (N, 3)."""
        self.blend(self.mask(distance), colour)

    def blend(self, mask: np.ndarray, colour: np.ndarray) -> None:
        cover = mask[..., None]
        self.pixels += cover * (colour[:, None, None, :] - self.pixels)

    def figure(self, distance: np.ndarray, colour: np.ndarray) -> None:
        """A coloured figure with the style's outline in ink."""
        self.paint(distance - self.outline, self.ink)
        self.paint(distance, colour)

    def colour(self, rgb: np.ndarray | tuple[float, float, float], spread: float = 0.06) -> np.ndarray:
        """The colours (N, 3) in this style: jittered, then tinted."""
        n = len(self.ink)
        jitter = (self.rng.random((n, 3), dtype=np.float32) - 0.5) * (2 * spread)
        seen = np.broadcast_to(np.asarray(rgb, dtype=np.float32), (n, 3)) + jitter
        return np.clip(seen + self.mix * (self.tint - seen), 0, 1)
