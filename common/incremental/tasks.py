"""What every sequence of tasks needs: random streams of each task's own, its file, and where a stopped run goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def stream_seed(seed: int, task_id: int, purpose: str = "training", purposes: Sequence[str] = ("training",)) -> int:
    """Seed of the random stream that serves one of a paper's `purposes` in one task.

    What the stream yields hangs on nothing drawn before, so resume is exact.
    """
    return (seed * 1_000 + task_id) * len(purposes) + purposes.index(purpose)


def task_path(folder: Path, task_id: int) -> Path:
    """task_<k>.pth in a run's folder, tasks counted from 0."""
    return folder / f"task_{task_id}.pth"


def unfinished_tasks(count: int, is_finished: Callable[[int], bool], read_task: Callable[[int], Any]) -> range:
    """Ids of the tasks that are still to be learned or tested, the state after the last finished one read back.

    Nothing is read where none or all of the `count` tasks are finished.
    """
    done = next((task_id for task_id in range(count) if not is_finished(task_id)), count)
    if 0 < done < count:
        read_task(done - 1)
    return range(done, count)
