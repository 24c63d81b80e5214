"""The tables of the spreadsheet and of the page, as plain data: which row, which column, which verdict."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from results import labels
from results.compare import Comparison, Data

PARAMETERS = "trainable_parameters"  # a metric of its own: compared with nothing, shown beside the accuracies
PARAMETER_GROUP = "Trainable parameters"
MTIL_ORDERS = "mtil-order"  # the two sequences, all images or a few a class
COLOURED = ("difference", "verdict")
Cell = str | float | int | None
Verdict = str | None


@dataclass(frozen=True)
class Column:
    """A column: `kind` says what stands in it, `group` the heading above it and its neighbours.

    Published and measured numbers never share a column: the first are of kind "published" and "published_std", the
    second "measured" and "measured_std".
    """

    title: str
    kind: (
        str  # name, text, code, source, integer, published, published_std, measured, measured_std, difference, verdict
    )
    group: str = ""
    detail: bool = False  # by data set: on the spreadsheet only


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; `verdicts` colours cells of the same place."""

    sheet: str
    about: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    verdicts: list[list[Verdict]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)  # what the rows show
    remark: str = ""

    @property
    def is_run(self) -> bool:
        return any(item.mean is not None for item in self.comparisons)


Method = tuple[str, str, str, str]  # protocol, paper, method, backbone
Numbers = dict[tuple[str, str], Comparison]  # by metric and data set


def tables(data: Data) -> list[Table]:
    """Every sheet's table: the cross-paper one, MTIL's methods, then one a protocol family, empty ones included.

    At mini scale only what was measured is shown, so no published number stands beside a miniature one, and tables
    without a run are left out.
    """
    shown = [item for item in data.comparisons if item.metric != PARAMETERS]
    if data.scale == "mini":
        shown = [item for item in shown if item.mean is not None]
    parameters = _parameters(data)
    stated = [item for item in data.comparisons if item.metric == PARAMETERS and data.scale == "paper"]
    result = [make(shown, stated, parameters, data.scale) for make in (_cross_paper, _mtil)]
    if data.scale == "mini":
        result = [table for table in result if table.rows]
    for sheet, about, _ in labels.SHEETS:
        mine = [item for item in shown if labels.sheet(item.protocol) == sheet]
        if mine or (data.scale == "paper" and sheet not in ("Other protocols", *labels.MINI_ONLY)):
            make = _by_dataset if sheet.startswith("MTIL") else _by_setting
            result.append(_without_empty(make(sheet, about, mine, parameters, data.scale)))
    return result


@dataclass(frozen=True)
class _Parameters:
    """Trainable parameters of methods: what papers or their code say, and what runs noted."""

    published: dict[Method, int]
    measured: dict[Method, int]

    def of(self, method: Method) -> tuple[int | None, int | None]:
        return self.published.get(method), self.measured.get(method)


def _parameters(data: Data) -> _Parameters:
    stated = [item for item in data.published if item.metric == PARAMETERS and data.scale == "paper"]
    noted = [run for run in data.provenance if run.trainable_parameters is not None]
    counted = [item for item in data.comparisons if item.metric == PARAMETERS and item.mean is not None]
    return _Parameters(
        {(item.protocol, item.paper, item.method, item.backbone): round(item.value) for item in stated},
        {(run.protocol, run.paper, run.method, run.backbone): run.trainable_parameters for run in noted}
        | {_method(item): round(item.mean) for item in counted},  # a run of two protocols has one provenance
    )


def _without_empty(table: Table) -> Table:
    """The table less its blocks that nobody could fill: trainable parameters, measured numbers by data set."""
    kept = [
        place
        for place, column in enumerate(table.columns)
        if any(row[place] is not None for row in table.rows)
        or not (column.group == PARAMETER_GROUP or (column.detail and not table.is_run))
    ]
    return _of_columns(table, kept)


def _of_columns(table: Table, kept: list[int]) -> Table:
    return replace(
        table,
        columns=[table.columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in table.rows],
        verdicts=[[row[place] for place in kept] for row in table.verdicts],
    )


def _cross_paper(shown: list[Comparison], stated: list[Comparison], parameters: _Parameters, scale: str) -> Table:
    """Every method of every paper: also one of which only the trainable parameters are known."""
    mine = [item for item in shown if labels.is_cross_paper(item.protocol) and _column(item) in ("avg", "last")]
    known = {_method(item) for item in mine}
    mine += [item for item in stated if labels.is_cross_paper(item.protocol) and _method(item) not in known]
    about = "Where all five papers meet: Last is the accuracy after the tenth task, Avg its mean over the tasks."
    table = _by_setting(labels.CROSS_PAPER[scale], about, mine, parameters, scale)
    absent = [name for key, name in labels.PAPERS.items() if key not in {item.paper for item in mine}]
    if absent and scale == "paper":
        return replace(table, remark=f"Neither published numbers nor runs of: {', '.join(absent)}.")
    return table


