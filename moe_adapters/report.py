"""What is shown of a finished sequence: the table, its picture, Transfer / Avg / Last, where DDAS sent each set."""

import argparse

from common.evaluation.metrics import mtil_triple
from common.evaluation.report import heat_map, matrix_table, write_matrix, write_table
from common.runs import Run


def accuracy_matrix(run: Run, sets: list[str], tasks: int) -> list[list[float]]:
    """Rows after task 0 (zero-shot), 1, ..., columns the data sets."""
    found = {(line["after_task"], line["dataset"]): line["value"] for line in run.find(metric="accuracy")}
    return [[found[task, name] for name in sets] for task in range(tasks + 1)]


def show_results(run: Run, args: argparse.Namespace) -> None:
    """Print the table, and write accuracy.csv, accuracy.png, ddas_confusion.csv beside the records."""
    sets, sequence = args.eval_datasets, args.train_dataset or args.eval_datasets
    matrix = accuracy_matrix(run, sets, len(sequence))
    rows = ["zero-shot", *sequence]
    title = "MoE-Adapters, " + run.labels["protocol"] + (" on the miniature" if args.scale == "mini" else "")
    write_matrix(run.path("accuracy.csv"), matrix, rows, sets)
    heat_map(run.path("accuracy.png"), matrix, rows, sets, title)
    print(f"\n{title}: accuracy (%) after each task\n{matrix_table(matrix, rows, sets)}")
    if list(sets) == list(sequence):
        show_triple(run, matrix, sets)
    if args.autorouter:
        show_routing(run, sets, sequence)
    print(
        f"\nWritten: {run.path('record.jsonl')}, accuracy.csv, accuracy.png"
        + (", ddas_confusion.csv" if args.autorouter else "")
    )


def show_triple(run: Run, matrix: list[list[float]], sets: list[str]) -> None:
    """Transfer, Avg and Last beside the zero-shot row's mean over the same data sets; recorded as well."""
    zero_shot, triple = matrix[0], mtil_triple(matrix[1:])
    lines = [
        {
            "dataset": "mean",
            "after_task": len(sets),
            "metric": metric,
            "value": getattr(triple, metric),
            "seconds": None,
        }
        for metric in ("transfer", "avg", "last")
    ]
    run.record(lines)
    mean, unseen = sum(zero_shot) / len(sets), sum(zero_shot[1:]) / (len(sets) - 1)
    print(f"\n{'':<14}{'Transfer':>10}{'Avg':>10}{'Last':>10}")
    print(f"{'zero-shot':<14}{unseen:>10.1f}{mean:>10.1f}{mean:>10.1f}")
    print(f"{'MoE-Adapters':<14}{triple.transfer:>10.1f}{triple.avg:>10.1f}{triple.last:>10.1f}")


def show_routing(run: Run, sets: list[str], sequence: list[str]) -> None:
    """The DDAS confusion table: where every checkpoint sent every test set; in short on the screen."""
    shares, lines = {}, []
    for line in run.records:
        if str(line["metric"]).startswith("routed_to/"):
            shares.setdefault((line["after_task"], line["dataset"]), {})[line["metric"].removeprefix("routed_to/")] = (
                line["value"]
            )
    routers = ["CLIP", *sequence] + sorted(
        {router for share in shares.values() for router in share} - {"CLIP", *sequence}
    )
    for (task, name), share in shares.items():
        lines.append([f"{sequence[task - 1]}", name, *(share.get(router, 0) for router in routers)])
    write_table(run.path("ddas_confusion.csv"), ["after", "dataset", *routers], lines)
    learnt = unlearnt = to_own = to_clip = 0
    for (task, name), share in shares.items():
        total = sum(share.values())
        if name in sequence[:task]:
            learnt, to_own = learnt + 1, to_own + share.get(name, 0) / total
        else:
            unlearnt, to_clip = unlearnt + 1, to_clip + share.get("CLIP", 0) / total
    print(
        f"\nDDAS: {100 * to_own / max(1, learnt):.1f} % of the images of learnt sets went to their own router, "
        f"{100 * to_clip / max(1, unlearnt):.1f} % of those of sets not learnt yet to the original CLIP"
    )
