"""The name of a run's method, read off its flags: a row of the paper's tables, or the nearest one and what differs."""

import argparse
from pathlib import Path

import yaml

from zscl.options import CURRENT, PREVIOUS, SEEN, distillation_terms, distils, is_sequence

CAPTIONS, CURRENT_PROMPTS, RANDOM, IMAGENET = "captions", "current prompts", "random sentences", "ImageNet prompts"
TERM_NAMES = {"img": "image", "txt": "text", "ii": "image-image", "mse": "feature MSE"}
PULLED_TO = {"n": "", "t": " to the last", "zeroshot": " to CLIP"}  # theta0 needs no word


def method_label(args: argparse.Namespace) -> str:
    """Such as "ZSCL*", "ZSCL- + WC" or "ZSCL- (current images, image loss)"."""
    base, differing = distillation(args) if distils(args) else ("", [])
    if args.method == "icarl" and not base:
        base, differing = "iCaRL", ["no distillation"]
    added = weight_space(args)
    if base == "ZSCL-" and CAPTIONS in differing and "WE" in added:
        differing.remove(CAPTIONS)
        added.remove("WE")
        base = "ZSCL" if "WC" in added else "ZSCL*"  # as in Tables 3 and 10: the star has no WC
        added = [part for part in added if part != "WC"]
    differing += [f"{args.train_mode} encoder only"] if args.train_mode != "whole" else []
    name = " + ".join([base, *added] if base else added) or "Fine-tuning"
    return f"{name} ({', '.join(differing)})" if differing else name


def folder_label(args: argparse.Namespace) -> str:
    """For --eval-only: the label of the run that left the checkpoints in --load, else of the flags, else the folder."""
    folder, names = Path(args.load), args.train_dataset or args.eval_datasets
    for path in (folder / "config.yaml", folder / f"{names[-1]}.config.yaml"):
        if path.exists():
            return yaml.safe_load(path.read_text())["labels"]["method"]
    label = method_label(args)
    return folder.resolve().name if label == "Fine-tuning" else label


def distillation(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The row of the tables that distils most alike, and how this run differs from it."""
    images, texts, by = image_source(args), sentences(args), teacher(args)
    first_call = not is_sequence(args) and args.load is None and by == "CLIP"  # CLIP is the model before, too
    own_text = texts in (CURRENT_PROMPTS, RANDOM)
    if args.method == "icarl":
        base, usual = "iCaRL", ("exemplar images", CURRENT_PROMPTS, "CLIP")
    elif images == "current images" and (by == "previous model" or (first_call and own_text)):
        base, usual = ("LwF-VR", (images, RANDOM, by)) if texts == RANDOM else ("LwF", (images, CURRENT_PROMPTS, by))
    else:
        base, usual = "ZSCL-", ("ImageNet images", IMAGENET, "CLIP")
    found = (images, texts, by if by == usual[2] else f"teacher {by}")
    differing = [part for part, expected in zip(found, usual) if part != expected]
    terms = distillation_terms(args)
    differing += [] if terms == ("img", "txt") else [" + ".join(TERM_NAMES[term] for term in terms) + " loss"]
    differing += ["half weight"] if args.weight_adjust else []
    differing += [f"T {args.T:g}"] if args.T != 2 else []
    if args.method == "icarl":
        differing += ["exact quota"] if args.icarl_quota == "exact" else []
        differing += ["fixed herding"] if args.icarl_herding == "fixed" else []
    return base, differing


def image_source(args: argparse.Namespace) -> str:
    if args.method == "icarl":
        return "exemplar images"
    if args.ref_dataset in ("ImageNetSM", "ImageNetSUB"):
        return f"{args.ref_dataset} {args.num:.10g}"
    return f"{_current(args, args.ref_dataset)} images"


def sentences(args: argparse.Namespace) -> str:
    if args.text_datasets:
        return "all prompts seen" if args.text_datasets == [SEEN] else "prompts of " + " ".join(args.text_datasets)
    source = args.ref_sentences or (CURRENT if args.method == "icarl" else args.ref_dataset)
    named = {"conceptual_captions": CAPTIONS, "random": RANDOM, "ImageNetSUB": IMAGENET}  # all 1000 prompts
    return named.get(source, f"{_current(args, source)} prompts")


def teacher(args: argparse.Namespace) -> str:
    if args.ref_wise:
        return f"CLIP pulled {args.ref_wise_alpha:g} to theta0"
    if args.ref_model is None:
        return "CLIP"
    return "previous model" if args.ref_model in (PREVIOUS, args.load) else args.ref_model


def weight_space(args: argparse.Namespace) -> list[str]:
    """What is done to the weights; a published value goes without saying it."""
    parts = ["WE"] if args.we else []
    parts += [f"WE-WiSE {args.we_wise_alpha:g}"] if args.we_wise else []
    parts += [f"moving average {args.mv_avg_decay:g}{PULLED_TO[args.mv_avg_model]}"] if args.moving_avg else []
    parts += ["WC" if args.l2 == 1 else f"WC {args.l2:g}"] if args.l2 else []
    if args.wise_merge:
        alpha = "" if args.wise_ft_alpha == 0.8 else f" {args.wise_ft_alpha:g}"
        parts += [f"WiSE-FT{alpha}" + (" with CLIP" if args.wise_ft_model == "zeroshot" else "")]
    return parts


def _current(args: argparse.Namespace, name: str) -> str:
    """`current` where a one-task call names its own data set."""
    return CURRENT if [name] == args.train_dataset else name
