"""An output folder holds a run's own files and others': which are read as whole, and which --overwrite deletes."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common import runs, weight_files
from common.errors import UserError
from common.files import read_back, write_text
from common.machine import RunOptions
from common.options import option
from common.runs import Run, Tensors, load_tensors, save_tensors

LINE = {"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 10.0}
LABELS = {"paper": "none", "method": "m", "protocol": "p", "backbone": "b", "scale": "mini", "seed": 1}


@dataclass(frozen=True)
class Options(RunOptions):
    load: str | None = option(None, "checkpoint")
    data_location: str = option("./data", "data sets")
    save: str | None = option(None, "output folder")


def open_run(folder: Path, name: str = "", **given: object) -> Run:
    options = Options(save=str(folder), **given)
    return Run(folder, {}, LABELS, name, options, outputs=[f"{name or 'A'}.pth"])


def finished(folder: Path, name: str = "") -> None:
    run = open_run(folder, name)
    run.record([LINE, LINE | {"dataset": "B", "value": 20.0}])
    save_tensors(run.folder / f"{name or 'A'}.pth", {"state_dict": {"w": torch.arange(1000.0)}})
    save_tensors(run.path("ranks.pth"), {})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock", "run-checksums"}


# --overwrite


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    finished(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "best.pth").write_text("mine")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/run-checksums").touch()  # as a run with --tensorboard does
    write_text(folder / "tensorboard/events.1", "")
    (folder / "tensorboard/events.2").write_text("mine")
    elsewhere.mkdir()
    (elsewhere / "A.pth").write_text("mine")
    (folder / "A.pth").unlink()
    (folder / "A.pth").symlink_to(elsewhere / "A.pth")
    (folder / "more").symlink_to(elsewhere)
    assert open_run(folder, overwrite=True).records == []
    assert names(folder) == {"notes.txt", "best.pth", "more", "config.yaml", "tensorboard"}
    assert names(folder / "tensorboard") == {"events.2"}
    assert (elsewhere / "A.pth").read_text() == "mine" and "A.pth" not in (folder / "run-checksums").read_text()


@pytest.mark.parametrize("name", ["A.pth", "state.pth"])
def test_what_no_run_wrote_is_not_deleted_and_no_checkpoint_of_a_new_run(tmp_path: Path, name: str) -> None:
    open_run(tmp_path).record([LINE])
    torch.save({}, tmp_path / name)
    for folder in (tmp_path, tmp_path / "without a run"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=f"{folder} already holds {name}, which no run recorded there made"):
            open_run(folder, overwrite=True)
        assert (folder / name).read_text() == "mine"
    (tmp_path / name).unlink()
    assert len(open_run(tmp_path).records) == 1


def test_overwrite_leaves_the_calls_that_share_the_folder(tmp_path: Path) -> None:
    finished(tmp_path, "DTD")
    finished(tmp_path, "DTD.x")
    before = names(tmp_path)
    open_run(tmp_path, "DTD", overwrite=True)
    assert names(tmp_path) == before - {"DTD.record.jsonl", "DTD.pth", "DTD.ranks.pth"}
    finished(tmp_path)
    open_run(tmp_path, overwrite=True)
    others = {"DTD.x.pth", "DTD.x.record.jsonl", "DTD.x.ranks.pth"}
    assert others <= names(tmp_path) and "A.pth" not in names(tmp_path)
    open_run(tmp_path, "DTD.x", overwrite=True)
    assert not others & names(tmp_path)


def test_overwrite_knows_the_files_of_a_folder_without_a_list(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "run-checksums").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    open_run(tmp_path, overwrite=True)
    assert names(tmp_path) == {"notes.txt", "ranks.pth", "config.yaml"}


@pytest.mark.parametrize("listed", [True, False])
def test_overwrite_leaves_tables_of_other_names(tmp_path: Path, listed: bool) -> None:
    finished(tmp_path)
    run, mine = open_run(tmp_path), {"accuracy_paper.png", "accuracy-old-run.csv", "accuracyX.csv"}
    for name in ("accuracy.csv", "accuracy.png", "accuracy_order_2.csv"):
        write_text(run.path(name), "")
    del run
    for name in mine:
        (tmp_path / name).write_text("mine")
    if not listed:
        (tmp_path / "run-checksums").unlink()
    open_run(tmp_path, overwrite=True)
    found = {name for name in names(tmp_path) if name.startswith("accuracy")}
    assert found == (mine if listed else mine | {"accuracy_order_2.csv"})  # which the new run writes over


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


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_leftovers_of_others_stay(tmp_path: Path) -> None:
    process = gone()
    mine = {".x.tmp", ".tmp", ".notes.tmp", f".notes.txt.{process}.tmp", ".state.pth.99999999999.tmp"}
    for name in [*mine, *(f".{own}.{process}.tmp" for own in ("A.pth", "config.yaml", "run-checksums"))]:
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
TOLD.remove(("config.yaml", "twice"))  # says the same
ALSO_TOLD = [case for case in TOLD if case[1] != "flipped"]  # without checksums


@pytest.mark.parametrize("name, way, listed", [(*case, True) for case in TOLD] + [(*case, False) for case in ALSO_TOLD])
def test_a_damaged_text_is_named(tmp_path: Path, name: str, way: str, listed: bool) -> None:
    finished(tmp_path)
    path = tmp_path / name
    content = WAYS[way](path.read_bytes())
    path.write_bytes(content)
    if not listed:
        (tmp_path / "run-checksums").unlink()
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
    (tmp_path / "run-checksums").unlink()
    assert open_run(tmp_path).find(dataset="B")[0]["value"] == 99.0
    (tmp_path / "run-checksums").unlink()
    path.write_text(first + second.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match="line 2 is of another run"):
        open_run(tmp_path)


def test_a_checkpoint_of_another_name_or_run_is_told(tmp_path: Path) -> None:
    """Only where the folder's list has the file; a killed process has left the older one."""
    finished(tmp_path)
    path, first = tmp_path / "A.pth", (tmp_path / "A.pth").read_bytes()
    path.write_bytes((tmp_path / "ranks.pth").read_bytes())
    for read in (load_tensors, weight_files.read):
        with pytest.raises(UserError, match="A.pth is not as it was written.*another file's copy"):
            read(path)
    save_tensors(path, {"state_dict": {"w": torch.zeros(1000)}})
    path.write_bytes(first)
    assert load_tensors(path)["state_dict"]["w"][9] == 9
    torch.save({"state_dict": {}}, tmp_path / "mine.pth")
    assert load_tensors(tmp_path / "mine.pth") == {"state_dict": {}}
    path.write_bytes((tmp_path / "ranks.pth").read_bytes())
    (tmp_path / "run-checksums").unlink()
    assert load_tensors(path) == {}


