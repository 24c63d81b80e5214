"""IT-Prompt: the training step, the pass after a task, rebalancing, prediction with C-NCM and from what is known.

Sizes are those of CIFAR-100 in ten tasks: CLIP ViT-B/16, prompts of 8 in five blocks, batch 128, 10 clusters a class.
"""

import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP, CLIPConfig
from common.datasets.images import ImageArrays
from common.datasets.transforms import clip_eval
from common.incremental.features import features_in_order
from common.incremental.scenario import RemappedSubset, Scenario
from common.machine import Machine
from tests.benchmarks.inputs import OneBatch
from tests.benchmarks.measure import Clock, Row, Sizes, compare, compare_calls, difference
from tests.vq_prompt.it_prompt import plain_ways
from tests.vq_prompt.it_prompt.plain_ways import LAYERS, TRAINED_CLASSES, TRAINED_TASK, options
from vq_prompt.it_prompt.cncm import ClassMemory, nearest_class, preprocess
from vq_prompt.it_prompt.evaluation import FeatureCache
from vq_prompt.it_prompt.learner import task_features
from vq_prompt.it_prompt.network import Encoder, Entries, Model, Parts
from vq_prompt.it_prompt.training import PseudoFeatures, rebalance, train_task

TASKS, CLASSES, LENGTH, EQUAL_STEPS, EQUAL_BATCH = 10, 100, 8, 5, 4
REAL = CLIPConfig(512, 224, 12, 768, 16, 77, 64, 64, 1, 1)  # the text tower has no part in this
SMALL = CLIPConfig(64, 32, 6, 64, 8, 77, 64, 64, 1, 1)
TARGET = "<= 1.15"  # of a step against what it can not do without
CHANGED = 4  # one in so many images has another entry than after the task before


def rows(sizes: Sizes) -> list[Row]:
    """Every row of IT-Prompt's table, cell by cell."""
    learned, size = learned_model(SMALL if sizes.small else REAL, sizes.device), sizes.batch(128)
    learned.options = options(batch_size=size)
    found = step_rows(learned, size, sizes) + pass_rows(learned, size, sizes)
    return found + rebalancing_rows(learned, sizes) + known_rows(learned, size, sizes) + cncm_rows(learned, sizes)


