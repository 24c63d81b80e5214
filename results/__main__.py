"""`python -m results`: run records and published numbers into spreadsheet, CSV, figures and page.

`python -m results verify RUN_OR_PROTOCOL`: what was measured against what was published, in the terminal; exit
code 1 when something differs.
`python -m results first-row RUN`: the accuracies of an MTIL run after its first task, which is the cheapest check of
a method, against the published ones; exit code 1 when they differ.
`python -m results run TABLE`: a whole published table, on this machine or on Slurm; `run --help` says more.
"""

import csv
import difflib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError, exit_cleanly
from common.files import write_text
from results.collect import Problem, Record, read_provenance, read_records
from results.compare import DIFFERS, MISPRINT, NOT_RUN, VERDICTS, Comparison, Data, compare
from results.first_row import as_text, first_row
from results.launch.run import run
from results.options import RUNS, Build, FirstRow, Run, Verify, parse
from results.published import Published, read_curves, read_published

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would read such a CSV field as a formula
COLUMNS = "{:<13} {:<24} {:<13} {:<13} {:>9} {:>6} {:>9} {:>6} {:>2} {:>7}  {}"


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Build, verify, show the first row or run a table; exits with 1 if something differs, is damaged or failed."""
    options, flags = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(options, Run):
        bad = run(options, run_folders(options.runs), flags)
    elif isinstance(options, FirstRow):
        bad = show_first_row(options)
    else:
        bad = verify(options) if isinstance(options, Verify) else build(options)
    if bad:
        sys.exit(1)


def build(options: Build) -> bool:
    """Write all files; whether --strict has found a damaged line."""
    from results import figures, page, spreadsheet  # openpyxl and matplotlib: only needed here

    folders, scale = run_folders(options.runs), options.scale or "paper"
    everything, problems = read_records(folders)
    records, left_out = select(everything, scale, options.protocol, options.paper)
    published = read_published(options.paper, options.protocol)
    check_names(options, everything)
    data = gather(records, published, problems, folders, scale)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"the output folder {options.out} cannot be made ({error.strerror}). Choose another."
        raise UserError(told) from error
    written = [write_csv(options.out, data)]
    writers = tqdm((spreadsheet, figures, page), desc="writing", unit="file", leave=False, disable=None)
    for writer in writers:
        writers.set_postfix_str(writer.__name__.rsplit(".", 1)[-1])
        written += writer.write(options.out, data)
    tell_problems(problems)
    print(closing(data, folders, left_out, written))
    return options.strict and bool(problems)


def run_folders(given: list[Path] | None) -> list[Path]:
    """The folders to read: those given, or the usual ones that exist."""
    return given if given else [folder for folder in RUNS if folder.is_dir()]


def select(
    records: list[Record], scale: str, protocol: str | None, paper: str | None
) -> tuple[list[Record], Counter[str]]:
    """The records asked for, and how many were left out for which reason."""
    kept, left_out = [], Counter()
    for record in records:
        if record.scale != scale:
            left_out[f"of scale {record.scale} (shown by --scale {record.scale})"] += 1
        elif protocol not in (None, record.protocol):
            left_out["of other protocols"] += 1
        elif paper not in (None, record.paper):
            left_out["of other papers"] += 1
        else:
            kept.append(record)
    return kept, left_out


def check_names(options: Build, records: list[Record]) -> None:
    """UserError for a --protocol or --paper that neither a run nor a published table knows."""
    for name in ("protocol", "paper"):
        known = {getattr(entry, name) for entry in (*read_published(), *records)}
        asked = getattr(options, name)
        if asked is not None and asked not in known:
            raise UserError(f"--{name} {asked}: no run and no published number has it. {nearest(asked, known)}")


def nearest(asked: str, known: set[str]) -> str:
    """A hint at what may have been meant."""
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}."


def gather(
    records: list[Record], published: list[Published], problems: list[Problem], folders: list[Path], scale: str
) -> Data:
    """All of one scale; a miniature comes without any published number beside it."""
    papers, protocols = {entry.paper for entry in published}, {entry.protocol for entry in published}
    curves = [curve for curve in read_curves() if curve.paper in papers and curve.protocol in protocols]
    published, curves = (published, curves) if scale == "paper" else ([], [])
    files = {record.file for record in records}
    provenance = [entry for entry in read_provenance(folders) if entry.file in files]
    return Data(scale, records, published, compare(published, records), provenance, problems, curves)


def write_csv(out: Path, data: Data) -> Path:
    """The comparisons as a tidy CSV, unrounded, one line a number."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scale", *(field.name for field in fields(Comparison))])
    for comparison in data.comparisons:
        table.writerow([data.scale, *(harmless(value) for value in asdict(comparison).values())])
    path = out / ("results-mini.csv" if data.scale == "mini" else "results.csv")
    write_text(path, text.getvalue())
    return path


def harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; all else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def tell_problems(problems: list[Problem]) -> None:
    """Each damaged line by file and line, on stderr."""
    for problem in problems:
        print(f"warning: left out {problem}", file=sys.stderr)


def closing(data: Data, folders: list[Path], left_out: Counter[str], written: list[Path]) -> str:
    """The one line at the end: what was read, what was skipped and why, what was written."""
    where = ", ".join(map(str, folders)) or f"no folder of runs ({', '.join(map(str, RUNS))})"
    skipped = [f"{count} {why}" for why, count in left_out.items()]
    if data.problems:
        skipped.insert(0, f"{counted(len(data.problems), 'damaged line')} (named above)")
    verdicts = Counter(comparison.verdict for comparison in data.comparisons)
    told = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    pictures = [path for path in written if path.suffix == ".png"]
    files = [str(path) for path in written if path.suffix != ".png"]
    return (
        f"Read {counted(len(data.records), 'record')} of {counted(len(data.provenance), 'run')} in {where} and "
        f"{counted(len(data.published), 'published number')}; skipped {', '.join(skipped) or 'nothing'}; "
        f"verdicts: {told}. "
        f"Written: {', '.join(files)}, {counted(len(pictures), 'figure')}."
    )


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 record, 2 records."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def verify(options: Verify) -> bool:
    """Print what was measured beside what was published; whether something differs (or --strict found damage)."""
    target = Path(options.target)
    is_run = target.exists()
    records, problems = read_records([target] if is_run else run_folders(options.runs))
    protocols = {record.protocol for record in records} if is_run else {options.target}
    published = [entry for entry in read_published(options.paper) if entry.protocol in protocols]
    if is_run and not records:
        raise UserError(f"{target} holds no readable record.jsonl. Give a run's folder or a protocol's name.")
    if not is_run and not published and options.target not in {record.protocol for record in records}:
        known = {entry.protocol for entry in (*read_published(), *records)}
        hint = nearest(options.target, known)
        raise UserError(f"{options.target} is neither a run's folder nor a known protocol. {hint}")
    scale = options.scale or ("mini" if is_run and all(record.scale == "mini" for record in records) else "paper")
    selected, _ = select(records, scale, options.protocol, options.paper)
    measured = [record for record in selected if record.protocol in protocols]
    comparisons = compare(published if scale == "paper" else [], measured)
    tell_problems(problems)
    show(comparisons, f"{options.target}, scale {scale}")
    return any(held_against(comparison) for comparison in comparisons) or (options.strict and bool(problems))


def show_first_row(options: FirstRow) -> bool:
    """Print a run's accuracies after its first task beside published ones; whether they differ (or as `verify`)."""
    if not options.run.exists():
        raise UserError(f"no such run: {options.run}. Give the folder of a run, or its record.jsonl.")
    records, problems = read_records([options.run])
    tell_problems(problems)
    row = first_row(options.run, records, read_published(), options.method)
    print(as_text(row))
    return row.differs or (options.strict and bool(problems))


def held_against(comparison: Comparison) -> bool:
    """Whether a difference speaks against the run; one from a likely misprint does not."""
    return comparison.verdict == DIFFERS and not comparison.note.startswith(MISPRINT)


def show(comparisons: list[Comparison], title: str) -> None:
    """The measured numbers as a text table; of those not run, how many there are and of which methods."""
    run = [comparison for comparison in comparisons if comparison.verdict != NOT_RUN]
    if run:
        print(f"{title}\n")
        heads = ("paper", "method", "metric", "data set", "published", "std", "ours", "std", "n", "diff", "verdict")
        print(COLUMNS.format(*heads))
    for c in run:
        numbers = (digits(c.published), digits(c.published_std), digits(c.mean), digits(c.std), c.seeds)
        note = f"{c.verdict} ({c.note})" if c.note else c.verdict
        print(COLUMNS.format(c.paper, c.method, c.metric, c.dataset, *numbers, digits(c.difference, "+"), note))
    verdicts = Counter(comparison.verdict for comparison in comparisons)
    missing = sorted({comparison.method for comparison in comparisons if comparison.verdict == NOT_RUN})
    told = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    print(f"\n{title}: {told}" + (f" (of {', '.join(missing)})" if missing else ""))


def digits(value: float | None, sign: str = "") -> str:
    """Two decimals, counts without; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:{sign}.0f}" if abs(value) > 1000 else f"{value:{sign}.2f}"


if __name__ == "__main__":
    main()
