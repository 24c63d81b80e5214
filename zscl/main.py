"""ZSCL and its baselines on MTIL: the entry point. `python -m zscl.main --help`.

A sequence (several data sets in --train-dataset, or iCaRL's --dataset_order) is learned task after task in one process
and then evaluated: every checkpoint on every data set. One data set is the original's one-task call and gives the same
checkpoint as that task of the sequence, since every task starts from the same seed and the file before it.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from common import datasets
from common.clip.model import CLIP
from common.clip.pretrained import MINI, find_weights
from common.command_line import mtil_protocol
from common.datasets.layout import CAPTIONS
from common.errors import UserError, all_checked, exit_cleanly
from common.runs import Run, file_md5
from common.training.blocks import prepare
from common.training.device import automatic_workers, device_name, pick_device
from common.training.precision import choose
from zscl.checkpoints import read_weights
from zscl.evaluation import evaluate_one_model, evaluate_sequence, show_results
from zscl.methods import folder_label, method_label
from zscl.options import CURRENT, NOT_SETTINGS, PREVIOUS, SEEN, distils, is_sequence, parse_args
from zscl.reference import required_sets
from zscl.sequence import learn_sequence, load_models
from zscl.teacher import fingerprint
from zscl.training import trainable_parameters


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.device = pick_device(args.device, args.threads)
    choose(args, args.device)
    args.workers = automatic_workers() if args.workers is None else args.workers
    check_inputs(args)
    models = load_models(args)
    prepare(models.student, models.pretrained)
    if args.eval_only and not (args.load and Path(args.load).is_dir()):
        evaluate_one_model(args, models.student, models.pretrained)
        return
    check_weights(args, models.student)
    run = open_run(args)
    if not args.eval_only:
        learn_sequence(run, args, models)
    if args.eval_datasets:
        evaluate_sequence(run, args, models.student, models.pretrained)
        count = sum(parameter.numel() for parameter in trainable_parameters(models.student, args.train_mode))
        about = {"dataset": "all", "after_task": len(args.train_dataset or args.eval_datasets), "seconds": None}
        run.record([about | {"metric": "trainable_parameters", "value": count}])
        show_results(run, args)
    run.finish()


def check_inputs(args: argparse.Namespace) -> None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing."""
    files = [args.load, None if args.ref_model == PREVIOUS else args.ref_model, *(args.load_federate or [])]
    all_checked(
        [
            lambda: require_files([path for path in files if path]),
            lambda: datasets.require(data_names(args), args.data_location, verify=not args.no_verify),
            lambda: None if args.model == MINI else find_weights(args.model),
        ]
    )


def require_files(paths: list[str]) -> None:
    absent = [path for path in paths if not Path(path).exists()]
    if absent:
        raise UserError("\n".join(f"{path} does not exist." for path in absent))


def check_weights(args: argparse.Namespace, model: CLIP) -> None:
    """Read the checkpoints that a run starts from while its folder has not been opened yet."""
    files = [args.load, None if args.ref_model == PREVIOUS else args.ref_model]
    all_checked([partial(read_weights, path, model) for path in files if path and not args.eval_only])


def data_names(args: argparse.Namespace) -> list[str]:
    """Every data set that this call reads: tasks, reference images and sentences, test sets."""
    training = [] if args.eval_only else args.train_dataset
    reference = []
    if training and distils(args):
        own = args.ref_dataset in (None, CURRENT)
        texts = training if args.text_datasets == [SEEN] else args.text_datasets or ()
        named = None if args.ref_sentences == CURRENT else args.ref_sentences
        reference = required_sets(training[0] if own else args.ref_dataset, named, texts)
    return list(dict.fromkeys([*training, *reference, *(args.eval_datasets or [])]))


def open_run(args: argparse.Namespace) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    if args.save is None:
        args.save = str(Path(args.load) / "evaluation")
    name = "" if args.eval_only or is_sequence(args) else args.train_dataset[0]
    labels = {
        "paper": "zscl",
        "method": folder_label(args) if args.eval_only else method_label(args),
        "protocol": mtil_protocol(args.train_dataset or args.eval_datasets),
        "backbone": args.model,
        "scale": args.scale,
        "seed": args.seed,
    }
    decides = {key: value for key, value in vars(args).items() if key not in NOT_SETTINGS}
    decides |= {"weights": fingerprints(args), "data": data_fingerprints(args)}
    about = {"device": device_name(args.device), "workers": args.workers}
    run = Run(args.save, decides, labels, name, args.overwrite, args.save_interval, about)
    present = [data for data in (args.train_dataset or []) if (run.folder / f"{data}.pth").exists()]
    if run.is_new and not args.eval_only and present:
        raise UserError(
            f"{run.folder} already holds {present[0]}.pth, which no run recorded there made. Choose another --save."
        )
    return run


def fingerprints(args: argparse.Namespace) -> dict[str, str]:
    """md5 of the weight files that a run starts from."""
    files = {} if args.model == MINI else {"model": find_weights(args.model)}
    for name in ("load", "ref_model"):
        path = getattr(args, name)
        if path and path != PREVIOUS and Path(path).is_file():
            files[name] = path
    return {name: file_md5(path) for name, path in files.items()}


def data_fingerprints(args: argparse.Namespace) -> dict[str, Any]:
    """Counts and list checksum of every data set that a run reads; captions by their number and text."""
    found = {}
    for name in data_names(args):
        if name == CAPTIONS:
            sentences = datasets.captions(args.data_location)
            found[name] = {"sentences": len(sentences), "md5": fingerprint("\n".join(sentences))}
        else:
            found[name] = datasets.load(name, args.data_location, verify=not args.no_verify).fingerprint
    return found


if __name__ == "__main__":
    main()
