"""The tables of the spreadsheet and of the page as plain data: rows, columns and the verdicts that colour cells."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean

from common.evaluation.report import ZERO_SHOT
from common.protocols import MTIL_ORDERS, Protocol
from results import labels
from results.collect import Provenance
from results.compare import MEAN, PARAMETERS, Comparison, Data, grouped

PARAMETER_GROUP = "Trainable parameters"
COMPARING = ("published", "published_std", "difference", "verdict", "source")  # kinds of column
# Kinds of column whose attribute of Comparison has another name
ATTRIBUTES = {"measured": "mean", "measured_count": "mean", "measured_std": "std"}
COLOURED = ("difference", "verdict")
FORMATS = {"integer": ",.0f", "measured_count": ",.0f", "difference": "+.2f"}  # by kind of column; else two decimals
Cell = str | float | int | None
Verdict = str | None
METHOD = ("protocol", "paper", "method", "backbone")
Method = tuple[str, str, str, str]  # of these
method_of = attrgetter(*METHOD)
Parameters = tuple[int | None, int | None]  # trainable ones: published, measured


@dataclass(frozen=True)
class Row:
    """What the columns of a table read in one row: the numbers of a method by metric or by data set."""

    method: Method
    words: str  # name of the metric, or the paper's name of its pair of metrics
    numbers: dict[str, Comparison]
    parameters: Parameters
    runs: Sequence[Provenance] = ()  # whole ones, where columns read costs

    def cost(self, name: str) -> float | None:
        """Mean of a cost over the runs that recorded it."""
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return fmean(values) if values else None


@dataclass(frozen=True)
class Column:
    """A column; `group` is the heading that it shares with its neighbours.

    Published and measured numbers never share a column. Kinds: published, published_std, measured, measured_count,
    measured_std, difference, verdict, integer, name, text, code, source.
    """

    title: str
    kind: str
    cell: Callable[[Row], Cell]
    group: str = ""
    detail: bool = False  # by data set: on the spreadsheet only
    number: str = ""  # key in Row.numbers of the number whose verdict colours the cells

    @property
    def compares(self) -> bool:
        """Whether the column holds or judges by published numbers, which the miniature never shows."""
        return self.kind in COMPARING or self.title == "Published"

    def text(self, row: Row) -> str:
        """The cell as text, "" for an empty one."""
        value = self.cell(row)
        return value or "" if value is None or isinstance(value, str) else format(value, FORMATS.get(self.kind, ".2f"))

    def verdict(self, row: Row) -> Verdict:
        """The verdict that colours the cell of this row."""
        number = row.numbers.get(self.number)
        return number.verdict if number and self.kind in COLOURED else None


@dataclass(frozen=True)
class Table:
    """What stands on a sheet: its title, a line that describes it, columns, and what these read row by row."""

    sheet: str
    description: str
    columns: list[Column]
    rows: list[Row]
    comparisons: list[Comparison]  # of the numbers shown
    remark: str = ""

    @property
    def is_run(self) -> bool:
        return any(item.mean is not None for item in self.comparisons)

    def states(self, not_run: str, compares: bool) -> str:
        """The line above the rows: `not_run` or that nothing was published, where it is so, and the remark."""
        absent = [] if self.is_run else [not_run]
        if compares and not self.rows:
            absent.append("No published number either.")
        return " ".join([*absent, self.remark]).strip()


@dataclass(frozen=True)
class _Content:
    """What every table is made from."""

    shown: list[Comparison]
    stated: list[Comparison]  # published trainable parameters
    parameters: Callable[[Method], Parameters]
    scale: labels.Scale
    runs: dict[Method, list[Provenance]]


def tables(data: Data) -> list[Table]:
    """The tables in the order of their sheets: the two on which papers meet, MTIL's methods, one a protocol family.

    At mini scale only measured numbers are shown, and tables without a run are left out.
    """
    compares = data.words.compares
    shown = [item for item in data.comparisons if item.metric != PARAMETERS and (compares or item.mean is not None)]
    stated = [item for item in data.comparisons if item.metric == PARAMETERS and compares]
    content = _Content(shown, stated, _parameters(data), data.words, whole_runs(data))
    makers = {labels.XTAIL: _xtail, labels.COMMON_GROUND: _common_ground}
    result = [table for table in (_cross_paper(content), _mtil(content)) if table.rows or compares]
    for sheet, description, _ in labels.SHEETS:
        items = [item for item in shown if labels.sheet(item.protocol) == sheet]
        if items or (compares and sheet not in ("Other protocols", *labels.UNPUBLISHED)):
            make = _by_dataset if sheet.startswith("MTIL") else makers.get(sheet, _by_setting)
            result.append(_without_empty(make(sheet, description, items, content)))
    front = (data.words.cross_paper, labels.COMMON_GROUND)
    result.sort(key=lambda table: front.index(table.sheet) if table.sheet in front else len(front))
    return [replace(table, columns=[column for column in table.columns if compares or not column.compares])
            for table in result]  # fmt: skip


def _parameters(data: Data) -> Callable[[Method], Parameters]:
    """A function from a method to its trainable parameters, published and measured."""
    published = {method_of(item): round(item.value) for item in data.published if item.metric == PARAMETERS}
    measured = {method_of(run): run.trainable_parameters for run in data.provenance
                if run.trainable_parameters is not None and not run.unfinished}  # fmt: skip
    for item in data.comparisons:  # a run of two protocols has one provenance
        if item.metric == PARAMETERS and item.mean is not None:
            measured[method_of(item)] = round(item.mean)
    return lambda method: (published.get(method), measured.get(method))


def whole_runs(data: Data) -> dict[Method, list[Provenance]]:
    """The runs of each method that are not unfinished."""
    return grouped((run for run in data.provenance if not run.unfinished), *METHOD)


def common_ground_rows(data: Data) -> dict[str, list[Row]]:
    """The rows of the sheet of common ground, by data set as protocols name it."""
    rows: dict[str, list[Row]] = {}
    for row in (row for table in tables(data) if table.sheet == labels.COMMON_GROUND for row in table.rows):
        rows.setdefault(Protocol.parse(row.method[0]).dataset, []).append(row)
    return rows


def _without_empty(table: Table) -> Table:
    """The table without empty columns of trainable parameters and, if nothing was run, of numbers by data set."""

    def is_kept(column: Column) -> bool:
        can_be_left_out = column.group == PARAMETER_GROUP or (column.detail and not table.is_run)
        return not can_be_left_out or any(column.cell(row) is not None for row in table.rows)

    return replace(table, columns=[column for column in table.columns if is_kept(column)])


def _cross_paper(content: _Content) -> Table:
    """Every method of every paper, a method of which only the trainable parameters are published included."""
    shown = [item for item in content.shown if labels.column(item.metric) in ("avg", "last")]
    items = _with_stated(shown, content.stated, labels.is_cross_paper)
    text = "Where all five papers meet: Last is the accuracy after the tenth task, Avg its mean over the tasks."
    table = _by_setting(content.scale.cross_paper, text, items, content)
    absent = [name for key, name in labels.PAPERS.items() if key not in {item.paper for item in items}]
    if absent and content.scale.compares:
        return replace(table, remark=f"Neither published numbers nor runs of: {', '.join(absent)}.")
    return table


def _mtil(content: _Content) -> Table:
    """Transfer, Avg and Last on MTIL, a row a method."""
    shown = [item for item in content.shown if item.dataset == MEAN and item.metric in ("transfer", "avg", "last")]
    items = _with_stated(shown, content.stated, _is_mtil)
    text = "All methods on the eleven data sets: means over the data sets. By data set on the sheets that follow."
    table = _by_setting(labels.MTIL, text, items, content)
    return replace(table, columns=[column for column in table.columns if column is not REPORTED])


def _is_mtil(name: str) -> bool:
    protocol = Protocol.parse(name)
    return protocol.kind == "mtil" and protocol.dataset in MTIL_ORDERS


def _xtail(sheet: str, description: str, items: list[Comparison], content: _Content) -> Table:
    """Means over the data sets, a row a method; where nothing is published, one verdict says so."""
    shown = [item for item in items if item.dataset == MEAN and item.metric in labels.ON_XTAIL]
    printed = {item.metric for item in shown if item.published is not None}
    table = _by_setting(sheet, description, shown, content)

    def is_kept(column: Column) -> bool:
        judged = column.number in printed or (column.kind, column.number) == ("verdict", "last")
        return column is not REPORTED and (judged or not (column.number and column.compares))

    return replace(table, columns=[column for column in table.columns if is_kept(column)])


def _common_ground(sheet: str, description: str, items: list[Comparison], content: _Content) -> Table:
    """A row a method and backbone of a data set, bounds first; zero-shot CLIP once, whichever programs measured it."""
    rows: dict[Method | tuple[str, str], Row] = {}
    # by the names that all programs have for the metrics of common ground, not by those of their papers
    numbers = grouped((item for item in items if item.metric in labels.on_common_ground(item.protocol)), *METHOD)
    for method in sorted(numbers, key=_common_place):
        (protocol, paper, _, backbone), name = method, _common_name(method)
        cells = {item.metric: item for item in numbers[method]}
        runs = content.runs.get(method, [])
        row = Row((protocol, paper, name, backbone), name, cells, content.parameters(method), runs)
        rows.setdefault((Protocol.parse(protocol).dataset, backbone) if name == ZERO_SHOT else method, row)

    def ours(key: str, kind: str = "measured") -> Column:
        return _number(labels.metric(key) if kind != "measured_std" else "± std", kind, key, "")

    columns = [
        DATASET, NAME, BACKBONE, EXEMPLARS,
        *(ours(key, kind) for key in ("avg", "last", "forgetting") for kind in ("measured", "measured_std")),
        ours("accuracy_with_task"), ours("avg_unseen_accuracy"), TRAINABLE, ours("total_parameters", "measured_count"),
        SECONDS, MEMORY, ours("stored_floats", "measured_count"), SEEDS, NOTE,
    ]  # fmt: skip
    shown = [item for row in rows.values() for item in row.numbers.values()]
    return Table(sheet, description, columns, [*rows.values()], shown)


def _common_name(method: Method) -> str:
    """A method's name on the sheet of common ground, which says of all classes at once that they are."""
    protocol, name = Protocol.parse(method[0]), method[2]
    if name in labels.SAME_ZERO_SHOT:
        return ZERO_SHOT
    return name if protocol.tasks or "joint" in name.lower() else f"{name}, joint"


