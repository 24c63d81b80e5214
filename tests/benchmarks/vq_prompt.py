"""VQ-Prompt: the training step against its floor, the statistics of a task, classifier re-training, evaluation.

Sizes are those of ImageNet-R in 10 tasks: ViT-B/16, pool of 10, prompts of 8, batch 64, 20 classes a task.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.benchmarks import flops
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from tests.benchmarks.vq_prompt_plain import plain_draw, plain_forward, plain_step
from vq_prompt.classifier import ClassStatistics, RetrainingOptions, draw, retrain, task_statistics
from vq_prompt.prompts import Network
from vq_prompt.training import TrainingOptions, train_task

POOL = {"size": 10, "length": 8, "tau": 1.0}
CLASSES, SEEN, DRAWN = 20, 100, 256  # a task's, those of the re-training, samples of each of them
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
SMALL_SEEN, SMALL_DRAWN = 8, 16
EQUAL_STEPS, EQUAL_BATCH = 5, 4
RATES = {"prompt_lr": 0.0125, "lr": 0.0025}
TARGET = "<= 1.15"


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    classes = sizes.classes[0] if sizes.classes else CLASSES
    network = random_network(sizes.small, classes)
    found = step_rows(network, sizes) + statistics_rows(network, sizes)
    return found + retraining_rows(network, sizes) + evaluation_rows(network, sizes)


def random_network(small: bool, classes: int) -> Network:
    torch.manual_seed(0)
    vit = VisionTransformer(**SMALL) if small else create_model("vit_base_patch16_224", num_classes=0)
    return Network(vit, classes, POOL)


class OneBatch:
    """A task of a single batch, the same in every epoch and already on the device."""

    def __init__(self, network: Network, size: int, device: torch.device) -> None:
        generator, classes = torch.Generator().manual_seed(1), network.last.out_features
        side, dtype = network.feat.patch_embed.img_size[0], network.last.weight.dtype
        self.images = torch.rand(size, 3, side, side, generator=generator).to(device, dtype)
        self.labels = (torch.arange(size) % classes).to(device)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def batch_size(sizes: Sizes) -> int:
    return sizes.batch_size or (8 if sizes.small else 64)


# The training step


def options(steps: int) -> TrainingOptions:
    return TrainingOptions(steps, rate=lambda update, base: base, **RATES)


def step_rows(network: Network, sizes: Sizes) -> list[Row]:
    """The floor; the real training loop; the plain way; whether the two compute the same."""
    batch = OneBatch(network, batch_size(sizes), sizes.device)
    subjects = {
        "floor: a forward without gradients, a forward and backward": partial(time_floor, network, batch, sizes),
        "VQ-Prompt": partial(time_training, network, batch, sizes),
        "the plain way": partial(time_plain, network, batch, sizes),
    }
    tower, size = flops.timm_vit(network.feat), len(batch.images)
    prompts = len(network.prompt.layers), POOL["length"] // 2
    ours, plain = flops.prompted_step(tower, size, *prompts), flops.prompted_plain_step(tower, size, *prompts)
    found = compare("step", subjects, sizes, size, [flops.frozen_twice(tower, size), ours, plain])
    apart = step_difference(sizes)
    for row in found[1:]:
        verify(row, apart)
    found[1].target = "" if sizes.small else TARGET
    return found


def time_floor(network: Network, batch: OneBatch, sizes: Sizes) -> list[float]:
    """The frozen ViT alone: once under no_grad, once with gradients down to the first block's input."""
    model = copy.deepcopy(network).to(sizes.device)

    def step() -> None:
        with torch.no_grad():
            model.feat(batch.images)
            tokens = model.tokens(batch.images)
        x = tokens.requires_grad_(True)
        features = model.feat.norm(model.feat.blocks(x)[:, 0])
        F.cross_entropy(model.last(features), batch.labels).backward()

    return timed_calls(step, sizes)


