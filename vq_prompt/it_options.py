"""IT-Prompt's options: every choice of our reading by its name, with its default (spec B5), and the presets (B2.1)."""

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common import vit
from common.command_line import check_rules
from common.errors import UserError

CLIP_BACKBONE = "clip_vitb16"
PRESETS: dict[str, dict[str, Any]] = {  # by --learner_name; each value can be overridden
    "ITPromptCNCM": {"selector": "cncm", "classifier": "cncm"},  # Applied Sciences 2025
    "ITPrompt": {"selector": "softmax", "classifier": "softmax"},  # ACM MM Asia 2024
    # bounds without prompts and without training: plain CLIP, and the nearest class mean of its image features
    "ZeroShot": {"selector": "none", "classifier": "text"},
    "NCM": {"selector": "none", "classifier": "cncm", "n_clusters": 1},
}
LABELS = {  # in records; IT-Prompt's own carry the words, since no code and no full text was at hand
    "ITPromptCNCM": "IT-Prompt + C-NCM (our reading)",
    "ITPrompt": "IT-Prompt (our reading)",
    "ZeroShot": "Zero-shot CLIP",
    "NCM": "NCM, no prompts (CLIP)",
}
CHOICES = {
    "learner_name": tuple(PRESETS),
    "backbone": (CLIP_BACKBONE, *(f"vit_{name}" for name in vit.available())),
    "selector": ("softmax", "cncm", "key", "oracle"),
    "classifier": ("softmax", "cncm", "text"),
    "scope": ("seen", "task"),
    "train_head": ("auto", True, False),
    "text_guide": ("ce", "cosine", "off"),
    "text_classes": ("current", "seen"),
    "aggregate": ("min", "mean"),
    "zero_shot": ("plain",),
}


@dataclass(frozen=True)
class ITOptions:
    """One run's options. A `vit_*` backbone has no texts; train_head is settled to a bool by `it_options`."""

    learner_name: str = "ITPromptCNCM"
    backbone: str = CLIP_BACKBONE
    selector: str = "cncm"
    classifier: str = "cncm"
    scope: str = "seen"
    train_head: bool | str = "auto"
    text_guide: str = "ce"
    text_classes: str = "current"
    template: str = "a photo of {}"
    logit_scale: float = 100.0
    lambda_text: float = 1.0
    lambda_key: float = 1.0
    tpi_hidden: int = 512
    prompt_layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    prompt_length: int = 8
    prompt_init: float = 1.0
    init_from_prev: bool = True
    lr: float = 0.0025
    weight_decay: float = 0.0
    epochs: int = 20
    batch_size: int = 128
    drop_last: bool = False
    rebalance: bool = True
    rebalance_epochs: int = 10
    rebalance_per_class: int = 256
    rebalance_batch: int = 128
    rebalance_lr: float = 0.0025
    n_clusters: int = 10
    tukey_beta: float = 1.0
    center: bool = False
    renorm_centroids: bool = True
    aggregate: str = "min"
    zero_shot: str = "plain"

    clip_weights: str = "ViT-B/16"  # a published name, a file, or mini

    @property
    def has_prompts(self) -> bool:
        return PRESETS[self.learner_name]["selector"] != "none"

    @property
    def is_clip(self) -> bool:
        return self.backbone == CLIP_BACKBONE


# The keys of a configuration that are IT-Prompt's alone, None being "not given": what then holds, `settle` says.
OWN_KEYS: dict[str, Any] = {
    field.name: None
    for field in fields(ITOptions)
    if field.name not in ("learner_name", "lr", "weight_decay", "batch_size")
}
NOT_ITS_OWN = (  # flags and keys of VQ-Prompt that would do nothing here
    "prompt_param", "adaptive_pred", "n_centroids", "crct_epochs", "ca_lr", "ca_weight_decay", "ca_batch_size_ratio",
    "pretrained_weight", "schedule", "schedule_type", "iter_step",
)  # fmt: skip


def settle(options: argparse.Namespace, source: str | Path, named: Iterable[str]) -> None:
    """Fill IT-Prompt's keys of a flat namespace in place, those that are None with what the learner's preset says.

    named: the keys that file and command line give. Raises UserError as `it_options` does, and for keys of VQ-Prompt.
    """
    foreign = sorted(set(named) & set(NOT_ITS_OWN))
    if foreign:
        raise UserError(f"{', '.join(foreign)}: VQ-Prompt's, and without effect on IT-Prompt. Leave them out.")
    given = {key: value for key, value in vars(options).items() if key in OWN_KEYS and value is not None}
    given |= {key: getattr(options, key) for key in ("lr", "weight_decay", "batch_size")}
    settled = it_options(options.learner_name, given, f"configuration {source}")
    vars(options).update(dict.fromkeys(NOT_ITS_OWN) | asdict(settled) | {"prompt_layers": list(settled.prompt_layers)})


