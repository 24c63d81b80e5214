"""Clock, rows and table that the benchmarks of all papers share."""

import gc
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.provenance import commit
from common.training.device import peak_memory_mib

VOID_ABOVE = 1e-4  # two subjects that differ by more do not compute the same thing: no ratio is told


@dataclass(frozen=True)
class Sizes:
    """What the command line decides for every paper's benchmark."""

    device: torch.device
    small: bool
    steps: int
    warmup: int
    batch_size: int | None
    classes: tuple[int, ...]
    precision: str = "fp32"
    matmul: float | None = None  # TFLOP/s of a large product on this device, the measure of the steps' own

    @property
    def turns(self) -> int:
        """How often the subjects of a cell take turns: other load on the machine then meets all of them."""
        return min(3, max(1, self.steps // 4))

    def batch(self, paper: int, small: int = 8) -> int:
        """Images a batch: those of the command line, of the paper, or of `small` towers."""
        return self.batch_size or (small if self.small else paper)


@dataclass
class Row:
    """One subject of one cell; `ratio` is its time, or where none was taken its memory, against the first subject's.

    gflop: of one call. of_matmul: the share of a large matrix product's rate. waiting: the share of a step's time that
    passes before its batch is there.
    """

    cell: str
    subject: str
    ms_median: float | None = None
    ms_quartile1: float | None = None
    ms_quartile3: float | None = None
    calls: int = 0
    images_per_s: float | None = None
    gflop: float | None = None
    tflops: float | None = None
    of_matmul: float | None = None
    waiting: float | None = None
    peak_memory_mib: float | None = None
    ratio: float | None = None
    target: str = ""
    difference: float | None = None

    @property
    def quartiles(self) -> str | None:
        return None if self.ms_quartile1 is None else f"{self.ms_quartile1:.1f} to {self.ms_quartile3:.1f}"


class Clock:
    """Reads `now` before and after each of `calls` calls or training steps."""

    def __init__(self, calls: int, now: Callable[[], Any] = float) -> None:
        self.calls, self.now = calls, now
        self.readings: list[Any] = []
        self.state: dict[str, Any] = {}  # of the training loop that ran last, its log among it

    def steps(self, stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        """A training loop's `steps`."""
        self.state = state
        for step in range(total):
            self.readings.append(self.now())
            yield step
            self.readings.append(self.now())

    def repeat(self, call: Callable[[], Any]) -> None:
        for _ in self.steps("", self.calls, {}):
            call()

    def spans(self) -> list[float]:
        """Of every call."""
        pairs = list(zip(self.readings[::2], self.readings[1::2]))
        if pairs and isinstance(pairs[0][0], torch.cuda.Event):
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [end - begin for begin, end in pairs]


Subject = Callable[[Clock], Any]  # does the clock's number of calls, each between two readings


def milliseconds(device: torch.device) -> Callable[[], Any]:
    """Readings for a `Clock`: CUDA events on a GPU, the process's own time on a CPU."""
    if device.type == "cuda":
        return lambda: torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))
    return lambda: 1000 * time.process_time()


def flops_of(subject: Subject) -> float:
    """FLOPs of a subject's second call: 2 a multiply-add; matrix products, convolutions and attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a fused backward computes anew
        clock = Clock(2, counter.get_total_flops)
        subject(clock)
    return clock.spans()[-1]


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of the product of two large square matrices in float32, as torch's switch for TF32 stands; the best."""
    side, calls = (8192, 10) if device.type == "cuda" else (1536, 5)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    clock = Clock(calls + 1, milliseconds(device))
    clock.repeat(lambda: a @ b)
    return 2 * side**3 / min(clock.spans()[1:]) / 1e9


def compare(
    cell: str, subjects: dict[str, Subject], sizes: Sizes, images: int | None = None, count: bool = False,
    apart: dict[str, float] | None = None, targets: dict[str, str] | None = None,
) -> list[Row]:  # fmt: skip
    """Let the subjects take turns; a row each, `ratio` the median over the turns against the first subject.

    images: those of a call. count: tell FLOPs. apart: what each of these subjects differs by from the others' results;
    targets: of ratios, at the paper's sizes. Peak memory is that of a subject's first turn on a GPU; on a CPU the most
    the process has used until then.
    """
    turns: dict[str, list[list[float]]] = {subject: [] for subject in subjects}
    memory: dict[str, float] = {}
    for turn in range(sizes.turns):
        for name, run in subjects.items():
            print(f"{cell}, turn {turn + 1} of {sizes.turns}: {name}", file=sys.stderr)
            if sizes.device.type == "cuda":
                gc.collect()
                torch.cuda.reset_peak_memory_stats(sizes.device)
            clock = Clock(sizes.warmup + max(1, sizes.steps // sizes.turns), milliseconds(sizes.device))
            run(clock)
            turns[name].append(clock.spans()[min(sizes.warmup, len(clock.spans()) - 1) :])
            memory.setdefault(name, peak_memory_mib(sizes.device))
    first = [statistics.median(times) for times in next(iter(turns.values()))]
    rows = []
    for name, measured in turns.items():
        times = list(chain.from_iterable(measured))
        low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        row = Row(cell, name, median, low, high, len(times), peak_memory_mib=memory[name])
        row.images_per_s = images and 1000 * images / median
        if count:
            row.gflop = flops_of(subjects[name]) / 1e9
            row.tflops = row.gflop / median
            row.of_matmul = sizes.matmul and row.tflops / sizes.matmul
        if rows:
            row.ratio = statistics.median(statistics.median(own) / base for own, base in zip(measured, first))
        row.target = "" if sizes.small else (targets or {}).get(name, "")
        if apart and name in apart:
            verify(row, apart[name])
        rows.append(row)
    return rows


def compare_calls(
    cell: str, calls: dict[str, Callable[[], Any]], sizes: Sizes, images: int | None = None, equal: bool = True
) -> list[Row]:
    """`compare` of plain functions; `equal`: what the others return is held against what the first one does."""
    rows = compare(cell, {name: partial(Clock.repeat, call=call) for name, call in calls.items()}, sizes, images)
    if equal:
        expected = calls[rows[0].subject]()
        for row in rows[1:]:
            verify(row, difference(expected, calls[row.subject]()))
    return rows


def leaves(result: Any, name: str = "") -> dict[str, Any]:
    """What dictionaries, lists and tuples hold, by the way to it."""
    if not isinstance(result, dict | list | tuple):
        return {name: result}
    parts = result.items() if isinstance(result, dict) else enumerate(result)
    return {way: leaf for key, part in parts for way, leaf in leaves(part, f"{name}.{key}").items()}


def difference(first: Any, second: Any) -> float:
    """The largest |a - b| of all tensors, relative to a tensor's largest |a|; infinite where anything else differs."""
    first, second, worst = leaves(first), leaves(second), 0.0
    if first.keys() != second.keys():
        return math.inf
    for name, a in first.items():
        b = second[name]
        if not isinstance(a, Tensor):
            worst = worst if a == b else math.inf
            continue
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        scale = a.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        worst = max(worst, float((a - b).abs().max() / scale))
    return worst


def verify(row: Row, apart: float) -> None:
    """Write the equality column; a ratio between things that differ is void."""
    row.difference = apart
    if not apart <= VOID_ABOVE:
        row.ratio, row.target = None, "void: results differ"


def context(sizes: Sizes) -> dict[str, Any]:
    """What a number means nothing without: machine, versions, sizes."""
    cuda = sizes.device.type == "cuda"
    about = {"device": torch.cuda.get_device_name(sizes.device) if cuda else processor_name()}
    about |= {"clock": "CUDA events" if cuda else "process time", "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, "cuda": torch.version.cuda if cuda else None, "precision": sizes.precision}
    about |= {"matmul_tflops": sizes.matmul and round(sizes.matmul, 4), "commit": commit(), "small": sizes.small}
    return about


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


COLUMNS = (
    ("cell", "cell", ""), ("subject", "subject", ""), ("ms", "ms_median", ".1f"), ("quartiles", "quartiles", "s"),
    ("images/s", "images_per_s", ".2f"), ("TFLOP/s", "tflops", ".3g"), ("of matmul", "of_matmul", ".0%"),
    ("waiting", "waiting", ".0%"), ("peak MiB", "peak_memory_mib", ".0f"), ("ratio", "ratio", ".2f"),
    ("target", "target", "s"), ("difference", "difference", ".1e"),
)  # heading, value, format; none for words  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows, aligned; without the columns in which none has anything."""
    columns = []
    for heading, name, form in COLUMNS:
        values = [getattr(row, name) for row in rows]
        texts = [heading, *("" if value is None else format(value, form) for value in values)]
        width = max(map(len, texts))
        if any(texts[1:]):
            columns.append([text.rjust(width) if form else text.ljust(width) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))
