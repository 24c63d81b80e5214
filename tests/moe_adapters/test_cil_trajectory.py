"""The class-incremental loop over three tasks against golden/moe_adapters/cil_traj (official code, dropout 0)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.testing import assert_close

from common.clip.model import CLIP, CLIPConfig, build_model
from common.clip.tokenizer import cut_prompts
from common.evaluation.seen_classes import seen_logits
from common.incremental.scenario import Scenario
from moe_adapters.adapters import is_adapter_key, moe_blocks, use_router
from moe_adapters.cil import ROUTER, Options, adapter_count, training_options, with_shared_router
from moe_adapters.training import TrainingOptions, train_task
from tests.golden_files import Golden

GOLDEN = Golden("moe_adapters/cil_traj")
TRAJECTORY = dict(rtol=1e-4, atol=1e-4)  # the fixtures' README, for trajectories
OUTPUTS = dict(rtol=2e-5, atol=2e-5)  # and elsewhere
SCENARIO = Scenario(GOLDEN.meta["class_order"], GOLDEN.meta["increments"][0], GOLDEN.meta["increments"][1])


def golden_model() -> CLIP:
    weights = GOLDEN.under("sd/")
    clip_keys = {key: value for key, value in weights.items() if not is_adapter_key(key)}
    plain = {key: value for key, value in clip_keys.items() if not key.endswith((".mean", ".std"))}
    model = with_shared_router(build_model(plain))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(".adaptmlp." in key for key in missing)
    for block in moe_blocks(model):
        block.dropout.p = 0.0
    return model


def prompts(classes: range) -> torch.Tensor:
    return cut_prompts(GOLDEN["tokens_by_class_id"][list(SCENARIO.class_order[classes.start : classes.stop])])


class TaskBatches:
    """The stored batches of a task, with local labels."""

    def __init__(self, task_id: int) -> None:
        self.images = GOLDEN[f"task{task_id}/train_images"]
        self.labels = GOLDEN[f"task{task_id}/train_targets"] - SCENARIO.tasks[task_id].start

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[step % len(self.images)], self.labels[step % len(self.images)]


class Observer:
    """Feeds the stored noise and looks at what the loop computes between its steps."""

    def __init__(self, model: CLIP, task_id: int, batches: TaskBatches, tokens: torch.Tensor) -> None:
        self.model, self.batches, self.tokens = model, batches, tokens
        self.losses: list[float] = []
        self.logits: list[torch.Tensor] = []
        self.rates: list[float] = []
        self.draws: list[str] = []
        self.key = f"task{task_id}/"

    def feed(self, step: int) -> None:
        for kind, tower in (("image", self.model.visual.transformer), ("text", self.model.transformer)):
            for layer, block in enumerate(tower.resblocks):
                block.draw_noise = self.stored(kind, GOLDEN[f"{self.key}eps_{kind}"][step, layer])

    def stored(self, kind: str, noise: torch.Tensor) -> Any:
        def draw(clean: torch.Tensor) -> torch.Tensor:
            self.draws.append(kind)
            return noise

        return draw

    def steps(self, stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        """The loop returns no losses: they are recomputed from the parameters that it steps through."""
        for step in range(total):
            self.feed(step)
            images, labels = self.batches[step]
            logits = seen_logits(self.model, images, self.tokens)
            self.logits.append(logits)
            self.losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
            self.draws.clear()
            yield step
            self.rates.append(state["optimizer"].param_groups[0]["lr"])


def options_of_a_task(batches: int) -> TrainingOptions:
    return training_options(Options(lr=GOLDEN.meta["lr"], ls=GOLDEN.meta["ls"]), batches)


def feed_test_noise(model: CLIP, task_id: int) -> None:
    for kind, tower in (("image", model.visual.transformer), ("text", model.transformer)):
        for layer, block in enumerate(tower.resblocks):
            noise = GOLDEN[f"task{task_id}/test_eps_{kind}"][layer]
            block.draw_noise = lambda clean, noise=noise: noise


def test_three_tasks_and_the_noisy_test_after_each() -> None:
    model = golden_model()
    for task_id, classes in enumerate(SCENARIO.tasks):
        key, batches, tokens = f"task{task_id}/", TaskBatches(task_id), prompts(classes)
        seen = Observer(model, task_id, batches, tokens)
        train_task(model, ROUTER, set(), tokens, batches, options_of_a_task(len(batches.images)), "", seen.steps)
        assert_close(torch.tensor(seen.rates, dtype=torch.double), GOLDEN[f"{key}lr"], rtol=1e-12, atol=0)
        assert_close(torch.tensor(seen.losses), GOLDEN[f"{key}loss"], **TRAJECTORY)
        assert_close(seen.logits[0], GOLDEN[f"{key}logits_first"], **TRAJECTORY)
        assert_close(seen.logits[-1], GOLDEN[f"{key}logits_last"], **TRAJECTORY)
        assert torch.equal(batches.labels[0], GOLDEN[f"{key}targets_first_local"])
        check_parameters(model, key)
        images = torch.cat([GOLDEN[f"task{earlier}/test_images"] for earlier in range(task_id + 1)])
        feed_test_noise(model, task_id)
        use_router(model, ROUTER, noise=True)
        logits = seen_logits(model, images, prompts(range(SCENARIO.seen(task_id))))
        assert_close(logits.softmax(dim=-1), GOLDEN[f"{key}test_probs"], **OUTPUTS)


def check_parameters(model: CLIP, key: str) -> None:
    end = dict(model.named_parameters())
    assert {name for name, p in end.items() if p.requires_grad} == set(GOLDEN.lines(f"{key}param_names"))
    for name, expected in zip(GOLDEN.lines(f"{key}param_names"), GOLDEN[f"{key}param_end_stats"]):
        flat = end[name].detach().double().flatten()
        assert_close(torch.cat([flat.sum()[None], flat.square().sum()[None], flat[:4]]), expected, **TRAJECTORY)
    for name, expected in GOLDEN.under(f"{key}end/").items():
        assert_close(end[name].detach(), expected, **TRAJECTORY)


def test_the_image_encoder_draws_its_noise_first() -> None:
    model, classes = golden_model(), SCENARIO.tasks[0]
    seen = Observer(model, 0, TaskBatches(0), prompts(classes))
    order: list[list[str]] = []

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        seen.feed(0)
        yield 0
        order.append(list(seen.draws))

    train_task(model, ROUTER, set(), prompts(classes), seen.batches, options_of_a_task(0), "", steps)
    seen.draws.clear()
    seen_logits(model, seen.batches.images[0], prompts(classes))
    assert order == [seen.draws] == [["image", "image", "text", "text"]]


def test_keys_shapes_and_number_of_parameters_are_the_official_ones() -> None:
    """Of the model at the paper's size, built without memory on the meta device."""
    golden = Golden("moe_adapters/state_dict_keys_cil")
    with torch.device("meta"):
        model = with_shared_router(CLIP(CLIPConfig(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)))
    found = {key: str(list(tensor.shape)) for key, tensor in model.state_dict().items()}
    assert found == dict(zip(golden.lines("keys"), golden.lines("shapes")))
    assert {name for name, _ in model.named_parameters()} == set(golden.lines("named_parameters"))
    assert adapter_count(model) == golden.meta["trainable_params"]
