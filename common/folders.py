"""An output folder: which files in it are a run's own, and what --overwrite may delete. Needs no torch."""

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import CHECKSUMS, NO_SPACE, SECTIONS, TEMPORARY, checksums, held_lock, note, read_back, write_alone
from common.options import flat

TENSORBOARD = "tensorboard"  # folder in the run's folder
OWN = ("record.jsonl", "state.pth", "accuracy.csv", "accuracy.png", "config.yaml")  # of any run
NO_INPUTS = (  # options that name what is written, or no place in the working directory
    "save", "log_dir", "hydra.run.dir", "cache_dir", "config_path", "log_path", "frozen_path"
)  # fmt: skip


def take_folder(folder: Path, prefix: str, outputs: Iterable[str], models: Iterable[str], options: Any) -> ExitStack:
    """The lock of a run's folder, without the files of a killed process and, to --overwrite, of an earlier run.

    prefix: of the run's own files, where one-task calls share the folder. `outputs`, `models`: names of its checkpoints
    in the folder and in ../models/<the folder's name>/. Raises UserError if the folder cannot be written, is another
    process's, or holds a file of such a name that no run wrote, or if --overwrite might delete an input.
    """
    below, config, lock = f"models/{folder.name}/", folder / f"{prefix}config.yaml", folder / f"{prefix}lock"
    places: list[tuple[Path, str, list[str]]] = [  # with lists; how own names begin in them; those a run may write
        (folder / TENSORBOARD / prefix.removesuffix("."), "", []),
        (folder.parent, below, [f"{below}{name}" for name in models]),
        (folder, prefix, [*outputs, *(f"{prefix}{name}" for name in OWN)]),
    ]
    possible = [place / name for place, _, names in places for name in names]
    try:
        str(folder).encode()  # as the records will hold it
        goes_on = config.exists()
        anew = options.overwrite and goes_on
        own = {place: _own_names(place, beginning, names) for place, beginning, names in places if goes_on}
        if goes_on:  # its config.yaml is deleted last: without it nothing more would be
            own[folder] = [*(name for name in own[folder] if name != config.name), config.name]
        written = {place / name for place, names in own.items() for name in names}
        _refuse_folders([folder / CHECKSUMS, *possible])
        if anew:
            read_back_config(config)
            _refuse_inputs(options, {folder, *(path.parent for path in written)}, prefix)
        if anew or not goes_on:
            refuse_files(path for path in possible if path not in written)
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
        held = held_lock(lock, f"another process is working in {folder}. Wait for it, or choose another folder.")
        lists = [place / CHECKSUMS for place, _, names in places if names]
        _remove_leftovers({*written, *possible, *lists})  # also finds out whether the folder can be listed
        for place, _, names in places:
            if anew:
                _remove(place, own.pop(place))
            if names:
                (place / CHECKSUMS).touch()
            for name in {*own.get(place, [])} - checksums(place).keys():  # of a version that kept no list
                note(place / name, place / name)
        return held
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error


def _refuse_folders(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder, in the place of a file of the run. Move it away.")


def refuse_files(paths: Iterable[Path]) -> None:
    """Raise UserError for a file that would be replaced, and that no run wrote."""
    for path in paths:
        if path.exists():
            reason = f"{path.parent} already holds {path.name}, which no run recorded there made"
            raise UserError(f"{reason}. Choose another output folder.")


def _unusable(folder: Path, error: Exception) -> UserError:
    reason, advice = getattr(error, "strerror", None) or "its name is not UTF-8", "change its permissions"
    if lost := [path for path in (folder, *folder.parents) if os.path.islink(path) and not os.path.exists(path)]:
        reason, advice = f"{lost[0]} is a link to {os.readlink(lost[0])}, which does not exist", "make that folder"
    elif getattr(error, "errno", None) in NO_SPACE:
        advice = "free some space"
    elif isinstance(error, UnicodeEncodeError) and _is_utf8(folder):
        reason, advice = "its name is UTF-8, the locale is not", "set LC_ALL=C.UTF-8"
    return UserError(f"the output folder {folder} cannot be written ({reason}). Choose another one or {advice}.")


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeDecodeError):
        return bool(os.fsencode(path).decode())
    return False


def _remove_leftovers(paths: Collection[Path]) -> None:
    """Delete the temporary files for these paths that a killed process has left."""
    for folder in {path.parent for path in paths}:
        for match in filter(None, map(TEMPORARY.fullmatch, os.listdir(folder) if folder.is_dir() else [])):
            if folder / match[1] in paths and not _is_running(int(match[2])):
                (folder / match[0]).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _own_names(place: Path, beginning: str, names: Collection[str]) -> list[str]:
    """What a run wrote into a folder, by its list; a run of a version that kept none, those of the `names` there."""
    starts = [path.name.removesuffix("config.yaml") for path in place.glob("*.config.yaml")]
    others = tuple(start for start in starts if start != beginning and start.startswith(beginning))

    def is_own(name: str) -> bool:  # one-task calls may share the folder
        return name.startswith(beginning) and not name.startswith(others) and ("/" in name) == ("/" in beginning)

    listed = list(filter(is_own, checksums(place)))
    return listed or [name for name in filter(is_own, names) if (place / name).is_file()]


def _remove(place: Path, names: Collection[str]) -> None:
    """Delete files of a folder in this order, of links the links themselves, and take them off its list."""
    for name in names:
        path = place
        for part in name.split("/"):
            path /= part
            if path.is_symlink() or path.is_file():
                path.unlink()
                with suppress(OSError):  # unless anything else is in it
                    path.parent.rmdir()
                break
    if (place / CHECKSUMS).exists():
        rest = [f"{sum_}  {name}\n" for name, sums in checksums(place).items() if name not in names for sum_ in sums]
        write_alone(place / CHECKSUMS, lambda file: file.write("".join(rest).encode()))


def _refuse_inputs(options: Any, folders: Iterable[Path], prefix: str) -> None:
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

    def parsed(text: str) -> dict[str, dict[str, Any]]:
        content = yaml.safe_load(text)
        return {name: dict(content[name]) for name in SECTIONS}

    return read_back(path, parsed, dict)
