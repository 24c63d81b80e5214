"""The network: its state-dict keys, and every fast path against the plain one it stands for."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from common.errors import UserError
from inflora.gpm import second_moments
from inflora.lora import Network
from tests.clip_tower import clip_and_tower
from tests.golden_files import Golden
from tests.inflora.learners import learner, task_batches
from tests.inflora.plain_ways import plain_attention

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 0}


def network(tasks=3, rank=4, layers=None, seed=0):
    """A tiny network in float64 whose branches have been given values."""
    torch.manual_seed(seed)
    built = Network(VisionTransformer(**SIZES), [2] * tasks, tasks, rank, layers).double()
    with torch.no_grad():
        for task in range(tasks):
            for parameter in built.branch(task).values():
                parameter.normal_(std=0.2)
    return built


def images(count=5, seed=1):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("task", [0, 2])
def test_active_branch_and_merged_branches_equal_the_plain_forward(task):
    built = network()
    attention = built.attentions[1]
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = plain_attention(attention, x, task + 1)
    built.activate(task)
    assert_same(attention(x), expected)
    built.finish(task)
    assert attention.active is None
    assert_same(attention(x), expected)


def test_gradients_equal_the_plain_backward():
    built = network()
    attention, parameters = built.attentions[0], built.branch(2) | built.reduction(2)
    here = [value for key, value in parameters.items() if "blocks.0." in key]
    built.train_only(parameters)
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    plain = torch.autograd.grad((plain_attention(attention, x, 3) * target).sum(), [x, *here])
    built.activate(2)
    fast = torch.autograd.grad((attention(x) * target).sum(), [x, *here])
    for ours, theirs in zip(fast, plain):
        assert_same(ours, theirs)


def test_a_fresh_branch_changes_nothing():
    torch.manual_seed(0)
    vit = VisionTransformer(**SIZES).double().eval()
    expected = vit(images()).detach()
    built = Network(vit, [2], 1, 4).double()
    assert_same(built.features(images()), expected)
    built.activate(0)
    assert_same(built.features(images()), expected)


def test_a_fresh_branch_changes_nothing_of_clips_tower():
    """Nor do the inputs of its blocks, behind the norm in front of them: their second moments are CLIP's own."""
    clip, tower = clip_and_tower()
    pictures, inputs = images().float(), []
    for block in clip.visual.transformer.resblocks:
        block.ln_1.register_forward_hook(lambda *call: inputs.append(call[-1].flatten(0, 1)))
    expected = clip.encode_image(pictures)
    built = Network(tower, [2], 1, 4)
    for activate in (lambda: None, lambda: built.activate(0), lambda: built.finish(0)):
        activate()
        torch.testing.assert_close(built.features(pictures), expected, rtol=0, atol=1e-5)
    for C, X in zip(second_moments(built, [(pictures, None)]), inputs, strict=True):
        torch.testing.assert_close(C, X.t() @ X / len(X), rtol=0, atol=1e-5)


def test_state_dict_has_the_originals_keys():
    golden, _, built = learner("inflora_b5")
    assert set(built.state_dict()) == set(golden.under("init/"))


def test_initial_branches():
    """A uniform within 1 / sqrt(d), B zero; the same seed gives the same network."""
    torch.manual_seed(5)
    built = Network(VisionTransformer(**SIZES), [2], 1, 6)
    torch.manual_seed(5)
    again = Network(VisionTransformer(**SIZES), [2], 1, 6)
    for name, parameter in built.reduction(0).items():
        assert 0.8 * 24**-0.5 < parameter.abs().max() <= 24**-0.5
        assert torch.equal(parameter, again.reduction(0)[name])
    assert all((parameter == 0).all() for parameter in built.branch(0).values())


def test_only_the_named_parameters_train():
    """By exact index: a substring would take task 1's for those of tasks 10 to 19."""
    built = network(tasks=12, rank=2)
    built.train_only(built.branch(1) | built.classifier(1))
    training = {key for key, parameter in built.named_parameters() if parameter.requires_grad}
    assert training == set(built.branch(1)) | {"classifier_pool.1.weight", "classifier_pool.1.bias"}
    assert len(training) == 3 * 2 + 2 and all(".1.weight" in key for key in built.branch(1))


@pytest.mark.parametrize("layers", [None, 2])
def test_second_moments_equal_what_the_attention_layers_are_given(layers):
    """Against every input of a whole forward pass, image by image, as the original sums them."""
    built = network(layers=layers)
    built.finish(1)
    seen = {layer: [] for layer in range(len(built.attentions))}
    handles = [
        attention.register_forward_pre_hook(lambda module, inputs, layer=layer: seen[layer].append(inputs[0]))
        for layer, attention in enumerate(built.attentions)
    ]
    batches = [(images(5), None), (images(2, seed=9), None)]
    for batch, _ in batches:
        built.features(batch)
    for handle in handles:
        handle.remove()
    for layer, C in enumerate(second_moments(built, batches)):
        tokens = torch.cat([inputs.flatten(0, 1) for inputs in seen[layer]])
        assert tokens.shape == (7 * 17, 24)
        assert_same(C, sum(torch.outer(token, token) for token in tokens) / len(tokens))


def test_second_moments_in_float32_agree_with_float64():
    """A sum over batches in float32, as on a device: 1e-6 of the largest entry."""
    golden, dtype, built = learner("inflora_main")
    batches = task_batches(golden, 0, dtype)
    exact = second_moments(built, [batches[step] for step in range(4)])
    built.float()
    for C, reference in zip(
        second_moments(built, [(x.float(), y) for x, y in map(batches.__getitem__, range(4))]), exact
    ):
        assert C.dtype == torch.float32
        assert (C.double() - reference).abs().max() <= 1e-6 * reference.abs().max()


def test_logits_of_the_tasks_seen():
    built = network()
    features = built.features(images())
    expected = torch.cat([built.classifier_pool[0](features), built.classifier_pool[1](features)], dim=1)
    assert torch.equal(built.logits(features, 2), expected)


@pytest.mark.parametrize("rank", [0, 25])
def test_rank_must_fit_the_width(rank):
    with pytest.raises(UserError, match="24 wide; give 1 to 24"):
        Network(VisionTransformer(**SIZES), [2], 1, rank)


def test_layers_must_exist():
    with pytest.raises(UserError, match="the backbone has 3"):
        Network(VisionTransformer(**SIZES), [2], 1, 4, layers=5)


def test_golden_files_hold_what_the_original_keeps():
    """The first five blocks of seven, in b5."""
    assert Golden("inflora/inflora_b5").meta["info"]["layers_with_lora"] == 5
    assert len(learner("inflora_b5")[2].attentions) == 5
