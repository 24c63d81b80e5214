"""Run folders: atomic writes, records, configuration, resume to the same bits."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from common.errors import Interrupted, UserError
from common.machine import RunOptions
from common.runs import Run, Tensors, atomic_write, load_tensors, save_tensors, write_text

ANEW = RunOptions(overwrite=True)


def open_run(folder: Path, **settings: object) -> Run:
    return Run(folder, settings, {"paper": "none", "seed": 1}, options=RunOptions(save_interval=0.0))


def test_a_failing_write_leaves_the_old_content(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")

    def fail(file: object) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from common.errors import exit_cleanly
from common.runs import save_tensors
path = Path(sys.argv[1])
save_tensors(path, {"state_dict": {"w": torch.ones(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # from here on a large file fails as on a full disk
exit_cleanly(lambda: save_tensors(path, {"state_dict": {"w": torch.zeros(1_000_000)}}))()
"""


def test_a_full_disk_loses_nothing_saved_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "c.pth")], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no space left while saving" in done.stderr and "c.pth. What was saved before is intact" in done.stderr
    assert torch.equal(load_tensors(tmp_path / "c.pth")["state_dict"]["w"], torch.ones(10))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth holds pickled Python objects .*torch.nn.modules.linear.Linear"):
        load_tensors(tmp_path / "model.pth")


