"""A short run of each entry point, stopped everywhere: the same command ends with the same files, or names the file.

Only files count for a run that was killed, so a copy of its folder is what a kill at that instant leaves. One run is
copied after every file that it places; forks of it find the disk full at each file that they open to write. On every
copy the command is given again, up to a folder that is, byte for byte, a later copy, from which it goes on as the whole
run does: one whose training is all in state.pth, or any that is left after the last training. When it first reads a
file, forks of it find that file damaged. All are forks of one process, in which the command has run before.
"""

import gc
import io
import json
import os
import resource
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common.provenance import commit
from tests.forked import own_lock
from tests.test_fence import RUNS, prepared

APPENDED = ("lock", "run-checksums", "output.log")  # in place, and without numbers
# a limit on the size of files stands in for a full disk
NO_SPACE = ("no space left while saving", "(File too large). Choose another one or free some space")


def put(source: Path, target: Path) -> None:
    """Make a folder hold the files of another, as hard links, since runs replace their files."""

    def copy(one: str, other: str) -> None:
        (shutil.copy if one.endswith(APPENDED) else os.link)(one, other)

    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, copy_function=copy)


def checksum(path: Path) -> int:
    if path.suffix == ".xlsx":  # which says when it was written
        with zipfile.ZipFile(path) as archive:
            return sum(item.CRC for item in archive.infolist() if item.filename.startswith("xl/"))
    return zlib.crc32(path.read_bytes())


def flipped(content: bytes) -> bytes:
    """Another bit: of an archive in what it holds, of a text in its last digit, so that it can be read as before."""
    digits = [content.rfind(digit) for digit in b"0123456789"]
    at = len(content) // 3 if content.startswith(b"PK") else max(digits)
    return content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a bit flipped": flipped,
    "other content": lambda content: b'{"epochs": [1, 2]}\n',
}