def _common_place(method: Method) -> tuple[object, ...]:
    """A sort key of methods on common ground: by data set bounds, all classes at once last of them, then the others."""
    protocol, name = Protocol.parse(method[0]), _common_name(method)
    is_bound = not protocol.tasks or name.startswith(labels.BOUNDS)
    place = labels.position(name, labels.ON_COMMON_GROUND)
    return protocol.dataset, not is_bound, not protocol.tasks, place, name, method[3]


def _with_stated(shown: list[Comparison], stated: list[Comparison], belongs: Callable[[str], bool]) -> list[Comparison]:
    """The comparisons shown of protocols that belong, and stated parameters of methods that have no other number."""
    items = [item for item in shown if belongs(item.protocol)]
    methods = {method_of(item) for item in items}
    return items + [item for item in stated if belongs(item.protocol) and method_of(item) not in methods]


# Columns that several tables have


def _number(title: str, kind: str, key: str, group: str, detail: bool = False) -> Column:
    """A column of the numbers under `key`; it shows the attribute that its kind names."""
    attribute = ATTRIBUTES.get(kind, kind)
    return Column(title, kind, lambda row: getattr(row.numbers.get(key), attribute, None), group, detail, key)


def _blocks(kind: str, group: str, numbers: Iterable[tuple[str, str]], detail: bool = False) -> list[Column]:
    """A column of this kind for each (title, key)."""
    return [_number(title, kind, key, group, detail) for title, key in numbers]


