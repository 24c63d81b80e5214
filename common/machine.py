"""The options of every run on where and how to compute, and the machine that they choose."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import UserError
from common.options import option
from common.training.device import automatic_workers, compute_deterministically, device_name, pick_device

PRECISIONS = ("fp32", "tf32", "bf16")
RUNS_TWICE = (
    "checkpointed blocks run twice in a step: the routers would count their choices and draw noise and dropout twice. "
    "Leave checkpoint-activations out; a smaller batch needs less memory."
)


@dataclass(frozen=True)
class RunOptions:
    """Options of every run. Only the precision decides numbers; `Machine.settings` has it if it is not fp32."""

    # a table: an option a line or two
    # fmt: off
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
    deterministic: bool = option(False, "the same bits each time on a GPU too, at the cost of speed", decides=False)
    tensorboard: bool = option(False, "curves into tensorboard/ in the run's folder (needs the package)", decides=False)
    # fmt: on


@dataclass(frozen=True)
class Machine:
    """Device, loader processes (`workers`) and arithmetic of a run. compile: requested, and possible here.

    fp32  float32 everywhere, the default; comparisons with the papers' numbers use it
    tf32  float32, but products on a GPU round their factors to TF32's 10 bits
    bf16  towers under autocast to bfloat16; weights, gradients, losses and the methods' algebra stay float32
    """

    device: torch.device
    workers: int = 0
    precision: str = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    deterministic: bool = False

    def autocast(self) -> AbstractContextManager:
        """Context for a tower's forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    @property
    def settings(self) -> dict[str, str]:
        """Additions to a run's settings; none for fp32, the only precision of early versions."""
        return {} if self.precision == "fp32" else {"precision": self.precision}

    @property
    def label(self) -> str:
        """Suffix of the method's name in the records, such as " (bf16)"; "" for fp32."""
        return "" if self.precision == "fp32" else f" ({self.precision})"

    @property
    def provenance(self) -> dict[str, Any]:
        """Additions to a run's provenance, which change numbers only by rounding."""
        computes = {name: getattr(self, name) for name in ("compile", "checkpoint_activations", "deterministic")}
        return computes | {"device": device_name(self.device), "workers": self.workers}


def choose_machine(options: RunOptions, device: str | None = None, num_workers: int | None = None) -> Machine:
    """The machine of these options.

    `device`: torch's name, where an original spells devices differently. `num_workers`: the workers of a published
    configuration, limited to one a core. A precision that is not in PRECISIONS (ALTA's fp16, in halved weights) counts
    as fp32 here. Raises UserError for a device or precision that this machine lacks.
    """
    chosen = pick_device(device or options.device, options.threads)
    precision = options.precision if options.precision in PRECISIONS else "fp32"
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("precision bf16: this GPU cannot compute in bfloat16. Take fp32, or tf32 where it can.")
    if precision == "tf32" and chosen.type != "cuda":
        print(f"note: precision tf32 has no effect on a {chosen.type}: it computes in float32")
    elif precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    workers = automatic_workers() if num_workers is None else min(num_workers, automatic_workers())
    workers = workers if options.workers is None else options.workers
    if options.deterministic and chosen.type == "cuda":
        compute_deterministically()
    print(f"device: {device_name(chosen)}; precision: {options.precision}; loader processes: {workers}")
    compiles = options.compile and _compiler_works(chosen)
    return Machine(chosen, workers, precision, compiles, options.checkpoint_activations, options.deterministic)


def _compiler_works(device: torch.device) -> bool:
    """Whether torch.compile works, tried on two numbers; prints the reason if not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, Triton or Python header raise different exceptions
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"note: blocks are not compiled, torch.compile has no working compiler here ({reason[:200]})")
        return False
    return True
