"""The workbook, read back: sheets, types, formats, colours, panes; converted by LibreOffice where it is installed."""

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from openpyxl import Workbook, load_workbook
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from results import labels, spreadsheet
from results.cells import VERDICT_COLOURS, put
from results.compare import VERDICTS, Data
from results.spreadsheet import HEAD_ROW
from tests.results.sample_data import HOSTILE, METHODS, build, hostile, runs_of_many_methods, sample, unsure


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workbook]:
    """The workbook of each scale, and of no run at all, read back from disk."""
    cases = {"paper": sample("paper"), "mini": sample("mini"), "not run": build("paper", []),
             "empty": Data("paper", [], [], [], [], [], []), "hostile": hostile("paper"), "unsure": unsure()}  # fmt: skip
    found = {}
    for name, data in cases.items():
        (path,) = spreadsheet.write(tmp_path_factory.mktemp("book"), data)
        assert path.name == ("results-mini.xlsx" if name == "mini" else "results.xlsx")
        found[name] = load_workbook(path)
    return found


def heads(sheet: Worksheet) -> list[tuple[str, str]]:
    """(group, head) of each column; a group's name stands in the first of its merged cells."""
    groups, names = [], {}
    for merged in sheet.merged_cells.ranges:
        for column in range(merged.min_col, merged.max_col + 1):
            names[column] = sheet.cell(merged.min_row, merged.min_col).value
    for column in range(1, sheet.max_column + 1):
        group = names.get(column, sheet.cell(HEAD_ROW - 1, column).value) or ""
        groups.append((group, sheet.cell(HEAD_ROW, column).value))
    return groups


def row_of(sheet: Worksheet, **wanted: str) -> dict[tuple[str, str], object]:
    """The cells of the only row whose columns (by head) have these values."""
    titles = heads(sheet)
    rows = []
    for row in sheet.iter_rows(min_row=HEAD_ROW + 1):
        by_head = {title: cell for (_, title), cell in zip(reversed(titles), reversed(row))}
        if all(by_head[title].value == value for title, value in wanted.items()):
            rows.append(dict(zip(titles, row)))
    assert len(rows) == 1
    return rows[0]


def test_sheets_of_paper_scale(books):
    families = [name for name, _, _ in labels.SHEETS if name not in labels.UNPUBLISHED]
    expected = ["Overview", "CIFAR-100, 10 tasks", "MTIL", *families, "Accuracy matrices", "Published matrices", "Runs"]
    assert books["paper"].sheetnames == expected
    assert all(len(name) <= 31 and not set(name) & set("[]:*?/\\") for name in expected)


def test_miniature_shows_measured_numbers_only(books):
    book = books["mini"]
    assert book.sheetnames == ["Overview", "Characters, 10 tasks", "MTIL", "MTIL order 1", "CIL CIFAR-100",
                               "Accuracy matrices", "Runs"]  # fmt: skip
    assert "MINIATURE" in book["Overview"]["A1"].value and "MINIATURE" in book["MTIL order 1"]["A1"].value
    for name in ("Characters, 10 tasks", "MTIL", "MTIL order 1", "CIL CIFAR-100"):
        words = {word.lower() for pair in heads(book[name]) for word in pair if word}
        assert not {word for word in words if "published" in word or "difference" in word or "verdict" in word}


def test_measured_beside_published(books):
    row = row_of(books["paper"]["MTIL order 1"], Method="MoE-Adapters", Metric="Last")
    assert row["Mean", "Published"].value == 85.0 and row["Mean", "Published"].number_format == "0.0"
    assert row["Mean", "Ours"].value == pytest.approx(85.2) and row["Mean", "± std"].value == pytest.approx(0.1)
    assert row["Mean", "Seeds"].value == 3 and row["Mean", "Difference"].value == pytest.approx(0.2)
    assert row["Mean", "Verdict"].value == "matches"
    assert row["Published, by data set", "Aircraft"].value == 49.8
    assert row["Ours, by data set", "Aircraft"].value == pytest.approx(50.2)
    assert row["Difference, by data set", "Aircraft"].value == pytest.approx(0.4)


