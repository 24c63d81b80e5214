"""What the command lines of the MTIL papers share: value parsers, presets, the flags of a run, rules over all flags.

`--scale` and `--preset` stand for the values of a file in a paper's configs/; they act where they stand, so a later
flag overrides them and they override an earlier one.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.datasets import MTIL_ORDER_1, MTIL_ORDER_2, canonical
from common.errors import UserError
from common.training.precision import PRECISIONS

# of `add_run_flags`, those that decide no number
RUN_FLAGS: tuple[str, ...] = (
    "data_location",
    "no_verify",
    "save",
    "device",
    "threads",
    "workers",
    "save_interval",
    "overwrite",
)
# of `add_speed_flags`; precision joins a run's settings by itself, see common.training.precision
SPEED_FLAGS = ("precision", "compile", "checkpoint_activations", "tensorboard")

SPEED_HELP = {
    "precision": "fp32; tf32 or bf16 are faster on a GPU and move the numbers: another run, another method's name",
    "compile": "compile the transformer blocks with torch.compile (moves numbers by rounding)",
    "checkpoint_activations": "keep the blocks' inputs alone and compute them again in the backward pass: less memory",
    "tensorboard": "write loss curves and accuracies into tensorboard/ in the run's folder (needs the package)",
}
RUNS_TWICE = (
    "checkpointed blocks run twice in a step: the routers would count their choices and draw noise and dropout twice. "
    "Leave checkpoint-activations out; a smaller batch needs less memory."
)

Rule = tuple[Any, str]  # what is wrong if true, and how it is told


def listed(kind: type) -> Any:
    """A parser, for argparse's `type`, of one value of this kind or a comma list of them: always a list."""

    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    parse.__name__ = f"{kind.__name__} or comma list"
    return parse


def preset_action(configs: Path) -> type[argparse.Action]:
    """An argparse action that sets every value of <configs>/<the flag's value>.yaml, at its place of the command line.

    The value `paper` sets nothing: the defaults are the paper's. A key that is no flag ends the call with the parser's
    error.
    """

    class Preset(argparse.Action):
        def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
        ) -> None:
            setattr(namespace, self.dest, values)
            if values == "paper":
                return
            known = {action.dest for action in parser._actions}
            for key, value in yaml.safe_load((configs / f"{values}.yaml").read_text()).items():
                if key not in known:
                    parser.error(f"{configs.name}/{values}.yaml: unknown key {key}")
                setattr(namespace, key, value)

    return Preset


def add_run_flags(group: Any, preset: type[argparse.Action]) -> None:
    """Add the flags of data, weights and run to a parser or a group of one; `preset` is what --scale does."""
    group.add_argument("--model", default="ViT-B/16", help="CLIP: a published name, a checkpoint file, or mini")
    group.add_argument("--data-location", default="./data", help="folder of all data sets, or mini")
    group.add_argument(
        "--no-verify", action="store_true", help="accept data sets whose counts differ from the published ones"
    )
    group.add_argument("--load", help="checkpoint to start from or to evaluate")
    group.add_argument("--save", help="output folder; '-mini' is appended at that scale")
    group.add_argument(
        "--scale",
        choices=["paper", "mini"],
        default="paper",
        action=preset,
        help="mini: the embedded miniature, in minutes",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    group.add_argument("--threads", type=int, help="CPU threads of torch (its own choice)")
    group.add_argument("--workers", type=int, help="loader processes (automatic)")
    group.add_argument("--save-interval", type=float, default=10.0, help="seconds between saves within a task")
    group.add_argument("--overwrite", action="store_true", help="start the output folder anew")


def add_speed_flags(parser: argparse.ArgumentParser, precision: str | None = "fp32") -> None:
    """Add the flags of speed and watching in a group of their own; `precision` is that one's default, None: no such.

    common.training.precision says what they do.
    """
    group = parser.add_argument_group("speed and watching")
    if precision is not None:
        group.add_argument("--precision", choices=PRECISIONS, default=precision, help=SPEED_HELP["precision"])
    for name in SPEED_FLAGS[1:]:
        group.add_argument("--" + name.replace("_", "-"), action="store_true", help=SPEED_HELP[name])


def check_rules(rules: Iterable[Rule]) -> None:
    """Raise UserError for the first rule that is broken."""
    for wrong, message in rules:
        if wrong:
            raise UserError(message)


def mini_folder(save: str | None, scale: str) -> str | None:
    """The output folder, '-mini' appended at that scale: a miniature's numbers never share one with the paper's."""
    return f"{save}-mini" if save and scale == "mini" and not save.endswith("-mini") else save


def nth(values: Sequence[Any], index: int) -> Any:
    """The value of task `index` of a flag that holds one value for all tasks or one for each."""
    return values[index] if len(values) > 1 else values[0]


def mtil_names(names: list[str] | None) -> list[str] | None:
    """Data sets under their known names; [order1] and [order2] stand for the paper's sequences, nothing for None.

    Raises UserError for a name that is not known.
    """
    if names in (["order1"], ["order2"]):
        return list(MTIL_ORDER_1 if names == ["order1"] else MTIL_ORDER_2)
    return [canonical(name) for name in names] if names else None


def mtil_protocol(names: Sequence[str] | None) -> str:
    """The name of the protocol that a sequence of tasks follows, as the records carry it."""
    orders = {MTIL_ORDER_1: "mtil-order1", MTIL_ORDER_2: "mtil-order2"}
    return orders.get(tuple(names or ()), "mtil-custom")
