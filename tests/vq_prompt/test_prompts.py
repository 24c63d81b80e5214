"""The selection and the prompted network: the official code's numbers, and every fast path against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from tests.clip_tower import clip_and_tower
from tests.golden_files import Golden
from tests.vq_prompt.networks import golden_network, tiny_vit
from vq_prompt.prompts import (
    CONVENTIONS, Network, PromptPool, prefix_attention, prompt_losses, select, straight_through,
)  # fmt: skip
from vq_prompt.training import task_losses

close = torch.testing.assert_close
SIZES = {"img": 16, "patch": 4, "D": 24, "depth": 6, "heads": 4}


@pytest.fixture(params=["vq_select_tau1", "vq_select_tau5"])
def golden(request):
    return Golden(f"vq_prompt/{request.param}")


def pool_of(golden):
    meta = golden.meta
    pool = PromptPool(meta["N"], meta["Lp"], meta["D"], meta["tau"], [meta["layer"]])
    layer = meta["layer"]
    pool.load_state_dict({f"e_p_{layer}": golden["prompts"], f"e_k_{layer}": golden["keys"]})
    return pool


def test_selection(golden):
    found = select(golden["prompts"], golden["keys"], golden["query"], golden.meta["tau"])
    for name, key in (("similarity",) * 2, ("alpha",) * 2, ("soft", "p_soft"), ("distance",) * 2):
        close(getattr(found, name), golden[key], rtol=0, atol=1e-5, msg=name)
    assert torch.equal(found.index, golden["index"])


def test_prefixes_losses_and_gradients(golden):
    """Of the task's scalar, of the prompt loss, and of both: straight through the quantisation."""
    pool, query = pool_of(golden), golden["query"].requires_grad_(True)
    layer = golden.meta["layer"]
    prefix_k, prefix_v, loss = pool(layer, query)
    close(prefix_k, golden["prefix_k"], rtol=0, atol=1e-5)
    close(prefix_v, golden["prefix_v"], rtol=0, atol=1e-5)
    close(loss, golden["loss"], rtol=0, atol=1e-5)
    found = select(golden["prompts"], golden["keys"], golden["query"], golden.meta["tau"])
    commitment, codebook = prompt_losses(found.soft, golden["prompts"][found.index])
    close(commitment, golden["loss_commit_unweighted"], rtol=0, atol=1e-5)
    close(codebook, golden["loss_codebook_unweighted"], rtol=0, atol=1e-5)
    task = (prefix_k * golden["grad_prefix_k"]).sum() + (prefix_v * golden["grad_prefix_v"]).sum()
    inputs = {"prompts": getattr(pool, f"e_p_{layer}"), "keys": getattr(pool, f"e_k_{layer}"), "query": query}
    for kind, scalar in (("task", task), ("loss", loss), ("all", task + loss)):
        gradients = torch.autograd.grad(scalar, list(inputs.values()), retain_graph=True)
        for name, gradient in zip(inputs, gradients):
            close(gradient, golden[f"{kind}_d_{name}"], rtol=0, atol=1e-5, msg=f"{kind} {name}")
    every = torch.autograd.grad(task, inputs["prompts"])[0].abs().sum(dim=(1, 2))
    assert (every > 0).all()  # all of the pool, not just what was selected


def test_conventions_normalisation_and_soft_prompt(golden):
    """What the options change, by the formulas: the two weights, the query's length, no quantisation at all."""
    arguments = [golden.meta[key] for key in ("N", "Lp", "D", "tau")] + [[golden.meta["layer"]]]
    layer, query = golden.meta["layer"], golden["query"]
    losses = {}
    for convention in CONVENTIONS:
        pool = PromptPool(*arguments, convention=convention)
        pool.load_state_dict(pool_of(golden).state_dict())
        losses[convention] = pool(layer, query)[2]
    a, b = golden["loss_commit_unweighted"], golden["loss_codebook_unweighted"]
    close(losses["code"], 0.4 * a + 0.1 * b)
    close(losses["paper"], 0.1 * a + 0.4 * b)
    normalised = select(golden["prompts"], golden["keys"], query, golden.meta["tau"], normalize_query=True)
    close(normalised.similarity, F.cosine_similarity(query[:, None], golden["keys"][None], dim=-1))
    soft = PromptPool(*arguments, quantize=False)
    soft.load_state_dict(pool_of(golden).state_dict())
    prefix_k, prefix_v, loss = soft(layer, query)
    close(torch.cat([prefix_k, prefix_v], dim=1), golden["p_soft"], rtol=0, atol=1e-5)
    assert loss == 0


def test_equal_distances_take_the_first():
    prompts = torch.ones(3, 2, 4)
    assert select(prompts, torch.rand(3, 4), torch.rand(5, 4), 1.0).index.tolist() == [0] * 5


def test_straight_through_has_the_chosen_value_and_the_soft_gradient():
    soft, chosen = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    out = straight_through(soft, chosen)
    close(out, chosen)
    out.sum().backward()
    assert torch.equal(soft.grad, torch.ones(2, 3)) and chosen.grad is None


# The network


def test_prompted_vit_is_the_official_codes():
    golden = Golden("vq_prompt/prompt_vit")
    network, meta = golden_network(golden), golden.meta
    assert network.prompt.layers == tuple(meta["prompt_layers"])
    close(network.query(network.tokens(golden["x"])), golden["query"], rtol=0, atol=1e-5)
    with torch.no_grad():
        features, prompt_loss = network(golden["x"])
        close(features, golden["feature"], rtol=0, atol=1e-5)
        close(network.last(features), golden["logits_all"], rtol=0, atol=1e-5)
    close(prompt_loss, golden["prompt_loss"][0], rtol=0, atol=1e-5)
    ce, prompt_loss = task_losses(network, golden["x"], golden["y"], range(meta["last_valid_out"], meta["valid_out"]))
    total = ce + prompt_loss
    close(ce, golden["ce"], rtol=0, atol=1e-5)
    close(total, golden["total"], rtol=0, atol=1e-5)
    total.backward()
    gradients = golden.under("grad/")
    trained = {key: value for key, value in network.named_parameters() if value.requires_grad}
    assert not any(key.startswith("feat.") for key in trained) and gradients.keys() < trained.keys()
    for key, gradient in gradients.items():
        close(trained[key].grad, gradient, rtol=0, atol=1e-5, msg=key)


