"""VQ-Prompt: the training step against its floor, the statistics of a task, classifier re-training, evaluation.

Sizes are those of ImageNet-R in 10 tasks: ViT-B/16, pool of 10, prompts of 8, batch 64, 20 classes a task.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.inputs import OneBatch, small_or_paper_vit
from tests.benchmarks.measure import Clock, Row, Sizes, compare, compare_calls, difference
from tests.vq_prompt.plain_ways import RATES, left_by, plain_draw, plain_forward, train_plainly
from vq_prompt.classifier import ClassStatistics, draw, retrain, task_statistics
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network
from vq_prompt.training import train_task

POOL = {"size": 10, "length": 8, "tau": 1.0}
CLASSES, EQUAL_STEPS, EQUAL_BATCH = 20, 5, 4
TARGET = "<= 1.15"


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    network = random_network(sizes.small, sizes.classes[0] if sizes.classes else CLASSES).to(sizes.device)
    batch = one_batch(network, sizes.batch(64))
    found = step_rows(network, batch, sizes) + statistics_rows(network, batch.images, sizes)
    return found + retraining_rows(network, sizes) + evaluation_rows(network, batch.images, sizes)


def random_network(small: bool, classes: int) -> Network:
    return Network(small_or_paper_vit(small), classes, POOL)


def one_batch(network: Network, size: int) -> OneBatch:
    weight = network.last.weight
    return OneBatch(size, network.feat.patch_embed.img_size[0], len(weight), weight.device, weight.dtype)


def step_rows(network: Network, batch: OneBatch, sizes: Sizes) -> list[Row]:
    """The floor; the real training loop; the plain way; whether the two compute the same."""
    ways = {"VQ-Prompt": train, "the plain way": train_plainly}
    floor = {"floor: a forward without gradients, a forward and backward": partial(train_floor, network, batch)}
    subjects = floor | {name: partial(way, network, batch) for name, way in ways.items()}
    small = random_network(True, CLASSES).double().to(sizes.device)
    ours, plain = (way(small, one_batch(small, EQUAL_BATCH), Clock(EQUAL_STEPS)) for way in ways.values())
    apart = dict.fromkeys(ways, difference(plain, ours))
    return compare("step", subjects, sizes, len(batch.images), True, apart, {"VQ-Prompt": TARGET})


def train_floor(network: Network, batch: OneBatch, clock: Clock) -> None:
    """The frozen ViT alone: once under no_grad, once with gradients down to the first block's input."""
    model = copy.deepcopy(network)

    def step() -> None:
        with torch.no_grad():
            model.feat(batch.images)
            tokens = model.tokens(batch.images)
        features = model.feat.norm(model.feat.blocks(tokens.requires_grad_(True))[:, 0])
        F.cross_entropy(model.last(features), batch.labels).backward()

    clock.repeat(step)


def train(network: Network, batch: OneBatch, clock: Clock) -> dict[str, Tensor]:
    """Losses and trained parameters that `train_task` leaves."""
    model = copy.deepcopy(network)
    options = VQOptions(schedule_type="decay", schedule=[clock.calls], lr=RATES["lr"], prompt_lr_mult=5.0)  # constant
    log = train_task(model, range(model.last.out_features), batch, options, "benchmark", clock.steps)
    return left_by(model, log["loss"])


@torch.inference_mode()
def statistics_rows(network: Network, images: Tensor, sizes: Sizes) -> list[Row]:
    """Features of a task's images and their statistics: a pass a class, whose batches are small, or one pass."""
    count, classes = len(images), max(1, len(images) // 2)  # of two images each
    labels = torch.arange(count, device=sizes.device) % classes

    def moments(features: Tensor, labels: Tensor) -> list[Tensor]:
        statistics = task_statistics(features, labels, range(classes), 1, 0)
        return [statistics.means, statistics.variances]

    def of_classes() -> list[Tensor]:
        features = [plain_forward(network, images[labels == label])[0] for label in range(classes)]
        return moments(torch.cat(features), labels.sort(stable=True).values)

    calls = {"a pass a class": of_classes, "one pass": lambda: moments(network(images)[0], labels)}
    return compare_calls(f"statistics, {count} images, two a class", calls, sizes, count)


def retraining_rows(network: Network, sizes: Sizes) -> list[Row]:
    """An epoch of re-training: samples drawn directly, or from a Gaussian with a full matrix for every class."""
    width, (seen, drawn) = network.feat.embed_dim, (8, 16) if sizes.small else (100, 256)
    generator = torch.Generator().manual_seed(2)
    parts = (torch.rand(seen, width, generator=generator, dtype=torch.float64).to(sizes.device) for _ in range(2))
    statistics = ClassStatistics(*parts, torch.arange(seen, device=sizes.device))
    torch.manual_seed(3)
    start = torch.nn.Linear(width, seen).to(sizes.device)
    options = VQOptions(crct_epochs=1, ca_lr=1e-4, ca_weight_decay=5e-4)

    def retrained(plain: bool) -> dict[str, Tensor]:
        classifier = copy.deepcopy(start)
        torch.manual_seed(4)
        own = torch.Generator(sizes.device).manual_seed(4)
        draws = plain_draw(statistics, drawn) if plain else draw(statistics, drawn, 1, own)
        retrain(classifier, draws, statistics.labels, seen, seen // 2, options)
        return dict(classifier.named_parameters())

    calls = {"a full covariance a class": partial(retrained, True), "drawn directly": partial(retrained, False)}
    return compare_calls(f"re-training, {seen} classes, an epoch", calls, sizes)


@torch.inference_mode()
def evaluation_rows(network: Network, images: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second: both passes, as the original, or the prompted one alone where the queries are known."""
    query = network.query(network.tokens(images))
    calls = {
        "the plain way": lambda: plain_forward(network, images)[0],
        "first test of an image": lambda: network(images)[0],
        "later tests, query known": lambda: network(images, query)[0],
    }
    return compare_calls(f"evaluation, {len(images)} images", calls, sizes, len(images))
