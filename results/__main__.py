"""`python -m results`: run records and published numbers into spreadsheet, CSV, figures and page.

`python -m results verify RUN_OR_PROTOCOL`: what was measured against what was published, in the terminal; exit
code 1 when something differs; what is too noisy to tell is named and is no failure.
`python -m results first-row RUN`: the accuracies of an MTIL run after its first task, which is the cheapest check of
a method, against the published ones; exit code 1 when they differ.
`python -m results run TABLE`: a whole published table, on this machine or on Slurm; `run --help` says more.
`python -m results docs`: the list of all runs, docs/runs.md, anew.
"""

import difflib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError, exit_cleanly
from results import run_list, terminal
from results.collect import Provenance, read_runs
from results.compare import DIFFERS, MISPRINT, Data, compare
from results.first_row import as_text, first_row
from results.labels import COMMON_GROUND, SCALES
from results.launch.run import run
from results.options import RUNS, Build, Compared, Docs, FirstRow, Run, Verify, parse
from results.published import Published, read_curves, read_published
from results.records import Problem, Record
from results.tables import tables


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Build, verify, show the first row or run a table; exits with 1 if a number differs or a run failed."""
    options, flags = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(options, Docs):
        return run_list.write(options.out)
    if isinstance(options, Run):
        bad = run(options, run_folders(options.runs), flags)
    elif isinstance(options, FirstRow):
        bad = show_first_row(options)
    else:
        bad = verify(options) if isinstance(options, Verify) else build(options)
    if bad:
        sys.exit(1)


def build(options: Build) -> bool:
    """Write all files; True if a line is damaged and --strict was given."""
    from results import csv_table, figures, page, spreadsheet  # openpyxl and matplotlib: only needed here

    folders, scale = run_folders(options.runs), options.scale or "paper"
    everything, runs, problems = read_runs(folders)
    records, left_out = select(everything, scale, options)
    published = read_published(options.paper, options.protocol)
    check_names(options, everything)
    data = gather(records, published, problems, runs, scale)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the output folder {options.out} cannot be made ({error.strerror}). Choose another."
        raise UserError(reason) from error
    written: list[Path] = []
    writers = tqdm((csv_table, spreadsheet, figures, page), desc="writing", unit="file", leave=False, disable=None)
    for writer in writers:
        writers.set_postfix_str(writer.__name__.rsplit(".", 1)[-1])
        written += writer.write(options.out, data)
    terminal.warn(problems)
    print(terminal.closing(data, folders, left_out, written))
    return options.strict and bool(problems)


def run_folders(folders: list[Path] | None) -> list[Path]:
    """The folders to read: the ones given, else those the scripts save to, if they exist."""
    return folders or [folder for folder in RUNS if folder.is_dir()]


def select(records: list[Record], scale: str, options: Compared) -> tuple[list[Record], Counter[str]]:
    """The records of a scale and of the options' protocol and paper, and the number left out for each reason."""
    kept: list[Record] = []
    left_out: Counter[str] = Counter()
    for record in records:
        if record.scale != scale:
            left_out[f"of scale {record.scale} (shown by --scale {record.scale})"] += 1
        elif options.protocol not in (None, record.protocol):
            left_out["of other protocols"] += 1
        elif options.paper not in (None, record.paper):
            left_out["of other papers"] += 1
        else:
            kept.append(record)
    return kept, left_out


def check_names(options: Build, records: list[Record]) -> None:
    """Raise UserError for a --protocol or --paper that no run and no published number has."""
    for field, name in (("protocol", options.protocol), ("paper", options.paper)):
        names = {getattr(entry, field) for entry in (*read_published(), *records)}
        if name is not None and name not in names:
            raise UserError(f"--{field} {name}: no run and no published number has it. {nearest(name, names)}")


def nearest(name: str, names: set[str]) -> str:
    """The names that may have been meant, or all of them, as a sentence."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(names))}."


def gather(
    records: list[Record], published: list[Published], problems: list[Problem], runs: list[Provenance], scale: str
) -> Data:
    """The data of one scale, of the miniature without published numbers."""
    papers, protocols = {entry.paper for entry in published}, {entry.protocol for entry in published}
    curves = [curve for curve in read_curves() if curve.paper in papers and curve.protocol in protocols]
    if not SCALES[scale].compares:
        published, curves = [], []
    files = {record.file for record in records}
    provenance = [entry for entry in runs if entry.file in files]
    return Data(scale, records, published, compare(published, records), provenance, problems, curves)


def verify(options: Verify) -> bool:
    """Print measured numbers beside published ones; True if one differs, or a line is damaged with --strict."""
    target = Path(options.target)
    is_run = target.exists()
    records, runs, problems = read_runs([target] if is_run else run_folders(options.runs))
    if is_run and not records:
        raise UserError(f"{target} holds no readable record.jsonl. Give a run's folder or a protocol's name.")
    protocols = {record.protocol for record in records} if is_run else {options.target}
    names = {record.protocol for record in records} | {entry.protocol for entry in read_published(options.paper)}
    if not is_run and options.target not in names:
        hint = nearest(options.target, names)
        raise UserError(f"{options.target} is neither a run's folder nor a known protocol. {hint}")
    scales = {record.scale for record in records} if is_run else set()
    scale = options.scale or (scales.pop() if len(scales) == 1 else "paper")
    measured = [record for record in select(records, scale, options)[0] if record.protocol in protocols]
    published = [entry for entry in read_published(options.paper) if entry.protocol in protocols]
    data = gather(measured, published, problems, runs, scale)
    terminal.warn(problems)
    sheets = [table for table in tables(data) if table.sheet == COMMON_GROUND]
    for table in sheets:
        terminal.show_table(table, data.words.sheet_mark)
    if not sheets:
        terminal.show(data.comparisons, f"{options.target}, scale {scale}")
    for folder, how_far in {line.folder: line.unfinished for line in measured if line.unfinished}.items():
        print(f"{folder} is unfinished, {how_far}: none of its numbers is compared.")
    differing = [item for item in data.comparisons if item.verdict == DIFFERS]
    # a difference from a likely misprint does not speak against the run
    wrong = any(not item.note.startswith(MISPRINT) for item in differing)
    return wrong or (options.strict and bool(problems))


def show_first_row(options: FirstRow) -> bool:
    """Print a run's accuracies after its first task beside published ones; True if they differ, or as `verify`."""
    if not options.run.exists():
        raise UserError(f"no such run: {options.run}. Give the folder of a run, or its record.jsonl.")
    records, _, problems = read_runs([options.run])
    terminal.warn(problems)
    row = first_row(options.run, records, read_published(), options.method)
    print(as_text(row))
    return row.differs or (options.strict and bool(problems))


if __name__ == "__main__":
    main()
