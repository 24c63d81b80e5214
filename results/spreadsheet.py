"""results.xlsx (results-mini.xlsx): a front sheet that says how to read it, and a sheet for every table."""

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from openpyxl import Workbook
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from common.files import atomic_write
from results import cells, labels
from results.cells import put
from results.collect import Provenance
from results.compare import VERDICTS, AccuracyMatrix, Data, matrices, published_matrices
from results.records import Problem
from results.tables import METRIC, NAME, Column, Row, Table, tables

Contents = list[tuple[str, str, Table | None]]  # title of a sheet, description, its table if it has one
FRONT, MATRICES, PUBLISHED_MATRICES, RUNS = "Overview", "Accuracy matrices", "Published matrices", "Runs"
WIDTHS = {"integer": 11, "verdict": 17, "source": 44}
FONTS = {"name": cells.BOLD, "code": cells.SMALL, "source": cells.SMALL}
NUMBER_WIDTH = 9.5
HEAD_ROW = 5  # of a table sheet: title, description, remark, groups, heads
OURS = "Ours is the mean over seeds, with the standard deviation (n - 1) and the number of seeds; one seed has none."
METRICS = (
    "Transfer, Avg, Last (MTIL, X-TAIL): accuracy on a data set before it is learned, averaged over all steps, and "
    "after the last one. Avg, Last (class-incremental): mean over the steps of the accuracy on the classes seen, and "
    "its end."
)
READING = {  # by whether published numbers are shown
    True: (
        "Published and measured numbers stand in columns of their own. A number is a percentage unless its head says "
        "otherwise; nothing is rounded in the cells, only in what they show.",
        OURS,
        "A verdict compares two numbers that are both there: nothing is called matching without a run behind it.",
        METRICS,
        "Source and Note stand at the right end of each table, outside the printed area.",
    ),
    False: (
        "These runs trained on the embedded miniature: small rendered images and tiny pre-trained networks. They show "
        "that a method runs from end to end. They say nothing about a paper's numbers, so none stand in this workbook.",
        OURS,
        METRICS,
    ),
}


def write(out: Path, data: Data) -> list[Path]:
    """Write the workbook into the folder `out`; its path as a list of one."""
    path = Path(out) / f"results{data.words.suffix}.xlsx"
    atomic_write(path, workbook(data).save)
    return [path]


def workbook(data: Data) -> Workbook:
    """The whole workbook in memory."""
    book = Workbook()
    book.properties.title, book.properties.creator = data.words.title, "python -m results"
    front = book.worksheets[0]
    front.title = FRONT
    contents: Contents = []
    for table in tables(data):
        _table_sheet(book.create_sheet(table.sheet), table, data.words)
        contents.append((table.sheet, table.description, table))
    title, absent = f"Accuracy matrices measured ({data.words.words})", "Not run: no accuracy matrix was measured."
    _matrix_sheet(book.create_sheet(MATRICES), title, matrices(data.records), absent)
    contents.append((MATRICES, "Accuracy on every data set after every task, as measured, coloured.", None))
    if data.words.compares:
        sheet = book.create_sheet(PUBLISHED_MATRICES)
        _matrix_sheet(sheet, "Accuracy matrices as published", published_matrices(data.published), "None was found.")
        contents.append((PUBLISHED_MATRICES, "The same matrices as published.", None))
    _runs_sheet(book.create_sheet(RUNS), data.provenance, data.problems)
    contents.append((RUNS, "What each run was: command, commit, versions, device, seed, seconds, peak memory.", None))
    _front_sheet(front, data, contents)
    return book


# The front sheet


