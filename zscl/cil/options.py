"""The class-incremental configurations: the original's keys under their names, ours after them, and the methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.datasets.layout import CAPTIONS, PUBLISHED
from common.errors import UserError
from common.incremental.common_ground import protocol_option
from common.incremental.options import CILOptions, find_configuration, miniature, missing_rules
from common.options import Rule, check_rules, hand_on, option, read, scale_option, unknown
from common.training.schedules import cil_cosine_with_warmup
from zscl.reference import CONCEPTUAL_CAPTIONS, RANDOM
from zscl.training import TrainingOptions, joint_pass

FOLDER = Path(__file__).parents[1]
CONFIGS = FOLDER / "configs"
IMAGES = (CONCEPTUAL_CAPTIONS, *(name for name in PUBLISHED if name != CAPTIONS))  # of ref_dataset, besides a folder
CIL_NAMES = {  # method -> what tables call it; ext is a name of cifar100_2-2_new.yaml
    "zeroshot": "Continual-CLIP", "finetune": "Fine-tuning", "ext": "Fine-tuning", "lwf": "LwF", "lwfvr": "LwF-VR",
    "iCaRL": "iCaRL", "ZSCL": "ZSCL",
}  # fmt: skip
REFERENCE_TEXTS = {"lwf": None, "lwfvr": RANDOM, "iCaRL": None, "ZSCL": CONCEPTUAL_CAPTIONS}
KD_WEIGHT = 5.0  # w of L_img and L_txt; two constants in the original's code
PREVIOUS_MODEL = ("lwf", "lwfvr", "iCaRL")  # methods whose teacher is the model before the task


def known_method(name: str) -> str:
    """The name; UserError for one that means two methods."""
    if name == "lwa":
        raise UserError("lwa fine-tunes in the released code and is an old name of ZSCL; say finetune or ZSCL.")
    return name


def one(number: int) -> str | None:
    """A check of `we`: the original asks whether it is null."""
    return None if number == 1 else "it would switch the weight ensemble on in the original; say we=1 or we=null."


@dataclass(frozen=True)
class Options(CILOptions):
    """ZSCL's keys, before those that MoE-Adapters has too; defaults where the files of the original lack a key."""

    # a table: an option a line or two
    # fmt: off
    method: str = option(help="what is learned how", group="method", choices=tuple(CIL_NAMES), convert=known_method)
    scale: str = scale_option(miniature(CONFIGS / "cil_mini.yaml"))
    protocol: str | None = protocol_option(CONFIGS / "common.yaml")
    ce_method: Any = option(0, "classes of L_CE: 0 the task's, previous all seen, ext with 100 captions",
        choices=(0, "previous", "ext"), convert=lambda value: 0 if value == "0" else value)
    l2: float = option(0.0, "weight of the weight consolidation", at_least=0)
    we: int | None = option(None, "1: weight ensemble, with method ZSCL", check=one)
    avg_freq: int | None = option(None, "steps between two samples of it", at_least=1)
    ref_dataset: str | None = option(None, "of ZSCL: conceptual_captions; a data set or a folder of images instead")
    ref_sentences: str | None = option(None, "by method", choices=(CONCEPTUAL_CAPTIONS, RANDOM))
    ref_model: str | None = option(None, ignored="the original never reads it")
    memory_size: int = option(5000, "ours: iCaRL's exemplars; 5000 in the original's code", at_least=1)
    teacher: str = option("snapshot", "ours, of lwf, lwfvr, iCaRL: aliased is the student itself, as released",
        choices=("snapshot", "aliased"))
    icarl_compat: bool = option(False, "ours: exemplars as the released code stores them")
    previous_compat: bool = option(False, "ours: ce_method previous leaves out as many names as the first task has")
    # the captions' fingerprint is among a run's settings
    cc_root: str | None = option(None, "ours: folder of the caption list [dataset_root]", decides=False)
    reference_pass: str = option("auto", "ours: as of zscl.main", choices=("auto", "joint", "separate"), decides=False)
    # fmt: on


