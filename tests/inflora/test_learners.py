"""Whole runs of every learner against the official code: moments, bases, gradients, losses, parameters, accuracies.

Rows of lora_A come from a decomposition, so their signs are free: the fixture's are taken over once the projector
agrees, and everything after that must agree with them.
"""

import numpy as np
import pytest
import torch

from common.incremental.scenario import Scenario
from inflora.alignment import align, class_statistics, scaled_means
from inflora.evaluation import task_metrics
from inflora.gpm import second_moments, threshold
from inflora.training import design_branch, epoch_of, remember_task, train_task
from tests.inflora.learners import LEARNERS, golden_options, learner, task_batches


class Comparison:
    """Agreement with a fixture's arrays at its own tolerance: 1e-9 in float64, 1e-5 in float32."""

    def __init__(self, golden, task):
        self.golden, self.prefix = golden, f"t{task}/"
        self.tolerance = 1e-9 if golden.meta["f64"] else 1e-5

    def __call__(self, actual, key):
        expected = self.golden[self.prefix + key]
        actual = actual.detach().to(torch.float64)
        assert actual.shape == expected.shape, key
        worst, scale = (actual - expected).abs().max(), expected.abs().max()
        assert worst <= self.tolerance * scale, f"{self.prefix}{key}: {worst} of {scale}"


def watched(network, task, batches, same):
    """The plain sequence of steps, looked at after the first and before the last."""

    def steps(stage, total, state):
        parameters = state["parameters"].tensors
        for step in range(total):
            if step == total - 1:
                images, _ = batches[len(batches) + step]
                same(network.classifier_pool[task](network.features(images)), "last_logits")
            yield step
            if step == 0:
                for key in same.golden.under(f"{same.prefix}first_grad/"):
                    same(parameters[key].grad, f"first_grad/{key}")
                    same(parameters[key], f"after_step1/{key}")

    return steps


def check_design(network, task, memories, batches, same):
    moments = second_moments(network, epoch_of(batches, 0))
    design_branch(network, task, memories, batches)
    for layer, (attention, C) in enumerate(zip(network.attentions, moments)):
        same(memories[layer].free_part(C) if memories else C, f"layer{layer}/design_matrix_projected")
        ours, key = attention.lora_A_k[task].weight, f"layer{layer}/lora_A"
        theirs = same.golden[same.prefix + key].to(ours.dtype)
        assert (ours.T @ ours - theirs.T @ theirs).abs().max() <= same.tolerance * (theirs.T @ theirs).abs().max(), key
        assert torch.equal(ours, attention.lora_A_v[task].weight)
        with torch.no_grad():
            ours.copy_(theirs)
            attention.lora_A_v[task].weight.copy_(theirs)


def check_parameters(network, task, same):
    for layer, attention in enumerate(network.attentions):
        _, key, value = attention.merged.chunk(3)
        same(key, f"layer{layer}/merged_k")
        same(value, f"layer{layer}/merged_v")
        same(attention.lora_B_k[task].weight, f"layer{layer}/lora_B_k")
        same(attention.lora_B_v[task].weight, f"layer{layer}/lora_B_v")
        for earlier in range(task):
            same(attention.lora_B_k[earlier].weight, f"layer{layer}/old_lora_B_k_{earlier}")
    same(network.classifier_pool[task].weight, "classifier_weight")
    same(network.classifier_pool[task].bias, "classifier_bias")
    for earlier in range(task):
        if f"{same.prefix}ca/loss" not in same.golden:  # alignment has moved them since
            same(network.classifier_pool[earlier].weight, f"old_classifier_weight_{earlier}")


def check_memory(memories, task, meta, same):
    for layer, memory in enumerate(memories):
        same(memory.basis @ memory.basis.T, f"layer{layer}/gpm_projector")
        assert memory.basis.shape[1] == meta["info"]["basis_dim"][task][layer]
        assert ("retain" if memory.free else "remove") == meta["info"]["project_type"][task][layer]


def check_alignment(golden, network, task, statistics, same):
    """Statistics of the new classes, then the alignment of all classifiers on the fixture's draws."""
    meta = golden.meta
    members = golden["train_y"] // meta["cpt"] == task
    labels = golden["train_y"][members]
    new = class_statistics(network.features(golden["train_x"][members]), labels, labels.unique().tolist())
    statistics = statistics.joined(new) if statistics else new
    same(statistics.means, "ca/class_means")
    same(statistics.covariances, "ca/class_covs")
    if task > 0:
        tasks = torch.arange(len(statistics.means)) // meta["cpt"]
        same(scaled_means(statistics.means, tasks), "ca/scaled_means")
        draws = zip(golden[f"t{task}/ca/samples"], golden[f"t{task}/ca/perm"].long())
        logit_norm = (meta["method"], meta["dataset"]) != ("InfLoRA_CA", "cifar100")
        losses, rates = align(list(network.classifier_pool[: task + 1]), draws, logit_norm)
        same(torch.stack(losses), "ca/loss")
        same(torch.tensor(rates, dtype=torch.float64), "ca/lr")
    for earlier in range(task + 1):
        same(network.classifier_pool[earlier].weight, f"ca/classifier{earlier}_weight")
        same(network.classifier_pool[earlier].bias, f"ca/classifier{earlier}_bias")
    return statistics


def check_evaluation(golden, network, task, same):
    meta, dtype = golden.meta, network.image_encoder.cls_token.dtype
    scenario = Scenario(range(meta["cpt"] * meta["tasks"]), meta["cpt"], meta["cpt"])
    seen = golden["test_y"] < scenario.seen(task)
    features = network.features(golden["test_x"][seen].to(dtype))
    logits = network.logits(features, task + 1)
    same(features, "test_features")
    same(logits, "test_logits")
    metrics = task_metrics(logits, golden["test_y"][seen], scenario, task, decimals=2)
    for key in ("top1", "top1_with_task", "task_acc"):
        assert metrics[key] == pytest.approx(float(golden[f"t{task}/{key}"]), abs=1e-9), key
    for group, value in meta["info"]["grouped"][task].items():
        assert metrics["top1" if group == "total" else group] == pytest.approx(value, abs=1e-9), group


@pytest.mark.parametrize("name", LEARNERS)
def test_learner(name):
    golden, dtype, network = learner(name)
    meta, options = golden.meta, golden_options(golden.meta)
    memories = statistics = None
    for task in range(meta["tasks"]):
        same, batches = Comparison(golden, task), task_batches(golden, task, dtype)
        check_design(network, task, memories, batches, same)
        steps = watched(network, task, batches, same)
        log = train_task(network, task, task, task * meta["cpt"], batches, options, "stage", steps)
        same(log["loss"], "loss")
        rates = golden[f"t{task}/lr"]
        groups = [options.lr] if options.fc_lr is None else [options.lr, options.fc_lr]
        ours = [[options.schedule(step // len(batches), base) for base in groups] for step in range(len(rates))]
        np.testing.assert_allclose(ours, rates, rtol=1e-12)
        check_parameters(network, task, same)
        epsilon = threshold(meta["lamb"], meta["lame"], task, meta["tasks"])
        for layer, C in enumerate(second_moments(network, epoch_of(batches, 0))):
            same(C, f"layer{layer}/gpm_matrix")
        memories = remember_task(network, memories, batches, options.epochs + 1, epsilon, meta["method"] == "InfLoRA")
        check_memory(memories, task, meta, same)
        if "CA" in meta["method"]:
            statistics = check_alignment(golden, network, task, statistics, same)
        check_evaluation(golden, network, task, same)
