"""VQ-Prompt and IT-Prompt: the entry point. `python -m vq_prompt.run --help`.

Each repeat is a run of its own under a seed of its own: it learns its tasks in order, evaluates after each on all tasks
seen and records; the same command again goes on where it stopped. The tables over repeats follow.
"""

import contextlib
from dataclasses import replace
from pathlib import Path

from common.errors import UserError, all_checked, exit_cleanly
from common.machine import choose_machine
from common.training.device import automatic_workers
from vq_prompt import it_learner, vq_learner
from vq_prompt.base_options import device_of, log_dir_of, run_seeds, scale_of
from vq_prompt.data import check_data
from vq_prompt.options import parse
from vq_prompt.report import Tee, write_reports, write_xlsx

# by learner_type: run_seed(options, machine, seed, repeat) -> R (T, T) float64, R[j, i] percent of task j after task i,
# else 0; check(options) raises UserError for weights that are missing
MODULES = {"prompt": vq_learner, "it_prompt": it_learner}


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options, device_of(options))
    machine = replace(machine, workers=min(options.workers, automatic_workers()))  # also of those that were asked for
    learner, folder, seeds = MODULES[options.learner_type], Path(log_dir_of(options)), run_seeds(options)
    all_checked([lambda: check_data(options), lambda: learner.check(options)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        output = Tee(folder / "output.log")
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written ({error.strerror}).") from error
    with contextlib.closing(output), contextlib.redirect_stdout(output):
        matrices, values = [], {}
        for repeat, seed in enumerate(seeds):
            print(f"repeat {repeat + 1} of {options.repeat}, seed {seed}", flush=True)
            matrices.append(learner.run_seed(options, machine, seed, repeat))
            values = write_reports(options, machine, matrices)
        write_xlsx(options, machine, values)
        where = " on the miniature" if scale_of(options) == "mini" else ""
        names = ("FAA", "CAA", "FR")
        told = "  ".join(f"{name} {values[f'{name}_m']:.2f} +- {values[f'{name}_s']:.2f}" for name in names)
        print(f"{told}  over seeds {', '.join(map(str, seeds))}{where}; tables in {folder}")


if __name__ == "__main__":
    main()
