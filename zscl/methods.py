"""The name of a run's method, read off its flags: a row of the paper's tables, or the nearest one and what differs."""

from pathlib import Path

import yaml

from common.files import read_back
from common.mtil import tasks_behind
from zscl.options import CURRENT, PREVIOUS, SEEN, Options, distillation_terms, distils, is_sequence, sequence, tasks

CAPTIONS, CURRENT_PROMPTS, RANDOM, IMAGENET = "captions", "current prompts", "random sentences", "ImageNet prompts"
TERM_NAMES = {"img": "image", "txt": "text", "ii": "image-image", "mse": "feature MSE"}
PULLED_TO = {"n": "", "t": " to the last", "zeroshot": " to CLIP"}  # theta0 needs no word


def method_label(options: Options) -> str:
    """Such as "ZSCL*", "ZSCL- + WC" or "ZSCL- (current images, image loss)"."""
    base, differing = distillation(options) if distils(options) else ("", [])
    if options.method == "icarl" and not base:
        base, differing = "iCaRL", ["no distillation"]
    added = weight_space(options)
    if base == "ZSCL-" and CAPTIONS in differing and "WE" in added:
        differing.remove(CAPTIONS)
        added.remove("WE")
        base = "ZSCL" if "WC" in added else "ZSCL*"  # as in Tables 3 and 10: the star has no WC
        added = [part for part in added if part != "WC"]
    differing += [f"{options.train_mode} encoder only"] if options.train_mode != "whole" else []
    name = " + ".join([base, *added] if base else added) or "Fine-tuning"
    return f"{name} ({', '.join(differing)})" if differing else name


def folder_label(options: Options) -> str:
    """For --eval-only: the label of the run that left the checkpoints in --load, else of the flags, else the folder."""
    folder = Path(options.load or "")
    for path in (folder / "config.yaml", folder / f"{sequence(options)[-1]}.config.yaml"):
        if path.exists():
            return read_back(path, lambda text: yaml.safe_load(text)["labels"]["method"], str)
    label = method_label(options)
    return folder.resolve().name if label == "Fine-tuning" else label


def distillation(options: Options) -> tuple[str, list[str]]:
    """The row of the tables that distils most alike, and how this run differs from it."""
    images, texts, by = image_source(options), sentences(options), teacher(options)
    first_call = not is_sequence(options) and options.load is None and by == "CLIP"  # CLIP is the model before, too
    own_text = texts in (CURRENT_PROMPTS, RANDOM)
    if options.method == "icarl":
        base, usual = "iCaRL", ("exemplar images", CURRENT_PROMPTS, "CLIP")
    elif images == "current images" and (by == "previous model" or (first_call and own_text)):
        base, usual = ("LwF-VR", (images, RANDOM, by)) if texts == RANDOM else ("LwF", (images, CURRENT_PROMPTS, by))
    else:
        base, usual = "ZSCL-", ("ImageNet images", IMAGENET, "CLIP")
    parts = (images, texts, by if by == usual[2] else f"teacher {by}")
    differing = [part for part, expected in zip(parts, usual) if part != expected]
    terms = distillation_terms(options)
    differing += [] if terms == ("img", "txt") else [" + ".join(TERM_NAMES[term] for term in terms) + " loss"]
    differing += ["half weight"] if options.weight_adjust else []
    differing += [f"T {options.T:g}"] if options.T != 2 else []
    if options.method == "icarl":
        differing += ["exact quota"] if options.icarl_quota == "exact" else []
        differing += ["fixed herding"] if options.icarl_herding == "fixed" else []
    return base, differing


def image_source(options: Options) -> str:
    if options.method == "icarl":
        return "exemplar images"
    if options.ref_dataset in ("ImageNetSM", "ImageNetSUB"):
        return f"{options.ref_dataset} {options.num:.10g}"
    return f"{_current(options, options.ref_dataset)} images"


def sentences(options: Options) -> str:
    if named := options.text_datasets:
        seen = named in ([SEEN], [*tasks_behind(options.load), *tasks(options)])  # a one-task call names them all
        return "all prompts seen" if seen else "prompts of " + " ".join(named)
    source = options.ref_sentences or (CURRENT if options.method == "icarl" else options.ref_dataset)
    if source == "ImageNetSUB":  # all 1000 prompts
        return IMAGENET
    return {"conceptual_captions": CAPTIONS, "random": RANDOM}.get(source or "", f"{_current(options, source)} prompts")


def teacher(options: Options) -> str:
    if options.ref_wise:
        return f"CLIP pulled {options.ref_wise_alpha:g} to theta0"
    if options.ref_model is None:
        return "CLIP"
    return "previous model" if options.ref_model in (PREVIOUS, options.load) else options.ref_model


def weight_space(options: Options) -> list[str]:
    """What is done to the weights; a published value goes without saying it."""
    parts = ["WE"] if options.we else []
    parts += [f"WE-WiSE {options.we_wise_alpha:g}"] if options.we_wise else []
    parts += [f"moving average {options.mv_avg_decay:g}{PULLED_TO[options.mv_avg_model]}"] if options.moving_avg else []
    parts += ["WC" if options.l2 == 1 else f"WC {options.l2:g}"] if options.l2 else []
    if options.wise_merge:
        alpha = "" if options.wise_ft_alpha == 0.8 else f" {options.wise_ft_alpha:g}"
        parts += [f"WiSE-FT{alpha}" + (" with CLIP" if options.wise_ft_model == "zeroshot" else "")]
    return parts


def _current(options: Options, name: str | None) -> str | None:
    """`current` where a one-task call names its own data set."""
    return CURRENT if [name] == tasks(options) else name
