"""What every class-incremental program records on common ground, whatever its paper's own metrics are."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from torch import Tensor

from common.evaluation.metrics import forgetting_continuum
from common.evaluation.report import task_accuracy_matrix
from common.incremental.common_ground import COMMON
from common.protocols import Protocol
from common.runs import Run


def is_common(run: Run) -> bool:
    """Whether the run's protocol is a common one."""
    return Protocol.parse(run.labels["protocol"]).kind == COMMON


def numel(tensors: Iterable[Tensor]) -> int:
    """Number of entries of all these tensors."""
    return sum(tensor.numel() for tensor in tensors)


def common_metrics(
    run: Run,
    accuracy: float,
    accuracy_with_task: float,
    by_task: Sequence[float],
    total_parameters: int,
    stored_floats: int,
    unseen_accuracy: float | None = None,
) -> dict[str, float]:
    """Values by metric after the latest task; {} where the run's protocol is another. Accuracies in percent.

    accuracy: of all test images of the classes seen, pooled, among these classes; accuracy_with_task: among the classes
    of the image's own task; unseen_accuracy: of the test images of the classes not seen yet, among those. by_task:
    the row R[t, 0 .. t] of the accuracy matrix, from which `forgetting` follows (`forgetting_continuum`; 0 at first).
    After the last task also the means over tasks, `avg` and `avg_unseen_accuracy`, and `last`.

    total_parameters: of all modules that the method answers with, backbone included; branches, merged ones too, prompts
    and the contexts of earlier tasks are parameters. stored_floats: what else it keeps from task to task to learn or
    answer with: pixels of exemplars (3 R R each, an image once), stored features and logits, statistics of classes,
    bases of gradient spaces. No caches, which could be computed again, no teachers, no state of an optimiser.
    """
    if not is_common(run):
        return {}
    after_task, protocol = len(by_task), run.labels["protocol"]

    def earlier(metric: str) -> list[float]:
        lines = run.find(metric=metric, protocol=protocol)
        return [line["value"] for line in lines if line["after_task"] < after_task]

    matrix = task_accuracy_matrix(run, after_task, protocol=protocol)
    matrix[-1] = by_task
    values = {"accuracy": accuracy, "accuracy_with_task": accuracy_with_task}
    values["forgetting"] = float(forgetting_continuum(matrix)[-1])
    if unseen_accuracy is not None:
        values["unseen_accuracy"] = unseen_accuracy
    if after_task == Protocol.parse(protocol).length:
        values |= {"avg": fmean([*earlier("accuracy"), accuracy]), "last": accuracy}
        if unseen := earlier("unseen_accuracy"):
            values["avg_unseen_accuracy"] = fmean(unseen)
    return values | {"total_parameters": total_parameters, "stored_floats": stored_floats}
