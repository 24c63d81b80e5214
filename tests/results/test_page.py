"""The page: whole in itself, escaped, well-formed, and honest about its scale."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from results import figures, page
from results.compare import Data, compare
from results.published import Published
from tests.results.sample_data import HOSTILE, build, hostile, mtil_records, runs_on_two_backbones, sample, unsure

VOID = {"meta", "img", "br", "input"}


class Tags(HTMLParser):
    """Collects tags with their attributes, and fails on one that is not closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pages = {}
    for scale in ("paper", "mini"):
        out = tmp_path_factory.mktemp(scale)
        if scale == "mini":
            figures.write(out, sample(scale))
        (path,) = page.write(out, sample(scale))
        assert path.name == ("report-mini.html" if scale == "mini" else "report.html")
        pages[scale] = path.read_text(encoding="utf-8")
    return pages


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_needs_nothing_but_itself(written, scale):
    tags = parse(written[scale])
    (policy,) = [each["content"] for tag, each in tags.found if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy
    assert [attributes for tag, attributes in tags.found if tag == "script"] == [{}]
    for tag, attributes in tags.found:
        assert tag not in ("link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in written[scale] and "@import" not in written[scale]


def test_figures_are_embedded_whole(written):
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', written["mini"])
    assert len(images) == len(figures.plan(sample("mini"))) > 1
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert all(attributes["alt"] for tag, attributes in parse(written["mini"]).found if tag == "img")


def test_of_many_figures_the_heat_maps_stay_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = [replace(line, protocol="mtil-order2") for line in mtil_records("mini", 1)]
    data = build("mini", [*mtil_records("mini", 1), *other])
    planned = figures.plan(data)
    for figure in planned:
        figure.path(tmp_path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "white").save(figure.path(tmp_path))

    def kinds(text: str) -> list[bool]:
        return ["after each task" in title for title in re.findall(r'base64,[^"]+" alt="([^"]*)"', text)]

    whole = page.html(data, tmp_path)
    assert kinds(whole) == [False] * (len(planned) - 2) + [True] * 2 and "beside it" not in whole
    length = len(re.search('base64,([^"]+)"', whole)[1])
    monkeypatch.setattr(page, "PICTURES", length * (len(planned) - 1) + 1)
    short = page.html(data, tmp_path)
    assert kinds(short) == kinds(whole)[:-1]
    (left_out,) = re.findall(r"beside it in the folder figures: ([^<]*)\.</p>", short)
    assert left_out == [figure.name for figure in planned if figure.name.startswith("matrix")][-1]


def test_links_lead_somewhere(written):
    found = parse(written["paper"]).found
    targets = {attributes["id"] for _, attributes in found if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in found if tag == "a"}
    assert links == targets and len(links) == 14


def test_phone_and_print(written):
    text = written["paper"]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media print" in text and "overflow-x: auto" in text
    tables, boxes = text.count("<table>"), text.count('<div class="scroll"><table>')
    assert tables == boxes > 5


def test_miniature_says_so_and_shows_no_published_number(written):
    text = written["mini"]
    assert re.search(r"<title>[^<]*MINIATURE</title>", text) and re.search(r"<h1>[^<]*MINIATURE</h1>", text)
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", text)
    assert "Ours" in heads and not {"Published", "Difference", "Verdict", "Source"} & set(heads)


def test_paper_scale_shows_difference_and_verdict(written):
    assert '<td class="number matches">+0.20</td>' in written["paper"]
    assert '<td class="number differs">-5.11</td>' in written["paper"]
    assert "MINIATURE" not in written["paper"]
    assert "runs/x/record.jsonl:7: value is not a finite number" in written["paper"]


def test_what_cannot_be_told_has_a_colour_and_a_meaning(tmp_path: Path):
    text = page.html(unsure(), tmp_path)
    assert '<td class="text too-noisy">too noisy</td>' in text and '<td class="number too-noisy">-0.11</td>' in text
    assert '<td class="number setting-not-stated">+0.03</td>' in text
    assert "2 std / sqrt(n) is more than 1.5" in text and "the source leaves open which setting" in text


def test_names_are_escaped(tmp_path: Path):
    text = page.html(hostile("paper"), tmp_path)
    assert "<b>" not in text
    assert HOSTILE in "\n".join(parse(text).text)


def test_rows_are_as_wide_as_their_head(written):
    for table in re.findall(r"<table>(.*?)</table>", written["paper"], re.DOTALL):
        widths = set()
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL):
            cells = re.findall(r"<t[hd](?=[ >])([^>]*)>", row)
            widths.add(sum(int((re.findall(r'colspan="(\d+)"', cell) or [1])[0]) for cell in cells))
        assert len(widths) == 1


@pytest.mark.parametrize("data", [build("paper", []), Data("mini", [], [], [], [], [], [])])
def test_without_runs_it_says_so(tmp_path: Path, data: Data):
    text = page.html(data, tmp_path)
    parse(text)
    assert "Not run" in text


def rows_shown(text: str) -> dict[str, list[tuple[str, str]]]:
    """Sheet -> of every row of its table the setting above it and all that stands in the method's cell."""
    shown = {}
    for section in text.split("<h2 id=")[1:]:
        sheet = re.search(r">([^<]*)</h2>", section)[1]
        setting, rows = "", []
        for row in re.findall(r"<tr[^>]*>\s*(<td.*?)</tr>", section, re.DOTALL):
            first = " ".join(parse(re.match(r"<td.*?</td>", row, re.DOTALL)[0]).text)
            if "colspan" in row:
                setting = first
            else:
                rows.append((setting, first))
        if rows and sheet != "Runs":
            shown[sheet] = rows
    return shown


def test_no_two_rows_look_alike_without_scrolling(tmp_path: Path):
    runs = [*mtil_records("paper", 1, "LwF"), *runs_on_two_backbones("paper")]
    for data in (build("paper", []), build("paper", runs), build("mini", runs_on_two_backbones("mini"))):
        shown = rows_shown(page.html(data, tmp_path))
        assert len(shown) >= (2 if data.scale == "mini" else 11)
        for sheet, rows in shown.items():
            assert not [row for row in rows if rows.count(row) > 1], sheet


def test_a_method_s_cell_tells_its_backbone_and_what_else_differs(tmp_path: Path):
    shown = rows_shown(page.html(build("paper", []), tmp_path))
    cells = {sheet: {first for _, first in rows} for sheet, rows in shown.items()}
    assert {"LwF ViT-B/16; from LEBA", "LwF ViT-B/16; from ZSCL", "DIKI ViT-B/16"} <= cells["MTIL"]
    assert {"LwF Last; ViT-B/16; from ZSCL", "DIKI Last; ViT-B/16"} <= cells["MTIL order 1"]
    assert {f"VQ-Prompt ViT-B/16 {weights}" for weights in ("Sup-1K", "iBOT-1K", "DINO-1K")} <= {
        first for setting, first in shown["ImageNet-R"] if setting == "10 tasks of 20 classes, class-IL"
    }


def test_two_figures_of_one_run_are_told_apart(tmp_path: Path):
    about = ("inflora", "cil-imagenet_r-10x20", "InfLoRA", "ViT-B/16 Sup-21K")
    rest = ("ImageNet_R", None, 75.0, None, "paper", "arXiv 2404.00228 Table 1", "")
    published = [Published(*about, metric, *rest) for metric in ("acc", "acc_macro")]
    data = Data("paper", [], published, compare(published, []), [], [], [])
    assert rows_shown(page.html(data, tmp_path))["ImageNet-R"] == [
        ("10 tasks of 20 classes, class-IL", "InfLoRA ViT-B/16 Sup-21K; AvgACC, ACC"),
        ("10 tasks of 20 classes, class-IL", "InfLoRA ViT-B/16 Sup-21K; AvgACC, ACC by task"),
    ]
