"""What torchrun tells a process in its environment. Needs no torch."""

import os


def process_count() -> int:
    """How many processes were started together for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this process writes: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
