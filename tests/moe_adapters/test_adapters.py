"""Blocks, routers and experts against the official code's numbers (golden/moe_adapters/block_*)."""

import pytest
import torch
from torch.testing import assert_close

from common.clip.model import CLIP, CLIPConfig
from moe_adapters.adapters import (
    ADAPTER_DROPOUT,
    ORIGINAL_CLIP,
    MoEBlock,
    drop_unchosen_gradients,
    experts_to_freeze,
    insert_adapters,
    is_adapter_key,
    mixture_of_experts,
    squared_variation,
    top_k_gates,
    trainable_parameters,
)
from tests.golden_files import Golden

TOLERANCE = dict(rtol=2e-5, atol=2e-5)  # the fixtures' README


def golden_block(golden: Golden, routers: int) -> MoEBlock:
    meta = golden.meta
    causal = meta.get("causal", False)
    block = MoEBlock(meta["d"], meta["heads"], causal, meta["experts"], meta["topk"], 64, routers)
    missing, unexpected = block.load_state_dict(golden.under("sd/"), strict=False)
    assert not unexpected
    assert all("router_list" in key or "w_noise_list" in key for key in missing)
    return block.eval()


def run(block: MoEBlock, golden: Golden, key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward of sum(out * cotangent); the fixtures are (L, B, d), the block is batch-first."""
    x = golden["x"].transpose(0, 1).clone().requires_grad_()
    out = block(x).transpose(0, 1)
    (out * golden["cotangent"]).sum().backward()
    assert_close(out, golden[f"{key}out"], **TOLERANCE)
    assert_close(x.grad.transpose(0, 1), golden[f"{key}grad_x"], **TOLERANCE)
    return out, x.grad


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("task", [0, 1, 2, 10])
def test_block_with_gate_noise(kind: str, task: int) -> None:
    golden, key = Golden(f"moe_adapters/block_{kind}"), f"task{task}/noise/"
    block = golden_block(golden, routers=11)
    block.task_id, block.router_noise, block.keep_balance = task, True, True
    block.draw_noise = lambda clean: golden[f"{key}eps"]
    routed = []
    plain_route = block.route
    block.route = lambda c: routed.append((c, *plain_route(c))) or routed[-1][1:]
    run(block, golden, key)
    c, chosen, gates = routed[0]
    expected_gates = golden[f"{key}gates"]
    assert_close(c, golden[f"{key}router_input"], **TOLERANCE)
    assert_close(torch.zeros_like(expected_gates).scatter(1, chosen, gates), expected_gates, **TOLERANCE)
    assert torch.equal(block.choices, golden[f"{key}choose_map"])
    assert_close(0.01 * block.balance, golden[f"{key}balance_loss_unused"], **TOLERANCE)
    assert_close(block.router_list[task].grad, golden[f"{key}grad_router"], **TOLERANCE)
    assert_close(block.w_noise_list[task].grad, golden[f"{key}grad_w_noise"], **TOLERANCE)
    check_expert_gradients(block, golden, key)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("task", [0, 1, 2])  # router 10 is all zero: with the noise off its experts are arbitrary
def test_block_without_noise(kind: str, task: int) -> None:
    golden, key = Golden(f"moe_adapters/block_{kind}"), f"task{task}/clean/"
    block = golden_block(golden, routers=11)
    block.task_id = task
    run(block, golden, key)
    assert torch.equal(block.choices, golden[f"{key}choose_map"])
    assert_close(block.router_list[task].grad, golden[f"{key}grad_router"], **TOLERANCE)
    assert block.w_noise_list[task].grad is None
    check_expert_gradients(block, golden, key)
    if task != 1:
        x = golden["x"].transpose(0, 1)
        assert_close(block(x).transpose(0, 1), golden[f"auto/{task}/out"], **TOLERANCE)


def check_expert_gradients(block: MoEBlock, golden: Golden, key: str) -> None:
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.transformer, model.transformer = torch.nn.Module(), torch.nn.Module()
    model.visual.transformer.resblocks, model.transformer.resblocks = [block], []
    drop_unchosen_gradients(model, block.choices[None])
    for index, (expert, used) in enumerate(zip(block.adaptmlp_list, golden[f"{key}expert_has_grad"])):
        assert (expert.up_proj.bias.grad is not None) == bool(used)
        if used:
            assert_close(expert.up_proj.bias.grad, golden[f"{key}grad_expert{index}_up_bias"], **TOLERANCE)
            down = expert.down_proj.weight.grad.sum(dim=0)
            assert_close(down, golden[f"{key}grad_expert{index}_down_weight_sum0"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_original_clip_skips_the_experts(kind: str) -> None:
    golden = Golden(f"moe_adapters/block_{kind}")
    block = golden_block(golden, routers=11)
    block.task_id = ORIGINAL_CLIP
    assert_close(block(golden["x"].transpose(0, 1)).transpose(0, 1), golden["auto/-1/out"], **TOLERANCE)
    assert block.choices.sum() == 0


def test_block_with_dropout() -> None:
    golden = Golden("moe_adapters/block_dropout")
    block = golden_block(golden, routers=1)
    block.task_id, block.router_noise = 0, True
    block.draw_noise = lambda clean: golden["eps"]
    chosen_per_sample = []
    plain_route = block.route
    block.route = lambda c: chosen_per_sample.append(plain_route(c)) or chosen_per_sample[-1]

    def stored_mask(hidden: torch.Tensor) -> torch.Tensor:  # (B, L, k, r); the mask is (E, B, L, r)
        chosen = chosen_per_sample[-1][0]
        rows = torch.arange(len(chosen))[:, None]
        mask = golden["mask"].float()[chosen, rows].transpose(1, 2)
        return hidden * mask / (1 - ADAPTER_DROPOUT)

    del block.dropout
    block.dropout = stored_mask
    run(block, golden, "")
    assert_close(block.router_list[0].grad, golden["grad_router"], **TOLERANCE)
    assert torch.equal(block.choices, golden["choose_map"])


def test_gathered_experts_equal_a_loop_over_experts() -> None:
    torch.manual_seed(0)
    block = MoEBlock(16, 2, False, experts=5, topk=3, bottleneck=8, routers=1).double()
    for parameter in block.adaptmlp_list.parameters():
        torch.nn.init.normal_(parameter)
    h = torch.randn(6, 4, 16, dtype=torch.double)
    chosen, gates = top_k_gates(torch.randn(6, 5, dtype=torch.double), topk=3, stable=True)
    loop = torch.zeros_like(h)
    for sample in range(6):
        for expert, gate in zip(chosen[sample], gates[sample]):
            module = block.adaptmlp_list[int(expert)]
            loop[sample] += gate * 0.1 * module.up_proj(torch.relu(module.down_proj(h[sample])))
    gathered = mixture_of_experts(h, chosen, gates, block.adaptmlp_list, torch.nn.Identity())
    assert_close(gathered, loop, rtol=1e-6, atol=1e-6)  # the combine runs in float32, as upstream's


def test_ties_go_to_the_lowest_indices() -> None:
    chosen, gates = top_k_gates(torch.zeros(3, 7), topk=2, stable=True)
    assert chosen.tolist() == [[0, 1]] * 3
    assert_close(gates, torch.full((3, 2), 0.5))


def test_squared_variation_of_one_expert_is_zero() -> None:
    assert squared_variation(torch.tensor([3.0])) == 0
    assert_close(squared_variation(torch.tensor([1.0, 3.0])), torch.tensor(2.0 / 4.0))


def small_clip() -> torch.nn.Module:
    return CLIP(CLIPConfig(16, 16, 2, 64, 8, 8, 30, 64, 1, 2))


def test_frozen_experts_and_other_routers_do_not_train() -> None:
    model = insert_adapters(small_clip(), experts=4, topk=2, routers=3)
    choose_map = torch.tensor([[5.0, 9, 1, 0], [0, 0, 3, 2], [1, 2, 3, 4], [7, 7, 0, 7]])
    frozen = experts_to_freeze(model, choose_map)
    assert frozen[0] == "visual.transformer.resblocks.0.adaptmlp_list.1.down_proj.weight"
    assert frozen[4] == "visual.transformer.resblocks.0.adaptmlp_list.0.down_proj.weight"
    assert [name for name in frozen if name.endswith("up_proj.bias")][2:4] == [
        "transformer.resblocks.0.adaptmlp_list.3.up_proj.bias",
        "transformer.resblocks.0.adaptmlp_list.2.up_proj.bias",
    ]
    chosen = trainable_parameters(model, task_id=1, frozen=set(frozen))
    assert not set(frozen) & set(chosen)
    assert all(is_adapter_key(name) for name in chosen)
    assert {name.rsplit(".", 1)[1] for name in chosen if "router_list" in name} == {"1"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(chosen)


def test_freeze_bug_takes_visual_experts_from_the_text_map() -> None:
    model = insert_adapters(small_clip(), experts=4, topk=2, routers=1)
    choose_map = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4]])
    fixed, released = (experts_to_freeze(model, choose_map, bug) for bug in (False, True))
    assert "visual.transformer.resblocks.0.adaptmlp_list.0.up_proj.bias" in fixed
    assert "visual.transformer.resblocks.0.adaptmlp_list.3.up_proj.bias" in released
    assert [n for n in fixed if not n.startswith("visual")] == [n for n in released if not n.startswith("visual")]


def test_adapters_of_a_new_model_add_nothing() -> None:
    torch.manual_seed(0)
    model = small_clip().eval()
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 29, (4, 8))
    with torch.no_grad():
        before = model(images, tokens)[0]
        insert_adapters(model, experts=4, topk=2, routers=1)
        for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
            block.task_id = 0
        after = model(images, tokens)[0]
    assert torch.equal(before, after)


def test_towers_of_different_depth_freeze_their_own_blocks() -> None:
    model = insert_adapters(CLIP(CLIPConfig(16, 16, 3, 64, 8, 8, 30, 64, 1, 1)), experts=4, topk=2, routers=1)
    frozen = experts_to_freeze(model, torch.tensor([[4.0, 3, 2, 1]] * 4))
    assert {name.split(".adaptmlp")[0] for name in frozen} == {
        *(f"visual.transformer.resblocks.{block}" for block in range(3)),
        "transformer.resblocks.0",
    }
