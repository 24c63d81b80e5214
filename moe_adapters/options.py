"""The options: the original's flags under their names and defaults, and ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import mini
from common.machine import RUNS_TWICE
from common.mtil import MTILOptions, evaluation_folder, mtil_notes, mtil_protocol, mtil_rules
from common.options import SHARE, Rule, check_rules, exclusive, ignored, option, read, scale_option
from common.processes import world_size
from common.runs import free_file, mini_folder
from moe_adapters.adapters import ORIGINAL_CLIP

CONFIGS = Path(__file__).parent / "configs"
REFERENCE_SET = "TinyImagenet"  # what the first autoencoder learns: images of no task
PRESETS = {"fewshot_v1": CONFIGS / "fewshot_v1.yaml"}
NO_EFFECT = "upstream reads it nowhere, or into an evaluation that always failed"


def frozen_list(path: str) -> str | None:
    """A check of --frozen-path, which a sequence keeps among its own files under this name."""
    name = Path(path).name
    if not name or Path(name).suffix in (".json", ".csv"):  # <data set>.json and the tables are the run's
        return "give a file's name that does not end in .json or .csv."
    return free_file(name)


@dataclass(frozen=True)
class Options(MTILOptions, ignored("multi_experts eval_interval eval_every_epoch", NO_EFFECT)):  # type: ignore[misc]
    """The method's flags; those that MTIL's papers share are in the base."""

    # fmt: off
    method: str = option("finetune", "nothing else reaches the adapters upstream", group="adapters",
        choices=("finetune",), decides=False)
    train_mode: str = option("adapter", "whole, text and image belong to ZSCL", choices=("adapter",), decides=False)
    ffn_adapt: bool = option(False, "insert adapters; goes with --apply_moe")
    ffn_adapt_where: str = option("AdapterDoubleEncoder", "both encoders, or the image encoder alone",
        choices=("AdapterDoubleEncoder", "AdapterImageEncoder"))
    ffn_option: str = option("parallel", "beside the MLP", choices=("parallel",), decides=False)
    ffn_num: int = option(64, "width of an expert's bottleneck", at_least=1)
    apply_moe: bool = option(False, "several experts a block, and a router a task")
    experts_num: int = option(2, "experts a block", at_least=1)
    topk: int = option(2, "experts that a router picks for a sample", at_least=1)
    task_num: int = option(11, "routers a block; there is one autoencoder more", at_least=1)
    task_id: int = option(ORIGINAL_CLIP, "router (with --train_chooser autoencoder) to train; with --no-ddas that of "
        "all images (-1: the original CLIP)", at_least=ORIGINAL_CLIP)
    is_train: bool = option(False, "gate noise in training")
    frozen: bool = option(False, "do not train the experts named in --frozen-path")
    frozen_path: str = option("frozen_list", "list of frozen experts; a sequence's: in its folder", check=frozen_list)
    freeze_bug_text_index: bool = option(False, "freeze visual experts by the text counts, as before 2024-07-18")
    balance_loss_weight: float = option(0.0, "weight of the balance loss that upstream computes and drops", at_least=0)
    repeat_train: bool = option(False, "start from --load")
    train_chooser: bool = option(False, "train the autoencoder of --task_id; in a sequence all of them first",
        group="DDAS: autoencoders that find an image's router")
    chooser_iterations: list[int] = option([1000, 300], "steps in a sequence: of the reference set, of each task",
        at_least=1, check=lambda steps: None if len(steps) == 2 else "give two: of the reference set, of each task.")
    chooser_features: str = option("alexnet", "features: alexnet (fetched), mini, or an AlexNet file")
    autorouter: bool = option(False, "DDAS names the task of every batch of --batch-size-eval images")
    threshold: float | None = option(None, "squared error above which a batch goes to the original CLIP", **SHARE)
    load_autochooser: str | None = option(None, "autoencoders of the checkpoint; of a folder: its own files without")
    ddas_per_image: bool = option(False, "decide for every image by itself")
    oracle_task_id: bool = option(False, "instead of DDAS: the set's own router once learnt, else the original CLIP")
    no_ddas: bool = option(False, "instead of DDAS: all images to the router --task_id")
    non_text: bool = option(False, "class vectors of the original CLIP for every router")
    scale: str = scale_option(CONFIGS / "mini.yaml", group="named sets of values")
    preset: str | None = option(None, "the script of the released few-shot checkpoint", presets=PRESETS)
    # fmt: on


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line; raises UserError for what is unknown, out of range, missing or contradictory."""
    description = "MoE-Adapters (arXiv 2403.11549) on MTIL: train a task or a sequence, evaluate checkpoints."
    usage = "Try: bash moe_adapters/scripts/train_full_shot_order1.sh --scale mini."
    options = read(Options, argv, "moe_adapters.main", description, usage)
    check_rules([*mtil_rules(options, tasks(options)), *_rules(options)])
    check_rules([] if options.eval_only or is_sequence(options) else _one_task_rules(options))
    for note in mtil_notes(options):
        print(f"note: {note}")
    return options


