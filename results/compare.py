"""Published and measured numbers side by side, and what may be said of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

from common.evaluation.metrics import MTILTriple, mtil_triple
from common.evaluation.report import ZERO_SHOT
from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2
from results import labels
from results.collect import Problem, Provenance, Record
from results.published import Published

MATCHES, DIFFERS, NOT_RUN, NO_PUBLISHED = "matches", "differs", "not run", "no published value"
VERDICTS = (MATCHES, DIFFERS, NOT_RUN, NO_PUBLISHED)
TOLERANCE = 0.5  # percentage points
MISPRINT = "misprint"  # in a note: the number is shown and judged, but its difference is not held against a run
MEAN = "mean"
SAME = 1e-9  # percentage points: what sums in another order may differ by

# The papers' names for the two figures of class-incremental learning: the mean over the tasks of the accuracy
# after each (Avg), the accuracy after the last (Last). Papers pool samples (avg, last, acc, avg_acc) or weigh tasks
# equally (faa, caa), which is why the names stay apart in the records.
AVG_LAST = {"avg": "Avg", "avg_acc": "Avg", "caa": "Avg", "last": "Last", "acc": "Last", "faa": "Last"}
# What a table shows of a run, besides Transfer: the value after the latest task.
SCALARS = (*AVG_LAST, "transfer", "ffm", "forgetting", "trainable_parameters")

Shown = TypeVar("Shown", "Comparison", "AccuracyMatrix", Record)
Key = tuple[str, str, str, str, str]  # protocol, method, backbone, metric, dataset


@dataclass(frozen=True)
class Comparison:
    """One number of a method under a protocol: what was printed, what was measured, the verdict."""

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


@dataclass(frozen=True)
class AccuracyMatrix:
    """values[t][d]: accuracy on columns[d] after rows[t]; None where no cell is known."""

    paper: str
    protocol: str
    method: str
    backbone: str
    seed: int | None  # None for a published matrix
    source: str  # the run's folder, or the published source
    rows: list[str]  # tasks in the order learned
    columns: list[str]  # data sets, the learned ones first and in order
    values: list[list[float | None]]
    zero_shot: list[float | None] | None  # the row before any task, if known


@dataclass(frozen=True)
class Data:
    """All that the spreadsheet, the figures and the page are made from; of one scale."""

    scale: str  # "paper" or "mini"
    records: list[Record]
    published: list[Published]
    comparisons: list[Comparison]
    provenance: list[Provenance]
    problems: list[Problem]
    curves: list[Published]  # accuracy after each task, from published logs


@dataclass(frozen=True)
class _Measured:
    """One number of one run, as a table shows it."""

    paper: str
    scale: str
    key: Key
    seed: int
    value: float


def compare(published: list[Published], records: list[Record]) -> list[Comparison]:
    """A Comparison for every published number and every measured one that a table would show.

    A run is held against every published number of its protocol, method and backbone, whichever paper printed it;
    an entry without a backbone takes any. Miniature runs are held against none. Cells of accuracy matrices are left
    to `matrices`.
    """
    by_scale: dict[str, dict[Key, list[_Measured]]] = {"paper": {}, "mini": {}}
    for number in _measured(records):
        by_scale[number.scale].setdefault(number.key, []).append(number)
    at_paper_scale, used, comparisons = by_scale["paper"], set(), []
    for entry in published:
        if entry.after_task:
            continue
        keys = [key for key in _keys(entry, at_paper_scale) if key in at_paper_scale]
        used.update(keys)
        numbers = [number for key in keys for number in at_paper_scale[key]]
        comparisons.append(_comparison(entry, numbers))
    for groups in by_scale.values():
        papers: dict[tuple[str, ...], str] = {}  # runs of several papers measure the zero-shot row: it stands once
        for key, numbers in groups.items():
            paper = papers.setdefault(key[:3], numbers[0].paper)
            if key not in used:
                comparisons.append(_unpublished(paper, numbers))
    return in_order(comparisons)


def in_order(items: Iterable[Shown]) -> list[Shown]:
    """Protocols as they first appear, methods of MTIL as `labels.METHODS` has them; all else stays as it is."""
    items = list(items)
    protocols = {name: place for place, name in enumerate(dict.fromkeys(item.protocol for item in items))}

    def place(item: Shown) -> tuple[int, int]:
        return protocols[item.protocol], labels.place(item.method) if item.protocol.startswith("mtil") else 0

    return sorted(items, key=place)


def _keys(entry: Published, measured: dict[Key, list[_Measured]]) -> list[Key]:
    if entry.backbone:
        return [(entry.protocol, entry.method, entry.backbone, entry.metric, entry.dataset)]
    wanted = (entry.protocol, entry.method, entry.metric, entry.dataset)
    return [key for key in measured if (*key[:2], *key[3:]) == wanted]


def tolerance(std: float | None, seeds: int) -> float:
    """How far a mean may lie from the published number and still match: max(0.5, 2 std / sqrt(n))."""
    return TOLERANCE if std is None else max(TOLERANCE, 2 * std / math.sqrt(seeds))


def _over_seeds(numbers: list[_Measured]) -> tuple[float, float | None, int, str]:
    """Mean, std and count over seeds, and a note; runs of one seed count once, as their mean.

    The pre-trained model knows no seed: however many runs measured it, it counts once.
    """
    if numbers[0].key[1] == ZERO_SHOT:
        values = [number.value for number in numbers]
        low, high = min(values), max(values)
        return fmean(values), None, 1, f"{len(values)} runs, {low:.2f} to {high:.2f}" if high - low > SAME else ""
    by_seed: dict[int, list[float]] = {}
    for number in numbers:
        by_seed.setdefault(number.seed, []).append(number.value)
    means = [fmean(values) for values in by_seed.values()]
    repeated = [f"{len(values)} runs of seed {seed}" for seed, values in by_seed.items() if len(values) > 1]
    return fmean(means), stdev(means) if len(means) > 1 else None, len(means), ", ".join(repeated)


def _comparison(entry: Published, numbers: list[_Measured]) -> Comparison:
    mean, std, seeds, repeated = _over_seeds(numbers) if numbers else (None, None, 0, "")
    difference, verdict = None, NOT_RUN
    if mean is not None:
        difference = mean - entry.value
        # rounded at the 9th decimal: 76.2 - 75.7 is a half, though not in binary
        verdict = MATCHES if round(abs(difference), 9) <= tolerance(std, seeds) else DIFFERS
    return Comparison(
        **{name: getattr(entry, name) for name in ("paper", "protocol", "method", "backbone", "metric", "dataset")},
        published=entry.value,
        published_std=entry.std,
        source=entry.source,
        mean=mean,
        std=std,
        seeds=seeds,
        difference=difference,
        verdict=verdict,
        note="; ".join(part for part in (entry.note, repeated) if part),
    )


def _unpublished(paper: str, numbers: list[_Measured]) -> Comparison:
    mean, std, seeds, note = _over_seeds(numbers)
    measured = {"mean": mean, "std": std, "seeds": seeds, "difference": None, "verdict": NO_PUBLISHED, "note": note}
    return Comparison(paper, *numbers[0].key, published=None, published_std=None, source="", **measured)


def _measured(records: list[Record]) -> Iterator[_Measured]:
    """The numbers of each run: scalars as recorded, Transfer / Avg / Last from its matrix, zero-shot accuracies."""
    latest: dict[tuple[str, Key], Record] = {}
    for record in records:
        if record.metric in SCALARS or (record.metric == "accuracy" and record.after_task == 0):
            key = (record.protocol, record.method, record.backbone, record.metric, record.dataset)
            known = latest.get((record.file, key))
            if known is None or record.after_task >= known.after_task:
                latest[record.file, key] = record
    told = set()
    for (file, key), record in latest.items():
        told.add((str(Path(file).parent), key))
        yield _Measured(record.paper, record.scale, key, record.seed, record.value)
    scales = {str(Path(record.file).parent): record.scale for record in records}
    for matrix in matrices(records) + _untrained(records):
        for method, metric, dataset, value in _from_matrix(matrix):
            key = (matrix.protocol, method, matrix.backbone, metric, dataset)
            if (matrix.source, key) not in told:
                yield _Measured(matrix.paper, scales[matrix.source], key, matrix.seed, value)


def _from_matrix(matrix: AccuracyMatrix) -> Iterator[tuple[str, str, str, float]]:
    """(method, metric, data set, value) of what an accuracy matrix of data sets implies."""
    if not matrix.protocol.startswith("mtil"):
        return
    triple = mtil_means(matrix)
    if triple is not None:
        yield from ((matrix.method, *row) for row in _triple_rows(matrix.rows, triple))
    sets = list(task_order(matrix.protocol)) or matrix.rows
    row = (matrix.zero_shot or [])[: len(sets)]
    if row and None not in row and matrix.columns[: len(sets)] == sets:
        yield ZERO_SHOT, "accuracy", MEAN, fmean(row)
        # a model that never learns has the same row after every task
        yield from ((ZERO_SHOT, *told) for told in _triple_rows(sets, mtil_triple([row] * len(row))))


def _triple_rows(sets: list[str], triple: MTILTriple) -> Iterator[tuple[str, str, float]]:
    if len(sets) > 1:
        yield from (("transfer", name, float(value)) for name, value in zip(sets[1:], triple.transfer_per_dataset))
        yield "transfer", MEAN, triple.transfer
    for metric, values, mean in (
        ("avg", triple.avg_per_dataset, triple.avg),
        ("last", triple.last_per_dataset, triple.last),
    ):
        yield from ((metric, name, float(value)) for name, value in zip(sets, values))
        yield metric, MEAN, mean


def mtil_means(matrix: AccuracyMatrix) -> MTILTriple | None:
    """Transfer, Avg and Last of the learned data sets, unrounded; None when a task or a cell of theirs is missing."""
    count, order = len(matrix.rows), task_order(matrix.protocol)
    cells = [row[:count] for row in matrix.values]
    unfinished = bool(order) and tuple(matrix.rows) != order
    if not count or unfinished or matrix.columns[:count] != matrix.rows or any(None in row for row in cells):
        return None
    return mtil_triple(cells)


def matrices(records: list[Record]) -> list[AccuracyMatrix]:
    """The measured accuracy matrices, one a (run folder, protocol, method, seed).

    A class-incremental run that recorded the accuracy on each task has these as columns, not their pooled test images.
    """
    runs: dict[tuple[str, str, str, str, int], list[Record]] = {}
    learned: dict[str, dict[int, str]] = {}  # folder -> after which task -> the set learned
    zero_shot: dict[tuple[str, int], dict[str, float]] = {}
    for record in records:
        folder = str(Path(record.file).parent)
        if record.metric == "train_seconds":
            learned.setdefault(folder, {})[record.after_task] = record.dataset
        elif record.metric == "accuracy" and record.after_task == 0:
            zero_shot.setdefault((folder, record.seed), {})[record.dataset] = record.value
        elif record.metric in ("accuracy", "task_accuracy"):
            about = (folder, record.protocol, record.method, record.backbone, record.seed)
            runs.setdefault(about, []).append(record)
    return in_order(
        _matrix(
            (lines[0].paper, protocol, method, backbone, seed, folder),
            *_cells(lines, learned.get(folder, {})),
            zero_shot.get((folder, seed)),
        )
        for (folder, protocol, method, backbone, seed), lines in runs.items()
    )


def _cells(lines: list[Record], learned: dict[int, str]) -> tuple[dict[tuple[int, str], float], dict[int, str]]:
    """The cells of a run by (after task, column), and what each task learned."""
    by_task = [line for line in lines if line.metric == "task_accuracy"]
    if by_task:  # a task is first tested when it is learned
        learned = dict(enumerate(dict.fromkeys(line.dataset for line in by_task), start=1))
    return {(line.after_task, line.dataset): line.value for line in by_task or lines}, learned


def _untrained(records: list[Record]) -> list[AccuracyMatrix]:
    """The zero-shot rows of runs that learned nothing: matrices without a row."""
    cells = [record for record in records if record.metric == "accuracy"]
    trained = {str(Path(record.file).parent) for record in cells if record.after_task > 0}
    rows: dict[tuple[str, str, str, str, int, str], dict[str, float]] = {}
    for record in cells:
        folder = str(Path(record.file).parent)
        if folder not in trained:
            about = (record.paper, record.protocol, record.method, record.backbone, record.seed, folder)
            rows.setdefault(about, {})[record.dataset] = record.value
    return [
        AccuracyMatrix(*about, rows=[], columns=list(sets), values=[], zero_shot=[row.get(name) for name in sets])
        for about, row in rows.items()
        if (sets := task_order(about[1]))
    ]


def published_matrices(published: list[Published]) -> list[AccuracyMatrix]:
    """The published accuracy matrices, one a (paper, protocol, method)."""
    found: dict[tuple[str, str, str], list[Published]] = {}
    zero_shot: dict[tuple[str, str], dict[str, float]] = {}
    for entry in published:
        if entry.metric == "accuracy" and entry.after_task:
            found.setdefault((entry.paper, entry.protocol, entry.method), []).append(entry)
        elif entry.method == ZERO_SHOT and entry.metric == "last" and entry.dataset != MEAN:
            zero_shot.setdefault((entry.paper, entry.protocol), {})[entry.dataset] = entry.value
    return [
        _matrix(
            (paper, protocol, method, entries[0].backbone, None, entries[0].source),
            {(entry.after_task, entry.dataset): entry.value for entry in entries},
            {},
            zero_shot.get((paper, protocol)),
        )
        for (paper, protocol, method), entries in found.items()
    ]


def task_order(protocol: str) -> tuple[str, ...]:
    """The data sets of a sequence in the order learned; () where the protocol's name does not fix it."""
    if protocol.startswith("mtil-order1"):
        return MTIL_ORDER_1
    return MTIL_ORDER_2 if protocol.startswith("mtil-order2") else ()


def _matrix(
    about: tuple[str, str, str, str, int | None, str],
    cells: dict[tuple[int, str], float],
    learned: dict[int, str],
    zero_shot: dict[str, float] | None,
) -> AccuracyMatrix:
    paper, protocol, method, backbone, seed, source = about
    tasks = sorted({task for task, _ in cells})
    names = dict(enumerate(task_order(protocol), start=1)) or learned
    rows = [names.get(task, f"task {task}") for task in tasks]
    columns = _in_order([name for _, name in sorted(names.items())], [dataset for _, dataset in cells])
    values = [[cells.get((task, name)) for name in columns] for task in tasks]
    before = [zero_shot.get(name) for name in columns] if zero_shot else None
    return AccuracyMatrix(paper, protocol, method, backbone, seed, source, rows, columns, values, before)


def _in_order(first: Iterable[str], present: Iterable[str]) -> list[str]:
    """The distinct names of `present`, those of `first` leading in its order."""
    present = list(dict.fromkeys(present))
    leading = [name for name in dict.fromkeys(first) if name in present]
    return leading + [name for name in present if name not in leading]
