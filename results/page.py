"""report.html (report-mini.html): tables and figures on one page that needs nothing else, on a phone and in print."""

import base64
from collections import Counter
from html import escape
from pathlib import Path

from common.files import write_text
from results import figures, labels
from results.cells import MEANINGS, VERDICT_COLOURS
from results.compare import VERDICTS, Data
from results.tables import PARAMETER_GROUP, Cell, Column, Table, tables

CLASSES = {name: name.replace(" ", "-") for name in VERDICTS}
STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif;
  color: #1f2933; background: #fff; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .3rem; border-top: 2px solid #24405c; padding-top: .8rem }
p { margin: .3rem 0 .8rem; max-width: 46rem }
a { color: #0b4f7d }
nav { columns: 15rem; margin: 1rem 0 }
nav a { display: block; padding: .15rem 0 }
.mini { background: #fdf3dc; border-left: .3rem solid #e69f00; padding: .6rem .8rem }
.faint { color: #5b6670; font-size: .85rem }
.scroll { overflow-x: auto; border: 1px solid #d5dce3; border-radius: .3rem }
table { border-collapse: collapse; font-size: .86rem; overflow-wrap: normal; font-variant-numeric: tabular-nums }
.scroll table { min-width: 100% }
th, td { padding: .28rem .55rem; text-align: right; white-space: nowrap }
th { background: #24405c; color: #fff; vertical-align: bottom }
thead tr:first-child th[colspan] { background: #3e6289; text-align: center; border-left: 1px solid #fff }
td { border-top: 1px solid #e6ebef }
td.text, th.text, td.name, th.name { text-align: left }
td.name { font-weight: 600 }
td.name:first-child, th.name:first-child { position: sticky; left: 0; min-width: 7.5rem; white-space: normal }
td.name:first-child { background: #fff }
@media (min-width: 60rem) { td.name:first-child { white-space: nowrap } }
tr.setting td { background: #eef2f6; text-align: left; max-width: none; font-weight: 600 }
tr.setting span { position: sticky; left: .55rem }
td.text.long { white-space: normal; min-width: 14rem }
tbody tr.rule td { border-top: 1px solid #8796a5 }
figure { margin: 1.2rem 0; max-width: 60rem; break-inside: avoid }
img { display: block; width: 100%; min-width: 34rem; height: auto }
ol { font-size: .8rem; color: #5b6670; padding-left: 1.6rem }
@media print {
  @page { size: A4 landscape; margin: 12mm }
  body { max-width: none; padding: 0; font-size: 10pt }
  nav { display: none }
  .scroll { overflow: visible; border: 0 }
  table { font-size: 7pt } th, td { padding: 1pt 3pt; white-space: normal }
  tr, img { break-inside: avoid } img { min-width: 0; max-height: 165mm; width: auto; max-width: 100% }
  h2 { break-after: avoid }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact }
}
"""


def write(out: Path, data: Data) -> list[Path]:
    """Write the page into `out`, with the figures that `figures.write` drew there; its path as a list of one."""
    path = Path(out) / ("report-mini.html" if data.scale == "mini" else "report.html")
    write_text(path, html(data, Path(out)))
    return [path]


def html(data: Data, out: Path) -> str:
    """The whole page as text."""
    title = "Continual learning results" + (": MINIATURE" if data.scale == "mini" else "")
    shown = tables(data)
    sections = [_section(table, data.scale) for table in shown]
    drawn = [figure for figure in figures.plan(data) if figure.path(out).exists()]
    content = [
        f"<h1>{title}</h1>",
        _intro(data),
        _navigation([table.sheet for table in shown], bool(drawn)),
        _legend(data) if data.scale == "paper" else "",
        *sections,
        _pictures(drawn, out),
        _runs(data),
    ]
    colours = "".join(
        f".{CLASSES[name]} {{ background: #{back}; color: #{text} }}\n"
        for name, (back, text) in VERDICT_COLOURS.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{colours}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in content if part)
        + "\n</body>\n</html>\n"
    )


def _anchor(sheet: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in sheet.lower())


def _intro(data: Data) -> str:
    measured = f"{len(data.records):,} measured numbers of {labels.count(len(data.provenance), 'run')}"
    if data.scale == "mini":
        return (
            '<p class="mini"><strong>Miniature.</strong> These runs trained on small rendered images with tiny '
            "pre-trained networks. They show that a method runs from end to end, and say nothing about a paper's "
            f"numbers; none stand on this page.</p>\n<p>Made from {measured}{_skipped(data)}.</p>"
        )
    papers = len({item.paper for item in data.published})
    text = f"Made from {len(data.published):,} published numbers of {papers} papers and {measured}{_skipped(data)}."
    states = "" if data.records else "<p><strong>Not run:</strong> no measured number was found.</p>"
    return f"<p>Paper scale. {text}</p>\n{states}"


def _skipped(data: Data) -> str:
    return f"; {len(data.problems):,} lines of records were left out (below)" if data.problems else ""


def _navigation(sheets: list[str], with_figures: bool) -> str:
    names = [*sheets, *(["Figures"] if with_figures else []), "Runs"]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in names)
    return f"<nav>{links}</nav>"


def _legend(data: Data) -> str:
    counts = Counter(item.verdict for item in data.comparisons)
    rows = "".join(
        f'<tr><td class="text {CLASSES[name]}">{name}</td><td class="text long">{escape(MEANINGS[name])}</td>'
        f"<td>{counts[name]:,}</td></tr>"
        for name in VERDICTS
    )
    head = '<tr><th class="text">Verdict</th><th class="text">Meaning</th><th>Numbers</th></tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


# Tables


def _section(table: Table, scale: str) -> str:
    title = f'<h2 id="{_anchor(table.sheet)}">{escape(table.sheet)}{" (miniature)" if scale == "mini" else ""}</h2>'
    remarks = [] if table.is_run else ["Not run."]
    if not table.rows and scale == "paper":
        remarks.append("No published number either.")
    remark = " ".join([*remarks, table.remark]).strip()
    parts = [title, f"<p>{escape(table.about)}</p>"]
    if remark:
        parts.append(f'<p class="faint">{escape(remark)}</p>')
    return "\n".join([*parts, _table(table)] if table.rows else parts)


def _table(table: Table) -> str:
    """The table with its names and numbers first, and less than the sheet's columns.

    Columns by data set stay on the sheet, settings become lines of their own, sources and notes numbered notes below.
    """
    by_setting = table.columns[0].title == "Setting"
    places = [place for place, column in enumerate(table.columns) if not column.detail and column.kind != "code"]
    places = sorted(places[1:] if by_setting else places, key=lambda place: _rank(table.columns[place]))
    columns = [table.columns[place] for place in places]
    notes: dict[str, int] = {}
    lines = []
    for before, row, verdicts in zip([None, *table.rows], table.rows, table.verdicts):
        is_new = before is None or before[0] != row[0]
        if is_new and by_setting:
            lines.append(
                f'<tr class="setting"><td colspan="{len(places)}"><span>{escape(str(row[0]))}</span></td></tr>'
            )
        cells = "".join(_cell(table.columns[place], row[place], verdicts[place], notes) for place in places)
        lines.append(f"<tr{' class=rule' if is_new and not by_setting else ''}>{cells}</tr>")
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    body = f'<div class="scroll"><table><thead>{_heads(columns)}</thead><tbody>\n' + "\n".join(lines)
    return f"{body}\n</tbody></table></div>" + (f"<ol>{listed}</ol>" if listed else "")


def _rank(column: Column) -> int:
    """Names, then accuracies and verdicts, then what else there is to know."""
    if column.kind == "name":
        return 0
    return {"text": 2, "source": 3}.get(column.kind, 2 if column.group == PARAMETER_GROUP else 1)


def _heads(columns: list[Column]) -> str:
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    above = "".join(
        f'<th colspan="{count}">{escape(group)}</th>' if group else "<th></th>" * count for group, count in groups
    )
    heads = "".join(f'<th class="{_class(column)}">{escape(column.title)}</th>' for column in columns)
    return f"<tr>{above}</tr><tr>{heads}</tr>"


def _class(column: Column) -> str:
    if column.kind == "name":
        return "name"
    return "text" if column.kind in ("text", "source", "verdict") else "number"


def _cell(column: Column, value: Cell, verdict: str | None, notes: dict[str, int]) -> str:
    colour = CLASSES.get(verdict or "", "")
    if column.kind == "source" and value:
        return f'<td class="text">[{notes.setdefault(str(value), len(notes) + 1)}]</td>'
    style = " ".join(name for name in (_class(column), colour) if name)
    return f'<td class="{style}">{escape(_text(column.kind, value))}</td>'


def _text(kind: str, value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if kind == "integer":
        return f"{value:,.0f}"
    return f"{value:+.2f}" if kind == "difference" else f"{value:.2f}"


# Figures and runs


def _pictures(drawn: list[figures.Figure], out: Path) -> str:
    if not drawn:
        return ""
    parts = ['<h2 id="figures">Figures</h2>']
    for figure in drawn:
        code = base64.b64encode(figure.path(out).read_bytes()).decode()
        text = escape(figure.title.replace("\n", ". "))
        parts.append(
            f'<figure><div class="scroll"><img src="data:image/png;base64,{code}" alt="{text}"></div>'
            f'<figcaption class="faint">{text}</figcaption></figure>'
        )
    return "\n".join(parts)


def _runs(data: Data) -> str:
    titles = ("Method", "Protocol", "Backbone", "Seed", "Seconds", "Peak memory (MiB)", "Commit")
    parts = ['<h2 id="runs">Runs</h2>']
    rows = []
    for run in data.provenance:
        texts = [labels.protocol(run.protocol), run.backbone, str(run.seed)]
        texts += ["" if number is None else f"{number:,.0f}" for number in (run.seconds, run.peak_memory_mib)]
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in [*texts, run.commit[:12]])
        rows.append(f'<tr><td class="name">{escape(run.method)}</td>{cells}</tr>')
    head = "".join(f'<th class="text">{title}</th>' for title in titles)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    parts.append(table if rows else "<p>Not run: no run was found.</p>")
    commands = "".join(f"<li>{escape(run.command)}</li>" for run in data.provenance)
    parts.append(f"<p>Their commands, in this order:</p><ol>{commands}</ol>" if rows else "")
    if data.problems:
        items = "".join(f"<li>{escape(str(problem))}</li>" for problem in data.problems)
        parts.append(f"<p>Left out of every table:</p><ol>{items}</ol>")
    return "\n".join(parts)
