"""CoOp's lists instead of MTIL's splits: what is read by them, and what is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.datasets import load, require
from common.datasets.loading import names_and_templates
from common.errors import UserError
from tests import fake_data

Lists = dict[str, list[list]]
LIST = Path(fake_data.COOP["EuroSAT"][1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coop")
    fake_data.write(root, [*fake_data.COOP, "MNIST"])
    return root


@pytest.mark.parametrize("name", fake_data.COOP)
def test_images_labels_and_names_are_the_lists(root: Path, name: str) -> None:
    lists = fake_data.coop_list(root, name)
    images, file = (root / part for part in fake_data.COOP[name])
    data = load(name, root, splits="coop")  # verified: the published counts are not those of the list
    for part, rows in ((data.train, lists["train"]), (data.test, lists["test"])):
        assert part is not None
        assert [*zip(part.paths, part.labels)] == [(f"{images}/{path}", label) for path, label, _ in rows]
        assert part[0][0].mode == "RGB"
    assert data.classnames == ["made up class 2", "made up class 1", "made up class 0"]
    own = load(name, root, verify=False)
    assert data.templates == own.templates
    assert Path(own.train.paths[0]).is_relative_to(images)
    assert data.fingerprint["md5"] != own.fingerprint["md5"]
    assert data.fingerprint["notes"] == [f"CoOp's list {file.name}, md5 {hashlib.md5(file.read_bytes()).hexdigest()}"]
    assert names_and_templates(name, root, splits="coop") == (data.classnames, data.templates)


def test_mtils_own_lists_are_not_needed(tmp_path: Path) -> None:
    for name in ("DTD", "Flowers"):
        fake_data.write(tmp_path, [name])
        fake_data.coop_list(tmp_path, name)
    for file in (*tmp_path.rglob("*.mat"), *tmp_path.rglob("*.txt")):
        file.unlink()
    require(["DTD", "Flowers"], tmp_path, splits="coop")
    assert len(load("Flowers", tmp_path, splits="coop").train) == 3


def test_a_set_without_a_list_keeps_its_split(root: Path) -> None:
    own, data = (load("MNIST", root, verify=False, splits=splits).fingerprint for splits in ("mtil", "coop"))
    assert data == own | {"notes": ["CoOp has no list: MTIL's split"]}
    with pytest.raises(UserError, match="train and 10 test images instead of the published 60,000 and 10,000"):
        load("MNIST", root, splits="coop")


def add(split: str, *row: object) -> Callable[[Lists], None]:
    return lambda lists: lists[split].append(list(row))


def set_label(split: str, label: int, name: str) -> Callable[[Lists], None]:
    return lambda lists: lists[split][0].__setitem__(slice(1, 3), [label, name])


BAD = {
    "a missing file": (add("test", "River/no.jpg", 0, "made_up class 2"), "names 1 of 4 files that do not exist: "),
    "a file elsewhere": (add("train", "../../x.jpg", 0, "made_up class 2"), "names ../../x.jpg, which is not below"),
    "an image twice": (lambda lists: lists["test"].extend(lists["train"][:1]), "stands twice"),
    "a label of two names": (set_label("train", 2, "sea"), "give label 2 to .* and .*, as for"),
    "a name of two labels": (set_label("train", 3, "made up class 0"), "give 4 labels to 3 classes, not 0 to 3"),
    "a label that is left out": (set_label("train", 4, "sea"), "give 4 labels to 4 classes, not 0 to 3"),
    "a negative label": (set_label("test", -1, "sea"), "give 4 labels to 4 classes, not 0 to 3"),
    "a class without training": (set_label("test", 3, "sea"), r"of 4 classes 1 have no training image .* 3 \(sea\)"),
    "a label that is a word": (add("train", "x.jpg", "0", "sea"), r"the train entry \['x.jpg', '0', 'sea'\] is not \["),
    "an entry without a name": (add("test", "x.jpg", 0), r"the test entry \['x.jpg', 0\] is not \[path, label, class"),
    "no split for testing": (lambda lists: lists.pop("test"), r"json can not be read \(nothing under the key test\)"),
    "no images for testing": (lambda lists: lists["test"].clear(), "no test images"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_list_that_can_not_be_right(root: Path, case: str) -> None:
    change, message = BAD[case]
    lists = fake_data.coop_list(root, "EuroSAT")
    change(lists)
    (root / LIST).write_text(json.dumps(lists))
    with pytest.raises(UserError, match=message) as caught:
        load("EuroSAT", root, splits="coop")
    assert str(caught.value).startswith("EuroSAT: ")
    with pytest.raises(UserError, match="1 of 1 data sets are missing or incomplete"):
        require(["EuroSAT"], root, splits="coop")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"train": 3, "test": []}', '{"train": [3]}', "\x00"])
def test_a_broken_list_is_a_sentence(root: Path, content: str) -> None:
    (root / LIST).write_text(content)
    with pytest.raises(UserError, match=f"EuroSAT: the list {root / LIST} can not be read") as caught:
        load("EuroSAT", root, splits="coop")
    assert "\n" not in str(caught.value)


def test_the_first_ten_of_many_missing_files_are_named(root: Path) -> None:
    lists = fake_data.coop_list(root, "EuroSAT")
    lists["train"] += [[f"no_{number}.jpg", 0, "made_up class 2"] for number in range(12)]
    (root / LIST).write_text(json.dumps(lists))
    with pytest.raises(UserError, match="names 12 of 15 files that do not exist") as caught:
        load("EuroSAT", root, splits="coop")
    assert "no_9.jpg and 2 more" in str(caught.value) and "no_10" not in str(caught.value)


def test_the_list_lies_beside_the_images_or_above_them_once(tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["DTD"])
    text = "DTD: CoOp's list split_zhou_DescribableTextures.json is not in {0}/dtd/dtd/images or {0}/dtd/dtd or {0}/dtd"
    with pytest.raises(UserError, match=f"{text.format(tmp_path)}. .*--splits mtil"):
        load("DTD", tmp_path, splits="coop")
    fake_data.coop_list(tmp_path, "DTD")
    first = (tmp_path / fake_data.COOP["DTD"][1]).rename(tmp_path / "split_zhou_DescribableTextures.json")
    with pytest.raises(UserError, match="is not in"):  # the data location holds all sets
        load("DTD", tmp_path, splits="coop")
    for place in ("dtd/dtd/images", "dtd/dtd", "dtd"):
        first = first.rename(tmp_path / place / "split_zhou_any.json")
        assert len(load("DTD", tmp_path, splits="coop").train) == 3
    second = tmp_path / "dtd/dtd/images/split_zhou_other.json"
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=f"there are 2 lists of CoOp's: {second}, {first}. Keep one"):
        load("DTD", tmp_path, splits="coop")


def test_the_miniature_has_no_lists() -> None:
    for call in (lambda: load("DTD", "mini", splits="coop"), lambda: require(["DTD"], "mini", splits="coop")):
        with pytest.raises(UserError, match="--splits coop: the miniature's images are rendered"):
            call()
