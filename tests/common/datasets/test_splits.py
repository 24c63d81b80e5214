"""The random 80/20 splits against golden indices and checksums drawn with torch's generator."""

import hashlib
import json

import numpy as np
import pytest

from common.datasets.layout import PUBLISHED
from common.datasets.mtil import split_80_20
from tests.golden_files import GOLDEN

SPLITS = json.loads((GOLDEN / "common" / "metrics.json").read_text())["dataset_splits"]


def md5(indices: list[int]) -> str:
    return hashlib.md5(np.array(indices, dtype="<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["caltech101", "eurosat", "sun397"])
def test_split_equals_golden_indices(name: str) -> None:
    golden = SPLITS[name]
    train, test = split_80_20(golden["n"])
    assert (len(train), len(test)) == (golden["n_train"], golden["n_test"])
    assert train[:8] == golden["train_first8"]
    assert test[:8] == golden["test_first8"]
    assert md5(train) == golden["train_md5_int64le"]
    assert md5(test) == golden["test_md5_int64le"]


@pytest.mark.parametrize("name, n", [("Caltech101", 8_677), ("EuroSAT", 27_000), ("SUN397", 108_754)])
def test_published_counts_are_those_of_the_split(name: str, n: int) -> None:
    train, test = split_80_20(n)
    assert (len(train), len(test)) == (PUBLISHED[name].train, PUBLISHED[name].test)


@pytest.mark.parametrize("n", [2, 9, 101])
def test_split_covers_every_image_once(n: int) -> None:
    train, test = split_80_20(n)
    assert len(train) == int(0.8 * n)
    assert sorted(train + test) == list(range(n))
