"""The stand-in for python that shows what a plan's scripts hand to it."""

import pytest


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stands for python: a script that prints its own process and its arguments."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text('#!/bin/sh\necho $$\nfor argument in "$@"; do echo "$argument"; done\n')
    path.chmod(0o755)
    return str(path)
