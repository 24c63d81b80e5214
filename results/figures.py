"""Figures as PNG: accuracy matrices, bars beside the published ones, curves over the tasks, cost against accuracy."""

from collections.abc import Iterable
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from common.evaluation.report import heat_map
from common.protocols import Protocol
from results import labels
from results.compare import MEAN, PARAMETERS, AccuracyMatrix, Comparison, Data, grouped, in_order, matrices
from results.drawing import (
    COLOURS,
    MARKERS,
    PUBLISHED,
    Figure,
    canvas,
    legend_height,
    look_of,
    place_names,
    plain,
    save,
    to_draw,
    wrapped,
)
from results.naming import with_distinct_names
from results.published import Published
from results.records import Record
from results.tables import METHOD, SECONDS, TRAINABLE, Method, Row, common_ground_rows, method_of, whole_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FRONT = ("mtil-order1", "cil-cifar100-10x10")  # drawn from published numbers alone when nothing was run
BARS = ("transfer", "avg", "last")
# recorded after every task under the papers' own names; VQ-Prompt's weighs tasks equally, the others' pool images
CURVES = ("accuracy", "acc", "faa")
WIDEST_MATRIX = 20  # tasks; beyond it a heat map's digits are too small, and the curve says as much
EDGE = 1.7  # by which the place of no cost is left of the edge of the others, and the axis left of that

Curve = list[tuple[int, float]]  # (after task, accuracy in percent)


class Point(NamedTuple):
    """A method by its cost, 0 for none, and its Last."""

    cost: float
    last: float
    look: str  # what colour and marker stand for: the method, on common ground the backbone
    is_measured: bool
    std: float | None  # of Last over seeds


def write(out: Path, data: Data) -> list[Path]:
    """Draw every figure that has data into `out`/figures; their paths."""
    planned = plan(data)
    for figure in planned:
        figure.draw(figure.path(out), figure.title)
    return [figure.path(out) for figure in planned]


def plan(data: Data) -> list[Figure]:
    """The figures that have data, protocol by protocol. At mini scale no published number is drawn."""
    ground, data = common_ground_rows(data), with_distinct_names(data)
    protocols = {record.protocol for record in data.records} | set(FRONT if data.words.compares else ())
    by_protocol = grouped(matrices(data.records), "protocol")
    figures: list[Figure] = []
    for protocol in sorted(protocols, key=labels.natural):
        about = Protocol.parse(protocol)
        is_common, rows = about.kind == "common", ground.get(about.dataset, [])
        if is_common and not about.tasks:
            continue  # all classes at once is in the figures of its data set's tasks
        costs = _common_costs(rows, protocol, data.words) if is_common else _costs(data, protocol)
        drawn = [*_bars(data, protocol), *_curves(data, protocol), *costs]
        figures += drawn + _heat_maps(by_protocol.get(protocol, []), data.words)
    return figures


# Heat maps


def _heat_maps(measured: list[AccuracyMatrix], scale: labels.Scale) -> list[Figure]:
    shown = [matrix for matrix in measured if 1 < len(matrix.columns) <= WIDEST_MATRIX]
    return [_heat_map(same, scale) for same in grouped(shown, "method").values()]


def _heat_map(runs: list[AccuracyMatrix], scale: labels.Scale) -> Figure:
    """The mean over a method's runs that learned and tested the same data sets as the first that got furthest."""
    first = max(runs, key=lambda matrix: len(matrix.rows))
    alike = [matrix for matrix in runs if (matrix.rows, matrix.columns) == (first.rows, first.columns)]
    rows, values = list(first.rows), _mean_cells([matrix.values for matrix in alike])
    zero_shot = [[matrix.zero_shot] for matrix in alike if matrix.zero_shot]
    if len(zero_shot) == len(alike):
        rows, values = ["before any task", *rows], _mean_cells(zero_shot) + values
    seeds = len({matrix.seed for matrix in alike})
    averaged = f"{seeds} seeds" if seeds == len(alike) else f"{len(alike)} runs, {labels.count(seeds, 'seed')}"
    seed = f"mean of {averaged}" if len(alike) > 1 else f"seed {first.seed}"

    def draw(path: Path, title: str) -> None:
        heat_map(path, values, [plain(row) for row in rows], [plain(name) for name in first.columns], plain(title))

    what = f"{first.method}: accuracy after each task, {seed}"
    return to_draw("matrix", first.protocol, first.method, scale, what, draw)


