"""The exception for a user's mistake, and the wrapper of entry points that prints it instead of a traceback."""

import functools
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from common.processes import world_size

LOST = re.compile("gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # in torch.distributed's messages


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


def exit_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap an entry point: a UserError is printed as one message and exits with 2, Ctrl-C exits with 130.

    A message from a data loader's worker is wrapped in the worker's traceback; only the message is printed.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            text = str(error)
            if "Original Traceback" in text:
                text = text.rsplit("UserError: ", 1)[-1].strip()
            print(f"error: {text}", file=sys.stderr)
            sys.exit(2)
        except RuntimeError as error:  # of a collective operation after another process has ended
            if world_size() == 1 or not LOST.search(str(error)):
                raise
            print(
                "Stopped: another process of this job has ended, see its message. What was saved before is intact; the "
                "same command goes on from there, with as many processes as you like.",
                file=sys.stderr,
            )
            sys.exit(1)
        except Interrupted as stop:
            print(f"\n{stop}", file=sys.stderr)
            sys.exit(130)
        except KeyboardInterrupt:
            print("\nStopped. What was finished is saved; the same command goes on from there.", file=sys.stderr)
            sys.exit(130)

    return wrapped
