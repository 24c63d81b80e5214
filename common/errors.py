"""The exception for a user's mistake, and the wrapper of entry points that prints it instead of a traceback."""

import functools
import io
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from common.processes import world_size

LOST = re.compile("gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # in torch.distributed's messages
MACHINE_FAULTS = {  # words of torch, numpy and the system, the first that occur: what they mean and what to do
    r"Too many open files|items of ancdata":
        "too many files are open. Give fewer --workers, or raise the limit (ulimit -n 65536).",
    r"shared memory(\(shm\)| object)|out of shared memory|</torch_|signal: Bus error":
        "the shared memory of the loader processes (/dev/shm) is full. Give --workers 0, or enlarge it (of a container "
        "with --shm-size 8g).",
    r"OutOfMemoryError|(CUDA|HIP|MPS).*out of memory|STATUS_ALLOC_FAILED":
        "the GPU's memory is full. End what else uses it, or give --checkpoint-activations; a smaller batch size or "
        "--precision bf16 needs less too, but is another run, in a folder of its own.",
    r"MemoryError|DefaultCPUAllocator|Cannot allocate memory|bad_alloc|signal: Killed":
        "the machine's memory is full. End what else uses it, or give fewer --workers; a smaller batch size needs less "
        "too, but is another run, in a folder of its own.",
    r"DataLoader worker .*(exited unexpectedly|killed by signal)|ConnectionResetError":
        "a loader process has ended unexpectedly. With --workers 0 the main process loads the images and tells why.",
    r"can't start new thread|Resource temporarily unavailable":
        "the system starts no more processes or threads. Give fewer --workers, or raise the limit (ulimit -u).",
    r"No space left on device":
        "a disk is full. Free some space on it.",
    r"Could not determine home directory":
        "there is no home directory that ~ could stand for. Set HOME, or give paths without ~.",
}  # fmt: skip


class UserError(Exception):
    """A user's mistake; the message says what is wrong, where, and what to do about it."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM after the state was saved; the message says how to go on."""


def all_checked(checks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Results of all checks, in order. Raises one UserError with the messages of all checks that raised one."""
    results, problems = [], []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return results


def machine_fault(error: BaseException | None) -> str | None:
    """What an error of the machine, not of the program or its input, means and what to do; None for any other."""
    text = ""
    while error:  # a loader's error has its worker's as cause
        text += f"{type(error).__name__}: {error}\n" * isinstance(error, MemoryError | OSError | RuntimeError)
        error = error.__cause__ or error.__context__
    return next((advice for words, advice in MACHINE_FAULTS.items() if re.search(words, text)), None)


def exit_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap an entry point: a UserError is printed as one message and exits with 2, `machine_fault` with 1, Ctrl-C 130.

    A message from a data loader's worker is wrapped in the worker's traceback; only the message is printed.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be text
        try:
            main(*args, **kwargs)
        except UserError as error:
            text = str(error)
            if "Original Traceback" in text:
                text = text.rsplit("UserError: ", 1)[-1].strip()
            print(f"error: {text}", file=sys.stderr)
            sys.exit(2)
        except (MemoryError, OSError, RuntimeError) as error:
            stopped = machine_fault(error)
            if world_size() > 1 and LOST.search(str(error)):  # of a collective operation
                stopped = "another process of this job has ended, see its message."
            if stopped is None:
                raise
            again = "What was saved before is intact; the same command goes on from there"
            more = ", with as many processes as you like" if world_size() > 1 else ""
            print(f"Stopped: {stopped} {again}{more}.", file=sys.stderr)
            sys.unraisablehook = lambda _: None  # a loader that could not be made fails once more when it is deleted
            sys.exit(1)
        except Interrupted as stop:
            print(f"\n{stop}", file=sys.stderr)
            sys.exit(130)
        except KeyboardInterrupt:
            print("\nStopped. What was finished is saved; the same command goes on from there.", file=sys.stderr)
            sys.exit(130)

    return wrapped
