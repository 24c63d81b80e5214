"""Reference images and sentences: which ones each name means, their order and precedence, what is refused."""

from pathlib import Path

import pytest
import torch

from common.clip.tokenizer import END, START, tokenize
from common.datasets import captions, load, require
from common.datasets.layout import CAPTIONS
from common.datasets.transforms import clip_eval
from common.errors import UserError
from tests import fake_data
from tests.golden_files import Golden
from zscl.reference import (
    class_prompts,
    random_sentences,
    random_subset,
    reference_images,
    reference_sentences,
    reference_tokens,
    required_sets,
    sentence_sources,
)

OVER_LONG = "sunny " * 90


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small made-up sets; ImageNet's first class has 103 images, its second 3, the others 1."""
    root = tmp_path_factory.mktemp("data")
    fake_data.write(root, ["ImageNet", "EuroSAT", "DTD", "MNIST", "CIFAR10", "TinyImagenet"])
    fake_data.gathered_captions(root)
    for label, more in ((0, 102), (1, 2)):
        folder = sorted((root / "ImageNet" / "train").iterdir())[label]
        for copy in range(1, 1 + more):
            (folder / f"{folder.name}_{copy}.JPEG").write_bytes(fake_data.jpeg(label, 1000, copy))
    return root


def images_of(name: str, root: Path | str, num: float = 64, transform=None):
    return reference_images(name, root, transform, num, verify=False)


def sentences_of(root: Path | str, *sources, num: float = 64) -> list[str]:
    return reference_sentences(root, sentence_sources(*sources), num, verify=False)


def required(*sources) -> list[str]:
    return required_sets(sources[0], sentence_sources(*sources))


# Images


def test_imagenet_is_the_whole_train_folder(root: Path) -> None:
    data = images_of("ImageNet", root, transform=clip_eval(16))
    assert data.test is None and len(data.train) == 103 + 3 + 998
    assert data.train.paths == load("ImageNet", root, verify=False).train.paths
    image, label = data.train[105]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 1
    assert data.fingerprint["train"] == 1104 and data.fingerprint["test"] == 0 and len(data.fingerprint["md5"]) == 32


def test_imagenet_sm_takes_first_classes_and_first_hundred_files(root: Path) -> None:
    data = images_of("ImageNetSM", root, num=3)
    whole = images_of("ImageNet", root).train.paths
    assert data.train.paths == [*whole[:100], *whole[103:106], whole[106]]
    assert data.train.labels == [0] * 100 + [1] * 3 + [2] and data.classnames == [
        "tench",
        "goldfish",
        "great white shark",
    ]
    assert len(images_of("ImageNetSM", root).classnames) == 64
    assert data.fingerprint["notes"] == ["the first 3 classes, at most 100 images each"]
    assert data.fingerprint != images_of("ImageNetSM", root, num=4).fingerprint


def test_imagenet_sub_is_the_split_of_seed_42(root: Path) -> None:
    whole = images_of("ImageNet", root).train
    for num, size in ((64, 64), (64.0, 64), (0.1, 110), (1, 1104), (1104, 1104)):
        data = images_of("ImageNetSUB", root, num=num)
        parts = [size, len(whole) - size]
        split = torch.utils.data.random_split(whole, parts, generator=torch.Generator().manual_seed(42))[0]
        assert data.train.paths == [whole.paths[i] for i in split.indices] and len(data.train) == size
        assert data.train.labels == [whole.labels[i] for i in split.indices]
        assert len(data.classnames) == 1000 and data.fingerprint["notes"] == [f"{size} random images, seed 42"]


def test_subset_sizes_survive_rounding() -> None:
    """The sizes at which share * images in floating point falls short of the number asked for."""
    assert int(100 * 0.29) == 28 and len(random_subset(100, 0.29)) == 29
    lost = [num for num in range(2, 1104) if int(1104 * (num / 1104)) != num]
    assert lost and all(len(random_subset(1104, num)) == num for num in lost)
    assert len(random_subset(1_281_167, 100_000)) == 100_000
    assert len(random_subset(1104, 0.9999)) == 1103


@pytest.mark.parametrize("num", [0, -3, 0.0001, 2.5, 1105, float("nan"), float("inf")])
def test_impossible_subsets_are_refused(root: Path, num: float) -> None:
    with pytest.raises(UserError, match="^--num .*ImageNetSUB"):
        images_of("ImageNetSUB", root, num=num)


