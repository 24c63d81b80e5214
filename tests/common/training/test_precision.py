"""Precision, compiled blocks, checkpointed activations: fp32 moves no bit, bf16 rounds towers, gradients equal."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import common.clip.model as clip_model
import common.vit as common_vit
import moe_adapters.cil
import moe_adapters.main
import vq_prompt.it_prompt.network as it_network
import vq_prompt.prompts as vq_network
from common.attention import CLASS_TOKEN
from common.clip.model import LayerNorm
from common.clip.tokenizer import training_prompts
from common.errors import UserError
from common.machine import Machine, RunOptions, choose_machine
from common.runs import Run
from common.training.numerics import prepare
from inflora.gpm import second_moments
from inflora.lora import Network as LoRANetwork
from moe_adapters.adapters import insert_adapters, is_adapter_key, use_router
from tests import process_loops
from tests.clip_tower import clip_and_tower
from vq_prompt.it_prompt.network import Encoder
from vq_prompt.prompts import Network as VQNetwork

# A product of bfloat16 factors, of 8 bits each, is off by up to 2^-8 of its size; a tower rounds every few layers.
LEAST, MOST = 2.0**-14, 2.0**-6


def choose(name: str = "fp32", compile: bool = False, checkpoint: bool = False) -> Machine:
    options = RunOptions("cpu", precision=name, compile=compile, checkpoint_activations=checkpoint)
    return choose_machine(options)


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_loops, "DTYPE", torch.float32)


def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)


def clips() -> VisionTransformer:
    """CLIP's tower as a ViT's: a norm in front of the blocks and an activation with a backward pass of its own."""
    torch.manual_seed(0)
    return clip_and_tower(depth=2)[1]


def lora(tower: Callable[[], VisionTransformer] = vit) -> LoRANetwork:
    network = LoRANetwork(tower(), [4], 1, 3)
    for attention in network.attentions:
        nn.init.normal_(attention.lora_B_k[0].weight)
    network.train_only(network.branch(0))
    network.activate(0)
    return network


def moe() -> nn.Module:
    model = insert_adapters(process_loops.clip(0), 4, 2, 8, 1)
    use_router(model, 0)
    for name, parameter in model.named_parameters():
        if is_adapter_key(name):
            nn.init.normal_(parameter, std=0.2)
    return model


def prompts(encoder: Encoder) -> nn.Parameter:
    return nn.Parameter(torch.randn(2, 4, encoder.width, generator=torch.Generator().manual_seed(3)))


def it_features() -> tuple[nn.Module, Callable[[], Tensor]]:
    encoder = Encoder(process_loops.clip(0).visual, (0, 1))
    entry = prompts(encoder)
    return nn.ModuleDict({"encoder": encoder, "prompts": nn.ParameterList([entry])}), lambda: torch.cat(encoder.both(images(), entry))


def vq_features(tower: Callable[[], VisionTransformer] = vit) -> tuple[nn.Module, Callable[[], Tensor]]:
    network = VQNetwork(tower(), 4, {"size": 3, "length": 4, "tau": 1.0})
    return network, lambda: network(images())[0]


def clip_features(model: nn.Module, text: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    tokens = training_prompts(process_loops.NAMES, "a photo of {}.")
    return model, lambda: model.encode_text(tokens) if text else model.encode_image(images())


def lora_features(tower: Callable[[], VisionTransformer] = vit) -> tuple[nn.Module, Callable[[], Tensor]]:
    network = lora(tower)
    return network, lambda: network.features(images())


TOWERS: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor]]]] = {
    "CLIP's images": lambda: clip_features(process_loops.clip(0), text=False),
    "CLIP's texts": lambda: clip_features(process_loops.clip(0), text=True),
    "MoE-Adapters": lambda: clip_features(moe(), text=False),
    "MoE-Adapters' texts": lambda: clip_features(moe(), text=True),
    "InfLoRA": lora_features,
    "InfLoRA on CLIP's tower": lambda: lora_features(clips),
    "VQ-Prompt": vq_features,
    "VQ-Prompt on CLIP's tower": lambda: vq_features(clips),
    "IT-Prompt": it_features,
}


@pytest.mark.parametrize("name", TOWERS)
def test_bf16_rounds_features_and_hands_on_float32(name: str) -> None:
    model, features = TOWERS[name]()
    plain = features().detach()
    prepare(choose("bf16"), model)
    rounded = features().detach()
    assert rounded.dtype == torch.float32
    assert LEAST < float((rounded - plain).norm() / plain.norm()) < MOST
    prepare(choose("tf32"), model)  # a GPU's: no effect here
    assert torch.equal(features(), plain)
    prepare(choose(), model)
    assert torch.equal(features(), plain)


def test_fp32_is_the_plain_call() -> None:
    model = process_loops.clip(0)
    with torch.no_grad():
        tokens = model.visual.transformer(model.visual.embed(images()), CLASS_TOKEN)
        assert torch.equal(model.encode_image(images()), model.visual.pool(tokens))


@pytest.mark.parametrize("name", process_loops.LOOPS)
def test_every_loop_learns_in_bf16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process_loops, "MACHINE", choose("bf16"))
        rounded = process_loops.LOOPS[name]()
    plain = process_loops.LOOPS[name]()
    floating = {key: value for key, value in plain.items() if value.is_floating_point()}
    assert all(rounded[key].dtype == value.dtype for key, value in floating.items())
    finite = [key for key, value in floating.items() if value.isfinite().all()]
    assert all(rounded[key].isfinite().all() for key in finite) and len(finite) > len(floating) / 2
    assert any(not torch.equal(rounded[key], value) for key, value in floating.items())
    for key in ("loss", "total", "ce"):
        if key in plain:
            torch.testing.assert_close(rounded[key], plain[key], rtol=2e-2, atol=2e-2)


def test_a_method_s_own_algebra_stays_exact_in_bf16() -> None:
    network, model = lora(), moe()
    prepare(choose("bf16"), network, model)
    ones = torch.ones(5, dtype=torch.long)
    found = second_moments(network, [(images(), ones)])[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inputs = network.image_encoder._pos_embed(network.image_encoder.patch_embed(images())).float()
    rows = network.image_encoder.blocks[0].norm1(inputs).detach().flatten(0, 1)
    assert torch.equal(found, rows.t() @ rows / len(rows))

    seen = []
    for block in model.visual.transformer.resblocks:
        block.router_list[0].data.normal_()
        block.route = lambda c, route=block.route: seen.append((c, route(c))) or seen[-1][1]
    model.encode_image(images())
    for block, (c, (chosen, gates)) in zip(model.visual.transformer.resblocks, seen, strict=True):
        assert c.dtype == gates.dtype == torch.float32
        values, best = (c @ block.router_list[0]).topk(2)
        assert torch.equal(chosen, best) and torch.equal(gates, values.softmax(dim=-1))


@pytest.mark.parametrize("name", [name for name in TOWERS if "MoE" not in name])
def test_checkpointed_blocks_give_the_same_gradients(name: str) -> None:
    found = []
    for checkpoint in (False, True):
        model, features = TOWERS[name]()
        prepare(choose(checkpoint=checkpoint), model)
        kept = []
        count = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
        with count:
            loss = features().square().sum()
        loss.backward()
        found.append((sum(kept), [p.grad for p in model.parameters() if p.grad is not None]))
    (all_of_it, plain), (inputs, again) = found
    assert len(plain) > 0 and all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert inputs < all_of_it / 2


@pytest.mark.parametrize("name", TOWERS)
def test_a_last_block_of_the_token_read_alone_equals_a_whole_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and all gradients, and of MoE-Adapters in training the same draws of noise and dropout."""
    found, lengths = [], []
    for whole in (False, True):
        model, features = TOWERS[name]()
        model.train()
        use_router(model, 0, noise=True) if "MoE" in name else None
        with monkeypatch.context() as patch:
            for module in (clip_model, common_vit, vq_network, it_network) if whole else ():
                patch.setattr(module, "CLASS_TOKEN", ...)
            if whole and "text" in name:  # the end tokens
                last = model.transformer.resblocks[-1]
                last.forward = lambda x, read, block=last.forward: block(x)[read]
            for module in model.modules():
                if isinstance(module, (LayerNorm, nn.LayerNorm)):
                    module.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1:-1].numel()))
            torch.manual_seed(5)
            values = features()
        (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(6))).sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((values.detach(), gradients, sum(lengths)))
        lengths.clear()
    (ours, gradients, fewer), (plain, expected, all_tokens) = found
    assert fewer < all_tokens and gradients.keys() == expected.keys() and len(expected) > 0
    assert (ours - plain).norm() <= 1e-6 * plain.norm()
    for key, value in expected.items():
        assert (gradients[key] - value).norm() <= 1e-5 * value.norm(), key


