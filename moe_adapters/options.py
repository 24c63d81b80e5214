"""The command line: the original's flags under their names and defaults, ours in a group of their own.

`--train-dataset`, `--lr` and `--iterations` take one value, as the original, or a comma list, one a task: several
data sets are a sequence that one process learns.
"""

import argparse
from pathlib import Path
from typing import Any

from common.command_line import (
    RUN_FLAGS,
    RUNS_TWICE,
    SPEED_FLAGS,
    Rule,
    add_run_flags,
    add_speed_flags,
    check_rules,
    listed,
    mini_folder,
    mtil_names,
    mtil_protocol,
    preset_action,
)

CONFIGS = Path(__file__).parent / "configs"
REFERENCE_SET = "TinyImagenet"  # what the first autoencoder learns: images of no task
IGNORED_FLAGS = {  # parsed upstream, and without effect on this method there
    "multi_experts": "parsed and read nowhere",
    "eval_interval": "its evaluation call has the wrong arity and always failed",
    "eval_every_epoch": "its evaluation call has the wrong arity and always failed",
}
NOT_SETTINGS = (
    *RUN_FLAGS,
    *SPEED_FLAGS,
    "eval_interval",
    "loss_interval",
    "eval_every_epoch",
    "multi_experts",
    "ffn_option",
    "method",
    "train_mode",
)  # decide no number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moe_adapters.main",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        description="MoE-Adapters (arXiv 2403.11549) on MTIL: train a task or a sequence, evaluate checkpoints.",
        epilog="Try: bash moe_adapters/scripts/train_full_shot_order1.sh --scale mini",
    )
    _method_flags(parser.add_argument_group("method"))
    _training_flags(parser.add_argument_group("training"))
    _evaluation_flags(parser.add_argument_group("evaluation"))
    _run_flags(parser.add_argument_group("data, weights and run"))
    add_speed_flags(parser)
    return parser


def _method_flags(group: Any) -> None:
    group.add_argument(
        "--method", choices=["finetune"], default="finetune", help="only finetune reaches the adapters upstream"
    )
    group.add_argument(
        "--train-mode", choices=["adapter"], default="adapter", help="whole, text and image belong to ZSCL"
    )
    group.add_argument("--ffn_adapt", action="store_true", help="insert adapters")
    group.add_argument(
        "--ffn_adapt_where",
        choices=["AdapterDoubleEncoder", "AdapterImageEncoder"],
        default="AdapterDoubleEncoder",
        help="both encoders, or the image encoder alone",
    )
    group.add_argument("--ffn_option", choices=["parallel"], default="parallel", help="beside the MLP")
    group.add_argument("--ffn_num", type=int, default=64, help="bottleneck of an expert")
    group.add_argument("--apply_moe", action="store_true", help="experts and routers")
    group.add_argument("--multi_experts", action="store_true", help="accepted; upstream never reads it")
    group.add_argument("--experts_num", type=int, default=2, help="experts a block")
    group.add_argument("--topk", type=int, default=2, help="experts a sample")
    group.add_argument("--task_num", type=int, default=11, help="routers a block; one more autoencoder")
    group.add_argument(
        "--task_id",
        type=int,
        default=-1,
        help="router to train; with --train_chooser the autoencoder; "
        "with --eval-only --no-ddas the router of all images (-1: original CLIP)",
    )
    group.add_argument("--is_train", action="store_true", help="gate noise in training")
    group.add_argument("--frozen", action="store_true", help="do not train the experts named in --frozen-path")
    group.add_argument(
        "--frozen-path", default="frozen_list", help="list of frozen experts; a sequence keeps it in --save"
    )
    group.add_argument(
        "--freeze-bug-text-index",
        action="store_true",
        help="freeze visual experts by the text counts, as before 2024-07-18",
    )
    group.add_argument(
        "--balance-loss-weight",
        type=float,
        default=0.0,
        help="weight of the balance loss that upstream computes and drops",
    )