def _mean_cells(grids: list[list[list[float | None]]]) -> list[list[float]]:
    """Mean of every cell over the matrices; nan where one lacks the cell."""
    return [[fmean(cells) if None not in cells else float("nan") for cells in zip(*rows)] for rows in zip(*grids)]


# Bars


def _totals(data: Data, protocol: str) -> list[tuple[str, Comparison]]:
    """(transfer, avg or last, comparison) of every number of a protocol that is over all its data sets."""
    return [
        (labels.column(item.metric), item)
        for item in data.comparisons
        if item.protocol == protocol
        and labels.column(item.metric) in BARS
        and "macro" not in item.metric
        and (item.dataset == MEAN or not labels.is_multi_domain(protocol))
    ]


def _numbers(data: Data, protocol: str) -> dict[str, dict[str, Comparison]]:
    """Transfer, Avg and Last of a protocol, by the method's label and then by column."""
    rows: dict[str, dict[str, Comparison]] = {}
    for column, item in _totals(data, protocol):
        if data.words.compares or item.mean is not None:
            rows.setdefault(_label(item), {}).setdefault(column, item)
    return rows


def _label(item: Comparison) -> str:
    """The method, and in brackets who printed its number, where the method's name does not say it."""
    return item.method if item.published is None or item.origin in item.method else f"{item.method} [{item.origin}]"


def _brackets(names: Iterable[str]) -> str:
    """The line of a title that explains the brackets in these labels, if there are any."""
    return "\n[in brackets: who printed the number]" if any("[" in name for name in names) else ""


