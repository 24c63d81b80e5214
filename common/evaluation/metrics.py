"""Every metric of the papers, from accuracies or predictions, in float64; only the `decimals` of a call round.

Accuracy matrices have a row for each task learned and a column for each task tested; VQ-Prompt's
(`vq_prompt_metrics`) is the transpose, as in its code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # `results` reads matrices without importing torch
    from torch import Tensor


def _square(matrix: ArrayLike) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"expected a square accuracy matrix, got shape {matrix.shape}")
    return matrix


@dataclass(frozen=True)
class MTILTriple:
    """Transfer, Avg and Last of a task sequence, each by data set and as a mean over data sets."""

    transfer_per_dataset: np.ndarray  # (N - 1,): the first data set has no Transfer
    transfer: float  # nan for a sequence of one
    avg_per_dataset: np.ndarray  # (N,)
    avg: float
    last_per_dataset: np.ndarray  # (N,)
    last: float


def mtil_triple(accuracy_matrix: ArrayLike) -> MTILTriple:
    """The MTIL metrics of A (N, N), A[t, i] the accuracy on data set i after task t, data sets in task order.

    Transfer of data set i is the mean over the tasks before i was learned; the total is the mean of these
    means, not of all cells above the diagonal. The zero-shot row before the first task is no part of A.
    ZSCL (arXiv 2303.06628), mtil/results.ipynb. Raises ValueError if A is not square.
    """
    matrix = _square(accuracy_matrix)
    transfer = np.array([matrix[:i, i].mean() for i in range(1, len(matrix))])
    avg, last = matrix.mean(axis=0), matrix[-1].copy()
    total = float(transfer.mean()) if transfer.size else math.nan
    return MTILTriple(transfer, total, avg, float(avg.mean()), last, float(last.mean()))


class CILStep(NamedTuple):
    """Test after a class-incremental task, on all samples of the tasks seen so far; each array (n,)."""

    predictions: ArrayLike
    labels: ArrayLike
    task_ids: ArrayLike
    within_task: ArrayLike = ()  # predictions among the classes of the sample's own task; () where nobody asked


def accuracy_with_task(step: CILStep) -> float:
    """Accuracy in percent over all samples, the class chosen among those of the sample's own task."""
    return 100.0 * float(np.mean(np.asarray(step.within_task) == np.asarray(step.labels)))


def _hits(step: CILStep) -> np.ndarray:
    return np.asarray(step.predictions) == np.asarray(step.labels)


@dataclass(frozen=True)
class CILSummary:
    """Class-incremental accuracy in percent, samples pooled over the tasks seen."""

    acc: np.ndarray  # (K,) after each step
    avg_acc: np.ndarray  # (K,) mean of acc up to each step
    last: float  # acc after the last step
    avg: float  # mean of acc


def cil_summary(steps: Sequence[CILStep]) -> CILSummary:
    """Pooled accuracy after each of K steps, its running mean, Last and Avg (ZSCL cil/main.py:L38-L74)."""
    acc = np.array([100.0 * np.mean(_hits(step)) for step in steps])
    avg_acc = acc.cumsum() / np.arange(1, len(acc) + 1)
    return CILSummary(acc, avg_acc, float(acc[-1]), float(acc.mean()))


def task_accuracies(steps: Sequence[CILStep]) -> np.ndarray:
    """R (K, K) in percent, R[k, j] the accuracy on task j's samples after step k; nan above the diagonal."""
    return 100.0 * task_hit_rates(steps)


def task_hit_rates(steps: Sequence[CILStep]) -> np.ndarray:
    """`task_accuracies` as fractions. Raises ValueError if a seen task has no sample in a step."""
    matrix = np.full((len(steps), len(steps)), np.nan)
    for k, step in enumerate(steps):
        hits, tasks = _hits(step), np.asarray(step.task_ids)
        for j in range(k + 1):
            if not (tasks == j).any():
                raise ValueError(f"step {k} has no test sample of task {j}")
            matrix[k, j] = hits[tasks == j].mean()
    return matrix


def forgetting_continuum(task_matrix: ArrayLike) -> np.ndarray:
    """Forgetting after each of K steps (K,), from R[k, j], j <= k, in R's unit; 0 after the first.

    At step k the mean over earlier tasks j of (max of R[l, j] over j <= l < k) - R[k, j]: the standard definition, as
    in current Continvvm/continuum, InfLoRA and VQ-Prompt.
    """
    matrix = _square(task_matrix)
    values = [np.mean([matrix[j:k, j].max() - matrix[k, j] for j in range(k)]) for k in range(1, len(matrix))]
    return np.array([0.0, *values])


def backward_transfer_continuum(task_matrix: ArrayLike) -> np.ndarray:
    """Backward transfer after each of K steps (K,), from R[k, j], j <= k, in R's unit; 0 after the first.

    At step k the mean of R[i, j] - R[j, j] over all j < i <= k.
    """
    matrix = _square(task_matrix)
    gains = np.tril(matrix - np.diag(matrix), k=-1)
    return np.array([gains[: k + 1].sum() / max(1, k * (k + 1) / 2) for k in range(len(matrix))])


@dataclass(frozen=True)
class ReleasedCILLog:
    """`forgetting`, `bwt` and `fwt` as the released class-incremental runs logged them, each (K,)."""

    forgetting: np.ndarray
    bwt: np.ndarray
    fwt: np.ndarray


