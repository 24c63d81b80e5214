"""The published data sets by name, as common/datasets/published.yaml has them; needs no torch, unlike that package."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from common.files import YAML_LOADER


@dataclass(frozen=True)
class Published:
    """A data set of published.yaml, where the fields are explained."""

    needs: list[str]
    train: int | None
    test: int | None
    classes: int
    how: str
    instead: list[str] | None = None
    each: list[int] | None = None


_CONTENT = (Path(__file__).parent / "datasets" / "published.yaml").read_bytes()
PUBLISHED = {name: Published(**entry) for name, entry in yaml.load(_CONTENT, YAML_LOADER).items()}