def parse(argv: list[str] | None = None) -> Options:
    """Read and check the command line; raises UserError for what is unknown, missing or contradicts itself."""
    description = "ZSCL (arXiv 2303.06628) and its baselines, class-incremental: a configuration and what overrides it."
    usage = "Try: bash zscl/scripts/cil/all_methods.sh --scale mini."
    options = read(Options, argv, "zscl.cil", description, usage, find_configuration(FOLDER))
    check_rules([*missing_rules(options), *_rules(options)])
    for note in notes(options):
        print(f"note: {note}")
    return options


def _rules(options: Options) -> list[Rule]:
    """ref_dataset and ref_sentences have one value a method in every configuration; what others would do is unknown."""
    method, texts = options.method, REFERENCE_TEXTS.get(options.method)
    frequency = "avg_freq is missing: we=1 needs a number of steps, 10 in the published configurations."
    captions = f"ce_method=ext draws captions: it needs ref_sentences={CONCEPTUAL_CAPTIONS}."
    needs = f"method={method} needs ref_sentences={texts or 'null'}, not {options.ref_sentences or 'null'}."
    images = f"method={method} has its own reference images: it needs ref_dataset=null, not {options.ref_dataset}."
    none = f"method=ZSCL needs ref_dataset={CONCEPTUAL_CAPTIONS}, or another data set or folder in its place."
    name = options.ref_dataset or ""
    exists = name in IMAGES or Path(name).expanduser().is_dir()
    return [
        (options.we and not options.avg_freq, frequency),
        (method == "ext" and options.ce_method != "ext", "method=ext needs ce_method=ext."),
        (options.ce_method == "ext" and options.ref_sentences != CONCEPTUAL_CAPTIONS, captions),
        (method in REFERENCE_TEXTS and options.ref_sentences != texts, needs),
        (method in PREVIOUS_MODEL and options.ref_dataset is not None, images),
        (method == "ZSCL" and not name, none),
        (method == "ZSCL" and not exists, unknown(f"ref_dataset {name}", name, IMAGES)),
    ]


def notes(options: Options) -> list[str]:
    """What is set and has no effect, as in the original, where that may surprise."""
    method = options.method
    idle = {
        "we": options.we is not None and method != "ZSCL",
        "teacher": options.teacher == "aliased" and method not in PREVIOUS_MODEL,
        "icarl_compat": options.icarl_compat and method != "iCaRL",
        "previous_compat": options.previous_compat and options.ce_method != "previous",
    }
    return [f"{key} has no effect with method={method}." for key, surprising in idle.items() if surprising]


def method_label(options: Options) -> str:
    """The method as the records name it; in brackets all that makes it another than the tables' row of that name."""
    method = options.method
    variants = {
        "CLIP": method == "iCaRL",  # published rows named iCaRL are of another network
        "no WE": method == "ZSCL" and not options.we,
        f"reference images: {Path(options.ref_dataset or '').name}":
            method == "ZSCL" and options.ref_dataset != CONCEPTUAL_CAPTIONS,
        "aliased teacher": method in PREVIOUS_MODEL and options.teacher == "aliased",
        "released memory": method == "iCaRL" and options.icarl_compat,
        "CE with captions": options.ce_method == "ext",
        "CE over all seen": options.ce_method == "previous",
        f"WC {options.l2:g}": options.l2,
        "centre-crop test": options.eval_transform == "test" and not options.protocol,  # on common ground all have it
    }  # fmt: skip
    brackets = ", ".join(text for text, holds in variants.items() if holds)
    return CIL_NAMES[method] + (f" ({brackets})" if brackets else "")


def training_options(options: Options, batches: int, device: torch.device) -> TrainingOptions:
    """The loop's options for a task of so many batches. Quirk: `we` counts only with method ZSCL."""
    return hand_on(
        TrainingOptions,
        options,
        iterations=options.epochs * batches,
        label_smoothing=options.ls,
        terms=("img", "txt"),
        kd_weight=KD_WEIGHT,
        ensemble="we" if options.we and options.method == "ZSCL" else None,
        avg_freq=options.avg_freq or 1,
        joint_pass=joint_pass(options.reference_pass, device),
        loss_interval=None,
        schedule=cil_cosine_with_warmup,
    )
