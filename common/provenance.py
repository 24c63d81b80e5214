"""Which code on which machine makes a run's numbers."""

import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache  # of the code that this process has read; git would be asked at every record line
def commit() -> str:
    """The project's git commit, '-dirty' appended when files differ from it; 'unknown' outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def provenance() -> dict[str, Any]:
    """Command, commit, versions and processor of this process."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "command": " ".join(sys.orig_argv),
        "commit": commit(),
        "versions": versions,
        "machine": platform.processor() or platform.machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