def test_a_label_that_has_another_text_since_stands_once_in_the_records(tmp_path: Path) -> None:
    def opened(protocol: str) -> Run:
        return Run(tmp_path, {"lr": 1}, {"paper": "none", "protocol": protocol, "method": "Ours"})

    number = {"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 10.0}
    before = opened("mtil-custom")
    before.record([number, number | {"after_task": 0, "method": "CLIP"}, number | {"protocol": "til"}])
    run = opened("mtil-custom-A")
    run.record([number | {"after_task": 2}])
    found = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert found == run.records
    assert [(line["protocol"], line["method"], line["after_task"]) for line in found] == [
        ("mtil-custom-A", "Ours", 1), ("mtil-custom-A", "CLIP", 0), ("til", "Ours", 1), ("mtil-custom-A", "Ours", 2),
    ]  # fmt: skip
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["labels"] == {"paper": "none", "protocol": "mtil-custom-A", "method": "Ours"}
    assert config["settings"] == {"lr": 1} and "started" in config["provenance"]
    with pytest.raises(UserError, match="another configuration"):
        Run(tmp_path, {"lr": 2}, {"paper": "other", "protocol": "x", "method": "y"})
    assert [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()] == found


def test_records_are_tidy_lines_and_a_key_is_replaced(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.record([{"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 10.0}])
    run.record(
        [
            {"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 20.0},
            {"dataset": "B", "after_task": 1, "metric": "accuracy", "value": 30.0},
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [(line["dataset"], line["value"]) for line in lines] == [("A", 20.0), ("B", 30.0)]
    assert all(line["paper"] == "none" and line["seed"] == 1 and line["run"] == str(tmp_path) for line in lines)
    assert all(line["schema"] == 1 for line in lines)
    assert open_run(tmp_path).find(dataset="B")[0]["value"] == 30.0


def test_a_line_may_name_another_protocol_than_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"protocol": "cil"})
    line = {"dataset": "A", "after_task": 1, "metric": "accuracy"}
    run.record([line | {"value": 10.0}, line | {"value": 90.0, "protocol": "til"}])
    run.record([line | {"value": 20.0}])
    run.record([line | {"value": 30.0, "protocol": "cil"}])
    assert {(found["protocol"], found["value"]) for found in run.records} == {("cil", 30.0), ("til", 90.0)}
    assert Run(tmp_path, {}, {"protocol": "cil"}, "other").find(protocol="til") == []


def test_another_configuration_is_refused_with_the_keys(tmp_path: Path) -> None:
    open_run(tmp_path, lr=0.1, name="a")
    with pytest.raises(UserError, match="lr: 0.1 there, 0.2 now"):
        open_run(tmp_path, lr=0.2, name="a")
    open_run(tmp_path, lr=0.1, name="a")
    Run(tmp_path, {"lr": 0.2}, {}, options=ANEW)
    with pytest.raises(UserError):
        open_run(tmp_path, lr=0.1, name="a")


def test_overwrite_removes_a_run_and_never_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    Run(tmp_path, {}, {}, options=ANEW)
    assert (tmp_path / "thesis.tex").exists()
    run = open_run(tmp_path / "run")
    run.record([{"dataset": "A", "after_task": 1, "metric": "accuracy", "value": 1.0}])
    write_text(run.path("task.pth"), "")
    assert not Run(tmp_path / "run", {}, {}, options=ANEW).records
    assert not (tmp_path / "run" / "task.pth").exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run_there = f"from common.runs import Run; Run({str(tmp_path)!r}, {{}}, {{}})"
    done = subprocess.run([sys.executable, "-c", run_there], capture_output=True, text=True)
    assert "another process is working in" in done.stderr
    del run  # held until here
    assert subprocess.run([sys.executable, "-c", run_there]).returncode == 0


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        open_run(tmp_path)


def test_files_that_no_run_recorded_are_refused_again_and_again(tmp_path: Path) -> None:
    labels = {"paper": "none", "method": "m", "protocol": "p", "backbone": "b", "scale": "mini", "seed": 1}
    write_text(tmp_path / "A.pth", "")
    for _ in range(2):
        with pytest.raises(UserError, match="already holds A.pth, which no run recorded"):
            Run(tmp_path, {}, labels, outputs=["A.pth"])
    run = Run(tmp_path / "new", {}, labels, outputs=["A.pth"])
    write_text(run.folder / "A.pth", "")
    assert Run(tmp_path / "new", {}, labels, outputs=["A.pth"]).labels == labels


def train(run: Run, stop_at: int | None = None, interrupt_at: int | None = None) -> torch.nn.Module:
    """Twenty steps that depend on all that a resume must restore: weights, moments, two generators, a count."""
    torch.manual_seed(5)
    model, own = torch.nn.Linear(4, 4), torch.Generator().manual_seed(9)
    optimizer, count = torch.optim.Adam(model.parameters()), torch.zeros(1)
    state = {"model": model, "optimizer": optimizer, "own": own, "count": Tensors({"count": count})}
    for step in run.steps("stage", 20, state):
        if step == stop_at:
            raise RuntimeError("as if the power failed")
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        x = torch.nn.functional.dropout(torch.randn(3, 4, generator=own), 0.5) + count
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        count += 1
    assert count == 20
    return model


def test_a_stopped_stage_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = train(open_run(tmp_path / "a"))
    for stop_at in (0, 7, 19):
        with pytest.raises(RuntimeError):
            train(open_run(tmp_path / "b"), stop_at=stop_at)
    broken = train(open_run(tmp_path / "b"))
    for one, other in zip(unbroken.parameters(), broken.parameters()):
        assert torch.equal(one, other)
    again = train(open_run(tmp_path / "b"))  # killed after the stage, before its checkpoint: the end is restored
    assert torch.equal(again.weight, unbroken.weight)


def test_a_state_of_another_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    """Items of a stage's state, and tensors within them: a log may have gained a term."""
    for _ in open_run(tmp_path).steps("stage", 1, {"log": Tensors({"ce": torch.zeros(1)})}):
        pass
    now = {"log": Tensors({"ce": torch.zeros(1), "loss": torch.zeros(1)}), "own": torch.Generator()}
    with pytest.raises(UserError, match="another version of this program: it lacks log.loss, own. Delete it"):
        next(open_run(tmp_path).steps("stage", 1, now))


def test_the_seconds_of_a_stage_end_when_its_last_step_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's queue is a step behind the host's clock: here each step takes the host a second, what is queued five."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: clock.append(clock.pop() + 5))
    run = open_run(tmp_path)
    for _ in run.steps("stage", 3, {}):
        clock[0] += 1
    assert run.seconds == 8


def test_ctrl_c_finishes_the_step_saves_and_says_so(tmp_path: Path) -> None:
    run, before = Run(tmp_path, {}, {}, options=RunOptions(save_interval=1000)), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after step 4 of 20.*goes on from there"):
        train(run, interrupt_at=3)
    assert load_tensors(tmp_path / "state.pth")["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.equal(train(Run(tmp_path, {}, {})).weight, train(open_run(tmp_path / "other")).weight)


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    (tmp_path / f".state.pth.{finished.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".other.pth.{os.getppid()}.tmp").write_bytes(b"being written by a living process")
    open_run(tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [f".other.pth.{os.getppid()}.tmp"]


def test_a_checkpoint_cut_short_says_what_to_do(tmp_path: Path) -> None:
    save_tensors(tmp_path / "c.pth", {"w": torch.zeros(1000)})
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:1500])
    with pytest.raises(UserError, match="c.pth is not a readable checkpoint"):
        load_tensors(tmp_path / "c.pth")


def test_other_weights_than_those_recorded_are_refused(tmp_path: Path) -> None:
    open_run(tmp_path / "none", weights={})
    with pytest.raises(UserError, match="weights.model: None there, '0123' now"):
        open_run(tmp_path / "none", weights={"model": "0123"})
    open_run(tmp_path / "other", weights={"model": "0123"})
    with pytest.raises(UserError, match="weights.model: '0123' there, '4567' now"):
        open_run(tmp_path / "other", weights={"model": "4567"})


def test_a_run_of_before_the_images_content_was_recorded_goes_on(tmp_path: Path) -> None:
    data = {"train": 5, "md5": "0123", "notes": []}
    open_run(tmp_path / "old", data={"DTD": data})
    open_run(tmp_path / "old", data={"DTD": data | {"content": "4567"}})
    with pytest.raises(UserError, match="data.DTD.md5: '0123' there, '89' now"):
        open_run(tmp_path / "old", data={"DTD": data | {"md5": "89", "content": "4567"}})
    open_run(tmp_path / "new", data={"DTD": data | {"content": "4567"}})
    with pytest.raises(UserError, match="data.DTD.content: '4567' there, 'ab' now"):
        open_run(tmp_path / "new", data={"DTD": data | {"content": "ab"}})
