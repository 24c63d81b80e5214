"""IT-Prompt's options: every choice of our reading by its name, with its default, and the learners' presets."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import vit
from common.clip.activation import AUTO, CLIPOptions
from common.clip.pretrained import PUBLISHED, find_weights, fingerprint
from common.datasets.transforms import Normalisation
from common.mini import MINI, MINI_TOWER
from common.options import Rule, check_rules, one_placeholder, option, scale_option
from common.runs import file_md5
from vq_prompt.options import CONFIGS, Options

CLIP_BACKBONE = "clip_vitb16"
PRESETS: dict[str, dict[str, Any]] = {  # by --learner_name; selector and classifier can be overridden
    "ITPromptCNCM": {"selector": "cncm", "classifier": "cncm"},  # Applied Sciences 2025
    "ITPrompt": {"selector": "softmax", "classifier": "softmax"},  # ACM MM Asia 2024
    # bounds without prompts and without training: plain CLIP, and the nearest class mean of its image features
    "ZeroShot": {"selector": "none", "classifier": "text"},
    "NCM": {"selector": "none", "classifier": "cncm", "n_clusters": 1},
}
BLOCKS = dict.fromkeys(PUBLISHED, 12) | {"ViT-L/14": 24, "ViT-L/14@336px": 24, MINI: 4, MINI_TOWER: 4}


def _auto_or_bool(value: Any) -> Any:
    return {"true": True, "false": False}.get(str(value).lower(), value)


# fmt: off
@dataclass(frozen=True)
class ITOptions(CLIPOptions, Options):
    """The options of IT-Prompt and of its bounds. `settled` fills in what is None or auto by default."""

    learner_type: str = option(help="it_prompt, or prompt, which has options of its own", group="IT-Prompt")
    learner_name: str = option(choices=tuple(PRESETS))
    scale: str = scale_option(CONFIGS / "mini_it_prompt.yaml", decides=False)
    backbone: str = option(CLIP_BACKBONE, "CLIP, or a ViT, which has no texts",
        choices=(CLIP_BACKBONE, *(f"vit_{name}" for name in vit.available())))
    clip_weights: str = option("ViT-B/16", "of CLIP: a published name, a file, or mini")
    selector: str | None = option(None, "infers the task; by the learner", choices=("softmax", "cncm", "key", "oracle"))
    tpi_hidden: int = option(512, "width of the softmax selector", at_least=1)
    classifier: str | None = option(None, "what answers; by the learner", choices=("softmax", "cncm", "text"))
    scope: str = option("seen", "answer among all classes seen, or the inferred task's", choices=("seen", "task"))
    train_head: Any = option("auto", "train a softmax head; auto: where it answers, or no text guides the prompts",
        choices=("auto", True, False), convert=_auto_or_bool)
    text_guide: str | None = option(None, "the texts' loss; ce with CLIP, off with a ViT",
        choices=("ce", "cosine", "off"), convert=lambda value: value or "off")  # YAML reads off as false
    text_classes: str = option("current", "texts that ce compares: the task's, or all", choices=("current", "seen"))
    template: str = option("a photo of {}", "of the texts, {} for the class", check=one_placeholder)
    logit_scale: float = option(100.0, "of ce", above=0)
    lambda_text: float = option(1.0, "weight of the texts' loss", at_least=0)
    lambda_key: float = option(1.0, "weight of the key's loss", at_least=0)
    prompt_layers: list[int] = option([0, 1, 2, 3, 4], "blocks with prompts, from 0 on", at_least=0, unique=True)
    prompt_length: int = option(8, "prompts a block, half before the keys, half before the values", at_least=2,
        check=lambda length: "one half goes before the keys, give an even number." if length % 2 else None)
    prompt_init: float = option(1.0, "prompts start within plus and minus this", above=0)
    init_from_prev: bool = option(True, "prompts start as the last task's")
    epochs: int = option(20, "passes over a task", group="a task", at_least=1)
    batch_size: int = option(128, "images a step", at_least=1)
    drop_last: bool = option(False, "leave out an epoch's last batch unless it is full")
    rebalance: bool = option(True, "train softmax parts again on draws from each class's Gaussian")
    rebalance_epochs: int = option(10, "passes over these draws", at_least=1)
    rebalance_per_class: int = option(256, "draws of each class an epoch", at_least=1)
    rebalance_batch: int = option(128, "draws a step", at_least=1)
    rebalance_lr: float = option(0.0025, "their learning rate at its highest", above=0)
    n_clusters: int = option(10, "k-means centres a class; NCM has one", group="C-NCM", at_least=1)
    tukey_beta: float = option(1.0, "exponent of the power transform", above=0)
    center: bool = option(False, "take the mean of the first task's features off")
    renorm_centroids: bool = option(True, "bring centres to unit length")
    aggregate: str = option("min", "distance to a class: to its nearest centre, or the mean", choices=("min", "mean"))

    @property
    def has_prompts(self) -> bool:
        return PRESETS[self.learner_name]["selector"] != "none"

    @property
    def drops_last(self) -> bool:
        return self.drop_last and self.has_prompts

    @property
    def is_clip(self) -> bool:
        return self.backbone == CLIP_BACKBONE

    @property
    def backbone_weights(self) -> str:
        return self.clip_weights if self.is_clip else self.backbone.removeprefix("vit_")

    @property
    def fixed_orders(self) -> bool:
        return True

    @property
    def normalisation(self) -> Normalisation | None:
        return None if self.is_clip else super().normalisation

    def weights_file(self) -> Path:
        return find_weights(self.clip_weights) if self.is_clip else super().weights_file()

    def fingerprint(self) -> str:
        """Of the weights, for a run's settings."""
        return fingerprint(self.clip_weights, self.activation) if self.is_clip else file_md5(super().weights_file())
