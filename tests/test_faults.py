"""Runs that are killed, that find the disk full, whose files are damaged: the same command ends with the same numbers,
or says in a sentence which file it is.

The commands are those of golden/runs. Each call is a fork of this process, which has imported torch.
"""

import io
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.test_fence import MEASURED, RUNS, prepared

SHORTER = ["dataset.n_tasks=2", "dataset.n_classes_per_task=20", "OPTIM.MAX_EPOCH=1"]
NAMES: dict[str, list[str]] = {  # with words that make them shorter
    "alta": SHORTER, "inflora": [], "it_prompt_cncm": [], "moe_adapters": [], "moe_adapters_cil": [],
    "vq_prompt": [], "zscl_icarl": [], "zscl_cil_icarl": [],
}  # fmt: skip
NOT_READ = (".csv", ".png", ".tmp", "lock", "output.log", "args.yaml", "global.yaml", "pt.yaml")
OF_ALL = ("config.yaml", "record.jsonl", "run-checksums")  # tests/common/test_folders.py damages them in every way


class Left(NamedTuple):
    code: int  # -9: killed
    said: str


def call(main: Callable, words: list[str], before: Callable[[int], None] = lambda count: None) -> Left:
    """Run a command in a fork; `before` is called with 0, 1, 2, ...: at first, before and after each file is placed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        replace, count = os.replace, iter(range(1, 10**6))

        def counted(*names: str) -> None:
            before(next(count))
            replace(*names)
            before(next(count))

        os.replace, code = counted, 0
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            try:
                before(0)
                main(words)
            except SystemExit as left:
                code = left.code
            except BaseException as error:  # what a user would see as a traceback
                code, _ = 70, text.write(f"Traceback {type(error).__name__}: {error}")
        os.write(writer, text.getvalue()[-4000:].encode(errors="replace"))
        os._exit(code)
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return Left(os.waitstatus_to_exitcode(status), text)


def kill_after(number: int) -> Callable[[int], None]:
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None


def fill_disk_after(number: int) -> Callable[[int], None]:
    """From then on no byte can be added to any file."""
    return lambda count: resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1)) if count == number else None


def numbers(folder: Path) -> dict[tuple, float]:
    (path,) = folder.rglob("record.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(line["protocol"], line["after_task"], line["dataset"], line["metric"]): line["value"] for line in lines}
    assert len(found) == len(lines)
    return {key: value for key, value in found.items() if key[3] not in MEASURED}


class Command(NamedTuple):
    main: Callable
    words: list[str]
    folder: Path  # the one that its words name
    whole: dict[tuple, float]

    def on(self, folder: Path) -> list[str]:
        """The words with another output folder."""
        return [word.replace(str(self.folder / "run"), str(folder)) for word in self.words]


@pytest.fixture(scope="module", params=NAMES)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    main, words = prepared(json.loads((RUNS / f"{request.param}.json").read_text()), folder)
    words += NAMES[request.param]
    left = call(main, words)
    assert left.code == 0, left.said
    return Command(main, words, folder, numbers(folder / "run-mini"))


def test_killed_and_without_space_again_and_again(command: Command, tmp_path: Path) -> None:
    """Stopped by a kill or a full disk, in turn, before or after ever later files of what a call writes."""
    words, folder, calls = command.on(tmp_path / "run"), tmp_path / "run-mini", 0
    while True:
        fault = (kill_after, fill_disk_after)[calls % 2]
        left = call(command.main, words, fault(calls * (calls + 3) // 2 + 1))
        if left.code == 0:
            break
        calls += 1
        if left.code != -signal.SIGKILL:
            assert left.code == 2 and "no space left while saving" in left.said, left.said
            assert "Traceback" not in left.said
    print(f"{calls} stops")
    assert calls > 3 and numbers(folder) == command.whole
    assert not list(folder.rglob(".*.tmp"))


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a byte flipped": lambda content: content[: len(content) // 3] + bytes([content[len(content) // 3] ^ 1])
    + content[len(content) // 3 + 1 :],
    "other content": lambda content: b'{"epochs": [1, 2]}\n',
}  # fmt: skip


def damage(command: Command, left: Path, place: Path, file: Path, way: str) -> str:
    """What is wrong with how the command takes up a copy of the folder `left` with one file damaged; "" if nothing."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(left, place)
    content = (place / file).read_bytes()
    (place / file).write_bytes(WAYS[way](content))
    found = call(command.main, command.on(place))
    if found.code == 0:
        return "" if numbers(place) == command.whole else "ends with other numbers"
    named = found.code == 2 and file.name in found.said and "Traceback" not in found.said
    return "" if named and "another configuration" not in found.said else f"exit {found.code}: {found.said[-600:]}"


def test_damaged_files(command: Command, tmp_path: Path) -> None:
    """Of a run killed in its later half; of each kind of file the last, in the ways in turn."""
    call(command.main, command.on(tmp_path / "run"), kill_after(24))
    left = tmp_path / "run-mini"
    files = [path.relative_to(left) for path in sorted(left.rglob("*")) if path.is_file()]
    read = {re.sub(r"\d+", "", str(file)): file for file in files if not file.name.endswith((*NOT_READ, *OF_ALL))}
    wrong = {}
    for number, file in enumerate(read.values()):
        way = list(WAYS)[number % len(WAYS)]
        if problem := damage(command, left, tmp_path / "copy-mini", file, way):
            wrong[str(file), way] = problem
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())
    print(len(read), "files")
    assert read
