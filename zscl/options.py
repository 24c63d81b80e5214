"""The command line: the original's flags under their names and defaults, ours marked as such in their help.

`--train-dataset`, `--lr` and `--iterations` take one value, as the original, or a comma list, one a task: several data
sets are a sequence that one process learns. Three words stand for what differs from task to task: `--ref-dataset
current` and `--ref-sentences current`, `--ref-model previous`, `--text-datasets seen`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from common import mini
from common.datasets import canonical
from common.datasets.layout import CAPTIONS
from common.mtil import MTILOptions, mtil_names, mtil_notes, mtil_rules
from common.options import LARGEST_COUNT, SHARE, Rule, check_rules, exclusive, ignored, option, read, scale_option
from common.runs import mini_folder
from zscl.reference import CLASS_SETS, IMAGE_SOURCES, SENTENCE_SOURCES, class_count, sentence_sources, subset_size

CURRENT, PREVIOUS, SEEN = "current", "previous", "seen"
OLD_SPELLINGS = {"lwa": "ZSCL", "lwf": "finetune"}  # lwa: its name in older scripts; lwf never had code of its own
ICARL_LR, OTHER_ICARL_LR = {"Aircraft": 5e-5, "MNIST": 5e-5}, 1e-5  # set in upstream's code, which ignores --lr
NAMELESS = ("TinyImagenet", CAPTIONS)
IMAGENET = 1_000, 1_281_167  # its classes and training images; main.py counts those that are there
TERM_FLAGS = {"image_loss": "img", "text_loss": "txt", "ablation_loss_2": "ii", "feature_mse": "mse"}
ENSEMBLE_FLAGS = ("we", "we_wise", "moving_avg")
UNREAD = (
    "fair lwf baseline trio rff fc_init fc_setnone dataset_shift freeze_encoder fisher fisher_floor exp_name freeze_fc "
    "basic_model_load fc_load keep_old_heads control_dataset control_dataset_add n_class results_db"
)


def known_order(names: list[str]) -> list[str]:
    """The names as they were given, which a run's settings hold; UserError as `mtil_names`."""
    mtil_names(names)
    return names


def one_of(names: Collection[str], word: str) -> Callable[[str], str]:
    """The `convert` of an option that names one of these data sets, or `word`. It raises UserError for other names."""
    return lambda name: name if name == word else canonical(name, names)


def text_sources(names: list[str]) -> list[str]:
    """Names of data sets with class names, or `seen` alone. Raises UserError for others."""
    return names if names == [SEEN] else [canonical(name, CLASS_SETS) for name in names]


