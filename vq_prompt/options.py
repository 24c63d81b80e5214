"""The command line and the yaml configuration of either learner: `parse`, which reads those that belong to it.

Values come as common.options has it: defaults, the yaml file, then the command line from left to right.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.datasets.incremental import Scenario
from common.errors import UserError
from common.options import check_rules, declared, read, read_file, unknown
from vq_prompt import it_data
from vq_prompt import data as vq_data
from vq_prompt.base_options import CONFIG, CONFIGS, Options, run_seeds, seed_rules
from vq_prompt.it_options import ITOptions, settled
from vq_prompt.vq_options import VQOptions, checked

ABOUT = "{name} over a sequence of tasks, a run for each seed. The command line overrides the yaml file of --config."


class Learner(NamedTuple):
    """finish: fills in what is open, and raises UserError for contradictions. scenario: (options, seed) -> tasks."""

    name: str
    options: type[Options]
    finish: Callable[[Any], Any]
    scenario: Callable[[Any, int], Scenario]


LEARNERS = {  # by learner_type
    "prompt": Learner("VQ-Prompt", VQOptions, checked, vq_data.scenario),
    "it_prompt": Learner("IT-Prompt", ITOptions, settled, it_data.scenario),
}


def parse(argv: Sequence[str] | None = None) -> VQOptions | ITOptions:
    """The options of a command line, of the class that its learner has, all of them settled.

    Raises UserError for what is unknown, missing, out of range or contradictory.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    given, content = dict(_named(words)), None
    asks_help = not {"-h", "--help"}.isdisjoint(words)
    try:
        content = _configuration(given.get("config", CONFIG))
    except UserError:
        if not asks_help:
            raise
    kind = given.get("learner_type") or (content[0] if content else {}).get("learner_type")
    kind = "prompt" if asks_help and not kind else kind
    missing = f"--learner_type: missing. Give {' or '.join(LEARNERS)}."
    wrong = unknown(f"--learner_type {kind}", kind, LEARNERS)
    check_rules([(not kind, missing), (str(kind) not in LEARNERS, wrong)])
    _refuse_foreign(kind, [*given, *(content[0] if content else ())])
    learner = LEARNERS[kind]
    (other,) = (name for name in LEARNERS if name != kind)
    more = f"{LEARNERS[other].name}'s options: --learner_type {other} --help."
    options = read(
        learner.options, words, "vq_prompt.run", ABOUT.format(name=learner.name), more, lambda given: content
    )
    check_rules(seed_rules(options))
    options = learner.finish(options)
    _check_sizes(options, learner)
    return options


def _named(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of all that looks like --name VALUE, --name=VALUE or name=VALUE, with _ for -."""
    for word, after in zip(words, [*words[1:], ""]):
        name, equals, value = word.removeprefix("--set=").lstrip("+").partition("=")
        if equals or name.startswith("--"):
            yield name.lstrip("-").replace("-", "_"), value if equals else after


def _configuration(name: str) -> tuple[dict[str, Any], str]:
    """A yaml file's content and its name. Raises UserError if it can not be read."""
    path = Path(name).expanduser()
    if not path.is_file() and path.parent.name == CONFIGS.name:
        path = CONFIGS / path.name
    return read_file(path), str(path)


def _refuse_foreign(kind: str, names: Sequence[str]) -> None:
    """Raise UserError for names that are options of the other learner alone."""
    known = {key: _names(learner.options) for key, learner in LEARNERS.items()}
    (other,) = (key for key in LEARNERS if key != kind)
    foreign = sorted({name for name in names if name in known[other] - known[kind]})
    about = f"{LEARNERS[other].name}'s, and without effect on {LEARNERS[kind].name}. Leave them out."
    check_rules([(foreign, f"{', '.join(foreign)}: {about}")])


def _names(options: type[Options]) -> set[str]:
    items = declared(options)
    return {flag.lstrip("-").replace("-", "_") for item in items for flag in (item.key, *item.flags)}


def _check_sizes(options: Options, learner: Learner) -> None:
    """Raise UserError unless the split sizes divide the classes."""
    try:
        learner.scenario(options, run_seeds(options)[0])
    except UserError as error:
        sizes = f"first_split_size {options.first_split_size}, other_split_size {options.other_split_size}"
        raise UserError(f"{sizes}: {error}") from error
