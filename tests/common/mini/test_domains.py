"""The miniature's data: the same bytes from the same seeds, well-formed names, labels and splits."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import captioned_images, captions, load, require
from common.datasets.miniature import load_domain
from common.datasets.transforms import clip_eval, clip_train
from common.errors import UserError
from common.mini.domains import (
    DOMAINS,
    INCREMENTAL,
    MISNAMING,
    REFERENCE,
    SPLITS,
    WEB,
    classnames,
    images,
    templates,
    web_pool,
)

ALL = (*DOMAINS, INCREMENTAL, REFERENCE)
ORDER_1 = ("Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT", "Flowers", "Food", "MNIST", "OxfordPet",
           "StanfordCars", "SUN397")
PINNED = {
    "Aircraft": "3a2cceb819c210ed4d605dc2a7e6f5da",
    "Caltech101": "a8f94489795a3bf312c8959fc36a3aa2",
    "CIFAR100": "aace5d5dbe6e0fcd0f3b99becc56e313",
    "DTD": "f904e2b1f839afd82f156f20a5c771f0",
    "EuroSAT": "571f3627ecb2e499569945e80db33dc7",
    "Flowers": "a5159ea656cdeb05d7553b66668f274d",
    "Food": "81563beae6651fd458ebcdb54a9fc3bf",
    "MNIST": "508b572c9b376d19af91b5103f64efa1",
    "OxfordPet": "5f01608145773520b72c947c8031323a",
    "StanfordCars": "c25abdd73d93c030c752ad7e55132d94",
    "SUN397": "ff863c6b0ab42a256051b52ebc02e851",
    "Characters": "873237cfb3938ddf414488e1cf5c9d95",
    "TinyImagenet": "491c10ae05ff461b0254ebe29e42dda3",
}
WEB_PINNED = "e38db07b02e0c005dc551f3a1cc7cfd7"
CAPTIONS_PINNED = "4f7a9a2d6beda9968de1170b413602d9"


def test_domains_stand_under_the_names_of_mtil_order_1():
    assert DOMAINS == ORDER_1


@pytest.mark.parametrize("name", ALL)
def test_bytes_are_pinned(name):
    assert load_domain(name).fingerprint["md5"] == PINNED[name]


def test_web_pool_is_pinned():
    digest = hashlib.md5(b"".join(part.tobytes() for part in web_pool("DTD")))
    assert digest.hexdigest() == WEB_PINNED


def test_another_process_renders_the_same():
    code = "from common.datasets.miniature import load_domain; print(load_domain('SUN397').fingerprint['md5'])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == load_domain("SUN397").fingerprint["md5"]


@pytest.mark.parametrize("name", ALL)
def test_splits_hold_every_class_alike_and_share_no_image(name):
    classes = 6 if name in DOMAINS else 40
    assert len(classnames(name)) >= classes and (name not in DOMAINS or len(classnames(name)) <= 40)
    seen = {}
    for split, count in zip(("train", "test"), SPLITS[name]):
        pictures, labels = images(name, split)
        assert pictures.dtype == np.uint8 and pictures.shape == (len(labels), 32, 32, 3)
        assert np.bincount(labels).tolist() == [count] * len(classnames(name))
        seen[split] = {picture.tobytes() for picture in pictures}
        assert len(seen[split]) == len(pictures)
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("name", ALL)
def test_names_and_templates_are_well_formed(name):
    assert len(set(classnames(name))) == len(classnames(name))
    assert all(label == label.strip() != "" for label in classnames(name))
    assert templates(name) and all(wording.count("{}") == 1 for wording in templates(name))


def test_every_class_name_belongs_to_one_domain():
    names = [label for name in (*DOMAINS, INCREMENTAL) for label in classnames(name)]
    assert len(set(names)) == len(names)


def test_domains_go_through_the_transforms_of_real_data():
    domain = load_domain("Food", clip_train(32), clip_eval(32))
    for part in (domain.train, domain.test):
        image, label = part[3]
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and label == 3
    plain = load_domain("Food")
    assert isinstance(plain.test[0][0], Image.Image) and plain.test[0][0].mode == "RGB"
    assert torch.equal(domain.test[0][0], clip_eval(32)(plain.test[0][0]))


def test_reference_pool_names_all_classes_of_the_eleven():
    reference = load_domain(REFERENCE)
    assert len(reference.classnames) == sum(len(classnames(name)) for name in DOMAINS)
    assert len(reference.train) >= 2000


def test_imagenet_is_the_reference_pool_with_prompts():
    imagenet, pool = load("ImageNet", "mini"), load_domain(REFERENCE)
    assert imagenet.name == "ImageNet" and imagenet.templates[0] == "a photo of a {}."
    assert imagenet.fingerprint == pool.fingerprint and imagenet.classnames == pool.classnames
    assert len(imagenet.train) == 2048 and len(imagenet.classnames) == 256


def test_captions_are_pinned_and_worded_as_the_web():
    sentences = captions("mini")
    assert len(sentences) == len(set(sentences)) == 1024
    assert hashlib.md5("\n".join(sentences).encode()).hexdigest() == CAPTIONS_PINNED
    for domain in DOMAINS:
        wordings = {*templates("web"), *templates(domain)}
        for label in classnames(domain):
            possible = {wording.replace("{}", label) for wording in wordings}
            assert len(possible & set(sentences)) == 4


def test_captions_draw_no_picture():
    code = "from common.mini import domains as d; print(len(d.reference_captions()), d.images.cache_info().misses)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.split() == ["1024", "0"]


def test_captioned_images_show_what_their_captions_name():
    pairs, pool = captioned_images("mini", clip_eval(32)), load_domain(REFERENCE)
    shown = {picture.tobytes(): label for picture, label in zip(pool.train.arrays, pool.train.labels)}
    assert pairs.classnames == captions("mini") and pairs.templates == ["{}"] and pairs.test is None
    assert len({picture.tobytes() for picture in pairs.train.arrays}) == len(pairs.train) == 1024
    for picture, sentence in zip(pairs.train.arrays, pairs.classnames):
        assert pool.classnames[shown[picture.tobytes()]] in sentence
    image, row = pairs.train[5]
    assert image.shape == (3, 32, 32) and row == 5


def test_require_accepts_what_the_miniature_stands_for():
    require([*DOMAINS, REFERENCE, "ImageNet", "ConceptualCaptions"], "mini")
    for door in (lambda: require(["MNIST", "CIFAR10"], "mini"), lambda: load("CIFAR10", "mini")):
        with pytest.raises(UserError, match="the miniature has nothing for CIFAR10; it stands for Aircraft"):
            door()


def test_incremental_set_splits_into_ten_equal_tasks():
    data = load_domain(INCREMENTAL)
    assert len(data.classnames) >= 40 and len(data.classnames) % 10 == 0
    assert not set(data.classnames) & {label for name in DOMAINS for label in classnames(name)}


def test_web_captions_err_as_stated():
    count, wrong, misnamed = WEB["MNIST"]
    pictures, labels, named = web_pool("MNIST")
    assert len(pictures) == len(labels) == count
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels, named), 1)
    other = counts.argmax(1) != np.arange(10)
    assert other.sum() == round(misnamed * 10)
    rates = counts.max(1) / counts.sum(1)  # the usual name, unless a random one was drawn that is another
    assert np.allclose(rates[~other], 1 - wrong * 0.9, atol=0.04)
    assert np.allclose(rates[other], MISNAMING * (1 - wrong) + wrong / 10, atol=0.04)


def test_unknown_domain_raises():
    with pytest.raises(KeyError):
        load_domain("Aircrafts")
