"""The class-incremental configurations: the original's keys under their names, ours after them, and the methods."""

from dataclasses import dataclass, field
from pathlib import Path

from common.cil import CILOptions, check_options, one_of
from common.command_line import check_rules
from common.datasets import canonical
from common.datasets.layout import CAPTIONS, PUBLISHED
from common.errors import UserError
from common.hydra_style import read_options
from zscl.reference import CONCEPTUAL_CAPTIONS, RANDOM

CONFIGS = Path(__file__).parent / "configs"
PRESETS = {"scale": {"paper": None, "mini": CONFIGS / "cil_mini.yaml"}}
CIL_NAMES = {  # method -> what tables call it
    "zeroshot": "Continual-CLIP",
    "finetune": "Fine-tuning",
    "ext": "Fine-tuning",  # its name in cifar100_2-2_new.yaml
    "lwf": "LwF",
    "lwfvr": "LwF-VR",
    "iCaRL": "iCaRL",
    "ZSCL": "ZSCL",
}
REFERENCE_TEXTS = {"lwf": None, "lwfvr": RANDOM, "iCaRL": None, "ZSCL": CONCEPTUAL_CAPTIONS}
PREVIOUS_MODEL = ("lwf", "lwfvr", "iCaRL")  # methods whose teacher is the model before the task
IDLE_KEYS = ("reference_pass", "cc_root", "ref_model")  # decide no number, or by what they lead to


@dataclass
class Options(CILOptions):
    """ZSCL's keys after those that MoE-Adapters has too; defaults where the files of the original lack a key."""

    l2: float = field(default=0.0, metadata={"help": "weight of the weight consolidation"})
    ce_method: int | str = field(
        default=0, metadata={"help": "classes of L_CE: 0 the task's, previous all seen, ext with 100 captions"}
    )
    we: int | None = field(default=None, metadata={"help": "1: weight ensemble, with method ZSCL"})
    avg_freq: int | None = field(default=None, metadata={"help": "steps between two samples of it"})
    ref_dataset: str | None = field(
        default=None, metadata={"help": "of ZSCL: conceptual_captions; a data set or a folder of images instead"}
    )
    ref_sentences: str | None = field(default=None, metadata={"help": "conceptual_captions or random, by method"})
    ref_model: str | None = field(default=None, metadata={"help": "accepted; the original never reads it"})
    memory_size: int = field(default=5000, metadata={"help": "ours: iCaRL's exemplars; 5000 in the original's code"})
    teacher: str = field(
        default="snapshot",
        metadata={"help": "ours, of lwf, lwfvr, iCaRL: snapshot, or aliased as released: the student itself"},
    )
    icarl_compat: bool = field(default=False, metadata={"help": "ours: exemplars as the released code stores them"})
    previous_compat: bool = field(
        default=False, metadata={"help": "ours: ce_method previous leaves out as many names as the first task has"}
    )
    cc_root: str | None = field(
        default=None, metadata={"help": "ours: folder of the caption list; dataset_root without it"}
    )
    reference_pass: str = field(
        default="auto", metadata={"help": "ours: joint, separate or auto, as of python -m zscl.main"}
    )


def parse(argv: list[str] | None = None) -> Options:
    """Read and check the command line; raises UserError for what is unknown, missing or contradicts itself."""
    options = read_options(argv, Options, Path(__file__).parent, "zscl.cil", PRESETS)
    check(options)
    for note in notes(options):
        print(f"note: {note}")
    return options


