"""The zero-shot head and top-k accuracy against ZSCL's evaluation rule (tests/golden/common/metrics.json)."""

import json

import pytest
import torch

from common.clip.model import CLIP, CLIPConfig
from common.evaluation.zero_shot import PROMPTS_AT_ONCE, accuracy, class_vectors, zeroshot_logits, zeroshot_weights
from tests.golden_files import GOLDEN

CASES = json.loads((GOLDEN / "common/metrics.json").read_text())["zero_shot"]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['text_embeddings'][0])} templates")
def test_zero_shot(case):
    weights = zeroshot_weights(double(case["text_embeddings"]))
    logits = zeroshot_logits(double(case["image_features"]), weights)
    for actual, name in ((weights, "weights"), (logits, "logits")):
        torch.testing.assert_close(actual, double(case["expected"][name]), rtol=0, atol=1e-9)
    top1, top5 = accuracy(logits, torch.tensor(case["labels"]))
    assert abs(top1 - case["expected"]["top1"]) < 1e-9 and abs(top5 - case["expected"]["top5"]) < 1e-9


def test_templates_weigh_equally_whatever_their_length():
    """A class with features along x (long) and y (short): its weight lies on the diagonal."""
    weights = zeroshot_weights(torch.tensor([[[7.0, 0.0], [0.0, 0.1]]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5**0.5], [0.5**0.5]]))


def test_dtype_is_kept():
    embeddings = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert zeroshot_weights(embeddings).dtype == torch.float32
    assert zeroshot_weights(embeddings.double()).dtype == torch.float64


def test_accuracy_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [1.0, 3.0, 2.0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert accuracy(logits, labels, topk=(1, 2, 3)) == (50.0, 75.0, 100.0)
    assert accuracy(logits, labels) == (50.0, 100.0)  # three classes: every label is among the five highest
    assert accuracy(logits, labels, topk=(2,)) == (75.0,)


def test_accuracy_of_equal_logits_follows_topk():
    logits = torch.zeros(8, 6)
    first = logits.topk(1, dim=1).indices[0].item()
    assert accuracy(logits, torch.full((8,), first), topk=(1,)) == (100.0,)
    assert accuracy(logits, torch.full((8,), (first + 1) % 6), topk=(1,)) == (0.0,)


def test_accuracy_of_nothing():
    with pytest.raises(ValueError, match="no samples"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_class_vectors_equal_a_call_for_each_class():
    """More prompts than one call takes, and classes that lie in two calls, against one class at a time."""
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(32, 32, 1, 64, 8, 77, 49408, 64, 1, 1)).eval()
    tokens = torch.randint(1, 1000, (PROMPTS_AT_ONCE // 3 + 10, 3, 77))
    tokens[..., 5], tokens[..., 6:] = 49407, 0  # the end token
    vectors = class_vectors(model, tokens)
    assert vectors.shape == (32, len(tokens)) and not vectors.requires_grad
    for k in (0, PROMPTS_AT_ONCE // 3, len(tokens) - 1):
        expected = zeroshot_weights(model.encode_text(tokens[k])[None])
        torch.testing.assert_close(vectors[:, [k]], expected.detach(), rtol=2e-5, atol=2e-5)
