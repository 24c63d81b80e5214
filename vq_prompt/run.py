"""VQ-Prompt and IT-Prompt: the entry point. `python -m vq_prompt.run --help`.

Each repeat is a run of its own under a seed of its own: it learns its tasks in order, evaluates after each on all tasks
seen and records; the same command again goes on where it stopped. The tables over repeats follow.
"""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, all_checked, exit_cleanly
from common.training.device import automatic_workers, pick_device
from common.training.precision import choose
from vq_prompt import it_learner, vq_learner
from vq_prompt.data import check_data
from vq_prompt.options import device_of, parse_args
from vq_prompt.report import Tee, write_reports, write_xlsx

Learner = Callable[[argparse.Namespace, int, int], np.ndarray]
# by learner_type: run_seed(options, seed, repeat) -> R (T, T) float64, R[j, i] percent of task j after task i, else 0
LEARNERS: dict[str, Learner] = {"prompt": vq_learner.run_seed, "it_prompt": it_learner.run_seed}
# check(options): raises UserError for options that make no sense and for weights that are missing
CHECKS: dict[str, Callable[[argparse.Namespace], Any]] = {"prompt": vq_learner.check, "it_prompt": it_learner.check}


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse_args(argv)
    options.torch_device = pick_device(device_of(options), options.threads)
    choose(options, options.torch_device)
    options.workers = min(options.workers, automatic_workers())
    all_checked([lambda: check_data(options), lambda: CHECKS[options.learner_type](options)])
    folder = Path(options.log_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        output = Tee(folder / "output.log")
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written ({error.strerror}).") from error
    with contextlib.closing(output), contextlib.redirect_stdout(output):
        matrices, values = [], {}
        for repeat, seed in enumerate(options.seeds):
            print(f"repeat {repeat + 1} of {options.repeat}, seed {seed}", flush=True)
            matrices.append(LEARNERS[options.learner_type](options, seed, repeat))
            values = write_reports(options, matrices)
        write_xlsx(options, values)
        where = " on the miniature" if options.scale == "mini" else ""
        names = ("FAA", "CAA", "FR")
        told = "  ".join(f"{name} {values[f'{name}_m']:.2f} +- {values[f'{name}_s']:.2f}" for name in names)
        print(f"{told}  over seeds {', '.join(map(str, options.seeds))}{where}; tables in {folder}")


if __name__ == "__main__":
    main()