def test_class_tokens_after_every_block():
    golden = Golden("vq_prompt/prompt_vit")
    network, seen = golden_network(golden), []
    for name in ("plain", "prompted"):
        hooks = [
            block.norm1.register_forward_pre_hook(lambda _, x: seen.append(x[0][:, 0])) for block in network.feat.blocks
        ]
        hooks.append(network.feat.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0])))
        with torch.no_grad():
            tokens = network.tokens(golden["x"])
            network.query(tokens) if name == "plain" else network(golden["x"], golden["query"])
        close(torch.stack(seen[1:]), golden[f"cls_after_block_{name}"], rtol=0, atol=1e-5, msg=name)
        seen.clear()
        for hook in hooks:
            hook.remove()


def test_state_dict_keys_and_initial_values():
    torch.manual_seed(3)
    network = Network(tiny_vit(SIZES), 7, {"size": 4, "length": 6, "tau": 1.0})
    prompts = {f"prompt.e_{kind}_{layer}" for kind in "pk" for layer in range(5)}
    rest = {f"feat.{key}" for key in tiny_vit(SIZES).state_dict()} | {"last.weight", "last.bias"}
    assert network.state_dict().keys() == prompts | rest
    torch.manual_seed(3)
    tiny_vit(SIZES)
    last = torch.nn.Linear(24, 7)  # before the prompts, which go block by block, prompt then key
    assert torch.equal(network.last.weight, last.weight)
    for layer in range(5):
        assert torch.equal(getattr(network.prompt, f"e_p_{layer}"), torch.rand(4, 6, 24))
        assert torch.equal(getattr(network.prompt, f"e_k_{layer}"), torch.rand(4, 24))


def test_fused_attention_is_the_explicit_one():
    attention = tiny_vit(SIZES).blocks[0].attn.double()
    x, prefix_k, prefix_v = (torch.randn(3, n, 24, dtype=torch.float64) for n in (17, 2, 2))
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    key, value = torch.cat([prefix_k, key], dim=1), torch.cat([prefix_v, value], dim=1)
    heads = [part.unflatten(-1, (4, 6)).transpose(1, 2) for part in (query, key, value)]
    weights = (heads[0] @ heads[1].mT * 6**-0.5).softmax(dim=-1)
    plain = attention.proj((weights @ heads[2]).transpose(1, 2).flatten(2))
    close(prefix_attention(attention, x, prefix_k, prefix_v), plain, rtol=1e-12, atol=1e-12)
    assert plain.shape == x.shape


def test_frozen_backbone_changes_no_gradient():
    """As the original, with every parameter trainable and the query under no_grad in a pass of its own."""
    golden = Golden("vq_prompt/prompt_vit")
    frozen, free = golden_network(golden, torch.float64), golden_network(golden, torch.float64)
    free.requires_grad_(True)
    images, labels = golden["x"].double(), golden["y"]
    assert not any(parameter.requires_grad for parameter in frozen.feat.parameters())
    for network in (frozen, free):
        sum(task_losses(network, images, labels, range(3, 6))).backward()
    assert all(parameter.grad is None for parameter in frozen.feat.parameters())
    for part in ("prompt", "last"):
        for one, other in zip(getattr(frozen, part).parameters(), getattr(free, part).parameters()):
            assert torch.equal(one.grad, other.grad)


def test_backward_stops_below_the_first_prompted_block():
    vit = tiny_vit(SIZES)
    network = Network(vit, 3, {"size": 2, "length": 2, "tau": 1.0, "layers": [2, 3]})
    reached = []
    for layer, block in enumerate(vit.blocks):
        block.mlp.register_full_backward_hook(lambda *_, layer=layer: reached.append(layer))
    sum(task_losses(network, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), range(3))).backward()
    assert reached == [5, 4, 3, 2]


def test_known_queries_are_used_and_change_nothing(monkeypatch):
    network = Network(tiny_vit(SIZES), 3, {"size": 4, "length": 4, "tau": 1.0}).double()
    images = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    query = network.query(network.tokens(images))
    plain = network(images)[0]
    monkeypatch.setattr(Network, "query", lambda *_: pytest.fail("computed again"))
    close(network(images, query)[0], plain, rtol=0, atol=0)


def test_the_query_is_the_vit_itself():
    vit = tiny_vit(SIZES).double().eval()
    network, images = Network(vit, 3), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    close(network.query(network.tokens(images)), vit(images))
    close(network(images)[0], vit(images))


def test_the_query_is_that_of_clips_tower():
    clip, tower = clip_and_tower()
    network, images = Network(tower, 3), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(network.query(network.tokens(images)), clip.encode_image(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "param, told",
    [
        ((0, 8, 1), "the pool needs 1 prompt or more"),
        ((1.5, 8, 1), "the pool needs 1 prompt or more"),
        ((10, 7, 1), "half of a prompt goes to the keys and half to the values; give an even length"),
        ((10, 0, 1), "give an even length"),
        ((10, 8, 0), "give a temperature above 0"),
    ],
)
def test_pools_that_make_no_sense(param, told):
    with pytest.raises(UserError, match=told):
        PromptPool(param[0], param[1], 24, param[2])
