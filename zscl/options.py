"""The command line: the original's flags under their names and defaults, ours marked as such in their help.

`--train-dataset`, `--lr` and `--iterations` take one value, as the original, or a comma list, one a task: several data
sets are a sequence that one process learns. Three words stand for what differs from task to task: `--ref-dataset
current` and `--ref-sentences current`, `--ref-model previous`, `--text-datasets seen`.
"""

import argparse
from pathlib import Path
from typing import Any

from common.command_line import (
    RUN_FLAGS, SPEED_FLAGS, Rule, add_run_flags, add_speed_flags, check_rules, listed, mini_folder, mtil_names,
    preset_action,
)  # fmt: skip
from common.datasets.layout import CAPTIONS
from zscl.training import TrainingOptions

CURRENT, PREVIOUS, SEEN = "current", "previous", "seen"
OLD_SPELLINGS = {"lwa": "ZSCL", "lwf": "finetune"}  # lwa: its name in older scripts; lwf never had code of its own
ICARL_LR, OTHER_ICARL_LR = {"Aircraft": 5e-5, "MNIST": 5e-5}, 1e-5  # set in upstream's code, which ignores --lr
NAMELESS = ("TinyImagenet", CAPTIONS)
TERM_FLAGS = {"image_loss": "img", "text_loss": "txt", "ablation_loss_2": "ii", "feature_mse": "mse"}
ENSEMBLE_FLAGS = ("we", "we_wise", "moving_avg")
IGNORED_SWITCHES = (
    "fair",
    "lwf",
    "baseline",
    "trio",
    "rff",
    "fc_init",
    "fc_setnone",
    "dataset_shift",
    "freeze_encoder",
)
IGNORED_VALUES = (
    "fisher", "fisher_floor", "exp_name", "freeze_fc", "basic_model_load", "fc_load", "keep_old_heads",
    "control_dataset", "control_dataset_add", "n_class", "results_db",
)  # fmt: skip
UNDERSCORED = ("fisher_floor", "exp_name", "basic_model_load", "fc_load", "keep_old_heads", "n_class")
NOT_SETTINGS = (
    *RUN_FLAGS, *SPEED_FLAGS, *IGNORED_SWITCHES, *IGNORED_VALUES, "cache_dir", "reference_pass", "first_tasks",
    "loss_interval", "eval_interval", "eval_every_epoch",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zscl.main",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        description="ZSCL (arXiv 2303.06628) and its baselines on MTIL: train a task or a sequence, evaluate it.",
        epilog="Try: bash zscl/scripts/ZSCL.sh 1 --scale mini",
    )
    _method_flags(parser.add_argument_group("method"))
    _distillation_flags(parser.add_argument_group("distillation (--method ZSCL and icarl)"))
    _weight_flags(parser.add_argument_group("weight space"))
    _training_flags(parser.add_argument_group("training"))
    _evaluation_flags(parser.add_argument_group("evaluation"))
    run = parser.add_argument_group("data, weights and run")
    add_run_flags(run, preset_action(Path(__file__).parent / "configs"))
    run.add_argument(
        "--cache-dir", default="~/.cache/zscl", help="keeps the teacher's features for later runs; none: keep nothing"
    )
    add_speed_flags(parser)
    ignored = parser.add_argument_group("accepted and ignored: read nowhere on MTIL upstream")
    for name in IGNORED_SWITCHES:
        ignored.add_argument(_flag(name), action="store_true", help=argparse.SUPPRESS)
    for name in IGNORED_VALUES:
        ignored.add_argument(_flag(name), help=argparse.SUPPRESS)
    return parser


def _flag(name: str) -> str:
    return "--" + (name if name in UNDERSCORED else name.replace("_", "-"))


def _method_flags(group: Any) -> None:
    group.add_argument(
        "--method",
        type=lambda text: OLD_SPELLINGS.get(text, text),
        choices=["finetune", "ZSCL", "icarl"],
        default="finetune",
        help="ZSCL turns distillation on; lwf is finetune and lwa is ZSCL, as in the older scripts",
    )
    group.add_argument(
        "--train-mode", choices=["whole", "text", "image"], default="whole", help="which encoders are trained"
    )
    group.add_argument("--dataset_order", type=listed(str), help="iCaRL's task order; order1 and order2 work too")
    group.add_argument("--memory_size", type=int, default=10000, help="iCaRL's exemplar budget K")
    group.add_argument(
        "--icarl-quota",
        choices=["upstream", "exact"],
        default="upstream",
        help="ours: exemplars of the newest set, K - K/t as in the original's code, or K/t",
    )
    group.add_argument(
        "--icarl-herding",
        choices=["upstream", "fixed"],
        default="upstream",
        help="ours: images taken by the original's shifted index, or those that herding means",
    )
    group.add_argument("--icarl-lr", type=float, help="ours: instead of 5e-5 for Aircraft and MNIST, 1e-5 for others")


