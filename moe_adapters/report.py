"""What is shown of a finished sequence: the table, its picture, Transfer / Avg / Last, where DDAS sent each set."""

from common.evaluation.report import show_sequence, write_table
from common.runs import Run
from moe_adapters.options import Options


def show_results(run: Run, options: Options) -> None:
    """Print the table, and write accuracy.csv, accuracy.png, ddas_confusion.csv beside the records."""
    sets, sequence = options.eval_datasets, options.train_dataset or options.eval_datasets
    show_sequence(run, sets, sequence, "MoE-Adapters")
    if options.autorouter:
        show_routing(run, sequence)
    print(
        f"\nWritten: {run.path('record.jsonl')}, accuracy.csv, accuracy.png"
        + (", ddas_confusion.csv" if options.autorouter else "")
    )


Routing = dict[tuple[int, str], dict[str, int]]  # (after task, data set) -> images by router


def routing(run: Run) -> Routing:
    """How many images of each data set every checkpoint sent to each router."""
    found: Routing = {}
    for line in run.records:
        if str(line["metric"]).startswith("routed_to/"):
            cell = found.setdefault((line["after_task"], line["dataset"]), {})
            cell[line["metric"].removeprefix("routed_to/")] = line["value"]
    return found


def show_routing(run: Run, sequence: list[str]) -> None:
    """Write the DDAS confusion table, and print the shares that were sent where they belong."""
    found = routing(run)
    used = {router for cell in found.values() for router in cell}
    routers = ["CLIP", *sequence, *sorted(used - {"CLIP", *sequence})]
    lines = [
        [sequence[task - 1], name, *(cell.get(router, 0) for router in routers)]
        for (task, name), cell in sorted(found.items())
    ]
    write_table(run.path("ddas_confusion.csv"), ["after", "dataset", *routers], lines)

    def share(learnt: bool) -> str:
        cells = {key: cell for key, cell in found.items() if (key[1] in sequence[: key[0]]) == learnt}
        right = [cell.get(key[1] if learnt else "CLIP", 0) / sum(cell.values()) for key, cell in cells.items()]
        return f"{100 * sum(right) / len(right):.1f} %" if right else "none"

    print(
        f"\nDDAS sent to their own router: {share(True)} of the images of sets learnt; "
        f"to the original CLIP: {share(False)} of the images of sets not learnt yet."
    )
