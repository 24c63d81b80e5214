"""The page in Chromium: sorting, filters, the address, copying, widths, colours, print, and that it loads nothing."""

import csv
import io
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from results import page
from results.compare import Data, compare
from results.published import read_published
from tests.results.sample_data import mtil_records, provenance, runs_on_two_backbones, unsure

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")  # Debian's package
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")

PROTOCOLS = ("mtil-order1", "mtil-order2", "cil-cifar100-10x10", "cil-cifar100-20x5", "cil-imagenet_r-10x20",
             "cil-imagenet_r-20x10", "til-cifar100-10x10")  # fmt: skip
HOSTILE = "=Late & 100%_[x], -1"
# The rows shown of the table under a heading, settings too, as the texts of their cells
ROWS = """(anchor) => [...document.getElementById(anchor).closest("section").querySelectorAll("tbody tr")]
  .filter((row) => row.checkVisibility()).map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"""
# How many rows there are, and how many of them are shown
VISIBLE = """() => [...document.querySelectorAll("tbody tr")]
  .reduce(([all, shown], row) => [all + 1, shown + (row.offsetHeight > 0)], [0, 0])"""
# The least contrast of a text with what lies behind it
CONTRAST = """() => {
  const parsed = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parsed(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((parsed(colour)[3] ?? 1) === 1) return colour;
    }
  };
  const texts = [...document.body.querySelectorAll(":not(script)")].filter((element) => element.checkVisibility()
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return Math.min(...texts.map((element) => {
    const [low, high] = [getComputedStyle(element).color, behind(element)].map(light).sort((one, other) => one - other);
    return (high + .05) / (low + .05);
  }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def tab(browser) -> "Page":
    return browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a few protocols, with runs that match, differ and are too noisy."""
    runs = [*mtil_records("paper", 1), *mtil_records("paper", 1, HOSTILE), *runs_on_two_backbones("paper")]
    records = [*runs, *unsure().records]
    published = [entry for entry in read_published() if entry.protocol in PROTOCOLS]
    data = Data("paper", records, published, compare(published, records), provenance(records), [], [])
    (path,) = page.write(tmp_path_factory.mktemp("page"), data)
    return path.as_uri()


@pytest.fixture
def opened(tab, address) -> "Page":
    """The page, opened anew."""
    tab.set_viewport_size({"width": 1400, "height": 900})
    tab.emulate_media(media="screen", color_scheme="light")
    tab.goto("about:blank")
    tab.goto(address)
    return tab


def head(tab: "Page", anchor: str, name: str) -> "Locator":
    """The head of a column, by its group and title."""
    groups, heads = (tab.locator(f"section:has(#{anchor}) thead tr:{which}-child th") for which in ("first", "last"))
    spans = groups.evaluate_all("(cells) => cells.flatMap((cell) => Array(cell.colSpan).fill(cell.textContent))")
    names = [" ".join(words).strip() for words in zip(spans, heads.all_text_contents())]
    return heads.nth(names.index(name))