def _distillation_flags(group: Any) -> None:
    group.add_argument("--image_loss", action="store_true", help="L_img: distil each image's view of the sentences")
    group.add_argument("--text_loss", action="store_true", help="L_txt: distil each sentence's view of the images")
    group.add_argument("--ablation_loss_2", action="store_true", help="L_ii: distil image-image similarities")
    group.add_argument("--feature_mse", action="store_true", help="L_mse on the features")
    group.add_argument("--weight_adjust", action="store_true", help="weight 0.5 on L_img, L_txt, L_ii")
    group.add_argument("--T", type=float, default=2.0, help="temperature")
    group.add_argument(
        "--ref-dataset",
        help="reference images: ImageNet, ImageNetSM, ImageNetSUB, conceptual_captions, a data set, or current",
    )
    group.add_argument(
        "--ref-sentences",
        help="conceptual_captions, random, a data set (its class prompts), or current; default: those of --ref-dataset",
    )
    group.add_argument(
        "--text-datasets", type=listed(str), help="class prompts of these data sets as sentences; seen: all learnt"
    )
    group.add_argument("--ref-model", help="the teacher's checkpoint, or previous; default: pre-trained CLIP")
    group.add_argument("--ref-wise", action="store_true", help="teacher = (1 - alpha) CLIP + alpha theta0")
    group.add_argument("--ref_wise_alpha", type=float, default=0.8, help="its alpha")
    group.add_argument("--num", type=float, default=64, help="classes of ImageNetSM, images (share) of ImageNetSUB")
    group.add_argument(
        "--reference-pass",
        choices=["auto", "joint", "separate"],
        default="auto",
        help="ours: task and reference images through the student together (fewer launches), or one after the other "
        "(half the activations); auto: joint on a CPU, separate on a GPU",
    )


def _weight_flags(group: Any) -> None:
    group.add_argument("--we", "--swa", dest="we", action="store_true", help="weight ensemble: save a running mean")
    group.add_argument("--we_wise", "--swa_wise", dest="we_wise", action="store_true", help="WE pulled to theta0")
    group.add_argument("--we_wise_alpha", "--swa_wise_alpha", dest="we_wise_alpha", type=float, default=0.98)
    group.add_argument("--moving_avg", action="store_true", help="pull the live weights to a reference")
    group.add_argument("--mv_avg_decay", type=float, default=0.999)
    group.add_argument(
        "--mv_avg_model", choices=["n", "t", "zeroshot"], default="n", help="theta0, before the last pull, or CLIP"
    )
    group.add_argument("--avg_freq", type=int, default=100, help="steps between two samples of these")
    group.add_argument("--l2", type=float, default=0.0, help="weight consolidation: lambda of sum (theta - theta0)^2")
    group.add_argument("--wise_merge", action="store_true", help="WiSE-FT after the last step")
    group.add_argument("--wise_ft_model", choices=["n", "zeroshot"], default="n", help="with theta0 or with CLIP")
    group.add_argument("--wise_ft_alpha", type=float, default=0.8, help="weight of the fine-tuned model")


def _training_flags(group: Any) -> None:
    group.add_argument(
        "--train-dataset", type=listed(str), help="data set, or the sequence; order1 and order2 stand for the paper's"
    )
    group.add_argument("--lr", type=listed(float), default=[1e-3], help="peak learning rate; ignored by iCaRL")
    group.add_argument("--wd", type=float, default=0.0, help="weight decay")
    group.add_argument("--ls", type=float, default=0.0, help="label smoothing")
    group.add_argument("--beta2", type=float, default=0.999, help="AdamW")
    group.add_argument("--warmup_length", type=int, default=100, help="steps of linear warm-up")
    group.add_argument("--epochs", type=int, help="training length; excludes --iterations")
    group.add_argument("--iterations", type=listed(int), help="training length; one more step is taken")
    group.add_argument("--batch-size", type=int, default=64, help="also of reference images and exemplars")
    group.add_argument("--seed", type=int, default=42, help="set anew for every task")
    group.add_argument("--template", help="training prompt instead of the data set's first, {} for the class")
    group.add_argument("--loss-interval", type=int, default=1000, help="print the losses every so many steps")
    group.add_argument("--first-tasks", type=int, help="ours: stop after so many tasks; without it the run goes on")


