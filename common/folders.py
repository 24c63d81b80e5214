"""An output folder: which files in it are a run's own, and what --overwrite may delete. Needs no torch."""

import glob
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import CHECKSUMS, SECTIONS, TEMPORARY, begin_list, checksums, held_lock, read_back
from common.options import flat

TENSORBOARD = "tensorboard"  # folder in the run's folder
OWN = ("record.jsonl", "state.pth", "accuracy.csv", "accuracy.png", "config.yaml")  # of any run
NO_INPUTS = (  # options that name what is written, or no place in the working directory
    "save", "log_dir", "hydra.run.dir", "cache_dir", "config_path", "log_path", "frozen_path"
)  # fmt: skip


def take_folder(folder: Path, prefix: str, outputs: Iterable[str], overwrite: bool) -> ExitStack:
    """The lock of a run's folder, without the files of a killed process and, to `overwrite`, of an earlier run.

    prefix: of the run's own files, where one-task calls share the folder. `outputs`: see `own_files`. Raises UserError
    if the folder cannot be written, is another process's, or to be overwritten and another program's.
    """
    try:
        str(folder).encode()  # as the records will hold it
        folder.mkdir(parents=True, exist_ok=True)
        lock, config = folder / f"{prefix}lock", folder / f"{prefix}config.yaml"
        lock.touch()
        for path in own_files(folder, prefix, [CHECKSUMS, *(name for name in outputs if os.sep not in name)]):
            if path.is_dir():
                raise UserError(f"{path} is a folder, in the place of a file of the run. Move it away.")
        held = held_lock(lock, f"another process is working in {folder}. Wait for it, or choose another folder.")
        _remove_leftovers(folder, prefix, outputs)  # also finds out whether the folder can be listed
        if overwrite and config.exists():  # nothing from a folder without it
            read_back_config(config)
            curves = folder / TENSORBOARD / prefix.removesuffix(".")
            drawn = [curves / name for name in checksums(curves)]
            own = [path for path in own_files(folder, prefix, outputs) if path != config]
            remove([*drawn, curves / CHECKSUMS, *own, config])  # without the last nothing more is deleted
            if not prefix:
                remove([folder / CHECKSUMS])
        begin_list(folder)
        return held
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> UserError:
    reason, advice = getattr(error, "strerror", None) or "its name is not UTF-8", "change its permissions"
    if lost := [path for path in (folder, *folder.parents) if os.path.islink(path) and not os.path.exists(path)]:
        reason, advice = f"{lost[0]} is a link to {os.readlink(lost[0])}, which does not exist", "make that folder"
    elif isinstance(error, UnicodeEncodeError) and _is_utf8(folder):
        reason, advice = "its name is UTF-8, the locale is not", "set LC_ALL=C.UTF-8"
    return UserError(f"the output folder {folder} cannot be written ({reason}). Choose another one or {advice}.")


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeDecodeError):
        return bool(os.fsencode(path).decode())
    return False


def _remove_leftovers(folder: Path, prefix: str, outputs: Iterable[str]) -> None:
    """Delete the temporary files that a killed process of this run has left."""
    names = {name for name in checksums(folder) if name.startswith(prefix)}
    patterns = [*outputs, *(f"{prefix}{name}" for name in OWN)]
    for match in filter(None, map(TEMPORARY.fullmatch, os.listdir(folder))):
        is_own = match[1] in names or any(fnmatchcase(match[1], pattern) for pattern in patterns)
        if is_own and not _is_running(int(match[2])):
            (folder / match[0]).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def own_files(folder: Path, prefix: str, outputs: Iterable[str]) -> list[Path]:
    """The files that a run has written: those on its folder's list, and those that fit a pattern.

    outputs: patterns of its checkpoints, also for folders of versions that kept no list.
    """
    listed = [folder / name for name in checksums(folder) if name.startswith(prefix)]
    found = [*listed, *matching(folder, [*outputs, *(f"{prefix}{name}" for name in OWN)])]
    # one-task calls may share the folder of a sequence
    configs = [] if prefix else matching(folder, ["*.config.yaml"])
    others = tuple(path.name.removesuffix("config.yaml") for path in configs)
    return [path for path in found if not path.name.startswith(others)]


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Paths that fit patterns, which are relative to `folder`."""
    places = [os.path.normpath(os.path.join(glob.escape(str(folder)), pattern)) for pattern in patterns]
    return [Path(path) for place in places for path in sorted(glob.glob(place))]


def remove(paths: Iterable[Path]) -> None:
    """Delete these files in this order, of links the links themselves, and their folders if nothing else is in them."""
    for path in paths:
        if path.is_symlink() or path.is_file():
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()


def refuse_inputs(options: Any, folders: Iterable[Path], prefix: str = "") -> None:
    """Raise UserError if an option names what --overwrite may delete: a folder, or what begins with `prefix` in it."""
    for key, value in flat(asdict(options)).items():
        named = [] if key in NO_INPUTS else value if isinstance(value, list | tuple) else [value]
        for path in [Path(name).expanduser() for name in named if name and isinstance(name, str)]:
            places = {path.resolve(), path.parent.resolve() / path.name} if os.path.lexists(path) else set()
            for folder in {folder.resolve() for folder in folders}:
                inside = [place.relative_to(folder) for place in places if place.is_relative_to(folder)]
                if any("".join(place.parts[:1]).startswith(prefix) for place in inside):
                    raise UserError(f"--overwrite deletes in {folder}, and {key} lies there: {path}. Move one of them.")


def read_back_config(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config.yaml. Raises UserError for another program's file, or a damaged one."""
    return read_back(path, lambda text: {name: dict(yaml.safe_load(text)[name]) for name in SECTIONS}, dict)