def _mtil(shown: list[Comparison], stated: list[Comparison], parameters: _Parameters, scale: str) -> Table:
    """Transfer, Avg and Last of every method, a row each."""
    mine = [
        item
        for item in shown
        if item.protocol.startswith(MTIL_ORDERS)
        and item.dataset == "mean"
        and item.metric in ("transfer", "avg", "last")
    ]
    known = {_method(item) for item in mine}
    mine += [item for item in stated if item.protocol.startswith(MTIL_ORDERS) and _method(item) not in known]
    about = "All methods on the eleven data sets: means over the data sets. By data set on the sheets that follow."
    table = _by_setting(labels.MTIL, about, mine, parameters, scale)
    return _of_columns(table, [place for place, column in enumerate(table.columns) if column.title != "Reported as"])


def _by_method(items: Iterable[Comparison]) -> dict[Method, Numbers]:
    methods: dict[Method, Numbers] = {}
    for item in items:
        methods.setdefault(_method(item), {})[item.metric, item.dataset] = item
    return methods


def _method(item: Comparison) -> Method:
    return item.protocol, item.paper, item.method, item.backbone


def _metrics(items: Iterable[Comparison]) -> list[str]:
    """The metrics at hand, Transfer, Avg and Last first."""
    found = dict.fromkeys(item.metric for item in items)
    return [name for name in labels.METRICS if name in found] + sorted(set(found) - set(labels.METRICS))


def _joined(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(text for text in texts if text))


def _unite(items: Iterable[Comparison | None]) -> tuple[str, str]:
    """Sources and notes of several numbers, each once."""
    present = [item for item in items if item is not None]
    return _joined(item.source for item in present), _joined(item.note for item in present)


# MTIL: a row a method and metric, the mean first, then a block of data sets each for published, ours, difference


def _by_dataset(sheet: str, about: str, items: list[Comparison], parameters: _Parameters, scale: str) -> Table:
    ordered = sorted(items, key=lambda item: item.metric == "transfer")  # Transfer lacks the first data set
    datasets = [name for name in dict.fromkeys(item.dataset for item in ordered) if name != "mean"]
    table = Table(sheet, about, _dataset_columns(datasets, scale), comparisons=items)
    for method, numbers in _by_method(items).items():
        for metric in _metrics(numbers.values()):
            mean = numbers.get((metric, "mean"))
            cells = [numbers.get((metric, name)) for name in datasets]
            row, verdicts = _dataset_row(metric, method, parameters, mean, cells, scale)
            table.rows.append(row)
            table.verdicts.append(verdicts)
    return table


def _dataset_columns(datasets: list[str], scale: str) -> list[Column]:
    head = [Column("Method", "name"), Column("Metric", "name"), Column("Paper", "text"), Column("Backbone", "text")]
    ours = [Column("Ours", "measured", "Mean"), Column("± std", "measured_std", "Mean")]
    ours.append(Column("Seeds", "integer", "Mean"))
    measured = [Column(name, "measured", "Ours, by data set", detail=True) for name in datasets]
    counts = _parameter_columns(scale)
    if scale == "mini":
        return head + counts + ours + measured
    verdict = [Column("Difference", "difference", "Mean"), Column("Verdict", "verdict", "Mean")]
    published = [Column(name, "published", "Published, by data set", detail=True) for name in datasets]
    difference = [Column(name, "difference", "Difference, by data set", detail=True) for name in datasets]
    mean = [Column("Published", "published", "Mean"), *ours, *verdict]
    return (
        head
        + counts
        + mean
        + published
        + measured
        + difference
        + [Column("Source", "source"), Column("Note", "source")]
    )


def _dataset_row(
    metric: str,
    method: Method,
    parameters: _Parameters,
    mean: Comparison | None,
    cells: list[Comparison | None],
    scale: str,
) -> tuple[list[Cell], list[Verdict]]:
    _, paper, name, backbone = method
    head: list[Cell] = [name, labels.metric(metric), labels.paper(paper), backbone]
    head += parameters.of(method) if scale == "paper" else parameters.of(method)[1:]
    ours = [_get(mean, "mean"), _get(mean, "std"), _get(mean, "seeds") or None]
    measured = [_get(cell, "mean") for cell in cells]
    if scale == "mini":
        return head + ours + measured, [None] * (len(head) + len(ours) + len(measured))
    verdict = _get(mean, "verdict")
    total = [_get(mean, "published"), *ours, _get(mean, "difference"), verdict]
    published = [_get(cell, "published") for cell in cells]
    difference = [_get(cell, "difference") for cell in cells]
    row = head + total + published + measured + difference + [*_unite([mean, *cells])]
    colours = [None] * (len(head) + 4) + [verdict, verdict] + [None] * 2 * len(cells)
    return row, colours + [_get(cell, "verdict") for cell in cells] + [None, None]


