"""Record lines of accuracies, and accuracy matrices as text table, CSV and heat map, with Transfer / Avg / Last."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from common.evaluation.metrics import mtil_triple
from common.files import atomic_write, metric_lines, write_text
from common.mini import ON_SCALE

if TYPE_CHECKING:  # `results` draws matrices without importing torch
    from common.runs import Run

Matrix = Sequence[Sequence[float]]
MOST_LABELLED = 20  # columns of a heat map with numbers in its cells
# in words, metrics of which a sequence has a matrix: X-TAIL has all three
MATRICES = {"accuracy": "", "domain_accuracy": "domain accuracy", "accuracy_with_domain": "with the domain told"}
ZERO_SHOT = "Zero-shot CLIP"  # `method` of every line after task 0


def task_accuracy_lines(accuracies: Sequence[float], seconds: float = 0.0, **fields: Any) -> list[dict[str, Any]]:
    """Record lines of the accuracies on tasks 0, 1, ... after the last of them."""
    cells = [(f"task {task_id}", len(accuracies), {"task_accuracy": value}) for task_id, value in enumerate(accuracies)]
    return [line for cell in cells for line in metric_lines(*cell, seconds, **fields)]


def task_accuracy_matrix(run: "Run", count: int, **fields: Any) -> np.ndarray:
    """R (T, T) float64 of T = `count` tasks, R[t, i] the recorded accuracy on task i after task t; else nan."""
    lines = run.find(metric="task_accuracy", **fields)
    recorded = {(line["after_task"] - 1, line["dataset"]): line["value"] for line in lines}
    cells = [[recorded.get((row, f"task {column}"), math.nan) for column in range(count)] for row in range(count)]
    return np.array(cells, dtype=np.float64)


def accuracy_lines(
    dataset: str, after_task: int, accuracies: Mapping[str, float], seconds: float
) -> list[dict[str, Any]]:
    """Record lines of one cell of the matrix; after task 0 the method is `ZERO_SHOT`."""
    fields = {} if after_task else {"method": ZERO_SHOT}
    return metric_lines(dataset, after_task, accuracies, seconds, **fields)


def accuracy_matrix(
    run: "Run", sets: Sequence[str], tasks: Iterable[int], metric: str = "accuracy"
) -> list[list[float]]:
    """The zero-shot row, then one after each task of these numbers, a column a data set; nan for an unrecorded cell."""
    recorded = {(line["after_task"], line["dataset"]): line["value"] for line in run.find(metric=metric)}
    return [[recorded.get((after_task, name), math.nan) for name in sets] for after_task in (0, *tasks)]


def run_title(run: "Run", protocol: str | None = None) -> str:
    """Title of a run's tables and figures: its method, and `protocol` or its own."""
    return f"{run.labels['method']}, {protocol or run.labels['protocol']}{ON_SCALE[run.labels['scale']]}"


def save_matrix(
    run: "Run", matrix: Matrix, rows: Sequence[str], columns: Sequence[str], title: str, name: str = "accuracy"
) -> None:
    """Write <name>.csv and <name>.png beside the records."""
    write_matrix(run.path(f"{name}.csv"), matrix, rows, columns)
    heat_map(run.path(f"{name}.png"), matrix, rows, columns, title)


def spoken(accuracies: Mapping[str, float]) -> str:
    """Top-1 accuracy on one data set, and what X-TAIL has besides, in one line."""
    found = {words: accuracies[metric] for metric, words in MATRICES.items() if metric in accuracies}
    return ", ".join(f"{words or 'Top-1 accuracy:'} {value:.2f}" for words, value in found.items())


def show_row(dataset: str, accuracies: Sequence[float]) -> None:
    """Print the accuracies on one data set: zero-shot, then after each task."""
    after = " ".join(f"{value:5.1f}" for value in accuracies[1:])
    print(f"{dataset:<14} zero-shot {accuracies[0]:5.1f}   after each task {after}", flush=True)