def _bars(data: Data, protocol: str) -> list[Figure]:
    rows, compares = _numbers(data, protocol), data.words.compares
    if not rows:
        return []
    metrics = [name for name in BARS if any(name in numbers for numbers in rows.values())]
    run = any(item.mean is not None for numbers in rows.values() for item in numbers.values())
    measured = "measured against published" if compares else "measured"

    def draw(path: Path, title: str) -> None:
        from matplotlib.patches import Patch

        height = 1.6 + max(0.48 if run else 0.36, *(legend_height([name]) for name in rows)) * len(rows)
        figure, panels = canvas(len(metrics), 2.2 + 3.3 * len(metrics), height, share_y=True)
        for panel, metric in zip(panels, metrics):
            _bar_panel(panel, [numbers.get(metric) for numbers in rows.values()], run, compares)
            panel.set_xlabel(f"{labels.metric(metric)} (%)")
        panels[0].set_yticks(range(len(rows)), [wrapped(name) for name in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        if run and compares:
            handles = [Patch(facecolor="#E8EBEE", edgecolor=PUBLISHED, hatch="///"), Patch(color=COLOURS[0])]
            names = ["published", "measured (bar: std over seeds)"]
            figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
        save(figure, path, title + _brackets(rows))

    shown = ", ".join(labels.metric(name) for name in metrics)
    what = f"{shown}: {measured if run else 'published, not run here'}"
    return [to_draw("bars", protocol, "", data.words, what, draw)]


def _bar_panel(panel: "Axes", items: list[Comparison | None], run: bool, compares: bool) -> None:
    look = {"facecolor": "#E8EBEE", "edgecolor": PUBLISHED, "hatch": "///" if run else "", "linewidth": 0.8}
    height = 0.38 if run and compares else 0.6
    for position, item in enumerate(items):
        if item is None:
            continue
        shift = 0.2 if item.published is not None and item.mean is not None else 0.0
        if item.published is not None:
            _bar(panel, position - shift, item.published, item.published_std, height, look)
        if item.mean is not None:
            _bar(panel, position + shift, item.mean, item.std, height, {"color": COLOURS[0]})
    panel.set_xlim(0, 112)
    panel.set_xticks(range(0, 101, 20))
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)


def _bar(panel: "Axes", y: float, value: float, std: float | None, height: float, look: dict[str, Any]) -> None:
    panel.barh(y, value, height, xerr=std, error_kw={"elinewidth": 1, "capsize": 2}, **look)
    panel.text(value + (std or 0) + 1.2, y, f"{value:.1f}", va="center", fontsize=8)


# Curves


def _curves(data: Data, protocol: str) -> list[Figure]:
    ours, theirs = _measured_curves(data, protocol), _published_curves(data, protocol)
    if not any(len(curve) > 1 for curves in [*ours.values(), *theirs.values()] for curve in curves):
        return []

    def draw(path: Path, title: str) -> None:
        from matplotlib.ticker import MaxNLocator

        figure, (panel,) = canvas(1, 9.8, max(4.8, legend_height([*ours, *theirs])))
        before = [name for name, curves in ours.items() if max(point[0] for curve in curves for point in curve) == 0]
        for name in before:  # never trained: its only point is the level to start from
            level = fmean(point[1] for curve in ours[name] for point in curve)
            panel.axhline(level, color=PUBLISHED, linestyle=":", label=wrapped(f"{name}, before any task"))
        for position, name in enumerate(name for name in ours if name not in before):
            _curve(panel, ours[name], name, *look_of(position), "-" if position < len(COLOURS) else "-.")
        for position, (name, curves) in enumerate(theirs.items()):
            _curve(panel, curves, f"{name}, published log", PUBLISHED, MARKERS[position % 7], "--")
        panel.set_xlabel("after task")
        panel.set_ylabel("accuracy (%)")
        panel.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        save(figure, path, title)

    over = "mean of all data sets" if labels.is_multi_domain(protocol) else "classes seen"
    return [to_draw("curve", protocol, "", data.words, f"Accuracy over the tasks, {over}", draw)]


def _measured_curves(data: Data, protocol: str) -> dict[str, list[Curve]]:
    """By method a curve for each seed: accuracy after each task, the mean over data sets and over runs of the seed.

    The accuracy is the first metric of CURVES that the method recorded.
    """
    lines = [line for line in in_order(data.records) if line.protocol == protocol and line.metric in CURVES]
    curves: dict[str, list[Curve]] = {}
    for (method, _), same in grouped(lines, "method", "seed").items():
        metric = min((line.metric for line in same), key=CURVES.index)
        curves.setdefault(method, []).append(_mean_curve([line for line in same if line.metric == metric]))
    return curves


def _published_curves(data: Data, protocol: str) -> dict[str, list[Curve]]:
    rows = [row for row in data.curves if row.protocol == protocol and row.metric == "accuracy" and row.after_task]
    curves: dict[str, list[Curve]] = {}
    for (method, *_), same in grouped(rows, "method", "source", "note").items():
        curves.setdefault(method, []).append(_mean_curve(same))
    return curves


def _mean_curve(lines: Iterable[Record | Published]) -> Curve:
    by_task = grouped(lines, "after_task")
    return [(task_id, fmean(line.value for line in by_task[task_id])) for task_id in sorted(by_task)]


def _curve(panel: "Axes", seeds: list[Curve], name: str, colour: str, marker: str, style: str) -> None:
    """The mean over the seeds that got so far and, from two on, a band of one standard deviation either side."""
    points = sorted(point for curve in seeds for point in curve)
    tasks = {task: [value for _, value in same] for task, same in groupby(points, key=lambda point: point[0])}
    means = [fmean(values) for values in tasks.values()]
    fewest = min(map(len, tasks.values()))
    counted = f"{fewest} to {len(seeds)}" if fewest < len(seeds) else str(len(seeds))
    label = wrapped(name + (f" ({counted} seeds)" if len(seeds) > 1 else ""))
    panel.plot([*tasks], means, style, color=colour, marker=marker, markersize=5, label=label)
    if len(seeds) > 1:
        band = [stdev(values) if len(values) > 1 else 0.0 for values in tasks.values()]
        low, high = zip(*((mean - std, mean + std) for mean, std in zip(means, band)))
        panel.fill_between([*tasks], low, high, color=colour, alpha=0.18, linewidth=0)


# Cost against accuracy


def _costs(data: Data, protocol: str) -> list[Figure]:
    """Training seconds and trainable parameters against Last: a panel each that has two points."""
    panels = {name: points for name, points in _cost_points(data, protocol).items() if len(points) > 1}
    if not panels:
        return []

    def draw(path: Path, title: str) -> None:
        names = dict.fromkeys(point.look for points in panels.values() for point in points)
        figure, axes = canvas(len(panels), 2.6 + 5.2 * len(panels), max(4.6, 1 + legend_height(names)))
        looks = {name: look_of(position) for position, name in enumerate(names)}
        for panel, (name, points) in zip(axes, panels.items()):
            _cost_panel(panel, points, looks, name)
        _look_legend(figure, looks, loc="outside right center")
        fillings = "\nfilled: measured, hollow: published" if data.words.compares else ""
        save(figure, path, title + fillings + _brackets(names))

    return [to_draw("cost", protocol, "", data.words, "Cost against accuracy", draw)]


def _look_legend(figure: "Canvas", looks: dict[str, tuple[str, str]], **place: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=8)
               for colour, marker in looks.values()]  # fmt: skip
    figure.legend(handles, [wrapped(name) for name in looks], frameon=False, fontsize=9, **place)