def _rules(options: Options) -> list[Rule]:
    training, load, count = not options.eval_only, options.load, len(tasks(options))
    chooser_only = options.train_chooser and not is_sequence(options)
    by_number = options.oracle_task_id or options.no_ddas
    picks, routers, router = options.topk, options.task_num, options.task_id
    adapters = "needs --ffn_adapt --apply_moe."
    return [
        (training and not chooser_only and not options.ffn_adapt, f"training {adapters}"),
        (not training and not options.eval_datasets, "--eval-only needs --eval-datasets."),
        (not training and not load and not options.no_ddas,
         "--eval-only needs --load (only --no-ddas can do without: the zero-shot row)."),
        (not training and load and not options.ffn_adapt, f"evaluating --load {load} {adapters}"),
        (training and load and Path(load).is_dir(),
         f"--load {load}: a folder; training starts from a checkpoint in it."),
        (options.autorouter and options.threshold is None,
         "--autorouter needs --threshold (0.0655 full-shot, 0.0585 5-shot; it belongs to the features)."),
        (options.eval_datasets and not (options.autorouter or by_number),
         "how images find their router is missing; give --autorouter, --oracle-task-id or --no-ddas."),
        exclusive(options, "autorouter", "oracle_task_id", "no_ddas"),
        *(exclusive(options, "ddas_per_image", name) for name in ("oracle_task_id", "no_ddas")),
        (options.ffn_adapt != options.apply_moe,
         "--ffn_adapt and --apply_moe go together: a single adapter without routers is not part of this project."),
        (picks > options.experts_num, f"--topk {picks} is more than --experts_num {options.experts_num}."),
        (options.checkpoint_activations, f"--checkpoint-activations: {RUNS_TWICE}"),
        (options.balance_loss_weight and world_size() > 1,
         "--balance-loss-weight needs the whole batch in one process. Run it without torchrun."),
        (count > routers, f"{count} tasks need as many routers: --task_num {count} or more."),
        (by_number and router >= routers,
         f"--task_id {router}: the routers are 0 to {routers - 1}; -1 is the original CLIP."),
    ]  # fmt: skip


def _one_task_rules(options: Options) -> list[Rule]:
    chooser_only, path = options.train_chooser and not options.ffn_adapt, Path(options.frozen_path)
    highest = options.task_num if chooser_only else options.task_num - 1
    what = "autoencoder (0: reference set)" if chooser_only else "router"
    number = f"--task_id {options.task_id}: training one data set needs the number of its {what}, from 0 to {highest}."
    no_file = f"--frozen-path {path}: no file can be written there. Give a file's name in a folder that exists."
    folder = output_folder(options)
    writable = path.parent.is_dir() or path.parent in (folder, *folder.parents)
    return [
        (not 0 <= options.task_id <= highest, number),
        (options.ffn_adapt and (path.is_dir() or not writable), no_file),
    ]


def tasks(options: Options) -> list[str]:
    """The data sets of --train-dataset in the order learned; none where a call only evaluates others."""
    return options.train_dataset or []


def sequence_of(options: Options) -> list[str]:
    """The data sets whose checkpoints are evaluated, in task order: the tasks, or those that --load must hold."""
    return tasks(options) or options.eval_datasets or []


def is_sequence(options: Options) -> bool:
    """Whether there are several tasks, to be learned one after the other in this process."""
    return len(tasks(options)) > 1


def autoencoder_file(name: str) -> str:
    """The file of all autoencoders after this data set, under its official name."""
    return f"{name}_autochooser.pth"


def output_folder(options: Options) -> Path:
    """Where the run's records lie; the evaluation of a folder without --save has its own in that folder."""
    folder = mini_folder(options.save, scale_of(options))
    return Path(folder) if folder else evaluation_folder(options)


def protocol(options: Options, before: Sequence[str] = ()) -> str:
    """The name of the protocol that a sequence follows after tasks of other calls; few-shot ones' with the shots."""
    return mtil_protocol(options, [*before, *sequence_of(options)])


def scale_of(options: Options) -> str:
    """The scale of the records: "mini" for a run on the miniature's images or weights, however it came to them."""
    return mini.scale_of(options.scale, options.data_location, options.model)


def method_label(options: Options) -> str:
    """The method as the records name it: the paper's, or the way its evaluation was changed."""
    if options.oracle_task_id:
        return "MoE-Adapters (oracle task id)"
    if options.no_ddas:
        return "MoE-Adapters (original CLIP)" if options.task_id < 0 else f"MoE-Adapters (router {options.task_id})"
    return "MoE-Adapters (DDAS per image)" if options.ddas_per_image else "MoE-Adapters"
