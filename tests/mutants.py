"""Planted mistakes: which of them would the tests let through? `python -m tests.mutants [PART ...]`.

Each tests/**/mutants*.yaml lists mistakes as {name, file, old, new}: in a copy of the tree the one place where
`file` reads `old` is made to read `new`, and the tests of that folder run up to the first failure, whole runs first
(those of mutants_b5.yaml: test_whole_run_b5*.py, or what an entry names as `first`). A mistake that no test notices
survives, and so does one whose `old` is no longer there exactly once: the lists move with the code. Exit code 1 where
one survives.
"""

import ast
import multiprocessing
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from common.errors import UserError, exit_cleanly
from common.options import option, read, unknown

ROOT = Path(__file__).parents[1]
MINUTES = 15  # for the tests of one mistake; one that makes a run endless is noticed by this
LIBRARIES = ["torch", "torchvision", "timm", "open_clip", "sklearn.cluster", "pandas", "matplotlib.pyplot", "openpyxl"]
FORKS = multiprocessing.get_context("forkserver")  # imports the libraries once, not once a mistake


def mistakes(parts: list[str]) -> list[dict[str, str]]:
    """Every mistake of the lists of these parts, or of all; the part of zscl/cil/mutants.yaml is zscl_cil."""
    found = []
    for path in sorted(ROOT.glob("tests/**/mutants*.yaml")):
        kind, folder = path.stem.removeprefix("mutants"), path.parent.relative_to(ROOT)
        about = {"part": "_".join(folder.parts[1:]) + kind, "folder": folder.as_posix()}
        about |= {"first": f"test_whole_run{kind}*.py"}
        found += [about | entry for entry in yaml.safe_load(path.read_text())]
    known = {mistake["part"] for mistake in found}
    for part in parts:
        if part not in known:
            raise UserError(unknown(f"PARTS {part}", part, sorted(known)))
    return [mistake for mistake in found if mistake["part"] in parts or not parts]


def copy_of_tree(folder: Path) -> Path:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def noticed_by(tree: Path, mistake: dict[str, str]) -> str | None:
    """The first test that fails with the mistake in the tree; None: it survives. The tree is left as it was."""
    path, folder = tree / mistake["file"], mistake["folder"]
    before = path.read_text() if path.exists() else ""
    if before.count(mistake["old"]) != 1:
        print(f"does not apply: {mistake['file']} reads `old` {before.count(mistake['old'])} times", flush=True)
        return None
    after = before.replace(mistake["old"], mistake["new"])
    if path.suffix == ".py":
        ast.parse(after)
    path.write_text(after)
    try:
        whole = sorted(str(test.relative_to(tree)) for test in (tree / folder).glob(mistake["first"]))
        return (whole and failing(tree, whole)) or failing(tree, [folder, *(f"--ignore={test}" for test in whole)])
    finally:
        path.write_text(before)


def failing(tree: Path, tests: list[str]) -> str | None:
    """The first of these tests of a tree that fails, if one does."""
    log = tree / ".mutants.log"
    process = FORKS.Process(target=run_tests, args=(tree, tests, log))
    process.start()
    process.join(60 * MINUTES)
    if process.is_alive():
        process.kill()
        return f"the limit of {MINUTES} minutes"
    if process.exitcode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)
    return found[1] if found else f"pytest's exit code {process.exitcode}"


def run_tests(tree: Path, tests: list[str], log: Path) -> None:
    """In a process of its own: pytest in the tree, its output to a file; exits with pytest's code."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "common")]:
        del sys.modules[name]  # this program's, not the tree's
    os.chdir(tree)
    sys.path[0], sys.dont_write_bytecode = str(tree), True
    sys.exit(int(pytest.main(["-x", "-n", "0", "-rfE", "-p", "no:cacheprovider", "--rootdir", str(tree), *tests])))


@dataclass(frozen=True)
class Options:
    parts: list[str] = option([], "lists, such as zscl or zscl_cil (all)", positional=True)
    list: bool = option(False, "name the mistakes and stop")
    only: str = option("", "those whose name holds this text", empty=True)
    jobs: int = option(os.cpu_count(), "how many at a time", at_least=1)


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = read(Options, argv, "tests.mutants", __doc__.split("\n\n")[0])
    found = [mistake for mistake in mistakes(options.parts) if options.only in mistake["name"]]
    if options.list:
        print("\n".join(f"{mistake['part']}: {mistake['name']}" for mistake in found))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKS.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(options.jobs):
            trees.put(copy_of_tree(Path(folder) / str(job)))

        def check(mistake: dict[str, str]) -> bool:
            tree, started = trees.get(), time.monotonic()
            try:
                test = noticed_by(tree, mistake)
            finally:
                trees.put(tree)
            told = f"killed by {test}" if test else "SURVIVES"
            print(f"{mistake['part']}: {mistake['name']}: {told} ({time.monotonic() - started:.0f} s)", flush=True)
            return test is None

        survive = sum(pool.map(check, found))
    print(f"{len(found) - survive} of {len(found)} killed, {survive} survive")
    sys.exit(bool(survive))


if __name__ == "__main__":
    main()
