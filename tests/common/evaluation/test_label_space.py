"""X-TAIL's label space by hand: label positions, equal names, the three numbers of a cell."""

import pytest
import torch

from common.clip.model import CLIP, CLIPConfig
from common.clip.tokenizer import class_prompts, tokenize
from common.evaluation.label_space import LabelSpace, space_logits
from common.evaluation.zero_shot import accuracy, class_vectors, zeroshot_logits

NAMES = {"Food": ["pizza", "soup"], "Caltech": ["lotus", "pizza", "chair"], "Flowers": ["rose", "lotus"]}
TEMPLATE = "a photo of a {}."


@pytest.fixture(scope="module")
def space() -> LabelSpace:
    return LabelSpace({name: class_prompts(names, [TEMPLATE]) for name, names in NAMES.items()})


def test_labels_are_the_sets_classes_one_set_after_the_other(space: LabelSpace) -> None:
    assert space.size == 7
    assert [space.own(name) for name in NAMES] == [slice(0, 2), slice(2, 5), slice(5, 7)]
    prompts = torch.cat(list(space.prompts.values()))[:, 0]
    assert torch.equal(prompts, tokenize([f"a photo of a {name}." for names in NAMES.values() for name in names]))


def test_equal_prompts_are_one_column_of_logits_and_only_they(space: LabelSpace) -> None:
    assert space.first.tolist() == [0, 1, 2, 0, 4, 5, 2]
    own = LabelSpace({
        name: class_prompts(names, templates)
        for (name, names), templates in zip(NAMES.items(), (["{}, food."], ["a {}.", "the {}."], ["a {}."]))
    })  # fmt: skip
    assert own.first.tolist() == list(range(7))


def test_the_numbers_of_a_cell(space: LabelSpace) -> None:
    logits = torch.tensor([
        # pizza soup | lotus pizza chair | rose lotus
        [1.0, 0.0, 0.2, 0.3, 9.0, 0.0, 0.0],  # chair: right
        [0.0, 0.0, 5.0, 0.0, 1.0, 9.0, 0.0],  # lotus, called a rose; right among its own
        [0.0, 0.0, 0.5, 0.0, 3.0, 0.0, 0.0],  # lotus, called a chair: the right set
        [8.0, 0.0, 0.0, 7.9, 0.0, 0.0, 0.0],  # pizza: equal prompts, so the logit of Food's is both sets'
    ])  # fmt: skip
    labels = torch.tensor([2, 0, 0, 1])
    found = space.accuracies(logits, labels, "Caltech")
    tied = logits[:, [0, 1, 2, 0, 4, 5, 2]].topk(1).indices[3].item()
    assert tied in (0, 3)  # which of the two is torch.topk's to say
    assert found == {
        "accuracy": 25.0 + 25.0 * (tied == 3), "domain_accuracy": 50.0 + 25.0 * (tied == 3), "accuracy_top5": 100.0,
        "accuracy_with_domain": 75.0,
    }  # fmt: skip


def test_random_logits_against_plain_counting(space: LabelSpace) -> None:
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 2
    found = space.accuracies(logits, labels, "Flowers")
    hits = domains = told = 0
    for row, label in zip(logits.tolist(), labels.tolist()):
        row[3], row[6] = row[0], row[2]
        best = max(range(7), key=lambda index, row=row: (row[index], -index))
        tied = [index for index in range(7) if row[index] == row[best]]
        best = tied[0] if len(tied) == 1 else torch.tensor(row).topk(1).indices.item()
        hits, domains = hits + (best == 5 + label), domains + (best >= 5)
    for row, label in zip(logits.tolist(), labels.tolist()):  # as they were multiplied
        told += row[5 + label] > row[6 - label]
    assert (found["accuracy"], found["domain_accuracy"]) == (hits / 2, domains / 2)
    assert found["accuracy_with_domain"] == told / 2 and 0 < found["accuracy"] < found["accuracy_with_domain"]


def test_one_set_alone_is_mtil(space: LabelSpace) -> None:
    alone, logits = LabelSpace({"Caltech": space.prompts["Caltech"]}), torch.randn(9, 3)
    labels = torch.arange(9) % 3
    assert alone.accuracies(logits, labels, "Caltech") == dict(
        zip(("accuracy", "accuracy_top5"), accuracy(logits, labels))
    )


def test_a_sets_columns_are_the_bits_of_its_own_product(space: LabelSpace) -> None:
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(16, 32, 1, 32, 8, 77, 49408, 16, 1, 1))
    features, vectors = torch.randn(11, 16), space.vectors(model)
    logits = space_logits(features, vectors)
    for name in NAMES:
        own = zeroshot_logits(features, class_vectors(model, space.prompts[name]))
        assert torch.equal(logits[:, space.own(name)], own)