def _front_sheet(sheet: Worksheet, data: Data, contents: Contents) -> None:
    cells.widths(sheet, [24, 66, 11, 11, 11, 11, 11, 18, 11, 20])
    sheet.sheet_view.showGridLines = False
    put(sheet, 1, 1, data.words.title, cells.TITLE)
    sheet.row_dimensions[1].height = 26
    put(sheet, 2, 1, f"Scale: {data.words.words}.", cells.BOLD)
    put(sheet, 3, 1, _counts(data))
    if not data.records:
        put(sheet, 4, 1, 'Not run: no measured number was found, so no verdict but "not run" is given.', cells.BOLD)
    last = _contents(sheet, 6, contents, VERDICTS if data.words.compares else ())
    if data.words.compares:
        last = _legend(sheet, last + 2, Counter(item.verdict for item in data.comparisons))
    put(sheet, last + 2, 1, "How to read it", cells.HEADING)
    for row, text in enumerate(READING[data.words.compares], last + 3):
        sheet.merge_cells(f"A{row}:H{row}")
        put(sheet, row, 1, text, alignment=cells.WRAP)
        sheet.row_dimensions[row].height = 14 * (1 + len(text) // 150) + 4
    sheet.freeze_panes = "A2"
    cells.for_print(sheet, "1:1")


def _counts(data: Data) -> str:
    published = f"{len(data.published):,} published numbers of {len({item.paper for item in data.published})} papers, "
    measured = f"{len(data.records):,} measured numbers of {labels.count(len(data.provenance), 'run')}"
    skipped = f"; {labels.count(len(data.problems), 'line')} of records left out (listed on the sheet {RUNS})"
    return f"Made from {published if data.words.compares else ''}{measured}{skipped if data.problems else ''}."


def _contents(sheet: Worksheet, first: int, contents: Contents, verdicts: tuple[str, ...]) -> int:
    """Write the list of sheets from the row `first` on; the last row written."""
    put(sheet, first, 1, "What is here", cells.HEADING)
    cells.head(sheet, first + 1, ["Sheet", "What it holds", "Methods", "Measured", *verdicts])
    sheet.row_dimensions[first + 1].height = 18
    for row, (name, description, table) in enumerate(contents, first + 2):
        put(sheet, row, 1, name, cells.LINK, alignment=cells.MIDDLE).hyperlink = f"#'{name}'!A1"
        put(sheet, row, 2, description, alignment=cells.WRAP)
        sheet.row_dimensions[row].height = 14 * (1 + len(description) // 76) + 3
        if table is None:
            continue
        methods = {(item.paper, item.method, item.backbone) for item in table.comparisons}
        put(sheet, row, 3, len(methods), alignment=cells.MIDDLE)
        put(sheet, row, 4, sum(item.mean is not None for item in table.comparisons), alignment=cells.MIDDLE)
        counts = Counter(item.verdict for item in table.comparisons)
        for column, verdict in enumerate(verdicts, 5):
            cell = put(sheet, row, column, counts[verdict], cells.SMALL, alignment=cells.MIDDLE)
            if counts[verdict]:
                cells.verdict(cell, verdict)
    return first + 1 + len(contents)


def _legend(sheet: Worksheet, first: int, counts: Counter[str]) -> int:
    """Write the verdicts, their meanings and counts from the row `first` on; the last row written."""
    put(sheet, first, 1, "Verdicts and their colours", cells.HEADING)
    cells.head(sheet, first + 1, ["Verdict", "Meaning", "Numbers"])
    for row, (name, meaning) in enumerate(cells.MEANINGS.items(), first + 2):
        cells.verdict(put(sheet, row, 1, name, alignment=cells.MIDDLE), name)
        put(sheet, row, 2, meaning, alignment=cells.WRAP)
        sheet.row_dimensions[row].height = 18
        put(sheet, row, 3, counts[name], alignment=cells.MIDDLE)
    return first + 1 + len(cells.MEANINGS)


# A sheet with a table


def _table_sheet(sheet: Worksheet, table: Table, scale: labels.Scale) -> None:
    sheet.sheet_properties.tabColor = cells.VERDICT_COLOURS["matches"][1] if table.is_run else "BFBFBF"
    put(sheet, 1, 1, table.sheet + scale.sheet_mark, cells.TITLE)
    put(sheet, 2, 1, table.description)
    put(sheet, 3, 1, table.states("Not run: no measured number was found for this sheet.", scale.compares), cells.SMALL)
    _heads(sheet, table.columns)
    _cells(sheet, table)
    cells.widths(sheet, [_width(column, table.rows) for column in table.columns])
    labelled = max(number for number, column in enumerate(table.columns, 1) if column in (NAME, METRIC))
    sheet.freeze_panes = f"{get_column_letter(labelled + 1)}{HEAD_ROW + 1}"
    if table.rows:
        sheet.auto_filter.ref = f"A{HEAD_ROW}:{get_column_letter(len(table.columns))}{HEAD_ROW + len(table.rows)}"
    printed = [position for position, column in enumerate(table.columns, 1) if column.kind not in ("code", "source")]
    sheet.print_area = f"A1:{get_column_letter(printed[-1])}{HEAD_ROW + max(1, len(table.rows))}"
    groups = [column.group for column in table.columns]
    breaks = {groups.index(column.group) for column in table.columns if column.detail and scale.compares}
    cells.for_print(sheet, f"{HEAD_ROW - 1}:{HEAD_ROW}", f"A:{get_column_letter(labelled)}", sorted(breaks))


def _cells(sheet: Worksheet, table: Table) -> None:
    formats, first = _formats(table), table.columns[0]
    for number, (before, row) in enumerate(zip([*table.rows[:1], *table.rows], table.rows), HEAD_ROW + 1):
        for position, column in enumerate(table.columns, 1):
            font = FONTS.get(column.kind, cells.PLAIN)
            cell = put(sheet, number, position, column.cell(row), font, formats.get(column.kind, ""))
            if verdict := column.verdict(row):
                cells.verdict(cell, verdict)
                cell.alignment = cells.CENTRE if column.kind == "verdict" else cells.MIDDLE
            if first.cell(before) != first.cell(row):
                cell.border = cells.ABOVE


def _heads(sheet: Worksheet, columns: list[Column]) -> None:
    cells.head(sheet, HEAD_ROW, [column.title for column in columns])
    row = HEAD_ROW - 1  # of the groups
    sheet.row_dimensions[row].height = sheet.row_dimensions[HEAD_ROW].height = 28
    for group, same in groupby(enumerate(columns, 1), key=lambda item: item[1].group):
        first, *others = [position for position, _ in same]
        if group:
            cells.head(sheet, row, [group], cells.GROUP_FILL, first)
        if group and others:
            sheet.merge_cells(f"{get_column_letter(first)}{row}:{get_column_letter(others[-1])}{row}")


def _formats(table: Table) -> dict[str, str]:
    """Number formats by kind of column; accuracies have as many decimals as the published ones of the table."""
    printed = [item.published for item in table.comparisons if item.published is not None]
    one_decimal = all(abs(value * 10 - round(value * 10)) < 1e-6 for value in printed)
    plain = "0.0" if table.sheet.startswith("MTIL") and one_decimal else "0.00"
    return {"published": plain, "measured": plain, "published_std": "0.00", "measured_std": "0.00",
            "difference": "+0.00;-0.00;0.00", "integer": "#,##0", "measured_count": "#,##0"}  # fmt: skip


def _width(column: Column, rows: list[Row]) -> float:
    if column.kind not in ("name", "text", "code"):
        return WIDTHS.get(column.kind, max(NUMBER_WIDTH, len(column.title) + 2))
    longest = max((len(str(column.cell(row) or "")) for row in rows), default=0)
    return min(52, max(10, longest * 1.05 + 1, len(column.title) + 3))


# Accuracy matrices


def _matrix_sheet(sheet: Worksheet, title: str, shown: list[AccuracyMatrix], absent: str) -> None:
    put(sheet, 1, 1, title, cells.TITLE)
    put(sheet, 2, 1, "Rows: after which task. Columns: data set tested, in %. Framed: the data set just learned.")
    put(sheet, 4, 1, "" if shown else absent)
    row = 4
    for matrix in shown:
        row = _matrix(sheet, row, matrix) + 2
    cells.widths(sheet, [26] + [12.5] * max((len(matrix.columns) for matrix in shown), default=0))
    sheet.freeze_panes = "B4"
    cells.for_print(sheet, "1:1")


def _matrix(sheet: Worksheet, first: int, matrix: AccuracyMatrix) -> int:
    """Write a matrix from the row `first` on; the row after its last."""
    seed = "" if matrix.seed is None else f", seed {matrix.seed}"
    name = f"{matrix.method} ({labels.paper(matrix.paper)}): {labels.protocol(matrix.protocol)}{seed}"
    put(sheet, first, 1, name, cells.HEADING)
    put(sheet, first + 1, 1, matrix.source, cells.SMALL)
    cells.head(sheet, first + 2, ["After", *matrix.columns])
    lines = [("before any task", matrix.zero_shot)] if matrix.zero_shot else []
    lines += zip(matrix.rows, matrix.values)
    for row, (label, values) in enumerate(lines, first + 3):
        put(sheet, row, 1, label, cells.BOLD)
        for column, (dataset, value) in enumerate(zip(matrix.columns, values), 2):
            cell = put(sheet, row, column, value, number_format="0.0")
            if label == dataset:
                cell.border, cell.font = cells.FRAME, cells.BOLD
    end = first + 3 + len(lines)
    area = f"B{first + 3}:{get_column_letter(len(matrix.columns) + 1)}{end - 1}"
    # from white to a blue on which black digits stay legible
    colours = ColorScaleRule("num", 0, "FFFFFF", "num", 50, "DCEAF5", "num", 100, "6FA8D6")
    sheet.conditional_formatting.add(area, colours)
    return end


# Provenance

RUN_COLUMNS: dict[str, tuple[float, str, Callable[[Provenance], object]]] = {  # width, number format, value
    "Paper": (14, "", lambda run: labels.paper(run.paper)),
    "Method": (22, "", lambda run: run.method),
    "Backbone": (14, "", lambda run: run.backbone),
    "Protocol": (26, "", lambda run: run.protocol),
    "Seed": (7, "0", lambda run: run.seed),
    "Seconds": (11, "#,##0.0", lambda run: run.seconds),
    "Peak memory (MiB)": (12, "#,##0", lambda run: run.peak_memory_mib),
    "Trainable parameters": (14, "", lambda run: run.trainable_parameters),
    "Numbers": (9, "", lambda run: run.records),
    "Device": (14, "", lambda run: run.device),
    "Machine": (12, "", lambda run: run.machine),
    "Commit": (48, "", lambda run: run.commit),
    "Started": (20, "", lambda run: run.started),
    "Versions": (40, "", lambda run: ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    "Command": (70, "", lambda run: run.command),
    "Folder": (40, "", lambda run: run.folder),
    "Note": (40, "", lambda run: run.remark),
}


def _runs_sheet(sheet: Worksheet, runs: list[Provenance], problems: list[Problem]) -> None:
    put(sheet, 1, 1, "Runs: what made the measured numbers", cells.TITLE)
    put(sheet, 2, 1, "" if runs else "Not run: no run was found.")
    cells.head(sheet, 4, [*RUN_COLUMNS])
    sheet.row_dimensions[4].height = 44
    cells.widths(sheet, [width for width, _, _ in RUN_COLUMNS.values()])
    sheet.freeze_panes = "C5"
    for row, run in enumerate(runs, 5):
        for column, (_, number_format, cell) in enumerate(RUN_COLUMNS.values(), 1):
            put(sheet, row, column, cell(run), number_format=number_format)
    if runs:
        sheet.auto_filter.ref = f"A4:{get_column_letter(len(RUN_COLUMNS))}{4 + len(runs)}"
    if problems:
        put(sheet, 7 + len(runs), 1, "Left out of every table", cells.HEADING)
        cells.head(sheet, 8 + len(runs), ["Line", "Reason", "File"])
    for row, problem in enumerate(problems, 9 + len(runs)):
        for column, value in enumerate((problem.line, problem.reason, problem.file), 1):
            put(sheet, row, column, value)
    sheet.print_area = f"A1:M{max(5, sheet.max_row)}"
    cells.for_print(sheet, "4:4", "A:B")
