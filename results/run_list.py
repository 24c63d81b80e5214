"""docs/runs.md: every table with its commands and numbers, from the plans, the published numbers and miniature.csv.

miniature.csv holds the miniature's means over seeds, a number a row; it stands at its table's first row of the method.
"""

import csv
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.files import write_text
from results import labels
from results.compare import MEAN
from results.launch.plan import FIXED_FLAGS, PLANS, SEED, Plan, Row, read_plan, table_names
from results.published import Published, read_published

ROOT = Path(__file__).parents[1]
MINIATURE = Path(__file__).with_name("miniature.csv")
SCRIPTS = ("*/scripts/**/*.sh", "vq_prompt/experiments/*.sh")
CONFIGURATIONS = ("zscl/configs/class/*.yaml", "moe_adapters/configs/class/*.yaml")  # a run each, by run_experiment.sh
OWN_FLAGS = ("repeat", "log_dir", *FIXED_FLAGS)  # of a plan's commands, and of no interest by hand
AS_PUBLISHED = {"accuracy": "last"}  # ALTA records the accuracy after every task; the last one is published
HEAD = """# All runs

Written by `python -m results docs` from the tables of `results/launch/plans/`, the published numbers of
`results/papers/`, where their sources stand, and the miniature's numbers of `results/miniature.csv`. Nothing here has
been run at a paper's scale yet: see [status.md](status.md).

A section is a table that one command runs; a row is one command of it. `--scale mini` runs either on the miniature.
What a run needs besides, such as the folder of the data, goes behind a row's command, or behind `--` of a table's.
Numbers are in percent. The miniature's are means of three seeds, of one for ZSCL and MoE-Adapters; its images are
others than the papers', so its numbers show what ran and are not to be compared with published ones. PF are the
petaflops of one seed at the paper's scale, where they were counted: at 20 TFLOP/s one takes 50 seconds.

The zero-shot row of MTIL, published 69.4 / 65.3 / 65.3 in order I, comes with every run; on the miniature it is
70.2 / 67.6 / 67.6. X-TAIL on the miniature: [zscl/README.md](../zscl/README.md#x-tail); common ground:
[common-ground.md](common-ground.md).
"""


def write(path: Path) -> None:
    """Write the page."""
    write_text(path, page())


def page() -> str:
    """The page as Markdown."""
    plans = [read_plan(table) for table in table_names()]
    published, miniature = read_published(), read_miniature()
    parts = [HEAD, *(section(plan, published, miniature) for plan in plans), without_plan(plans)]
    return "\n".join(parts)


def read_miniature() -> dict[tuple[str, str, str], str]:
    """The miniature's numbers, as written, by table, method and metric."""
    with open(MINIATURE, encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {(table, method, metric): mean for table, method, metric, mean in rows}


def section(plan: Plan, published: Sequence[Published], miniature: dict[tuple[str, str, str], str]) -> str:
    """A table: what its file says of it, its command, and a line a row. Takes its numbers out of `miniature`."""
    about, command = comments(PLANS / f"{plan.name}.yaml")
    names = " / ".join(map(metric_name, plan.rows[0].metrics))
    lines = [
        f"## {plan.name}\n\n{about}\n\n    {command}\n",
        f"| method | protocol | command | published ({names}) | miniature | PF |",
        "|---|---|---|---|---|---|",
    ]
    for row in plan.rows:
        ours = joined([miniature.pop((plan.name, row.method, metric), None) for metric in row.metrics])
        cost = "" if row.petaflops is None else f"{row.petaflops:g}"
        command = f"`{by_hand(row.command.replace(SEED, str(row.seeds[0])))}`"
        cells = row.label, row.protocol, command, printed(row, published), ours, cost
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def metric_name(metric: str) -> str:
    """The paper's name of a metric."""
    column, pair = labels.REPORTED.get(metric, ("", ""))
    return pair.split(", ")[column == "last"] or labels.metric(metric)


def comments(path: Path) -> tuple[str, str]:
    """What a plan's file says of its table, up to the first empty comment, and the first command in it."""
    above = path.read_text(encoding="utf-8").partition("\n#\n")[0].splitlines()
    lines = [line.removeprefix("# ") for line in above if line.startswith("# ")]
    commands = [line.strip() for line in lines if line.startswith("  ")]
    return "\n".join(line for line in lines if not line.startswith("  ")), commands[0]


def by_hand(command: str) -> str:
    """A row's command without the flags by which a plan tells seeds and folders apart."""
    words: list[str] = []
    parts = iter(shlex.split(command))
    for part in parts:
        name, has_value, _ = part.lstrip("-").partition("=")
        if name not in OWN_FLAGS:
            words.append(part)
        elif not has_value:
            next(parts)
    return shlex.join(words)


def printed(row: Row, published: Sequence[Published]) -> str:
    """The numbers printed for a row; "" where there are none."""
    domains = labels.is_multi_domain(row.protocol)
    own_first = sorted(published, key=lambda entry: entry.paper != row.paper)  # others misprint a few
    found = {
        entry.metric: f"{entry.value:.{1 if domains else 2}f}"
        for entry in reversed(own_first)
        if (entry.protocol, entry.method, entry.after_task) == (row.protocol, row.method, None)
        and (entry.dataset == MEAN or not domains)
        and row.backbone in (None, entry.backbone)
    }
    return joined([found.get(AS_PUBLISHED.get(metric, metric)) for metric in row.metrics])


def joined(numbers: Sequence[str | None]) -> str:
    return " / ".join(number or "-" for number in numbers) if any(numbers) else ""


def without_plan(plans: Sequence[Plan]) -> str:
    """The scripts and class-incremental configurations that stand in no table."""
    planned = {word for plan in plans for row in plan.rows for word in shlex.split(row.command)}
    scripts = {path.relative_to(ROOT).as_posix(): path for glob in SCRIPTS for path in sorted(ROOT.glob(glob))}
    lines = [
        f"| `{name}` | {purpose(path)} |" for name, path in scripts.items() if name not in planned and is_run(path)
    ]
    files = [path for glob in CONFIGURATIONS for path in sorted(ROOT.glob(glob)) if path.name not in planned]
    head = "## In no table\n\n`bash SCRIPT`, with `--scale mini` too.\n\n| script | what |\n|---|---|"
    names = ", ".join(f"`{path.stem}`" for path in files if path.parts[-4] == "zscl")
    more = f"\n`bash zscl/scripts/cil/run_experiment.sh X.yaml dataset_root=D`, of these X:\n{names}.\n"
    return "\n".join([head, *lines, more])


def is_run(path: Path) -> bool:
    """Whether a script is one to start, and not one that others read."""
    return path.read_text(encoding="utf-8").startswith("#!")


def purpose(path: Path) -> str:
    """The first sentence of a script's comment."""
    comment = re.search(r"(?:^# .*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
    text = " ".join(comment[0].replace("# ", "").split()) if comment else ""
    return re.split(r"(?<=\.) ", text)[0].replace("<", "&lt;")