def released_cil_log(task_matrix: ArrayLike) -> ReleasedCILLog:
    """The sums of continuum up to 1.2, which ZSCL and MoE-Adapters logged, from R[k, j], j <= k, in R's unit.

    They serve to compare with published logs: `forgetting` leaves out the latest old task and the latest earlier
    step, `bwt` the pairs j = i - 1, both with the full divisor; `fwt` is the mean accuracy on past tasks.
    Continvvm/continuum continuum/metrics/metrics.py at v1.2.0 and 1.2.7.

    For fractions the values equal the originals' bit for bit, since the terms are added in the same order: logged
    values often lie halfway between two roundings, so the last bit decides.
    """
    matrix = _square(task_matrix)
    steps = range(len(matrix))
    pairs = [max(1, k * (k + 1) / 2) for k in steps]
    fallen = [sum(matrix[j : k - 1, j].max() - matrix[k, j] for j in range(k - 1)) for k in steps]
    gained, past = [0.0], [0.0]
    for k in steps[1:]:
        gained.append(sum((matrix[k, j] - matrix[j, j] for j in range(k - 1)), start=gained[-1]))
        past.append(sum(matrix[k, :k], start=past[-1]))
    return ReleasedCILLog(
        np.array([fallen[k] / max(1, k) for k in steps]),
        np.array([gained[k] / pairs[k] for k in steps]),
        np.array([past[k] / pairs[k] for k in steps]),
    )


def inflora_grouped(
    predictions: ArrayLike, labels: ArrayLike, old_classes: int, increment: int, decimals: int | None = None
) -> dict[str, float]:
    """Accuracy in percent over all samples, by group of `increment` classes ("00-09", ...), `old` and `new`.

    `old` are the labels below `old_classes` (0 if there are none), `new` the rest. `decimals=2` rounds as for the
    paper's curves. Groups start below the highest label, so a last group of one class has no entry; a group without
    samples is nan. InfLoRA (arXiv 2404.00228), utils/toolkit.py:L28-L52.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)

    def percent(members: np.ndarray) -> float:
        if not members.any():
            return math.nan
        value = (predictions == labels)[members].sum() * 100.0 / members.sum()
        return float(value if decimals is None else np.around(value, decimals))

    values = {"total": percent(np.ones(len(labels), dtype=bool))}
    for first in range(0, int(labels.max()), increment):
        members = (labels >= first) & (labels < first + increment)
        values[f"{first:02d}-{first + increment - 1:02d}"] = percent(members)
    old = labels < old_classes
    return values | {"old": percent(old) if old.any() else 0.0, "new": percent(~old)}


@dataclass(frozen=True)
class VQPromptMetrics:
    """VQ-Prompt's metrics, in the unit of the matrix; tasks weigh equally."""

    average: np.ndarray  # (T,) A_i: mean over the tasks seen after task i
    faa: float  # final average accuracy, A of the last task
    caa: float  # cumulative average accuracy, mean of A
    forgetting: np.ndarray  # (T,) after each task, 0 after the first
    ffm: float  # final forgetting measure, forgetting after the last task


def vq_prompt_metrics(task_matrix: ArrayLike) -> VQPromptMetrics:
    """FAA, CAA and FFM of R (T, T), R[j, i] the accuracy on task j after task i: rows are the tasks tested.

    Its forgetting is `forgetting_continuum`. VQ-Prompt (arXiv 2410.20444), trainer.py:L244-L282, utils/metric.py.
    """
    matrix = np.triu(_square(task_matrix))
    average = np.array([matrix[: i + 1, i].mean() for i in range(len(matrix))])
    forgetting = forgetting_continuum(matrix.T)
    faa, caa, ffm = average[-1], average.mean(), forgetting[-1]
    return VQPromptMetrics(average, float(faa), float(caa), forgetting, float(ffm))


def over_repeats(values: ArrayLike) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0): VQ-Prompt's report of repeats (run.py:L206-L224)."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=0))


def mask_task(logits: "Tensor", task_id: int, classes_per_task: int) -> "Tensor":
    """A copy of the logits (N, C) with -inf outside the classes of one task (ALTA utils/mask4taskil.py)."""
    first = task_id * classes_per_task
    masked = logits.new_full(logits.shape, -math.inf)
    masked[:, first : first + classes_per_task] = logits[:, first : first + classes_per_task]
    return masked


def class_and_task_il(logits: "Tensor", labels: "Tensor", task_id: int, classes_per_task: int) -> tuple[float, float]:
    """Class-IL and task-IL accuracy of a task's samples: logits (N, C), labels (N,); fractions, unrounded.

    Class-IL takes the best of all classes, task-IL the best of this task's classes. ALTA reports the mean over the
    tasks seen, tasks weighing equally (main.py:L104-L124).
    """
    best = (logits.argmax(dim=1), mask_task(logits, task_id, classes_per_task).argmax(dim=1))
    class_il, task_il = (int((choice == labels).sum()) / len(labels) for choice in best)
    return class_il, task_il


def forgetting_alta(task_matrix: ArrayLike) -> float:
    """ALTA's forgetting, from R[t, i], i <= t, the accuracy on task i after task t, of T tasks.

    The mean over i < T - 1 of max_t R[t, i] - R[T - 1, i]; the maximum includes the last row, so no term is negative
    (aimagelab/mammoth utils/metrics.py). Raises ValueError for a single task.
    """
    matrix = _older_columns(task_matrix)
    return float((np.nanmax(matrix, axis=0) - matrix[-1]).mean())


def backward_transfer_alta(task_matrix: ArrayLike) -> float:
    """Mean over i < T - 1 of R[T - 1, i] - R[i, i], R as in `forgetting_alta`. Raises ValueError for a single task."""
    matrix = _older_columns(task_matrix)
    return float((matrix[-1] - np.diagonal(matrix)).mean())


def _older_columns(task_matrix: ArrayLike) -> np.ndarray:
    matrix = _square(task_matrix)
    if len(matrix) < 2:
        raise ValueError("forgetting and backward transfer need two tasks")
    return np.where(np.tri(len(matrix), dtype=bool), matrix, np.nan)[:, :-1]