def time_training(network: Network, batch: OneBatch, sizes: Sizes) -> list[float]:
    """One turn of `train_task`."""
    clock, model = Clock(sizes.device), copy.deepcopy(network).to(sizes.device)
    total = sizes.warmup + max(1, sizes.steps // sizes.turns)
    train_task(model, 0, model.last.out_features, batch, options(total), "benchmark", timed_steps(clock))
    return clock.times()[sizes.warmup :]


def plain_model(network: Network, sizes: Sizes) -> tuple[Network, torch.optim.Optimizer]:
    model = copy.deepcopy(network).to(sizes.device).requires_grad_(True)
    groups = [
        {"params": list(model.prompt.parameters()), "lr": RATES["prompt_lr"]},
        {"params": list(model.last.parameters()), "lr": RATES["lr"]},
    ]
    return model, torch.optim.AdamW(groups, weight_decay=0.0)


def time_plain(network: Network, batch: OneBatch, sizes: Sizes) -> list[float]:
    model, optimizer = plain_model(network, sizes)
    return timed_calls(partial(plain_step, model, optimizer, *batch[0], model.last.out_features), sizes)


def step_difference(sizes: Sizes) -> float:
    """Between the two ways after a few steps on the small ViT, in float64: losses and trained parameters."""
    network = random_network(small=True, classes=CLASSES).double()
    batch = OneBatch(network, EQUAL_BATCH, sizes.device)
    ours = copy.deepcopy(network).to(sizes.device)
    log = train_task(
        ours, 0, CLASSES, batch, options(EQUAL_STEPS), "benchmark", lambda stage, total, state: range(total)
    )
    plain, optimizer = plain_model(network, sizes)
    losses = torch.stack([plain_step(plain, optimizer, *batch[0], CLASSES) for _ in range(EQUAL_STEPS)])
    trained = [
        {key: value.detach() for key, value in model.named_parameters() if not key.startswith("feat.")}
        for model in (plain, ours)
    ]
    return difference({"losses": losses} | trained[0], {"losses": log.loss} | trained[1])


# After a task


def statistics_rows(network: Network, sizes: Sizes) -> list[Row]:
    """Features of a task's images and their statistics: a pass a class, whose batches are small, or one pass."""
    model, count = copy.deepcopy(network).to(sizes.device), batch_size(sizes)
    images = OneBatch(network, count, sizes.device).images
    classes = max(1, count // 2)  # of two images each
    labels = torch.arange(count, device=sizes.device) % classes

    def of_classes() -> ClassStatistics:
        with torch.inference_mode():
            features = [plain_forward(model, images[labels == label])[0] for label in range(classes)]
            return task_statistics(torch.cat(features), labels.sort(stable=True).values, range(classes), 1, 0)

    def of_task() -> ClassStatistics:
        with torch.inference_mode():
            return task_statistics(model(images)[0], labels, range(classes), 1, 0)

    calls = {"a pass a class": of_classes, "one pass": of_task}
    subjects = {name: partial(timed_calls, call, sizes) for name, call in calls.items()}
    found = compare(f"statistics, {count} images, two a class", subjects, sizes, count)
    plain, ours = ({"means": made.means, "variances": made.variances} for made in (of_classes(), of_task()))
    verify(found[1], difference(plain, ours))
    return found


def retraining_rows(network: Network, sizes: Sizes) -> list[Row]:
    """An epoch of re-training: samples drawn directly, or from a Gaussian with a full matrix for every class."""
    width = network.feat.embed_dim
    seen, drawn = (SMALL_SEEN, SMALL_DRAWN) if sizes.small else (SEEN, DRAWN)
    generator = torch.Generator().manual_seed(2)
    parts = (torch.rand(seen, width, generator=generator, dtype=torch.float64).to(sizes.device) for _ in range(2))
    statistics = ClassStatistics(*parts, torch.arange(seen, device=sizes.device))
    torch.manual_seed(3)
    start = torch.nn.Linear(width, seen).to(sizes.device)

    def retrained(plain: bool) -> dict[str, Tensor]:
        classifier = copy.deepcopy(start)
        torch.manual_seed(4)
        own = torch.Generator(sizes.device).manual_seed(4)
        draws = plain_draw(statistics, drawn, 1) if plain else draw(statistics, drawn, 1, own)
        retrain(classifier, draws, statistics.labels, seen, seen // 2, RetrainingOptions(1, 1e-4, 5e-4))
        return {key: value.detach() for key, value in classifier.named_parameters()}

    subjects = {
        "a full covariance a class": partial(timed_calls, partial(retrained, True), sizes),
        "drawn directly": partial(timed_calls, partial(retrained, False), sizes),
    }
    found = compare(f"re-training, {seen} classes, an epoch", subjects, sizes)
    verify(found[1], difference(retrained(True), retrained(False)))
    return found


# Evaluation


def evaluation_rows(network: Network, sizes: Sizes) -> list[Row]:
    """Images a second: both passes, as the original, or the prompted one alone where the queries are known."""
    model = copy.deepcopy(network).to(sizes.device)
    images = OneBatch(network, batch_size(sizes), sizes.device).images
    with torch.inference_mode():
        query = model.query(model.tokens(images))

    def features(way: str) -> Tensor:
        with torch.inference_mode():
            if way == "plain":
                return plain_forward(model, images)[0]
            return model(images, query if way == "known" else None)[0]

    subjects = {
        "the plain way": lambda: timed_calls(partial(features, "plain"), sizes),
        "first test of an image": lambda: timed_calls(partial(features, "first"), sizes),
        "later tests, query known": lambda: timed_calls(partial(features, "known"), sizes),
    }
    found = compare(f"evaluation, {len(images)} images", subjects, sizes, len(images))
    for row, way in zip(found[1:], ("first", "known")):
        verify(row, difference({"features": features("plain")}, {"features": features(way)}))
    return found
