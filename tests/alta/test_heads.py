"""The nine methods' logits, losses and gradients, prompts and tokens, against the official code's numbers."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from alta.data import listed_names
from alta.heads import METHODS, Head, PromptLearner, PromptOptions, cosine_logits, normalised
from common.clip.model import CLIP, CLIPConfig
from common.clip.tokenizer import encode, tokenize
from common.datasets.names import read_names
from tests.alta.learners import apart, golden_clip, golden_head
from tests.golden_files import Golden

SETS = {
    "seq-cifar10": ("CIFAR10", "cifar10"),
    "seq-cifar100": ("CIFAR100", "cifar100"),
    "seq-tinyimagenet": ("TinyImageNet", "tinyimagenet_cil"),
}
NAMES = ["airplane", "aquarium_fish", "potter's wheel"]


@pytest.fixture(scope="module")
def tiny_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CLIPConfig(32, 16, 1, 64, 8, 77, 49408, 32, 2, 2)).requires_grad_(False)


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_every_method_on_one_batch(tower):
    golden = Golden(f"alta/methods_{tower}")
    images, labels, told = golden["images"].float(), golden["labels"], 0
    for method in golden.meta["methods"]:
        head = golden_head(golden, method)
        assert apart(head.features(images), golden["v"]) <= 1e-5
        assert apart(head.hard_texts, normalised(golden["w1"])) <= 1e-5
        load_state(head, golden)
        for variant in ("empty", "frozen"):
            if f"{method}.{variant}.logits" not in golden:
                continue
            head.freeze(golden["frozen_T"] if variant == "frozen" else None)
            logits = head(images)
            loss = F.cross_entropy(logits, labels)
            head.zero_grad()
            loss.backward()
            assert apart(logits, golden[f"{method}.{variant}.logits"]) <= 1e-5
            assert apart(loss, golden[f"{method}.{variant}.loss"]) <= 1e-5
            trained = {name.split("mlp_visual.")[-1].split("learner.")[-1]: p for name, p in head.trained().items()}
            assert trained.keys() == golden.under(f"{method}.{variant}.grad.").keys()
            for name, grad in golden.under(f"{method}.{variant}.grad.").items():
                assert apart(trained[name].grad, grad) <= 5e-5, (method, variant, name)
            told += 1
            if method == "cprompt":
                assert apart(head.prompts(), golden[f"cprompt.{variant}.prompts"]) <= 1e-5
                assert apart(head.soft_texts(), normalised(golden[f"cprompt.{variant}.w2"])) <= 1e-5
    assert told == 16  # two methods without prompts, seven with


def load_state(head: Head, golden: Golden) -> None:
    """The fixture's context, adapter and prompt buffers, by the original's keys."""
    learner = "prompt_learner." if head.method.prompts else ""
    state = {f"{learner}mlp_visual.{key}": value for key, value in golden.under("init.mlp_visual.").items()}
    state |= {f"prompt_learner.{key}": golden[key] for key in ("ctx", "token_prefix", "token_suffix")}
    if head.method.prompts:
        assert torch.equal(head.prompt_learner.ctx, golden["init.ctx_from_words"])
        assert torch.equal(head.prompt_learner.token_suffix, golden["token_suffix"])
        assert torch.equal(head.prompt_learner.tokens.int(), golden["soft_tokens"])
        assert head.prompt_learner.name_lengths == golden["name_lens"].tolist()
    wanted = {key: value for key, value in state.items() if key in head.state_dict()}
    assert head.trained().keys() <= wanted.keys()
    head.load_state_dict(wanted, strict=False)


def test_the_optimiser_sees_the_originals_parameters_in_its_order(tiny_clip):
    adapter = [f"mlp_visual.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
    within = [f"prompt_learner.{key}" for key in ("ctx", *adapter)]
    expected = {"mlp": adapter, "resmlp": adapter, "zeroshot": []}
    expected |= {name: within[:1] for name in ("sprompt", "cprompt", "cprompt_oriprompt")}
    for method in METHODS:
        assert list(Head(tiny_clip, method, NAMES, PromptOptions()).trained()) == expected.get(method, within)


@pytest.mark.parametrize(("width", "text", "count"), [(1024, 512, 134_208), (512, 512, 35_360), (640, 640, 54_440)])
def test_trained_parameters_are_those_of_the_towers(width, text, count):
    clip = CLIP(CLIPConfig(width, 32, 1, 64, 16, 77, 49408, text, 1, 1))
    trained = Head(clip, "oritext_mlp2cprompt_oriimg", NAMES, PromptOptions()).trained()
    assert sum(parameter.numel() for parameter in trained.values()) == count


# Prompts


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_prompts_by_position_of_the_name(position):
    golden = Golden("alta/prompts")
    meta, clip = golden.meta, CLIP(CLIPConfig(8, 16, 1, 64, 16, 77, 49408, golden.meta["width"], 1, 1))
    table = torch.zeros(49408, meta["width"])
    table[golden["token_embedding.ids"].long()] = golden["token_embedding.rows"].float()
    clip.token_embedding.weight.data = table
    learner = PromptLearner(clip, meta["names"], PromptOptions(words=meta["prefix"], position=position))
    assert torch.equal(learner.tokens.int(), golden["soft_tokens"])
    learner.ctx.data = golden["ctx"]
    assert apart(learner()[:, :20], golden[f"{position}.prompts_empty"]) <= 1e-5
    for length in (77, 20):  # cut or not
        frozen = torch.cat([golden["frozen_T"][:, :length], learner(meta["k"], length)])
        assert apart(frozen[:, :20], golden[f"{position}.prompts_frozen"]) <= 1e-5
        (grad,) = torch.autograd.grad((frozen[:, :20] * golden[f"{position}.probe"]).sum(), [learner.ctx])
        assert apart(grad, golden[f"{position}.grad_ctx"]) <= 5e-5


def test_an_odd_context_is_halved_downwards_in_the_middle(tiny_clip):
    learner = PromptLearner(tiny_clip, ["lawn_mower"], PromptOptions("one big red", "middle"))
    start, one, big, red, lawn, mower, period, end = tiny_clip.token_embedding(learner.tokens)[0, :8]
    assert torch.equal(learner()[0, :8], torch.stack([start, one, lawn, mower, big, red, period, end]))


@pytest.mark.parametrize("per_class", [False, True])
def test_context_without_words(tiny_clip, per_class):
    """N_CTX and CSC count where CTX_INIT is empty; random vectors of deviation 0.02 in place of as many X."""
    torch.manual_seed(1)
    learner = PromptLearner(tiny_clip, NAMES * 20, PromptOptions("", count=5, per_class=per_class))
    assert learner.ctx.shape == ((60, 5, 32) if per_class else (5, 32))
    assert abs(float(learner.ctx.detach().std()) - 0.02) < 0.004
    assert torch.equal(learner.tokens[:1], tokenize("X X X X X airplane."))
    assert torch.equal(learner()[2, 1:6], learner.ctx[2] if per_class else learner.ctx)


@pytest.mark.parametrize("name", SETS)
def test_tokens_of_the_data_sets_classes(name):
    """Hard prompts keep underscores and have no period; soft ones have spaces and a period."""
    golden = Golden("alta/tokens")
    known, stem = SETS[name]
    names = listed_names(known, read_names(stem))
    assert names == golden.lines(f"{name}.names")
    assert torch.equal(tokenize([f"a photo of a {name}" for name in names]).int(), golden[f"{name}.hard_tokens"])
    clip = CLIP(CLIPConfig(8, 16, 1, 64, 16, 77, 49408, 8, 1, 1))
    learner = PromptLearner(clip, names, PromptOptions(golden.meta["prefix"]))
    assert torch.equal(learner.tokens.int(), golden[f"{name}.soft_tokens"])
    assert learner.name_lengths == golden[f"{name}.name_lens"].tolist()


def test_hard_prompt_is_fixed_whatever_the_context_begins_with(tiny_clip):
    """Two constants that coincide in every shipped configuration."""
    head = Head(tiny_clip, "oritext_mlp2cprompt_oriimg", NAMES, PromptOptions("one_sketch of"))
    assert torch.equal(
        head.prompt_learner.tokens, tokenize([f"one sketch of {name.replace('_', ' ')}." for name in NAMES])
    )
    assert torch.equal(head.prompt_learner.ctx, tiny_clip.token_embedding(torch.tensor(encode("one sketch of"))))
    hard = tiny_clip.encode_text(tokenize([f"a photo of a {name}" for name in NAMES]))
    assert apart(head.hard_texts, hard / hard.norm(dim=-1, keepdim=True)) < 1e-6
    other = Head(tiny_clip, "oritext_mlp2cprompt_oriimg", NAMES, PromptOptions("the"))
    assert torch.equal(other.hard_texts, head.hard_texts)


def test_the_scale_multiplies_the_normalised_image_first():
    """Which half precision shows: elsewhere the product would round differently."""
    torch.manual_seed(0)
    images, texts = torch.randn(5, 8).half(), normalised(torch.randn(7, 8).half())
    scale = torch.tensor(4.6052).exp()
    expected = (scale * (images / images.norm(dim=-1, keepdim=True))) @ texts.t()
    late = scale * ((images / images.norm(dim=-1, keepdim=True)) @ texts.t())
    found = cosine_logits(images, texts, scale)
    assert found.dtype == torch.float16 and torch.equal(found, expected) and not torch.equal(found, late)


# Fast equals plain


@pytest.mark.parametrize("position", ["end", "front"])
def test_encodings_agree(position):
    """Cut prompts and once-encoded frozen rows against all rows together at full length: logits and gradients."""
    golden = Golden("alta/methods_vit")
    found = {}
    for encoding in ("cut", "full", "original"):
        options = PromptOptions(golden.meta["prefix"], position)
        torch.manual_seed(3)
        head = Head(golden_clip(golden), "oritext_mlp2cprompt_oriimg", golden.meta["names"], options, encoding).double()
        with torch.no_grad():
            head.prompt_learner.ctx.copy_(golden["ctx"])
        head.freeze(head.snapshot(2))
        logits = head(golden["images"].double())
        F.cross_entropy(logits, golden["labels"]).backward()
        found[encoding] = {name: parameter.grad for name, parameter in head.trained().items()} | {"logits": logits}
    for encoding in ("cut", "full"):
        for name, value in found["original"].items():
            assert apart(found[encoding][name], value) < 2e-6, (encoding, name)  # layer norms compute in float32


def test_only_live_rows_are_encoded_and_hard_prompts_once():
    golden = Golden("alta/methods_vit")
    clip, rows = golden_clip(golden), []
    plain = clip.encode_prompts

    def counted(embeddings, end):
        rows.append((len(embeddings), embeddings.shape[1], torch.is_grad_enabled()))
        return plain(embeddings, end)

    with mock.patch.object(clip, "encode_prompts", counted):
        head = Head(clip, "oritext_mlp2cprompt_oriimg", golden.meta["names"], PromptOptions())
        head.freeze(head.snapshot(4))
        for _ in range(3):
            head(golden["images"].float())
    longest = int(golden["soft_tokens"].argmax(dim=1).max()) + 1
    hard = int(golden["hard_tokens"].argmax(dim=1).max()) + 1
    assert rows == [(6, hard, False), (4, longest, False), *[(2, longest, True)] * 3]
