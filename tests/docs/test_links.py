"""What the documents point to is there: files and headings of links, scripts, modules, data sets."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.published_sets import PUBLISHED

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "docs/", "zscl/", "moe_adapters/", "inflora/", "vq_prompt/", "vq_prompt/it_prompt/", "alta/")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
SCRIPT = re.compile(r"\b(?:zscl|moe_adapters|inflora|vq_prompt|alta)/[\w./-]+?\.sh\b")
MODULE = re.compile(r"python -m ([\w.]+\w)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces."""
    headings = HEADING.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to(page: Path) -> None:
    text = page.read_text()
    for target in LINK.findall(text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target
    assert [script for script in SCRIPT.findall(text) if not (ROOT / script).is_file()] == []
    assert [module for module in set(MODULE.findall(text)) if find_spec(module) is None] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


def test_where_to_get_each_data_set_is_told() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "data.md").read_text().splitlines() if line.startswith("| ")]
    told = {name: row for row in rows for name in row[1].strip().split(", ")}
    for name, entry in PUBLISHED.items():
        places = [Path(path).parts[0] for path in entry.needs]
        assert any(place in told[name][4] or "/data` itself" in told[name][4] for place in places), name
        assert entry.train is None or f"{entry.train:,}" in told[name][2], name