class Stops:
    """A command that watches itself, and forks at each place where it may be stopped; `role`: what this process is."""

    def __init__(self, folder: Path, aside: Path) -> None:
        self.folder, self.aside = folder, aside
        self.role, self.watching, self.clock = "whole", True, 0
        self.copies: list[dict[str, int]] = []  # what is in folders aside/0, aside/1, ...
        self.number = 0  # of the copy that the command is given on
        self.damage = ""
        self.sums = dict[tuple[int, int, int], int]()
        self.text = io.StringIO()

    def tour(self, main: Callable, words: list[str]) -> None:
        """Run the command to its end, then again to the first sight of its folder, and from there on each copy."""
        replace, stat = os.replace, os.stat

        def replaced(source: Any, target: Any) -> None:
            replace(source, target)
            if self.is_in_run(target):
                self.unwatched(self.placed, Path(target))

        def looked_at(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
            self.begin(path)
            return stat(path, *arguments, **options)

        def tick(*_: object) -> None:
            self.clock += 1

        os.replace, os.stat, os.fsync = replaced, looked_at, lambda file: None  # no power cut is meant
        time.monotonic, time.strftime = lambda: self.clock, lambda form: "now"  # seconds are steps of optimisers,
        resource.getrusage = lambda who: SimpleNamespace(ru_maxrss=0)  # so that equal runs write equal bytes
        register_optimizer_step_pre_hook(tick)
        sys.addaudithook(self.seen)
        gc.disable()  # which would write to, and so copy, all memory of a fork
        self.run(main, words)
        gc.collect()  # the run's lock
        self.role = "start"
        self.run(main, words)

    def run(self, main: Callable, words: list[str]) -> None:
        self.clock = 0
        with redirect_stdout(self.text), redirect_stderr(self.text):
            try:
                code = main(words) or 0
            except SystemExit as left:
                code = left.code
            except BaseException as error:  # what a user would see as a traceback
                code, _ = 70, self.text.write(f"Traceback {type(error).__name__}: {error}")
        self.unwatched(self.ended, code, self.text.getvalue()[-600:])
        if self.role != "whole":
            os._exit(0)

    def note(self, kind: str, told: str = "") -> None:
        with open(self.aside / "notes", "a") as file:
            file.write(json.dumps([kind, f"{self.role}, copy {self.number} {self.damage} {told}"]) + "\n")

    def require(self, right: bool, told: str) -> None:
        if not right:
            self.note("wrong", told)

    def unwatched(self, function: Callable, *arguments: Any) -> None:
        self.watching = False
        try:
            function(*arguments)
        except BaseException as error:  # the command would catch it
            self.note("wrong", repr(error))
            os._exit(1)
        self.watching = True

    def forked(self, role: str) -> bool:
        """True in a fork, which is to be `role`; False in this process, after the fork's end."""
        process = os.fork()
        if process == 0:
            own_lock()
            self.role = role
            self.text.seek(0)
            self.text.truncate()
            return True
        self.require(os.waitpid(process, 0)[1] == 0, f"a fork for {role} did not end")
        return False

    def is_in_run(self, path: Any) -> bool:
        return isinstance(path, str | Path) and self.folder in Path(path).parents

    def content(self) -> dict[str, int]:
        """Checksums of the run's files by their names."""
        found = {}
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name not in APPENDED:
                stat = path.stat()
                key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if key not in self.sums:
                    self.sums[key] = checksum(path)
                found[str(path.relative_to(self.folder))] = self.sums[key]
        return found

    def keep(self) -> None:
        """A copy of the folder, if it has changed."""
        content = self.content()
        if content != (self.copies or [None])[-1]:
            put(self.folder, self.aside / str(len(self.copies)))
            self.copies.append(content)

    # What happens in the command

    def seen(self, event: str, arguments: tuple) -> None:
        """Python's audit hook."""
        if not self.watching or event not in ("open", "os.mkdir", "os.scandir", "os.listdir"):
            return
        path, mode = arguments[0], arguments[1] if event == "open" else None
        self.begin(path)
        if mode and self.is_in_run(path) and Path(path).name != "lock":
            self.unwatched(self.written if set(mode) & set("wax+") else self.read, Path(path))

    def begin(self, path: Any) -> None:
        if self.watching and self.role == "start" and (self.is_in_run(path) or str(path) == str(self.folder)):
            self.unwatched(self.give_on_each_copy)

    def give_on_each_copy(self) -> None:
        states = [[copy[name] for name in copy if name.endswith("state.pth")] for copy in self.copies[:-1]]
        self.trained = states.index(states[-1])  # the first copy after the last training
        for number, content in enumerate(self.copies[:-1]):
            self.number = number
            put(self.aside / str(self.number), self.folder)
            for name, after in self.copies[self.number + 1].items():  # killed while it wrote the next file; what is
                path = self.folder / name  # left of tables and pictures, last of all, stays until a later call
                is_state = path.suffix in (".pth", ".jsonl") and path.parent.exists()
                if self.number % 2 and content.get(name) != after and is_state:
                    path.with_name(f".{path.name}.9999999.tmp").write_bytes(b"PK\3\4")
            self.content()  # sums for the forks
            if self.forked("killed"):
                return
            self.note("killed")
        os._exit(0)

    def written(self, path: Path) -> None:
        """Before a file is opened to be written."""
        if self.role != "whole":
            return
        if path.suffix == ".tmp":
            self.keep()
        elif len(self.copies) > 3:  # the list is appended to in the same way every time
            return
        put(self.folder, self.aside / "before")
        if self.forked("full disk"):
            self.damage = path.name
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        put(self.aside / "before", self.folder)
        self.note("full disk")

    def placed(self, path: Path) -> None:
        if self.role == "whole":
            self.keep()
        elif self.role in ("killed", "damaged"):
            content = self.content()
            later = content in self.copies[self.number + 1 :]
            if later and (path.name.endswith("state.pth") or self.number > self.trained):
                os._exit(0)

    def read(self, path: Path) -> None:
        """Before a file is opened to be read."""
        name = str(path.relative_to(self.folder))
        mark = self.aside / f"read {name.replace('/', ' ')}"
        whole = self.copies[self.number].get(name) if self.role == "killed" else None
        if whole is None or mark.exists() or self.content().get(name) != whole:
            return
        mark.touch()
        put(self.folder, self.aside / "before")
        for way, change in WAYS.items():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(change(content))
            if self.forked("damaged"):
                self.damage = name
                return
            put(self.aside / "before", self.folder)
            self.note("damaged", f"{name}: {way}")

    def ended(self, code: int, said: str) -> None:
        if self.role == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            told = code == 2 and any(sentence in said for sentence in NO_SPACE) and "Traceback" not in said
            self.require(told, f"exit {code}: {said}")
            self.require(self.content() == (self.copies or [{}])[-1], "other files than before")
        elif self.role == "damaged" and code != 0:
            named = code == 2 and Path(self.damage).name in said and "Traceback" not in said
            self.require(named and "another configuration" not in said, f"exit {code}: {said}")
        else:
            self.require(code == 0, f"exit {code}: {said}")
            if self.role == "whole":
                self.keep()
            different = set(self.content().items()) ^ set(self.copies[-1].items())
            self.require(not different, f"ends with other files: {sorted(different)}")


def require_the_same_after_stops(name: str, shorter: list[str], folder: Path) -> None:
    """Stop a stored command everywhere; `shorter`: more words, that leave two tasks, of few steps, and a state of each.

    Raises AssertionError, which says what was stopped where, and how that ended.
    """
    main, words = prepared(json.loads((RUNS / f"{name}.json").read_text()), folder)
    aside = folder / "aside"
    aside.mkdir()
    process = os.fork()
    if process == 0:
        own_lock()
        torch.set_num_threads(1)
        commit()  # git is asked once
        Stops(folder / "run-mini", aside).tour(main, words + shorter)
    assert os.waitpid(process, 0)[1] == 0
    notes = [json.loads(line) for line in (aside / "notes").read_text().splitlines()]
    kinds = [kind for kind, _ in notes]
    print({kind: kinds.count(kind) for kind in kinds})
    wrong = [told for kind, told in notes if kind == "wrong"]
    assert not wrong, "\n".join(wrong)
    assert min(kinds.count("killed"), kinds.count("full disk"), kinds.count("damaged") / len(WAYS)) > 3
