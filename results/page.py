"""report.html (report-mini.html): tables and figures on one page without other files, for phones and for print.

Its script sorts, filters and copies the tables; without it the page shows every row.
"""

import base64
import io
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from common.files import write_text
from results import figures, labels
from results.cells import MEANINGS, VERDICT_COLOURS
from results.compare import Data
from results.tables import BACKBONE, METRIC, NAME, ORIGIN, PARAMETER_GROUP, Cell, Column, Row, Table, method_of, tables

TEMPLATE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html.jinja", "page.js"))
COLOURS = 64  # of a picture on the page: a quarter of the file's size, with no difference to be seen
PICTURES = 3_000_000  # characters of all pictures together: the page of thousands of runs still opens at once


def write(out: Path, data: Data) -> list[Path]:
    """Write the page into `out`, with the figures that `figures.write` drew there; its path as a list of one."""
    path = Path(out) / f"report{data.words.suffix}.html"
    write_text(path, html(data, Path(out)))
    return [path]


def html(data: Data, out: Path) -> str:
    """The whole page as text."""
    from jinja2 import Environment, StrictUndefined

    shown = [_shown(table, data) for table in tables(data)]
    methods = {line["method"] for table in shown for line in table["lines"]} | {*map(method_of, data.provenance)}
    drawn, left_out = _pictures(data, out)
    measured = f"{len(data.records):,} measured numbers of {labels.count(len(data.provenance), 'run')}"
    skipped = f"; {len(data.problems):,} lines of records were left out (below)" if data.problems else ""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        data=data,
        title=data.words.title,
        colours=VERDICT_COLOURS,
        papers=len({item.paper for item in data.published}),
        measured=measured + skipped,
        names=[*(table["sheet"] for table in shown), *(["Figures"] if drawn else []), "Runs"],
        meanings=MEANINGS,
        verdicts=Counter(item.verdict for item in data.comparisons),
        tables=shown,
        figures=drawn,
        left_out=left_out,
        choices={
            "paper": sorted({labels.paper(paper) for _, paper, _, _ in methods}),
            "backbone": sorted({backbone for *_, backbone in methods} - {""}),
        },
        script=SCRIPT.read_text("utf-8"),
        anchor=lambda sheet: "".join(letter if letter.isalnum() else "-" for letter in sheet.lower()),
        kind=_kind,
        number=lambda value: "" if value is None else f"{value:,.0f}",
        protocol=labels.protocol,
        paper=labels.paper,
    )


def _pictures(data: Data, out: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """The figures drawn as (title, PNG in base64), heat maps last, and the files of those beyond PICTURES."""
    from PIL import Image

    planned = sorted(figures.plan(data), key=lambda figure: figure.name.startswith("matrix"))
    paths = {figure.path(out): figure.title.replace("\n", ". ") for figure in planned if figure.path(out).exists()}
    shown: list[tuple[str, str]] = []
    for path, title in paths.items():
        buffer = io.BytesIO()
        with Image.open(path) as image:
            few = image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(buffer, "png")
        picture = base64.b64encode(buffer.getvalue()).decode()
        if sum(len(text) for _, text in shown) + len(picture) > PICTURES:
            break
        shown.append((title, picture))
    return shown, [path.name for path in paths][len(shown) :]


def _shown(table: Table, data: Data) -> dict[str, Any]:
    """The table as the template takes it, with names first, then numbers, and fewer columns than the sheet.

    Columns by data set are left out, a setting becomes a line above its rows, sources and notes become numbered notes.
    What tells a row from its like stands in small letters in the method's cell, which never scrolls away.
    """
    first = table.columns[0]
    notes: dict[str, int] = {}
    by_setting = first is not NAME
    columns = [column for column in table.columns[by_setting:] if not column.detail and column.kind != "code"]
    columns = sorted((column for column in columns if column not in (METRIC, BACKBONE)), key=_rank)
    apart, lines = _apart(table), []
    for before, row in zip([None, *table.rows], table.rows):
        is_new = before is None or first.cell(before) != first.cell(row)
        lines.append({"setting": first.cell(row) if is_new and by_setting else "", "rule": is_new and not by_setting,
                      "cells": [_cell(column, row, notes) for column in columns], "apart": apart(row),
                      "method": row.method, "measured": any(item.seeds for item in row.numbers.values())})  # fmt: skip
    groups = [(group, len(list(same))) for group, same in groupby(columns, key=lambda column: column.group)]
    remark = table.states("Not run.", data.words.compares)
    return {"sheet": table.sheet, "description": table.description, "remark": remark, "columns": columns,
            "groups": groups, "lines": lines, "notes": [*notes]}  # fmt: skip


def _apart(table: Table) -> Callable[[Row], str]:
    """A function from a row to its metric and backbone and whatever else differs among rows that agree in all names."""
    names = [column for column in table.columns if column.kind == "name" or column is BACKBONE]
    others = [column for column in table.columns if column.kind == "text" and column is not BACKBONE]
    small = [column for column in (METRIC, BACKBONE) if column in table.columns]
    alike: dict[tuple[Cell, ...], list[Row]] = {}
    for row in table.rows:
        alike.setdefault(tuple(column.cell(row) for column in names), []).append(row)

    def apart(row: Row) -> str:
        like = alike[tuple(column.cell(row) for column in names)]
        differing = [column for column in others if len({column.cell(each) for each in like}) > 1]
        texts = [(column, column.cell(row)) for column in [*small, *differing]]
        return "; ".join(f"from {text}" if column is ORIGIN else str(text) for column, text in texts if text)

    return apart


def _rank(column: Column) -> int:
    """A sort key of columns: names, then accuracies and verdicts, then parameters and texts, then sources."""
    other = 2 if column.group == PARAMETER_GROUP else 1
    return {"name": 0, "text": 2, "source": 3}.get(column.kind, other)


def _kind(column: Column) -> str:
    """The class of a column's cells: name, text or number."""
    return {"name": "name", "text": "text", "source": "text", "verdict": "text"}.get(column.kind, "number")


def _cell(column: Column, row: Row, notes: dict[str, int]) -> tuple[str, str]:
    """The classes of a cell and its text; a source or note becomes the number under which it stands in `notes`."""
    text, verdict = column.text(row), column.verdict(row)
    if column.kind == "source" and text:
        return "text", f"[{notes.setdefault(text, len(notes) + 1)}]"
    kinds = [_kind(column), *([verdict.replace(" ", "-")] if verdict else [])]
    return " ".join(kinds) if kinds != ["number"] else "", text  # most cells are numbers and nothing else
