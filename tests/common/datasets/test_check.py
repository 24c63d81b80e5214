"""`python -m common.datasets check | download` as a user calls it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from common.datasets.__main__ import main
from common.datasets.layout import PUBLISHED
from tests import fake_data

REPOSITORY = Path(__file__).parents[3]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command's main in this process (importing torch anew for each call takes seconds)."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["common.datasets", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return Done(caught.value.code, *capsys.readouterr())

    return run


def test_the_command_itself(fake_root: Path) -> None:
    command = [sys.executable, "-m", "common.datasets", "check", "--no-verify", "--data-location"]
    good = subprocess.run([*command, fake_root, "MNIST"], cwd=REPOSITORY, capture_output=True, text=True)
    assert good.returncode == 0 and good.stdout.endswith("1 of 1 found.\n") and good.stderr == ""


def test_all_found_without_verify_in_one_table(call, fake_root: Path) -> None:
    done = call("check", "--data-location", fake_root, "--no-verify")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split() == [
        "data",
        "set",
        "found",
        "train",
        "test",
        "classes",
        "expected",
        "what",
        "is",
        "missing",
    ]
    names = ["TinyImagenet, TinyImageNet", "ImageNet, ImageNet1000"]  # two papers' names of the same files
    names = [next((both for both in names if both.startswith(f"{name},")), name) for name in PUBLISHED]
    names = [name for name in names if name not in ("TinyImageNet", "ImageNet1000")]
    rows = dict(zip(names, lines[4 : 4 + len(names)]))
    assert all(row.startswith(f"{name} ") and row[len(name) :].split()[0] == "yes" for name, row in rows.items())
    assert (
        rows["SUN397"].split()[2:] == "635 159 397 87,003 / 21,751 / 397 fewer images than published".split()
    )
    assert lines[-1] == f"{len(names)} of {len(names)} found."
    assert max(map(len, lines[1:])) <= 120 and done.stderr == ""


def test_cut_copies_are_incomplete_with_verify(call, fake_root: Path) -> None:
    done = call("check", "--data-location", fake_root, "DTD", "CIFAR10")
    assert done.returncode == 1
    assert (
        "counts differ: 47 train and 47 test images instead of the published 1,880 and 1,880" in done.stdout
    )
    assert "(checksum)" in done.stdout and "0 of 2 complete." in done.stdout


def test_missing_and_partial_sets(call, tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["Food", "EuroSAT", "MNIST"])
    shutil.rmtree(tmp_path / "food-101" / "meta")
    done = call("check", "--data-location", tmp_path, "Food", "EuroSAT", "SUN397", "--no-verify")
    assert done.returncode == 1
    found = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[4:7]}
    assert found == {"Food": "partial", "EuroSAT": "yes", "SUN397": "no"}
    assert "    missing: food-101/meta/train.json, food-101/meta/test.json\n" in done.stdout
    assert f"    looked in: {tmp_path / 'SUN397'}\n" in done.stdout
    assert "    how to get it: By hand: the Princeton host no longer serves it." in done.stdout
    assert call("check", "--data-location", tmp_path, "EuroSAT", "MNIST", "--no-verify").returncode == 0


def test_names_of_the_same_files_stand_apart_where_they_differ(call, fake_root: Path, tmp_path: Path) -> None:
    """ImageNet1000 has a folder of its own that ImageNet does not know."""
    (tmp_path / "imagenet1000").symlink_to(fake_root / "ImageNet")
    done = call("check", "--data-location", tmp_path, "--no-verify", "ImageNet", "ImageNet1000", "TinyImageNet")
    found = [line.split()[:2] for line in done.stdout.splitlines()[4:7]]
    assert found == [["ImageNet", "no"], ["ImageNet1000", "yes"], ["TinyImageNet", "no"]]


def test_decode_lists_every_image_that_can_not_be_decoded(call, tmp_path: Path) -> None:
    fake_data.write(tmp_path, ["EuroSAT", "MNIST"])
    images = sorted((tmp_path / "eurosat").rglob("*.jpg"))
    assert call("check", "--data-location", tmp_path, "--no-verify", "--decode", "EuroSAT", "MNIST").returncode == 0
    Image.effect_noise((64, 64), 90).save(images[0])
    images[0].write_bytes(images[0].read_bytes()[:2000])  # cut in transfer
    images[1].write_text("<html>404</html>")
    images[2].write_bytes(b"")
    done = call("check", "--data-location", tmp_path, "--no-verify", "--decode", "EuroSAT", "MNIST")
    told = " ".join(done.stdout.split())
    assert done.returncode == 1 and "1 of 2 found." in told
    assert f"{images[0]}: this image can not be read (image file is truncated" in told
    assert f"{images[1]}: this image can not be read (cannot identify" in told
    assert "1 images are empty files" in told and f"{images[2]}: this image" not in told
    assert told.count("this image can not be read") == 2
    listed = " ".join(call("check", "--data-location", tmp_path, "--no-verify", "EuroSAT").stdout.split())
    assert "can not be read" not in listed


def test_unknown_name_and_no_location_are_refused(call) -> None:
    done = call("check", "--data-location", ".", "Flower")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: NAMES: unknown data set 'Flower'. Did you mean Flowers?")
    for words, told in (
        (["check"], "--data-location: missing"),
        (["download", "--data-location", "."], "NAMES: missing"),
        (["chekc"], "command chekc: unknown. Did you mean check?"),
        ([], "command (none): unknown. Known are check, download."),
    ):
        done = call(*words)
        assert done.returncode == 2 and done.stdout == "" and told in done.stderr


def test_help_names_the_commands_and_sets(call) -> None:
    done = call("--help")
    assert done.returncode == 0 and "check" in done.stdout and "download" in done.stdout
    text = call("check", "--help").stdout
    assert all(name in text for name in PUBLISHED)


def test_download_tells_what_needs_hands(call, tmp_path: Path) -> None:
    done = call("download", "--data-location", tmp_path, "StanfordCars", "SUN397")
    assert done.returncode == 2
    assert (
        "StanfordCars: torchvision can not fetch it, it has to be placed by hand (see above)." in done.stderr
    )
    assert (
        "four parts under" in done.stdout.replace("\n      ", " ")
        and "8ca2778205c41d23104230ba66911c7a" in done.stdout
    )


def test_download_keeps_what_is_there_and_checks_it(call, fake_root: Path) -> None:
    names = ["Aircraft", "Caltech101", "DTD", "EuroSAT", "Food", "MNIST", "OxfordPet"]
    done = call("download", "--data-location", fake_root, *names)
    assert done.returncode == 1 and done.stderr == ""
    assert "downloading Aircraft into" in done.stdout and "0 of 7 complete." in done.stdout
    assert "delete an incomplete copy first" in " ".join(done.stdout.split())  # lines are folded