def test_models_beside_a_runs_folder_are_its_own(tmp_path: Path) -> None:
    """Where VQ-Prompt's original puts them; checked and deleted as those in the folder."""

    def start(repeat: str, overwrite: bool = False) -> Path:
        models = [f"task-{task}/class.pth" for task in (1, 2)]
        Run(tmp_path / repeat, {}, LABELS, options=RunOptions(overwrite=overwrite), models=models)
        return tmp_path / "models" / repeat / "task-1/class.pth"

    one, other, notes = start("repeat-1"), start("repeat-2"), tmp_path / "notes.txt"
    for value, path in enumerate((one, other, other.parents[1] / "task-2/class.pth")):
        save_tensors(path, {"w": torch.full((9,), float(value))})
    shutil.copy(other, one)
    with pytest.raises(UserError, match="models/repeat-1/task-1/class.pth is not as it was written"):
        load_tensors(one)
    with open(tmp_path / "run-checksums", "a") as file:
        file.write("00000000  models/repeat-1/../../notes.txt\n00000000  models/repeat-1/task-3/class.pth\n")
    for path in (notes, one.parents[1] / "mine/class.pth", one.with_name(f".class.pth.{gone()}.tmp")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (one.parents[1] / "task-3").symlink_to("mine")
    start("repeat-1", overwrite=True)
    assert sorted(path.name for path in one.parents[1].rglob("*")) == ["class.pth", "mine"] and notes.exists()
    assert load_tensors(other)["w"][0] == 1
    shutil.copytree(other.parents[1], tmp_path / "models/repeat-3")
    with pytest.raises(UserError, match="task-1 already holds class.pth, which no run recorded"):
        start("repeat-3", overwrite=True)


def test_an_unfinished_stage_of_another_run_is_told(tmp_path: Path) -> None:
    def stopped(folder: Path, start: float) -> Run:
        run = Run(folder, {}, LABELS, options=RunOptions(save_interval=0))
        state = {"weights": Tensors({"w": torch.full((3,), start)})}
        for step in run.steps("train", 2, state):
            if step == 1:
                break
        return run

    stopped(tmp_path / "other", 5.0)
    run = stopped(tmp_path / "run", 1.0)
    (tmp_path / "run/state.pth").write_bytes((tmp_path / "other/state.pth").read_bytes())
    with pytest.raises(UserError, match="state.pth is not as it was written"):
        next(run.steps("train", 2, {"weights": Tensors({"w": torch.zeros(3)})}))


def test_a_comment_in_the_configuration_changes_nothing(tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / "config.yaml"
    text = path.read_text()
    path.write_text(f"# my first run\n{text}\n")
    assert len(open_run(tmp_path).records) == 2
    path.write_text(text.replace("method: m", "method: n"))
    with pytest.raises(UserError, match="config.yaml is not as it was written"):
        open_run(tmp_path)


MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def test_a_list_of_a_user_is_no_list_of_a_run(tmp_path: Path) -> None:
    finished(tmp_path)
    listing = "".join(f"{MD5}  {name}\n" for name in ("notes.txt", "A.pth", "config.yaml", "record.jsonl"))
    for name in ("notes.txt", "checksums"):
        (tmp_path / name).write_text(listing)
    assert len(open_run(tmp_path).records) == 2
    (tmp_path / "run-checksums").write_text(listing)
    assert len(open_run(tmp_path).records) == 2
    open_run(tmp_path, overwrite=True)
    assert {"notes.txt", "checksums"} <= names(tmp_path)


@pytest.mark.parametrize("entry", [f"{MD5}  notes.txt", "00000000  ../notes.txt", "00000000  sub/notes.txt",
                                   "00000000  lock", "00000000  .hidden", "00000000  sub/../../notes.txt",
                                   "00000000  DTD.lock", "00000000  ..", "00000000 notes.txt", "notes.txt",
                                   "00000000  " + "n" * 5000, "00000000  a\0b"])  # fmt: skip
def test_only_entries_of_its_own_form_count_in_a_list(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "run"
    finished(folder)
    kept = [tmp_path / "notes.txt", *(folder / name for name in ("notes.txt", "lock", "DTD.lock", ".hidden"))]
    kept.append(folder / "sub/notes.txt")
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with open(folder / "run-checksums", "a") as file:
        file.write(f"\n{entry}\n")
    assert len(open_run(folder).records) == 2
    open_run(folder, overwrite=True)
    assert all(path.exists() for path in kept) and "A.pth" not in names(folder)


def test_half_an_entry_accuses_no_file(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.record([LINE])
    run.record([LINE | {"dataset": "B"}])
    del run
    with open(tmp_path / "run-checksums", "a") as file:
        file.write("1234abcd")
    assert len(open_run(tmp_path).records) == 2


def test_a_list_of_checksums_that_is_cut_or_written_by_many_serves_on(tmp_path: Path) -> None:
    open_run(tmp_path)
    write_text(tmp_path / "a.json", "[1]")
    with open(tmp_path / "run-checksums", "a") as file:
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


@pytest.mark.parametrize("name", ["state.pth", "record.jsonl", "A.pth", "accuracy.csv", "run-checksums"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_a_files_place_is_named_at_the_start(tmp_path: Path, name: str, overwrite: bool) -> None:
    finished(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder, in the place of a file of the run"):
        open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).is_dir() and (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("below", ["", "run"])
def test_a_link_to_a_missing_folder_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link is a link to nowhere, which does not exist"):
        open_run(tmp_path / "link" / below)


def test_a_locale_without_the_letters_of_a_folder_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.runs import Run; Run(Path(sys.argv[1]), {}, {'method': 'm'})"
    )
    words = [sys.executable, "-X", "utf8=0", "-c", code, os.fsencode(tmp_path) + b"/\xc3\x9c"]
    locale = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(words, env=locale, capture_output=True, cwd=Path(runs.__file__).parents[1])
    assert b"its name is UTF-8, the locale is not" in done.stderr and b"set LC_ALL=C.UTF-8" in done.stderr


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
