"""Every fast path against the plain one that it stands for, on tiny models."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.datasets.transforms import CLIP_MEAN, CLIP_STD
from common.evaluation.zero_shot import class_vectors
from moe_adapters.adapters import (
    ORIGINAL_CLIP,
    count_choices,
    drop_unchosen_gradients,
    mixture_of_experts,
    moe_blocks,
    use_router,
)
from moe_adapters.ddas import AutoEncoder, autoencoder_input
from moe_adapters.evaluation import EvaluationSet, distinct
from moe_adapters.options import Options
from tests.benchmarks.inputs import one_batch, prompts, small_or_paper_clip
from tests.moe_adapters.plain_ways import (
    Matrix,
    build_matrix,
    domain_pixels,
    drawn_noise,
    evaluate_anew,
    evaluate_shared,
    full_class_vectors,
    loop_over_experts,
    replaced,
    trajectory,
    with_adapters,
)

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
TRAJECTORY = {"rtol": 1e-4, "atol": 1e-4}


def fixed_noise(model: CLIP) -> CLIP:
    """The model without dropout, its gate noise a function of the block alone."""
    for index, block in enumerate(moe_blocks(model)):
        block.dropout.p, block.draw_noise = 0.0, partial(drawn_noise, [0], index)
    return model


def compare_gradients(fast: dict[str, torch.Tensor | None], plain: dict[str, torch.Tensor | None]) -> None:
    """None for the same parameters, and otherwise equal to 1e-4 of the tensor's largest entry."""
    for name, expected in plain.items():
        assert (fast[name] is None) == (expected is None), name
        if expected is not None:
            assert (fast[name] - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("routing", ["spread", "concentrated"])
@pytest.mark.parametrize("topk", [1, 2, 3])
def test_gathered_experts_and_cut_prompts_give_the_plain_gradients(routing: str, topk: int) -> None:
    tokens, batch = prompts(6, longest=12), one_batch(small_or_paper_clip(small=True), 8, 6)
    gradients = []
    for mixture, prompt in ((None, cut_prompts(tokens)), (loop_over_experts, tokens)):
        model = fixed_noise(with_adapters(small_or_paper_clip(small=True), routing)).train()
        for block in moe_blocks(model):
            block.topk = topk
        use_router(model, 0, noise=True)
        with replaced(mixture):
            texts, images = model.encode_text(prompt, cut=False), model.encode_image(batch.images)
        logits = 10 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).t()
        F.cross_entropy(logits, batch.labels).backward()
        counts = count_choices(model)()
        drop_unchosen_gradients(model, counts)
        assert (counts.sum(dim=1) == topk * torch.tensor([8.0, 8, 6, 6])).all()
        assert (counts == 0).any() and (counts > 0).any()
        for block, count in zip(moe_blocks(model), counts):
            for expert, samples in zip(block.adaptmlp_list, count):
                assert all((parameter.grad is None) == (samples == 0) for parameter in expert.parameters())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    compare_gradients(*gradients)


def test_all_experts_without_gathering_give_the_plain_gradients() -> None:
    """k = E, the class-incremental case: the blocks take the path that gathers nothing."""
    tokens, batch = prompts(6, longest=12), one_batch(small_or_paper_clip(small=True), 8, 6)
    gradients = []
    for mixture in (None, mixture_of_experts, loop_over_experts):
        model = fixed_noise(with_adapters(small_or_paper_clip(small=True), "spread")).train()
        for block in moe_blocks(model):
            block.topk = len(block.adaptmlp_list)
        use_router(model, 0, noise=True)
        with replaced(mixture):
            texts, images = model.encode_text(cut_prompts(tokens), cut=False), model.encode_image(batch.images)
        logits = 10 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).t()
        F.cross_entropy(logits, batch.labels).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    compare_gradients(gradients[0], gradients[2])
    compare_gradients(gradients[1], gradients[2])


@pytest.mark.parametrize("routing", ["spread", "concentrated"])
def test_three_training_steps_equal_the_plain_ones(routing: str) -> None:
    """The loop itself: gathered experts and cut prompts against a loop over experts and 77 tokens."""
    plain_clip, tokens = small_or_paper_clip(small=True), prompts(6, longest=12)
    batch = one_batch(plain_clip, 8, 6)
    models = [with_adapters(plain_clip, routing) for _ in range(2)]
    fast = trajectory(models[0], cut_prompts(tokens), batch, 3)
    plain = trajectory(models[1], tokens, batch, 3, loop_over_experts)
    start = dict(with_adapters(plain_clip, routing).named_parameters())
    assert fast.keys() == plain.keys() and {"loss 0", "loss 1", "loss 2"} < fast.keys()
    for name, value in plain.items():
        assert_close(fast[name], value, **TRAJECTORY, msg=name)
    moved = {name for name in plain if name in start and not torch.equal(start[name], plain[name])}
    assert moved and moved == {name for name in fast if name in start and not torch.equal(start[name], fast[name])}
    compare_gradients(*({name: p.grad for name, p in model.named_parameters()} for model in models))  # the last step's


