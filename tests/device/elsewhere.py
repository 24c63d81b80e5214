"""The fixtures' tests with every operation computed on another device, though they make their tensors on the CPU."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

TESTS = Path(__file__).parents[1]
FIXTURES = (
    "common/clip/test_model.py", "common/evaluation/test_zero_shot.py",
    "zscl/test_losses.py", "zscl/test_weights.py", "zscl/test_training.py", "zscl/test_icarl.py",
    "zscl/test_evaluation.py", "zscl/cil/test_units.py", "zscl/cil/test_training.py",
    "moe_adapters/test_adapters.py", "moe_adapters/test_training.py", "moe_adapters/test_ddas.py",
    "moe_adapters/test_evaluation.py", "moe_adapters/test_cil_trajectory.py",
    "inflora/test_lora.py", "inflora/test_gpm.py", "inflora/test_training.py", "inflora/test_learners.py",
    "vq_prompt/test_prompts.py", "vq_prompt/test_training.py", "vq_prompt/test_classifier.py",
    "vq_prompt/it_prompt/test_formulas.py",
    "alta/test_heads.py", "alta/test_training.py", "alta/test_buffer.py", "alta/test_evaluation.py",
)  # fmt: skip
# no test of float16, whose tolerance is the CPU's rounding, nor one that reads a TorchScript file and no fixture
WORDS = ("-q", "-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not half_precision and not decoded")
aten = torch.ops.aten
SHAPES = {aten.set_.source_Storage_storage_offset, aten.resize_.default}  # of a file's tensors
STATISTICS = {aten.native_batch_norm.default: (3, 4)}  # arguments that are written without saying so


@functools.cache
def stays(function: Any) -> bool:
    """Views stay on the CPU, and so do random numbers, which a device would draw differently."""
    view = any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
    return view or function in SHAPES or torch.Tag.nondeterministic_seeded in function.tags


@functools.cache
def written(function: Any) -> list[tuple[int, str]]:
    """Places and names of the arguments that an operation writes into."""
    arguments = [(place, each.name, each.alias_info) for place, each in enumerate(function._schema.arguments)]
    named = [(place, name) for place, name, alias in arguments if alias is not None and alias.is_write]
    return named or [arguments[place][:2] for place in STATISTICS.get(function, ())]


def over(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value, or a list or tuple of them, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(over(each, change) for each in value) if isinstance(value, list | tuple) else value


class Elsewhere(TorchDispatchMode):
    """Takes what an operation reads to a device, computes it there, and brings back what it returns or has written."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, copies = kwargs or {}, {}
        if stays(function):
            return function(*args, **kwargs)

        def there(tensor: Tensor) -> Tensor:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor if tensor.is_meta else tensor.to(self.device, copy=True)
            return copies[id(tensor)]

        found = function(*over(args, there), **{name: over(value, there) for name, value in kwargs.items()})
        here = {}  # what was written, by the copy
        for place, name in written(function):
            target = args[place] if place < len(args) else kwargs.get(name)
            over(target, lambda each: here.setdefault(id(there(each)), each.copy_(there(each))))
        return over(found, lambda each: here.get(id(each), each if each.is_meta else each.cpu()))


class Outcome:
    """A plugin of pytest: tests compute elsewhere; which have passed, which have failed and why."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.passed, self.failed = device, 0, []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        with sdpa_kernel(SDPBackend.MATH), Elsewhere(self.device):  # the CPU's fused attention has no other device
            yield

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self.failed.append(f"{report.nodeid} ({report.longreprtext.strip().splitlines()[-1][:100]})")


def run_fixtures(device: torch.device, files: tuple[str, ...]) -> tuple[bool, str]:
    """Whether these tests of the stored fixtures pass at their own tolerances on the device; what to tell."""
    outcome = Outcome(device)
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main([*WORDS, *(str(TESTS / file) for file in files)], plugins=[outcome])
    told = f"{outcome.passed} passed, {len(outcome.failed)} failed"
    return code == pytest.ExitCode.OK, "\n      ".join([told, *outcome.failed])
