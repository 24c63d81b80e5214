"""Time the papers' real code paths on random weights and synthetic data: `python -m tests.benchmarks --help`."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

from common.errors import exit_cleanly
from common.options import option, read
from common.runs import write_text
from common.training.device import pick_device
from tests.benchmarks import loaders, records
from tests.benchmarks.measure import Row, Sizes, context, matmul_rate, table

PAPERS = ("zscl", "zscl_cil", "moe_adapters", "moe_adapters_cil", "inflora", "vq_prompt", "it_prompt", "alta")
DESCRIPTION = """\
Milliseconds a step, images a second and peak memory of our own training and evaluation code, beside the same work
done the plain way. No data and no trained weights are needed. A ratio is against the first row of its cell, and
stands only where both rows compute the same: `difference` is the largest relative difference of losses, gradients,
parameters, class vectors or accuracies after the same work (training steps in float64, on part of the batch or on
small towers), and above 1e-4 the ratio is void.

On a GPU CUDA events are timed; on a CPU the process's own time in one thread, so that other load disturbs little.
The subjects of a cell take turns. TFLOP/s are of what the subject computes, as torch counts (2 a multiply-add; matrix
products, convolutions and attention); beside them the share of the rate of one large matrix product, measured first.
Peak memory on a CPU is the most the process has used so far; in the rows called counted it is what the live tensors of
the papers' sizes come to, from their shapes alone.

`loaders` times the input pipeline instead, beside the rate at which each paper's step takes images (of the same
command, of the device's recorded rows, or --step-rate).
"""
EPILOG = """\
examples:
  python -m tests.benchmarks all --small             minutes, on anything
  python -m tests.benchmarks device-check            minutes: whether a new GPU computes right, as a text for an issue
  python -m tests.benchmarks all --record            the papers' sizes, meant for a GPU; kept in results/benchmarks/
  python -m tests.benchmarks zscl --steps 2 --classes 10 --batch-size 4   the paper's sizes on a CPU, in minutes
  python -m tests.benchmarks alta --steps 2          likewise, whole batches
  python -m tests.benchmarks loaders                 images a second of the input pipeline by number of workers
"""
KEPT = "results/benchmarks/<device>.csv"


def writable(path: Path) -> str | None:
    """A check of files that are written at the end."""
    if path.is_dir():
        return "it is a folder. Name a file."
    free = path == Path(KEPT) or os.access(path.parent, os.W_OK)
    return None if free else "its folder does not exist or cannot be written. Choose another."


@dataclass(frozen=True)
class Options:
    paper: str = option(help="whose, or all", positional=True, choices=(*PAPERS, "loaders", "device-check", "all"))
    small: bool = option(False, "tiny towers and images instead of the paper's sizes")
    device: str = option("auto", "auto (CUDA when there is one), cpu, cuda or cuda:<index>")
    steps: int | None = option(None, "timed calls of each row (50, 20 with --small)", at_least=1)
    batch_size: int | None = option(None, "images a step instead of the paper's", flags=("--batch-size",), at_least=1)
    classes: list[int] = option([], "class counts instead of the paper's", words=True, at_least=1)
    workers: list[int] = option([], "loaders: worker processes to try", words=True, at_least=0)
    step_rate: float | None = option(None, "loaders: images a second that a step would take", flags=("--step-rate",),
                                     above=0)  # fmt: skip
    out: Path | None = option(None, "FILE.json: write the rows, or the check's text, there too", check=writable)
    record: Path | None = option(
        None, f"FILE.csv: keep the rows there, each in the place of an older one ({KEPT} without a file)",
        alone=KEPT, check=writable,
    )  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> Options:
    return read(Options, argv, "tests.benchmarks", DESCRIPTION, EPILOG)


def sizes_of(options: Options) -> Sizes:
    device, small = pick_device(options.device), options.small
    steps = options.steps or (20 if small else 50)
    warmup = min(10, steps) if device.type == "cuda" else 3 if small else 1
    return Sizes(device, small, steps, warmup, options.batch_size, tuple(options.classes))


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    names, sizes = [*PAPERS, "loaders"] if options.paper == "all" else [options.paper], sizes_of(options)
    usual = records.file_of(context(sizes)["device"])
    kept = usual if options.record == Path(KEPT) else options.record
    if kept:
        records.read(kept)  # refused now rather than after hours
    if options.paper == "device-check":
        import_module("tests.device.check").check(sizes, kept, options.out)
    if sizes.device.type == "cpu":
        torch.set_num_threads(1)
    sizes = replace(sizes, matmul=matmul_rate(sizes.device))
    about, rows = context(sizes), dict[str, list[Row]]()
    print("  ".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    for name in names:
        if name == "loaders":
            rates = loaders.step_rates(rows, [] if sizes.small else records.read(usual), options.step_rate)
            rows[name] = loaders.rows(sizes, rates, options.workers)
        else:
            rows[name] = import_module(f"tests.benchmarks.{name}").rows(sizes)
        print(f"\n{name}\n{table(rows[name])}", flush=True)
        if kept:
            clock = "wall" if name == "loaders" else about["clock"]
            records.record(kept, about | {"clock": clock}, {name: rows[name]}, sizes)
    if options.out:
        lines = [{"paper": paper} | asdict(row) for paper, of_paper in rows.items() for row in of_paper]
        write_text(options.out, json.dumps(about | {"rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
