"""ZSCL and its baselines on MTIL: the entry point. `python -m zscl.main --help`.

A sequence (several data sets in --train-dataset, or iCaRL's --dataset_order) is learned task after task in one process
and then evaluated: every checkpoint on every data set. One data set is the original's one-task call and gives the same
checkpoint as that task of the sequence, since every task starts from the same seed and the file before it.
"""

from functools import partial
from pathlib import Path
from typing import Any

from common import datasets, runs
from common.clip.model import CLIP
from common.clip.pretrained import find_weights
from common.datasets.layout import CAPTIONS
from common.errors import UserError, all_checked, exit_cleanly
from common.machine import Machine, choose_machine
from common.mtil import mtil_protocol
from common.options import settings
from common.runs import Run, file_md5
from common.training.numerics import prepare
from zscl.checkpoints import read_weights
from zscl.evaluation import evaluate_one_model, evaluate_sequence, show_results
from zscl.methods import folder_label, method_label
from zscl.options import CURRENT, PREVIOUS, SEEN, Options, distils, is_sequence, parse, run_folder, tasks
from zscl.reference import PARTS_OF_IMAGENET, class_prompts, reference_images, required_sets
from zscl.sequence import learn_sequence, load_models
from zscl.teacher import fingerprint
from zscl.training import trainable_parameters


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options)
    models = load_models(options, machine)
    prepare(machine, models.student, models.pretrained)
    if options.eval_only and not (options.load and Path(options.load).is_dir()):
        evaluate_one_model(options, machine, models.student, models.pretrained)
        return
    check_weights(options, models.student)
    run = open_run(options, machine)
    if not options.eval_only:
        learn_sequence(run, options, machine, models)
    if options.eval_datasets:
        evaluate_sequence(run, options, machine, models.student, models.pretrained)
        count = sum(parameter.numel() for parameter in trainable_parameters(models.student, options.train_mode))
        about = {"dataset": "all", "after_task": len(tasks(options) or options.eval_datasets), "seconds": None}
        run.record([about | {"metric": "trainable_parameters", "value": count}])
        show_results(run, options)
    run.finish()


def check_inputs(options: Options) -> None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing."""
    files = [options.load, None if options.ref_model == PREVIOUS else options.ref_model, *(options.load_federate or [])]
    all_checked(
        [
            lambda: require_files([path for path in files if path]),
            lambda: datasets.require(data_names(options), options.data_location, verify=not options.no_verify),
            lambda: find_weights(options.model),
        ]
    )
    if not options.eval_only and distils(options):
        check_num(options)


def require_files(paths: list[str]) -> None:
    absent = [path for path in paths if not Path(path).exists()]
    if absent:
        raise UserError("\n".join(f"{path} does not exist." for path in absent))


def check_num(options: Options) -> None:
    """Raise UserError where there are fewer classes or images of ImageNet than --num says."""
    root, num, verify = options.data_location, options.num, not options.no_verify
    if options.ref_dataset in PARTS_OF_IMAGENET:
        reference_images(options.ref_dataset, root, None, num, verify)
    if "ImageNetSM" in (options.ref_sentences, *(options.text_datasets or ())):
        class_prompts("ImageNetSM", root, num, verify)


def check_weights(options: Options, model: CLIP) -> None:
    """Read the checkpoints that a run starts from while its folder has not been opened yet."""
    files = [options.load, None if options.ref_model == PREVIOUS else options.ref_model]
    all_checked([partial(read_weights, path, model) for path in files if path and not options.eval_only])


def data_names(options: Options) -> list[str]:
    """Every data set that this call reads: tasks, reference images and sentences, test sets."""
    training = [] if options.eval_only else tasks(options)
    reference = []
    if training and distils(options):
        own = options.ref_dataset in (None, CURRENT)
        texts = training if options.text_datasets == [SEEN] else options.text_datasets or ()
        named = None if options.ref_sentences == CURRENT else options.ref_sentences
        reference = required_sets(training[0] if own else options.ref_dataset, named, texts)
    return list(dict.fromkeys([*training, *reference, *(options.eval_datasets or [])]))


def open_run(options: Options, machine: Machine) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    folder, names = run_folder(options) or Path(options.load) / "evaluation", tasks(options)
    name = "" if options.eval_only or is_sequence(options) else names[0]
    decides = settings(options) | {"train_dataset": names or None}  # iCaRL's too
    decides |= {"weights": fingerprints(options), "data": data_fingerprints(options)}
    return runs.open_run(
        options, machine, folder, decides, paper="zscl",
        method=folder_label(options) if options.eval_only else method_label(options),
        protocol=mtil_protocol(names or options.eval_datasets), backbone=options.model, scale=options.scale,
        seed=options.seed, name=name, outputs=[] if options.eval_only else [f"{data}.pth" for data in names],
    )  # fmt: skip


def fingerprints(options: Options) -> dict[str, str]:
    """md5 of the weight files that a run starts from."""
    files = {"model": find_weights(options.model)}
    for name in ("load", "ref_model"):
        path = getattr(options, name)
        if path and path != PREVIOUS and Path(path).is_file():
            files[name] = path
    return {name: file_md5(path) for name, path in files.items()}


def data_fingerprints(options: Options) -> dict[str, Any]:
    """Counts and list checksum of every data set that a run reads; captions by their number and text."""
    found = {}
    for name in data_names(options):
        if name == CAPTIONS:
            sentences = datasets.captions(options.data_location)
            found[name] = {"sentences": len(sentences), "md5": fingerprint("\n".join(sentences))}
        else:
            found[name] = datasets.load(name, options.data_location, verify=not options.no_verify).fingerprint
    return found


if __name__ == "__main__":
    main()