@dataclass(frozen=True)
class Options(MTILOptions, ignored(UNREAD, "read nowhere on MTIL upstream")):  # type: ignore[misc]  # made at run time
    """ZSCL's own flags, before those that MoE-Adapters has too."""

    # a table: an option a line or two
    # fmt: off
    method: str = option("finetune", "ZSCL distils; lwf is finetune and lwa ZSCL, as in the older scripts",
        group="method", choices=("finetune", "ZSCL", "icarl"), convert=lambda name: OLD_SPELLINGS.get(name, name))
    scale: str = scale_option(Path(__file__).parent / "configs" / "mini.yaml")
    train_mode: str = option("whole", "which encoders are trained", choices=("whole", "text", "image"))
    dataset_order: list[str] | None = option(None, "iCaRL's --train-dataset", convert=known_order, unique=True)
    memory_size: int = option(10000, "iCaRL's exemplars, K", at_least=1)
    icarl_quota: str = option("upstream", "ours: exemplars of the newest set, K - K/t as in the code, or K/t",
        choices=("upstream", "exact"))
    icarl_herding: str = option("upstream", "ours: images by the original's shifted index, or as herding means",
        choices=("upstream", "fixed"))
    icarl_lr: float | None = option(None, "ours: instead of 5e-5 for Aircraft and MNIST, 1e-5 for others", above=0)

    image_loss: bool = option(False, "L_img: distil each image's view of the sentences",
        group="distillation (--method ZSCL and icarl)")
    text_loss: bool = option(False, "L_txt: distil each sentence's view of the images")
    ablation_loss_2: bool = option(False, "L_ii: distil image-image similarities")
    feature_mse: bool = option(False, "L_mse on the features")
    weight_adjust: bool = option(False, "weight 0.5 on L_img, L_txt, L_ii")
    T: float = option(2.0, "temperature", above=0)
    ref_dataset: str | None = option(None, "ImageNet, ImageNetSM, ImageNetSUB, a data set, or current: the task's",
        convert=one_of(IMAGE_SOURCES, CURRENT))
    ref_sentences: str | None = option(None, "conceptual_captions, random, a set's prompts, current",
        convert=one_of(SENTENCE_SOURCES, CURRENT))
    text_datasets: list[str] | None = option(None, "prompts of these; seen: all learnt", convert=text_sources)
    ref_model: str | None = option(None, "the teacher's checkpoint, or previous; default: pre-trained CLIP")
    ref_wise: bool = option(False, "teacher = (1 - alpha) CLIP + alpha theta0")
    ref_wise_alpha: float = option(0.8, "its alpha", **SHARE)
    num: float = option(64.0, "classes of ImageNetSM; images of ImageNetSUB, or a share of at most 1", above=0)
    reference_pass: str = option("auto", "ours: reference images with the task's, or after them",
        choices=("auto", "joint", "separate"), decides=False)
    cache_dir: str = option("~/.cache/zscl", "ours: keeps the teacher's features; none: nothing", decides=False)

    we: bool = option(False, "weight ensemble: save a running mean", group="weight space", flags=("--we", "--swa"))
    we_wise: bool = option(False, "WE pulled to theta0", flags=("--we_wise", "--swa_wise"))
    we_wise_alpha: float = option(0.98, "its alpha", flags=("--we_wise_alpha", "--swa_wise_alpha"), **SHARE)
    moving_avg: bool = option(False, "pull the live weights to a reference")
    mv_avg_decay: float = option(0.999, "weight of the live weights in it", **SHARE)
    mv_avg_model: str = option("n", "theta0, before the last pull, or CLIP", choices=("n", "t", "zeroshot"))
    avg_freq: int = option(100, "steps between two samples of these", at_least=1)
    l2: float = option(0.0, "weight consolidation: lambda of sum (theta - theta0)^2", at_least=0)
    wise_merge: bool = option(False, "WiSE-FT after the last step")
    wise_ft_model: str = option("n", "with theta0 or with CLIP", choices=("n", "zeroshot"))
    wise_ft_alpha: float = option(0.8, "weight of the fine-tuned model", **SHARE)

    first_tasks: int | None = option(None, "ours: stop after so many tasks; without it the run goes on", at_least=1,
        group="how far to train, and watching it", decides=False)
    eval_interval: int | None = option(None, "evaluate every so many steps, before the step", at_least=1, decides=False)
    eval_every_epoch: bool = option(False, "evaluate before each epoch", decides=False)

    wise_ft: bool = option(False, "evaluate alpha x --load + (1 - alpha) x CLIP",
        group="what --eval-only evaluates instead of --load")
    alpha: float = option(0.5, "its alpha", **SHARE)
    load_federate: list[str] | None = option(None, "evaluate the uniform average of these checkpoints")
    # fmt: on


def parse(argv: list[str] | None = None) -> Options:
    """Read and check the command line; raises UserError for what contradicts itself or is missing."""
    description = "ZSCL (arXiv 2303.06628) and its baselines on MTIL: train a task or a sequence, evaluate it."
    options = read(Options, argv, "zscl.main", description, "Try: bash zscl/scripts/ZSCL.sh 1 --scale mini.")
    check_rules([*_method_rules(options), *mtil_rules(options, tasks(options)), *_rules(options)])
    if "ImageNetSM" in (options.ref_dataset, options.ref_sentences, *(options.text_datasets or ())):
        class_count(options.num, IMAGENET[0])
    if options.ref_dataset == "ImageNetSUB":
        subset_size(options.num, IMAGENET[1])
    for note in [*notes(options), *mtil_notes(options)]:
        print(f"note: {note}")
    return options


def _method_rules(options: Options) -> list[Rule]:
    training, icarl, terms = not options.eval_only, options.method == "icarl", distillation_terms(options)
    size, count = options.memory_size, len(tasks(options))
    exemplars = "--method icarl distils on exemplars and the task's prompts: leave out --ref-dataset, --ref-sentences"
    needs = "--method ZSCL distils on reference images: --ref-dataset is missing (ImageNet in the paper; current: LwF)."
    return [
        (icarl and training and (options.train_dataset or not options.dataset_order),
         "--method icarl learns all tasks in one process: give --dataset_order instead of --train-dataset."),
        (icarl and training and options.load, "--method icarl starts from CLIP: --load does not go with it."),
        (icarl and (options.ref_dataset or options.ref_sentences or options.text_datasets),
         f"{exemplars} and --text-datasets."),
        (icarl and size < count, f"--memory_size {size}: {count} tasks share the exemplars. Give {count} or more."),
        (not icarl and options.dataset_order, "--dataset_order belongs to --method icarl; use --train-dataset."),
        (options.method == "ZSCL" and training and not options.ref_dataset, needs),
        (options.method == "finetune" and terms, f"{' and '.join(terms)}: losses that need --method ZSCL or icarl."),
        exclusive(options, "ref_model", "ref_wise"),
    ]  # fmt: skip


