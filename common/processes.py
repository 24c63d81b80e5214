"""What torchrun tells a process in its environment. Needs no torch."""

import os


def world_size() -> int:
    """Number of processes started together for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this process writes: the only one, or the first that torchrun started."""
    return rank() == 0
