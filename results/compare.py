"""Published and measured numbers side by side, and what may be said of them."""

from dataclasses import dataclass

from results.collect import Record
from results.published import Published

MATCHES, DIFFERS, NOT_RUN, NO_PUBLISHED = "matches", "differs", "not run", "no published value"
VERDICTS = (MATCHES, DIFFERS, NOT_RUN, NO_PUBLISHED)


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
    std: float | None  # over seeds, None for fewer than two
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
    seed: int | None  # None for a published matrix
    source: str  # the run's record.jsonl, or the published source
    rows: list[str]  # tasks in the order learned
    columns: list[str]  # data sets, the learned ones first and in order
    values: list[list[float | None]]
    zero_shot: list[float | None] | None  # the row before any task, if known


def compare(published: list[Published], records: list[Record]) -> list[Comparison]:
    """A Comparison for every published number and every measured one that a table would show."""
    raise NotImplementedError


def matrices(records: list[Record]) -> list[AccuracyMatrix]:
    """The measured accuracy matrices, one a (protocol, method, run)."""
    raise NotImplementedError


def published_matrices(published: list[Published]) -> list[AccuracyMatrix]:
    """The published accuracy matrices, one a (protocol, method)."""
    raise NotImplementedError
