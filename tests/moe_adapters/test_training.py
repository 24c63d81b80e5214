"""The training function over three tasks against golden/moe_adapters/train_traj (official code, dropout 0)."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from common.clip.model import CLIP, build_model
from common.clip.tokenizer import cut_prompts
from common.training.schedules import cosine_with_warmup
from moe_adapters.adapters import experts_to_freeze, insert_adapters, is_adapter_key, moe_blocks
from moe_adapters.training import TrainingOptions, train_task
from tests.golden_files import Golden
from tests.whole_run import float64

TRAJECTORY = dict(rtol=1e-4, atol=1e-4)  # the fixtures' README, for trajectories
LAYERS = ("visual.transformer.resblocks", "transformer.resblocks")


def golden_model(golden: Golden) -> CLIP:
    weights = golden.under("sd/")
    clip_keys = {
        key: value
        for key, value in weights.items()
        if not is_adapter_key(key) and not key.endswith((".mean", ".std")) and ".ln_3." not in key
    }
    model = insert_adapters(build_model(clip_keys), golden.meta["E"], golden.meta["k"])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("router_list" in key or "w_noise_list" in key or ".adaptmlp." in key for key in missing)
    return model


class StoredBatches:
    def __init__(self, golden: Golden, task: int) -> None:
        self.images, self.labels = golden[f"task{task}/images"].float(), golden[f"task{task}/labels"]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[step % len(self.images)], self.labels[step % len(self.images)]


class Observer:
    """Feeds the stored noise, and looks at gates, gradients and parameters between the steps of the loop."""

    def __init__(self, model: CLIP, golden: Golden, task: int) -> None:
        self.model, self.golden, self.task, self.step = model, golden, task, 0
        self.gates: dict[str, list[torch.Tensor]] = {"text": [], "image": []}
        self.after: dict[int, dict[str, torch.Tensor]] = {}
        self.gradient_norms: dict[str, float | None] = {}
        self.rates: list[float] = []
        for kind, tower in (("image", model.visual.transformer), ("text", model.transformer)):
            for layer, block in enumerate(tower.resblocks):
                block.dropout.p = 0.0
                block.draw_noise = lambda clean, k=kind, i=layer: golden[f"task{task}/eps_{k}"][self.step, i].float()
                block.route = self.watched(kind, type(block).route.__get__(block))

    def watched(self, kind: str, route: Any) -> Any:
        def wrapper(c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            chosen, gates = route(c)
            self.gates[kind].append(torch.zeros(len(c), self.golden.meta["E"]).scatter(1, chosen, gates.detach()))
            return chosen, gates

        return wrapper

    def steps(self, stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for self.step in range(total):
            yield self.step
            self.rates.append(state["optimizer"].param_groups[0]["lr"])
            if self.step == 1:
                self.gradient_norms = {
                    name: None if p.grad is None else float(p.grad.double().norm())
                    for name, p in self.model.named_parameters()
                }
            if self.step in (1, total - 1):
                self.after[self.step] = {name: p.detach().clone() for name, p in self.model.named_parameters()}


def options_of(golden: Golden, task: int) -> TrainingOptions:
    meta = golden.meta
    return TrainingOptions(meta["lr"][task], meta["N"], meta["warmup"], meta["label_smoothing"])


@pytest.fixture
def in_float64() -> Iterator[None]:
    """For sums over weights, in which AdamW blows up the rounding that differs between processors."""
    with float64():
        yield


def test_three_tasks_with_freezing(in_float64: None) -> None:
    golden = Golden("moe_adapters/train_traj")
    model, frozen = golden_model(golden), []
    for task in range(3):
        seen, key = Observer(model, golden, task), f"task{task}/"
        trained = {name for name, p in model.named_parameters() if is_adapter_key(name)} - set(frozen)
        log = train_task(
            model,
            task,
            set(frozen),
            cut_prompts(golden[f"{key}tokens"]),
            StoredBatches(golden, task),
            options_of(golden, task),
            "",
            seen.steps,
        )
        choose_map = log["choose_map"]
        assert_close(torch.tensor(seen.rates, dtype=torch.double), golden[f"{key}lr"], rtol=1e-12, atol=0)
        check_gates(seen, golden, key)
        check_gradients(seen, golden, key)
        check_parameters(seen, golden, key)
        assert trained == set(golden.lines(f"{key}optimizer_params"))
        image_map, text_map = choose_map.chunk(2)
        assert torch.equal(image_map, golden[f"{key}choose_image"])
        assert torch.equal(text_map, golden[f"{key}choose_text"])
        frozen += experts_to_freeze(model, choose_map)
        assert frozen == golden.lines(f"{key}frozen_file_lines")
        assert sorted(set(frozen)) == golden.lines(f"{key}frozen_set_sorted")


def check_gates(seen: Observer, golden: Golden, key: str) -> None:
    for kind in ("text", "image"):
        expected = golden[f"{key}gates_{kind}"]
        gates = torch.stack(seen.gates[kind]).view_as(expected)
        assert torch.equal(gates != 0, expected != 0)
        assert_close(gates, expected.to(gates.dtype), rtol=3e-5, atol=3e-5)


def check_gradients(seen: Observer, golden: Golden, key: str) -> None:
    for name, expected in zip(golden.lines(f"{key}param_names"), golden[f"{key}grad_norm_step1"].tolist()):
        norm = seen.gradient_norms[name]
        if expected != expected:
            assert norm is None, name
        else:
            assert norm == pytest.approx(expected, rel=1e-4, abs=1e-4), name


def check_parameters(seen: Observer, golden: Golden, key: str) -> None:
    for moment, part in ((1, "after2/"), (golden.meta["N"], "end/")):
        for name, expected in golden.under(f"{key}{part}").items():
            assert_close(seen.after[moment][name], expected.double(), **TRAJECTORY)
    end = seen.after[golden.meta["N"]]
    for name, expected in zip(golden.lines(f"{key}param_names"), golden[f"{key}param_end_stats"]):
        flat = end[name].double().flatten()
        assert_close(torch.cat([flat.sum()[None], flat.square().sum()[None], flat[:4]]), expected, rtol=1e-4, atol=1e-4)


def test_losses_and_logits_of_the_trajectory() -> None:
    """The loop itself returns no losses: they are recomputed from the parameters it steps through."""
    golden = Golden("moe_adapters/train_traj")
    model = golden_model(golden)
    seen, batches, losses, first = Observer(model, golden, 0), StoredBatches(golden, 0), [], []
    plain = torch.nn.functional.cross_entropy

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for seen.step in range(total):
            images, labels = batches[seen.step]
            with torch.no_grad():
                logits = model(images, golden["task0/tokens"])[0]
            first.append(logits)
            losses.append(float(plain(logits, labels, label_smoothing=0.2)))
            for block in moe_blocks(model):
                block.choices.zero_()
            yield seen.step

    train_task(model, 0, set(), cut_prompts(golden["task0/tokens"]), batches, options_of(golden, 0), "", steps)
    assert_close(torch.tensor(losses), golden["task0/loss"], **TRAJECTORY)
    assert_close(first[0], golden["task0/logits_first"], **TRAJECTORY)
    assert_close(first[-1], golden["task0/logits_last"], **TRAJECTORY)


def test_schedule_of_the_official_code() -> None:
    golden = Golden("moe_adapters/schedules")
    for base, warmup, total in golden.meta["cosine"]:
        rates = [cosine_with_warmup(step, base, warmup, total) for step in range(total + 1)]
        expected = golden[f"cosine/base{base}_warm{warmup}_N{total}"]
        assert_close(torch.tensor(rates, dtype=torch.double), expected, rtol=1e-12, atol=1e-18)
