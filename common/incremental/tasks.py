"""For every sequence of tasks: a task's random streams, its file, and the tasks that a resumed run has left."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def stream_seed(seed: int, task_id: int, purpose: str = "training", purposes: Sequence[str] = ("training",)) -> int:
    """Seed of the random stream for one of a paper's `purposes` in one task.

    The stream depends on nothing drawn before, so resume is exact.
    """
    return (seed * 1_000 + task_id) * len(purposes) + purposes.index(purpose)


def task_path(folder: Path, task_id: int) -> Path:
    """task_<k>.pth in a run's folder, tasks counted from 0."""
    return folder / f"task_{task_id}.pth"


def unfinished_tasks(count: int, is_finished: Callable[[int], bool], read_task: Callable[[int], Any]) -> range:
    """Ids of the tasks of `count` that are still to be learned or tested.

    `read_task` restores the state after the last finished task, unless none or all are finished.
    """
    done = next((task_id for task_id in range(count) if not is_finished(task_id)), count)
    if 0 < done < count:
        read_task(done - 1)
    return range(done, count)