def _cost_panel(panel: "Axes", points: list[Point], looks: dict[str, tuple[str, str]], cost: str) -> list[float]:
    """Draw the points; where each stands on the axis, on whose log scale no cost at all is at the left edge."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    least = min((point.cost for point in points if point.cost), default=1.0)
    places = [point.cost or least / EDGE**2 for point in points]
    for x, point in zip(places, points):
        colour, marker = looks[point.look]
        face = colour if point.is_measured else "none"
        panel.errorbar(x, point.last, point.std, fmt=marker, markerfacecolor=face, color=colour, markersize=8,
                       markeredgewidth=1.5, elinewidth=1, capsize=2, zorder=3)  # fmt: skip
    panel.set_xscale("log")
    panel.margins(0.12)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    number, edge, none = EngFormatter(sep=" "), 0.0, ""
    if min(places) < least:
        edge, none = least / EDGE, "; shaded, at the left edge: none"
        panel.axvspan(0, edge, color="#F0F2F4", zorder=0)
        panel.set_xlim(least / EDGE**3)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x) if x > edge else ""))
    panel.set_xlabel(f"{cost}, log scale{none}")
    panel.set_ylabel("Last (%)")
    return places


def _common_costs(rows: list[Row], protocol: str, scale: labels.Scale) -> list[Figure]:
    """Trainable parameters and seconds a task against Last on common ground: a figure each that has two points."""
    found = []
    for column in (TRAINABLE, SECONDS):
        points = {}
        for row in rows:
            trained, cost, last = TRAINABLE.cell(row), column.cell(row), row.numbers.get("last")
            cost = 0 if cost is None and trained == 0 else cost  # what trains nothing takes no time for it
            if last and last.mean is not None and isinstance(cost, int | float):
                points[row.method] = Point(cost, last.mean, row.method[3], True, last.std)
        if len(points) > 1:
            name = column.title.lower()
            draw = partial(_draw_common_costs, points=points, cost=name)
            found.append(to_draw("cost", protocol, name, scale, f"Last against {name}", draw))
    return found


def _draw_common_costs(path: Path, title: str, points: dict[Method, Point], cost: str) -> None:
    figure, (panel,) = canvas(1, 10.5, 7)
    looks = {name: look_of(position) for position, name in enumerate(sorted({point.look for point in points.values()}))}
    places = _cost_panel(panel, [*points.values()], looks, cost)
    _look_legend(figure, looks, loc="outside lower center", ncols=len(looks))
    spots = [(x, point.last, point.std or 0.0, wrapped(method[2]))
             for x, (method, point) in zip(places, points.items())]  # fmt: skip
    save(figure, path, f"{title}\n[bar: std over seeds]", lambda: place_names(figure, panel, spots))


def _cost_points(data: Data, protocol: str) -> dict[str, list[Point]]:
    """The points of each panel. Published parameters stand with the published accuracy, ours with ours."""
    lasts = {method_of(item): item for column, item in _totals(data, protocol) if column == "last"}
    counts = grouped((row for row in data.published if row.metric == PARAMETERS), *METHOD)
    stated = {key: rows[-1].value for key, rows in counts.items()}
    runs = whole_runs(data)
    seconds, parameters = [], []
    for key, item in lasts.items():
        spent = [run.seconds for run in runs.get(key, []) if run.seconds]
        noted = [run.trainable_parameters for run in runs.get(key, []) if run.trainable_parameters]
        if spent and item.mean is not None:
            seconds.append(Point(fmean(spent), item.mean, _label(item), True, item.std))
        if key in stated and item.published is not None:
            parameters.append(Point(stated[key], item.published, _label(item), False, item.published_std))
        if noted and item.mean is not None:
            parameters.append(Point(noted[-1], item.mean, _label(item), True, item.std))
    return {"training time (s)": seconds, "trainable parameters": parameters}