def learned_model(config: CLIPConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """Random weights, entries, texts and class memories, as after ten tasks; its rows are those of ITPromptCNCM."""
    torch.manual_seed(0)
    encoder = Encoder(CLIP(config).visual.to(dtype), LAYERS).to(device)
    parts = Parts(Entries(TASKS, len(LAYERS), LENGTH, encoder.width, encoder.dim, 1.0).to(dtype), None, None).to(device)
    text = F.normalize(torch.randn(CLASSES, encoder.dim, dtype=dtype), dim=1).to(device)
    scenario = Scenario(range(CLASSES), CLASSES // TASKS, CLASSES // TASKS)
    return Model(options(), encoder, parts, text, scenario, ClassMemory(), ClassMemory())


def one_batch(learned: Model, size: int) -> OneBatch:
    """Of the second task."""
    return OneBatch(size, learned.encoder.resolution, TRAINED_CLASSES, learned.text.device, learned.text.dtype)


def step_rows(learned: Model, size: int, sizes: Sizes) -> list[Row]:
    """The real loop beside what it can not do without, and beside a loop that freezes nothing."""
    batch = one_batch(learned, size)
    ways = {"IT-Prompt": train, "the plain way: CLIP left out of the optimiser, not frozen": plain_ways.train_plainly}
    floor = partial(plain_ways.necessary, learned.encoder, batch.images)
    subjects = {"inference forward, then forward and backward of the frozen CLIP": lambda clock: clock.repeat(floor)}
    subjects |= {name: partial(way, learned, batch) for name, way in ways.items()}
    small = learned_model(SMALL, sizes.device, torch.float64)
    ours, plain = (way(small, one_batch(small, EQUAL_BATCH), Clock(EQUAL_STEPS)) for way in ways.values())
    apart = dict.fromkeys(ways, difference(plain, ours))
    return compare("step", subjects, sizes, size, True, apart, {"IT-Prompt": TARGET})


def train(learned: Model, batch: OneBatch, clock: Clock) -> dict[str, Tensor]:
    """Losses and the entry that `train_task` leaves."""
    model = copy.deepcopy(learned)
    model.options = options(epochs=clock.calls)
    losses = train_task(model, TRAINED_TASK, batch, clock.steps)["total"]
    return {"losses": losses} | model.parts.of_task(TRAINED_TASK)


def pictures(learned: Model, count: int) -> RemappedSubset:
    """CIFAR-like images under the test transform, labels over all classes."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(count) % CLASSES).tolist()
    return RemappedSubset(ImageArrays(pixels, labels, clip_eval(learned.encoder.resolution)), range(count), labels)


def two_passes(learned: Model, images: RemappedSubset, entries: Tensor, machine: Machine) -> tuple[Tensor, Tensor]:
    """u, then z with an entry an image."""
    u, _ = features_in_order(learned.encoder.plain, images, learned.options.batch_size, machine)
    return u, FeatureCache.of(images, u).prompted(learned, torch.arange(len(u), device=u.device), entries, machine)


def pass_rows(learned: Model, size: int, sizes: Sizes) -> list[Row]:
    """u and z of a task's images, decoded and embedded once for both."""
    images, machine = pictures(learned, 2 * size), Machine(sizes.device)
    entries = torch.ones(2 * size, dtype=torch.long, device=sizes.device)
    calls = {
        "u and z in two passes": partial(two_passes, learned, images, entries, machine),
        "in one": lambda: task_features(learned, 1, images, machine)[:2],
    }
    return compare_calls(f"after a task, {2 * size} images from pixels", calls, sizes, 2 * size)


def remembered(learned: Model, clusters: bool) -> ClassMemory:
    """All classes, of random features around a direction a class."""
    generator, device, per_class = torch.Generator().manual_seed(3), learned.text.device, 20
    noise = torch.randn(CLASSES, per_class, learned.encoder.dim, generator=generator).to(device)
    features = F.normalize(learned.text[:, None] + 0.05 * noise, dim=-1).flatten(0, 1)
    memory = ClassMemory()
    labels = torch.arange(CLASSES, device=device).repeat_interleave(per_class)
    memory.learn(features, labels, range(CLASSES), 0, clusters, not clusters)
    return memory


def rebalancing_rows(learned: Model, sizes: Sizes) -> list[Row]:
    """An epoch of the head's rebalancing after the last task, drawing included."""
    memory, per_class = remembered(learned, clusters=False), 16 if sizes.small else 256
    head = torch.nn.Linear(learned.encoder.dim, CLASSES).to(sizes.device)

    def way(kind: type[PseudoFeatures]) -> Tensor:
        part, draws = copy.deepcopy(head), kind(memory, per_class, 128, 4)
        return rebalance(part, draws, CLASSES, options(rebalance_epochs=1), "benchmark", Clock(0).steps)

    calls = {
        "a Gaussian of a full matrix for each class": partial(way, plain_ways.PlainPseudoFeatures),
        "its diagonal, all classes at once": partial(way, PseudoFeatures),
    }
    return compare_calls(f"rebalancing, an epoch of {CLASSES} classes", calls, sizes)


def known_rows(learned: Model, size: int, sizes: Sizes) -> list[Row]:
    """The features for a test after a task: of all images anew, or of those alone whose entry is another one."""
    images, every = pictures(learned, 2 * size), torch.arange(2 * size, device=sizes.device)
    before, machine = every % TASKS, Machine(sizes.device)
    after = torch.where(every % CHANGED == 0, (before + 1) % TASKS, before)
    known = FeatureCache.of(images, features_in_order(learned.encoder.plain, images, size, machine)[0])
    known.prompted(learned, every, before, machine)

    def kept() -> tuple[Tensor, Tensor]:
        test = copy.copy(known)
        test.z, test.entries = known.z.clone(), known.entries.clone()
        return test.u, test.prompted(learned, every, after, machine)

    anew = partial(two_passes, learned, images, after, machine)
    calls = {"u and z of every image": anew, "only what is new": kept}
    return compare_calls(f"test of {2 * size} images, one entry in {CHANGED} new", calls, sizes, 2 * size)


def cncm_rows(learned: Model, sizes: Sizes) -> list[Row]:
    """C-NCM's distances to ten clusters of a hundred classes, and the nearest class."""
    memory, count = remembered(learned, clusters=True), 100 if sizes.small else 2000
    features = F.normalize(torch.randn(count, learned.encoder.dim, generator=torch.Generator().manual_seed(5)), dim=1)
    features = features.to(sizes.device)

    def plain() -> Tensor:
        phi = preprocess(features)
        parts = [torch.stack([(phi - one).square().sum(dim=1) for one in part], dim=1) for part in memory.centroids]
        return torch.stack([part.amin(dim=1) for part in parts], dim=1)

    calls = {"cluster after cluster": plain, "in one product": partial(memory.class_distances, features)}
    nearest = {name: lambda call=call: [distances := call(), nearest_class(distances)] for name, call in calls.items()}
    return compare_calls(f"C-NCM, {count} images", nearest, sizes, count)