def _rules(options: Options) -> list[Rule]:
    training, folder = not options.eval_only, options.load and Path(options.load).is_dir()
    nameless = [name for name in (*tasks(options), *(options.eval_datasets or ())) if name in NAMELESS]
    return [
        (nameless, f"{', '.join(nameless)} has no class names here: it is neither a task nor a test set."),
        (not training and not options.eval_datasets and (folder or not options.save),
         "--eval-only needs --eval-datasets."),
        (training and (options.wise_ft or options.load_federate),
         "--wise_ft and --load_federate belong to --eval-only; --wise_merge is WiSE-FT in training."),
        (options.wise_ft and folder, f"--wise_ft evaluates one checkpoint, --load {options.load} is a folder."),
        (training and folder, f"--load {options.load}: a folder; training starts from a checkpoint in it."),
        (options.wise_merge and (options.we or options.we_wise),
         "--wise_merge with --we or --we_wise: the saved mean would lose the merge. Give one of them."),
        *length_rules(options, min(options.iterations or [LARGEST_COUNT])),
        *(exclusive(options, *names) for names in (("eval_interval", "eval_every_epoch"), ("load", "load_federate"),
                                                   ENSEMBLE_FLAGS)),
    ]  # fmt: skip


def length_rules(options: Options, shortest: int) -> list[Rule]:
    """Rules on the number of steps of the shortest task."""
    averages = any(getattr(options, flag) for flag in ENSEMBLE_FLAGS)
    frequency = f"--avg_freq {options.avg_freq}: give a number from 1 to"
    length = f"--iterations ({shortest})" if options.iterations else f"{shortest}, the steps of the shortest task"
    return [(averages and options.avg_freq > shortest, f"{frequency} {length}, or nothing is averaged.")]


def notes(options: Options) -> list[str]:
    """What is set and has no effect, where that may surprise."""
    training = not options.eval_only
    names = ("ref_dataset", "ref_sentences", "text_datasets", "ref_model", "ref_wise", "weight_adjust")
    idle = [f"--{name}" for name in names if getattr(options, name)] if training and not distils(options) else []
    of_icarl = options.icarl_lr and options.method != "icarl" and options.scale == "paper"  # the miniature's sets it
    return [
        *([f"without effect: {', '.join(idle)} (nothing is distilled; see --method and --image_loss)"] if idle else []),
        *(["without effect: --icarl_lr (of --method icarl)"] if of_icarl else []),
    ]


# What follows from the options


def tasks(options: Options) -> list[str]:
    """The data sets that are learned one after the other; none where --eval-only names none."""
    return mtil_names(options.dataset_order or []) if options.method == "icarl" else options.train_dataset or []


def sequence(options: Options) -> list[str]:
    """The data sets whose checkpoints are evaluated, in task order: the tasks, or with --eval-only the test sets."""
    return tasks(options) or options.eval_datasets or []


def is_sequence(options: Options) -> bool:
    """Whether several tasks are learned one after the other in this process."""
    return len(tasks(options)) > 1


def run_folder(options: Options) -> str | None:
    """Where --save puts checkpoints and records at this scale."""
    return mini_folder(options.save, scale_of(options))


def scale_of(options: Options) -> str:
    """The scale of the records: "mini" for a run on the miniature's images or weights, however it came to them."""
    return mini.scale_of(options.scale, options.data_location, options.model)


def reference_sources(options: Options, task_id: int) -> tuple[str, list[str]]:
    """The data set of the reference images that a task distils on, and the sources of the sentences."""
    current, seen = tasks(options)[task_id], options.text_datasets == [SEEN]
    images = current if options.ref_dataset in (None, CURRENT) else options.ref_dataset
    sentences = current if options.ref_sentences == CURRENT else options.ref_sentences
    texts = tasks(options)[: task_id + 1] if seen else options.text_datasets or ()
    return images, sentence_sources(images, sentences, texts)


def same_reference(options: Options) -> bool:
    """Whether all tasks distil on the same images and sentences."""
    return CURRENT not in (options.ref_dataset or CURRENT, options.ref_sentences) and options.text_datasets != [SEEN]


def distils(options: Options) -> bool:
    """Whether any loss of distillation is asked for; without one KD would be computed and thrown away."""
    return options.method != "finetune" and bool(distillation_terms(options))


def distillation_terms(options: Options) -> tuple[str, ...]:
    return tuple(term for flag, term in TERM_FLAGS.items() if getattr(options, flag))