def test_routed_blocks_are_not_run_twice(capsys: pytest.CaptureFixture) -> None:
    words = ["--train-dataset", "MNIST", "--iterations", "1", "--save", "x", "--ffn_adapt", "--apply_moe"]
    with pytest.raises(SystemExit):
        moe_adapters.main.main([*words, "--task_id", "0", "--checkpoint-activations"])
    assert "count their choices and draw noise and dropout twice" in capsys.readouterr().err
    words = ["--config-path", "configs/class", "--config-name", "cifar100_10-10-MoE-Adapters.yaml", "--scale", "mini"]
    with pytest.raises(SystemExit):
        moe_adapters.cil.main([*words, "checkpoint_activations=true"])
    assert "count their choices and draw noise and dropout twice" in capsys.readouterr().err


def test_compiled_blocks_give_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # a C++ compiler takes 15 s
    machine = choose(compile=True)
    assert machine.compile
    model = process_loops.clip(0)
    model.visual.transformer.resblocks = model.visual.transformer.resblocks[:1]
    with torch.no_grad():
        plain, keys = model.encode_image(images()), model.state_dict().keys()
        prepare(machine, model.visual)
        torch.testing.assert_close(model.encode_image(images()), plain, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == keys


def test_of_blocks_that_functions_run_the_mlp_is_compiled() -> None:
    """Nothing is compiled before it is called. A MoE block, which counts and draws, is not compiled as a whole."""
    for model, whole in ((VQNetwork(vit(), 4), True), (moe(), False)):
        prepare(Machine(torch.device("cpu"), compile=True), model)
        compiled = {name for name, module in model.named_modules() if module._compiled_call_impl}
        blocks = {name.removesuffix(".mlp") for name in compiled if name.endswith(".mlp")}
        parts = {f"{block}.{part}" for block in blocks for part in ("attn", "mlp")}
        assert len(blocks) == (2 if whole else 4) and compiled == (parts | blocks if whole else parts)


def test_without_a_compiler_blocks_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        machine = choose(compile=True)
    assert not machine.compile
    assert capsys.readouterr().out.count("blocks are not compiled") == 1


# Records


def test_a_precision_is_part_of_settings_and_label(tmp_path: Path) -> None:
    def opened(folder: str, machine: Machine = choose()) -> Run:
        return Run(tmp_path / folder, {"lr": 0.1}, {"method": "ZSCL", "seed": 0}, machine=machine)

    assert opened("fp32").labels == {"method": "ZSCL", "seed": 0}
    content = yaml.safe_load((tmp_path / "fp32" / "config.yaml").read_text())
    assert content["settings"] == {"lr": 0.1}
    bf16 = choose("bf16", checkpoint=True)
    opened("bf16", bf16).record([{"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 1.0}])
    assert opened("bf16", bf16).records[0]["method"] == "ZSCL (bf16)"
    content = yaml.safe_load((tmp_path / "bf16" / "config.yaml").read_text())
    assert content["settings"] == {"lr": 0.1, "precision": "bf16"}
    assert content["provenance"]["checkpoint_activations"] is True and content["provenance"]["compile"] is False
    with pytest.raises(UserError, match="precision: None there, 'bf16' now"):
        opened("fp32", bf16)
    with pytest.raises(UserError, match="precision: 'bf16' there, None now"):
        opened("bf16")


def test_tf32_says_that_a_cpu_has_none(capsys: pytest.CaptureFixture) -> None:
    machine = choose("tf32")
    assert "tf32 has no effect on a cpu" in capsys.readouterr().out
    assert machine.label == " (tf32)"