def _evaluation_flags(group: Any) -> None:
    group.add_argument(
        "--eval-only", action="store_true", help="evaluate --load: a checkpoint, or a folder of a sequence's"
    )
    group.add_argument(
        "--eval-datasets", type=listed(str), help="data sets to evaluate; order1 and order2 stand for the paper's"
    )
    group.add_argument("--batch-size-eval", type=int, default=128)
    group.add_argument("--eval-interval", type=int, help="evaluate every so many steps, before the step")
    group.add_argument("--eval-every-epoch", action="store_true", help="evaluate before each epoch")
    group.add_argument(
        "--wise_ft",
        "--wise-ft",
        dest="wise_ft",
        action="store_true",
        help="evaluate alpha x --load + (1 - alpha) x CLIP",
    )
    group.add_argument("--alpha", type=float, default=0.5, help="its alpha")
    group.add_argument("--load_federate", type=listed(str), help="evaluate the uniform average of these checkpoints")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; raises UserError for what contradicts itself or is missing."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in (*IGNORED_SWITCHES, *IGNORED_VALUES):
        if getattr(args, name):
            print(f"note: {_flag(name)} has no effect on MTIL (upstream parses it and reads it nowhere)")
    check_rules(_rules(args))
    args.train_dataset = mtil_names(args.dataset_order if args.method == "icarl" else args.train_dataset)
    args.eval_datasets = mtil_names(args.eval_datasets)
    check_rules(_sequence_rules(args))
    args.save = mini_folder(args.save, args.scale)
    return args


def distils(args: argparse.Namespace) -> bool:
    """Whether any loss of distillation is asked for; without one KD would be computed and thrown away."""
    return args.method != "finetune" and bool(distillation_terms(args))