def test_every_method_of_mtil_is_one_row():
    book = spreadsheet.workbook(build("mini", runs_of_many_methods()))
    assert book.sheetnames == ["Overview", "MTIL", "MTIL order 1", "Accuracy matrices", "Runs"]
    table, names = book["MTIL"], ("Setting", "Method", "Transfer", "Avg", "Last", "Seeds")
    places = [[title for _, title in heads(table)].index(name) for name in names]
    rows = [[row[place].value for place in places] for row in table.iter_rows(min_row=HEAD_ROW + 1)]
    assert [row[:2] for row in rows] == [["MTIL, order I", name] for name in ("Zero-shot CLIP", *METHODS)]
    assert [row[2:] for row in rows] == [
        pytest.approx([62.1, 60.1, 60.1, 1]),
        *[pytest.approx([69.0, 76.8, 85.1, 1])] * len(METHODS),
    ]


def test_every_method_of_mtil_is_beside_its_published_row(books):
    row = row_of(books["paper"]["MTIL"], Setting="MTIL, order I", Method="MoE-Adapters")
    assert [row["Published", name].value for name in ("Transfer", "Avg", "Last")] == [68.9, 76.7, 85.0]
    assert [row["Ours", name].value for name in ("Transfer", "Avg", "Last")] == pytest.approx([69.1, 76.9, 85.2])
    assert {row["Verdict", name].value for name in ("Transfer", "Avg", "Last")} == {"matches"}


def test_differing_number_is_coloured_and_signed(books):
    row = row_of(books["paper"]["CIFAR-100, 10 tasks"], Method="InfLoRA", **{"Reported as": "AvgACC, ACC"})
    assert row["Published", "Last"].value == 86.51 and row["Ours", "Last"].value == pytest.approx(81.4)
    difference = row["Difference", "Last"]
    assert difference.value == pytest.approx(-5.11) and difference.number_format.startswith("+0.00;-0.00")
    assert difference.fill.fgColor.rgb.endswith(VERDICT_COLOURS["differs"][0])
    assert row["Verdict", "Last"].value == "differs"
    assert row["Trainable parameters", "Published"].value == 192010
    assert row["Trainable parameters", "Ours"].value == 1_000_000


def test_each_spread_stands_behind_its_own_number(books):
    sheet = books["paper"]["CIFAR-100, 10 tasks"]
    titles = heads(sheet)
    method = [title for _, title in titles].index("Method")
    rows = list(sheet.iter_rows(min_row=HEAD_ROW + 1, values_only=True))
    (row,) = [row for row in rows if row[method] == "InfLoRA" and "AvgACC, ACC" in row]
    found = {}
    for place, (group, title) in enumerate(titles):
        if title in ("Avg", "Last") and group in ("Published", "Ours"):
            assert titles[place + 1] == (group, "± std")
            found[group, title] = row[place : place + 2]
    assert found["Published", "Last"] == (86.51, 0.73) and found["Published", "Avg"] == (91.70, 0.32)
    assert found["Ours", "Last"] == pytest.approx((81.4, 0.2))  # 81.2, 81.4, 81.6
    assert found["Ours", "Avg"] == pytest.approx((90.0, 0.0))


def test_cross_paper_sheet_has_every_paper(books):
    sheet = books["paper"]["CIFAR-100, 10 tasks"]
    column = [title for _, title in heads(sheet)].index("Number from") + 1
    printers = {sheet.cell(row, column).value for row in range(HEAD_ROW + 1, sheet.max_row + 1)}
    assert printers == {"ZSCL", "MoE-Adapters", "InfLoRA", "VQ-Prompt", "Papers with Code", "HyPro", "LibContinual",
                        "LoRA-DRS", "VPT-NSP2", "counted here"}  # fmt: skip
    assert row_of(sheet, Method="ZSCL")["", "Number from"].value == "counted here"
    assert row_of(sheet, Method="ZSCL")["Trainable parameters", "Published"].value == 149620736


def test_both_sources_of_a_number_stand_beside_the_run(books):
    for name, avg, last in (("InfLoRA", 91.70, 86.51), ("InfLoRA (released logs)", 91.18, 86.33)):
        row = row_of(books["paper"]["CIFAR-100, 10 tasks"], Method=name, **{"Reported as": "AvgACC, ACC"})
        assert [row["Published", title].value for title in ("Avg", "Last")] == [avg, last]
        assert [row["Ours", title].value for title in ("Avg", "Last")] == pytest.approx([90.0, 81.4])
        assert row["Difference", "Last"].value == pytest.approx(81.4 - last)


