"""IT-Prompt's network on tiny towers: prefixes, mixed batches, what trains, fast against plain; a task's training."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmViT

from common.clip.model import CLIP, CLIPConfig
from common.errors import UserError
from common.incremental.scenario import Scenario
from common.machine import Machine
from tests.clip_tower import clip_and_tower
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.evaluation import FeatureCache, held, infer_tasks, predict, unseen_accuracy, zero_shot
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.it_prompt.network import Encoder, Entries, Model, Parts, Selector
from vq_prompt.it_prompt.training import rebalance, train_task
from vq_prompt.prompts import prefixed

LAYERS, LENGTH, TASKS, CLASSES, DIM = (0, 1), 4, 3, 6, 16
CONFIG = CLIPConfig(DIM, 32, 3, 64, 16, 16, 64, 32, 1, 1)
EXACT, CLOSE = {"rtol": 0, "atol": 0}, {"rtol": 1e-5, "atol": 1e-6}


def tower(kind):
    torch.manual_seed(0)
    if kind == "clip":
        return CLIP(CONFIG).visual.eval()
    return TimmViT(img_size=32, patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=0).eval()


@pytest.fixture(params=["clip", "vit"])
def encoder(request):
    return Encoder(tower(request.param), LAYERS)


def parts_of(encoder, head=True, selector=True):
    torch.manual_seed(1)
    prompt = Entries(TASKS, len(LAYERS), LENGTH, encoder.width, encoder.dim, 1.0)
    return Parts(
        prompt,
        torch.nn.Linear(encoder.dim, CLASSES) if head else None,
        Selector(encoder.dim, 5, CLASSES) if selector else None,
    )


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_attention_with_prefixes_is_written_out():
    generator = torch.Generator().manual_seed(3)
    qkv, prompts = (torch.randn(2, n, d, generator=generator).double() for n, d in ((5, 24), (4, 8)))
    query, key, value = qkv.split(8, dim=-1)
    key, value = torch.cat([prompts[:, :2], key], 1), torch.cat([prompts[:, 2:], value], 1)
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (query[..., head] @ key[..., head].mT / 2).softmax(dim=-1)
        expected.append(weights @ value[..., head])
    found = prefixed(*qkv.chunk(3, dim=-1), *prompts.chunk(2, dim=1), heads=2)
    torch.testing.assert_close(found, torch.cat(expected, -1), rtol=0, atol=1e-12)


def test_without_prompts_it_is_the_tower(encoder, images):
    with torch.no_grad():
        expected = F.normalize(encoder.tower(images), dim=-1)
    tolerance = CLOSE if isinstance(encoder.tower, TimmViT) else EXACT  # timm takes all tokens through its last block
    torch.testing.assert_close(encoder.plain(images), expected, **tolerance)


def test_clips_tower_as_a_vit_is_the_tower_itself(images):
    """With prompts and without, values and the prompts' gradients."""
    clip, vit = clip_and_tower(32, 16)
    prompts = torch.randn(len(LAYERS), LENGTH, 64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    (u, z), (expected_u, expected_z) = (Encoder(tower, LAYERS).both(images, prompts) for tower in (vit, clip.visual))
    torch.testing.assert_close(u, expected_u, rtol=0, atol=1e-5)
    torch.testing.assert_close(z, expected_z, rtol=0, atol=1e-5)
    assert (u - z).abs().max() > 1e-2
    gradient, expected = (torch.autograd.grad(features[:, 0].sum(), prompts)[0] for features in (z, expected_z))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


def test_a_batch_of_several_entries_equals_an_image_at_a_time(encoder, images):
    prompt, entries = parts_of(encoder).prompt, torch.tensor([2, 0, 1, 2, 0])
    mixed = encoder.prompted(images, prompt.gathered(entries))
    single = [encoder.prompted(image[None], prompt.prompts(entry)) for image, entry in zip(images, entries.tolist())]
    torch.testing.assert_close(mixed, torch.cat(single), **CLOSE)
    assert (mixed - encoder.plain(images)).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (2,)])
