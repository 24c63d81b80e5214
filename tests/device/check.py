"""What a GPU has to show, in one command of a few minutes: `python -m tests.benchmarks device-check`.

The official code's fixtures, steps of each paper against the CPU's, two precisions and throughput at the papers' sizes,
memory against what was counted, runs that are stopped. What fails is told, and the rest goes on. On a CPU, or with
--small, all is tiny.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from alta.buffer import Buffer
from alta.heads import Head
from common.clip.tokenizer import cut_prompts
from common.files import write_text
from common.machine import Machine
from common.training.device import compute_deterministically
from common.training.numerics import prepare
from moe_adapters.cil_options import Options, training_options
from tests.benchmarks import alta, inflora, it_prompt, records, vq_prompt, zscl, zscl_cil
from tests.benchmarks.inputs import float64_kept, one_batch, prompts, small_or_paper_clip
from tests.benchmarks.measure import Clock, Sizes, compare, context, difference, matmul_rate
from tests.benchmarks.memory import LiveBytes
from tests.device.__main__ import FILE as COUNTED
from tests.device.elsewhere import FIXTURES, run_fixtures
from tests.device.steps import STEPS as COUNTED_STEPS
from tests.moe_adapters import plain_ways
from tests.test_fence import MEASURED, RUNS, prepared
from tests.zscl.plain_ways import left_by, uneven_clip
from zscl.training import TrainingOptions

STEPS, IMAGES, CLASSES = 3, 4, 4  # of the steps that are compared with the CPU's
SAME, SAME_LOSS = 1e-6, 1e-3  # losses and weights in float64; losses in float32, as AdamW acts on rounding noise
NEAR = 0.05  # losses in bf16, of those in fp32
PEAKS = 0.9, 1.3  # of the counted bytes: kernels have workspaces, and the allocator rounds
SMALLEST, LIGHTEST = "zscl/test_weights.py", ("MoE-Adapters' DDAS, 64 images", "fp32")  # all that is done in small
STOPPED = (
    "zscl", "zscl_cil_icarl", "moe_adapters", "inflora", "vq_prompt", "it_prompt_cncm", "alta", "moe_adapters_cil"
)  # fmt: skip
Left = dict[str, Any]  # what steps leave: "losses", and all that is trained


class Report:
    """A line for every check, printed as it comes and kept to be pasted into an issue."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed, self.start = 0, time.perf_counter()

    def attempt(self, part: str, check: Callable[[], tuple[bool, str]]) -> None:
        """`check` says whether it passed, and its numbers. An error of any kind is a failure."""
        print(f"[{time.perf_counter() - self.start:4.0f} s] {part} ...", file=sys.stderr, flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                passed, numbers = check()
        except (Exception, SystemExit) as error:
            passed, numbers = False, " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self.failed += not passed
        self.tell(f"{'pass' if passed else 'FAIL'}  {part}: {numbers}")

    def tell(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)


# A few steps of each paper: the same weights and batches on every device


@dataclass(frozen=True)
class Place:
    """Where and in which numbers a paper's steps compute, at its sizes or in small."""

    machine: Machine
    dtype: torch.dtype = torch.float32
    small: bool = True

    def made(self, model: Any) -> Any:
        prepare(self.machine, model.to(self.machine.device, self.dtype))
        return model

    def size(self, images: int) -> int:
        return IMAGES if self.small else images

    def float64_kept(self) -> contextlib.AbstractContextManager:
        return float64_kept() if self.dtype == torch.float64 else contextlib.nullcontext()


def zscl_steps(options: TrainingOptions, place: Place, clock: Clock) -> Left:
    student, teacher = (place.made(uneven_clip(seed) if place.small else small_or_paper_clip(False)) for seed in (8, 9))
    device, width, size = place.machine.device, teacher.config.embed_dim, place.size(zscl.BATCH)
    sentences = zscl.unit_vectors(zscl.SMALL_CAPTIONS if place.small else zscl.CAPTIONS, width).to(device, place.dtype)
    reference = zscl.reference_of(teacher, sentences, size, known=False)
    tokens = cut_prompts(prompts(CLASSES)).to(device)
    with place.float64_kept():
        log = zscl.train(student, tokens, one_batch(teacher, size, CLASSES), reference, options, clock)
    return left_by(student, log["CE"])


def moe_steps(build: Callable[..., Any], images: int, options: Any, place: Place, clock: Clock) -> Left:
    model = place.made(build(small_or_paper_clip(place.small)))
    for index, block in enumerate(plain_ways.moe_blocks(model) if place.small else ()):  # devices draw differently
        block.dropout.p, block.draw_noise = 0.0, partial(plain_ways.drawn_noise, [0], index)
    tokens = cut_prompts(prompts(CLASSES)).to(place.machine.device)
    with place.float64_kept():
        batch = one_batch(model, place.size(images), CLASSES)
        plain_ways.train(model, tokens, batch, None, options, clock.calls, clock.steps)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | {"losses": clock.state["log"].tensors["loss"]}


def inflora_steps(place: Place, clock: Clock) -> Left:
    network = place.made(inflora.random_network(place.small, inflora.CLASSES))
    return inflora.train(network, inflora.one_batch(network, place.size(128)), inflora.TASKS - 1, False, clock)


def vq_steps(place: Place, clock: Clock) -> Left:
    network = place.made(vq_prompt.random_network(place.small, vq_prompt.CLASSES))
    return vq_prompt.train(network, vq_prompt.one_batch(network, place.size(64)), clock)


def it_steps(place: Place, clock: Clock) -> Left:
    config = it_prompt.SMALL if place.small else it_prompt.REAL
    learned = it_prompt.learned_model(config, place.machine.device, place.dtype)
    prepare(place.machine, learned.encoder)
    return it_prompt.train(learned, it_prompt.one_batch(learned, place.size(128)), clock)


def alta_steps(place: Place, clock: Clock) -> Left:
    clip = place.made(alta.random_clip(alta.SMALL_RN if place.small else alta.RN50))
    classes, slots = (alta.EQUAL_CLASSES, alta.EQUAL_BUFFER) if place.small else (100, alta.BUFFER)
    return alta.train((Head, Buffer), clip, alta.TASKS // 2, classes, place.size(32), slots, clock)


with_adapters = partial(plain_ways.with_adapters, routing="spread")
STEPS_OF: dict[str, tuple[int, Callable[[Place, Clock], Left]]] = {  # images of a step at the paper's sizes
    "zscl": (64, partial(zscl_steps, replace(zscl.ZSCL, avg_freq=STEPS - 1))),
    "zscl_cil": (64, partial(zscl_steps, zscl_cil.OPTIONS)),
    "moe_adapters": (64, partial(moe_steps, with_adapters, 64, plain_ways.OPTIONS)),
    "moe_adapters_cil": (
        128, partial(moe_steps, plain_ways.with_experts, 128, training_options(Options(lr=1e-3), STEPS))
    ),
    "inflora": (128, inflora_steps),
    "vq_prompt": (64, vq_steps),
    "it_prompt": (128, it_steps),
    "alta": (32, alta_steps),
}  # fmt: skip


def same_steps(paper: str, device: torch.device) -> tuple[bool, str]:
    """Losses and trained weights of the device against the CPU's."""
    machines, steps = (Machine(torch.device("cpu")), Machine(device)), STEPS_OF[paper][1]
    double = difference(*(steps(Place(machine, torch.float64), Clock(STEPS)) for machine in machines))
    single = difference(*(steps(Place(machine), Clock(STEPS))["losses"] for machine in machines))
    told = f"losses and weights in float64 within {double:.1e}, losses in float32 within {single:.1e} of the CPU's"
    return double <= SAME and single <= SAME_LOSS, told


class AtWork:
    """The papers' steps at their sizes, in both precisions: losses, time, memory; rows of the benchmarks' table."""

    def __init__(self, sizes: Sizes, about: dict[str, Any], record: Path | None) -> None:
        self.sizes, self.about, self.record = replace(sizes, steps=STEPS, warmup=2), about, record
        self.losses: dict[str, Tensor] = {}  # of a paper's first step here, in fp32
        self.ms: dict[str, float] = {}  # of the same

    def step(self, paper: str, precision: str, deterministic: bool = False) -> tuple[bool, str]:
        images, steps = STEPS_OF[paper]
        if deterministic and self.sizes.device.type == "cuda":
            compute_deterministically()  # for good
        sizes, left = replace(self.sizes, precision=precision), []
        place = Place(Machine(sizes.device, precision=precision), small=sizes.small)
        subject = {"a step": lambda clock: left.append(steps(place, clock)["losses"])}
        row = compare("device check", subject, sizes, place.size(images))[0]
        if self.record and not deterministic:
            records.record(self.record, self.about | {"precision": precision}, {paper: [row]}, sizes)
        apart = difference(self.losses.setdefault(paper, left[0]), left[0])
        times = row.ms_median / self.ms.setdefault(paper, row.ms_median)
        told = f"{row.ms_median:.1f} ms ({times:.2f} of the first), {row.images_per_s:.1f} images/s, peak "
        told += f"{row.peak_memory_mib:.0f} MiB, "
        return apart <= NEAR, told + f"losses within {apart:.1e} of the first precision's"


# Memory


def peak(run: Callable[[], None], device: torch.device) -> int:
    """Most bytes at a time that `run` takes, as allocated on a GPU, as counted on a CPU."""
    if device.type == "cuda":
        return zscl.allocated_peak(run)
    with LiveBytes() as live:
        run()
    return live.peak


def as_counted(row: dict[str, str], column: str, device: torch.device) -> tuple[bool, str]:
    """The peak of a step of counted.csv against what has been counted without a GPU."""
    precision = "bf16" if column == "bf16" else "fp32"
    machine = Machine(device, precision=precision, checkpoint_activations=column == "checkpointed")
    found = peak(partial(COUNTED_STEPS[row["step"]], machine, Clock(2)), device)
    ratio = found / int(row[column])
    return PEAKS[0] <= ratio <= PEAKS[1], f"peak {found / 2**20:.0f} MiB, {ratio:.2f} of what is counted"


# A run that is stopped half way and started again


def words_on(device: torch.device, words: list[str]) -> list[str]:
    """A stored command's words, for a device and to the same bits each time."""
    if any(word.startswith("hydra.") for word in words):
        return [*words, f"device={device}", "deterministic=true"]
    if "--device" in words:
        place = words.index("--device")
        words = words[:place] + words[place + 2 :]
    return ["--device", str(device), "--deterministic", *words]


def end(name: str, device: torch.device, stopped: bool) -> Left:
    """Records and weights that a stored command leaves, unbroken or stopped after a third of its steps and gone on."""
    run = json.loads((RUNS / f"{name}.json").read_text())
    steps, third = itertools.count(1), len(run["outcome"]["gradient_norms"]) // 3
    with TemporaryDirectory() as folder, contextlib.ExitStack() as watched:
        main, words = prepared(run, Path(folder))
        if stopped:
            hook = register_optimizer_step_post_hook(
                lambda *_: signal.raise_signal(signal.SIGINT) if next(steps) == third else None
            )
            watched.callback(hook.remove)
            with contextlib.suppress(SystemExit):
                main(words_on(device, words))
            assert next(steps) == third + 1, "the run was not stopped"
        main(words_on(device, words))
        (path,) = Path(folder).rglob("record.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [[line[key] for key in ("after_task", "dataset", "metric", "value")] for line in lines]
        weights = {path.name: torch.load(path, "cpu", weights_only=True) for path in Path(folder).rglob("*.pth")}
    return {"records": sorted(line for line in kept if line[2] not in MEASURED)} | weights


def goes_on(name: str, device: torch.device) -> tuple[bool, str]:
    apart = difference(end(name, device, False), end(name, device, True))
    return apart == 0, "stopped and gone on, it ends with the same bits" if apart == 0 else f"ends {apart:.1e} apart"


# The command


def driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "none"


def check(sizes: Sizes, record: Path | None, out: Path | None) -> None:
    """Every part on the device of `sizes`; exit code 1 if one has failed. `out`: where the text lies afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product, long before the last part
    device, small = sizes.device, sizes.small or sizes.device.type == "cpu"
    sizes = replace(sizes, small=small, matmul=matmul_rate(device))
    about = context(sizes)
    record, report = record or (None if small else records.file_of(about["device"])), Report()
    told = {"driver": driver(), "python": sys.version.split()[0], "date": date.today().isoformat()}
    report.tell("\n".join(["device check", *(f"{key}: {value}" for key, value in (about | told).items())]))
    for file in [SMALLEST] if small else FIXTURES:
        report.attempt(f"fixtures, {file}", partial(run_fixtures, device, (file,)))
    for paper in STEPS_OF:
        report.attempt(f"{STEPS} steps, {paper}", partial(same_steps, paper, device))
    work = AtWork(sizes, about, record)
    size = "small" if small else "the paper's sizes"
    for paper, precision in itertools.product(STEPS_OF, ("fp32", "bf16")):
        report.attempt(f"a step, {size}, {paper}, {precision}", partial(work.step, paper, precision))
    for row, column in itertools.product(csv.DictReader(COUNTED.open()), ("fp32", "bf16", "checkpointed")):
        if row[column] and (not small or (row["step"], column) == LIGHTEST):
            report.attempt(f"memory, {row['step']}, {column}", partial(as_counted, row, column, device))
    for name in STOPPED[-1:] if small else STOPPED:  # late, as it leaves torch deterministic
        report.attempt(f"resume, {name}", partial(goes_on, name, device))
    for paper in [*STEPS_OF][: 1 if small else None]:
        report.attempt(f"a step, {size}, {paper}, deterministic", partial(work.step, paper, "fp32", True))
    report.tell(f"{report.failed} of {len(report.lines) - 1} checks failed, {time.perf_counter() - report.start:.0f} s")
    out = out or Path(f"device-check-{records.file_of(about['device']).stem}.txt")
    write_text(out, "\n".join(report.lines) + "\n")
    print(f"paste {out} into an issue, whatever it says", flush=True)
    sys.exit(1 if report.failed else 0)
