"""The cheapest check of a method on MTIL: its accuracies after the first task beside the published ones.

One task of a run decides it: the first row of the accuracy matrix, of which ZSCL's released matrices hold one for each
method and order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from common.errors import UserError
from common.protocols import Protocol
from results import labels
from results.compare import grouped, tolerance
from results.published import Published
from results.records import Record
from results.terminal import aligned

ALL = "all"
Row = dict[str, float]  # data set -> accuracy in percent


@dataclass(frozen=True)
class FirstRow:
    """Accuracies after the first task, by data set in task order, beside published rows."""

    record: Record  # a line of the run
    protocol: str  # of the published rows
    ours: Row
    shown: dict[str, Row]  # the published rows asked for, by method
    nearest: str  # the method of the nearest published row, and the mean absolute difference, in words

    @property
    def differs(self) -> bool:
        """Whether every published row shown differs on some data set."""
        return all(differing(self.ours, row) for row in self.shown.values())


def first_row(
    folder: Path, records: list[Record], published: list[Published], methods: list[str] | None = None
) -> FirstRow:
    """The first row of the run in `folder`, whose good lines are `records`, beside published ones.

    The first task alone decides a row, so the run of another sequence that begins as a published one has its row.

    methods: the published rows to show; None for that of the run's method, whatever its settings; ["all"] for every
    row. Raises UserError for no run, more than one, a miniature, a missing cell, and when no row was published to
    compare with.
    """
    cells = _only_run(folder, [line for line in records if line.metric == "accuracy" and line.after_task == 1])
    record = cells[0]
    protocol, rows = _published_rows(published, record)
    own = [name for name in rows if f"{record.method}, ".startswith(f"{name}, ")]
    names = list(rows) if methods == [ALL] else methods or [max(own, key=len, default=record.method)]
    _check_methods(names, rows, record, protocol)
    accuracies = {line.dataset: line.value for line in cells}
    sets = Protocol.parse(protocol).order
    if missing := [name for name in sets if name not in accuracies]:
        raise UserError(
            f"{record.file} lacks {labels.count(len(missing), 'cell')} of the row after task 1: {', '.join(missing)}. "
            "Evaluate the first checkpoint on these data sets."
        )
    ours = {name: accuracies[name] for name in sets}
    nearest = min(rows, key=lambda name: distance(ours, rows[name]))
    nearest += f" (mean |diff| {distance(ours, rows[nearest]):.2f})"
    return FirstRow(record, protocol, ours, {name: rows[name] for name in names}, nearest)


def differences(ours: Row, theirs: Row) -> Row:
    """Ours less the published, by data set, in percentage points."""
    return {name: value - theirs[name] for name, value in ours.items()}


def distance(ours: Row, theirs: Row) -> float:
    """The mean over the data sets of the absolute difference, in percentage points."""
    return fmean(abs(value) for value in differences(ours, theirs).values())


def differing(ours: Row, theirs: Row) -> list[str]:
    """The data sets on which two rows differ by more than the tolerance of one run; rounded as verdicts are."""
    return [name for name, value in differences(ours, theirs).items() if round(abs(value), 9) > tolerance(None, 1)]


def _only_run(folder: Path, cells: list[Record]) -> list[Record]:
    """The cells, if they are of a single run at paper scale; UserError if not."""
    if not cells:
        raise UserError(
            f"{folder} holds no accuracy after task 1. Give the folder of a run whose first checkpoint was evaluated."
        )
    if not all(labels.SCALES[line.scale].compares for line in cells):
        raise UserError(
            f"{folder} is a miniature run: its images are not the paper's, so its numbers are never held against "
            "published ones. Give a run at paper scale."
        )
    if len(files := sorted({line.file for line in cells})) > 1:
        raise UserError(f"{folder} holds {len(files)} runs: {', '.join(files)}. Give one of them.")
    return cells


def _published_rows(published: Iterable[Published], record: Record) -> tuple[str, dict[str, Row]]:
    """The protocol that begins as the run's, and its published rows after task 1 by method; UserError for none."""
    entries = [entry for entry in published if entry.metric == "accuracy" and entry.after_task == 1]
    alike = [entry for entry in entries if entry.backbone in ("", record.backbone)
             and _first_task(entry.protocol) == _first_task(record.protocol)]  # fmt: skip
    if not alike:
        settings = sorted({f"{entry.protocol} with {entry.backbone}" for entry in entries})
        raise UserError(
            f"no row after task 1 was published for {record.protocol} with {record.backbone}, only for "
            f"{', '.join(settings)}. `python -m results verify` compares what else was published."
        )
    rows = {method: {entry.dataset: entry.value for entry in same} for method, same in grouped(alike, "method").items()}
    return alike[0].protocol, rows


def _first_task(name: str) -> tuple[object, ...]:
    protocol = Protocol.parse(name)
    return protocol.kind, protocol.order[:1], protocol.shots, protocol.splits


def _check_methods(names: list[str], rows: dict[str, Row], record: Record, protocol: str) -> None:
    """Raise UserError for a method without a published row; it names the methods that have one."""
    if unknown := [name for name in names if name not in rows]:
        run = f" The run's method is {record.method}." if record.method not in rows else ""
        raise UserError(
            f"no row after task 1 was published for {', '.join(unknown)} under {protocol}.{run} "
            f"Name a published one with --method: {', '.join(rows)}, or {ALL}."
        )


def as_text(row: FirstRow) -> str:
    """The row as an aligned table: ours, then each published row and its difference."""
    record, note = row.record, f" ({row.record.note})" if row.record.note else ""
    title = f"{record.file}: after {next(iter(row.ours))}, {labels.protocol(record.protocol)}, seed {record.seed}{note}"
    title += "" if row.protocol == record.protocol else f", beside the first row of {labels.protocol(row.protocol)}"
    lines = [["", *(f"{name:>6}" for name in row.ours), "mean |diff|"]]  # no column narrower than +00.00
    lines.append([f"ours {record.method}", *(f"{value:.2f}" for value in row.ours.values()), ""])
    for method, theirs in row.shown.items():
        numbers = [f"{value:+.2f}" for value in differences(row.ours, theirs).values()]
        lines.append([f"published {method}", *(f"{theirs[name]:.2f}" for name in row.ours), ""])
        lines.append(["difference", *numbers, f"{distance(row.ours, theirs):.2f}"])
    heads, ours, *others = aligned(lines, "<>")
    pairs = [line for place, text in enumerate(others) for line in ([text] if place % 2 else ["", text])]
    verdicts = [f"{method}: {_verdict(row.ours, theirs)}" for method, theirs in row.shown.items()]
    return "\n".join([title, "", heads, ours, *pairs, "", *verdicts, f"nearest published row: {row.nearest}"])


def _verdict(ours: Row, theirs: Row) -> str:
    away, allowed = differing(ours, theirs), tolerance(None, 1)
    if not away:
        return f"matches, within {allowed} on all {len(ours)}"
    return f"differs by more than {allowed} on {len(away)} of {len(ours)} ({', '.join(away)})"
