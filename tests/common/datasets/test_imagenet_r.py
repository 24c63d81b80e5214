"""ImageNet-R's ways of being split, and DomainNet's lists."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from common.datasets import load
from common.datasets.check import require
from common.datasets.imagenet_r import has_lists
from common.errors import UserError
from tests import fake_data

SHARED = Path(__file__).parents[3].parent / "shared" / "specs" / "splits"


def below(paths):
    return ["/".join(Path(path).parts[-2:]) for path in paths]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All 30,000 files by name, empty: the union of the lists that were recovered from InfLoRA's logs."""
    if not SHARED.is_dir():
        pytest.skip("the published splits are not at hand")
    root = tmp_path_factory.mktemp("published")
    for name in [name for split in ("train", "test") for name in seed_40(split)]:
        path = root / "imagenet-r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def seed_40(split):
    return (SHARED / f"inflora_imagenet_r_seed40_{split}.txt").read_text().split()


def test_seed_40_is_the_split_of_the_published_logs(published):
    data = load("ImageNetR", published)
    assert sorted(below(data.train.paths)) == seed_40("train") and sorted(below(data.test.paths)) == seed_40("test")
    groups = torch.bincount(torch.tensor(data.test.labels) // 20)
    assert groups.tolist() == [698, 688, 433, 563, 724, 560, 591, 423, 621, 699]


@pytest.mark.parametrize("seed", [40, 0])
def test_rule_by_hand(fake_root, seed):
    data = load("ImageNetR", fake_root, verify=False, options={"split": seed})
    files = sorted(path for path in (fake_root / "imagenet-r").rglob("*.jpg"))
    torch.manual_seed(seed)
    order = torch.randperm(len(files))
    assert data.train.paths == [str(files[index]) for index in sorted(order[:960].tolist())]
    assert data.test.paths == [str(files[index]) for index in sorted(order[960:].tolist())]
    wnids = sorted({path.parent.name for path in files})
    assert data.classnames == wnids
    assert data.test.labels == [wnids.index(Path(path).parent.name) for path in data.test.paths]


def moved(fake_root, tmp_path):
    """A copy in which the first four images of a class went to train/ and the rest to test/, as upstream moves them."""
    for path in sorted((fake_root / "imagenet-r").rglob("*.jpg")):
        place = "train" if path.name < "sketch" else "test"
        target = tmp_path / "imagenet-r" / place / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_moved_files_are_split_as_if_in_place(fake_root, tmp_path):
    place = moved(fake_root, tmp_path)
    here, there = (load("ImageNetR", root, verify=False) for root in (fake_root, place))
    assert below(here.train.paths) == below(there.train.paths) and here.test.labels == there.test.labels
    folders = load("ImageNetR", place, verify=False, options={"split": "folders"})
    assert (len(folders.train), len(folders.test)) == (800, 400)
    assert all("/test/" in path and path.rpartition("/")[2].startswith("sketch") for path in folders.test.paths)
    with pytest.raises(UserError, match="split 'folders' needs"):
        load("ImageNetR", fake_root, verify=False, options={"split": "folders"})
    top = place / "imagenet-r"
    shutil.copytree(top / "train/n01443537", top / "n01443537")  # copied there instead of moved
    with pytest.raises(UserError, match=f"n01443537/art_0.jpg is in {top} and in {top / 'train'}. Keep one"):
        load("ImageNetR", place, verify=False)


def write_lists(folder, train, test):
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        content = {"data": [file for file, _ in rows], "targets": [label for _, label in rows]}
        (folder / f"imagenet-r_{split}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def rows(fake_root):
    """Lists in CODA-Prompt's form with labels in the reverse order of the ids."""
    wnids = sorted(path.name for path in (fake_root / "imagenet-r").iterdir())
    train = [(f"data/imagenet-r/{wnid}/art_0.jpg", 199 - index) for index, wnid in enumerate(wnids)]
    return train, [(file.replace("art", "misc"), label) for file, label in train]


def test_a_users_own_lists(fake_root, tmp_path, rows):
    write_lists(tmp_path / "splits", *rows)
    for root in (fake_root, moved(fake_root, tmp_path)):
        data = load("ImageNetR", root, verify=False, options={"split": tmp_path / "splits"})
        assert below(data.train.paths) == [file.removeprefix("data/imagenet-r/") for file, _ in rows[0]]
        assert data.test.labels == list(range(199, -1, -1))
        assert [data.classnames[label] for label in data.train.labels] == [
            Path(p).parent.name for p in data.train.paths
        ]


def test_lists_of_other_classes(fake_root, tmp_path, rows):
    folder, other = tmp_path / "imagenet-r", {"n01443537": "n99999999"}
    folder.mkdir()
    for path in (fake_root / "imagenet-r").iterdir():
        (folder / other.get(path.name, path.name)).symlink_to(path)
    parts = ([(file.replace("n01443537", "n99999999"), label) for file, label in part] for part in rows)
    write_lists(tmp_path / "splits", *parts)
    with pytest.raises(UserError, match="splits lacks 1 of 200 classes: n01443537; it holds 1 .* no class: n99999999"):
        load("ImageNetR", tmp_path, verify=False, options={"split": tmp_path / "splits"})


def test_lists_that_do_not_fit(fake_root, tmp_path, rows):
    train, test = rows

    def loaded():
        return load("ImageNetR", fake_root, verify=False, options={"split": tmp_path})

    with pytest.raises(UserError, match="imagenet-r_train.yaml can not be read"):
        loaded()
    write_lists(tmp_path, [(file.replace("art_0", "none"), label) for file, label in train], test)
    with pytest.raises(
        UserError, match=r"names 200 of 200 files that do not exist: (.*?none.jpg, ){9}\S* and 190 more"
    ):
        loaded()
    write_lists(tmp_path, train[:-1] + [(train[-1][0], 1)], test)
    with pytest.raises(UserError, match="give label 1 to n1"):
        loaded()
    write_lists(tmp_path, train[:-1], test[:-1])
    with pytest.raises(UserError, match="give 199 labels to 199 classes, not 0 to 199"):
        loaded()
    (tmp_path / "imagenet-r_train.yaml").write_text("data: [a]\ntargets: [1, 2]\n")
    with pytest.raises(UserError, match="two lists of one length"):
        loaded()


def test_a_class_folder_too_few(fake_root, tmp_path):
    shutil.copytree(fake_root / "imagenet-r", tmp_path / "imagenet-r")
    shutil.rmtree(next((tmp_path / "imagenet-r").iterdir()))
    with pytest.raises(UserError, match="imagenet-r lacks 1 of 200 classes: n"):
        load("ImageNetR", tmp_path, verify=False)


@pytest.mark.parametrize("train", ["imagenet-r_train.yaml", "imagenet-r_train.txt"])
def test_lists_beside_the_images(tmp_path, train):
    """Either form, mixed ones too; the labels are the lists', the files of a split in their order."""
    fake_data.write(tmp_path, ["ImageNetR"])
    folder = tmp_path / "imagenet-r"
    assert not has_lists(folder)
    fake_data.imagenet_r_lists(tmp_path, train, "imagenet-r_test.txt")
    assert has_lists(folder)
    data = load("ImageNetR", tmp_path, verify=False, options={"split": folder})
    wnids = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert data.classnames == wnids[::-1] and (len(data.train), len(data.test)) == (400, 200)
    assert data.test.labels == list(range(199, -1, -1)) and below(data.test.paths)[0] == f"{wnids[0]}/sketch_1.jpg"
    lines = (folder / "imagenet-r_test.txt").read_text().splitlines()
    (folder / "imagenet-r_test.txt").write_text("\n".join([*lines[:7], lines[7].rpartition(" ")[0]]))
    with pytest.raises(UserError, match=r"imagenet-r_test.txt, line 8 .*expected <file> <label>"):
        load("ImageNetR", tmp_path, verify=False, options={"split": folder})
    (folder / "imagenet-r_test.txt").unlink()
    with pytest.raises(UserError, match=r"imagenet-r_test.yaml can not be read \(nor imagenet-r_test.txt\)"):
        load("ImageNetR", tmp_path, verify=False, options={"split": folder})


def test_the_published_lists_are_read(published, tmp_path):
    """In the plain text form: counts, class sizes, labels against the order of the ids."""
    for split in ("train", "test"):
        shutil.copy(SHARED / f"imagenet_r_{split}.txt", tmp_path / f"imagenet-r_{split}.txt")
    data = load("ImageNetR", published, options={"split": tmp_path})
    train, test = (torch.bincount(torch.tensor(part.labels)) for part in (data.train, data.test))
    assert (train.min(), train.max(), test.min(), test.max()) == (38, 354, 5, 81)
    assert data.train.labels[:5] == [177, 142, 63, 42, 14] and data.classnames[177] == "n02128757"
    assert sorted(data.classnames) != data.classnames


# DomainNet


def test_labels_come_from_the_lists(fake_root):
    data = load("DomainNet", fake_root, verify=False)
    assert data.classnames == [f"thing_{344 - label}" for label in range(345)]
    assert data.test.labels == list(range(345)) and all("/sketch/" in path for path in data.test.paths)


def official_lists(folder, root):
    """The twelve lists, quickdraw's empty: a made-up copy has five domains."""
    folder.mkdir()
    for first, domain in enumerate(("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
        paths = sorted((root / domain).rglob("*.jpg"))
        rows = [f"{'/'.join(path.parts[-3:])} {int(path.name.split('_')[1]) - 1}" for path in paths]
        (folder / f"{domain}_train.txt").write_text("\n".join(rows[:first] + rows[first + 3 :]))
        (folder / f"{domain}_test.txt").write_text("\n".join(rows[first : first + 3]))


def test_official_lists(fake_root, tmp_path):
    official_lists(tmp_path / "lists", fake_root / "domainnet")
    data = load("DomainNet", fake_root, verify=False, options={"lists": tmp_path / "lists"})
    assert (len(data.train), len(data.test)) == (5 * 342, 15)
    assert data.classnames[0] == "thing_344"
    (tmp_path / "lists" / "real_test.txt").write_text("real/thing_344/x.jpg zero\n")
    with pytest.raises(UserError, match="real_test.txt, line 1"):
        load("DomainNet", fake_root, verify=False, options={"lists": tmp_path / "lists"})


def test_missing_files_are_counted_and_ten_of_them_named(tmp_path):
    fake_data.write(tmp_path, ["DomainNet"])
    for path in sorted((tmp_path / "domainnet" / "real").rglob("*.jpg"))[:12]:
        path.unlink()
    with pytest.raises(UserError, match=r"names 12 of 1,380 files that do not exist: ([^,]*, ){9}\S* and 2 more"):
        load("DomainNet", tmp_path, verify=False)
    with pytest.raises(UserError, match=r"names\s+12\s+of\s+1,380"):
        require(["DomainNet"], tmp_path, verify=False)


def test_no_lists(fake_root, tmp_path):
    with pytest.raises(UserError, match="holds neither domainnet_train.yaml and domainnet_test.yaml"):
        load("DomainNet", fake_root, verify=False, options={"lists": tmp_path})


def test_a_label_that_is_not_the_class_in_the_name(fake_root, tmp_path):
    for split in ("train", "test"):
        content = yaml.safe_load((fake_root / "domainnet" / f"domainnet_{split}.yaml").read_text())
        content["targets"] = [{1: 3, 3: 1}.get(label, label) for label in content["targets"]]
        (tmp_path / f"domainnet_{split}.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        UserError, match="domainnet_train.yaml gives label 3 to clipart_002_000000.jpg, whose class is number 002"
    ):
        load("DomainNet", fake_root, verify=False, options={"lists": tmp_path})
