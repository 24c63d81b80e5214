"""Words for people: papers, protocols and metrics by their spoken names, and the sheet a protocol belongs to."""

import re

PAPERS = {
    "zscl": "ZSCL",
    "moe_adapters": "MoE-Adapters",
    "inflora": "InfLoRA",
    "vq_prompt": "VQ-Prompt",
    "alta": "ALTA",
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
KINDS = {"cil": "class-incremental", "til": "task-incremental", "dil": "domain-incremental", "joint": "joint training"}
SHORT_KINDS = {"cil": "class-IL", "til": "task-IL", "dil": "domain-IL", "joint": "all classes at once"}
METRICS = {
    "transfer": "Transfer",
    "avg": "Avg",
    "last": "Last",
    "accuracy": "Accuracy",
    "forgetting": "Forgetting",
}  # also the order in which tables show them
# The class-incremental papers' own names: which column, and what the pair is called. InfLoRA's ACC and MoE-Adapters'
# Last pool all test images, VQ-Prompt's FAA is a mean over tasks, as is the macro variant.
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
INCREMENTAL = re.compile(r"(cil|til|dil|joint)-([a-z0-9_]+)(?:-(?:(\d+)\+)?(\d+)(?:x(\d+))?)?(?:-buffer(\d+))?")
CROSS_PAPER = {"paper": "CIFAR-100, 10 tasks", "mini": "Characters, 10 tasks"}  # the sheet, by scale
MTIL = "MTIL"  # the sheet of all its methods
# The order in which MTIL's tables and figures show methods: as ZSCL lists them, its ablations before it.
METHODS = (
    "Zero-shot CLIP", "Fine-tuning per data set", "Fine-tuning", "LwF", "iCaRL", "LwF-VR", "WiSE-FT", "WC", "WE",
    "moving average", "distillation", "ZSCL-", "ZSCL*", "ZSCL", "MoE-Adapters",
)  # fmt: skip

MINI_ONLY = ("Characters",)  # no sheet of the paper scale

# Sheet, what it holds, the protocols on it (first match counts).
SHEETS = (
    ("MTIL order 1", "Eleven data sets learned one after another, order I, all training images.", "mtil-order1"),
    ("MTIL order 2", "The eleven data sets in order II, all training images.", "mtil-order2"),
    ("MTIL 5-shot", "The eleven data sets in order I, five training images a class.", "mtil-order1-5shot"),
    ("CIL CIFAR-100", "CIFAR-100 in 10, 20 and 50 steps, class-incremental.", r"(cil|joint)-cifar100.*"),
    ("CIL TinyImageNet", "TinyImageNet: 100 classes, then 5, 10 and 20 steps.", r"cil-tinyimagenet-100\+.*"),
    ("CIL ImageNet", "ImageNet-100 and ImageNet-1000, class-incremental.", r"cil-imagenet(100|1000)-.*"),
    ("ImageNet-R", "ImageNet-R in 5, 10 and 20 tasks, and all classes at once.", r"\w+-imagenet_r\b.*"),
    ("CUB-200", "CUB-200 in 10 tasks.", r"\w+-cub200\b.*"),
    ("DomainNet", "DomainNet, class- and domain-incremental.", r"\w+-domainnet\b.*"),
    (
        "Characters",
        "The miniature's forty characters: among all classes seen (class-IL), within the task (task-IL), all at once.",
        r"(cil|til|joint)-characters\b.*",
    ),
    (
        "Class-IL and task-IL",
        "CIFAR-10, TinyImageNet and CIFAR-100 as ALTA and rehearsal are compared: among all classes seen (class-IL) or "
        + "within the task (task-IL).",
        r"(til-.*|(cil|joint)-(cifar10|tinyimagenet)\b.*)",
    ),
    ("Other protocols", "What fits no other sheet.", r".*"),
)


def paper(name: str) -> str:
    """The paper's method name for its folder name; an unknown one as it is."""
    return PAPERS.get(name, name)


def place(method: str) -> int:
    """Where a method of MTIL stands in METHODS; a variant stands with the method whose name begins its own."""
    known = [name for name in METHODS if method.startswith(name)]
    return METHODS.index(max(known, key=len)) if known else len(METHODS)


def metric(name: str) -> str:
    """A metric as it stands in a table's head."""
    return METRICS.get(name, name.replace("_", " "))


def protocol(name: str) -> str:
    """A protocol in words, such as "CIFAR-100: 10 tasks of 10 classes, class-incremental"; an unknown one as it is."""
    if match := re.fullmatch(r"mtil-order([12])(?:-(\d+)shot)?", name):
        return f"MTIL, order {'I' * int(match[1])}" + (f", {match[2]}-shot" if match[2] else "")
    return _incremental(name, KINDS, with_dataset=True)


def setting(name: str, with_dataset: bool) -> str:
    """A protocol in few words for a table: "10 tasks of 10 classes, class-IL"."""
    return protocol(name) if name.startswith("mtil") else _incremental(name, SHORT_KINDS, with_dataset)


def _incremental(name: str, kinds: dict[str, str], with_dataset: bool) -> str:
    if not (match := INCREMENTAL.fullmatch(name)):
        return name
    kind, data, base, steps, classes, buffer = match.groups()
    split = ""
    if steps:
        split = count(int(steps), "task") + (f" of {classes} classes" if classes else "")
        split = f"{base} classes, then {steps} steps of {classes}" if base else split
    words = [split, kinds[kind], f"buffer of {buffer}" if buffer else ""]
    text = ", ".join(word for word in words if word)
    return f"{DATASETS.get(data, data)}: {text}" if with_dataset else text


def dataset(name: str) -> str:
    """The data set of an incremental protocol; "" for others."""
    match = INCREMENTAL.fullmatch(name)
    return match[2] if match else ""


def sheet(name: str) -> str:
    """The sheet that a protocol's numbers land on (beside the cross-paper one)."""
    return next(title for title, _, pattern in SHEETS if re.fullmatch(pattern, name))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts 5x40 before 10x20."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_cross_paper(name: str) -> bool:
    """Whether a protocol is CIFAR-100 in ten tasks, class- or task-incremental, or the miniature's ten tasks."""
    return re.fullmatch(r"(cil|til)-(cifar100-10x10|characters-10x4)(-.+)?", name) is not None


def scale(name: str) -> str:
    """The scale as every title says it."""
    return "miniature, not comparable with published numbers" if name == "mini" else "paper scale"


def count(number: int, noun: str) -> str:
    """A number of things: "1 run", "2,000 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
