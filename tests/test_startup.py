"""`--help` of every entry point loads none of the libraries that only some runs need, and that take seconds to load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torchvision", "timm", "pandas", "sklearn", "matplotlib", "openpyxl", "open_clip"}
PROGRAMS = [
    "zscl.main", "zscl.cil", "moe_adapters.main", "moe_adapters.cil", "inflora.main", "vq_prompt.run", "alta.main",
    "results", "common.datasets",
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_no_heavy_library(program: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "common.errors" in loaded  # the list of imports is what was read
    assert loaded & HEAVY == set()
