"""A run as the papers' are, in a few steps: `python tests/results/launch/tiny_run.py METHOD SEED`, in the folder METHOD-SEED.

How a method fares is in its name: "flaky" fails the first time, "broken" always, "slow" never comes to an end unless a
file "go" stands beside. Nothing is imported before that is clear.
"""

import sys
from pathlib import Path

method, seed = sys.argv[1], int(sys.argv[2])
tried = Path(f"{method}-{seed}.tried")
if method == "broken" or (method == "flaky" and not tried.exists()):
    tried.touch()
    sys.exit("the weights are missing")

import os  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

from common.errors import exit_cleanly  # noqa: E402
from common.machine import RunOptions
from common.runs import Run  # noqa: E402

TASKS = 2


@exit_cleanly
def main() -> None:
    print(f"devices: {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    labels = {"paper": "tiny", "method": method, "protocol": "cil-tiny-2x5", "backbone": "none", "scale": "paper"}
    run = Run(f"{method}-{seed}", {"method": method, "seed": seed}, labels | {"seed": seed}, options=RunOptions(save_interval=0))
    for task in range(1, TASKS + 1):
        if run.find(after_task=task, metric="acc"):
            continue
        steps = 10**6 if method == "slow" and task == TASKS and not Path("go").exists() else 3
        for _ in run.steps(f"task {task}", steps, {"draws": torch.Generator()}):
            time.sleep(0.01)
        about = {"dataset": "tiny", "after_task": task, "seconds": run.seconds}
        values = {"train_seconds": 36.0, "acc": 80.0 + seed}
        run.record([about | {"metric": metric, "value": value} for metric, value in values.items()])
    run.finish()


main()
