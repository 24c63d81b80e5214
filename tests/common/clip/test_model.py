"""CLIP against the official model's numbers (tests/golden/clip), against open_clip, and against itself.

Tolerances are those of the fixtures' README: 1e-5 absolute on features, logits, activations and gradient
entries, 1e-5 relative on gradient norms.
"""

import pytest
import torch
import torch.nn.functional as F

from common.clip.model import CLIP, CLIPConfig, QuickGELU, build_model, config_from_state_dict, fold_batch_norms
from common.clip.tokenizer import tokenize
from tests.golden_files import Golden

MODELS = ("vit_tiny", "vit_2heads", "rn_tiny")


def golden_model(golden):
    return build_model(golden.under("w/"))


@pytest.fixture(params=MODELS)
def golden(request):
    return Golden(f"clip/{request.param}")


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance, difference


def contrastive_loss(logits_per_image, logits_per_text):
    """The formula of the fixtures' meta["loss"]."""
    n = min(logits_per_image.shape)
    losses = [F.cross_entropy(side[:n], torch.arange(n)) for side in (logits_per_image, logits_per_text)]
    return sum(losses) / 2


def test_architecture_follows_from_the_shapes(golden):
    sizes = {key: golden.meta[key] for key in CLIPConfig.__dataclass_fields__}
    if isinstance(sizes["vision_layers"], list):
        sizes["vision_layers"] = tuple(sizes["vision_layers"])
    assert config_from_state_dict(golden.under("w/")) == CLIPConfig(**sizes)
    model = golden_model(golden)
    assert model.visual.input_resolution == sizes["image_resolution"]
    assert model.context_length == sizes["context_length"]


def test_state_dict_keys_and_parameter_order(golden):
    model = golden_model(golden)
    assert set(model.state_dict()) == set(golden.under("w/"))
    assert sorted(name for name, _ in model.named_parameters()) == sorted(golden.meta["param_names"])
    assert not model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_features_and_logits(golden):
    model = golden_model(golden)
    close(model.encode_image(golden["image"]), golden["image_features"])
    close(model.encode_text(golden["tokens"]), golden["text_features"])
    per_image, per_text = model(golden["image"], golden["tokens"])
    close(per_image, golden["logits_per_image"])
    close(per_text, golden["logits_per_text"])


@torch.no_grad()
def test_a_row_without_end_token_is_read_at_its_highest_id(golden):
    """The last row of the fixture: argmax is position 0, wherever the other rows of the batch are cut."""
    row = golden["tokens"][-1:]
    assert int(row.argmax()) == 0
    expected = golden["text_features"][-1:]
    for cut in (True, False):
        close(golden_model(golden).encode_text(row, cut=cut), expected)


@torch.no_grad()
def test_activations(golden):
    """Blocks, ln_pre and ResNet stages; the fixture's blocks are [tokens, batch, width], ours batch first."""
    model, seen = golden_model(golden), {}

    def record(name, module):
        module.register_forward_hook(lambda _, __, output: seen.__setitem__(name, output))

    for i, block in enumerate(model.transformer.resblocks):
        record(f"text_block{i}", block)
    if golden.meta["vision_patch_size"]:
        record("visual_ln_pre", model.visual.ln_pre)
        for i, block in enumerate(model.visual.transformer.resblocks):
            record(f"visual_block{i}", block)
    else:
        for i in (1, 2, 3, 4):
            record(f"visual_layer{i}", getattr(model.visual, f"layer{i}"))
    if golden.meta["vision_patch_size"]:
        model.visual.transformer(model.visual.embed(golden["image"]))  # of the last block encode_image reads one token
    else:
        model.encode_image(golden["image"])
    model.transformer(model.token_embedding(golden["tokens"]) + model.positional_embedding)
    expected = golden.under("act/")
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        close(seen[name], value.transpose(0, 1) if "block" in name else value)


def gradients(model, images, tokens, cut=True):
    """The loss and the gradient of every parameter, by name; `cut` as in encode_text."""
    model.zero_grad()
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = F.normalize(model.encode_text(tokens, cut=cut), dim=-1)
    logits = model.logit_scale.exp() * image_features @ text_features.t()
    loss = contrastive_loss(logits, logits.t())
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients(golden):
    model = golden_model(golden)
    loss = contrastive_loss(*model(golden["image"], golden["tokens"]))
    close(loss.detach(), golden["loss"])
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, expected in golden.under("grad/").items():
        close(parameters[name].grad, expected)
    norms = golden["grad_norms"].tolist()
    for name, expected in zip(golden.meta["param_names"], norms, strict=True):
        norm = parameters[name].grad.double().norm().item()
        # the key bias shifts all scores of a query alike: its gradient is zero in theory, rounding here
        slack = 1e-5 if name.endswith("attnpool.k_proj.bias") else 1e-5 * expected
        assert abs(norm - expected) <= slack, (name, norm, expected)


