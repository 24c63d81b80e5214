"""The input pipeline: images a second of the real training streams by workers, and how long steps wait for them.

Files are synthetic JPEGs of 500 x 375 pixels and about 75 kB, read over and over, so from the system's cache; arrays
are CIFAR's. Streams are `Batches` as the papers open them. Wall-clock time, since workers are other processes; but
processor time in the first row of each stream, which other load on the machine hardly disturbs.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from common.datasets.images import ImageArrays, ImageFiles
from common.datasets.transforms import clip_eval, clip_train, vit_train
from common.training.batches import Batches
from common.training.device import automatic_workers
from tests.benchmarks.measure import Clock, Row, Sizes, compare

BATCH, FILES, STEP_SECONDS = 64, 96, 0.5  # of a batch that a step's rate is tried with, at most
MOST_WAITING = 0.05
SOURCES = {
    "clip_train, JPEG": clip_train, "clip_eval, JPEG": clip_eval, "vit_train, JPEG": vit_train,
    "clip_train, CIFAR": clip_train, "vit_train, CIFAR": vit_train,
}  # fmt: skip
# what a step takes a batch of each from, and the subject that is our step in the paper's rows
PAPERS = {
    "zscl": (("clip_train, JPEG", "clip_eval, JPEG"), "ZSCL, teacher's image features known"),
    "zscl_cil": (("clip_train, CIFAR", "clip_eval, JPEG"), "ZSCL, teacher's image features known"),
    "moe_adapters": (("clip_train, JPEG",), "training step"),
    "moe_adapters_cil": (("clip_train, CIFAR",), "training step"),
    "inflora": (("vit_train, JPEG",), "task 1"),
    "vq_prompt": (("vit_train, JPEG",), "VQ-Prompt"),
    "it_prompt": (("clip_train, CIFAR",), "IT-Prompt"),
    "alta": (("vit_train, CIFAR",), "ours"),
}


def step_rates(new: dict[str, list[Row]], kept: Iterable[dict[str, str]], given: float | None) -> dict[str, float]:
    """Images a second that each paper's step takes: `given`, or the fastest of our steps in this command's rows, or
    else in the kept lines of the papers' sizes."""
    if given:
        return dict.fromkeys(PAPERS, given)
    kept_rows = [
        (line["paper"], line["cell"], line["subject"], float(line["images_per_s"]))
        for line in kept
        if line["sizes"].startswith("paper") and line["images_per_s"]
    ]
    new_rows = [(paper, row.cell, row.subject, row.images_per_s) for paper, rows in new.items() for row in rows]
    rates: dict[str, float] = {}
    for rows in (kept_rows, new_rows):
        for paper, (_, ours) in PAPERS.items():
            steps = [rate for name, cell, subject, rate in rows if (name, subject) == (paper, ours) and "step" in cell]
            rates |= {paper: max(steps)} if steps else {}
    return {paper: rates[paper] for paper in PAPERS if paper in rates}


def rows(sizes: Sizes, rates: dict[str, float], workers: list[int] | None = None) -> list[Row]:
    """Each stream by number of workers; then each paper of `rates`, its steps at that many images a second."""
    workers = workers or sorted({0, 1, 2, automatic_workers()})
    with tempfile.TemporaryDirectory() as folder:
        files = image_files(Path(folder), sizes.small)
        arrays = np.random.default_rng(1).integers(0, 256, (FILES, 32, 32, 3), dtype=np.uint8)
        labels, sets = [0] * FILES, dict[str, Dataset]()
        for name, kind in SOURCES.items():
            reader = partial(ImageFiles, zip(files, labels)) if "JPEG" in name else partial(ImageArrays, arrays, labels)
            sets[name] = reader(transform=kind(32 if sizes.small else 224))
        found = [row for name, images in sets.items() for row in rate_rows(name, images, sizes, workers)]
        for paper, rate in rates.items():
            found += [waiting_row(paper, [sets[name] for name in PAPERS[paper][0]], rate, sizes, n) for n in workers]
    return found


def image_files(folder: Path, small: bool) -> list[Path]:
    """Pictures with detail at several scales, and the noise of a camera."""
    width, height = (80, 60) if small else (500, 375)
    generator, paths = np.random.default_rng(0), []
    for number in range(8 if small else FILES):
        picture = generator.normal(0, 6, (height, width, 3))
        for scale in (4, 16, 64):
            coarse = generator.integers(0, 256, (height // scale + 2, width // scale + 2, 3), dtype=np.uint8)
            picture += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 3
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def of_workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def mean_ms(call: Callable[[int], object], steps: range, seconds: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds of a step on average: workers deliver in bursts, so only the whole says something."""
    start = seconds()
    for step in steps:
        call(step)
    return 1000 * (seconds() - start) / len(steps)


def rate_rows(name: str, images: Dataset, sizes: Sizes, workers: list[int]) -> list[Row]:
    """Milliseconds a batch when nobody does anything with it."""
    size = sizes.batch(BATCH)

    def turn(count: int, seconds: Callable[[], float], clock: Clock) -> None:
        batches, ahead = Batches(images, size, 0, count, sizes.device), 2 * count + 1
        for step in range(ahead):  # what workers have prepared before anyone asked is not timed
            batches[step]
        timed = range(ahead, ahead + max(4, sizes.steps // sizes.turns))
        clock.readings = [0.0, mean_ms(batches.__getitem__, timed, seconds)]

    subjects = {"processor time of one core": partial(turn, 0, time.process_time)}
    subjects |= {of_workers(count): partial(turn, count, time.perf_counter) for count in workers}
    return compare(f"loader, {name}, batch {size}", subjects, sizes, size)


def waiting_row(paper: str, sets: list[Dataset], rate: float, sizes: Sizes, workers: int) -> Row:
    """A loop whose step does nothing for as long as the paper's takes for a batch, as if a GPU did it.

    Slow steps take smaller batches, at the same images a second.
    """
    size = max(1, min(sizes.batch_size or BATCH, int(rate * STEP_SECONDS)))
    streams = [Batches(images, size, 0, workers, sizes.device) for images in sets]
    waited = []

    def step(number: int) -> None:
        start = time.perf_counter()
        for stream in streams:
            stream[number]
        waited.append(time.perf_counter() - start)
        time.sleep(size / rate)

    step(0)  # starts the workers
    waited.clear()
    ms = mean_ms(step, range(1, 1 + (3 if sizes.small else 10)))
    row = Row(f"waiting, {paper}, step at {rate:.4g} images/s", of_workers(workers), ms, calls=len(waited))
    row.images_per_s, row.waiting = 1000 * size / ms, 1000 * sum(waited) / len(waited) / ms
    row.target = f"the {'step' if row.waiting <= MOST_WAITING else 'loader'} limits"
    return row
