"""The method of a run: its recipe read off the flags, and the name that the paper's tables have for it."""

import argparse

from zscl.options import CURRENT, PREVIOUS, SEEN, distillation_terms, distils

LWF = "img + txt on current images and {} by previous model"
ZSCL_MINUS = "img + txt on ImageNet images and ImageNet prompts by CLIP"
CAPTIONED = "img + txt on ImageNet images and conceptual_captions by CLIP"
TABLE_NAMES = {  # spec of each row of Tables 3 and 10, and of the weight-space baselines
    "CE": "Fine-tuning",
    LWF.format("current prompts"): "LwF",
    LWF.format("random sentences"): "LwF-VR",
    "img + txt on exemplar images and current prompts by CLIP": "iCaRL",
    "WiSE-FT 0.8 with theta0": "WiSE-FT",
    "WC 1": "WC",
    "WE": "WE",
    ZSCL_MINUS: "ZSCL-",
    f"{ZSCL_MINUS}, WC 1": "ZSCL- + WC",
    f"{CAPTIONED}, WE": "ZSCL*",
    f"{CAPTIONED}, WE, WC 1": "ZSCL",
}


def method_label(args: argparse.Namespace) -> str:
    """The table's name for the recipe, or the recipe itself where no table has a row for it."""
    return TABLE_NAMES.get(recipe(args), recipe(args))


def recipe(args: argparse.Namespace) -> str:
    """What is added to cross-entropy, in words; "CE" for nothing."""
    parts = [distillation(args)] if distils(args) else []
    parts += ["WE"] if args.we else []
    parts += [f"WE-WiSE {args.we_wise_alpha:g}"] if args.we_wise else []
    parts += [f"moving average {args.mv_avg_decay:g} to {args.mv_avg_model}"] if args.moving_avg else []
    parts += [f"WC {args.l2:g}"] if args.l2 else []
    other = "theta0" if args.wise_ft_model == "n" else "CLIP"
    parts += [f"WiSE-FT {args.wise_ft_alpha:g} with {other}"] if args.wise_merge else []
    parts += [f"{args.train_mode} encoder only"] if args.train_mode != "whole" else []
    return ", ".join(parts) or "CE"


def distillation(args: argparse.Namespace) -> str:
    """Terms, reference images, sentences and teacher, such as "img + txt on ImageNet images and ... by CLIP"."""
    terms = " + ".join(distillation_terms(args)) + (" at half weight" if args.weight_adjust else "")
    images = "exemplar" if args.method == "icarl" else _current(args, args.ref_dataset)
    return f"{terms} on {images} images and {sentences(args)} by {teacher(args)}"


def sentences(args: argparse.Namespace) -> str:
    if args.text_datasets:
        told = "all prompts seen" if args.text_datasets == [SEEN] else "prompts of " + " ".join(args.text_datasets)
        return told
    if args.ref_sentences == "conceptual_captions":
        return args.ref_sentences
    if args.ref_sentences == "random":
        return "random sentences"
    source = CURRENT if args.method == "icarl" else args.ref_dataset
    return f"{_current(args, args.ref_sentences or source)} prompts"


def teacher(args: argparse.Namespace) -> str:
    if args.ref_wise:
        return f"CLIP pulled {args.ref_wise_alpha:g} to theta0"
    if args.ref_model is None:
        return "CLIP"
    return "previous model" if args.ref_model in (PREVIOUS, args.load) else args.ref_model


def _current(args: argparse.Namespace, name: str) -> str:
    """`current` where a one-task call names its own data set."""
    return CURRENT if [name] == args.train_dataset else name