def by_setting(rows: list[list[str]]) -> dict[str, list[list[str]]]:
    """The rows below each setting's line."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        if len(row) == 1:
            found[row[0]] = []
        else:
            found[[*found][-1]].append(row)
    return found


@pytest.mark.parametrize(
    ("sheet", "column"),
    [
        ("mtil", "Published Last"),
        ("cil-cifar-100", "Difference Avg"),
        ("cifar-100--10-tasks", "Trainable parameters Published"),
    ],
)
def test_numbers_are_sorted_within_their_setting_and_empty_cells_come_last(opened, sheet, column):
    before, title = by_setting(opened.evaluate(ROWS, sheet)), head(opened, sheet, column)
    place = title.evaluate("(cell) => cell.cellIndex")
    assert len(before) == 2 and any(not row[place] for rows in before.values() for row in rows)
    for order, sign in (("descending", -1), ("ascending", 1)):
        title.get_by_role("button").focus()
        opened.keyboard.press("Enter")
        assert title.get_attribute("aria-sort") == order

        def key(row: list[str], sign: int = sign) -> float:
            return sign * float(row[place].replace(",", "")) if row[place] else float("inf")

        expected = {setting: sorted(rows, key=key) for setting, rows in before.items()}
        assert expected != before and by_setting(opened.evaluate(ROWS, sheet)) == expected
    title.get_by_role("button").click()
    assert title.get_attribute("aria-sort") is None and by_setting(opened.evaluate(ROWS, sheet)) == before


def test_names_are_sorted_as_text(opened):
    opened.locator("section:has(#runs) th").nth(2).get_by_role("button").click()
    column = [row[2] for row in opened.evaluate(ROWS, "runs")]
    assert column == sorted(column) and len({*column}) > 1


def test_filters_leave_what_fits_all_of_them(opened):
    everything = opened.evaluate(ROWS, "cifar-100--10-tasks")
    opened.get_by_label("Paper").select_option("InfLoRA")
    opened.get_by_label("Backbone").select_option("ViT-B/16 DINO-1K")
    assert by_setting(opened.evaluate(ROWS, "cifar-100--10-tasks")).keys() == {"10 tasks of 10 classes, class-IL"}
    opened.get_by_label("measured only").check()
    for anchor in ("cifar-100--10-tasks", "cil-cifar-100"):
        (heading, row) = opened.evaluate(ROWS, anchor)
        assert heading == ["10 tasks of 10 classes, class-IL"] and row[0] == "SeqLoRA\nViT-B/16 DINO-1K"
    assert opened.evaluate(ROWS, "mtil") == [] and not opened.locator("nav a[href='#mtil']").is_visible()
    assert opened.locator("output").inner_text().startswith("3 of ")  # on two sheets, and the run
    opened.get_by_role("button", name="Reset").click()
    assert opened.evaluate(ROWS, "cifar-100--10-tasks") == everything


def test_text_is_looked_for_in_methods_settings_and_small_letters(opened):
    opened.get_by_label("Method, setting or metric").fill("20 TASKS, prompt")
    found = by_setting(opened.evaluate(ROWS, "imagenet-r"))
    assert found.keys() == {"20 tasks of 10 classes, class-IL"}
    names = {row[0].split("\n")[0] for rows in found.values() for row in rows}
    assert {"DualPrompt", "VQ-Prompt"} <= names and all("prompt" in name.lower() for name in names)


def test_columns_that_the_rows_shown_leave_empty_are_not_shown(opened):
    published = head(opened, "cil-cifar-100", "Published Avg")
    assert published.bounding_box()["width"] > 20
    opened.get_by_label("Method, setting or metric").fill("SeqLoRA")
    opened.get_by_label("measured only").check()
    assert published.bounding_box()["width"] == 0
    assert head(opened, "cil-cifar-100", "Ours Avg").bounding_box()["width"] > 20


def test_the_address_brings_the_choice_back(opened):
    opened.locator("nav a[href='#cil-cifar-100']").click()
    opened.get_by_label("Method, setting or metric").fill("10 tasks")
    opened.get_by_label("Paper").select_option("InfLoRA")
    head(opened, "cil-cifar-100", "Published Last").get_by_role("button").click()
    playwright.expect(opened).to_have_url(re.compile("at=cil-cifar-100&"))  # the page's policy forbids wait_for_function
    shown = opened.evaluate(ROWS, "cil-cifar-100")
    again = opened.context.new_page()
    again.goto(opened.url)
    assert again.evaluate(ROWS, "cil-cifar-100") == shown
    assert again.get_by_label("Paper").input_value() == "InfLoRA"
    assert head(again, "cil-cifar-100", "Published Last").get_attribute("aria-sort") == "descending"
    assert abs(again.locator("#cil-cifar-100").bounding_box()["y"]) < 20
    again.locator("nav a[href='#cifar-100--10-tasks']").click()
    playwright.expect(again).to_have_url(re.compile(r"at=cifar-100--10-tasks&method=10\+tasks&paper=InfLoRA"))
    assert again.evaluate(ROWS, "cil-cifar-100") == shown
    again.close()


def test_an_address_of_another_page_hides_nothing(opened, address):
    opened.goto(f"{address}#paper=Nobody&sort.mtil=Published+Zeroth,down&colour=red")
    shown, total = opened.locator("output").inner_text().removesuffix(" rows").split(" of ")
    assert opened.get_by_label("Paper").evaluate("(field) => field.selectedIndex") == 0
    assert shown == total and opened.locator("[aria-sort]").count() == 0


def copied(tab: "Page", anchor: str, kind: str) -> str:
    tab.locator(f"section:has(#{anchor})").get_by_role("button", name=f"Copy as {kind}").click()
    tab.get_by_role("button", name="Copied").wait_for()
    return tab.evaluate("navigator.clipboard.readText()")


def test_csv_holds_what_is_shown_in_the_order_shown(opened):
    opened.get_by_label("Paper").select_option("InfLoRA")
    head(opened, "cil-cifar-100", "Published Last").get_by_role("button").click()
    titles = [head(opened, "cil-cifar-100", f"Published {name}") for name in ("Avg", "Last")]
    columns = [title.evaluate("(cell) => cell.cellIndex") for title in titles]
    rows = list(csv.DictReader(io.StringIO(copied(opened, "cil-cifar-100", "CSV"))))
    shown = by_setting(opened.evaluate(ROWS, "cil-cifar-100"))
    assert [(row["Setting"], row["Method"], row["Published Avg"], row["Published Last"]) for row in rows] == [
        (setting, row[0].split("\n")[0], *(row[column] for column in columns))
        for setting, each in shown.items()
        for row in each
    ]
    assert {"ViT-B/16 Sup-21K", "ViT-B/16 DINO-1K"} <= {row["Backbone"] for row in rows}
    assert "arXiv 2404.00228 Table 2" in {row["Source"] for row in rows}
    assert any(row["Published Last ± std"] for row in rows)


def test_a_name_in_csv_is_never_a_formula(opened):
    opened.get_by_label("Method, setting or metric").fill("order I, =Late")
    (row,) = csv.DictReader(io.StringIO(copied(opened, "mtil", "CSV")))
    assert row["Method"] == f"'{HOSTILE}" and row["Trainable parameters Ours"] == "1000000"


def test_latex_is_a_table_of_booktabs(opened):
    opened.get_by_label("Method, setting or metric").fill("order I, =Late")
    assert copied(opened, "mtil", "LaTeX").splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{llrrrlllrlr}",
        r"\toprule",
        r" &  & \multicolumn{3}{c}{Ours} & \multicolumn{3}{c}{Verdict} &  &  "
        r"& \multicolumn{1}{c}{Trainable parameters} \\",
        r"\cmidrule(lr){3-5} \cmidrule(lr){6-8} \cmidrule(lr){11-11}",
        r"Method & Backbone & Transfer & Avg & Last & Transfer & Avg & Last & Seeds & Number from & Ours \\",
        r"\midrule",
        r"\multicolumn{11}{l}{MTIL, order I} \\",
        r"=Late \& 100\%\_{[}x{]}, -1 & ViT-B/16 & 69.00 & 76.80 & 85.10 & no published value & no published value "
        r"& no published value & 1 & ours (MoE-Adapters) & 1,000,000 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_has_what_tells_rows_apart_and_the_notes_that_they_cite(opened):
    opened.get_by_label("Method, setting or metric").fill("InfLoRA (released logs)")
    lines = copied(opened, "cil-cifar-100", "LaTeX").splitlines()
    rows = [line.split(" & ") for line in lines if line.startswith("InfLoRA")]
    assert [row[:5] for row in rows] == [
        ["InfLoRA (released logs)", "ViT-B/16 Sup-21K", pair, "91.18", "0.35"]
        for pair in ("AvgACC, ACC", "AvgACC, ACC by task")
    ]
    assert "$-$1.18" in rows[0] and "{[}8{]}" in rows[0]
    notes = [line for line in lines if line.startswith("% [")]
    assert [note[:19] for note in notes] == ["% [8] liangyanshuo/", "% [9] mean and popu"]


def test_without_a_clipboard_the_old_way_copies(opened):
    opened.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    opened.get_by_label("Method, setting or metric").fill("SeqLoRA")
    opened.locator("section:has(#cil-cifar-100)").get_by_role("button", name="Copy as CSV").click()
    opened.get_by_label("Method, setting or metric").fill("")
    opened.get_by_label("Method, setting or metric").focus()
    opened.keyboard.press("Control+V")
    assert "SeqLoRA,ViT-B/16 DINO-1K" in opened.get_by_label("Method, setting or metric").input_value()


def test_without_scripts_every_row_is_shown(browser, address):
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(address)
        total, shown = tab.evaluate(VISIBLE)
        assert total == shown > 150
        assert not tab.locator("form").is_visible() and tab.get_by_role("button").count() == 0


def test_nothing_else_is_loaded(browser, address):
    with browser.new_context() as context:
        asked: list[str] = []
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.get_by_label("measured only").check()
        tab.locator("nav a").first.click()
        assert asked == [address]


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_only_tables_scroll_sideways_and_the_method_stays_in_sight(opened, width):
    opened.set_viewport_size({"width": width, "height": 900})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    box = opened.locator("section:has(#mtil) .scroll")
    box.evaluate("(box) => { box.scrollLeft = 10000 }")
    assert box.evaluate("(box) => box.scrollLeft") > 0
    for cell in (box.locator("td.name").first, box.locator("thead th.name")):
        assert abs(cell.bounding_box()["x"] - box.bounding_box()["x"]) < 3
    nav, main = opened.locator("nav").bounding_box(), opened.locator("main").bounding_box()
    assert (nav["x"] + nav["width"] <= main["x"]) == (width == 1400)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_legible(opened, scheme):
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate(CONTRAST) >= 4.5
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_print_has_all_rows_and_no_controls(opened):
    opened.get_by_label("Paper").select_option("ALTA")
    opened.emulate_media(media="print", color_scheme="dark")
    total, shown = opened.evaluate(VISIBLE)
    assert total == shown > 150
    for control in ("form", "nav", ".tools"):
        assert not opened.locator(control).first.is_visible()
    breaks = opened.locator("section").evaluate_all("(each) => each.map((one) => getComputedStyle(one).breakBefore)")
    assert {*breaks} == {"page"}
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