def show_sequence(
    run: "Run", sets: Sequence[str], tasks: Mapping[int, str], method: str, complete: bool = True
) -> None:
    """Table, accuracy.csv and accuracy.png after these tasks, which come under their numbers.

    For a `complete` sequence, from the first task on, also Transfer, Avg, Last.
    """
    names = list(tasks.values())
    rows = ["zero-shot", *names]
    for metric in (metric for metric in MATRICES if run.find(metric=metric)):
        matrix = accuracy_matrix(run, sets, tasks, metric)
        if metric == "accuracy":
            show_matrix(run, matrix, rows, sets, run_title(run))
        else:
            write_matrix(run.path(f"{metric}.csv"), matrix, rows, sets)
        if complete and 1 in tasks and list(sets) == names:
            show_triple(run, matrix, sets, method, metric)


def show_matrix(run: "Run", matrix: Matrix, rows: Sequence[str], sets: Sequence[str], title: str) -> None:
    """Print the table, and write accuracy.csv and accuracy.png beside the records."""
    save_matrix(run, matrix, rows, sets, title)
    print(f"\n{title}: accuracy (%) after each task\n{matrix_table(matrix, rows, sets)}")


def show_triple(run: "Run", matrix: Matrix, sets: Sequence[str], method: str, metric: str = "accuracy") -> None:
    """Record Transfer, Avg and Last, and print them beside the zero-shot row's means over the same data sets.

    matrix: the zero-shot row, then one after each task, `sets` in task order. A nan (Transfer of a single task) is
    printed as - and not recorded. Raises ValueError unless there is a row for each task.
    """
    lines = [("zero-shot", mtil_triple([matrix[0]] * len(sets))), (method, mtil_triple(matrix[1:]))]
    before = "" if metric == "accuracy" else f"{metric}_"
    values = {f"{before}{name}": getattr(lines[1][1], name) for name in ("transfer", "avg", "last")}
    defined = {name: value for name, value in values.items() if not math.isnan(value)}
    run.record(metric_lines("mean", len(sets), defined, None))
    width = max(14, len(method) + 2, len(MATRICES[metric]) + 2)
    print(f"\n{MATRICES[metric]:<{width}}{'Transfer':>10}{'Avg':>10}{'Last':>10}")
    for label, triple in lines:
        print(f"{label:<{width}}{_decimal(triple.transfer):>10}{_decimal(triple.avg):>10}{_decimal(triple.last):>10}")


def _decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def matrix_table(matrix: Matrix, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Percentages with one decimal, - for nan, one line a row; long column names are cut to eight letters."""
    width = max(len(row) for row in rows) + 1
    lines = [" " * width + "".join(f"{column[:8]:>9}" for column in columns)]
    for row, values in zip(rows, matrix):
        lines.append(f"{row:<{width}}" + "".join(f"{_decimal(value):>9}" for value in values))
    return "\n".join(lines)


def write_table(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Atomically write a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_text(path, text.getvalue())


def write_matrix(path: Path, matrix: Matrix, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write the matrix as CSV, unrounded; the first column, `after`, names the rows."""
    write_table(path, ["after", *columns], [[row, *values] for row, values in zip(rows, matrix)])


def heat_map(path: Path, matrix: Matrix, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Draw the matrix as a PNG, a frame around cells whose row and column have the same name.

    Cells show their numbers in up to 20 columns.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    labelled = len(columns) <= MOST_LABELLED
    width, height = (0.82, 0.5) if labelled else (0.3, 0.2)
    wide = max(5.0, 1.6 + width * len(columns))
    title = lines_of(title, wide)
    size = (wide, 1.2 + 0.2 * title.count("\n") + height * len(rows))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [row if row not in columns else f"after {row}" for row in rows])
    for y, values in enumerate(matrix):
        for x, value in enumerate(values):
            if value != value:  # no such cell
                continue
            if labelled:
                color = "black" if value > 60 else "white"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=9, color=color)
            if rows[y] == columns[x]:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2))
    figure.suptitle(title)
    figure.colorbar(image, label="accuracy (%)")
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))
    pyplot.close(figure)


def lines_of(title: str, width: float) -> str:
    """A title broken into lines that fit a figure of so many inches."""
    return "\n".join(part for line in title.split("\n") for part in wrap(line, int(9 * width)))
