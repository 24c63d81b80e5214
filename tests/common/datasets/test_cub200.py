"""CUB-200's three lists: which image is whose and where, and what is told when they are damaged."""

import pytest

from common.datasets import load
from common.datasets.check import require
from common.errors import UserError
from tests import fake_data


@pytest.fixture
def root(tmp_path):
    fake_data.write(tmp_path, ["CUB200"])
    return tmp_path


def change(root, name, edit):
    path = root / "CUB_200_2011" / f"{name}.txt"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def test_official_split_and_names(fake_root):
    """Flag 1 is training; label = class - 1; the order of images.txt; names without number and underscores."""
    data = load("CUB200", fake_root, verify=False)
    assert data.classnames[:2] == ["Made up Bird0", "Made up Bird1"]
    for part, copies in ((data.train, ("0001", "0003")), (data.test, ("0000", "0002"))):
        assert part.labels == [label for label in range(200) for _ in range(2)]
        for path, label in zip(part.paths, part.labels):
            folder, file = path.split("/")[-2:]
            assert folder.startswith(f"{label + 1:03d}.") and file.split("_")[-2] in copies


DAMAGE = [
    ("images", lambda lines: lines[:-1], "do not list the same images; 1 stand in one only, the first is number 800"),
    ("image_class_labels", lambda lines: [*lines[:-1], "800 201"], "gives image 800 the class '201', not 1 to 200"),
    (
        "image_class_labels",
        lambda lines: [*lines[:-1], "800 3"],
        "has image 800 in the folder 200.Made_up_Bird199, whose number is not its class 3",
    ),
    ("train_test_split", lambda lines: ["1 2", *lines[1:]], "gives image 1 the flag '2', not 0 or 1"),
    ("train_test_split", lambda lines: [*lines, "800 1"], "line 801: number 800 occurs twice"),
    ("images", lambda lines: ["one", *lines[1:]], r"line 1 \('one'\): expected a number and a value"),
    ("images", lambda lines: ["1 001.Made_up_Bird0/none.jpg", *lines[1:]], "names 1 of 400 files that do not exist"),
]


@pytest.mark.parametrize("name, edit, told", DAMAGE)
def test_damaged_lists(root, name, edit, told):
    change(root, name, edit)
    with pytest.raises(UserError, match=told):
        load("CUB200", root, verify=False)


def test_missing_classes_files_and_counts(root):
    with pytest.raises(UserError, match="400 train and 400 test images instead of the published 5,994 and 5,794"):
        load("CUB200", root)
    for name in ("images", "image_class_labels", "train_test_split"):
        change(root, name, lambda lines: lines[:-4])
    with pytest.raises(UserError, match="give 199 labels to 199 classes, not 0 to 199 to as many"):
        load("CUB200", root, verify=False)
    (root / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(UserError, match="(?s)CUB200.*missing: CUB_200_2011/train_test_split.txt.*CUB_200_2011.tgz"):
        require(["CUB200"], root)