NAME = Column("Method", "name", lambda row: row.method[2])
METRIC = Column("Metric", "name", lambda row: row.words)
BACKBONE = Column("Backbone", "text", lambda row: row.method[3])
REPORTED = Column("Reported as", "text", lambda row: row.words)
ORIGIN = Column("Number from", "text", lambda row: _origin(row))
DATASET = Column("Data set", "name", lambda row: _dataset(row))
EXEMPLARS = Column("Exemplars", "text", lambda row: _exemplars(row))
TRAINABLE = Column("Trainable parameters", "integer", lambda row: row.parameters[1])
SECONDS = Column("Seconds a task", "measured", lambda row: row.cost("seconds_a_task"))
MEMORY = Column("Peak memory (MiB)", "integer", lambda row: row.cost("peak_memory_mib"))
SEEDS = Column("Seeds", "integer", lambda row: max(item.seeds for item in row.numbers.values()) or None)
NOTE = Column("Note", "source", lambda row: _joined(item.note for item in row.numbers.values()))
COUNTS = (
    Column("Published", "integer", lambda row: row.parameters[0], PARAMETER_GROUP),
    Column("Ours", "integer", lambda row: row.parameters[1], PARAMETER_GROUP),
)
SOURCES = (Column("Source", "source", lambda row: _joined(item.source for item in row.numbers.values())), NOTE)


def _origin(row: Row) -> str:
    """Who printed the row's numbers; of a row without published ones, whose program measured them."""
    numbers = row.numbers.values()
    printed = [item for item in numbers if item.published is not None]
    return ", ".join(dict.fromkeys(item.origin for item in printed or numbers))


def _dataset(row: Row) -> str:
    dataset = Protocol.parse(row.method[0]).dataset
    return labels.DATASETS.get(dataset, dataset)


