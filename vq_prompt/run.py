"""VQ-Prompt and IT-Prompt: the entry point. `python -m vq_prompt.run --help`.

Each repeat is a run of its own under a seed of its own: it learns its tasks in order, evaluates after each on all tasks
seen and records; the same command again goes on where it stopped. The tables over repeats follow.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError, all_checked, exit_cleanly
from common.machine import choose_machine
from common.mini import ON_SCALE
from common.options import check_rules, declared, read, read_file, unknown, words_by_key
from common.training.device import automatic_workers
from vq_prompt import learner as vq_learner
from vq_prompt.data import check_data
from vq_prompt.it_prompt import learner as it_learner
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.options import (
    CONFIG,
    CONFIGS,
    VQOptions,
    checked,
    device_of,
    log_dir_of,
    run_seeds,
    scale_of,
    seed_rules,
)  # fmt: skip
from vq_prompt.report import Tee, write_reports, write_xlsx

# by learner_type: run_seed(options, machine, seed, repeat) -> R (T, T) float64, R[j, i] percent of task j after task i,
# else 0; check(options) raises UserError for weights that are missing; scenario(options, seed) -> tasks
MODULES = {"prompt": vq_learner, "it_prompt": it_learner}
# options, and what settles them or raises UserError for contradictions
NAMES = {"prompt": "VQ-Prompt", "it_prompt": "IT-Prompt"}
OPTIONS = {"prompt": (VQOptions, checked), "it_prompt": (ITOptions, settled)}


def parse(argv: Sequence[str] | None = None) -> VQOptions | ITOptions:
    """The options of a command line, of the class that its learner has, all of them settled.

    Raises UserError for what is unknown, missing, out of range or contradictory.
    """
    named, asks_help = words_by_key((VQOptions, ITOptions), argv)
    path = Path(named.get("config", CONFIG)).expanduser()
    path = CONFIGS / path.name if not path.is_file() and path.parent.name == CONFIGS.name else path
    if "config" not in named and not asks_help and not path.is_file():
        raise UserError("--config: missing. Give a yaml file, such as configs/cifar-100_prompt_vq.yaml.")
    content = {} if asks_help and not path.is_file() else read_file(path)
    kind = str(named.get("learner_type") or content.get("learner_type") or ("prompt" if asks_help else "")).strip("'\"")
    missing, wrong = f"--learner_type: missing. Give {' or '.join(OPTIONS)}.", f"--learner_type {kind}"
    check_rules([(not kind, missing), (kind not in OPTIONS, unknown(wrong, kind, OPTIONS))])
    (other,), (options, finish) = OPTIONS.keys() - {kind}, OPTIONS[kind]
    own, others = ({item.key for item in declared(OPTIONS[name][0])} for name in (kind, other))
    foreign = sorted((others - own) & {*named, *content})
    about = f"{NAMES[other]}'s, and without effect on {NAMES[kind]}. Leave them out."
    check_rules([(foreign, f"{', '.join(foreign)}: {about}")])
    about = f"{NAMES[kind]}: a run for each seed. The command line overrides the yaml file of --config."
    more = f"{NAMES[other]}'s options: --learner_type {other} --help."
    found = finish(read(options, argv, "vq_prompt.run", about, more, lambda given: (content, str(path))))
    check_rules(seed_rules(found))
    try:
        MODULES[kind].scenario(found, run_seeds(found)[0])
    except UserError as error:
        sizes = f"first_split_size {found.first_split_size}, other_split_size {found.other_split_size}"
        raise UserError(f"{sizes}: {error}") from error
    return found


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
        where = ON_SCALE[scale_of(options)]
        names = ("FAA", "CAA", "FR")
        told = "  ".join(f"{name} {values[f'{name}_m']:.2f} +- {values[f'{name}_s']:.2f}" for name in names)
        print(f"{told}  over seeds {', '.join(map(str, seeds))}{where}; tables in {folder}")


if __name__ == "__main__":
    main()
