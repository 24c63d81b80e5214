"""The loop of a task where the fixtures are silent: what moves, weight decay, a state taken up."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from inflora.gpm import Memory
from inflora.training import design_branch, train_task
from tests.inflora.learners import golden_options, learner, task_batches


def plain_steps(stage, total, state):
    yield from range(total)


def two_tasks(options, name="inflora_main"):
    """Tasks 0 and 1 of a fixture under these options; the network after each, as state dicts."""
    golden, dtype, network = learner(name)
    states = []
    for task in range(2):
        batches = task_batches(golden, task, dtype)
        design_branch(network, task, None, batches)
        train_task(network, task, task, 3 * task, batches, options, "stage", plain_steps)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
    return network, states


def options(**changes):
    golden, _, _ = learner("inflora_main")
    return replace(golden_options(golden.meta), epochs=2, **changes)


def moved(states, task):
    """Keys that task `task` changed, its own lora_A left out."""
    before, after = states[task - 1], states[task]
    return {key for key in after if not torch.equal(before[key], after[key]) and f".{task}.weight" not in key}


def test_without_weight_decay_only_the_task_moves():
    network, states = two_tasks(options())
    assert moved(states, 1) == {"classifier_pool.1.bias"}
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weight_decay_shrinks_what_is_finished():
    _, states = two_tasks(options(weight_decay=0.1))
    old = {key for key in states[0] if ".0.weight" in key and "lora_B" in key}
    assert moved(states, 1) == old | {"classifier_pool.0.weight", "classifier_pool.0.bias", "classifier_pool.1.bias"}
    _, states = two_tasks(options(weight_decay=0.1, decay_finished=False))
    assert moved(states, 1) == {"classifier_pool.1.bias"}


def test_a_rate_of_its_own_keeps_older_classifiers():
    _, states = two_tasks(options(weight_decay=0.1, optimizer="sgd", fc_lr=0.02))
    old = {key for key in states[0] if ".0.weight" in key and "lora_B" in key}
    assert moved(states, 1) == old | {"classifier_pool.1.bias"}


def original_keys(state, depth, tasks):
    """Unmerged parameters by key, as the original's optimiser holds them."""
    names = [
        f"image_encoder.blocks.{i}.attn.lora_B_{x}.{t}.weight" for i in range(depth) for x in "kv" for t in range(tasks)
    ]
    names += [f"classifier_pool.{t}.{part}" for t in range(tasks) for part in ("weight", "bias")]
    return {name: state[name].clone() for name in names}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_as_the_original_steps(optimizer):
    """Task 1 with torch's optimiser on all branches, gradients of old ones zero, nothing merged ahead."""
    chosen = options(weight_decay=0.05, optimizer=optimizer)
    golden, dtype, network = learner("inflora_main")
    first, second = (task_batches(golden, task, dtype) for task in range(2))
    design_branch(network, 0, None, first)
    train_task(network, 0, 0, 0, first, chosen, "stage", plain_steps)
    design_branch(network, 1, None, second)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    parameters = {key: value.requires_grad_(True) for key, value in original_keys(state, 2, 2).items()}
    kinds = {"adam": torch.optim.Adam, "sgd": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, **kw)}
    stepper = kinds[optimizer](parameters.values(), lr=chosen.lr, weight_decay=0.05)
    for step in range(2 * len(second)):
        stepper.param_groups[0]["lr"] = chosen.schedule(step // len(second), chosen.lr)
        images, labels = second[step]
        weights = state | parameters
        for layer in range(2):  # W + the sum of all branches, as one tensor
            prefix = f"image_encoder.blocks.{layer}.attn."
            sums = [
                sum(
                    weights[f"{prefix}lora_B_{x}.{t}.weight"] @ weights[f"{prefix}lora_A_{x}.{t}.weight"]
                    for t in range(2)
                )
                for x in "kv"
            ]
            full = torch.cat([torch.zeros_like(sums[0]), *sums])
            weights[f"{prefix}merged"] = state[f"{prefix}qkv.weight"] + full
        features = functional_call(
            network.image_encoder,
            {key.removeprefix("image_encoder."): value for key, value in weights.items() if key.startswith("image_")},
            (images,),
        )
        logits = F.linear(features, parameters["classifier_pool.1.weight"], parameters["classifier_pool.1.bias"])
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, labels - 3), list(parameters.values()), allow_unused=True
        )
        for (key, parameter), gradient in zip(parameters.items(), gradients):
            old = ".0." in key.removeprefix("image_encoder.blocks.0.")
            parameter.grad = torch.zeros_like(parameter) if old or gradient is None else gradient
        stepper.step()
    train_task(network, 1, 1, 3, second, chosen, "stage", plain_steps)
    ours = network.state_dict()
    for key, value in parameters.items():
        torch.testing.assert_close(ours[key], value.detach(), rtol=1e-9, atol=1e-12, msg=key)


def test_saved_state_takes_a_run_up_again():
    """Stopped after three steps and taken up by a fresh network: the same parameters, bit for bit, with decay."""
    chosen = options(weight_decay=0.05, optimizer="sgd")
    golden, dtype, _ = learner("inflora_main")

    def start():
        network = learner("inflora_main")[2]
        for task in range(2):
            batches = task_batches(golden, task, dtype)
            design_branch(network, task, None, batches)
            if task == 0:
                train_task(network, 0, 0, 0, batches, chosen, "stage", plain_steps)
        return network, batches

    saved = {}

    def stopped(stage, total, state):
        yield from range(3)
        saved.update({name: _copy(item.state_dict()) for name, item in state.items()})

    def resumed(stage, total, state):
        for name, item in state.items():
            item.load_state_dict(saved[name])
        yield from range(3, total)

    whole, batches = start()
    train_task(whole, 1, 1, 3, batches, chosen, "stage", plain_steps)
    train_task(start()[0], 1, 1, 3, batches, chosen, "stage", stopped)
    again, _ = start()
    log = train_task(again, 1, 1, 3, batches, chosen, "stage", resumed)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert (log["loss"] > 0).all()


def _copy(item):
    if isinstance(item, torch.Tensor):
        return item.clone()
    if isinstance(item, dict):
        return {key: _copy(value) for key, value in item.items()}
    return [_copy(value) for value in item] if isinstance(item, list) else item


def test_plain_lora_trains_the_reduction_too():
    golden, dtype, network = learner("inflora_main")
    before = {key: value.clone() for key, value in network.reduction(0).items()}
    batches = task_batches(golden, 0, dtype)
    train_task(network, 0, 0, 0, batches, options(train_reduction=True), "stage", plain_steps)
    assert all(not torch.equal(value, before[key]) for key, value in network.reduction(0).items())


def test_trained_branches_do_not_answer_to_old_inputs():
    """What gives the method its name: on inputs in the protected space, a designed branch is silent."""
    golden, dtype, network = learner("inflora_main")
    batches = task_batches(golden, 1, dtype)
    basis = torch.linalg.qr(torch.randn(24, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))).Q
    design_branch(network, 1, [Memory(basis), Memory(basis)], batches)
    train_task(network, 1, 1, 3, batches, options(), "stage", plain_steps)
    for attention in network.attentions:
        change = attention.lora_B_k[1].weight @ attention.lora_A_k[1].weight
        assert change.abs().max() > 1e-3 and (change @ basis).abs().max() < 1e-12
