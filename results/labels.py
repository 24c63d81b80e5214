"""Names of papers, protocols and metrics as text for people, and the sheet that a protocol belongs to."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from common.evaluation.report import ZERO_SHOT
from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2, MULTI_DOMAIN, Protocol

PAPERS = {
    "zscl": "ZSCL",
    "moe_adapters": "MoE-Adapters",
    "inflora": "InfLoRA",
    "vq_prompt": "VQ-Prompt",
    "alta": "ALTA",
}
# Who printed a published number, by what its source names first. Some say what was counted instead.
PRINTERS = {
    "Thunderbeee/ZSCL": "ZSCL",
    "NuSA-CL": "NuSA-CL",
    "JiazuoYu/MoE-Adapters4CL": "MoE-Adapters",
    "LEBA": "LEBA",
    "DPW": "DPW",
    "CoDyRA": "CoDyRA",
    "HyPro": "HyPro",
    "RL-VIG/LibContinual": "LibContinual",
    "arXiv 2404.00228": "InfLoRA",
    "liangyanshuo/InfLoRA": "InfLoRA",
    "SD-LoRA": "SD-LoRA",
    "LoRA-DRS": "LoRA-DRS",
    "VPT-NSP2": "VPT-NSP2",
    "arXiv 2410.20444": "VQ-Prompt",
    "Papers with Code": "Papers with Code",
    "aimagelab/mammoth": "Mammoth",
    "on CLIP": "counted here",
    "without logit_scale": "counted here",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyimagenet": "TinyImageNet",
    "imagenet100": "ImageNet-100",
    "imagenet1000": "ImageNet-1000",
    "imagenet_r": "ImageNet-R",
    "imagenet_a": "ImageNet-A",
    "cub200": "CUB-200",
    "domainnet": "DomainNet",
    "vtab": "VTAB",
    "characters": "Characters, the miniature's",
}
KINDS = {
    "cil": "class-incremental",
    "til": "task-incremental",
    "dil": "domain-incremental",
    "joint": "joint training",
    "common": "common ground",
}
BENCHMARKS = {"mtil": "MTIL", "xtail": "X-TAIL"}
ORDERS = {"order1": "order I", "order2": "order II", "xtail": "ten data sets"}
SPLITS = {"coop": "CoOp's splits"}
SHORT_KINDS = {
    "cil": "class-IL", "til": "task-IL", "dil": "domain-IL", "joint": "all classes at once", "common": "common ground",
}  # fmt: skip
# in the order in which tables show them
METRICS = {
    "transfer": "Transfer",
    "avg": "Avg",
    "last": "Last",
    "accuracy": "Accuracy",
    "forgetting": "Forgetting",
    "accuracy_with_task": "Last, task known",
    "avg_unseen_accuracy": "Classes not seen, zero-shot",
    "total_parameters": "Total parameters",
    "stored_floats": "Stored numbers",
    "accuracy_with_domain_avg": "Avg, domain told",
    "accuracy_with_domain_last": "Last, domain told",
    "domain_accuracy_last": "Domain accuracy, Last",
}
ON_XTAIL = ("transfer", "avg", "last", "accuracy_with_domain_avg", "accuracy_with_domain_last", "domain_accuracy_last")
# Metrics of the class-incremental papers: the column that each stands in, and the paper's name of the pair. InfLoRA's
# ACC and MoE-Adapters' Last pool all test images; VQ-Prompt's FAA and the macro variant are means over tasks.
REPORTED = {
    "avg": ("avg", "Avg, Last"),
    "last": ("last", "Avg, Last"),
    "avg_acc": ("avg", "AvgACC, ACC"),
    "acc": ("last", "AvgACC, ACC"),
    "caa": ("avg", "CAA, FAA"),
    "faa": ("last", "CAA, FAA"),
    "avg_acc_macro": ("avg", "AvgACC, ACC by task"),
    "acc_macro": ("last", "AvgACC, ACC by task"),
}
MTIL = "MTIL"  # title of the sheet with all its methods
XTAIL = "X-TAIL"  # title of its sheet
# The order in which MTIL's tables and figures show methods: as ZSCL lists them, its ablations before it.
METHODS = (
    "Zero-shot CLIP", "Fine-tuning per data set", "Fine-tuning", "LwF", "iCaRL", "LwF-VR", "WiSE-FT", "WC", "WE",
    "moving average", "distillation", "ZSCL-", "ZSCL*", "ZSCL", "MoE-Adapters",
)  # fmt: skip

COMMON_GROUND = "Common ground"
# The order in which its sheet shows methods: bounds first, of which those before fine-tuning train nothing
ON_COMMON_GROUND = (
    ZERO_SHOT, "NCM", "Joint linear probe", "Fine-tuning", "LwF", "LwF-VR", "iCaRL", "ZSCL", "MoE-Adapters", "InfLoRA",
    "InfLoRA-b5", "InfLoRA+CA", "VQ-Prompt", "VQ-Prompt-S", "IT-Prompt", "IT-Prompt + C-NCM", "ALTA",
)  # fmt: skip
BOUNDS = ON_COMMON_GROUND[:2]  # besides all classes at once
SAME_ZERO_SHOT = ("Continual-CLIP", f"{ZERO_SHOT}, hard prompts")  # names that programs have for ZERO_SHOT
# Papers whose methods store nothing from task to task but samples; the others store statistics or bases
STORE_SAMPLES = ("zscl", "alta")
UNPUBLISHED = (COMMON_GROUND, XTAIL, "Characters")  # sheets without published numbers: shown where something was run

# Title of the sheet, description, whether it holds a protocol; a protocol is on the first sheet that holds it
SHEETS: tuple[tuple[str, str, Callable[[Protocol], bool]], ...] = (
    (COMMON_GROUND, "Every class-incremental method on the same ten tasks, images and transforms. The protocol is "
     "ours: nothing was published on it.", lambda protocol: protocol.kind == "common"),
    ("MTIL order 1", "Eleven data sets learned one after another, order I, all training images.",
     lambda protocol: _is_mtil(protocol, MTIL_ORDER_1, None)),
    ("MTIL order 2", "The eleven data sets in order II, all training images.",
     lambda protocol: _is_mtil(protocol, MTIL_ORDER_2, None)),
    ("MTIL 5-shot", "The eleven data sets in order I, five training images a class.",
     lambda protocol: _is_mtil(protocol, MTIL_ORDER_1, 5)),
    (XTAIL, "Every test image among the classes of all data sets of the sequence, learnt or not; domain told: among "
     "its data set's own. No published value.", lambda protocol: protocol.kind == "xtail"),
    ("CIL CIFAR-100", "CIFAR-100 in 10, 20 and 50 steps, class-incremental.",
     lambda protocol: protocol.kind in ("cil", "joint") and protocol.dataset == "cifar100"),
    ("CIL TinyImageNet", "TinyImageNet: 100 classes, then 5, 10 and 20 steps.",
     lambda protocol: (protocol.kind, protocol.dataset, protocol.base) == ("cil", "tinyimagenet", 100)),
    ("CIL ImageNet", "ImageNet-100 and ImageNet-1000, class-incremental.",
     lambda protocol: protocol.kind == "cil" and protocol.dataset in ("imagenet100", "imagenet1000")),
    ("ImageNet-R", "ImageNet-R in 5, 10 and 20 tasks, and all classes at once.",
     lambda protocol: protocol.dataset == "imagenet_r"),
    ("CUB-200", "CUB-200 in 10 tasks.", lambda protocol: protocol.dataset == "cub200"),
    ("DomainNet", "DomainNet, class- and domain-incremental.", lambda protocol: protocol.dataset == "domainnet"),
    ("Characters", "The miniature's forty characters: among all classes seen (class-IL), within the task (task-IL), "
     "all at once.", lambda protocol: protocol.dataset == "characters"),
    ("Class-IL and task-IL", "CIFAR-10, TinyImageNet and CIFAR-100 as ALTA and rehearsal are compared: among all "
     "classes seen (class-IL) or within the task (task-IL).",
     lambda protocol: protocol.kind == "til"
     or (protocol.kind in ("cil", "joint") and protocol.dataset in ("cifar10", "tinyimagenet"))),
    ("Other protocols", "What fits no other sheet.", lambda protocol: True),
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Words and switches in which the results of the two scales differ."""

    compares: bool  # whether published numbers are shown beside the measured ones
    words: str
    suffix: str  # of files' names
    title: str  # of the workbook and the page
    mark: str  # behind the title of a figure
    sheet_mark: str  # behind the title of a sheet
    cross_paper: str  # the sheet on which all papers meet
    flags: tuple[str, ...]  # of a command line at this scale


