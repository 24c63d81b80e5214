"""IT-Prompt: the training step, the pass after a task, rebalancing, prediction with C-NCM and from what is known.

Sizes are those of CIFAR-100 in ten tasks: CLIP ViT-B/16, prompts of 8 in five blocks, batch 128, 10 clusters a class.
"""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP, CLIPConfig
from common.datasets.images import ImageArrays
from common.incremental.scenario import RemappedSubset, Scenario
from common.datasets.transforms import clip_eval
from tests.benchmarks import flops
from tests.benchmarks.measure import Clock, Row, Sizes, compare, difference, timed_calls, timed_steps, verify
from vq_prompt.it_prompt.cncm import ClassMemory, nearest_class, preprocess
from vq_prompt.it_prompt.evaluation import KnownFeatures, Learned, plain_features
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.it_prompt.network import Encoder, Entries, Parts, clip_block
from vq_prompt.it_prompt.training import PseudoFeatures, cosine_lr, rebalance, task_features, task_losses, train_task

TASKS, CLASSES, LAYERS, LENGTH = 10, 100, (0, 1, 2, 3, 4), 8
REAL = CLIPConfig(512, 224, 12, 768, 16, 77, 64, 64, 1, 1)  # the text tower has no part in this
SMALL = CLIPConfig(64, 32, 6, 64, 8, 77, 64, 64, 1, 1)
TARGET = "<= 1.15"  # of a step against what it can not do without
CHANGED = 4  # one in so many images has another entry than after the task before
EQUAL_STEPS = 5


def rows(sizes: Sizes) -> list[Row]:
    """Every row of IT-Prompt's table, cell by cell."""
    learned = learned_model(SMALL if sizes.small else REAL, sizes.device)
    found = step_rows(learned, sizes) + pass_rows(learned, sizes)
    return found + rebalancing_rows(learned, sizes) + known_rows(learned, sizes) + cncm_rows(learned, sizes)


def options(**changes: Any) -> ITOptions:
    return settled(ITOptions(learner_name="ITPromptCNCM", **changes))


