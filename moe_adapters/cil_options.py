"""Class-incremental options: the original's keys under their names, then ours, and the training that they ask for."""

from dataclasses import dataclass
from pathlib import Path

from common.incremental.common_ground import protocol_option
from common.incremental.options import CILOptions, find_configuration, miniature, missing_rules
from common.machine import RUNS_TWICE
from common.options import check_rules, ignored, option, read, scale_option
from common.training.schedules import cil_cosine_with_warmup
from moe_adapters.training import TrainingOptions

FOLDER = Path(__file__).parent
CONFIGS = FOLDER / "configs"
METHODS = {"MoE-Adapters": "MoE-Adapters", "zeroshot": "Continual-CLIP"}  # as configurations and as records name them
UNREAD = "l2 ce_method we avg_freq ref_dataset ref_sentences"


@dataclass(frozen=True)
class Options(CILOptions, ignored(UNREAD, "upstream never reads it")):  # type: ignore[misc]
    """The keys of configs/class/*.yaml. Those that are ignored stand in the originals' files."""

    scale: str = scale_option(miniature(CONFIGS / "cil_mini.yaml"))
    protocol: str | None = protocol_option(CONFIGS / "common.yaml")
    method: str = option(help="what is learned", group="method", choices=tuple(METHODS))
    eval_noise: bool = option(True, "ours: gate noise in evaluation too, as the original; false takes it out")


def parse(argv: list[str] | None = None) -> Options:
    """Read and check the command line; raises UserError for what is unknown, missing or contradicts itself."""
    description = "MoE-Adapters (arXiv 2403.11549), class-incremental: a configuration and what overrides it."
    usage = "Try: bash moe_adapters/scripts/cil/run_cifar100-10-10.sh --scale mini."
    options = read(Options, argv, "moe_adapters.cil", description, usage, find_configuration(FOLDER))
    check_rules([(options.checkpoint_activations, f"checkpoint_activations: {RUNS_TWICE}"), *missing_rules(options)])
    return options


def method_label(options: Options) -> str:
    """The method as the records name it, with what of its evaluation is not the original's."""
    trained = options.method != "zeroshot"
    changed = ["no eval noise"] if trained and not options.eval_noise else []
    # on common ground all have it
    changed += ["centre-crop test"] if options.eval_transform == "test" and not options.protocol else []
    return METHODS[options.method] + (f" ({', '.join(changed)})" if changed else "")


def training_options(options: Options, total: int) -> TrainingOptions:
    """One task's training in MTIL's terms: total + 1 steps, the image encoder first, noise in the gates."""
    return TrainingOptions(
        lr=options.lr,
        iterations=total,
        warmup=options.warmup,
        label_smoothing=options.ls,
        weight_decay=options.weight_decay,
        image_first=True,
        schedule=cil_cosine_with_warmup,
    )
