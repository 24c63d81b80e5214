"""VQ-Prompt's own options, under the original's names, and ours for what paper and code disagree on."""

from collections.abc import Sequence
from dataclasses import dataclass

from common import vit
from common.options import check_rules, option
from vq_prompt.base_options import CONFIGS, Options
from vq_prompt.prompts import CONVENTIONS, check_pool
from vq_prompt.training import SCHEDULES, check_schedule

VARIANTS = (  # keys of ours that make another method than the released code's
    "vq_weight_convention", "quantize", "normalize_query", "prompt_lr_mult", "coswm_first_step_full_lr",
    "ca_first_step_full_lr", "normalize_input",
)  # fmt: skip


def _three(values: Sequence[float]) -> str | None:
    return None if len(values) == 3 else "give pool size, prompt length and temperature."


@dataclass(frozen=True)
class VQOptions(Options):
    """The options of VQ-Prompt and of its bound, the nearest class mean."""

    learner_type: str = option(help="prompt, or it_prompt, which has options of its own", group="VQ-Prompt")
    learner_name: str = option(choices=("VQPrompt", "NCM"))
    scale: str = option("paper", "mini is the embedded miniature, in minutes; its values act where this stands",
        presets={"paper": None, "mini": CONFIGS / "mini.yaml"}, decides=False)
    pretrained_weight: str = option(
        "sup1k", f"{', '.join(vit.available())}, or a file in timm's keys",
        flags=("--pretrained_weight", "--pretrained_weigh"), decides=False,  # the second stands in cub-200.sh
    )  # fmt: skip
    prompt_param: list[float] = option([1.0, 1.0, 1.0], "pool size, prompt length, temperature", words=True,
        check=_three)
    schedule_type: str = option("coswm", "how the rate falls within a task", choices=SCHEDULES)
    schedule: list[int] = option([],
        "coswm: iterations of freeze, epochs of warm-up, epochs; else it ends with the epochs", at_least=0)
    iter_step: int = option(0, "iterations that coswm takes for an epoch", at_least=0)
    adaptive_pred: bool = option(True, "NO statistics and NO classifier re-training; --no_ca is ours, well named",
        off=("--adaptive_pred", "--no_ca"))
    n_centroids: int = option(1, "Gaussians a class", at_least=1)
    crct_epochs: int = option(10, "epochs of re-training", at_least=1)
    ca_lr: float = option(1e-4, "its learning rate", above=0)
    ca_weight_decay: float = option(5e-4, "its weight decay", at_least=0)
    ca_batch_size_ratio: float = option(4.0, "its samples a Gaussian: batch size times this", above=0)
    vq_weight_convention: str = option("code",
        "weights of commitment and codebook loss: 0.4 and 0.1 (code), or swapped (paper)", group="VQ-Prompt, ours",
        choices=tuple(CONVENTIONS))
    quantize: bool = option(True, "false: the mixture of all prompts itself, Soft-Prompt")
    normalize_query: bool = option(False, "normalise the query as the keys are")
    prompt_lr_mult: float = option(5.0, "the prompts' rate as a multiple of lr", above=0)
    coswm_first_step_full_lr: bool = option(True, "the first update of a task at the full rate, as the code has it")
    ca_first_step_full_lr: bool = option(True, "the same of re-training")
    normalize_input: bool = option(False, "normalise pixels by ImageNet's mean and deviation")

    @property
    def backbone_weights(self) -> str:
        return self.pretrained_weight


def samples_a_centroid(options: VQOptions) -> int:
    return int(options.batch_size * options.ca_batch_size_ratio)


def checked(options: VQOptions) -> VQOptions:
    """The options themselves. Raises UserError for values that contradict each other."""
    ratio, size = options.ca_batch_size_ratio, options.batch_size
    none_left = f"--ca_batch_size_ratio {ratio}: of batch_size {size} no sample is left."
    check_rules([(samples_a_centroid(options) < 1, none_left)])
    check_schedule(options.schedule_type, options.schedule, options.iter_step)
    if options.learner_name != "NCM":
        check_pool(*options.prompt_param)
    return options
