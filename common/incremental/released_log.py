"""metrics.json of the class-incremental runs, as ZSCL and MoE-Adapters wrote it (cil/main.py:L42-L77 in both).

One JSON line a task, then one with the two numbers of the papers' tables:

    {"task": 0, "acc": 98.4, "avg_acc": 98.4, "forgetting": 0.0, "acc_per_task": [98.4], "bwt": 0.0, "fwt": 0.0, ...}
    {"last": 77.52, "avg": 85.21}

Percent, rounded to 2 decimals, `forgetting` to 6. `forgetting`, `bwt` and `fwt` are the sums of continuum up to 1.2,
which differ from their definitions in the literature (see `released_cil_log`); `forgetting_std` and `bwt_std`, ours,
follow the definitions.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.evaluation.metrics import (
    CILStep,
    backward_transfer_continuum,
    forgetting_continuum,
    released_cil_log,
    task_hit_rates,
)
from common.files import write_text
from common.runs import fitting, load_tensors, save_tensors

Line = dict[str, float | int | list[float]]
STORED = CILStep._fields[:3]  # predictions, labels, task ids


def cil_lines(steps: Sequence[CILStep], finished: bool = True) -> list[Line]:
    """The lines of metrics.json after the tasks tested so far; `finished` adds the closing one.

    Every step holds all test samples of the tasks seen. Raises ValueError if a seen task has no sample in a step.
    """
    rates = task_hit_rates(steps)
    pooled = [float(np.mean(np.asarray(step.predictions) == np.asarray(step.labels))) for step in steps]
    released = released_cil_log(rates)
    forgetting, bwt = forgetting_continuum(rates), backward_transfer_continuum(rates)
    lines: list[Line] = [
        {
            "task": task_id,
            "acc": _rounded(100 * pooled[task_id], 2),
            "avg_acc": _rounded(100 * statistics.mean(pooled[: task_id + 1]), 2),
            "forgetting": _rounded(100 * released.forgetting[task_id], 6),
            "acc_per_task": [_rounded(100 * rate, 2) for rate in rates[task_id, : task_id + 1]],
            "bwt": _rounded(100 * released.bwt[task_id], 2),
            "fwt": _rounded(100 * released.fwt[task_id], 2),
            "forgetting_std": _rounded(100 * forgetting[task_id], 6),
            "bwt_std": _rounded(100 * bwt[task_id], 2),
        }
        for task_id in range(len(steps))
    ]
    if finished:
        acc = [100 * rate for rate in pooled]
        lines.append({"last": _rounded(acc[-1], 2), "avg": _rounded(statistics.mean(acc), 2)})
    return lines


def _rounded(value: float, decimals: int) -> float:
    """Rounded as in the originals: numpy scales, rounds and scales back, so 0.285 differs from Python's `round`."""
    return float(np.round(np.float64(value), decimals))


def write_metrics(path: Path | str, steps: Sequence[CILStep], finished: bool) -> None:
    """Atomically write metrics.json for the tasks tested so far."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in cil_lines(steps, finished)))


def save_steps(path: Path | str, steps: Sequence[CILStep]) -> None:
    """Atomically write predictions, labels and task ids of every step, from which a resumed run goes on exactly."""
    content = {name: [torch.as_tensor(getattr(step, name)) for step in steps] for name in STORED}
    save_tensors(path, content)


def load_steps(path: Path | str) -> list[CILStep]:
    """The steps that `save_steps` wrote, as arrays; [] without the file. Raises UserError if it is damaged."""
    if not Path(path).exists():
        return []
    with fitting(path):
        content = load_tensors(path)
        parts = zip(*(content[name] for name in STORED), strict=True)
        return [CILStep(*(tensor.numpy() for tensor in step)) for step in parts]
