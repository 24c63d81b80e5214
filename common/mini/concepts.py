"""Contents of the miniature's images: one drawing function per domain, for all rendering styles.

`CONCEPTS[domain]` is (labels, scene) -> None and paints one object of each label's class on the scene's
backdrop. Classes are products of a few attributes, so that a text tower can learn their names word by word.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from common.mini.canvas import (
    GRID_X,
    GRID_Y,
    Scene,
    box,
    choose,
    disc,
    either,
    ellipse,
    noise,
    per_image,
    polygon,
    ring,
    rotate,
    segment,
    uniform,
    union,
    wave,
)
from common.mini.glyphs import STROKES, glyph

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]
RED, ORANGE, YELLOW, GREEN = (0.84, 0.15, 0.16), (0.96, 0.55, 0.1), (0.97, 0.85, 0.2), (0.2, 0.62, 0.25)
BLUE, PURPLE, WHITE, BROWN = (0.16, 0.36, 0.82), (0.56, 0.24, 0.7), (0.96, 0.96, 0.95), (0.45, 0.28, 0.16)
BLACK, GREY, PINK, MINT = (0.1, 0.1, 0.11), (0.52, 0.53, 0.55), (0.96, 0.55, 0.68), (0.6, 0.9, 0.72)


def _dome(x: np.ndarray, y: np.ndarray, radius: float, cx: float, cy: float) -> np.ndarray:
    return np.maximum(disc(x, y, radius, cx, cy), y - 0.05)


PRIMITIVES: dict[str, Callable[..., np.ndarray]] = {
    "box": box,
    "disc": disc,
    "dome": _dome,
    "ellipse": ellipse,
    "polygon": polygon,
    "ring": ring,
}
FIGURES = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text())


def silhouettes(names: str) -> list[Figure]:
    """Functions (x, y) -> signed distance of the named figures of figures.yaml."""

    def silhouette(parts: list) -> Figure:
        return lambda x, y: union(*(PRIMITIVES[kind](x, y, *numbers) for kind, *numbers in parts))

    return [silhouette(FIGURES[name]) for name in names.split(", ")]


def palette(scene: Scene, colours: list[tuple], index: np.ndarray) -> np.ndarray:
    """(N, 3): colours[index[n]] in the scene's style."""
    return scene.colour(np.array(colours, dtype=np.float32)[index])


def aircraft(labels: np.ndarray, scene: Scene) -> None:
    """Three kinds of aircraft in eight headings: fine differences, as the real set's variants."""
    kind, heading = labels // 8, labels % 8
    x, y = rotate(scene.x, scene.y, heading * 45.0)
    scene.figure(choose(kind, silhouettes("jet, glider, rocket"), x, y), scene.colour(scene.ink))


