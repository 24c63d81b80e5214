"""Atomic writes, what a run reads back, its config.yaml, and the key of a line of record.jsonl. Needs no torch."""

import errno
import json
import os
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from common.errors import UserError
from common.processes import is_main_process, world_size

RECORD_KEY = ("protocol", "dataset", "after_task", "metric")  # one run may be evaluated under two protocols
RECORD_SCHEMA = 1  # the `schema` of every line; another number when a field changes its name or meaning
CHECKSUMS = "run-checksums"  # in a run's folder, of all that was ever written there
ENTRY = re.compile(r"([0-9a-f]{8})  (?!\.|.*/\.|(?:.*[./])?lock$)([^\0]{1,250})")  # a checksum, a name in the folder
TEMPORARY = re.compile(r"\.(.+)\.(\d{1,7})\.tmp")  # of a file's name and the process that writes it
PUT_BACK = "Put back a copy of it, or give another output folder"
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
SECTIONS = ("settings", "labels", "provenance")  # of config.yaml; a cut file lacks the last ones
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one where PyYAML was built with it: 10x faster


def metric_lines(
    dataset: str, after_task: int, values: Mapping[str, float], seconds: float | None = 0.0, **fields: Any
) -> list[dict[str, Any]]:
    """Record lines of a data set's metrics after `after_task` tasks; every line also has the `fields`."""
    shared = {"dataset": dataset, "after_task": after_task, "seconds": seconds} | fields
    return [shared | {"metric": metric, "value": value} for metric, value in values.items()]


