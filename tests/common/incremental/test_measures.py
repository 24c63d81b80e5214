"""What common ground records of a run, by hand: three tasks with test sets of 4, 2 and 2 images."""

from pathlib import Path

import pytest
import torch

from common.evaluation.report import task_accuracy_lines
from common.files import metric_lines
from common.incremental.measures import common_metrics, is_common, numel
from common.runs import Run

LABELS = {"paper": "zscl", "method": "ZSCL", "backbone": "mini", "scale": "mini", "seed": 0}
ROWS = [[75.0], [50.0, 100.0], [25.0, 50.0, 100.0]]  # accuracy on each task after each
POOLED = [75.0, (2 + 2) / 6 * 100, (1 + 1 + 2) / 8 * 100]
WITH_TASK = [75.0, 5 / 6 * 100, 7 / 8 * 100]
UNSEEN = [25.0, 50.0, None]


def recorded(folder: Path, protocol: str) -> list[dict[str, float]]:
    """Values after each of the three tasks, each recorded before the next one's are asked for."""
    run, found = Run(folder, {}, LABELS | {"protocol": protocol}), []
    for task, by_task in enumerate(ROWS):
        values = common_metrics(run, POOLED[task], WITH_TASK[task], by_task, 1000 + task, 30 * task, UNSEEN[task])
        run.record([*metric_lines("Characters", task + 1, values), *task_accuracy_lines(by_task)])
        found.append(values)
    return found


def test_by_hand(tmp_path: Path) -> None:
    first, second, last = recorded(tmp_path, "common-characters-3x4")
    assert first == {
        "accuracy": 75, "accuracy_with_task": 75, "forgetting": 0, "unseen_accuracy": 25, "total_parameters": 1000,
        "stored_floats": 0,
    }  # fmt: skip
    assert second == pytest.approx(first | {
        "accuracy": 200 / 3, "accuracy_with_task": 250 / 3, "forgetting": 75 - 50, "unseen_accuracy": 50,
        "total_parameters": 1001, "stored_floats": 30,
    })  # fmt: skip
    assert last == pytest.approx({
        "accuracy": 50, "accuracy_with_task": 87.5, "forgetting": ((75 - 25) + (100 - 50)) / 2,
        "avg": (75 + 200 / 3 + 50) / 3, "last": 50, "avg_unseen_accuracy": (25 + 50) / 2, "total_parameters": 1002,
        "stored_floats": 60,
    })  # fmt: skip


def test_a_run_that_records_again_counts_no_later_task(tmp_path: Path) -> None:
    """The checkpoint of the first task is tested once more, beside the numbers of all three."""
    recorded(tmp_path, "common-characters-3x4")
    run = Run(tmp_path, {}, LABELS | {"protocol": "common-characters-3x4"})
    assert common_metrics(run, 10, 20, [10], 5, 6)["forgetting"] == 0
    assert common_metrics(run, 50, 20, [25, 50, 100], 5, 6)["avg"] == pytest.approx((75 + 200 / 3 + 50) / 3)


def test_a_papers_own_protocol_records_none_of_it(tmp_path: Path) -> None:
    assert recorded(tmp_path, "cil-characters-3x4") == [{}, {}, {}]
    assert not is_common(Run(tmp_path / "other", {}, LABELS | {"protocol": "til-characters-3x4"}))


def test_numel() -> None:
    assert numel([torch.zeros(2, 3), torch.zeros(4), torch.zeros(0, 7), torch.tensor(1.0)]) == 6 + 4 + 0 + 1