SCALES = {
    "paper": Scale(True, "paper scale", "",
                   "Continual learning results", " (paper scale)", "", "CIFAR-100, 10 tasks", ()),
    "mini": Scale(False, "miniature, not comparable with published numbers", "-mini",
                  "Continual learning results: MINIATURE", " (MINIATURE)", " (MINIATURE)", "Characters, 10 tasks",
                  ("--scale", "mini")),
}  # fmt: skip


def paper(name: str) -> str:
    """The paper's method name for its folder name; an unknown one as it is."""
    return PAPERS.get(name, name)


def printed_by(source: str) -> str:
    """Who printed a number, in a word, for its source; an unknown source as it is."""
    places = {source.index(mark): name for mark, name in PRINTERS.items() if mark in source}
    return places[min(places)] if places else source


def position(method: str, methods: tuple[str, ...] = METHODS) -> int:
    """Index of a method in `methods`, of a variant the index of its method; their number for others."""
    prefixes = [name for name in methods if method.startswith(name)]
    return methods.index(max(prefixes, key=len)) if prefixes else len(methods)


def metric(name: str) -> str:
    """The name of a metric in a table's head."""
    return METRICS.get(name, name.replace("_", " "))


def protocol(name: str) -> str:
    """A protocol in words, such as "CIFAR-100: 10 tasks of 10 classes, class-incremental"; an unknown one as it is."""
    return _in_words(name, KINDS, with_dataset=True)


