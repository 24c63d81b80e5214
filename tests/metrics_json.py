"""Reading metrics.json of the class-incremental runs, ours or an original's."""

import json
from pathlib import Path

from common.errors import UserError
from common.incremental.released_log import Line

RELEASED_KEYS = ("task", "acc", "avg_acc", "forgetting", "acc_per_task", "bwt", "fwt")


def read_metrics(path: Path | str) -> tuple[list[Line], Line | None]:
    """The lines by task and the closing one (None in an unfinished run) of a metrics.json, ours or an original's.

    Raises UserError if the file is missing or has other lines.
    """
    try:
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path}: not a metrics.json, which has one JSON object a line ({error}).") from error
    closing = lines.pop() if lines and isinstance(lines[-1], dict) and set(lines[-1]) == {"last", "avg"} else None
    for number, line in enumerate(lines):
        if not isinstance(line, dict) or not {*RELEASED_KEYS} <= set(line) or line["task"] != number:
            raise UserError(f"{path}, line {number + 1}: expected task {number} with {', '.join(RELEASED_KEYS[1:])}.")
    return lines, closing
