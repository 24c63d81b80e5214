"""Published and measured numbers side by side, with a verdict on each pair."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any, TypeVar

from common.evaluation.metrics import MTILTriple, mtil_triple
from common.evaluation.report import MATRICES, ZERO_SHOT
from common.protocols import Protocol
from results import labels
from results.collect import Provenance
from results.published import Published
from results.records import Problem, Record

MATCHES, DIFFERS, TOO_NOISY, NOT_RUN = "matches", "differs", "too noisy", "not run"
NOT_STATED = "setting not stated"  # also how the note begins of a published number that never is judged for it
NO_PUBLISHED = "no published value"
VERDICTS = (MATCHES, DIFFERS, TOO_NOISY, NOT_STATED, NOT_RUN, NO_PUBLISHED)
TOLERANCE = 0.5  # percentage points
WIDEST = 1.5  # percentage points: a wider tolerance would let spread buy a match
MISPRINT = "misprint"  # begins a note: the number is shown and judged, but its difference is not held against a run
MEAN = "mean"
SAME = 1e-9  # percentage points by which equal sums may differ
PARAMETERS = "trainable_parameters"  # a metric of its own: compared with nothing, shown beside the accuracies
# Metrics of which tables show the value after the last task
SCALARS = (*labels.REPORTED, *(labels.METRICS.keys() - {"accuracy"}), PARAMETERS)

LIKE = ("protocol", "method", "backbone", "metric", "dataset")  # fields in which comparable numbers are equal
RUN = ("folder", "protocol", "method", "backbone", "seed")  # fields in which the cells of a matrix are equal

Item = TypeVar("Item")


def grouped(items: Iterable[Item], *names: str) -> dict[Any, list[Item]]:
    """Items by the value of an attribute, or by the tuple of several; groups and items in order of appearance."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(attrgetter(*names)(item), []).append(item)
    return groups


@dataclass(frozen=True)
class Comparison:
    """One number of a method under a protocol: published, measured, and the verdict."""

    paper: str
    protocol: str
    method: str
    backbone: str
    metric: str
    dataset: str  # "mean" for a mean over data sets
    published: float | None
    published_std: float | None
    source: str
    mean: float | None  # over seeds
    std: float | None  # over seeds (n - 1 below the sum), None for fewer than two
    seeds: int
    difference: float | None  # mean - published
    verdict: str
    note: str

    @property
    def origin(self) -> str:
        """Who printed the published number; without one, whose program here measured it."""
        return f"ours ({labels.paper(self.paper)})" if self.published is None else labels.printed_by(self.source)


@dataclass(frozen=True)
class AccuracyMatrix:
    """values[t][d]: accuracy in percent on columns[d] after task rows[t]; None for a missing cell."""

    paper: str
    protocol: str
    method: str
    backbone: str
    seed: int | None  # None for a published matrix
    source: str  # the run's folder, or the published source
    rows: list[str]  # tasks in the order learned
    columns: list[str]  # data sets, the learned ones first and in order
    values: list[list[float | None]]
    zero_shot: list[float | None] | None  # the row before any task; None if it was not tested


@dataclass(frozen=True)
class Data:
    """The records and published numbers of one scale, of which all files are made."""

    scale: str  # "paper" or "mini"
    records: list[Record]
    published: list[Published]
    comparisons: list[Comparison]
    provenance: list[Provenance]
    problems: list[Problem]
    curves: list[Published]  # accuracy after each task, from published logs

    @property
    def words(self) -> labels.Scale:
        """The words and switches of the scale."""
        return labels.SCALES[self.scale]


Shown = TypeVar("Shown", Comparison, AccuracyMatrix, Record)


def compare(published: list[Published], records: list[Record]) -> list[Comparison]:
    """A Comparison for every published number and for every measured one that has none.

    A run is compared with the published numbers of its protocol, method and backbone in all papers; a published number
    without a backbone is compared with every backbone. Miniature runs are compared with none. Cells of accuracy
    matrices are left to `matrices`. An unfinished run takes part in no number; the note counts it.
    """
    runs = grouped((line for line in records if line.unfinished), "protocol", "method", "backbone", "file")
    stopped = Counter(key[:3] for key in runs)
    by_scale = grouped(_measured(records), "scale")
    measured, used, comparisons = grouped(by_scale.get("paper", []), *LIKE), set(), []
    for entry in published:
        if entry.after_task:
            continue
        keys = _keys(entry, measured)
        used.update(keys)
        numbers = [number for key in keys for number in measured.get(key, [])]
        comparisons.append(_comparison(entry.paper, entry, numbers, sum(stopped[key[:3]] for key in keys)))
    for scale, words in labels.SCALES.items():
        papers: dict[tuple[str, ...], str] = {}  # runs of several papers measure the zero-shot row: it stands once
        for key, numbers in grouped(by_scale.get(scale, []), *LIKE).items():
            paper = papers.setdefault(key[:3], numbers[0].paper)
            if key not in used or not words.compares:
                comparisons.append(_comparison(paper, None, numbers, stopped[key[:3]]))
    return in_order(comparisons)


