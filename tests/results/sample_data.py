"""Small results of both scales: three seeds of MTIL and of class-incremental runs, beside the published numbers."""

from dataclasses import replace

from common.protocols import MTIL_ORDER_1
from results.collect import Provenance
from results.compare import ZERO_SHOT, Data, compare
from results.published import read_curves, read_published
from results.records import Problem, Record

HOSTILE = '=HYPERLINK("http://x")<b>&$x$'  # a method's name that must stay a name
METHODS = ["Fine-tuning", "LwF", "iCaRL", "LwF-VR", "WiSE-FT", "WC", "ZSCL-", "ZSCL*", "ZSCL", "MoE-Adapters"]
TRIPLE = {"transfer": 68.9, "avg": 76.7, "last": 85.0}  # MoE-Adapters, MTIL order I, as published


def record(paper: str, method: str, protocol: str, scale: str, seed: int, backbone: str = "ViT-B/16") -> Record:
    """A record to be completed."""
    run = f"runs/{paper}/{protocol}-{seed}"
    return Record(paper, method, protocol, backbone, scale, seed, run, "a1" * 20, "mean", 1, "accuracy", 50.0, None,
                  f"{run}/record.jsonl")  # fmt: skip


def mtil_records(scale: str, seed: int, method: str = "MoE-Adapters") -> list[Record]:
    """A whole accuracy matrix with its zero-shot row, and the published triple shifted by 0.1 a seed."""
    about = record("moe_adapters", method, "mtil-order1", scale, seed, "mini" if scale == "mini" else "ViT-B/16")
    lines = []
    for task in range(len(MTIL_ORDER_1) + 1):
        for place, name in enumerate(MTIL_ORDER_1):
            value = 40.0 + 4 * place + (10.0 if 0 < place + 1 <= task else 0.0) + 0.1 * seed
            lines.append(replace(about, dataset=name, after_task=task, value=min(value, 100.0)))
    totals = [replace(about, metric=name, after_task=11, value=value + 0.1 * seed) for name, value in TRIPLE.items()]
    return lines + totals


def runs_of_many_methods() -> list[Record]:
    """A miniature run a method, last method first, each with a zero-shot row of its own."""
    return [
        replace(line, file=f"runs/{place}/record.jsonl", method=line.method if line.after_task else ZERO_SHOT)
        for place, name in enumerate(reversed(METHODS))
        for line in mtil_records("mini", 1, name)
    ]


def cil_records(scale: str, seed: int) -> list[Record]:
    """InfLoRA's accuracy after each of ten tasks and its two figures."""
    about = record("inflora", "InfLoRA", "cil-cifar100-10x10", scale, seed, "ViT-B/16 Sup-21K")
    accuracies = [99.0 - 2 * task + 0.2 * seed for task in range(10)]
    lines = [replace(about, dataset="CIFAR100", after_task=task, value=value)
             for task, value in enumerate(accuracies, 1)]  # fmt: skip
    last = replace(about, dataset="CIFAR100", after_task=10)
    return [*lines, replace(last, metric="acc", value=accuracies[-1]), replace(last, metric="avg_acc", value=90.0)]


def runs_on_two_backbones(scale: str) -> list[Record]:
    """SeqLoRA's figures on two backbones."""
    lines = [replace(line, method="SeqLoRA", file="runs/seqlora/record.jsonl") for line in cil_records(scale, 1)]
    return [*lines, *(replace(line, backbone="ViT-B/16 DINO-1K", file="runs/dino/record.jsonl") for line in lines)]


def provenance(records: list[Record]) -> list[Provenance]:
    """One entry a record file."""
    first = {line.file: line for line in records}
    return [
        Provenance(line.run, file, line.paper, line.method, line.protocol, line.backbone, line.scale, line.seed,
                   "python -m moe_adapters.main --lr=1e-3", line.commit, {"python": "3.11", "torch": "2.6"}, "x86_64",
                   "cpu", "2025-01-01T00:00:00", 1234.5, 2048.0, 1_000_000, 10)
        for file, line in first.items()
    ]  # fmt: skip


def build(scale: str, records: list[Record], problems: list[Problem] | None = None, among: str = "") -> Data:
    """Data as the command line gathers it, of protocols with `among` in the name: no published number at mini scale."""
    published, curves = (read_published(), read_curves()) if scale == "paper" else ([], [])
    published = [entry for entry in published if among in entry.protocol]
    return Data(scale, records, published, compare(published, records), provenance(records), problems or [], curves)


def sample(scale: str) -> Data:
    """Two methods, three seeds each."""
    records = [line for seed in (1, 2, 3) for line in mtil_records(scale, seed) + cil_records(scale, seed)]
    return build(scale, records, [Problem("runs/x/record.jsonl", 7, "value is not a finite number")])


def unsure() -> Data:
    """Class-incremental runs whose seeds lie far apart, and ALTA's task-IL run, whose published setting is open."""
    spread = [replace(line, value=line.value + offset * (line.metric == "acc"))
              for seed, offset in ((1, 0.0), (2, 20.0), (3, -5.0)) for line in cil_records("paper", seed)]  # fmt: skip
    alta = replace(record("alta", "ALTA", "til-cifar100-10x10", "paper", 42, "RN50"), dataset="CIFAR100", after_task=10)
    return build("paper", [*spread, replace(alta, metric="last", value=83.9)], among="-cifar100-10x10")


def hostile(scale: str) -> Data:
    """A run whose method's name is a formula, a tag and a mathematical text."""
    return build(scale, mtil_records(scale, 1, HOSTILE), among="mtil-order1")