def _get(item: Comparison | None, name: str) -> Cell:
    return None if item is None else getattr(item, name)


def _parameter_columns(scale: str) -> list[Column]:
    ours = Column("Ours", "integer", PARAMETER_GROUP)
    return [Column("Published", "integer", PARAMETER_GROUP), ours] if scale == "paper" else [ours]


# Class-incremental and the like: a row a method and setting, a column a metric in each block


def _by_setting(sheet: str, about: str, items: list[Comparison], parameters: _Parameters, scale: str) -> Table:
    rows = _setting_rows(items)
    found = {metric: cell for numbers in rows.values() for metric, cell in numbers.items()}
    metrics = [name for name in labels.METRICS if name in found] or ["avg", "last"]
    metrics += sorted({*found} - {*labels.METRICS, PARAMETERS})
    columns, getters = _setting_columns(metrics, items, scale)
    table = Table(sheet, about, columns, comparisons=items)
    same = len({labels.dataset(item.protocol) for item in items}) == 1  # then the sheet's name says it
    for (method, reported), numbers in sorted(rows.items(), key=lambda row: labels.natural(row[0][0][0])):
        protocol, paper, name, backbone = method
        head: list[Cell] = [
            labels.setting(protocol, with_dataset=not same),
            name,
            labels.paper(paper),
            backbone,
            reported,
        ]
        head += parameters.of(method) if scale == "paper" else parameters.of(method)[1:]
        row = head + [_get(numbers.get(metric), attribute) for metric, attribute in getters]
        colours = [_get(numbers.get(metric), "verdict") if attribute in COLOURED else None
                   for metric, attribute in getters]  # fmt: skip
        tail: list[Cell] = [max(item.seeds for item in numbers.values()) or None, protocol]
        if scale == "paper":
            tail += _unite(numbers.values())
        table.rows.append(row + tail)
        table.verdicts.append([None] * len(head) + colours + [None] * len(tail))
    return table


def _setting_rows(items: list[Comparison]) -> dict[tuple[Method, str], dict[str, Comparison]]:
    """Numbers by method and by what the paper calls its pair of metrics, then by column.

    A mean over data sets is shown, not its parts. What no pair names (forgetting) stands in the method's first row.
    """
    rows: dict[tuple[Method, str], dict[str, Comparison]] = {}
    names: dict[Method, str] = {}
    for item in sorted(items, key=lambda item: item.metric not in labels.REPORTED):
        column, reported = labels.REPORTED.get(item.metric, (item.metric, None))
        reported = reported or names.get(_method(item), labels.metric(item.metric))
        names.setdefault(_method(item), reported)
        numbers = rows.setdefault((_method(item), reported), {})
        if item.dataset == "mean" or column not in numbers:
            numbers[column] = item
    return rows


def _setting_columns(
    metrics: list[str], items: list[Comparison], scale: str
) -> tuple[list[Column], list[tuple[str, str]]]:
    """The columns, and for those between the head and the seeds the metric and the attribute that fill them."""
    deviating = {_column(item) for item in items if item.published_std is not None}
    blocks: list[tuple[Column, tuple[str, str]]] = []

    def add(metric: str, title: str, kind: str, group: str, attribute: str) -> None:
        blocks.append((Column(title, kind, group), (metric, attribute)))

    for metric in metrics if scale == "paper" else []:
        add(metric, labels.metric(metric), "published", "Published", "published")
        if metric in deviating:
            add(metric, "± std", "published_std", "Published", "published_std")
    for metric in metrics:
        add(metric, labels.metric(metric), "measured", "Ours", "mean")
        add(metric, "± std", "measured_std", "Ours", "std")
    for metric in metrics if scale == "paper" else []:
        add(metric, labels.metric(metric), "difference", "Difference", "difference")
    for metric in metrics if scale == "paper" else []:
        add(metric, labels.metric(metric), "verdict", "Verdict", "verdict")
    names = (("Setting", "name"), ("Method", "name"), ("Paper", "text"), ("Backbone", "text"), ("Reported as", "text"))
    head = [Column(title, kind) for title, kind in names] + _parameter_columns(scale)
    tail = [Column("Seeds", "integer"), Column("Protocol", "code")]
    if scale == "paper":
        tail += [Column("Source", "source"), Column("Note", "source")]
    return head + [column for column, _ in blocks] + tail, [getter for _, getter in blocks]


def _column(item: Comparison) -> str:
    return labels.REPORTED.get(item.metric, (item.metric, ""))[0]
