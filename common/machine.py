"""What every run takes: the options of where and how to compute, and the machine that they choose."""

from dataclasses import dataclass
from typing import Any

import torch

from common.options import option
from common.training.device import automatic_workers, device_name, pick_device
from common.training.precision import PRECISIONS, choose

RUNS_TWICE = (
    "checkpointed blocks run twice in a step: the routers would count their choices and draw noise and dropout twice. "
    "Leave checkpoint-activations out; a smaller batch needs less memory."
)


@dataclass(frozen=True)
class RunOptions:
    """Of these only the precision decides numbers; it joins a run's settings by itself where it is not fp32."""

    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1", group="run", decides=False)
    threads: int | None = option(None, "CPU threads of torch (its own choice)", at_least=1, at_most=256, decides=False)
    workers: int | None = option(None, "loader processes (one a core)", at_least=0, at_most=256, decides=False)
    no_verify: bool = option(False, "accept data sets whose counts differ from the published ones", decides=False)
    save_interval: float = option(10.0, "seconds between saves within a task", at_least=0, decides=False)
    overwrite: bool = option(False, "start the output folder anew", decides=False)
    precision: str = option("fp32", "tf32 and bf16 are faster on a GPU and move the numbers: another run",
        group="speed and watching", choices=PRECISIONS, decides=False)
    compile: bool = option(False, "compile the blocks with torch.compile (moves numbers by rounding)", decides=False)
    checkpoint_activations: bool = option(False, "compute activations anew in the backward pass: less memory",
        decides=False)
    tensorboard: bool = option(False, "curves into tensorboard/ in the run's folder (needs the package)", decides=False)


@dataclass(frozen=True)
class Machine:
    """What a run computes on. workers: loader processes."""

    device: torch.device
    workers: int

    @property
    def about(self) -> dict[str, Any]:
        """For a run's provenance."""
        return {"device": device_name(self.device), "workers": self.workers}


def choose_machine(options: RunOptions, device: str | None = None, num_workers: int | None = None) -> Machine:
    """The device and workers of these options, their precision chosen for the process.

    `device`: torch's name of it where an original has words of its own. `num_workers`: how many workers a published
    configuration wants, of which there are at most one a core. Raises UserError for what is not there.
    """
    chosen = pick_device(device or options.device, options.threads)
    choose(options, chosen)
    workers = automatic_workers() if num_workers is None else min(num_workers, automatic_workers())
    return Machine(chosen, workers if options.workers is None else options.workers)