def it_options(learner_name: str, given: dict[str, Any], source: str = "") -> ITOptions:
    """The options of a learner: its preset, then what is `given`; source: the file that a message is about.

    Raises UserError for an unknown name or key, a value of another type or range, and options that contradict each
    other.
    """
    where = f"{source}: " if source else ""
    _one_of(where, "learner_name", learner_name)
    defaults = {field.name: field.default for field in fields(ITOptions)}
    for key in given:
        if key not in defaults or key == "learner_name":
            near = difflib.get_close_matches(key, defaults, n=1)
            raise UserError(f"{where}unknown key {key}.{f' Did you mean {near[0]}?' if near else ''}")
    values = {"learner_name": learner_name} | PRESETS[learner_name]
    values |= {key: _typed(where, key, value, defaults[key]) for key, value in given.items()}
    if learner_name == "NCM":
        values["n_clusters"] = 1  # by its definition, whatever C-NCM of the same configuration has
    for key in CHOICES:
        if key in given:
            _one_of(where, key, values[key])
    backbone = values.get("backbone", CLIP_BACKBONE)
    if backbone != CLIP_BACKBONE:
        if values.get("text_guide", "off") != "off":
            raise UserError(f"{where}text_guide {values['text_guide']}: {backbone} has no texts; leave it out or off.")
        values["text_guide"] = "off"
    options = ITOptions(**values)
    _check(where, options, given)
    if options.train_head == "auto":
        head = options.has_prompts and (options.classifier == "softmax" or options.text_guide == "off")
        options = ITOptions(**values | {"train_head": head})
    return options


def _one_of(where: str, key: str, value: Any) -> None:
    if not any(type(value) is type(known) and value == known for known in CHOICES[key]):  # True == 1
        told = [str(known) for known in CHOICES[key]]
        near = difflib.get_close_matches(str(value), told, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}{key} {value}: unknown.{hint} Known are {', '.join(told)}.")


def _typed(where: str, key: str, value: Any, default: Any) -> Any:
    """The value as its default's type: whole numbers serve as float, YAML's off (which is false) as text_guide off."""
    if key == "train_head" or (key == "text_guide" and value is False):
        return "off" if key == "text_guide" else value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        if all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value):
            return tuple(value)
    elif isinstance(value, type(default)) and (isinstance(default, bool) or not isinstance(value, bool)):
        return value
    kind = "list of whole numbers" if isinstance(default, tuple) else type(default).__name__
    raise UserError(f"{where}{key} is {value!r}, which is no {kind}.")


def _check(where: str, options: ITOptions, given: dict[str, Any]) -> None:
    layers = options.prompt_layers
    at_least_one = (
        "epochs", "batch_size", "tpi_hidden", "n_clusters", "rebalance_epochs", "rebalance_per_class",
        "rebalance_batch",
    )  # fmt: skip
    above_zero = ("lr", "rebalance_lr", "logit_scale", "tukey_beta", "prompt_init")
    not_negative = ("weight_decay", "lambda_text", "lambda_key")
    rules = [
        *((getattr(options, key) < 1, f"{key} {getattr(options, key)}: give 1 or more.") for key in at_least_one),
        *((not getattr(options, key) > 0, f"{key} {getattr(options, key)}: give more than 0.") for key in above_zero),
        *((not getattr(options, key) >= 0, f"{key} {getattr(options, key)}: give 0 or more.") for key in not_negative),
        (
            options.prompt_length < 2 or options.prompt_length % 2 == 1,
            f"prompt_length {options.prompt_length}: one half goes before the keys, one before the values; give an "
            "even number of 2 or more.",
        ),
        (
            not layers or len(set(layers)) < len(layers) or min(layers) < 0,
            f"prompt_layers {list(layers)}: give different block numbers, counted from 0.",
        ),
        ("{}" not in options.template, f"template {options.template!r} needs {{}} where the class name stands."),
    ]
    check_rules((wrong, where + message) for wrong, message in [*rules, *_contradictions(options, given)])


def _contradictions(options: ITOptions, given: dict[str, Any]) -> list[tuple[bool, str]]:
    name = options.learner_name
    no_loss = options.text_guide == "off" and options.train_head is False
    return [
        (
            not options.has_prompts and bool({"selector", "classifier"} & given.keys()),
            f"{name} has no prompts: selector and classifier are not its options.",
        ),
        (
            name == "ZeroShot" and not options.is_clip,
            f"ZeroShot needs CLIP's texts, which {options.backbone} has not.",
        ),
        (
            not options.is_clip and options.has_prompts and options.classifier == "text",
            f"classifier text needs CLIP's texts, which {options.backbone} has not.",
        ),
        (
            options.classifier == "softmax" and options.train_head is False,
            "classifier softmax needs its head: train_head false contradicts it.",
        ),
        (
            options.has_prompts and no_loss,
            "text_guide off with train_head false: no loss would reach the prompts.",
        ),
        (
            options.has_prompts and options.lambda_text == 0 and options.text_guide != "off"
            and (options.train_head is False or options.train_head == "auto" and options.classifier != "softmax"),
            "lambda_text 0 without a head: no loss would reach the prompts. text_guide: off trains the head.",
        ),
    ]  # fmt: skip


def method_label(options: ITOptions) -> str:
    """The method as records name it: the learner's label, then what makes it another method than its preset."""
    told = {"scope": "seen", "text_guide": "ce", "text_classes": "current", "rebalance": True}
    told |= PRESETS[options.learner_name]
    if not options.has_prompts:
        return LABELS[options.learner_name]
    if not options.is_clip:
        told["text_guide"] = "off"
    changed = [f"{key} {getattr(options, key)}" for key, value in told.items() if getattr(options, key) != value]
    return ", ".join([LABELS[options.learner_name], *changed])