def _glasses(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bars = union(segment(x, y, -0.75, 0.1, -0.95, -0.4), segment(x, y, 0.75, 0.1, 0.95, -0.4))
    lenses = union(ring(x, y, 0.33, 0.09, -0.45, 0.15), ring(x, y, 0.33, 0.09, 0.45, 0.15))
    return union(lenses, box(x, y, 0.14, 0.07, 0, 0.05), bars - 0.07)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(disc(x, y, 0.82, -0.05), -disc(x, y, 0.68, 0.35, -0.15))


def _anchor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    arc = np.maximum(ring(x, y, 0.62, 0.11, 0, 0.12), 0.15 - y)
    bars = union(box(x, y, 0.09, 0.62, 0, 0.1), box(x, y, 0.38, 0.09, 0, -0.25))
    return union(arc, bars, ring(x, y, 0.17, 0.07, 0, -0.68))


def _butterfly(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    wings = union(ellipse(x, y, 0.42, 0.4, 0.45, -0.38), ellipse(x, y, 0.32, 0.34, 0.38, 0.42))
    return union(wings, ellipse(x, y, 0.1, 0.6))


OBJECTS = [
    *silhouettes("heart, star, key, umbrella, boat, crown, bolt, mushroom, hourglass, fish, cup, tree, house, flag"),
    *(_glasses, _moon, _anchor, *silhouettes("wheel"), _butterfly, *silhouettes("rocket")),
]


def objects(labels: np.ndarray, scene: Scene) -> None:
    """Twenty silhouettes: easy to tell, as Caltech's objects."""
    scene.figure(choose(labels, OBJECTS, scene.x, scene.y), scene.colour(scene.ink))


SHAPES = silhouettes("circle, square, triangle, cross, ring")
SHAPE_COLOURS = [RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, WHITE, BLACK]


def coloured_shapes(labels: np.ndarray, scene: Scene) -> None:
    """Eight colours times five shapes."""
    scene.figure(choose(labels % 5, SHAPES, scene.x, scene.y), palette(scene, SHAPE_COLOURS, labels // 5))


def _bricks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(y)
    side = x * 0.6 + row * 0.5
    joint = np.minimum(side - np.floor(side), y - row)
    return 0.16 - joint


def _scales(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(y)
    side = x + row * 0.5
    dx, dy = side - np.floor(side) - 0.5, y - row
    return np.abs(np.sqrt(dx * dx + dy * dy) - 0.55) - 0.16


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    return np.sqrt(dx * dx + dy * dy) - 0.3


def _woven(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    over = (np.floor(x) + np.floor(y)) % 2
    along = np.where(over == 0, x, y)
    return np.abs(along - np.floor(along) - 0.5) - 0.22


TEXTURES = [
    lambda x, y: wave(y),
    lambda x, y: wave(x),
    lambda x, y: wave(x * 0.7 + y * 0.7),
    lambda x, y: wave(x * 0.5) * wave(y * 0.5) * 2,
    _dots,
    lambda x, y: np.minimum(x - np.floor(x), y - np.floor(y)) - 0.2,
    lambda x, y: wave(y + np.abs(x * 0.7 - np.floor(x * 0.7) - 0.5) * 2),
    lambda x, y: wave(y + 0.35 * wave(x * 0.45)),
    _bricks,
    lambda x, y: np.minimum(np.abs(wave((x + y) * 0.45)), np.abs(wave((x - y) * 0.45))) - 0.3,
    _scales,
    _woven,
]


def textures(labels: np.ndarray, scene: Scene) -> None:
    """Twelve regular and four irregular textures over the whole picture, in two tones of the style."""
    n, rng = len(labels), scene.rng
    x, y = rotate(GRID_X + uniform(rng, -1, 1, n), GRID_Y + uniform(rng, -1, 1, n), uniform(rng, -9, 9, n))
    scale = uniform(rng, 2.2, 3.4, n)
    spots, blots, centred = noise(rng, n, 16), noise(rng, n, 5), np.sqrt(x * x + y * y)
    tall, wide = noise(rng, n, 4), rng.random((n, 1, 32), dtype=np.float32)
    regular = choose(np.minimum(labels, 11), TEXTURES, x * scale, y * scale)
    extra = [0.63 - spots, 0.5 - blots, wave(centred * scale), 0.5 - wide - (tall - 0.5) * 0.6]
    for k, field in enumerate(extra):
        regular = np.where((labels == 12 + k)[:, None, None], field, regular)
    scene.blend(np.clip(0.5 - regular * 2 / (scene.edge * 8), 0, 1), scene.colour(scene.ink))


def land(labels: np.ndarray, scene: Scene) -> None:
    """Ten kinds of land seen from above, turned any way."""
    n, rng = len(labels), scene.rng
    x, y = rotate(GRID_X, GRID_Y, rng.random(n) * 360)
    x, y = x + uniform(rng, -0.3, 0.3, n), y + uniform(rng, -0.3, 0.3, n)
    rough, fine = noise(rng, n, 5) - 0.5, noise(rng, n, 16) - 0.5
    bent = y + 0.22 * wave(x * 0.6 + uniform(rng, 0, 1, n)) + rough * 0.2
    cells = (np.floor(x * 2 + 9) * 7 + np.floor(y * 2 + 9) * 3) % 4
    lot, street = x * 3 - np.floor(x * 3), y * 3 - np.floor(y * 3)
    water, sand, grass, tar = (
        scene.colour(c) for c in ((0.15, 0.35, 0.65), (0.85, 0.72, 0.45), (0.4, 0.6, 0.25), (0.4, 0.4, 0.42))
    )
    wood, snow = scene.colour((0.1, 0.32, 0.12)), scene.colour(WHITE)
    layers = {  # class: (ground, figure colour, figure, speckle)
        0: (grass, water, np.abs(bent) - 0.2),
        1: (grass, tar, np.abs(y) - 0.13),
        2: (sand, tar, np.minimum(np.abs(x), np.abs(y)) - 0.13),
        3: (grass, water, disc(x, y, 0.6) + rough * 0.7),
        4: (sand, water, bent - 0.05),
        5: (wood, grass, (fine + rough * 0.3) * 2 + 0.15),
        6: (sand, wood, _dots(x * 2, y * 2) / 2),
        7: (grass, sand, either(cells % 2 == 0, 0.5, -0.5)),
        8: (tar, snow, np.maximum(np.abs(lot - 0.5), np.abs(street - 0.5)) - 0.3),
        9: (snow, water, np.abs(rough + fine * 0.5) - 0.07),
    }
    for k, (ground, colour, field) in layers.items():
        here = (labels == k)[:, None, None]
        scene.blend(either(here, 0.9, 0), ground)
        scene.blend(scene.mask(field) * here, colour)


def flowers(labels: np.ndarray, scene: Scene) -> None:
    """Three, four, five, six or eight petals in five colours, the first petal about upright."""
    kind, n = labels // 5, len(labels)
    count = np.array([3, 4, 5, 6, 8])[kind]
    petal = palette(scene, [RED, YELLOW, BLUE, WHITE, PURPLE], labels % 5)
    start = scene.rng.random(n) * 24 - 12
    field = np.full_like(scene.x, 9)
    for k in range(8):
        x, y = rotate(scene.x, scene.y, start + k * 360.0 / count)
        width = per_image(np.array([0.38, 0.34, 0.3, 0.26, 0.2])[kind])
        away = np.sqrt((x / width) ** 2 + ((y + 0.52) / 0.44) ** 2) - 1
        field = np.where((k < count)[:, None, None], np.minimum(field, away * width), field)
    scene.figure(field, petal)
    scene.paint(disc(scene.x, scene.y, 0.2), scene.colour((0.35, 0.2, 0.08)))


FLAVOURS = [BROWN, (0.97, 0.92, 0.75), PINK, MINT, (0.35, 0.3, 0.7), ORANGE]


def food(labels: np.ndarray, scene: Scene) -> None:
    """Ice cream: an ordered pair of two different flavours out of six, upper over lower scoop."""
    upper, other = labels // 5, labels % 5
    lower = other + (other >= upper)
    x, y = scene.x, scene.y
    scene.figure(polygon(x, y, [(-0.38, 0.25), (0.38, 0.25), (0, 0.95)]), scene.colour((0.83, 0.6, 0.3)))
    scene.figure(ellipse(x, y, 0.55, 0.4, 0, 0.05), palette(scene, FLAVOURS, lower))
    scene.figure(ellipse(x, y, 0.48, 0.42, 0, -0.5), palette(scene, FLAVOURS, upper))


def characters(names: list[str], pen: float) -> Callable[[np.ndarray, Scene], None]:
    """Drawing function of a domain of glyphs, one class a name; pen: mean half width of the strokes."""
    figures = [lambda x, y, name=name: glyph(name, x, y) for name in names]

    def draw(labels: np.ndarray, scene: Scene) -> None:
        width = uniform(scene.rng, pen * 0.75, pen * 1.35, len(labels))
        scene.figure(choose(labels, figures, scene.x, scene.y) - width, scene.colour(scene.ink))

    return draw


EARS = silhouettes("pointed ear, round ear, floppy ear, long ear")


def pets(labels: np.ndarray, scene: Scene) -> None:
    """Faces with four kinds of ears in five furs."""
    fur = palette(scene, [BLACK, WHITE, (0.9, 0.55, 0.2), GREY, (0.42, 0.25, 0.13)], labels // 4)
    x, y, n = scene.x, scene.y, len(labels)
    sides = np.abs(x)
    head = ellipse(x, y, 0.62, 0.55, 0, 0.15)
    scene.figure(np.minimum(choose(labels % 4, EARS, sides, y), head), fur)
    white, black = scene.colour(WHITE), scene.colour(BLACK)
    scene.paint(disc(sides, y, 0.16, 0.26, 0.02), white)
    scene.paint(disc(sides, y, 0.08, 0.26, 0.02), black)
    scene.paint(ellipse(x, y, 0.14, 0.09, 0, 0.36) + uniform(scene.rng, -0.04, 0.03, n), scene.colour(PINK))


BODIES = silhouettes("sedan, van, pickup, bus, coupe")


def cars(labels: np.ndarray, scene: Scene) -> None:
    """Five bodies in five paints, driving left or right."""
    n, kind = len(labels), labels % 5
    flip = per_image(np.where(scene.rng.random(n) < 0.5, -1, 1))
    x, y = scene.x * flip, scene.y
    scene.figure(choose(kind, BODIES, x, y), palette(scene, [RED, YELLOW, GREEN, BLUE, WHITE], labels // 5))
    panes = [
        lambda x, y: box(x, y, 0.28, 0.12, 0, -0.14),
        lambda x, y: box(x, y, 0.14, 0.12, 0.38, -0.25),
        lambda x, y: box(x, y, 0.13, 0.13, 0.64, -0.18),
        lambda x, y: np.maximum(box(x, y, 0.8, 0.15, 0, -0.25), -(np.abs(np.abs(x) - 0.26) - 0.06)),
        lambda x, y: box(x, y, 0.16, 0.06, 0.05, -0.03),
    ]
    scene.paint(choose(kind, panes, x, y), scene.colour((0.65, 0.8, 0.9)))
    scene.paint(disc(np.abs(x), y, 0.22, 0.52, 0.45), scene.colour(BLACK))
    scene.paint(disc(np.abs(x), y, 0.09, 0.52, 0.45), scene.colour(GREY))


def scenes(labels: np.ndarray, scene: Scene) -> None:
    """Four grounds at three times of day with three landmarks."""
    n, rng = len(labels), scene.rng
    ground, time, thing = labels // 9, labels // 3 % 3, labels % 3
    sky = palette(scene, [(0.55, 0.78, 0.95), (0.95, 0.5, 0.25), (0.1, 0.1, 0.28)], time)
    land_colour = palette(scene, [(0.12, 0.35, 0.6), (0.35, 0.6, 0.22), (0.85, 0.68, 0.38), WHITE], ground)
    horizon = uniform(rng, 0.1, 0.4, n)
    whole = 0.92 + scene.x * 0
    scene.blend(whole, sky)
    light = palette(scene, [(1, 0.95, 0.55), (1, 0.8, 0.3), WHITE], time)
    sx, sy = uniform(rng, -0.8, 0.8, n), uniform(rng, -0.8, -0.5, n)
    scene.paint(np.sqrt((GRID_X - sx) ** 2 + (GRID_Y - sy) ** 2) - 0.17, light)
    mountain, house = scene.colour((0.45, 0.42, 0.45)), scene.colour((0.75, 0.3, 0.22))
    tree = scene.colour((0.1, 0.4, 0.15))
    far = polygon(
        scene.x,
        GRID_Y - horizon + 0.2 + scene.x * 0,
        [(-1.1, 0.3), (-0.35, -0.55), (0, -0.15), (0.45, -0.7), (1.1, 0.3)],
    )
    hidden = 9
    scene.paint(np.where((thing == 0)[:, None, None], far, hidden), mountain)
    scene.blend(scene.mask(horizon - GRID_Y), land_colour)
    x, y = scene.x * 1.5, (GRID_Y - horizon + 0.15) * 1.5
    house_shape, tree_shape = silhouettes("house, tree")
    scene.figure(np.where((thing == 1)[:, None, None], house_shape(x, y + scene.x * 0), hidden), house)
    scene.figure(np.where((thing == 2)[:, None, None], tree_shape(x, y + scene.x * 0), hidden), tree)


DIGITS = list("0123456789")
SIGNS = [name for name in STROKES if name not in DIGITS]

CONCEPTS = {
    "Aircraft": aircraft,
    "Caltech101": objects,
    "CIFAR100": coloured_shapes,
    "DTD": textures,
    "EuroSAT": land,
    "Flowers": flowers,
    "Food": food,
    "MNIST": characters(DIGITS, 0.13),
    "OxfordPet": pets,
    "StanfordCars": cars,
    "SUN397": scenes,
    "Characters": characters(SIGNS, 0.1),
}
