"""Clock, rows and table that the benchmarks of all papers share."""

import gc
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.runs import commit
from common.training.device import peak_memory_mib

VOID_ABOVE = 1e-4  # two subjects that differ by more do not compute the same thing: no ratio is told
Subject = Callable[[], list[float]]  # one turn: the milliseconds of every timed call


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


@dataclass
class Row:
    """One subject of one cell; `ratio` is its time, or where none was taken its memory, against the first subject's.

    gflop: of one call, by formula (flops.py). of_matmul: the share of a large matrix product's rate. waiting: the share
    of a step's time that passes before its batch is there.
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


class Clock:
    """Milliseconds between start() and stop(): CUDA events on a GPU, the process's own time on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.process_time())

    start = stop = mark

    def times(self) -> list[float]:
        """Every interval measured so far."""
        pairs = list(zip(self.marks[::2], self.marks[1::2]))
        if self.cuda:
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [1000 * (end - begin) for begin, end in pairs]


def timed_calls(call: Callable[[], Any], sizes: Sizes) -> list[float]:
    """One turn of a function: warm-up, then its share of the timed calls."""
    clock = Clock(sizes.device)
    for _ in range(sizes.warmup + max(1, sizes.steps // sizes.turns)):
        clock.start()
        call()
        clock.stop()
    return clock.times()[sizes.warmup :]


def timed_steps(clock: Clock) -> Callable[[str, int, dict[str, Any]], Iterator[int]]:
    """A training loop's `steps` that times what the loop does between two of them."""

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for step in range(total):
            clock.start()
            yield step
            clock.stop()

    return steps


def matmul_rate(device: torch.device, precision: str = "fp32") -> float:
    """TFLOP/s of the product of two large square matrices, the best of several.

    In bfloat16 for "bf16", else in float32 as torch's switch for TF32 stands.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, calls = (8192, 10) if device.type == "cuda" else (1536, 5)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    clock = Clock(device)
    for _ in range(calls):
        clock.start()
        a @ b
        clock.stop()
    return 2 * side**3 / min(clock.times()) / 1e9


def compare(
    cell: str,
    subjects: dict[str, Subject],
    sizes: Sizes,
    images: int | None = None,
    work: Sequence[float] | None = None,
) -> list[Row]:
    """Let the subjects take turns; a row each, `ratio` the median over the turns against the first subject.

    `images` are those of a call, `work` the FLOPs of a call of each subject.

    Peak memory is that of a subject's first turn on a GPU; on a CPU the most the process has used until then.
    """
    turns: dict[str, list[list[float]]] = {subject: [] for subject in subjects}
    memory: dict[str, float] = {}
    for turn in range(sizes.turns):
        for subject, run in subjects.items():
            print(f"{cell}, turn {turn + 1} of {sizes.turns}: {subject}", file=sys.stderr)
            if sizes.device.type == "cuda":
                gc.collect()
                torch.cuda.reset_peak_memory_stats(sizes.device)
            turns[subject].append(run())
            memory.setdefault(subject, peak_memory_mib(sizes.device))
    first = [statistics.median(times) for times in next(iter(turns.values()))]
    rows = []
    for number, (subject, measured) in enumerate(turns.items()):
        times = list(chain.from_iterable(measured))
        quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        row = Row(cell, subject, quartiles[1], quartiles[0], quartiles[2], len(times))
        row.images_per_s = images and 1000 * images / row.ms_median
        row.peak_memory_mib = memory[subject]
        if work is not None:
            row.gflop = work[number] / 1e9
            row.tflops = row.gflop / row.ms_median
            row.of_matmul = sizes.matmul and row.tflops / sizes.matmul
        if rows:
            row.ratio = statistics.median(statistics.median(own) / base for own, base in zip(measured, first))
        rows.append(row)
    return rows


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest |a - b| of all tensors, each relative to its own largest |a|; infinite when the names differ."""
    if first.keys() != second.keys():
        return math.inf
    worst = 0.0
    for name, a in first.items():
        scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
        worst = max(worst, float((a - second[name]).abs().max() / scale))
    return worst


def verify(row: Row, found: float) -> None:
    """Write the equality column; a ratio between things that differ is void."""
    row.difference = found
    if not found <= VOID_ABOVE:
        row.ratio, row.target = None, "void: results differ"


def context(sizes: Sizes) -> dict[str, Any]:
    """What a number means nothing without: machine, versions, sizes."""
    cuda = sizes.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(sizes.device) if cuda else processor_name(),
        "clock": "CUDA events" if cuda else "process time",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "precision": sizes.precision,
        "matmul_tflops": sizes.matmul and round(sizes.matmul, 4),
        "commit": commit(),
        "small": sizes.small,
    }


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def as_json(about: dict[str, Any], rows: dict[str, list[Row]]) -> dict[str, Any]:
    return about | {"rows": [{"paper": paper} | asdict(row) for paper, found in rows.items() for row in found]}


def table(rows: list[Row]) -> str:
    """The rows, aligned; without the columns in which none has anything."""

    def told(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [
        {
            "cell": row.cell,
            "subject": row.subject,
            "ms": told(row.ms_median, ".1f"),
            "quartiles": row.ms_quartile1 and f"{row.ms_quartile1:.1f} to {row.ms_quartile3:.1f}" or "",
            "images/s": told(row.images_per_s, ".2f"),
            "TFLOP/s": told(row.tflops, ".3g"),
            "of matmul": told(row.of_matmul, ".0%"),
            "waiting": told(row.waiting, ".0%"),
            "peak MiB": told(row.peak_memory_mib, ".0f"),
            "ratio": told(row.ratio, ".2f"),
            "target": row.target,
            "difference": told(row.difference, ".1e"),
        }
        for row in rows
    ]
    widths = {
        column: max(len(column), *(len(line[column]) for line in lines))
        for column in lines[0]
        if any(line[column] for line in lines)
    }
    words = ("cell", "subject")  # the other columns are numbers
    return "\n".join(
        "  ".join(
            line[column].ljust(width) if column in words else line[column].rjust(width)
            for column, width in widths.items()
        ).rstrip()
        for line in ({column: column for column in widths}, *lines)
    )