def test_what_cannot_be_told_says_why(books):
    sheet = books["unsure"]["CIFAR-100, 10 tasks"]
    row = row_of(sheet, Method="InfLoRA", **{"Reported as": "AvgACC, ACC"})
    assert row["Ours", "Last"].value == pytest.approx(86.4)  # 81.2, 101.4 and 76.6: 2 * 13.2 / sqrt(3) = 15.2
    assert row["Verdict", "Last"].value == "too noisy" and row["Verdict", "Avg"].value == "differs"
    row = row_of(sheet, Method="ALTA", Backbone="RN50", Setting="10 tasks of 10 classes, task-IL")
    assert row["Verdict", "Last"].value == "setting not stated" and row["", "Note"].value.startswith("setting not")
    assert row["Difference", "Last"].value == pytest.approx(83.9 - 83.87)
    told = {row[0].value: row[1:3] for row in books["unsure"]["Overview"].iter_rows() if row[0].value in VERDICTS}
    assert [cell.value for cell in told["setting not stated"]][1] == 1
    assert "1.5" in told["too noisy"][0].value and told["too noisy"][1].value == 2  # in print, and in the logs


# How each kind of colour blindness sees linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)
SEEN = {
    "by all cones": np.eye(3),
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "without blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an RRGGBB colour as an eye sees it."""
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(seen @ linear, 0, 1) / [0.9505, 1.0, 1.089])  # light colours: no linear part
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", SEEN)
def test_no_two_verdicts_look_alike_to_any_eye(eye: str) -> None:
    backgrounds = {name: lab(background, np.array(SEEN[eye])) for name, (background, _) in VERDICT_COLOURS.items()}
    assert set(backgrounds) == set(VERDICTS)
    for (name, one), (other, two) in itertools.combinations(backgrounds.items(), 2):
        assert np.linalg.norm(one - two) > 10, f"{name} and {other}"  # 2.3 is just noticeable


@pytest.mark.parametrize("name", ["paper", "not run", "hostile", "unsure"])
def test_verdict_cells_carry_their_colour(books, name):
    seen = set()
    for sheet in books[name].worksheets[1:-3]:
        places = [place for place, (group, title) in enumerate(heads(sheet), 1) if "Verdict" in (group, title)]
        for row in range(HEAD_ROW + 1, sheet.max_row + 1):
            for place in places:
                cell = sheet.cell(row, place)
                if cell.value is not None:
                    assert cell.fill.fgColor.rgb.endswith(VERDICT_COLOURS[cell.value][0])
                    seen.add(cell.value)
    assert seen <= set(VERDICTS) and "not run" in seen
    assert name == "paper" or "matches" not in seen
    assert {"too noisy", "setting not stated"} <= seen or name != "unsure"


@pytest.mark.parametrize("name", ["paper", "mini", "not run", "empty", "hostile"])
def test_no_formula_and_numbers_are_numbers(books, name):
    for sheet in books[name].worksheets:
        for row in sheet.iter_rows():
            for cell in row:
                assert cell.data_type in ("n", "s")
                if isinstance(cell.value, float):
                    assert math.isfinite(cell.value) and cell.number_format != "General"
                elif isinstance(cell.value, str) and cell.value.strip():
                    assert not cell.value.replace(".", "", 1).replace("-", "", 1).isdigit()


def test_method_and_backbone_are_neighbours(books):
    for name, book in books.items():
        for sheet in book.worksheets[1:]:
            titles = [cell.value for cell in sheet[4 if sheet.title == "Runs" else HEAD_ROW]]
            if "Method" in titles:
                assert titles[titles.index("Method") + 1] == "Backbone", (name, sheet.title)


def test_a_row_that_was_only_measured_names_the_program(books):
    row = row_of(books["mini"]["CIL CIFAR-100"], Method="InfLoRA")
    assert row["", "Number from"].value == "ours (InfLoRA)"