def test_both_passes_at_once_equal_two(images, layers):
    """What lies below the first prompted block is shared, values and gradients being those of two whole passes."""
    encoder = Encoder(tower("clip"), layers)
    prompts = torch.randn(len(layers), LENGTH, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    u, z = encoder.both(images, prompts)
    assert torch.equal(u, encoder.plain(images)) and torch.equal(z, encoder.prompted(images, prompts))
    assert not u.requires_grad
    tokens = encoder.tower.embed(images)  # the plain way: every block with its gradient
    x = tokens.requires_grad_()
    for number, block in enumerate(encoder.blocks):
        if number in encoder.layers:
            part = prompts[encoder.layers[number]].expand(len(x), -1, -1)
            qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
            x = x + block.attn.out_proj(prefixed(*qkv.chunk(3, dim=-1), *part.chunk(2, dim=1), block.attn.heads))
            x = x + block.mlp(block.ln_2(x))
        else:
            x = block(x)
    plain = F.normalize(encoder.tower.pool(x), dim=-1)
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    (found,), (expected,) = (torch.autograd.grad((out * weights).sum(), [prompts]) for out in (z, plain))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_layer_that_is_not_there():
    with pytest.raises(UserError, match=r"prompt_layers \[0, 3\]: the backbone has blocks 0 to 2"):
        Encoder(tower("clip"), (0, 3))


# Training a task


class Batches(list):
    """Four batches, two of them an epoch."""

    def __len__(self):
        return 2


def batches_of(images):
    labels = torch.tensor([2, 3, 2, 3, 3])
    return Batches((images + 0.1 * step, labels) for step in range(4))


def plain_steps(stage, total, state):
    return range(total)


def model_of(options, encoder, parts, text):
    return Model(options, encoder, parts, text, Scenario(range(CLASSES), 2, 2), ClassMemory(), ClassMemory())


def learn(encoder, parts, images, name="ITPrompt", **changes):
    options = settled(ITOptions(learner_name=name, epochs=2, batch_size=5, tpi_hidden=5, **changes))
    text = F.normalize(torch.randn(CLASSES, encoder.dim, generator=torch.Generator().manual_seed(6)), dim=1)
    return train_task(model_of(options, encoder, parts, text), 1, batches_of(images), plain_steps)


LOSSES = {  # options -> the parts that have a gradient, with the entry of the task
    "ITPrompt": ({}, {"prompt.p_1", "prompt.k_1", "head", "selector"}),
    "ITPromptCNCM": ({}, {"prompt.p_1", "prompt.k_1"}),
    "cosine": ({"text_guide": "cosine"}, {"prompt.p_1", "prompt.k_1"}),
    "off": ({"text_guide": "off"}, {"prompt.p_1", "prompt.k_1", "head"}),
}


@pytest.mark.parametrize("case", LOSSES)
def test_training_moves_exactly_its_parts(encoder, images, case):
    changes, moving = LOSSES[case]
    name = case if case.startswith("IT") else "ITPromptCNCM"
    options = settled(ITOptions(learner_name=name, **changes))
    parts = parts_of(encoder, options.train_head, options.selector == "softmax")
    before, frozen = copy.deepcopy(parts.state_dict()), copy.deepcopy(encoder.state_dict())
    log = learn(encoder, parts, images, name, **changes)
    moved = {key for key, value in parts.state_dict().items() if not torch.equal(value, before[key])}
    whole = {key if key.startswith("prompt.") else key.split(".")[0] for key in moved}
    assert whole == moving
    assert all(torch.equal(value, frozen[key]) for key, value in encoder.state_dict().items())
    for name in ("head.weight", "selector.classifier.weight"):  # rows of other classes have no gradient and no decay
        if name in before:
            same = (parts.state_dict()[name] == before[name]).all(dim=1)
            assert same.tolist() == [True, True, False, False, True, True]
    assert not any(parameter.requires_grad for parameter in parts.parameters())
    assert log["total"][-1] < log["total"][0]


def test_plain_clip_is_untouched_by_learning(images):
    """README, section 6: outputs for images and names that were never trained, before the first task and after the last one."""
    torch.manual_seed(0)
    clip = CLIP(CONFIG).eval()
    encoder = Encoder(clip.visual, LAYERS)
    tokens = torch.randint(1, 60, (7, 16), generator=torch.Generator().manual_seed(8))

    def outputs():
        with torch.no_grad():
            names = F.normalize(clip.encode_text(tokens), dim=1)
            return (*clip(images, tokens), zero_shot(encoder.plain(images), names))

    before, parts = outputs(), parts_of(encoder)
    options = settled(ITOptions(learner_name="ITPrompt", epochs=2, lr=0.1, rebalance_epochs=2, rebalance_lr=0.1))
    text = F.normalize(torch.randn(CLASSES, DIM), dim=1)
    for task in range(TASKS):
        labels = torch.tensor([0, 1, 0, 1, 1]) + 2 * task
        drawn = Batches([(images, labels)] * 4)
        train_task(model_of(options, encoder, parts, text), task, drawn, plain_steps)
        features = Batches([(encoder.plain(images), labels)] * 4)
        rebalance(parts.head, features, 2 * task + 2, options, "head", plain_steps)
    assert (encoder.prompted(images, parts.prompt.prompts(2)) - encoder.plain(images)).abs().max() > 0.01
    assert all(torch.equal(now, then) for now, then in zip(outputs(), before))


# Evaluation


class Images(torch.utils.data.Dataset):
    """Random images; counts how often each is looked at."""

    def __init__(self, labels):
        self.labels, self.looked = labels, [0] * len(labels)
        self.pixels = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(9))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.looked[index] += 1
        return self.pixels[index], self.labels[index]