def test_cut_text_equals_full_text(golden):
    """Dropping the columns behind the last end token changes neither features nor any gradient."""
    model = golden_model(golden)
    end = golden["tokens"].argmax(dim=1)
    short = golden["tokens"][end < end.max()] if (end < end.max()).sum() >= 2 else golden["tokens"]
    for tokens in (golden["tokens"], short):
        close(model.encode_text(tokens, cut=True), model.encode_text(tokens, cut=False))
        loss_cut, cut = gradients(model, golden["image"], tokens, cut=True)
        loss_full, full = gradients(model, golden["image"], tokens, cut=False)
        assert abs(loss_cut - loss_full) <= 1e-5
        for name in full:
            close(cut[name], full[name])
    assert int(short.argmax(dim=1).max()) + 1 < golden.meta["context_length"]  # the cut did cut


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_quick_gelu_keeps_its_input_alone(dtype):
    """The formula's bits; its gradient is within the rounding of the formula's in float64."""
    x, gradient = (torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)).mul(4).to(dtype) for seed in (1, 2))
    kept, x = [], x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = QuickGELU()(x)
    assert len(kept) == 1 and kept[0].data_ptr() == x.data_ptr()
    assert torch.equal(found, x * torch.sigmoid(1.702 * x))
    exact = x.detach().double().requires_grad_()
    (exact * torch.sigmoid(1.702 * exact)).backward(gradient.double())
    found.backward(gradient)
    slack = 4 * torch.finfo(dtype).eps * exact.grad.abs().max()
    assert x.grad.dtype == dtype and (x.grad - exact.grad).abs().max() <= slack


def test_cut_text_is_faster_work_not_another_result_at_context_77():
    """Real prompts at the real context length; the text tower sees as many columns as the longest one has."""
    config = CLIPConfig(16, 16, 1, 64, 8, 77, 49408, 128, 2, 2)
    torch.manual_seed(0)
    model = CLIP(config).eval()
    tokens = tokenize(["a photo of a cat.", "a photo of a great white shark, a type of fish."])
    seen = []
    model.transformer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    cut, full = model.encode_text(tokens), model.encode_text(tokens, cut=False)
    assert seen == [int(tokens.argmax(dim=1).max()) + 1, 77]
    close(cut, full)


def test_resnet_train_mode():
    """Batch statistics in the output, running statistics after one pass, gradient of the squared features."""
    golden = Golden("clip/rn_tiny")
    model = golden_model(golden).train()
    features = model.encode_image(golden["image"])
    features.square().sum().backward()
    expected = golden.under("train_mode/")
    close(features.detach(), expected.pop("image_features"))
    gradient = expected.pop("grad_sumsq/visual.conv1.weight")
    # entries in the hundreds: 1e-5 of the largest (README)
    close(model.visual.conv1.weight.grad, gradient, 1e-5 * gradient.abs().max().item())
    state = model.state_dict()
    assert len(expected) == 2 * sum(key.endswith("running_mean") for key in state)
    for key, value in expected.items():
        close(state[key], value)


def random_state_dict(config, seed):
    """Weights that float16 holds exactly, with running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    state = CLIP(config).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(0.1 * torch.randn_like(value))
        if value.is_floating_point():
            value.copy_(value.half())
    return state


OPEN_CLIP_CONFIGS = {
    "vit": CLIPConfig(48, 48, 3, 128, 16, 77, 500, 64, 1, 2),
    "vit_patch_7": CLIPConfig(32, 35, 2, 192, 7, 20, 300, 192, 3, 1),
    "resnet": CLIPConfig(64, 96, (1, 2, 1, 2), 8, None, 77, 400, 128, 2, 2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OPEN_CLIP_CONFIGS)
def test_same_as_open_clip(name):
    """The model that open_clip builds from the same state dict (it goes through float16: exact here)."""
    from open_clip.model import build_model_from_openai_state_dict

    config = OPEN_CLIP_CONFIGS[name]
    state = random_state_dict(config, seed=5)
    theirs = build_model_from_openai_state_dict(dict(state)).float().eval()
    ours = build_model(state)
    assert ours.config == config
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, config.image_resolution, config.image_resolution, generator=generator)
    tokens = torch.randint(1, config.vocab_size - 1, (5, config.context_length), generator=generator)
    tokens[torch.arange(5), torch.tensor([1, 4, 9, 13, config.context_length - 1])] = config.vocab_size - 1
    close(ours.encode_image(images), theirs.encode_image(images))
    close(ours.encode_text(tokens), theirs.encode_text(tokens))
    close(ours(images, tokens)[0], theirs.get_logits(images, tokens)[0])
    fold_batch_norms(ours.visual)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules())
    close(ours.encode_image(images), theirs.encode_image(images))


PUBLISHED_SIZES = {  # parameters and state-dict tensors as published
    "RN50": (CLIPConfig(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12), 102_007_137, 489),
    "RN101": (CLIPConfig(512, 224, (3, 4, 23, 3), 64, None, 77, 49408, 512, 8, 12), 119_688_033, 795),
    "RN50x4": (CLIPConfig(640, 288, (4, 6, 10, 6), 80, None, 77, 49408, 640, 10, 12), 178_300_601, 669),
    "RN50x16": (CLIPConfig(768, 384, (6, 8, 18, 8), 96, None, 77, 49408, 768, 12, 12), 290_979_217, 921),
    "ViT-B/32": (CLIPConfig(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12), 151_277_313, 302),
    "ViT-B/16": (CLIPConfig(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12), 149_620_737, 302),
    "ViT-L/14": (CLIPConfig(768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12), 427_616_513, 446),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_sizes_of_the_published_models(name):
    """On the meta device: no memory, no weights, the shapes alone."""
    config, parameters, tensors = PUBLISHED_SIZES[name]
    with torch.device("meta"):
        model = CLIP(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert config_from_state_dict(model.state_dict()) == config


def test_not_a_clip():
    with pytest.raises(KeyError):
        config_from_state_dict({"weight": torch.zeros(2, 2)})
    weights = Golden("clip/vit_tiny").under("w/")
    weights.pop("visual.ln_post.bias")
    with pytest.raises(RuntimeError, match="visual.ln_post.bias"):
        build_model(weights)
