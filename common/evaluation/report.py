"""An accuracy matrix for people: text table, CSV, heat map."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from common.files import atomic_write, write_text

Matrix = Sequence[Sequence[float]]


def matrix_table(matrix: Matrix, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Percentages with one decimal, one line a row; long column names are cut to eight letters."""
    width = max(len(row) for row in rows) + 1
    lines = [" " * width + "".join(f"{column[:8]:>9}" for column in columns)]
    lines += [f"{row:<{width}}" + "".join(f"{value:>9.1f}" for value in values) for row, values in zip(rows, matrix)]
    return "\n".join(lines)


def write_table(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Atomically write a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_text(path, text.getvalue())


def write_matrix(path: Path, matrix: Matrix, rows: Sequence[str], columns: Sequence[str]) -> None:
    """The matrix as CSV, unrounded: first column what the row is `after`."""
    write_table(path, ["after", *columns], [[row, *values] for row, values in zip(rows, matrix)])


def heat_map(path: Path, matrix: Matrix, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Draw the matrix as a PNG: first row before any task, diagonal framed where row and column are the same set."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    figure, axes = pyplot.subplots(figsize=(1.6 + 0.82 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained")
    image = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [row if row not in columns else f"after {row}" for row in rows])
    for y, values in enumerate(matrix):
        for x, value in enumerate(values):
            if value != value:  # no such cell
                continue
            axes.text(
                x, y, f"{value:.1f}", ha="center", va="center", fontsize=9, color="black" if value > 60 else "white"
            )
            if rows[y] == columns[x]:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2))
    axes.set_title(title)
    figure.colorbar(image, label="accuracy (%)")
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))
    pyplot.close(figure)