def learned_model(config: CLIPConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Learned:
    """Random weights, entries, texts and class memories, as after ten tasks; its rows are those of ITPromptCNCM."""
    torch.manual_seed(0)
    encoder = Encoder(CLIP(config).visual.to(dtype), LAYERS).to(device)
    parts = Parts(Entries(TASKS, len(LAYERS), LENGTH, encoder.width, encoder.dim, 1.0).to(dtype), None, None).to(device)
    text = F.normalize(torch.randn(CLASSES, encoder.dim, dtype=dtype), dim=1).to(device)
    scenario = Scenario(range(CLASSES), CLASSES // TASKS, CLASSES // TASKS)
    return Learned(options(), encoder, parts, text, scenario, ClassMemory(), ClassMemory())


def batch_size(sizes: Sizes) -> int:
    return sizes.batch_size or (8 if sizes.small else 128)


class OneBatch:
    """A task of a single batch, the same in every epoch and already on the device; labels of the second task."""

    def __init__(self, encoder: Encoder, size: int, device: torch.device) -> None:
        generator, side, per_task = torch.Generator().manual_seed(1), encoder.resolution, CLASSES // TASKS
        dtype = encoder.tower.proj.dtype
        self.images = torch.randn(size, 3, side, side, generator=generator).to(device, dtype)
        self.labels = torch.randint(per_task, 2 * per_task, (size,), generator=generator).to(device)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


# The training step


def step_rows(learned: Learned, sizes: Sizes) -> list[Row]:
    """The real loop beside what it can not do without, and beside a loop that freezes nothing."""
    batch = OneBatch(learned.encoder, batch_size(sizes), sizes.device)
    subjects = {
        "inference forward, then forward and backward of the frozen CLIP": lambda: timed_calls(
            partial(necessary, learned.encoder, batch.images), sizes
        ),
        "IT-Prompt": partial(time_training, learned, batch, sizes, train),
        "the plain way: CLIP left out of the optimiser, not frozen": partial(
            time_training, learned, batch, sizes, plain_train
        ),
    }
    tower, size = flops.image_tower(SMALL if sizes.small else REAL), len(batch.images)
    prompts = len(LAYERS), LENGTH // 2
    ours, plain = flops.prompted_step(tower, size, *prompts), flops.prompted_plain_step(tower, size, *prompts)
    found = compare("step", subjects, sizes, size, [flops.frozen_twice(tower, size), ours, plain])
    found[1].target = "" if sizes.small else TARGET
    apart = step_difference(sizes)
    for row in found[1:]:
        verify(row, apart)
    return found


def necessary(encoder: Encoder, images: Tensor) -> None:
    encoder.plain(images)
    x = encoder.tower.embed(images).requires_grad_()
    encoder.tower.pool(encoder.tower.transformer(x)).sum().backward()


def train(learned: Learned, batches: OneBatch, epochs: int, steps: Any) -> Tensor:
    found = learned.encoder, learned.parts, learned.text
    return train_task(*found, 1, range(10, 20), batches, options(epochs=epochs), steps).total


def plain_train(learned: Learned, batches: OneBatch, epochs: int, steps: Any) -> Tensor:
    """As a first version would be: u and z each from the images on, weight gradients of all of CLIP, never read."""
    encoder, parts, given = learned.encoder, learned.parts, options(epochs=epochs)
    parts.prompt.copy_previous(1)
    trained = parts.of_task(1)
    for parameter in [*encoder.parameters(), *trained.values()]:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=given.lr, weight_decay=0.0)
    classes, losses = torch.arange(10, 20, device=batches.labels.device), []
    for step in steps("plain", epochs, {}):
        optimizer.param_groups[0]["lr"] = cosine_lr(step, given.lr, epochs)
        images, labels = batches[step]
        x = encoder.tower.embed(images)
        for number, block in enumerate(encoder.blocks):
            prompts = parts.prompt.prompts(1)[number].expand(len(x), -1, -1) if number in LAYERS else None
            x = block(x) if prompts is None else clip_block(block, x, *prompts.chunk(2, dim=1))
        z = F.normalize(encoder.tower.pool(x), dim=-1)
        found = task_losses(parts, encoder.plain(images), z, labels, learned.text, classes, 1, given)
        optimizer.zero_grad()
        found["total"].backward()
        optimizer.step()
        losses.append(found["total"].detach())
    return torch.stack(losses)


def time_training(learned: Learned, batch: OneBatch, sizes: Sizes, way: Any) -> list[float]:
    """One turn of a training loop."""
    clock, model = Clock(sizes.device), copy.deepcopy(learned)
    way(model, batch, sizes.warmup + max(1, sizes.steps // sizes.turns), timed_steps(clock))
    return clock.times()[sizes.warmup :]


def step_difference(sizes: Sizes) -> float:
    """Between the two loops after a few steps on the small CLIP, in float64: losses and the entry."""

    def trained(way: Any) -> dict[str, Tensor]:
        learned = learned_model(SMALL, sizes.device, torch.float64)
        batch = OneBatch(learned.encoder, 4, sizes.device)
        losses = way(learned, batch, EQUAL_STEPS, lambda stage, total, state: range(total))
        return {"losses": losses} | {key: value.detach() for key, value in learned.parts.of_task(1).items()}

    return difference(trained(plain_train), trained(train))


# After a task


def pictures(learned: Learned, count: int) -> RemappedSubset:
    """CIFAR-like images under the test transform, labels over all classes."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(count) % CLASSES).tolist()
    return RemappedSubset(ImageArrays(pixels, labels, clip_eval(learned.encoder.resolution)), range(count), labels)


def pass_rows(learned: Learned, sizes: Sizes) -> list[Row]:
    """u and z of a task's images, decoded and embedded once for both."""
    count, prompts = 2 * batch_size(sizes), learned.parts.prompt.prompts(1)
    images = pictures(learned, count)

    def once() -> tuple[Tensor, Tensor]:
        return task_features(learned.encoder, prompts, images, batch_size(sizes))

    def apart() -> tuple[Tensor, Tensor]:
        u = plain_features(learned.encoder, images, batch_size(sizes), 0, sizes.device)
        known = KnownFeatures.of(images, u)
        entries = torch.ones(count, dtype=torch.long, device=sizes.device)
        return u, known.look(learned, torch.arange(count, device=sizes.device), entries, batch_size(sizes), 0)

    subjects = {"u and z in two passes": lambda: timed_calls(apart, sizes), "in one": lambda: timed_calls(once, sizes)}
    found = compare(f"after a task, {count} images from pixels", subjects, sizes, count)
    verify(found[1], difference(*(dict(zip("uz", way())) for way in (apart, once))))
    return found


def remembered(learned: Learned, per_class: int, clusters: bool) -> ClassMemory:
    """All classes, of random features around a direction a class."""
    generator, device = torch.Generator().manual_seed(3), learned.text.device
    noise = torch.randn(CLASSES, per_class, learned.encoder.dim, generator=generator).to(device)
    features = F.normalize(learned.text[:, None] + 0.05 * noise, dim=-1).flatten(0, 1)
    memory = ClassMemory()
    labels = torch.arange(CLASSES, device=device).repeat_interleave(per_class)
    memory.learn(features, labels, range(CLASSES), 0, clusters, not clusters)
    return memory


def rebalancing_rows(learned: Learned, sizes: Sizes) -> list[Row]:
    """An epoch of the head's rebalancing after the last task, drawing included."""
    memory, per_class = remembered(learned, 20, clusters=False), 16 if sizes.small else 256
    head = torch.nn.Linear(learned.encoder.dim, CLASSES).to(sizes.device)

    def way(kind: type[PseudoFeatures]) -> Tensor:
        part = copy.deepcopy(head)
        plain_steps = lambda stage, total, state: range(total)  # noqa: E731
        return rebalance(part, kind(memory, per_class, 128, 4), 1, CLASSES, 0.0025, "benchmark", plain_steps)

    subjects = {
        "a Gaussian of a full matrix for each class": lambda: timed_calls(partial(way, PlainPseudoFeatures), sizes),
        "its diagonal, all classes at once": lambda: timed_calls(partial(way, PseudoFeatures), sizes),
    }
    found = compare(f"rebalancing, an epoch of {CLASSES} classes", subjects, sizes)
    verify(found[1], difference(*({"losses": way(kind)} for kind in (PlainPseudoFeatures, PseudoFeatures))))
    return found


class PlainPseudoFeatures(PseudoFeatures):
    """Class after class from a multivariate normal distribution over a diagonal matrix, as VQ-Prompt's code draws."""

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        device, count = self.mean.device, len(self.mean)
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        noise = torch.randn(count, self.per_class, self.mean.shape[1], generator=generator, device=device)
        samples = []
        for mean, deviation, drawn in zip(self.mean, self.deviation, noise):
            gaussian = torch.distributions.MultivariateNormal(mean, torch.diag(deviation**2))
            samples.append(F.normalize(mean + drawn @ gaussian.scale_tril.t(), dim=-1))
        order = torch.randperm(count * self.per_class, generator=generator, device=device)
        return torch.cat(samples)[order], torch.arange(count, device=device).repeat_interleave(self.per_class)[order]


# Prediction


def known_rows(learned: Learned, sizes: Sizes) -> list[Row]:
    """The features for a test after a task: of all images anew, or of those alone whose entry is another one."""
    count = 2 * batch_size(sizes)
    images, device = pictures(learned, count), sizes.device
    before, every = torch.arange(count, device=device) % TASKS, torch.arange(count, device=device)
    after = torch.where(every % CHANGED == 0, (before + 1) % TASKS, before)
    known = KnownFeatures.of(images, plain_features(learned.encoder, images, batch_size(sizes), 0, device))
    known.look(learned, every, before, batch_size(sizes), 0)

    def anew() -> tuple[Tensor, Tensor]:
        u = plain_features(learned.encoder, images, batch_size(sizes), 0, device)
        return u, KnownFeatures.of(images, u).look(learned, every, after, batch_size(sizes), 0)

    def kept() -> tuple[Tensor, Tensor]:
        test = copy.copy(known)
        test.z, test.entries = known.z.clone(), known.entries.clone()
        return test.u, test.look(learned, every, after, batch_size(sizes), 0)

    subjects = {
        "u and z of every image": lambda: timed_calls(anew, sizes),
        "only what is new": lambda: timed_calls(kept, sizes),
    }
    found = compare(f"test of {count} images, one entry in {CHANGED} new", subjects, sizes, count)
    verify(found[1], difference(*(dict(zip("uz", way())) for way in (anew, kept))))
    return found


def cncm_rows(learned: Learned, sizes: Sizes) -> list[Row]:
    """C-NCM's distances to ten clusters of a hundred classes."""
    memory, count = remembered(learned, 20, clusters=True), 100 if sizes.small else 2000
    features = F.normalize(torch.randn(count, learned.encoder.dim, generator=torch.Generator().manual_seed(5)), dim=1)
    features = features.to(sizes.device)

    def plain() -> Tensor:
        phi = preprocess(features)
        parts = [torch.stack([(phi - one).square().sum(dim=1) for one in part], dim=1) for part in memory.centroids]
        return torch.stack([part.amin(dim=1) for part in parts], dim=1)

    ours = partial(memory.class_distances, features)
    subjects = {
        "cluster after cluster": lambda: timed_calls(plain, sizes),
        "in one product": lambda: timed_calls(ours, sizes),
    }
    found = compare(f"C-NCM, {count} images", subjects, sizes, count)
    same = float((nearest_class(plain()) == nearest_class(ours())).all())
    verify(found[1], max(difference({"distances": plain()}, {"distances": ours()}), 1 - same))
    return found
