"""Whole runs of the official loop, step by step; rates, the optimiser, and what the fixtures can not tell apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alta.options import LR_POLICIES
from alta.training import learning_rate, replay_losses
from tests.alta.learners import apart, golden_head, optimizer_of, training_options
from tests.alta.trajectory import Watched, run
from tests.golden_files import Golden

ALTA = "oritext_mlp2cprompt_oriimg"
RUNS = {
    "train_lr5e-4_replay": [ALTA, "oriclip2cprompt_mlp", "cprompt_mlp", "cprompt_resmlp", "mlp", "resmlp"],
    "train_lr5e-4_sgd_mode": [ALTA, "mlp"],
    "train_lr5e-4_prompt_only": ["sprompt", "cprompt", "cprompt_oriprompt"],
    "train_released_lr": [ALTA, "mlp", "cprompt"],
}
TERMS = {"ce": "ce_cur", "ce_replay": "ce_buf", "mse_replay": "mse_buf"}


def check(golden: Golden, method: str, found: Watched, limits: dict[str, float]) -> None:
    """Everything that the fixture tells of a run; limits by kind of array."""
    told = {key: golden[f"{method}.{key}"] for key in golden.under(f"{method}.")}
    assert torch.equal(torch.tensor(found.rates, dtype=torch.float64), told["lr"])
    for ours, theirs in TERMS.items():
        terms = torch.cat(found.terms[ours])
        if ours != "ce":  # the fixture has nan where nothing was replayed, the log 0
            terms[[step not in found.replayed for step in range(len(terms))]] = torch.nan
        if theirs in told and not told[theirs].isnan().all():
            assert apart(terms, told[theirs]) <= limits[theirs], theirs
        else:
            assert terms.isnan().all()
    for step, logits in enumerate(found.logits):
        assert apart(logits, told["logits_cur"][step, : len(logits)]) <= limits["forward"]
    for step, logits in found.replayed.items():
        if "logits_buf" in told:
            assert apart(logits, told["logits_buf"][step, : len(logits)]) <= limits["forward"]
            assert told["buf_choice"][step].tolist()[: len(logits)] == found.choices[step].tolist()
    for name, params in found.params.items():
        assert apart(torch.stack(params), told[f"param.{name}"]) <= limits["forward"], name
        if f"grad.{name}" in told:
            grads = torch.stack(found.grads[name])[: len(told[f"grad.{name}"])]
            assert apart(grads, told[f"grad.{name}"]) <= limits["grad"], name
    if "buf_seen" in told:
        assert found.seen == told["buf_seen"].tolist()
        assert torch.equal(torch.stack(found.labels).int(), told["buf_labels_hist"])
    if "buf_final.labels" in told:
        assert torch.equal(found.buffer.fields["labels"], told["buf_final.labels"])
        for name in ("logits", "image_features"):
            assert found.buffer.fields[name].dtype == told[f"buf_final.{name}"].dtype
            assert apart(found.buffer.fields[name], told[f"buf_final.{name}"]) <= limits["forward"]
    assert [mean for mean, _ in found.means] == told["mean_class_il"].tolist()
    if "acc_class_il" in told:
        assert np.array_equal(np.array(found.accuracies).T, np.stack([told["acc_class_il"], told["acc_task_il"]]))
        assert [mean for _, mean in found.means] == told["mean_task_il"].tolist()
        for number, logits in enumerate(found.eval_logits):
            assert apart(logits, told[f"eval_logits.{number}"]) <= limits["forward"]
    if "frozen_T_last" in told:
        assert apart(found.head.frozen_prompts, told["frozen_T_last"]) <= limits["forward"]


@pytest.mark.parametrize(("name", "method"), [(name, method) for name, methods in RUNS.items() for method in methods])
def test_whole_run(name, method):
    """The stale snapshot, the carried momentum, replay from the second step on, pre-step logits, both settings."""
    golden = Golden(f"alta/{name}")
    assert golden.meta["methods"] == RUNS[name]
    released = name == "train_released_lr"
    limits = dict.fromkeys(("forward", "ce_cur", "ce_buf", "mse_buf"), 2e-5) | {"grad": 5e-5}
    check(golden, method, run(golden, method), limits | ({"mse_buf": 1e-3} if released else {}))


@pytest.mark.parametrize("encoding", ["full", "original"])
def test_whole_run_in_half_precision(encoding):
    golden = Golden("alta/train_fp16")
    limits = dict.fromkeys(("forward", "ce_cur", "ce_buf"), 1e-2) | {"mse_buf": 5e-2, "grad": 5e-2}
    found = run(golden, ALTA, half=True, encoding=encoding)
    check(golden, ALTA, found, limits)
    for name, params in found.params.items():
        assert {value.dtype for value in params + found.grads[name]} == {torch.float16}
        start, told = golden[f"{ALTA}.init.{name}"], golden[f"{ALTA}.moved_fraction.{name}"]
        moved = torch.tensor([float((value != start).float().mean()) for value in params])
        assert float((moved - told).abs().max()) < 0.1  # the dead zone: most of the context never moves
    assert found.seen[-1] == 3 * 2 * 11


def test_half_precision_steps_from_the_recorded_gradients():
    """SGD rounds to half at each step: the parameters within two spacings of the recorded ones, momentum carried."""
    golden = Golden("alta/train_fp16")
    head = golden_head(golden, ALTA, half=True)
    optimizer = optimizer_of(head)
    with torch.no_grad():
        for name, parameter in head.trained().items():
            parameter.copy_(golden[f"{ALTA}.init.{name}"])
    for step, rate in enumerate(golden[f"{ALTA}.lr"].tolist()):
        optimizer.param_groups[0]["lr"] = rate
        for name, parameter in head.trained().items():
            parameter.grad = golden[f"{ALTA}.grad.{name}"][step].clone()
        optimizer.step()
        for name, parameter in head.trained().items():
            expected = golden[f"{ALTA}.param.{name}"][step]
            spacing = 2.0 ** (expected.float().abs().clamp_min(2**-14).log2().floor() - 10)
            assert ((parameter.float() - expected.float()).abs() <= 2 * spacing).all(), (step, name)


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_the_optimiser_alone(kind):
    golden = Golden("alta/optim")
    meta, value = golden.meta, torch.nn.Parameter(golden[f"{kind}.init"])
    optimizer = torch.optim.SGD(
        [value], lr=meta["WARMUP_CONS_LR"], momentum=meta["MOMENTUM"], weight_decay=meta["WEIGHT_DECAY"]
    )
    for step in range(meta["steps"]):
        value.grad = golden[f"{kind}.grads"][step].clone()
        optimizer.step()
        for found, told in ((value, "params"), (optimizer.state[value]["momentum_buffer"], "momentum")):
            assert apart(found, golden[f"{kind}.{told}"][step]) <= (2e-5 if kind == "fp32" else 1e-3)


# Rates


def test_rates_of_the_four_policies():
    golden = Golden("alta/optim")
    meta, epochs = golden.meta, golden.meta["MAX_EPOCH"]
    options = training_options("released", meta["LR"], meta["WARMUP_CONS_LR"], meta["WARMUP_EPOCH"], epochs)
    stepped = golden["lr_if_stepped_per_epoch"].tolist()
    chosen = {policy: replace(options, lr_policy=policy) for policy in LR_POLICIES}
    told = {policy: [learning_rate(chosen[policy], e // epochs, e % epochs) for e in range(len(stepped))]
            for policy in ("released", "global_cosine", "task_cosine", "constant")}  # fmt: skip
    assert set(told["released"]) == {float(golden["lr_after_build"])} == {1e-5}
    assert told["global_cosine"] == pytest.approx(stepped, abs=1e-12)
    assert told["task_cosine"] == told["global_cosine"][:epochs] * 3
    assert told["task_cosine"][-1] == pytest.approx(2.2e-5, rel=0.01)  # not 0
    assert set(told["constant"]) == {0.002}


def test_without_warm_up_the_released_rate_is_the_full_one():
    """What building the cosine alone leaves."""
    options = training_options("released", 0.002, 1e-5, 0, 30)
    assert {learning_rate(options, task, epoch) for task in (0, 4) for epoch in (0, 29)} == {0.002}


def test_replay_losses_by_hand():
    logits, labels = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), torch.tensor([1, 0])
    recorded = torch.tensor([[1.5, 2.0, 0.5], [0.0, 1.0, 3.0]])
    ce, mse = replay_losses(logits, labels, recorded)
    rows = logits.double().exp()
    expected = -float(torch.stack([rows[0, 1] / rows[0].sum(), rows[1, 0] / rows[1].sum()]).log().mean())
    assert float(ce) == pytest.approx(expected, rel=1e-6)
    assert float(mse) == pytest.approx((0.25 + 4.0) / 6, rel=1e-6)


# What moves, and what does not


def test_the_frozen_towers_build_no_graph():
    """The image tower's features carry no gradient, CLIP's weights none, frozen rows pass none to the context."""
    golden = Golden("alta/methods_vit")
    head = golden_head(golden, "cprompt")
    head.freeze(head.snapshot(6))  # all classes
    features = head.features(golden["images"].float())
    assert not features.requires_grad and not any(p.requires_grad for p in head.clip.parameters())
    assert not head.frozen_texts.requires_grad and not head.frozen_prompts.requires_grad
    head.freeze(head.snapshot(4)[:4])
    texts = head.texts()["soft"]
    (grad,) = torch.autograd.grad(texts[:4].sum(), [head.prompt_learner.ctx], retain_graph=True)
    assert float(grad.abs().max()) == 0
    (grad,) = torch.autograd.grad(texts[4:].sum(), [head.prompt_learner.ctx])
    assert float(grad.abs().max()) > 0


def test_past_classes_keep_the_context_of_before_the_last_step():
    """One step older than the evaluated model; rows frozen earlier are copied through."""
    golden = Golden("alta/train_lr5e-4_replay")
    found = run(golden, ALTA)
    learner, steps, k = found.head.prompt_learner, 6, golden.meta["k"]
    contexts = found.params["prompt_learner.ctx"]
    for task in range(2):  # of the two whose classes are frozen at the end
        rows = slice(task * k, (task + 1) * k)
        stale, latest = (learner(ctx=contexts[(task + 1) * steps - back]).detach() for back in (2, 1))
        assert torch.equal(found.head.frozen_prompts[rows], stale[rows])
        assert not torch.equal(found.head.frozen_prompts[rows], latest[rows])