# fmt: on


def settled(options: ITOptions) -> ITOptions:
    """The options with what is None or auto filled in: by the learner's preset, then by the other options.

    Raises UserError for options that contradict each other.
    """
    check_rules(_contradictions(options))
    preset = PRESETS[options.learner_name]
    classifier = options.classifier or preset["classifier"]
    guide = options.text_guide or ("ce" if options.is_clip else "off")
    head = options.train_head
    if not isinstance(head, bool):
        head = options.has_prompts and (classifier == "softmax" or guide == "off")
    selector, clusters = options.selector or preset["selector"], preset.get("n_clusters", options.n_clusters)
    filled = dataclasses.replace(
        options, selector=selector, classifier=classifier, text_guide=guide, train_head=head, n_clusters=clusters
    )
    check_rules(_no_use(filled))
    return filled


def _contradictions(options: ITOptions) -> list[Rule]:
    """Rules for the options as they were given."""
    name, backbone, is_clip = options.learner_name, options.backbone, options.is_clip
    blocks = BLOCKS.get(options.backbone_weights, 0 if is_clip else 12)  # 0: a file of CLIP, which says when it is read
    is_resnet = is_clip and options.clip_weights in PUBLISHED and options.clip_weights.startswith("RN")
    return [
        (not options.has_prompts and (options.selector or options.classifier),
         f"{name} has no prompts: selector and classifier are not its options."),
        (not is_clip and options.text_guide not in (None, "off"),
         f"text_guide {options.text_guide}: {backbone} has no texts; leave it out or off."),
        (not is_clip and name == "ZeroShot", f"ZeroShot needs CLIP's texts, which {backbone} has not."),
        (not is_clip and options.classifier == "text", f"classifier text needs CLIP's texts, not {backbone}."),
        (not is_clip and options.activation != AUTO, f"activation: CLIP's; {backbone} has one of its own."),
        (is_resnet, f"clip_weights {options.clip_weights}: a ResNet; prompts go into a ViT, such as ViT-B/16."),
        (options.has_prompts and blocks and max(options.prompt_layers) >= blocks,
         f"prompt_layers {options.prompt_layers}: the backbone has blocks 0 to {blocks - 1}."),
    ]  # fmt: skip


def _no_use(options: ITOptions) -> list[Rule]:
    """Rules for settled options: prompts that no loss reaches, a classifier without its head."""
    head, guide = options.train_head, options.text_guide
    no_head = options.has_prompts and not head
    return [
        (options.classifier == "softmax" and not head, "classifier softmax: train_head false contradicts it."),
        (no_head and guide == "off", "text_guide off with train_head false: no loss would reach the prompts."),
        (no_head and options.lambda_text == 0,
         "lambda_text 0 without a head: no loss would reach the prompts. text_guide: off trains the head."),
    ]  # fmt: skip