@pytest.mark.parametrize("task_id", [ORIGINAL_CLIP, 0])
def test_class_vectors_of_cut_prompts(task_id: int) -> None:
    """300 prompts: two calls, each cut at its own longest prompt, against a call a class at full length."""
    model = with_adapters(small_or_paper_clip(small=True), "concentrated")
    use_router(model, task_id)
    tokens = prompts(300, longest=20).view(100, 3, -1)
    assert_close(class_vectors(model, tokens), full_class_vectors(model, tokens), **TOLERANCE)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return build_matrix(torch.device("cpu"), tasks=3, images=40, batch_size=16)  # 16 + 16 + 8: the last batch is small


def test_shared_evaluation_equals_every_cell_anew(matrix: Matrix) -> None:
    """Accuracies and routing of all checkpoints on all sets, against nothing cached and every router's texts."""
    shared = evaluate_shared(matrix)
    assert shared == evaluate_anew(matrix)
    for domain, cells in enumerate(shared):
        expected = [domain if checkpoint >= domain else ORIGINAL_CLIP for checkpoint in range(3)]
        assert [list(cell.routed) for cell in cells] == [[task] for task in expected]
    assert len({cell.top1 for cells in shared for cell in cells}) > 3


def test_mixed_routing_equals_every_cell_anew(matrix: Matrix) -> None:
    """A set whose batches belong to different domains, one of them never learnt."""
    (first, labels, tokens), (second, *_), _ = matrix.sets
    pixels = torch.cat([first[:16], second[:16], domain_pixels(99, 8, first.shape[-1])])
    mixed = replace(matrix, sets=[(pixels, labels, tokens)])
    shared = evaluate_shared(mixed)
    assert shared == evaluate_anew(mixed)
    assert shared[0][0].routed == {ORIGINAL_CLIP: 24, 0: 16}
    assert shared[0][2].routed == {ORIGINAL_CLIP: 8, 0: 16, 1: 16}


def test_what_checkpoints_share_is_computed_once(matrix: Matrix) -> None:
    """Image and text passes counted at the towers' doors, while three checkpoints meet a domain never learnt."""
    passes = {"image": 0, "text": 0}

    def count(side: str) -> None:
        passes[side] += 1

    hooks = [
        matrix.model.visual.register_forward_hook(lambda *_: count("image")),
        matrix.model.ln_final.register_forward_hook(lambda *_: count("text")),
    ]
    pixels, labels, tokens = domain_pixels(99, 40, 32), *matrix.sets[0][1:]
    test = EvaluationSet(matrix.model, pixels, labels, tokens, matrix.batch_size)
    test.measure_errors(matrix.extractor, matrix.autoencoders)
    for checkpoint in matrix.checkpoints:
        assert test.evaluate(checkpoint, Options(autorouter=True, threshold=matrix.threshold), None).routed == {ORIGINAL_CLIP: 40}
    assert passes == {"image": 3, "text": 1}  # 16 + 16 + 8 images, and the zero-shot prompts
    test.evaluate(matrix.checkpoints[2], Options(no_ddas=True, task_id=1), None)
    assert passes == {"image": 6, "text": 2}
    for hook in hooks:
        hook.remove()


def test_errors_of_a_batch_are_its_images_mean(matrix: Matrix) -> None:
    pixels, labels, tokens = matrix.sets[0]
    test = EvaluationSet(matrix.model, pixels, labels, tokens, matrix.batch_size)
    test.measure_errors(matrix.extractor, matrix.autoencoders)
    to_float = torch.stack([pixel.float() for pixel in pixels]) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    for part in (slice(0, 16), slice(16, 32), slice(32, 40)):
        features = autoencoder_input(matrix.extractor, (to_float[part] - mean) / std)
        for index, autoencoder in enumerate(matrix.autoencoders):
            expected = F.mse_loss(autoencoder(features), features)
            assert_close(test.errors[part, index].mean(), expected.detach(), **TOLERANCE)


def test_equal_autoencoders_are_kept_once() -> None:
    """A chain of checkpoints: the second holds the first's autoencoders but for one trained since."""
    torch.manual_seed(0)
    modules = nn.ModuleList(AutoEncoder(12, 3) for _ in range(3))
    known: list[AutoEncoder] = []
    first = [distinct(known, module) for module in modules]
    before = [parameter.detach().clone() for parameter in known[1].parameters()]
    with torch.no_grad():
        modules[1].decoder[0].bias.add_(1e-6)
    second = [distinct(known, module) for module in modules]
    assert (first, second, len(known)) == ([0, 1, 2], [0, 3, 2], 4)
    assert all(torch.equal(a, b) for a, b in zip(before, known[1].parameters()))
    assert torch.equal(known[3].decoder[0].bias, modules[1].decoder[0].bias)
