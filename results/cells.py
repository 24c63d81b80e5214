"""Writing cells of a workbook: one look for all sheets, and text that can never be a formula."""

import math
from collections.abc import Sequence

from openpyxl.cell import Cell, MergedCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.pagebreak import Break
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from results.compare import DIFFERS, MATCHES, NO_PUBLISHED, NOT_RUN, NOT_STATED, TOO_NOISY

# Told apart under all common kinds of colour blindness
VERDICT_COLOURS = {  # background, text
    MATCHES: ("CDE6F7", "0B4F7D"),
    DIFFERS: ("FBD3A6", "7A3200"),
    TOO_NOISY: ("F0C040", "5A3E00"),
    NOT_STATED: ("B4C2BC", "2F3B36"),
    NOT_RUN: ("F0F0F0", "6A6A6A"),
    NO_PUBLISHED: ("D5BAF0", "53437A"),
}
MEANINGS = {
    MATCHES: "|mean - published| is at most max(0.5, 2 std / sqrt(n)), n the number of seeds",
    DIFFERS: "further away than that; the difference stands in the cell",
    TOO_NOISY: "no further away than that, but 2 std / sqrt(n) is more than 1.5: it takes more seeds to tell",
    NOT_STATED: "the source leaves open which setting it is of (the note says what): shown side by side, not judged",
    NOT_RUN: "published, but no run of it was found",
    NO_PUBLISHED: "measured, but no published number was found to compare with",
}
INK, FAINT, RULE, BAND = "1F2933", "6A6A6A", "C9D1D9", "24405C"
MAX_TEXT = 32767  # characters in a cell, a limit of the format

FACE = "Arial"  # or its metric twin: the same widths in every program
TITLE = Font(FACE, 16, bold=True, color=INK)
HEADING = Font(FACE, 12, bold=True, color=INK)
HEAD = Font(FACE, 10, bold=True, color="FFFFFF")
BOLD = Font(FACE, 10, bold=True, color=INK)
PLAIN = Font(FACE, 10, color=INK)
SMALL = Font(FACE, 9, color=FAINT)
LINK = Font(FACE, 10, color="0B4F7D", underline="single")
HEAD_FILL = PatternFill("solid", fgColor=BAND)
GROUP_FILL = PatternFill("solid", fgColor="3E6289")
VERDICT_FILLS = {name: PatternFill("solid", fgColor=back) for name, (back, _) in VERDICT_COLOURS.items()}
VERDICT_FONTS = {name: Font(FACE, 10, color=text) for name, (_, text) in VERDICT_COLOURS.items()}
THIN = Side(style="thin", color=RULE)
ABOVE = Border(top=THIN)
THICK = Side(style="medium", color=INK)
FRAME = Border(THICK, THICK, THICK, THICK)
CENTRE = Alignment(horizontal="center", vertical="center", wrap_text=True)
WRAP = Alignment(vertical="center", wrap_text=True)
MIDDLE = Alignment(vertical="center")


def put(
    sheet: Worksheet,
    row: int,
    column: int,
    value: object,
    font: Font = PLAIN,
    number_format: str = "",
    alignment: Alignment | None = None,
) -> Cell | MergedCell:
    """Write a number as a number, one that is not finite as an empty cell, anything else as literal text.

    Text is always of type "string", and marked as quoted where a program could take it for a formula on editing
    (= + - @, tab). Control characters, which the format forbids, are dropped.
    """
    cell = sheet.cell(row, column)
    if alignment:
        cell.alignment = alignment
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return cell
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cell.value = value
        cell.number_format = number_format or ("#,##0" if isinstance(value, int) else "0.00")
    else:
        text = ILLEGAL_CHARACTERS_RE.sub("", str(value))[:MAX_TEXT]
        cell.value = text
        cell.data_type = "s"  # openpyxl guesses "formula" from a leading "=" and "error" from "#N/A"
        if text.startswith(("=", "+", "-", "@", "\t")):
            cell.quotePrefix = True
    cell.font = font
    return cell


def verdict(cell: Cell | MergedCell, name: str) -> None:
    """Colour a cell by its verdict."""
    cell.fill, cell.font = VERDICT_FILLS[name], VERDICT_FONTS[name]


def head(sheet: Worksheet, row: int, titles: Sequence[str], fill: PatternFill = HEAD_FILL, start: int = 1) -> None:
    """Write a row of column heads from column `start` on."""
    for column, title in enumerate(titles, start):
        put(sheet, row, column, title, HEAD, alignment=CENTRE).fill = fill


def widths(sheet: Worksheet, values: Sequence[float]) -> None:
    """Set the column widths from the first column on, in characters."""
    for column, width in enumerate(values, 1):
        sheet.column_dimensions[get_column_letter(column)].width = width


def for_print(sheet: Worksheet, title_rows: str, label_columns: str = "", breaks: Sequence[int] = ()) -> None:
    """Print on landscape A4 with heads and labels on every page and page numbers below.

    Fits one page in width; with `breaks` a new page starts after each of these columns, scaled to 60 %.
    """
    sheet.page_setup.orientation, sheet.page_setup.paperSize = "landscape", sheet.PAPERSIZE_A4
    if breaks:
        sheet.page_setup.scale = 60
        for column in breaks:
            sheet.col_breaks.append(Break(id=column))
    else:
        sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
        sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.print_title_rows = title_rows
    sheet.print_title_cols = label_columns or None
    sheet.page_margins.left = sheet.page_margins.right = 0.4
    sheet.page_margins.top, sheet.page_margins.bottom, sheet.page_margins.footer = 0.6, 0.8, 0.4
    if (footer := sheet.oddFooter) is not None:
        footer.left.text, footer.right.text = "&A", "&P / &N"
