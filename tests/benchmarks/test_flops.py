"""The formulas of a step's FLOPs against published figures and against torch's own count of the real loops."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alta.buffer import Buffer
from alta.heads import Head
from common.clip.model import CLIP, CLIPConfig
from tests.benchmarks import alta, flops, inflora, it_prompt, moe_adapters, moe_adapters_cil, vq_prompt, zscl, zscl_cil
from tests.benchmarks.alta_plain import PlainBuffer, PlainHead
from tests.benchmarks.inputs import SMALL, VIT_B_16, prompts, small_or_paper_clip
from tests.benchmarks.measure import Sizes

ONE_STEP = Sizes(torch.device("cpu"), True, 1, 0, None, ())


def test_published_figures() -> None:
    """35.13, 5.96 and 12.22 GF of open_clip's model profile, whose RN50 pools with all 50 queries instead of one."""
    assert flops.image_forward(VIT_B_16) / 1e9 == pytest.approx(35.13, abs=0.005)
    assert flops.text_tower(VIT_B_16, 77).forward / 1e9 == pytest.approx(5.96, abs=0.005)
    queries = 49 * (2 * 2048 * 2048 + 4 * 50 * 2048 + 2 * 2048 * 1024)
    assert (flops.image_forward(alta.RN50) + queries) / 1e9 == pytest.approx(12.22, abs=0.005)


def counted(run: Callable[[], object]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a fused backward computes anew
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [SMALL, alta.SMALL_RN], ids=["ViT", "ResNet"])
def test_towers_are_counted_alike(config: CLIPConfig) -> None:
    clip, side = CLIP(config), config.image_resolution
    assert counted(lambda: clip.encode_image(torch.zeros(2, 3, side, side))) == 2 * flops.image_forward(config)
    assert counted(lambda: clip.encode_text(prompts(3, 13), cut=False)) == 3 * flops.text_tower(config, 77).forward


CLIP_AND_PROMPTS = small_or_paper_clip(small=True), prompts(4, 13)
STEP_ROWS: dict[ModuleType, tuple[Any, ...]] = {
    zscl: (*CLIP_AND_PROMPTS, ONE_STEP, {}),
    zscl_cil: (*CLIP_AND_PROMPTS, ONE_STEP, 0.0),
    moe_adapters: (*CLIP_AND_PROMPTS, "spread", ONE_STEP),
    moe_adapters_cil: (*CLIP_AND_PROMPTS, ONE_STEP),
    inflora: (inflora.random_network(True, 10), ONE_STEP),
    vq_prompt: (vq_prompt.random_network(True, 20), ONE_STEP),
    it_prompt: (it_prompt.learned_model(it_prompt.SMALL, ONE_STEP.device), ONE_STEP),
}


@pytest.mark.parametrize("paper", STEP_ROWS, ids=lambda module: module.__name__.rsplit(".")[-1])
def test_steps_are_counted_alike(paper: ModuleType) -> None:
    """Every subject of the step rows, from the real loops; small towers make what the formulas leave out look large."""
    with mock.patch.object(paper, "compare", side_effect=StopIteration) as compare, pytest.raises(StopIteration):
        paper.step_rows(*STEP_ROWS[paper])
    _, subjects, _, _, work = compare.call_args.args
    assert len(subjects) == len(work) > 2
    for (subject, run), formula in zip(subjects.items(), work):
        steps = 2 if "captions encoded a step" in subject else 1  # that one has a warm-up of its own
        assert counted(run) == pytest.approx(steps * formula, rel=0.01), subject


@pytest.mark.parametrize("task", [0, 5])
def test_altas_steps_are_counted_alike(task: int) -> None:
    """The second step of two, the first that replays."""
    clip, classes, size = alta.random_clip(alta.SMALL_RN), 20, 8
    for (kind, store), formula in zip(
        ((PlainHead, PlainBuffer), (Head, Buffer)), alta.step_work(clip, task, classes, size)
    ):
        one, two = (
            counted(lambda: alta.time_training(kind, store, clip, task, classes, size, replace(ONE_STEP, steps=n), {}))
            for n in (1, 2)
        )
        assert two - one == pytest.approx(formula, rel=0.01), kind