def in_order(items: Iterable[Shown]) -> list[Shown]:
    """Items sorted by the first appearance of their protocol, on MTIL also by `labels.METHODS`; else in their order."""
    items = list(items)
    protocols = list(dict.fromkeys(item.protocol for item in items))

    def position(item: Shown) -> tuple[int, int]:
        in_protocol = labels.position(item.method) if labels.is_multi_domain(item.protocol) else 0
        return protocols.index(item.protocol), in_protocol

    return sorted(items, key=position)


def _keys(entry: Published, measured: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The values of LIKE that measured numbers must have to be compared with a published one."""
    wanted = attrgetter(*LIKE)(replace(entry, method=entry.run_method))
    if entry.backbone:
        return [wanted]
    return [key for key in measured if (*key[:2], *key[3:]) == (*wanted[:2], *wanted[3:])]


def tolerance(std: float | None, seeds: int) -> float:
    """Percentage points beyond which a difference is one: max(0.5, 2 std / sqrt(n))."""
    return TOLERANCE if std is None else max(TOLERANCE, 2 * std / math.sqrt(seeds))


def _verdict(distance: float, allowed: float) -> str:
    """Whether numbers this far apart differ; within a tolerance wider than `WIDEST` they neither do nor match."""
    if distance > allowed:
        return DIFFERS
    return MATCHES if allowed <= WIDEST else TOO_NOISY


def _over_seeds(numbers: list[Record]) -> tuple[float | None, float | None, int, str]:
    """Mean, standard deviation and number of seeds, and the notes on the runs.

    The pre-trained model has no seed, and stands in runs of many methods: the newest of each seed counts.
    """
    if not numbers:
        return None, None, 0, ""
    newest = {number.seed: number for number in sorted(numbers, key=lambda number: number.started)}
    values = [number.value for number in newest.values()]
    if numbers[0].method.startswith(ZERO_SHOT):
        low, high = (choose(number.value for number in numbers) for choose in (min, max))
        differs = f"{len(numbers)} runs, {low:.2f} to {high:.2f}" if high - low > SAME else ""
        return fmean(values), None, 1, differs
    notes = dict.fromkeys(number.note for number in numbers if number.note)
    return fmean(values), stdev(values) if len(values) > 1 else None, len(values), "; ".join(notes)


def _comparison(paper: str, entry: Published | None, numbers: list[Record], stopped: int) -> Comparison:
    """The comparison of a published number with what was measured, or of measured numbers alone."""
    mean, std, seeds, repeated = _over_seeds(numbers)
    unfinished = f"{labels.count(stopped, 'run')} unfinished" if stopped else ""
    difference, verdict = None, NOT_RUN if entry else NO_PUBLISHED
    if entry and mean is not None:
        difference = mean - entry.value
        # rounded at the 9th decimal: 76.2 - 75.7 is a half, though not in binary
        verdict = _verdict(round(abs(difference), 9), tolerance(std, seeds))
        verdict = NOT_STATED if entry.note.startswith(NOT_STATED) else verdict
    return Comparison(
        paper,
        **{name: getattr(entry or numbers[0], name) for name in LIKE},
        published=entry.value if entry else None,
        published_std=entry.std if entry else None,
        source=entry.source if entry else "",
        mean=mean,
        std=std,
        seeds=seeds,
        difference=difference,
        verdict=verdict,
        note="; ".join(part for part in (entry.note if entry else "", repeated, unfinished) if part),
    )


def _measured(records: list[Record]) -> Iterator[Record]:
    """The numbers of each run as records: the scalars and zero-shot accuracies recorded, the means of its matrix."""
    scalars = [line for line in records if line.is_zero_shot or (line.metric in SCALARS and _is_final(line))]
    latest = [max(lines, key=lambda line: line.after_task) for lines in grouped(scalars, "file", *LIKE).values()]
    yield from latest
    recorded = grouped(latest, "folder", *LIKE)
    names = {line.folder: line.method for line in records if line.method.startswith(ZERO_SHOT)}
    for cells in MATRICES:
        before = "" if cells == "accuracy" else f"{cells}_"
        for line, matrix in _run_matrices(records, cells):
            for method, name, dataset, value in _from_matrix(matrix, names.get(line.folder, ZERO_SHOT)):
                metric = cells if name == "accuracy" else f"{before}{name}"
                number = replace(line, method=method, metric=metric, dataset=dataset, value=value)
                if attrgetter("folder", *LIKE)(number) not in recorded:
                    yield number


def _is_final(line: Record) -> bool:
    """Whether a number of a whole run is of its protocol's end; trainable parameters are of any task."""
    length = Protocol.parse(line.protocol).length or 0
    return not line.unfinished and (line.metric == PARAMETERS or line.after_task >= length)


def _from_matrix(matrix: AccuracyMatrix, zero_shot: str) -> Iterator[tuple[str, str, str, float]]:
    """(method, metric, data set, value) of Transfer, Avg, Last and the zero-shot means of a matrix of MTIL."""
    if not labels.is_multi_domain(matrix.protocol):
        return
    triple = mtil_means(matrix)
    if triple is not None:
        yield from ((matrix.method, *row) for row in _triple_rows(matrix.rows, triple))
    sets = list(Protocol.parse(matrix.protocol).order) or matrix.rows
    row = [value for value in (matrix.zero_shot or [])[: len(sets)] if value is not None]
    if row and len(row) == len(sets) and matrix.columns[: len(sets)] == sets:
        yield zero_shot, "accuracy", MEAN, fmean(row)
        # a model that never learns has the same row after every task
        yield from ((zero_shot, *cell) for cell in _triple_rows(sets, mtil_triple([row] * len(row))))


def _triple_rows(sets: list[str], triple: MTILTriple) -> Iterator[tuple[str, str, float]]:
    for metric in ("transfer", "avg", "last"):
        learned_later = sets[1:] if metric == "transfer" else sets
        if learned_later:
            values = getattr(triple, f"{metric}_per_dataset")
            yield from ((metric, name, float(value)) for name, value in zip(learned_later, values))
            yield metric, MEAN, getattr(triple, metric)


def mtil_means(matrix: AccuracyMatrix) -> MTILTriple | None:
    """Transfer, Avg and Last over the learned data sets, unrounded; None if a task or one of their cells is missing."""
    count, order = len(matrix.rows), Protocol.parse(matrix.protocol).order
    cells = [[value for value in row[:count] if value is not None] for row in matrix.values]
    unfinished = bool(order) and tuple(matrix.rows) != order
    if not count or unfinished or matrix.columns[:count] != matrix.rows or any(len(row) < count for row in cells):
        return None
    return mtil_triple(cells)


def matrices(records: list[Record]) -> list[AccuracyMatrix]:
    """The measured accuracy matrices, one a (run folder, protocol, method, seed), of runs that learned a task.

    A class-incremental run that recorded the accuracy on each task has these as columns, not their pooled test images.
    """
    return [matrix for _, matrix in _run_matrices(records) if matrix.rows]


def _run_matrices(records: list[Record], metric: str = "accuracy") -> Iterator[tuple[Record, AccuracyMatrix]]:
    """A line of each run and the matrix of a metric; without rows for a run that only tested the pre-trained model."""
    trained = grouped((line for line in records if line.metric == "train_seconds"), "folder")
    before = [line for line in records if line.metric == metric and line.after_task == 0]
    zero_shot = grouped(before, "folder", "seed")
    names = (metric, "task_accuracy") if metric == "accuracy" else (metric,)
    tested = [line for line in records if line.metric in names and (line.after_task or line.metric != metric)]
    for (folder, *_, seed), lines in grouped(in_order(tested), *RUN).items():
        by_task = [line for line in lines if line.metric == "task_accuracy"]
        learned = {line.after_task: line.dataset for line in trained.get(folder, [])}
        if by_task:  # a task is first tested when it is learned
            learned = dict(enumerate(dict.fromkeys(line.dataset for line in by_task), start=1))
        yield lines[0], _matrix(by_task or lines, learned, zero_shot.get((folder, seed), []))
    folders = {line.folder for line in tested}
    for lines in grouped((line for line in before if line.folder not in folders), "paper", *RUN).values():
        if Protocol.parse(lines[0].protocol).order:
            yield lines[0], _matrix(lines, {}, lines)


def published_matrices(published: list[Published]) -> list[AccuracyMatrix]:
    """The published accuracy matrices, one a (paper, protocol, method)."""
    rows = [entry for entry in published if entry.method == ZERO_SHOT and entry.metric == "last"]
    zero_shot = grouped((entry for entry in rows if entry.dataset != MEAN), "paper", "protocol")
    cells = [entry for entry in published if entry.metric == "accuracy" and entry.after_task]
    return [
        _matrix(entries, {}, zero_shot.get(key[:2], []))
        for key, entries in grouped(cells, "paper", "protocol", "method").items()
    ]


def _matrix(
    lines: Sequence[Record | Published], learned: dict[int, str], zero_shot: Sequence[Record | Published]
) -> AccuracyMatrix:
    """The matrix of the cells in `lines`; `learned` is the data set of each task if the protocol does not fix it."""
    first = lines[0]
    cells = {(line.after_task or 0, line.dataset): line.value for line in lines}
    tasks = sorted({task_id for task_id, _ in cells if task_id})
    names = dict(enumerate(Protocol.parse(first.protocol).order, start=1)) or learned
    rows = [names.get(task_id, f"task {task_id}") for task_id in tasks]
    datasets = dict.fromkeys(dataset for _, dataset in cells)
    in_sequence = [name for _, name in sorted(names.items()) if name in datasets]
    columns = list(dict.fromkeys([*in_sequence, *datasets]))
    values = [[cells.get((task_id, name)) for name in columns] for task_id in tasks]
    before = {line.dataset: line.value for line in zero_shot}
    seed, source = (first.seed, first.folder) if isinstance(first, Record) else (None, first.source)
    return AccuracyMatrix(first.paper, first.protocol, first.method, first.backbone, seed, source, rows, columns,
                          values, [before.get(name) for name in columns] if before else None)  # fmt: skip