def _training_flags(group: Any) -> None:
    group.add_argument(
        "--train-dataset", type=listed(str), help="data set, or the sequence; order1 and order2 stand for the paper's"
    )
    group.add_argument("--lr", type=listed(float), default=[1e-3], help="learning rate")
    group.add_argument("--wd", type=float, default=0.0, help="weight decay")
    group.add_argument("--ls", type=float, default=0.0, help="label smoothing")
    group.add_argument("--beta2", type=float, default=0.999, help="AdamW")
    group.add_argument("--warmup_length", type=int, default=100, help="steps of linear warm-up")
    group.add_argument("--epochs", type=int, help="training length; excludes --iterations")
    group.add_argument("--iterations", type=listed(int), help="training length; one more step is taken")
    group.add_argument("--batch-size", type=int, default=64)
    group.add_argument("--seed", type=int, default=42, help="set anew for every task")
    group.add_argument("--few_shot", type=int, default=-1, help="images a class; -1: all")
    group.add_argument("--template", help="training prompt instead of the data set's first, {} for the class")
    group.add_argument("--repeat_train", action="store_true", help="start from --load")
    group.add_argument(
        "--train_chooser", action="store_true", help="train the DDAS autoencoder; in a sequence: all of them first"
    )
    group.add_argument(
        "--chooser-iterations",
        type=listed(int),
        default=[1000, 300],
        help="in a sequence: of the reference set, of each task",
    )
    group.add_argument("--loss-interval", type=int, default=1000, help="print the loss every so many steps")
    group.add_argument("--eval-interval", type=int, help="accepted; it never worked upstream")
    group.add_argument("--eval-every-epoch", action="store_true", help="accepted; it never worked upstream")


def _evaluation_flags(group: Any) -> None:
    group.add_argument(
        "--eval-only", action="store_true", help="evaluate --load: a checkpoint, or a folder of a sequence's"
    )
    group.add_argument(
        "--eval-datasets", type=listed(str), help="data sets to evaluate; order1 and order2 stand for the paper's"
    )
    group.add_argument(
        "--batch-size-eval", type=int, default=128, help="also the batch over which DDAS decides: it changes results"
    )
    group.add_argument("--autorouter", action="store_true", help="DDAS names the task of every batch")
    group.add_argument("--threshold", type=float, help="DDAS error above which a batch goes to the original CLIP")
    group.add_argument(
        "--load_autochooser", help="autoencoders of the checkpoint (default for a folder: the files in it)"
    )
    group.add_argument("--ddas-per-image", action="store_true", help="decide for every image by itself")
    group.add_argument(
        "--oracle-task-id", action="store_true", help="the data set's own router once learnt, else the original CLIP"
    )
    group.add_argument("--no-ddas", action="store_true", help="all images to the router --task_id")
    group.add_argument("--non_text", action="store_true", help="class vectors of the original CLIP for every router")


def _run_flags(group: Any) -> None:
    preset = preset_action(CONFIGS)
    add_run_flags(group, preset)
    group.add_argument(
        "--chooser-features", default="alexnet", help="DDAS features: alexnet (fetched), mini, or an AlexNet file"
    )
    group.add_argument("--preset", choices=["fewshot_v1"], action=preset, help="a named set of values from configs/")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; raises UserError for what contradicts itself or is missing."""
    args = build_parser().parse_args(argv)
    args.train_dataset, args.eval_datasets = mtil_names(args.train_dataset), mtil_names(args.eval_datasets)
    for flag, reason in IGNORED_FLAGS.items():
        if getattr(args, flag):
            print(f"note: --{flag} has no effect ({reason} upstream)")
    _check(args)
    args.save = mini_folder(args.save, args.scale)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for the first thing on the command line that is missing or contradicts another."""
    rules = [*_missing(args), *_contradictions(args)]
    if not args.eval_only:
        rules += _sequence_rules(args) if is_sequence(args) else _one_task_rules(args)
    check_rules(rules)