def check(options: Options) -> None:
    """Raise UserError for the first thing that is wrong with these values."""
    check_options(options)
    if options.method == "lwa":
        raise UserError("method=lwa fine-tunes in the released code and is an old name of ZSCL; say finetune or ZSCL.")
    one_of("method", options.method, CIL_NAMES)
    one_of("ce_method", str(options.ce_method), ("0", "ext", "previous"))
    one_of("teacher", options.teacher, ("snapshot", "aliased"))
    one_of("reference_pass", options.reference_pass, ("auto", "joint", "separate"))
    check_rules([*_number_rules(options), *_reference_rules(options)])
    if options.method == "ZSCL" and options.ref_dataset != CONCEPTUAL_CAPTIONS:
        if not Path(options.ref_dataset).expanduser().is_dir():
            canonical(options.ref_dataset, [CONCEPTUAL_CAPTIONS, *(name for name in PUBLISHED if name != CAPTIONS)])


def _number_rules(options: Options) -> list[tuple[bool, str]]:
    ensemble = "we=0 would switch the weight ensemble on in the original; say we=1 or we=null."
    frequency = f"avg_freq={options.avg_freq}: we=1 needs a number of steps, 10 in the published configurations."
    return [
        (options.we not in (None, 1), ensemble),
        (bool(options.we) and not (options.avg_freq or 0) > 0, frequency),
        (options.l2 < 0, f"l2={options.l2}: give 0 or more."),
        (options.method == "ext" and options.ce_method != "ext", "method=ext needs ce_method=ext."),
        (options.memory_size < 1, f"memory_size={options.memory_size}: give 1 or more."),
    ]


def _reference_rules(options: Options) -> list[tuple[bool, str]]:
    """ref_dataset and ref_sentences have one value a method in every configuration; what others would do is unknown."""
    method, texts = options.method, REFERENCE_TEXTS.get(options.method)
    captions = f"ce_method=ext draws captions: it needs ref_sentences={CONCEPTUAL_CAPTIONS}."
    needs = f"method={method} needs ref_sentences={_told(texts)}, not {_told(options.ref_sentences)}."
    images = f"method={method} has its own reference images: it needs ref_dataset=null, not {options.ref_dataset}."
    none = f"method=ZSCL needs ref_dataset={CONCEPTUAL_CAPTIONS}, or another data set or folder in its place."
    return [
        (options.ce_method == "ext" and options.ref_sentences != CONCEPTUAL_CAPTIONS, captions),
        (method in REFERENCE_TEXTS and options.ref_sentences != texts, needs),
        (method in PREVIOUS_MODEL and options.ref_dataset is not None, images),
        (method == "ZSCL" and not options.ref_dataset, none),
    ]


def _told(value: str | None) -> str:
    return "null" if value is None else value


def notes(options: Options) -> list[str]:
    """What is set and has no effect, as in the original, where that may surprise."""
    method = options.method
    idle = {
        "we": options.we is not None and method != "ZSCL",
        "teacher": options.teacher == "aliased" and method not in PREVIOUS_MODEL,
        "icarl_compat": options.icarl_compat and method != "iCaRL",
        "previous_compat": options.previous_compat and options.ce_method != "previous",
        "ref_model": options.ref_model is not None,
    }
    return [f"{key} has no effect with method={method}." for key, surprising in idle.items() if surprising]


def method_label(options: Options) -> str:
    """The method as the records name it; in brackets all that makes it another than the tables' row of that name."""
    variants = ["CLIP"] if options.method == "iCaRL" else []  # published rows named iCaRL are of another network
    if options.method == "ZSCL":
        variants += [] if options.we else ["no WE"]
        other = options.ref_dataset != CONCEPTUAL_CAPTIONS
        variants += [f"reference images: {Path(options.ref_dataset).name}"] if other else []
    variants += ["aliased teacher"] if options.method in PREVIOUS_MODEL and options.teacher == "aliased" else []
    variants += ["released memory"] if options.method == "iCaRL" and options.icarl_compat else []
    variants += {"ext": ["CE with captions"], "previous": ["CE over all seen"]}.get(options.ce_method, [])
    variants += [f"WC {options.l2:g}"] if options.l2 else []
    variants += ["centre-crop test"] if options.eval_transform == "test" else []
    return CIL_NAMES[options.method] + (f" ({', '.join(variants)})" if variants else "")