def atomic_write(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at any instant either its old or its whole new content is on disk.

    Of several processes all must call it; the first writes, and the others wait for it. Raises UserError when the
    folder cannot be written or the disk is full; the old content then remains.
    """
    if world_size() == 1:
        return write_alone(path, write)
    from common.training.distributed import barrier  # imports torch, which `results` does without

    barrier()  # no process still has to check whether the file exists
    try:
        if is_main_process():
            write_alone(path, write)
    finally:
        barrier()


def write_alone(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """`atomic_write` by this process alone, without waiting for others. Makes the folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            _to_disk(file)
        note(path, temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise UserError(_why_not_written(path, error)) from error
    finally:
        with suppress(OSError):  # as the error has it that comes from here
            temporary.unlink(missing_ok=True)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder to disk, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path | None) -> str | None:
    """A `check` of options that name a file to write: a message, or None if it can be written or none is given."""
    if path is None or path.is_dir():
        return "a folder. Give a file's name." if path else None
    above = next(folder for folder in path.absolute().parents if folder.exists())
    return None if above.is_dir() and os.access(above, os.W_OK) else f"{above} is no folder that can be written."


def _why_not_written(path: Path, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause and not getattr(cause, "errno", None):  # torch.save raises a RuntimeError over the file's error
        cause = cause.__context__
    code = getattr(cause, "errno", None)
    if code in NO_SPACE:
        return (
            f"no space left while saving {path}. What was saved before is intact; "
            "free some space and give the same command again."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write {path}. Choose another output folder or change its permissions."
    return f"could not write {path}: {cause or error}. What was saved before is intact."


def home_path(path: Path | str, variable: str = "HOME") -> Path:
    """The path with the home folder in place of ~. Raises UserError, which names `variable`, where there is none."""
    expanded = os.path.expanduser(path)  # pathlib's raises an exception of its own
    if expanded.startswith("~"):
        raise UserError(f"{path}: this user has no home folder. Set {variable} to a folder that can be written.")
    return Path(expanded)


def write_text(path: Path | str, text: str) -> None:
    """Atomically write a text file in UTF-8."""
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


# Reading back


def checksums(folder: Path) -> dict[str, set[str]]:
    """Of every file that was written into a run's folder, the checksums of its contents so far; {} without a list.

    Contents older than the last count too: a list is written before the file, and a process may be killed in between.
    """
    found: dict[str, set[str]] = defaultdict(set)
    with suppress(OSError):
        for entry in filter(None, map(ENTRY.fullmatch, (folder / CHECKSUMS).read_text(errors="replace").split("\n"))):
            found[entry[2]].add(entry[1])
    return found


def _entry(path: Path) -> tuple[Path, str, set[str]]:
    """The list in a file's folder or, of VQ-Prompt's models, three above; the file's name and checksums there."""
    folder = next((folder for folder in path.parents[:4:3] if (folder / CHECKSUMS).is_file()), path.parent)
    name = path.relative_to(folder).as_posix()
    return folder / CHECKSUMS, name, checksums(folder).get(name, set())


def _sums(path: Path, written: Path) -> list[str]:
    """Checksums of the file `written` for `path`: one, or one for each line of a record, which may lose lines.

    Of YAML what it holds counts, comments do not; of a zip archive, as torch.save's, the sums that stand in it.
    """
    if zipfile.is_zipfile(written):
        with zipfile.ZipFile(written) as archive:
            parts = [repr([(item.filename, item.file_size, item.CRC) for item in archive.infolist()]).encode()]
    else:
        content = written.read_bytes()
        parts = content.splitlines() if path.suffix == ".jsonl" else [content]
        if path.suffix == ".yaml":
            with suppress(yaml.YAMLError):
                parts = [repr(yaml.load(content, YAML_LOADER)).encode(errors="surrogatepass")]
    return [f"{zlib.crc32(part):08x}" for part in parts]


def note(path: Path, written: Path) -> None:
    """Add what was written for `path` to its folder's list, if there is one: only appended to, for many at a time."""
    listing, name, known = _entry(path)
    if listing.is_file() and (new := [checksum for checksum in _sums(path, written) if checksum not in known]):
        with open(listing, "ab") as file:  # each on a line of its own, after a half one too
            file.write("".join(f"\n{checksum}  {name}\n" for checksum in new).encode())
            _to_disk(file)


def require_written(path: Path) -> None:
    """Raise UserError for a file that its folder's list has, but with other contents."""
    listing, _, known = _entry(path)
    if known and not known.issuperset(_sums(path, path)):
        raise UserError(
            f"{path} is not as it was written: damaged, changed by hand, or another file's copy. {PUT_BACK}; "
            f"to go on with it as it is, delete {listing}."
        )


def read_back(path: Path, parse: Callable[[str], Any], kind: type) -> Any:
    """What `parse` makes of a text file that a run wrote, of the type `kind`.

    Raises UserError if it was not written so.
    """
    try:
        parsed = parse(path.read_bytes().decode())
        if not isinstance(parsed, kind):
            raise TypeError(f"{type(parsed).__name__} instead of {kind.__name__}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} was not written by this program, or is damaged ({reason}). {PUT_BACK}.") from error
    require_written(path)
    return parsed


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The sections settings, labels, provenance of a run's config.yaml; {} for one that is missing or unreadable.

    What JSON cannot hold, such as a value that contains itself, was not written by a run either.
    """
    try:
        content = yaml.load(path.read_bytes(), YAML_LOADER)
        json.dumps(content, default=str)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        content = {}
    sections = content if isinstance(content, dict) else {}
    found = {name: sections.get(name) for name in SECTIONS}
    return {name: section if isinstance(section, dict) else {} for name, section in found.items()}


def held_lock(path: Path, busy: str) -> ExitStack:
    """A lock of this process on a file that exists, held until it is closed or no object like it lives any more.

    Raises UserError, with the text `busy`, while another process holds it. A file system without locks is a warning.
    """
    lock, held = FileLock(path, is_singleton=True, fallback_to_soft=False), ExitStack()
    try:
        lock.acquire(timeout=0)
        held.callback(lock.release)
    except Timeout as error:
        raise UserError(busy) from error
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{path.parent} has no locks ({error}): start no second process on it.", stacklevel=2)
    return held