@pytest.mark.parametrize("num", [0, 0.5, 2.5, 1001, float("nan"), float("inf")])
def test_impossible_class_counts_are_refused(root: Path, num: float) -> None:
    for door in (images_of, lambda name, root, num: sentences_of(root, name, num=num)):
        with pytest.raises(UserError, match="^--num .*ImageNetSM takes a whole number of classes, from 1 to 1,000"):
            door("ImageNetSM", root, num=num)


def test_conceptual_captions_are_the_images_of_the_list(root: Path, tmp_path: Path) -> None:
    data = images_of("conceptual_captions", root, transform=clip_eval(16))
    assert len(data.train) == 6 and data.train[5][0].shape == (3, 16, 16) and data.fingerprint["train"] == 6
    assert data.classnames == captions(root)
    fake_data.write(tmp_path, [CAPTIONS])
    with pytest.raises(UserError, match="The published .tsv has sentences only"):
        images_of("conceptual_captions", tmp_path)


@pytest.mark.parametrize("name", ["EuroSAT", "MNIST", "CIFAR10"])
def test_a_target_set_gives_its_training_split(root: Path, name: str) -> None:
    data, own = images_of(name, root), load(name, root, verify=False)
    assert data.test is None and data.train.labels == own.train.labels
    assert all(data.train[i][0].tobytes() == own.train[i][0].tobytes() for i in range(len(own.train)))
    assert data.fingerprint == own.fingerprint | {"test": 0}


def test_images_at_mini_scale() -> None:
    pool = images_of("ImageNet", "mini", transform=clip_eval(32))
    assert len(pool.train) == 2048 and pool.train[0][0].shape == (3, 32, 32)
    small, some = images_of("ImageNetSM", "mini", num=10), images_of("ImageNetSUB", "mini", num=0.5)
    assert len(small.train) == 80 and set(small.train.labels) == set(range(10)) and len(small.classnames) == 10
    assert len(some.train) == 1024
    index = random_subset(2048, 0.5)[7]
    assert (some.train.arrays[7] == pool.train.arrays[index]).all()
    assert some.train.labels[7] == pool.train.labels[index]
    assert len(images_of("conceptual_captions", "mini").train) == len(captions("mini"))


# Sentences


def test_precedence(root: Path) -> None:
    """--text-datasets, then --ref-sentences, then --ref-dataset."""
    dtd, eurosat, mnist = (class_prompts(name, root, verify=False) for name in ("DTD", "EuroSAT", "MNIST"))
    assert sentences_of(root, "MNIST", "DTD", ["EuroSAT"]) == eurosat
    assert sentences_of(root, "MNIST", "random", ["EuroSAT"]) == eurosat
    assert sentences_of(root, "MNIST", "conceptual_captions", ["EuroSAT"]) == eurosat
    assert sentences_of(root, "MNIST", "DTD") == dtd
    assert sentences_of(root, "MNIST", "conceptual_captions") == captions(root)
    assert sentences_of(root, "MNIST") == mnist
    assert sentences_of(root, None, "DTD") == dtd
    assert sentences_of(root, "conceptual_captions") == captions(root)
    with pytest.raises(UserError, match="needs --ref-dataset"):
        sentences_of(root, None)


def test_class_prompts_are_the_first_template(root: Path) -> None:
    assert class_prompts("MNIST", root, verify=False)[:2] == [
        'a photo of the number: "0 - zero".',
        'a photo of the number: "1 - one".',
    ]
    assert class_prompts("EuroSAT", root, verify=False)[0] == "a centered satellite photo of annual crop land."


def test_text_datasets_are_joined_with_their_repeats(root: Path) -> None:
    joined = sentences_of(root, "ImageNet", None, ["DTD", "EuroSAT", "DTD"])
    assert len(joined) == 47 + 10 + 47 and joined[:47] == joined[57:]
    assert joined[47] == "a centered satellite photo of annual crop land."


def test_imagenet_prompts_need_no_files(root: Path, tmp_path: Path) -> None:
    prompts = sentences_of(tmp_path, "ImageNet")
    data = load("ImageNet", root, verify=False)
    assert prompts == [f"a photo of a {name}." for name in data.classnames]
    assert len(prompts) == 1000 and prompts.count("a photo of a missile.") == 2
    assert sentences_of(tmp_path, "ImageNetSUB", num=0.5) == prompts
    assert sentences_of(tmp_path, "ImageNetSM", num=7.0) == prompts[:7]
    assert sentences_of(tmp_path, "DTD", "ImageNetSM") == prompts[:64]