def _exemplars(row: Row) -> str | None:
    """Whether the method keeps samples from task to task, which what it stores tells; None where that is not known."""
    if (stored := row.numbers.get("stored_floats")) is None:
        return None
    return "yes" if stored.mean and row.method[1] in labels.STORE_SAMPLES else "no"


def _joined(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(text for text in texts if text))


# MTIL: a row a method and metric, the mean first, then a block of data sets each for published, ours, difference


def _by_dataset(sheet: str, description: str, items: list[Comparison], content: _Content) -> Table:
    ordered = sorted(items, key=lambda item: item.metric == "transfer")  # Transfer lacks the first data set
    datasets = [name for name in dict.fromkeys(item.dataset for item in ordered) if name != MEAN]
    each = [(name, name) for name in datasets]
    columns = [
        NAME, BACKBONE, METRIC, ORIGIN, *COUNTS,
        _number("Published", "published", MEAN, "Mean"),
        _number("Ours", "measured", MEAN, "Mean"),
        _number("± std", "measured_std", MEAN, "Mean"),
        Column("Seeds", "integer", lambda row: getattr(row.numbers.get(MEAN), "seeds", 0) or None, "Mean"),
        _number("Difference", "difference", MEAN, "Mean"),
        _number("Verdict", "verdict", MEAN, "Mean"),
        *_blocks("published", "Published, by data set", each, detail=True),
        *_blocks("measured", "Ours, by data set", each, detail=True),
        *_blocks("difference", "Difference, by data set", each, detail=True),
        *SOURCES,
    ]  # fmt: skip
    rows = []
    for method, numbers in grouped(items, *METHOD).items():
        by_metric = grouped(numbers, "metric")
        for metric in [*labels.METRICS, *sorted({item.metric for item in numbers} - {*labels.METRICS})]:
            by_dataset = {item.dataset: item for item in by_metric.get(metric, [])}
            cells = {name: by_dataset[name] for name in (MEAN, *datasets) if name in by_dataset}
            if cells:
                rows.append(Row(method, labels.metric(metric), cells, content.parameters(method)))
    return Table(sheet, description, columns, rows, items)


# Class-incremental and the like: a row a method and setting, a column a metric in each block


def _by_setting(sheet: str, description: str, items: list[Comparison], content: _Content) -> Table:
    numbers = _setting_numbers(items)
    present = {metric for row in numbers.values() for metric in row}
    metrics = [name for name in labels.METRICS if name in present] or ["avg", "last"]
    metrics += sorted(present - {*labels.METRICS, PARAMETERS})
    each = [(labels.metric(name), name) for name in metrics]
    deviating = {labels.column(item.metric) for item in items if item.published_std is not None}
    same = len({Protocol.parse(item.protocol).dataset for item in items}) == 1  # then the sheet's name says it
    published, measured = [], []
    for title, name in each:
        published.append(_number(title, "published", name, "Published"))
        if name in deviating:
            published.append(_number("± std", "published_std", name, "Published"))
        measured.append(_number(title, "measured", name, "Ours"))
        measured.append(_number("± std", "measured_std", name, "Ours"))
    columns = [
        Column("Setting", "name", lambda row: labels.setting(row.method[0], with_dataset=not same)),
        NAME, BACKBONE, ORIGIN, REPORTED, *COUNTS,
        *published, *measured, *_blocks("difference", "Difference", each), *_blocks("verdict", "Verdict", each),
        SEEDS,
        Column("Protocol", "code", lambda row: row.method[0]), *SOURCES,
    ]  # fmt: skip
    rows = [Row(method, words, cells, content.parameters(method)) for (method, words), cells in numbers.items()]
    rows.sort(key=lambda row: labels.natural(row.method[0]))
    return Table(sheet, description, columns, rows, items)


def _setting_numbers(items: list[Comparison]) -> dict[tuple[Method, str], dict[str, Comparison]]:
    """Numbers by (method, the paper's name of its pair of metrics), then by column.

    A mean over data sets is shown, not its parts. A metric of no pair (forgetting) stands in the method's first row.
    """
    rows: dict[tuple[Method, str], dict[str, Comparison]] = {}
    pairs: dict[Method, str] = {}
    for item in sorted(items, key=lambda item: item.metric not in labels.REPORTED):
        column, pair = labels.REPORTED.get(item.metric, (item.metric, None))
        pair = pair or pairs.get(method_of(item), labels.metric(item.metric))
        pairs.setdefault(method_of(item), pair)
        numbers = rows.setdefault((method_of(item), pair), {})
        if item.dataset == MEAN or column not in numbers:
            numbers[column] = item
    return rows