@pytest.fixture
def learned():
    encoder = Encoder(tower("clip"), LAYERS)
    text = F.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(6)), dim=1)
    return model_of(settled(ITOptions(learner_name="ITPrompt", batch_size=4)), encoder, parts_of(encoder), text)


def test_images_are_looked_at_again_only_for_another_entry(learned):
    images = Images([0, 1, 2, 3, 4, 5, 0, 1])
    known = FeatureCache.of(images, learned.encoder.plain(images.pixels))
    rows, entries = torch.tensor([0, 1, 2, 3, 6, 7]), torch.tensor([0, 0, 1, 0, 0, 1])
    for changed, looked in ((entries, 1), (entries, 1), (torch.tensor([0, 2, 1, 0, 0, 1]), 2)):
        z = known.prompted(learned, rows, changed, Machine(torch.device("cpu")))
        plain = [
            learned.encoder.prompted(images.pixels[row][None], learned.parts.prompt.prompts(entry))
            for row, entry in zip(rows.tolist(), changed.tolist())
        ]
        torch.testing.assert_close(z, torch.cat(plain), **CLOSE)
        assert images.looked == [1, looked, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("scope", ["seen", "task"])
def test_prediction_after_two_of_three_tasks(learned, scope):
    """Every selector and classifier against its scores written out; no class of the third task is ever answered."""
    generator = torch.Generator().manual_seed(10)
    u, z = (F.normalize(torch.randn(50, DIM, generator=generator), dim=1) for _ in range(2))
    for memory in (learned.u, learned.z):
        features = F.normalize(torch.randn(40, DIM, generator=generator), dim=1)
        memory.learn(features, torch.arange(40) // 10, range(4), 0, True, False)
    true_tasks = torch.arange(50) % 2
    nearest = {
        memory: torch.stack([(vectors @ part.t()).amax(1) for part in store.centroids], 1)
        for memory, store, vectors in (("u", learned.u, u), ("z", learned.z, z))
    }
    expected = {
        "cncm": nearest["u"].argmax(1) // 2,
        "softmax": learned.parts.selector(u)[:, :4].argmax(1) // 2,
        "key": torch.stack([F.cosine_similarity(u, learned.parts.prompt.key(t)[None]) for t in (0, 1)], 1).argmax(1),
        "oracle": true_tasks,
    }
    scores = {"cncm": nearest["z"], "softmax": learned.parts.head(z)[:, :4], "text": z @ learned.text[:4].t()}
    for selector, tasks in expected.items():
        for classifier, score in scores.items():
            given = {"selector": selector, "classifier": classifier, "scope": scope}
            learned.options = settled(ITOptions(learner_name="ITPrompt", **given))
            entries = infer_tasks(learned, u, true_tasks, 1)
            assert torch.equal(entries, tasks)
            outside = torch.tensor([[c // 2 != t for c in range(4)] for t in tasks.tolist()])
            answer = (score.masked_fill(outside, -torch.inf) if scope == "task" else score).argmax(1)
            assert torch.equal(predict(learned, z, entries, 1), answer)
            outside = torch.tensor([[c // 2 != t for c in range(4)] for t in true_tasks.tolist()])
            known = score.masked_fill(outside, -torch.inf).argmax(1)
            assert torch.equal(predict(learned, z, true_tasks, 1, within_task=True), known)


def test_numbers_of_common_ground(learned):
    """Parameters of tower, entries, head and selector; numbers in both stores; plain CLIP among the classes left."""
    shapes = [(2, 4, 64), (16,)] * 3 + [(6, 16), (6,), (5, 16), (5,), (6, 5), (6,)]
    tower_of = sum(value.numel() for value in tower("clip").state_dict().values())
    assert held(learned) == (tower_of + sum(map(math.prod, shapes)), 0)
    features, labels = F.normalize(torch.randn(40, DIM), dim=1), torch.arange(40) // 10
    learned.u.learn(features, labels, range(4), 0, clusters=True, gaussians=True)
    learned.z.centered = True
    learned.z.learn(features, labels, range(4), 0, clusters=False, gaussians=True)
    clusters = sum(len(part) for part in learned.u.centroids)
    assert 4 < clusters <= 40 and held(learned)[1] == (clusters + 2 * 4 + 1 + 2 * 4) * DIM
    images = Images([0, 1, 2, 3, 4, 5, 3, 2, 5, 4, 2])
    cache = FeatureCache.of(images, learned.encoder.plain(images.pixels))
    left = [row for row, label in enumerate(images.labels) if label > 1]
    answers = [2 + int((learned.text[2:] @ cache.u[row]).argmax()) for row in left]
    right = sum(answer == images.labels[row] for answer, row in zip(answers, left))
    assert 0 < right < len(left) and unseen_accuracy(learned, cache, 0) == pytest.approx(100 * right / len(left))
    assert unseen_accuracy(learned, cache, 2) is None
    learned.options = settled(ITOptions(learner_name="NCM"))
    assert unseen_accuracy(learned, cache, 0) is None