def setting(name: str, with_dataset: bool) -> str:
    """A protocol in few words for a table: "10 tasks of 10 classes, class-IL"."""
    return _in_words(name, SHORT_KINDS, with_dataset)


def _in_words(name: str, kinds: dict[str, str], with_dataset: bool) -> str:
    protocol = Protocol.parse(name)
    if protocol.order:
        order = ORDERS.get(protocol.dataset, ", ".join(protocol.order))
        shots, splits = f"{protocol.shots}-shot" if protocol.shots else "", SPLITS.get(protocol.splits or "", "")
        return ", ".join(word for word in (BENCHMARKS[protocol.kind], order, shots, splits) if word)
    if protocol.kind not in kinds or protocol.first or protocol.validation:
        return name
    words = [kinds[protocol.kind], f"buffer of {protocol.buffer}" if protocol.buffer else ""]
    if protocol.base:
        words.insert(0, f"{protocol.base} classes, then {protocol.tasks} steps of {protocol.classes}")
    elif protocol.tasks:
        words.insert(0, count(protocol.tasks, "task") + (f" of {protocol.classes} classes" if protocol.classes else ""))
    elif protocol.kind == "common":
        words.insert(0, SHORT_KINDS["joint"])
    text = ", ".join(word for word in words if word)
    return f"{DATASETS.get(protocol.dataset, protocol.dataset)}: {text}" if with_dataset else text


def sheet(name: str) -> str:
    """The sheet that a protocol's numbers are on, besides the cross-paper one."""
    return next(title for title, _, holds in SHEETS if holds(Protocol.parse(name)))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which 5x40 comes before 10x20."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_cross_paper(name: str) -> bool:
    """Whether a protocol is CIFAR-100 in ten tasks, class- or task-incremental, or the miniature's ten tasks."""
    protocol = Protocol.parse(name)
    sequence = (protocol.dataset, protocol.base, protocol.tasks, protocol.classes)
    return protocol.kind in ("cil", "til") and sequence in (("cifar100", None, 10, 10), ("characters", None, 10, 4))


def on_common_ground(name: str) -> tuple[str, ...]:
    """The metrics that the sheet shows of a protocol; all classes at once have one accuracy, and nothing to forget."""
    return tuple(METRICS) if Protocol.parse(name).tasks else ("last", "total_parameters", "stored_floats")


def is_multi_domain(name: str) -> bool:
    """Whether a protocol is a sequence of data sets: MTIL's or X-TAIL's."""
    return Protocol.parse(name).kind in MULTI_DOMAIN


def _is_mtil(protocol: Protocol, order: tuple[str, ...], shots: int | None) -> bool:
    """Whether a protocol is MTIL on its own images in this order, by whichever name."""
    return protocol.kind == "mtil" and (protocol.order, protocol.shots, protocol.splits) == (order, shots, None)


def column(metric: str) -> str:
    """The column of a class-incremental metric: avg, last, or the metric itself."""
    return REPORTED.get(metric, (metric, ""))[0]


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 run", "2,000 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
