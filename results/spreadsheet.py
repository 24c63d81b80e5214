"""results.xlsx (results-mini.xlsx): every table on its sheet, opened by a front sheet that says how to read them."""

from collections import Counter
from pathlib import Path

from openpyxl import Workbook
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from common.files import atomic_write
from results import cells, labels
from results.cells import put
from results.collect import Problem, Provenance
from results.compare import VERDICTS, AccuracyMatrix, Data, matrices, published_matrices
from results.tables import Column, Table, tables

FRONT, MATRICES, PUBLISHED_MATRICES, RUNS = "Overview", "Accuracy matrices", "Published matrices", "Runs"
WIDTHS = {"integer": 11, "verdict": 17, "source": 44}
NUMBER_WIDTH = 9.5
HEAD_ROW = 5  # of a table sheet: title, about, remark, groups, heads
READING = (
    "Published and measured numbers stand in columns of their own. A number is a percentage unless its head says "
    "otherwise; nothing is rounded in the cells, only in what they show.",
    "Ours is the mean over seeds, with the standard deviation (n - 1) and the number of seeds; one seed has none.",
    "A verdict compares two numbers that are both there: nothing is called matching without a run behind it.",
    "Transfer, Avg, Last (MTIL): accuracy on a data set before it is learned, averaged over all steps, and after the "
    "last one. Avg, Last (class-incremental): mean over the steps of the accuracy on the classes seen, and its end.",
    "Source and Note stand at the right end of each table, outside the printed area.",
)
READING_MINI = (
    "These runs trained on the embedded miniature: small rendered images and tiny pre-trained networks. They show that "
    "a method runs from end to end. They say nothing about a paper's numbers, so none stand in this workbook.",
    "Ours is the mean over seeds, with the standard deviation (n - 1) and the number of seeds; one seed has none.",
    READING[3],
)


def write(out: Path, data: Data) -> list[Path]:
    """Write the workbook of data's scale into the folder `out`; the path of the file, as a list of one."""
    path = Path(out) / ("results-mini.xlsx" if data.scale == "mini" else "results.xlsx")
    book = workbook(data)
    atomic_write(path, book.save)
    return [path]


def workbook(data: Data) -> Workbook:
    """The whole workbook in memory."""
    book = Workbook()
    book.properties.title, book.properties.creator = _title(data), "python -m results"
    front = book.active
    front.title = FRONT
    shown = tables(data)
    for table in shown:
        _table_sheet(book.create_sheet(table.sheet), table, data.scale)
    _matrix_sheet(book.create_sheet(MATRICES), f"Accuracy matrices measured ({labels.scale(data.scale)})",
                  matrices(data.records))  # fmt: skip
    if data.scale == "paper":
        _matrix_sheet(book.create_sheet(PUBLISHED_MATRICES), "Accuracy matrices as published",
                      published_matrices(data.published))  # fmt: skip
    _runs_sheet(book.create_sheet(RUNS), data.provenance, data.problems)
    _front_sheet(front, data, shown)
    return book


def _title(data: Data) -> str:
    return "Continual learning results: MINIATURE" if data.scale == "mini" else "Continual learning results"


# The front sheet


