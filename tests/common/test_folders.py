"""An output folder holds a run's own files and others': which are read as whole, and which --overwrite deletes."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common import runs
from common.errors import UserError
from common.files import read_back, write_text
from common.machine import RunOptions
from common.options import option
from common.runs import CPU, Run, load_tensors, save_tensors

LINE = {"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 10.0}
LABELS = {"paper": "none", "method": "m", "protocol": "p", "backbone": "b", "scale": "mini", "seed": 1}


@dataclass(frozen=True)
class Options(RunOptions):
    load: str | None = option(None, "checkpoint")
    data_location: str = option("./data", "data sets")
    save: str | None = option(None, "output folder")


def open_run(folder: Path, name: str = "", **given: object) -> Run:
    options = Options(save=str(folder), **given)
    return runs.open_run(options, CPU, folder, {}, **LABELS, name=name, outputs=[f"{name or 'A'}.pth"])


def finished(folder: Path, name: str = "") -> None:
    run = open_run(folder, name)
    run.record([LINE, LINE | {"dataset": "B", "value": 20.0}])
    save_tensors(run.folder / f"{name or 'A'}.pth", {"state_dict": {"w": torch.arange(1000.0)}})
    save_tensors(run.path("ranks.pth"), {})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock", "checksums"}


# --overwrite


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    finished(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "best.pth").write_text("mine")
    elsewhere.mkdir()
    (elsewhere / "A.pth").write_text("mine")
    (folder / "A.pth").unlink()
    (folder / "A.pth").symlink_to(elsewhere / "A.pth")
    (folder / "more").symlink_to(elsewhere)
    assert open_run(folder, overwrite=True).records == []
    assert names(folder) == {"notes.txt", "best.pth", "more", "config.yaml"}
    assert (elsewhere / "A.pth").read_text() == "mine"


def test_overwrite_leaves_the_calls_that_share_the_folder(tmp_path: Path) -> None:
    finished(tmp_path, "DTD")
    finished(tmp_path, "MNIST")
    before = names(tmp_path)
    open_run(tmp_path, "DTD", overwrite=True)
    assert names(tmp_path) == before - {"DTD.record.jsonl", "DTD.pth", "DTD.ranks.pth"}
    finished(tmp_path)
    open_run(tmp_path, overwrite=True)
    assert {"MNIST.pth", "MNIST.record.jsonl", "MNIST.ranks.pth"} <= names(tmp_path) and "A.pth" not in names(tmp_path)


def test_overwrite_knows_the_files_of_a_folder_without_a_list(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "checksums").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    open_run(tmp_path, overwrite=True)
    assert names(tmp_path) == {"notes.txt", "ranks.pth", "config.yaml"}


@pytest.mark.parametrize("given", [{"load": "A.pth"}, {"load": "."}, {"data_location": "images"}])
def test_overwrite_refuses_a_folder_with_an_input(tmp_path: Path, given: dict[str, str]) -> None:
    folder = tmp_path / "run"
    finished(folder)
    (folder / "images").mkdir()
    before = names(folder)
    (key, place), = given.items()  # fmt: skip
    with pytest.raises(UserError, match=f"--overwrite deletes in {folder}, and {key} lies there"):
        open_run(folder, overwrite=True, **{key: str(folder / place)})
    assert names(folder) == before


def test_overwrite_takes_the_file_of_the_task_before_from_the_folder(tmp_path: Path) -> None:
    """As one-task calls have it, which share a folder; their own file is no input of theirs."""
    finished(tmp_path, "DTD")
    finished(tmp_path, "MNIST")
    open_run(tmp_path, "MNIST", overwrite=True, load=str(tmp_path / "DTD.pth"))
    assert {"DTD.pth", "DTD.config.yaml"} <= names(tmp_path) and "MNIST.pth" not in names(tmp_path)
    with pytest.raises(UserError, match="load lies there"):
        open_run(tmp_path, "DTD", overwrite=True, load=str(tmp_path / "DTD.pth"))


def test_leftovers_of_others_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = {".x.tmp", ".tmp", ".notes.tmp", f".notes.txt.{gone.pid}.tmp", ".state.pth.99999999999.tmp"}
    for name in [*mine, f".A.pth.{gone.pid}.tmp", f".config.yaml.{gone.pid}.tmp"]:
        (tmp_path / name).write_text("half")
    open_run(tmp_path)
    assert names(tmp_path) == mine | {"config.yaml"}


# Damaged files


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 8],
    "flipped": flipped,
    "twice": lambda content: content + content,
    "of another type": lambda content: b"[1, 2]\n",
    "binary": lambda content: bytes(range(256)),
}


TOLD = [(name, way) for name in ("config.yaml", "record.jsonl") for way in WAYS]
ALSO_TOLD = [case for case in TOLD if case[1] != "flipped" and case != ("config.yaml", "twice")]  # without checksums


@pytest.mark.parametrize("name, way, listed", [(*case, True) for case in TOLD] + [(*case, False) for case in ALSO_TOLD])
def test_a_damaged_text_is_named(tmp_path: Path, name: str, way: str, listed: bool) -> None:
    finished(tmp_path)
    path = tmp_path / name
    content = WAYS[way](path.read_bytes())
    path.write_bytes(content)
    if not listed:
        (tmp_path / "checksums").unlink()
    with pytest.raises(UserError) as told:
        open_run(tmp_path)
    assert str(told.value).startswith(str(path)) and "Put back a copy of it" in str(told.value)
    assert "another configuration" not in str(told.value) and path.read_bytes() == content


def test_a_record_may_lose_lines_and_gains_none(tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / "record.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(second)
    assert [line["dataset"] for line in open_run(tmp_path).records] == ["B"]
    path.write_text(first + second.replace("20.0", "99.0"))
    with pytest.raises(UserError, match="record.jsonl is not as it was written.*to go on with it as it is, delete"):
        open_run(tmp_path)
    (tmp_path / "checksums").unlink()
    assert open_run(tmp_path).find(dataset="B")[0]["value"] == 99.0
    (tmp_path / "checksums").unlink()
    path.write_text(first + second.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match="line 2 is of another run"):
        open_run(tmp_path)


def test_a_list_of_checksums_that_is_cut_or_written_by_many_serves_on(tmp_path: Path) -> None:
    open_run(tmp_path)
    write_text(tmp_path / "a.json", "[1]")
    with open(tmp_path / "checksums", "a") as file:
        file.write("\n1234")  # a process was killed here
    write_text(tmp_path / "a.json", "[1, 2]")
    assert read_back(tmp_path / "a.json", str.split, list) == ["[1,", "2]"]
    (tmp_path / "a.json").write_text("[1]")  # a process killed before the file took its place
    assert read_back(tmp_path / "a.json", str.split, list) == ["[1]"]
    (tmp_path / "a.json").write_text("[3]")
    with pytest.raises(UserError, match="a.json is not as it was written"):
        read_back(tmp_path / "a.json", str.split, list)


def test_a_flipped_byte_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    finished(tmp_path)
    content = (tmp_path / "A.pth").read_bytes()
    (tmp_path / "A.pth").write_bytes(flipped(content))
    with pytest.raises(UserError, match="A.pth is not a readable checkpoint.*does not fit its checksum"):
        load_tensors(tmp_path / "A.pth")


# Folders


@pytest.mark.parametrize("name", [b"caf\xe9", b"n" * 300, b"file", b"file/below"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "file").write_text("")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(UserError, match="the output folder .* cannot be written"):
        open_run(folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o300)
    with pytest.raises(UserError, match="cannot be written .Permission denied"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_no_kind_of_file_system_without_locks_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        open_run(tmp_path)
    assert names(tmp_path) == {"config.yaml"}