def distillation_terms(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(term for flag, term in TERM_FLAGS.items() if getattr(args, flag))


def _rules(args: argparse.Namespace) -> list[Rule]:
    """What is missing or contradictory, before names are looked up."""
    training, icarl = not args.eval_only, args.method == "icarl"
    averages = [flag for flag in ENSEMBLE_FLAGS if getattr(args, flag)]
    length = "how long to train is missing; give --iterations or --epochs."
    folder = "--save is missing: the folder for checkpoints and records."
    needs = "--method ZSCL distils on reference images: --ref-dataset is missing (ImageNet in the paper; current: LwF)."
    order = "--method icarl learns all tasks in one process: give --dataset_order instead of --train-dataset."
    own = "--method icarl distils on exemplars and the task's prompts: leave out --ref-dataset, --ref-sentences and "
    own += "--text-datasets."
    nothing = "nothing to do: give --train-dataset to train, or --eval-only with --eval-datasets."
    idle = f"{' and '.join(distillation_terms(args))}: distillation terms need --method ZSCL or icarl."
    both = f"--{' and --'.join(averages)} exclude each other; no published number combines them."
    merge = "--wise_merge with --we or --we_wise: the saved mean would lose the merge. Give one of them."
    return [
        (icarl and training and (args.train_dataset or not args.dataset_order), order),
        (icarl and training and args.load, "--method icarl starts from CLIP: --load does not go with it."),
        (icarl and (args.ref_dataset or args.ref_sentences or args.text_datasets), own),
        (not icarl and args.dataset_order, "--dataset_order belongs to --method icarl; use --train-dataset."),
        (training and not (args.train_dataset or args.dataset_order), nothing),
        (training and not (args.epochs or args.iterations), length),
        (args.epochs and args.iterations, "--epochs and --iterations exclude each other; give one of them."),
        (args.eval_interval and args.eval_every_epoch, "--eval-interval and --eval-every-epoch exclude each other."),
        (training and not args.save, folder),
        *_evaluation_rules(args),
        (args.method == "ZSCL" and training and not args.ref_dataset, needs),
        (args.method == "finetune" and distillation_terms(args), idle),
        (args.ref_model and args.ref_wise, "--ref-model and --ref-wise both choose the teacher; give one of them."),
        (len(averages) > 1, both),
        (args.wise_merge and (args.we or args.we_wise), merge),
        (args.template is not None and "{}" not in args.template, "--template needs {} where the class name stands."),
        *_averaging_rules(args, averages),
        *_number_rules(args),
    ]


def _evaluation_rules(args: argparse.Namespace) -> list[Rule]:
    folder = args.load and Path(args.load).is_dir()
    late = "--wise_ft and --load_federate belong to --eval-only; --wise_merge is WiSE-FT in training."
    both = "--load and --load_federate both say what is evaluated; give one of them."
    one = f"--wise_ft evaluates one checkpoint, and {args.load} is a folder. Name a file in it."
    return [
        (args.eval_only and not args.eval_datasets and (folder or not args.save), "--eval-only needs --eval-datasets."),
        (not args.eval_only and (args.wise_ft or args.load_federate), late),
        (args.load and args.load_federate, both),
        (args.wise_ft and folder, one),
        (not args.eval_only and folder, f"--load {args.load}: a folder; training starts from a checkpoint in it."),
    ]


def _number_rules(args: argparse.Namespace) -> list[Rule]:
    """Numbers that no run could use."""
    counts = ("batch_size", "batch_size_eval", "memory_size", "loss_interval", "eval_interval", "first_tasks", "epochs")
    rules = [
        (getattr(args, name) is not None and getattr(args, name) < 1, f"{_spelled(name)}: give 1 or more.")
        for name in counts
    ]
    return rules + [
        (any(count < 1 for count in args.iterations or []), "--iterations: give 1 or more."),
        (args.warmup_length < 0, "--warmup_length: give 0 or more."),
        (any(not rate >= 0 for rate in args.lr) or not args.wd >= 0, "--lr and --wd: give 0 or more."),
        (not 0 <= args.beta2 < 1, f"--beta2 {args.beta2:g}: give 0 or more, less than 1."),
        (not 0 <= args.ls <= 1, f"--ls {args.ls:g}: label smoothing lies between 0 and 1."),
        (not args.T > 0, f"--T {args.T:g}: the temperature is more than 0."),
    ]


def _spelled(name: str) -> str:
    return "--" + (name if name == "memory_size" else name.replace("_", "-"))


def _averaging_rules(args: argparse.Namespace, averages: list[str]) -> list[Rule]:
    shortest = min(args.iterations or [args.avg_freq])
    frequency = (
        f"--avg_freq {args.avg_freq}: give a number from 1 to --iterations ({shortest}), or nothing is averaged."
    )
    return [(averages and not 1 <= args.avg_freq <= shortest, frequency)]


def _sequence_rules(args: argparse.Namespace) -> list[Rule]:
    names = args.train_dataset or []
    nameless = [name for name in (*names, *(args.eval_datasets or ())) if name in NAMELESS]
    rules = [
        (len(set(names)) < len(names), "the sequence names a data set twice."),
        (nameless, f"{', '.join(nameless)} has no class names here: it is neither a task nor a test set."),
    ]
    for flag, values in (("--lr", args.lr), ("--iterations", args.iterations or [0])):
        wrong = f"{flag} has {len(values)} values for {len(names)} data sets; give one, or one each."
        rules.append((not args.eval_only and len(values) not in (1, len(names)), wrong))
    return rules


def is_sequence(args: argparse.Namespace) -> bool:
    """Whether several tasks are learned one after the other in this process."""
    return len(args.train_dataset or []) > 1


def training_options(args: argparse.Namespace, lr: float, iterations: int, epoch: int, joint: bool) -> TrainingOptions:
    """The loop's options for one task; `epoch` is its number of batches an epoch."""
    return TrainingOptions(
        lr=lr,
        iterations=iterations,
        warmup=args.warmup_length,
        label_smoothing=args.ls,
        weight_decay=args.wd,
        beta2=args.beta2,
        train_mode=args.train_mode,
        temperature=args.T,
        terms=distillation_terms(args),
        kd_weight=0.5 if args.weight_adjust else 1.0,
        l2=args.l2,
        ensemble=next((flag for flag in ENSEMBLE_FLAGS if getattr(args, flag)), None),
        avg_freq=args.avg_freq,
        we_wise_alpha=args.we_wise_alpha,
        mv_avg_decay=args.mv_avg_decay,
        mv_avg_model=args.mv_avg_model,
        wise_merge=args.wise_ft_model if args.wise_merge else None,
        wise_ft_alpha=args.wise_ft_alpha,
        joint_pass=joint,
        loss_interval=args.loss_interval,
        eval_interval=epoch if args.eval_every_epoch else args.eval_interval or 0,
    )
