from pathlib import Path

import pytest

from tests import fake_data


@pytest.fixture(scope="session")
def fake_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data location with all made-up data sets; tests must not change it."""
    root = tmp_path_factory.mktemp("fake_data")
    fake_data.write(root)
    return root
