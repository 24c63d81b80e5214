"""VQ-Prompt and IT-Prompt: the entry point. `python -m vq_prompt.run --help`.

Each repeat is a run of its own under a seed of its own: it learns its tasks in order, evaluates after each on all tasks
seen and records; the same command again goes on where it stopped. The tables over repeats follow.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError, all_checked, exit_cleanly
from common.incremental.common_ground import common_rules
from common.machine import choose_machine
from common.mini import ON_SCALE
from common.options import check_rules, declared, read, read_file, unknown, words_by_key
from common.training.device import automatic_workers
from vq_prompt import learner as vq_learner
from vq_prompt.data import check_data, check_tasks, data_set, scenario
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
)
from vq_prompt.report import output_log, read_xlsx, refuse_originals, write_reports, write_xlsx


class Method(NamedTuple):
    name: str
    options: type[VQOptions] | type[ITOptions]
    settled: Any  # options -> options; raises UserError for contradictions
    run_seed: Any  # options, machine, seed -> R (T, T) float64, R[j, i] percent of task j after task i, else 0


METHODS = {  # by learner_type
    "prompt": Method("VQ-Prompt", VQOptions, checked, vq_learner.run_seed),
    "it_prompt": Method("IT-Prompt", ITOptions, settled, it_learner.run_seed),
}


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    limited = replace(options, workers=min(options.workers, automatic_workers()))  # also of those that were asked for
    machine = choose_machine(limited, device_of(options))
    folder, seeds, matrices = Path(log_dir_of(options)), run_seeds(options), []
    places = (lambda: refuse_originals(options), lambda: read_xlsx(options))
    all_checked([lambda: check_data(options), options.weights_file, lambda: options.normalisation, *places])
    for seed in seeds:
        check_tasks(options, seed)
    with output_log(folder):
        for number, seed in enumerate(seeds):
            print(f"repeat {number + 1} of {options.repeat}, seed {seed}", flush=True)
            matrices.append(METHODS[options.learner_type].run_seed(options, machine, seed))
            figures = write_reports(options, machine, matrices)
        write_xlsx(options, machine, figures)
        values = "  ".join(
            f"{name} {figures[f'{name}_m']:.2f} +- {figures[f'{name}_s']:.2f}" for name in ("FAA", "CAA", "FR")
        )
        where = ON_SCALE[scale_of(options)]
        print(f"{values}  over seeds {', '.join(map(str, seeds))}{where}; tables in {folder}")


def parse(argv: Sequence[str] | None = None) -> VQOptions | ITOptions:
    """The options of a command line, of the class that its learner has, all of them settled.

    Raises UserError for what is unknown, missing, out of range or contradictory.
    """
    words, asks_help = words_by_key((VQOptions, ITOptions), argv)
    path, content = configuration(words, asks_help)
    default = "prompt" if asks_help else ""
    kind = str(words.get("learner_type") or content.get("learner_type") or default).strip("'\"")
    missing, wrong = f"--learner_type: missing. Give {' or '.join(METHODS)}.", f"--learner_type {kind}"
    check_rules([(not kind, missing), (kind not in METHODS, unknown(wrong, kind, METHODS))])
    (other,), method = METHODS.keys() - {kind}, METHODS[kind]
    keys = {name: {item.key for item in declared(METHODS[name].options)} for name in METHODS}
    foreign = sorted((keys[other] - keys[kind]) & {*words, *content})
    reason = f"{METHODS[other].name}'s, and without effect on {method.name}. Leave them out."
    check_rules([(foreign, f"{', '.join(foreign)}: {reason}")])
    description = f"{method.name}: a run for each seed. The command line overrides the yaml file of --config."
    epilog = f"{METHODS[other].name}'s options: --learner_type {other} --help."
    file = (content, str(path))
    options = method.settled(read(method.options, argv, "vq_prompt.run", description, epilog, lambda given: file))
    check_rules(seed_rules(options))
    try:
        scenario(options, run_seeds(options)[0])
    except UserError as error:
        sizes = f"first_split_size {options.first_split_size}, other_split_size {options.other_split_size}"
        raise UserError(f"{sizes}: {error}") from error
    for seed in run_seeds(options):
        check_rules(common_rules(options, data_set(options), scenario(options, seed), seed, options.split))
    return options


def configuration(words: dict[str, Any], asks_help: bool) -> tuple[Path, dict[str, Any]]:
    """Path and content of the yaml file of --config; no content where help is asked for and there is no file."""
    path = Path(words.get("config", CONFIG)).expanduser()
    path = CONFIGS / path.name if not path.is_file() and path.parent.name == CONFIGS.name else path
    if asks_help and not path.is_file():
        return path, {}
    if "config" not in words and not path.is_file():
        raise UserError("--config: missing. Give a yaml file, such as configs/cifar-100_prompt_vq.yaml.")
    return path, read_file(path)


if __name__ == "__main__":
    main()