def test_panes_widths_and_filters(books):
    for sheet in books["paper"].worksheets:
        assert sheet.freeze_panes
        used = [get_column_letter(column) for column in range(1, sheet.max_column + 1)]
        assert all(letter in sheet.column_dimensions for letter in used)
        assert sheet.page_setup.orientation == "landscape"
    table = books["paper"]["MTIL order 1"]
    assert table.freeze_panes == "D6" and table.auto_filter.ref.startswith("A5:")
    assert "E6" > table.freeze_panes and table.print_title_rows == "$4:$5"


def test_a_name_that_looks_like_a_formula_stays_text(books):
    cells = [cell for sheet in books["hostile"].worksheets for row in sheet.iter_rows() for cell in row
             if isinstance(cell.value, str) and cell.value.startswith("=")]  # fmt: skip
    assert len({cell.parent.title for cell in cells}) >= 3
    assert all(cell.data_type == "s" and cell.quotePrefix for cell in cells)
    assert HOSTILE in {cell.value for cell in cells}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "#N/A", "1e5", "2024-01-01", "\x07bell"])
def test_any_text_is_written_literally(tmp_path, text):
    book = Workbook()
    put(book.active, 1, 1, text)
    book.save(tmp_path / "text.xlsx")
    cell = load_workbook(tmp_path / "text.xlsx").active["A1"]
    assert cell.data_type == "s" and cell.value == text.replace("\x07", "")


@pytest.mark.parametrize("number", [math.nan, math.inf, None])
def test_what_is_no_number_is_left_empty(number):
    assert put(Workbook().active, 1, 1, number).value is None


def test_published_and_measured_share_no_column(books):
    for sheet in books["paper"].worksheets[1:-3]:
        for group, title in heads(sheet):
            words = f"{group} {title}"
            assert not ("Published" in words and "Ours" in words)


def test_matrices_are_coloured_with_the_learned_set_framed(books):
    sheet = books["paper"]["Accuracy matrices"]
    assert sheet["A4"].value.startswith("MoE-Adapters") and sheet["A7"].value == "before any task"
    assert [sheet.cell(8, column).value for column in (1, 2)] == ["Aircraft", pytest.approx(50.1)]
    assert sheet["B8"].border.left.style == "medium" and sheet["C8"].border.left.style is None
    areas = [str(area.sqref) for area in sheet.conditional_formatting]
    assert "B7:L18" in areas
    assert len(books["paper"]["Published matrices"].conditional_formatting) == 14  # ZSCL's seven methods, two orders


def test_runs_and_skipped_lines_are_listed(books):
    values = [[cell.value for cell in row] for row in books["paper"]["Runs"].iter_rows(min_row=4)]
    header, first = values[0], dict(zip(values[0], values[1]))
    assert {"Command", "Commit", "Versions", "Device", "Seed", "Seconds", "Peak memory (MiB)"} <= set(header)
    assert first["Seconds"] == 1234.5 and first["Seed"] == 1 and first["Versions"] == "python 3.11, torch 2.6"
    assert [7, "value is not a finite number", "runs/x/record.jsonl"] in [row[:3] for row in values]


@pytest.mark.parametrize("name", ["not run", "empty"])
def test_without_runs_every_sheet_says_so(books, name):
    book = books[name]
    assert "Not run" in book["Overview"]["A4"].value
    for sheet in book.worksheets[1:-3]:
        assert "Not run" in sheet["A3"].value
    assert "Not run" in book["Accuracy matrices"]["A4"].value and "Not run" in book["Runs"]["A2"].value


def test_overview_counts_the_verdicts(books):
    data = sample("paper")
    told = {row[0].value: row[2].value for row in books["paper"]["Overview"].iter_rows() if row[0].value in VERDICTS}
    assert told == {name: sum(item.verdict == name for item in data.comparisons) for name in VERDICTS}
    assert told["matches"] > 0 and told["differs"] > 0


@pytest.mark.skipif(shutil.which("soffice") is None, reason="LibreOffice is not installed")
@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_libreoffice_reads_it(tmp_path: Path, scale: str):
    (path,) = spreadsheet.write(tmp_path, sample(scale))
    profile = f"-env:UserInstallation=file://{tmp_path}/profile"
    command = ["soffice", profile, "--headless", "--convert-to", "pdf", "--outdir", tmp_path, path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    pdf = path.with_suffix(".pdf")
    assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 10_000
