"""`--help` of every entry point loads none of the libraries that only some runs need, and that take seconds to load."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import runpy, sys
for program in ("results", "zscl.main", "zscl.cil", "moe_adapters.main", "moe_adapters.cil", "inflora.main",
                "vq_prompt.run", "alta.main", "common.datasets"):
    sys.argv = [program, "--help"]
    try:
        runpy.run_module(program, run_name="__main__")
    except SystemExit as stop:
        heavy = {"torchvision", "timm", "pandas", "sklearn", "matplotlib", "openpyxl", "open_clip"} & sys.modules.keys()
        heavy |= {"torch"} & sys.modules.keys() if program == "results" else set()
        print(f"loaded by {program}, which ends with {stop.code}: {sorted(heavy)}")
"""


def test_help_loads_no_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded by ")]
    assert len(loaded) == 9 and done.stdout.count("usage: python -m ") == 9
    assert [line for line in loaded if not line.endswith(", which ends with 0: []")] == []


MODULES = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))  # importing one is an ImportError
for package in ("common", "results", "zscl", "moe_adapters", "inflora", "vq_prompt", "alta"):
    for module in pkgutil.walk_packages([package], package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("results.")]))
"""


def test_no_module_needs_what_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", MODULES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
