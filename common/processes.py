"""Rank and number of processes, from torchrun's environment variables. Needs no torch."""

import os


def world_size() -> int:
    """Number of processes started together for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this process is the only one, or the first that torchrun started: the one that writes files."""
    return rank() == 0