def test_sentences_at_mini_scale() -> None:
    prompts = sentences_of("mini", "ImageNet")
    assert len(prompts) == 256 and prompts[0] == f"a photo of a {load('ImageNet', 'mini').classnames[0]}."
    assert sentences_of("mini", "ImageNetSM", num=5) == prompts[:5]
    assert sentences_of("mini", "ImageNet", "conceptual_captions") == captions("mini")
    tokens = reference_tokens("mini", sentence_sources("ImageNet", "conceptual_captions"))
    assert tokens.shape == (len(captions("mini")), 77) and (tokens.max(dim=1).values == END).all()


def test_tokens_are_those_of_the_sentences(root: Path) -> None:
    tokens = reference_tokens(root, sentence_sources("MNIST", "DTD"), verify=False)
    assert torch.equal(tokens, tokenize(class_prompts("DTD", root, verify=False))) and tokens.dtype == torch.int64


def test_over_long_captions_lose_their_end_token(tmp_path: Path) -> None:
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text(f"a dog\tu\n{OVER_LONG}\tu\n")
    tokens = reference_tokens(tmp_path, sentence_sources("ImageNet", "conceptual_captions"))
    assert tokens[0].tolist()[:4] == [START, 320, 1929, END]
    assert (tokens[1] != 0).all() and END not in tokens[1] and tokens[1].argmax() == 0


def test_a_set_without_names_offers_no_sentences(root: Path) -> None:
    assert len(images_of("TinyImagenet", root).train) == 400
    with pytest.raises(UserError, match="TinyImagenet has no class names"):
        sentences_of(root, "TinyImagenet")


# Random sentences


def test_random_sentences_are_the_originals() -> None:
    golden = Golden("zscl_mtil/random_sentences")
    tokens = random_sentences()
    assert tokens.shape == (1000, 77) and tokens.dtype == torch.int64
    assert torch.equal(tokens, golden["full"].long())
    small = golden.meta["small"]
    generator = torch.Generator().manual_seed(small["seed"])
    assert torch.equal(random_sentences(small["n_class"], small["length"], generator), golden["small"])


def test_random_sentences_leave_the_global_generator_alone(root: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = reference_tokens(root, sentence_sources("MNIST", "random"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(reference_tokens(root, sentence_sources(None, "random")), first) and torch.equal(
        first, random_sentences()
    )
    with pytest.raises(UserError, match="token ids without words"):
        reference_sentences(root, sentence_sources("MNIST", "random"))


# Names


def test_required_sets() -> None:
    assert required("ImageNet", "conceptual_captions") == ["ImageNet", CAPTIONS]
    assert required("ImageNetSUB") == required("ImageNet", "ImageNetSM") == ["ImageNet"]
    assert required("conceptual_captions", "conceptual_captions") == [CAPTIONS]
    assert required("DTD", "ImageNet") == required("DTD", "random") == required("DTD") == ["DTD"]
    assert required("DTD", "conceptual_captions", ["MNIST", "DTD"]) == ["DTD", "MNIST"]
    assert required(None, "random") == []


def test_missing_reference_sets_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        require(required("ImageNetSM", "conceptual_captions"), tmp_path)
    text = str(caught.value)
    assert "2 of 2 data sets are missing" in text
    assert "ILSVRC2012 training images" in text and "Validation_GCC-1.1.0-Validation.tsv" in text


@pytest.mark.parametrize(
    ("sources", "wrong", "near"),
    [
        (("Imagenet", None, []), "'Imagenet'", "ImageNet"),
        (("ImageNet", "ConceptualCaptions", []), "'ConceptualCaptions'", "conceptual_captions"),
        (("ImageNetSMM", "random", []), "'ImageNetSMM'", "ImageNetSM"),
        (("random", None, []), "'random'", None),
        (("ImageNet", None, ["DTD", "Flower"]), "'Flower'", "Flowers"),
        (("ImageNet", None, ["conceptual_captions"]), "'conceptual_captions'", None),
        (("ImageNet", "rnadom", []), "'rnadom'", "random"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(sources, wrong: str, near: str | None) -> None:
    with pytest.raises(UserError) as caught:
        required(*sources)
    text = str(caught.value)
    assert text.startswith(f"unknown data set {wrong}.") and "Known are Aircraft, " in text
    assert near is None or f"Did you mean {near}?" in text
