"""Atomic writes, the key of a line of record.jsonl, and reading config.yaml. Needs no torch."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from common.errors import UserError
from common.processes import is_main_process, world_size

RECORD_KEY = ("protocol", "dataset", "after_task", "metric")  # one run may be evaluated under two protocols
RECORD_SCHEMA = 1  # the `schema` of every line; another number when a field changes its name or meaning
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
    """`atomic_write` by this process alone, without waiting for others."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(_why_not_written(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _why_not_written(path: Path, error: Exception) -> str:
    code = getattr(error, "errno", None)
    # torch.save reports a failed write as a RuntimeError of its zip writer, without the errno
    if code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or (
        code is None and shutil.disk_usage(path.parent).free < 2**20
    ):
        return (
            f"no space left while saving {path}. What was saved before is intact; "
            "free some space and give the same command again."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write {path}. Choose another output folder or change its permissions."
    return f"could not write {path}: {error}. What was saved before is intact."


def write_text(path: Path | str, text: str) -> None:
    """Atomically write a text file in UTF-8."""
    atomic_write(path, lambda file: file.write(text.encode()))


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The sections settings, labels, provenance of a run's config.yaml; {} for one that is missing or unreadable."""
    try:
        content = yaml.load(path.read_bytes(), YAML_LOADER)
    except (OSError, yaml.YAMLError):
        content = {}
    sections = content if isinstance(content, dict) else {}
    found = {name: sections.get(name) for name in ("settings", "labels", "provenance")}
    return {name: section if isinstance(section, dict) else {} for name, section in found.items()}


def held_lock(path: Path, busy: str) -> FileLock:
    """A lock of this process on a file that exists, held as long as the returned object or one like it lives.

    Raises UserError, with the text `busy`, while another process holds it. A file system without locks is a warning.
    """
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(busy) from error
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{path.parent} has no locks ({error}): start no second process on it.", stacklevel=2)
    return lock
