"""Time the papers' real code paths on random weights and synthetic data: `python -m tests.benchmarks --help`."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from common.errors import UserError, exit_cleanly
from common.runs import write_text
from common.training.device import pick_device
from tests.benchmarks import alta, inflora, it_prompt, moe_adapters, moe_adapters_cil, vq_prompt, zscl, zscl_cil
from tests.benchmarks import loaders, records
from tests.benchmarks.measure import Row, Sizes, as_json, context, matmul_rate, table

PAPERS = {
    "zscl": zscl.rows, "zscl_cil": zscl_cil.rows, "moe_adapters": moe_adapters.rows,
    "moe_adapters_cil": moe_adapters_cil.rows, "inflora": inflora.rows,
    "vq_prompt": vq_prompt.rows, "it_prompt": it_prompt.rows, "alta": alta.rows,
}  # fmt: skip
DESCRIPTION = """\
Milliseconds a step, images a second and peak memory of our own training and evaluation code, beside the same work
done the plain way. No data and no trained weights are needed. A ratio is against the first row of its cell, and
stands only where both rows compute the same: `difference` is the largest relative difference of losses, gradients,
parameters, class vectors or accuracies after the same work (training steps in float64, on part of the batch or on
small towers), and above 1e-4 the ratio is void.

On a GPU CUDA events are timed; on a CPU the process's own time in one thread, so that other load disturbs little.
The subjects of a cell take turns. TFLOP/s are those of a formula (2 a multiply-add; matrix products, convolutions and
attention), of what the subject computes; beside them the share of the rate of one large matrix product, measured first.
Peak memory on a CPU is the most the process has used so far; in the rows called counted it is what the live tensors of
the papers' sizes come to, from their shapes alone.

`loaders` times the input pipeline instead, beside the rate at which each paper's step takes images (of the same
command, of the device's recorded rows, or --step-rate).
"""
EPILOG = """\
examples:
  python -m tests.benchmarks all --small             minutes, on anything
  python -m tests.benchmarks moe_adapters --small    seconds
  python -m tests.benchmarks all --record            the papers' sizes, meant for a GPU; kept in results/benchmarks/
  python -m tests.benchmarks zscl --steps 2 --classes 10 --batch-size 4   the paper's sizes on a CPU, in minutes
  python -m tests.benchmarks alta --steps 2          likewise, whole batches
  python -m tests.benchmarks loaders                 images a second of the input pipeline by number of workers
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paper", help=f"{', '.join(PAPERS)}, loaders, or all of them")
    parser.add_argument("--small", action="store_true", help="tiny towers and images instead of the paper's sizes")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda or cuda:<index>")
    parser.add_argument("--steps", type=int, help="timed calls of each row (default: 50, 20 with --small)")
    parser.add_argument("--batch-size", type=int, help="images a step instead of the paper's")
    parser.add_argument("--classes", type=int, nargs="+", metavar="N", help="class counts instead of the paper's")
    parser.add_argument("--workers", type=int, nargs="+", metavar="N", help="loaders: worker processes to try")
    parser.add_argument("--step-rate", type=float, metavar="N", help="loaders: images a second that a step would take")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the rows there too")
    parser.add_argument(
        "--record", type=Path, nargs="?", const=Path(), metavar="FILE.csv",
        help="keep the rows there, each in the place of an older one (default: results/benchmarks/<device>.csv)",
    )  # fmt: skip
    return parser.parse_args(argv)


def sizes_of(args: argparse.Namespace) -> Sizes:
    """The sizes asked for; UserError for a number below one."""
    given = {"steps": [args.steps], "batch-size": [args.batch_size], "classes": args.classes or []}
    given |= {"step-rate": [args.step_rate]}
    for flag, values in given.items():
        if any(value is not None and value < 1 for value in values):
            raise UserError(f"--{flag}: give numbers of 1 or more.")
    if any(count < 0 for count in args.workers or []):
        raise UserError("--workers: give numbers of 0 or more.")
    device = pick_device(args.device)
    steps = args.steps or (20 if args.small else 50)
    warmup = min(10, steps) if device.type == "cuda" else 3 if args.small else 1
    return Sizes(device, args.small, steps, warmup, args.batch_size, tuple(args.classes or ()))


def benchmarks_of(name: str) -> list[str]:
    """The papers, or loaders, that a name stands for; UserError for one that is unknown."""
    if name == "all":
        return [*PAPERS, "loaders"]
    if name not in PAPERS and name != "loaders":
        raise UserError(f"unknown paper {name!r}. There are benchmarks of: {', '.join(PAPERS)}, loaders; or say all.")
    return [name]


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    names, sizes = benchmarks_of(args.paper), sizes_of(args)
    if args.out and not os.access(args.out.parent, os.W_OK):
        raise UserError(f"--out {args.out}: its folder does not exist or cannot be written. Choose another.")
    if sizes.device.type == "cpu":
        torch.set_num_threads(1)
    sizes = replace(sizes, matmul=matmul_rate(sizes.device, sizes.precision))
    found: dict[str, list[Row]] = {}
    about = context(sizes)
    kept = records.file_of(about["device"]) if args.record == Path() else args.record
    if kept:
        records.read(kept)  # refused now rather than after hours
    print("  ".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    for name in names:
        if name == "loaders":
            lines = [] if sizes.small else records.read(records.file_of(about["device"]))
            found[name] = loaders.rows(sizes, loaders.step_rates(found, lines, args.step_rate), args.workers)
        else:
            found[name] = PAPERS[name](sizes)
        print(f"\n{name}\n{table(found[name])}", flush=True)
        if kept:
            clock = {"clock": "wall"} if name == "loaders" else {}
            records.record(kept, about | clock, {name: found[name]}, sizes)
    if args.out:
        write_text(args.out, json.dumps(as_json(about, found), indent=1) + "\n")


if __name__ == "__main__":
    main()
