"""MoE-Adapters on MTIL: the entry point. `python -m moe_adapters.main --help`.

A sequence (several data sets in --train-dataset) runs the paper's three stages in one process: the DDAS autoencoders,
the adapters task after task, all checkpoints on all data sets. One data set is the original's one-task call and gives
the same checkpoint as that task of the sequence, because every task starts from the same seed and the file before it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from common import mtil
from common.clip import pretrained
from common.errors import exit_cleanly
from common.machine import Machine, choose_machine
from common.options import settings
from common.runs import Run, file_md5
from moe_adapters.ddas import EXTRACTORS, load_extractor
from moe_adapters.evaluation import checkpoint_files, evaluate_checkpoint_file, evaluate_sequence, show_results
from moe_adapters.options import (
    REFERENCE_SET,
    Options,
    autoencoder_file,
    is_sequence,
    method_label,
    output_folder,
    parse,
    protocol,
    scale_of,
    sequence_of,
    tasks,
)
from moe_adapters.sequence import learn_adapters, learn_ddas, load_model


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    extractor = check_inputs(options, machine)
    if options.eval_only and not (options.load and Path(options.load).is_dir()):
        evaluate_checkpoint_file(options, machine, load_model(options, machine), extractor)
        return
    run = open_run(options, machine)
    model = load_model(options, machine)
    if not options.eval_only and options.train_chooser and extractor:
        learn_ddas(run, options, machine, extractor, model.config.image_resolution)
    if not options.eval_only and options.ffn_adapt:
        learn_adapters(run, options, machine, model)
    if options.eval_datasets:
        evaluate_sequence(run, options, machine, model, extractor)
        show_results(run, options)
    run.finish()


def check_inputs(options: Options, machine: Machine) -> nn.Module | None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing.

    Returns the feature extractor of DDAS, or None when the call has no use for it.
    """

    def extractor() -> nn.Module | None:
        if options.autorouter or options.train_chooser:
            return load_extractor(options.chooser_features).to(machine.device)
        mtil.require_files(feature_file(options))  # which the run's settings name all the same
        return None

    files = [options.load, options.load_autochooser]
    training = not options.eval_only
    folder = Path(output_folder(options) if training else options.load or "")
    evaluates = options.eval_datasets and (training or options.load and folder.is_dir())
    made = (training and options.ffn_adapt, training and options.train_chooser or not options.autorouter)
    both = checkpoint_files(options, folder) if evaluates else []
    evaluated = [path for paths in both for path, here in zip(paths, made) if not here]
    advice = " Add --train_chooser, give --load_autochooser, or leave --eval-datasets out." if training else ""
    checks: tuple[Callable[[], Any], ...] = (extractor, lambda: mtil.require_checkpoints(*evaluated, advice=advice))
    if not training and evaluates:
        checks += (lambda: mtil.require_order(folder, sequence_of(options)),)
    features, *_ = mtil.check_inputs(options, data_names(options), files, *checks)
    return features


def open_run(options: Options, machine: Machine) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    names, name = tasks(options), ""
    outputs: list[str] = []
    if not options.eval_only and is_sequence(options):
        outputs = [file for data in [*names, REFERENCE_SET] for file in (f"{data}.pth", autoencoder_file(data))]
        outputs += [*(f"{data}.json" for data in names), Path(options.frozen_path).name]
    elif not options.eval_only:
        name = Path(autoencoder_file(names[0])).stem if options.train_chooser else names[0]
        outputs = [f"{name}.pth", f"{name}.json"]
    outputs.append(f"{name}.ddas_confusion.csv" if name else "ddas_confusion.csv")
    load = options.load if options.repeat_train and not is_sequence(options) else None
    training, folder = not options.eval_only, output_folder(options)
    before = mtil.tasks_before(folder, name, names[0], load, options.overwrite) if training else []
    if before and options.task_id != len(before):
        print(f"note: {options.load} is the checkpoint of task {len(before)}, so that the next router is that of "
              f"--task_id {len(before)}, not {options.task_id}.")  # fmt: skip
    weights, features = {"model": pretrained.fingerprint(options.model, options.activation)}, feature_file(options)
    weights |= {"chooser_features": file_md5(features)} if features else {}
    decides = settings(options) | {"weights": weights}
    prompted = [*tasks(options), *(options.eval_datasets or [])]
    decides |= {"data": mtil.fingerprints(options, data_names(options), prompted)}
    mtil.joint_space(options, sequence_of(options), options.template)  # UserError for one that is too long
    labels = {
        "paper": "moe_adapters", "method": method_label(options), "protocol": protocol(options, before),
        "backbone": options.model, "scale": scale_of(options), "seed": options.seed,
    }  # fmt: skip
    return Run(folder, decides, labels, name, options, machine, outputs)


def data_names(options: Options) -> list[str]:
    """Every data set that this call reads: reference set, tasks, test sets, those of the labels."""
    training = [] if options.eval_only else tasks(options)
    reference = [REFERENCE_SET] if training and options.train_chooser and is_sequence(options) else []
    labels = sequence_of(options) if options.label_space == mtil.ALL else []
    return list(dict.fromkeys([*reference, *training, *(options.eval_datasets or []), *labels]))


def feature_file(options: Options) -> Path | None:
    """The file of DDAS's features where it is one's own."""
    return None if options.chooser_features in EXTRACTORS else Path(options.chooser_features)


if __name__ == "__main__":
    main()
