"""What all figures have in common: names and titles, looks, labels, the empty axes and the file.

Colours are Okabe and Ito's, told apart by colour-blind readers; published numbers are always grey or hollow.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from common.evaluation.report import lines_of
from common.files import atomic_write
from results import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"  # as many as colours
PUBLISHED = "#7A7A7A"
DPI = 130
LINE = 38  # characters of a label before it goes on in the next line
# Of names beside points
MARKER = 6  # points from the middle of a marker to its edge, or somewhat more
NEAR = 12  # points beyond which a line leads from the label to its point
# Offsets in points at which a label is tried, near ones first; it begins there and goes on in that direction
AROUND = tuple((distance * x, distance * y) for distance in (8, 18, 30, 44, 60, 78, 98, 120, 150, 180)
               for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))  # fmt: skip
ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}  # by direction: across, up


@dataclass(frozen=True)
class Figure:
    """A figure to be drawn."""

    name: str  # of its file
    title: str
    draw: Callable[[Path, str], None]  # into a file, under the title

    def path(self, out: Path) -> Path:
        """Path of the figure below the output folder."""
        return Path(out) / "figures" / self.name


def to_draw(
    kind: str, protocol: str, method: str, scale: labels.Scale, what: str, draw: Callable[[Path, str], None]
) -> Figure:
    name = "_".join(_file_word(word) for word in (kind, protocol, method, scale.suffix) if word)
    return Figure(f"{name}.png", f"{what}\n{labels.protocol(protocol)}{scale.mark}", draw)


def _file_word(text: str) -> str:
    """A name as part of a file's name, which still tells ZSCL, ZSCL* and ZSCL- apart."""
    spelled = re.sub(r"[-\u207b]$", " minus", text.replace("*", " star"))
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", spelled).strip(".-")


def look_of(position: int) -> tuple[str, str]:
    """Colour and marker of the method at this position: no two of 49 share both."""
    return COLOURS[position % 7], MARKERS[(position + position // 7) % 7]


def plain(text: str) -> str:
    """Text with its $ escaped, so that matplotlib reads no formula."""
    return text.replace("$", r"\$")


def wrapped(name: str) -> str:
    """A method's name as a label, in lines that leave room for the plot."""
    return plain(fill(name, LINE, break_on_hyphens=False))


def legend_height(names: Iterable[str]) -> float:
    """Inches of these names below one another in a legend."""
    return 0.19 * sum(wrapped(name).count("\n") + 1 for name in names)


def canvas(columns: int, width: float, height: float, share_y: bool = False) -> tuple["Canvas", list["Axes"]]:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(width, height), sharey=share_y, squeeze=False, layout="constrained"
    )
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#E3E7EB", linewidth=0.8)
        panel.set_axisbelow(True)
    return figure, list(axes[0])


def save(figure: "Canvas", path: Path, title: str, finish: Callable[[], None] = lambda: None) -> None:
    """Write the figure under its title; `finish` draws what needs to know how large all the rest is."""
    from matplotlib import pyplot

    figure.suptitle(plain(lines_of(title, figure.get_figwidth())), fontsize=12)
    finish()
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
    pyplot.close(figure)


# Names beside points


def place_names(figure: "Canvas", panel: "Axes", points: Sequence[tuple[float, float, float, str]]) -> None:
    """Write the name of each point (x, y, half an error bar, name) at the nearest place where it hides nothing.

    To be called when all else is drawn: names keep their distance in points, whatever the axes become.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # gives everything its final place
    unit, project = figure.dpi / 72, panel.transData.transform
    taken = [Bbox(project([(x, y - std), (x, y + std)])).padded(MARKER * unit) for x, y, std, _ in points]
    for x, y, _, name in points:
        text = panel.annotate(name, (x, y), fontsize=8)
        size, tried = np.asarray(text.get_window_extent().size), []
        text.remove()
        at = project((x, y))
        for offset in AROUND:  # the box begins, ends or has its middle there
            corner = at + unit * np.array(offset) - size * (1 - np.sign(offset)) / 2
            box = Bbox([corner, corner + size])
            is_inside = panel.bbox.contains(*box.min) and panel.bbox.contains(*box.max)
            tried.append((box.count_overlaps(taken) + (0 if is_inside else len(taken)), offset, box))
        _, best, box = min(tried, key=lambda trial: trial[0])  # the first of equal ones
        taken.append(box)
        across, up = (ALIGNED[int(np.sign(step))][axis] for axis, step in enumerate(best))
        line = {"arrowstyle": "-", "color": PUBLISHED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        line |= {"relpos": (1 - np.sign(best)) / 2}  # from where the box is nearest
        panel.annotate(name, (x, y), best, textcoords="offset points", fontsize=8, ha=across, va=up, zorder=4,
                       arrowprops=line if max(map(abs, best)) > NEAR else None).set_in_layout(False)  # fmt: skip
