"""ZSCL and its baselines on MTIL: the entry point. `python -m zscl.main --help`.

A sequence (several data sets in --train-dataset, or iCaRL's --dataset_order) is learned task after task in one process
and then evaluated: every checkpoint on every data set. One data set is the original's one-task call and gives the same
checkpoint as that task of the sequence, since every task starts from the same seed and the file before it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import datasets, mtil
from common.clip import pretrained
from common.datasets.layout import CAPTIONS
from common.errors import exit_cleanly
from common.kept import fingerprint
from common.machine import Machine, choose_machine
from common.options import check_rules, settings
from common.runs import Run, file_md5
from zscl.checkpoints import require_fit
from zscl.evaluation import checkpoint_files, evaluate_one_model, evaluate_sequence, show_results
from zscl.methods import folder_label, method_label
from zscl.options import (
    PREVIOUS,
    Options,
    distils,
    is_sequence,
    length_rules,
    parse,
    reference_sources,
    run_folder,
    scale_of,
    sequence,
    tasks,
)
from zscl.reference import check_num, required_sets
from zscl.sequence import learn_sequence
from zscl.teacher import load_models


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options)
    models = load_models(options.model, options.activation, machine)
    if options.eval_only and not (options.load and Path(options.load).is_dir()):
        evaluate_one_model(options, machine, models)
        return
    if not options.eval_only:
        require_fit(checkpoints(options).values(), models.student)
    run = open_run(options, machine)
    if not options.eval_only:
        learn_sequence(run, options, machine, models)
    if options.eval_datasets:
        evaluate_sequence(run, options, machine, models)
        show_results(run, options, models.student)
    run.finish()


def check_inputs(options: Options) -> None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing."""
    files = [*checkpoints(options).values(), *(options.load_federate or [])]
    folder = Path(options.load or "")
    checks: list[Callable[[], None]] = []
    if options.eval_only and options.load and folder.is_dir():
        evaluated = checkpoint_files(options, folder)
        checks = [lambda: mtil.require_order(folder, sequence(options)), lambda: mtil.require_checkpoints(*evaluated)]
    mtil.check_inputs(options, data_names(options), files, *checks)
    if not options.eval_only and distils(options):
        check_num(*reference_sources(options, 0), options.data_location, options.num, not options.no_verify)


def checkpoints(options: Options) -> dict[str, str]:
    """The checkpoints that a call starts from, or evaluates, by the option that names them."""
    paths = {"load": options.load, "ref_model": None if options.ref_model == PREVIOUS else options.ref_model}
    return {name: path for name, path in paths.items() if path}


def data_names(options: Options) -> list[str]:
    """Every data set that this call reads: tasks, reference images and sentences, test sets, those of the labels."""
    training = [] if options.eval_only else tasks(options)
    labels = sequence(options) if options.label_space == mtil.ALL else []
    sources = [reference_sources(options, task_id) for task_id in range(len(training)) if distils(options)]
    reference = [name for source in sources for name in required_sets(*source)]
    return list(dict.fromkeys([*training, *reference, *(options.eval_datasets or []), *labels]))


def open_run(options: Options, machine: Machine) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    folder, names = run_folder(options) or mtil.evaluation_folder(options), tasks(options)
    name = "" if options.eval_only or is_sequence(options) else names[0]
    training = not options.eval_only
    before = mtil.tasks_before(folder, name, names[0], options.load, options.overwrite) if training else []
    outputs = [] if options.eval_only else [f"{data}{end}" for data in names for end in (".pth", ".memory.json")]
    decides = settings(options) | {"train_dataset": names or None}  # iCaRL's too
    decides |= {"weights": weight_fingerprints(options), "data": data_fingerprints(options)}
    if options.epochs and not options.eval_only:  # their length in steps is known only here
        images = min(len(mtil.own_images(options, machine, mtil.load_set(options, task))) for task in names)
        check_rules(length_rules(options, options.epochs * -(-images // options.batch_size)))
    labels = {
        "paper": "zscl", "method": method_label(options) if training else folder_label(options),
        "protocol": mtil.mtil_protocol(options, [*before, *sequence(options)]), "backbone": options.model,
        "scale": scale_of(options), "seed": options.seed,
    }  # fmt: skip
    return Run(folder, decides, labels, name, options, machine, outputs)


def weight_fingerprints(options: Options) -> dict[str, str]:
    """md5 of the weight files that a run starts from."""
    model = {"model": pretrained.fingerprint(options.model, options.activation)}
    return model | {name: file_md5(path) for name, path in checkpoints(options).items() if Path(path).is_file()}


def data_fingerprints(options: Options) -> dict[str, Any]:
    """Counts and list checksum of every data set that a run reads; captions by their number and text."""
    names = data_names(options)
    fingerprints = mtil.fingerprints(options, [name for name in names if name != CAPTIONS], tasks(options))
    if CAPTIONS in names:
        sentences = datasets.captions(options.data_location)
        fingerprints[CAPTIONS] = {"sentences": len(sentences), "md5": fingerprint("\n".join(sentences))}
    mtil.joint_space(options, sequence(options))  # UserError for a template that is too long
    return fingerprints


if __name__ == "__main__":
    main()