def _front_sheet(sheet: Worksheet, data: Data, shown: list[Table]) -> None:
    cells.widths(sheet, [24, 66, 11, 11, 11, 11, 11, 20])
    sheet.sheet_view.showGridLines = False
    put(sheet, 1, 1, _title(data), cells.TITLE)
    sheet.row_dimensions[1].height = 26
    put(sheet, 2, 1, f"Scale: {labels.scale(data.scale)}.", cells.BOLD)
    put(sheet, 3, 1, _counts(data))
    if not data.records:
        put(sheet, 4, 1, 'Not run: no measured number was found, so no verdict but "not run" is given.', cells.BOLD)
    row = _contents(sheet, 6, data, shown)
    if data.scale == "paper":
        row = _legend(sheet, row + 2, Counter(item.verdict for item in data.comparisons))
    put(sheet, row + 2, 1, "How to read it", cells.HEADING)
    for row, text in enumerate(READING_MINI if data.scale == "mini" else READING, row + 3):
        sheet.merge_cells(start_row=row, start_column=1, end_row=row, end_column=8)
        put(sheet, row, 1, text).alignment = cells.WRAP
        sheet.row_dimensions[row].height = 14 * (1 + len(text) // 150) + 4
    sheet.freeze_panes = "A2"
    cells.for_print(sheet, "1:1")


def _counts(data: Data) -> str:
    published = f"{len(data.published):,} published numbers of {len({item.paper for item in data.published})} papers, "
    measured = f"{len(data.records):,} measured numbers of {labels.count(len(data.provenance), 'run')}"
    skipped = f"; {labels.count(len(data.problems), 'line')} of records left out (listed on the sheet {RUNS})"
    return f"Made from {published if data.scale == 'paper' else ''}{measured}{skipped if data.problems else ''}."


def _contents(sheet: Worksheet, row: int, data: Data, shown: list[Table]) -> int:
    """The list of sheets with what each holds; the last row written."""
    put(sheet, row, 1, "What is here", cells.HEADING)
    titles = ["Sheet", "What it holds", "Methods", "Measured"]
    titles += VERDICTS if data.scale == "paper" else []
    cells.head(sheet, row + 1, titles)
    sheet.row_dimensions[row + 1].height = 18
    for row, table in enumerate(shown, row + 2):
        _link(sheet, row, table.sheet)
        put(sheet, row, 2, table.about).alignment = cells.WRAP
        sheet.row_dimensions[row].height = 14 * (1 + len(table.about) // 76) + 3
        methods = {(item.paper, item.method, item.backbone) for item in table.comparisons}
        put(sheet, row, 3, len(methods)).alignment = cells.MIDDLE
        put(sheet, row, 4, sum(item.mean is not None for item in table.comparisons)).alignment = cells.MIDDLE
        verdicts = Counter(item.verdict for item in table.comparisons)
        for column, name in enumerate(VERDICTS if data.scale == "paper" else (), 5):
            cell = put(sheet, row, column, verdicts[name], cells.PLAIN if verdicts[name] else cells.SMALL)
            cell.alignment = cells.MIDDLE
            if verdicts[name]:
                cells.verdict(cell, name)
    others = [(MATRICES, "Accuracy on every data set after every task, as measured, coloured.")]
    if data.scale == "paper":
        others.append((PUBLISHED_MATRICES, "The same matrices as published."))
    others.append((RUNS, "What each run was: command, commit, versions, device, seed, seconds, peak memory."))
    for row, (name, about) in enumerate(others, row + 1):
        _link(sheet, row, name)
        put(sheet, row, 2, about).alignment = cells.WRAP
        sheet.row_dimensions[row].height = 14 * (1 + len(about) // 76) + 3
    return row


def _link(sheet: Worksheet, row: int, name: str) -> None:
    cell = put(sheet, row, 1, name)
    cell.hyperlink = f"#'{name}'!A1"
    cell.font, cell.alignment = cells.LINK, cells.MIDDLE


def _legend(sheet: Worksheet, row: int, counts: Counter[str]) -> int:
    put(sheet, row, 1, "Verdicts and their colours", cells.HEADING)
    cells.head(sheet, row + 1, ["Verdict", "Meaning", "Numbers"])
    for row, name in enumerate(VERDICTS, row + 2):
        swatch = put(sheet, row, 1, name)
        cells.verdict(swatch, name)
        swatch.alignment = cells.MIDDLE
        put(sheet, row, 2, cells.MEANINGS[name]).alignment = cells.WRAP
        sheet.row_dimensions[row].height = 18
        put(sheet, row, 3, counts[name]).alignment = cells.MIDDLE
    return row


# A sheet with a table


def _table_sheet(sheet: Worksheet, table: Table, scale: str) -> None:
    sheet.sheet_properties.tabColor = cells.VERDICT_COLOURS["matches"][1] if table.is_run else "BFBFBF"
    put(sheet, 1, 1, table.sheet + (" (MINIATURE)" if scale == "mini" else ""), cells.TITLE)
    put(sheet, 2, 1, table.about)
    put(sheet, 3, 1, _remark(table, scale), cells.SMALL)
    formats = _formats(table)
    _heads(sheet, table.columns)
    for row, (values, verdicts) in enumerate(zip(table.rows, table.verdicts), HEAD_ROW + 1):
        for column, (value, name) in enumerate(zip(values, verdicts), 1):
            kind = table.columns[column - 1].kind
            cell = put(sheet, row, column, value, cells.BOLD if kind == "name" else cells.PLAIN, formats.get(kind, ""))
            if name:
                cells.verdict(cell, name)
                cell.alignment = cells.CENTRE if kind == "verdict" else cells.MIDDLE
            elif kind in ("code", "source"):
                cell.font = cells.SMALL
            if row > HEAD_ROW + 1 and values[0] != table.rows[row - HEAD_ROW - 2][0]:
                cell.border = cells.ABOVE
    cells.widths(sheet, [_width(table, place) for place in range(len(table.columns))])
    labelled = sum(column.kind == "name" for column in table.columns[:2])
    sheet.freeze_panes = sheet.cell(HEAD_ROW + 1, labelled + 1)
    last = get_column_letter(len(table.columns))
    if table.rows:
        sheet.auto_filter.ref = f"A{HEAD_ROW}:{last}{HEAD_ROW + len(table.rows)}"
    printed = [place for place, column in enumerate(table.columns, 1) if column.kind not in ("code", "source")]
    sheet.print_area = f"A1:{get_column_letter(printed[-1])}{HEAD_ROW + max(1, len(table.rows))}"
    groups = [column.group for column in table.columns]
    breaks = [groups.index(column.group) for column in table.columns if column.detail] if scale == "paper" else []
    cells.for_print(sheet, f"{HEAD_ROW - 1}:{HEAD_ROW}", f"A:{get_column_letter(labelled)}", sorted({*breaks}))


def _remark(table: Table, scale: str) -> str:
    states = [] if table.is_run else ["Not run: no measured number was found for this sheet."]
    if not table.rows and scale == "paper":
        states.append("No published number either.")
    return " ".join([*states, table.remark]).strip()


def _heads(sheet: Worksheet, columns: list[Column]) -> None:
    cells.head(sheet, HEAD_ROW, [column.title for column in columns])
    sheet.row_dimensions[HEAD_ROW - 1].height, sheet.row_dimensions[HEAD_ROW].height = 28, 28
    start = 1
    for place, column in enumerate(columns, 1):
        is_last = place == len(columns) or columns[place].group != column.group
        if is_last and column.group:
            cells.head(sheet, HEAD_ROW - 1, [column.group], cells.GROUP_FILL, start)
            if place > start:
                sheet.merge_cells(start_row=HEAD_ROW - 1, start_column=start, end_row=HEAD_ROW - 1, end_column=place)
        start = place + 1 if is_last else start


def _formats(table: Table) -> dict[str, str]:
    """Number formats by kind of column: as many decimals as the papers print in this table."""
    printed = [item.published for item in table.comparisons if item.published is not None]
    plain = "0.0" if table.sheet.startswith("MTIL") and all(_has_one_decimal(value) for value in printed) else "0.00"
    return {"published": plain, "measured": plain, "published_std": "0.00", "measured_std": "0.00",
            "difference": "+0.00;-0.00;0.00", "integer": "#,##0"}  # fmt: skip


def _has_one_decimal(value: float) -> bool:
    return abs(value * 10 - round(value * 10)) < 1e-6


def _width(table: Table, place: int) -> float:
    column = table.columns[place]
    if column.kind not in ("name", "text", "code"):
        return WIDTHS.get(column.kind, max(NUMBER_WIDTH, len(column.title) + 2))
    longest = max((len(str(row[place] or "")) for row in table.rows), default=0)
    return min(52, max(10, longest * 1.05 + 1, len(column.title) + 3))


# Accuracy matrices


def _matrix_sheet(sheet: Worksheet, title: str, found: list[AccuracyMatrix]) -> None:
    put(sheet, 1, 1, title, cells.TITLE)
    put(sheet, 2, 1, "Rows: after which task. Columns: data set tested, in %. Framed: the data set just learned.")
    if not found:
        put(sheet, 4, 1, "Not run: no accuracy matrix was measured." if "measured" in title else "None was found.")
    row = 4
    for matrix in found:
        row = _matrix(sheet, row, matrix) + 2
    columns = max((len(matrix.columns) for matrix in found), default=0)
    cells.widths(sheet, [26] + [12.5] * columns)
    sheet.freeze_panes = "B4"
    cells.for_print(sheet, "1:1")


def _matrix(sheet: Worksheet, row: int, matrix: AccuracyMatrix) -> int:
    """Write one matrix below `row`; the row after its last."""
    seed = "" if matrix.seed is None else f", seed {matrix.seed}"
    name = f"{matrix.method} ({labels.paper(matrix.paper)}): {labels.protocol(matrix.protocol)}{seed}"
    put(sheet, row, 1, name, cells.HEADING)
    put(sheet, row + 1, 1, matrix.source, cells.SMALL)
    cells.head(sheet, row + 2, ["After", *matrix.columns])
    lines = [("before any task", matrix.zero_shot)] if matrix.zero_shot else []
    lines += list(zip(matrix.rows, matrix.values))
    first = row + 3
    for row, (label, values) in enumerate(lines, first):
        put(sheet, row, 1, label, cells.BOLD)
        for column, value in enumerate(values, 2):
            cell = put(sheet, row, column, value, number_format="0.0")
            if label == matrix.columns[column - 2]:
                cell.border, cell.font = cells.FRAME, cells.BOLD
    # from white to a blue on which black digits stay legible
    area = f"B{first}:{get_column_letter(len(matrix.columns) + 1)}{row}"
    scale = ColorScaleRule("num", 0, "FFFFFF", "num", 50, "DCEAF5", "num", 100, "6FA8D6")
    sheet.conditional_formatting.add(area, scale)
    return row + 1


# Provenance

RUN_COLUMNS = (
    ("Paper", 14), ("Method", 22), ("Protocol", 26), ("Backbone", 14), ("Seed", 7), ("Seconds", 11),
    ("Peak memory (MiB)", 12), ("Trainable parameters", 14), ("Numbers", 9), ("Device", 14), ("Machine", 12),
    ("Commit", 48), ("Started", 20), ("Versions", 40), ("Command", 70), ("Folder", 40),
)  # fmt: skip


def _runs_sheet(sheet: Worksheet, runs: list[Provenance], problems: list[Problem]) -> None:
    put(sheet, 1, 1, "Runs: what made the measured numbers", cells.TITLE)
    put(sheet, 2, 1, "" if runs else "Not run: no run was found.")
    cells.head(sheet, 4, [title for title, _ in RUN_COLUMNS])
    sheet.row_dimensions[4].height = 44
    cells.widths(sheet, [width for _, width in RUN_COLUMNS])
    sheet.freeze_panes = "C5"
    for row, run in enumerate(runs, 5):
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        values = [labels.paper(run.paper), run.method, run.protocol, run.backbone, run.seed, run.seconds,
                  run.peak_memory_mib, run.trainable_parameters, run.records, run.device, run.machine,
                  run.commit, run.started, versions, run.command, run.folder]  # fmt: skip
        for column, value in enumerate(values, 1):
            formats = {5: "0", 6: "#,##0.0", 7: "#,##0"}
            put(sheet, row, column, value, number_format=formats.get(column, ""))
    if runs:
        sheet.auto_filter.ref = f"A4:{get_column_letter(len(RUN_COLUMNS))}{4 + len(runs)}"
    if problems:
        row = 7 + len(runs)
        put(sheet, row, 1, "Left out of every table", cells.HEADING)
        cells.head(sheet, row + 1, ["Line", "Reason", "File"])
        for row, problem in enumerate(problems, row + 2):
            for column, value in enumerate((problem.line, problem.reason, problem.file), 1):
                put(sheet, row, column, value)
    sheet.print_area = f"A1:M{max(5, sheet.max_row)}"
    cells.for_print(sheet, "4:4", "A:B")