def _missing(args: argparse.Namespace) -> list[Rule]:
    training = not args.eval_only
    chooser_only = args.train_chooser and not is_sequence(args)
    nothing = "nothing to do: give --train-dataset to train, or --eval-only with --load and --eval-datasets."
    threshold = "--autorouter needs --threshold (0.0655 full-shot, 0.0585 5-shot; it belongs to the features)."
    load = "--eval-only needs --load (only --no-ddas can do without: the zero-shot row)."
    selector = "how images find their router is missing; give --autorouter, --oracle-task-id or --no-ddas."
    length = "how long to train is missing; give --iterations or --epochs."
    return [
        (training and not args.train_dataset, nothing),
        (training and not (args.epochs or args.iterations), length),
        (training and not args.save, "--save is missing: the folder for checkpoints and records."),
        (training and not chooser_only and not args.ffn_adapt, "training needs --ffn_adapt --apply_moe."),
        (args.eval_only and not args.eval_datasets, "--eval-only needs --eval-datasets."),
        (args.eval_only and not args.load and not args.no_ddas, load),
        (args.autorouter and args.threshold is None, threshold),
        (args.eval_datasets and not (args.autorouter or args.oracle_task_id or args.no_ddas), selector),
    ]


def _contradictions(args: argparse.Namespace) -> list[Rule]:
    names, selectors = args.train_dataset or [], (args.autorouter, args.oracle_task_id, args.no_ddas)
    single = "--ffn_adapt and --apply_moe go together: a single adapter without routers is not part of this project."
    shots = f"--few_shot {args.few_shot}: give a positive number, or -1 for all images."
    template = args.template
    return [
        (args.epochs and args.iterations, "--epochs and --iterations exclude each other; give one of them."),
        (sum(selectors) > 1, "--autorouter, --oracle-task-id and --no-ddas exclude each other."),
        (args.ffn_adapt != args.apply_moe, single),
        (args.few_shot == 0 or args.few_shot < -1, shots),
        (args.topk > args.experts_num, f"--topk {args.topk} is more than --experts_num {args.experts_num}."),
        (args.checkpoint_activations, f"--checkpoint-activations: {RUNS_TWICE}"),
        (len(set(names)) < len(names), "--train-dataset names a data set twice."),
        (template is not None and "{}" not in template, "--template needs {} where the class name stands."),
    ]


def _sequence_rules(args: argparse.Namespace) -> list[Rule]:
    tasks = len(args.train_dataset)
    rules = [
        (
            len(args.chooser_iterations) != 2,
            "--chooser-iterations takes two numbers: of the reference set, of each task.",
        ),
        (tasks > args.task_num, f"{tasks} tasks need as many routers: --task_num {tasks} or more."),
    ]
    for flag, values in (("--lr", args.lr), ("--iterations", args.iterations or [0])):
        wrong = f"{flag} has {len(values)} values for {tasks} data sets; give one, or one each."
        rules.append((len(values) not in (1, tasks), wrong))
    return rules


def _one_task_rules(args: argparse.Namespace) -> list[Rule]:
    lists = "several values of --lr or --iterations need several data sets in --train-dataset."
    highest = args.task_num if args.train_chooser else args.task_num - 1
    what = "autoencoder (0: reference set)" if args.train_chooser else "router"
    number = f"--task_id {args.task_id}: training one data set needs the number of its {what}, from 0 to {highest}."
    return [(len(args.lr) > 1 or len(args.iterations or [0]) > 1, lists), (not 0 <= args.task_id <= highest, number)]


def is_sequence(args: argparse.Namespace) -> bool:
    """Whether --train-dataset names several tasks, to be learned one after the other in this process."""
    return len(args.train_dataset or []) > 1


def protocol(args: argparse.Namespace) -> str:
    """The name of the protocol that a sequence follows, the few-shot ones' with the shots."""
    name = mtil_protocol(args.train_dataset)
    return name if args.few_shot < 0 else f"{name}-{args.few_shot}shot"


def method_label(args: argparse.Namespace) -> str:
    """The method as the records name it: the paper's, or the way its evaluation was changed."""
    if args.oracle_task_id:
        return "MoE-Adapters (oracle task id)"
    if args.no_ddas:
        return "MoE-Adapters (original CLIP)" if args.task_id < 0 else f"MoE-Adapters (router {args.task_id})"
    return "MoE-Adapters (DDAS per image)" if args.ddas_per_image else "MoE-Adapters"


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that decide numbers: what a run folder is compared by."""
    return {key: value for key, value in vars(args).items() if key not in NOT_SETTINGS}
