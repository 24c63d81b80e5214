"""No batch of an evaluation makes the host wait for the device: what a set of three asks more than one of two."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from alta.evaluation import accuracies
from alta.heads import Head, PromptOptions
from common.clip.model import CLIP
from common.evaluation.pixels import DecodedSet
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.training.batches import Batches
from inflora.lora import Network as LoRANetwork
from moe_adapters.adapters import insert_adapters, use_router
from moe_adapters.ddas import build_autoencoders
from moe_adapters.evaluation import Checkpoint, EvaluationSet
from moe_adapters.options import Options as MoEOptions
from tests.benchmarks.alta import METHOD
from tests.benchmarks.inputs import SMALL, prompts, small_or_paper_vit
from tests.benchmarks.vq_prompt import POOL
from tests.device.counting import CARD, counted
from tests.device.steps import made
from tests.vq_prompt.it_prompt.plain_ways import LAYERS
from vq_prompt.it_prompt.network import Encoder
from vq_prompt.learner import Learner, evaluate
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network as PromptNetwork
from zscl.evaluation import evaluate as evaluate_mtil

BATCH, CLASSES, SIDE = 2, 4, 32
MACHINE = Machine(CARD)


class Images(TensorDataset):
    """Random images and labels on the host, uint8 or as a transform leaves them."""

    def __init__(self, count: int, pixels: bool = False) -> None:
        self.labels = (torch.arange(count) % CLASSES).tolist()
        images = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8 if pixels else torch.float32)
        super().__init__(images, torch.tensor(self.labels))


def small_clip() -> CLIP:
    return made(MACHINE, lambda: CLIP(SMALL).eval().requires_grad_(False))


def mtil(images: int) -> None:
    pixels, labels = Images(images, pixels=True).tensors
    evaluate_mtil(small_clip(), DecodedSet("", pixels, labels, prompts(CLASSES)[:, None]), BATCH)


def moe(images: int) -> None:
    model = made(MACHINE, lambda: insert_adapters(CLIP(SMALL).eval(), 2, 2, 4, 2))
    test = EvaluationSet(model, *Images(images, pixels=True).tensors, prompts(CLASSES)[:, None], BATCH)
    test.evaluate(Checkpoint(0, {}), MoEOptions(no_ddas=True, task_id=0), 0)


def ddas(images: int) -> None:
    model = made(MACHINE, lambda: insert_adapters(CLIP(SMALL).eval(), 2, 2, 4, 2))
    test = EvaluationSet(model, *Images(images, pixels=True).tensors, prompts(CLASSES)[:, None], BATCH)
    autoencoders = made(MACHINE, lambda: build_autoencoders(3, 3 * SIDE * SIDE))
    test.measure_errors(torch.nn.Identity(), list(autoencoders))


def class_incremental(images: int) -> None:
    seen(small_clip(), images)


def with_noise(images: int) -> None:
    model = made(MACHINE, lambda: insert_adapters(CLIP(SMALL).eval(), 2, 2, 4, 1))
    use_router(model, 0, noise=True)
    seen(model, images, text_per_batch=True)


def seen(model: CLIP, images: int, text_per_batch: bool = False) -> None:
    pixels = Images(images, pixels=True)
    test = PooledTest(pixels, Scenario(range(CLASSES), CLASSES, CLASSES), "test", BATCH, pixels=pixels.tensors[0])
    evaluate_seen(model, prompts(CLASSES), test, 0, 0, text_per_batch)


def inflora(images: int) -> None:
    network = made(MACHINE, lambda: LoRANetwork(small_or_paper_vit(True), [CLASSES], 1, 2))
    with torch.no_grad():
        features_in_order(network.features, Images(images), BATCH, MACHINE)


def vq(images: int) -> None:
    network = made(MACHINE, lambda: PromptNetwork(small_or_paper_vit(True), CLASSES, POOL))
    scenario = Scenario(range(CLASSES), CLASSES, CLASSES)
    repeat: Any = SimpleNamespace(test=Images(images), scenario=scenario, machine=MACHINE)
    evaluate(Learner(VQOptions(batch_size=BATCH), repeat, network), 0)


def it(images: int) -> None:
    encoder = made(MACHINE, lambda: Encoder(CLIP(SMALL).visual, LAYERS[:2]))
    features_in_order(encoder.plain, Images(images), BATCH, MACHINE)


def alta(images: int) -> None:
    head = Head(small_clip(), METHOD, [f"name {label}" for label in range(CLASSES)], PromptOptions())
    with torch.no_grad():
        features = features_in_order(head.features, Images(images), BATCH, MACHINE)
        accuracies(head, [features], CLASSES, BATCH)


@pytest.mark.parametrize("evaluation", [mtil, moe, ddas, class_incremental, with_noise, inflora, vq, it, alta])
def test_no_batch_of_an_evaluation_waits(evaluation: Callable[[int], None]) -> None:
    waits, launches = zip(*(asked(evaluation, batches) for batches in (2, 3)))
    assert launches[0] < launches[1]
    assert waits[0] == waits[1]


def asked(evaluation: Callable[[int], None], batches: int) -> tuple[int, int]:
    """Waits and launches of a set of so many batches."""
    with counted() as card:
        evaluation(BATCH * batches)
    return card.waits, card.launches


def test_no_training_batch_waits() -> None:
    batches = Batches(Images(6), BATCH, 0, device=CARD)
    with counted() as card:
        images, labels = batches[1]
    assert (images.device, labels.device, card.waits) == (CARD, CARD, 0)
