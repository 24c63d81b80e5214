"""The cheapest check of a method on MTIL: its accuracies after the first task beside the published ones.

One task of a run decides it: the first row of the accuracy matrix, of which ZSCL's released matrices hold one for each
method and order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from common.errors import UserError
from results import labels
from results.collect import Record
from results.compare import task_order, tolerance
from results.published import Published

ALL = "all"
Row = dict[str, float]  # data set -> accuracy in percent


@dataclass(frozen=True)
class FirstRow:
    """Accuracies after the first task, by data set in task order, beside the published rows asked for."""

    run: str  # the record file
    protocol: str
    method: str
    seed: int
    ours: Row
    shown: dict[str, Row]  # the published rows asked for, by method
    nearest: tuple[str, float]  # of all published rows: its method and mean absolute difference

    def differing(self, method: str) -> list[str]:
        """The data sets on which a published row lies further away than one run may."""
        allowed = tolerance(None, 1)
        # rounded at the 9th decimal, as the verdicts are
        return [name for name, value in differences(self.ours, self.shown[method]).items()
                if round(abs(value), 9) > allowed]  # fmt: skip

    @property
    def differs(self) -> bool:
        """Whether every row shown differs somewhere: with one row, whether it does."""
        return all(self.differing(method) for method in self.shown)


def first_row(
    folder: Path, records: list[Record], published: list[Published], methods: list[str] | None = None
) -> FirstRow:
    """The first row of the run in `folder`, whose good lines are `records`, beside published ones.

    methods: the published rows to show; None for that of the run's own method, ["all"] for every one. Raises UserError
    when there is no run, more than one, a miniature, a cell missing, or no published row to hold it against.
    """
    cells = _only_run(folder, [line for line in records if line.metric == "accuracy" and line.after_task == 1])
    about = cells[0]
    rows = _published_rows(published, about.protocol, about.backbone)
    names = list(rows) if methods == [ALL] else methods or [about.method]
    _check_methods(names, rows, about)
    sets = task_order(about.protocol)
    found = {line.dataset: line.value for line in cells}
    if missing := [name for name in sets if name not in found]:
        raise UserError(
            f"{about.file} lacks {labels.count(len(missing), 'cell')} of the row after task 1: {', '.join(missing)}. "
            "Evaluate the first checkpoint on these data sets."
        )
    ours = {name: found[name] for name in sets}
    distances = {name: distance(ours, row) for name, row in rows.items()}
    nearest = min(distances.items(), key=lambda item: item[1])
    shown = {name: rows[name] for name in names}
    return FirstRow(about.file, about.protocol, about.method, about.seed, ours, shown, nearest)


def differences(ours: Row, theirs: Row) -> Row:
    """Ours less the published, by data set, in percentage points."""
    return {name: value - theirs[name] for name, value in ours.items()}


def distance(ours: Row, theirs: Row) -> float:
    """The mean over the data sets of the absolute difference, in percentage points."""
    return fmean(abs(value) for value in differences(ours, theirs).values())


def _only_run(folder: Path, cells: list[Record]) -> list[Record]:
    """The cells of the only run among them, which is at paper scale."""
    if not cells:
        raise UserError(
            f"{folder} holds no accuracy after task 1. Give the folder of a run whose first checkpoint was evaluated."
        )
    if any(line.scale == "mini" for line in cells):
        raise UserError(
            f"{folder} is a miniature run: its images are not the paper's, so its numbers are never held against "
            "published ones. Give a run at paper scale."
        )
    if len(files := sorted({line.file for line in cells})) > 1:
        raise UserError(f"{folder} holds {len(files)} runs: {', '.join(files)}. Give one of them.")
    return cells


def _published_rows(published: Iterable[Published], protocol: str, backbone: str) -> dict[str, Row]:
    """The rows after task 1 by method; UserError when none was published."""
    entries = [entry for entry in published if entry.metric == "accuracy" and entry.after_task == 1]
    rows: dict[str, Row] = {}
    for entry in entries:
        if entry.protocol == protocol and entry.backbone in ("", backbone):
            rows.setdefault(entry.method, {})[entry.dataset] = entry.value
    if not rows:
        known = sorted({f"{entry.protocol} with {entry.backbone}" for entry in entries})
        raise UserError(
            f"no row after task 1 was published for {protocol} with {backbone}, only for {', '.join(known)}. "
            "`python -m results verify` compares what else was published."
        )
    return rows


def _check_methods(names: list[str], rows: dict[str, Row], about: Record) -> None:
    """UserError for a method without a published row, with those that have one."""
    if unknown := [name for name in names if name not in rows]:
        run = f" The run's method is {about.method}." if about.method not in rows else ""
        raise UserError(
            f"no row after task 1 was published for {', '.join(unknown)} under {about.protocol}.{run} "
            f"Name a published one with --method: {', '.join(rows)}, or {ALL}."
        )


def as_text(row: FirstRow) -> str:
    """The row as an aligned table: ours, then each published row and its difference."""
    label = max(len("difference"), *(len(f"published {name}") for name in row.shown), len(f"ours {row.method}")) + 2
    heads = [*row.ours, "mean |diff|"]
    widths = [max(len(head), len("+00.00")) + 2 for head in heads]

    def line(title: str, values: Iterable[float], sign: str = "", last: str = "") -> str:
        numbers = [f"{value:{sign}.2f}" for value in values]
        return (f"{title:<{label}}" + right([*numbers, last])).rstrip()

    def right(texts: list[str]) -> str:
        return "".join(f"{text:>{width}}" for text, width in zip(texts, widths))

    lines = [f"{row.run}: after {next(iter(row.ours))}, {labels.protocol(row.protocol)}, seed {row.seed}", ""]
    lines += [" " * label + right(heads), line(f"ours {row.method}", row.ours.values())]
    for method, theirs in row.shown.items():
        far = f"{distance(row.ours, theirs):.2f}"
        lines += ["", line(f"published {method}", (theirs[name] for name in row.ours))]
        lines.append(line("difference", differences(row.ours, theirs).values(), "+", far))
    lines += ["", *(_verdict(row, method) for method in row.shown)]
    lines.append(f"nearest published row: {row.nearest[0]} (mean |diff| {row.nearest[1]:.2f})")
    return "\n".join(lines)


def _verdict(row: FirstRow, method: str) -> str:
    away, allowed = row.differing(method), tolerance(None, 1)
    if not away:
        return f"{method}: matches, within {allowed} on all {len(row.ours)}"
    return f"{method}: differs by more than {allowed} on {len(away)} of {len(row.ours)} ({', '.join(away)})"
