"""Every checkpoint of a sequence on every data set, as zero-shot classifiers among the classes of its label space
(mtil/src/models/evaluation.py:L19-L58, mtil/src/general_eval.py:L129-L225).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.clip.model import CLIP
from common.errors import UserError
from common.evaluation.label_space import LabelSpace, space_logits
from common.evaluation.pixels import DecodedSet
from common.evaluation.report import accuracy_lines, accuracy_matrix, show_row, show_sequence, spoken
from common.evaluation.zero_shot import image_features
from common.files import metric_lines
from common.machine import Machine
from common.mtil import first_number, joint_space, load_test_set
from common.runs import Run
from zscl.checkpoints import average_weights_, load_weights_, read_weights, save_weights
from zscl.options import Options, run_folder, sequence
from zscl.teacher import Models
from zscl.training import trainable_parameters
from zscl.weights import Weights, assign_, copied, interpolate_, weights_of, weights_on


def evaluate(
    model: CLIP, test: DecodedSet, batch_size: int, space: LabelSpace | None = None, vectors: Sequence[Tensor] = ()
) -> dict[str, float]:
    """The accuracies (%) of the model as it is now: MTIL's, or with `space` X-TAIL's, whose class vectors may be given.

    See `LabelSpace.accuracies`.
    """
    space = space or LabelSpace({test.name: test.tokens})
    logits = space_logits(image_features(model, test.pixels, batch_size), vectors or space.vectors(model))
    return space.accuracies(logits, test.labels, test.name)


def evaluate_sequence(run: Run, options: Options, machine: Machine, models: Models) -> None:
    """All cells that are not on record yet; row 0 is CLIP before any task. A test set is decoded once for all rows."""
    model, folder = models.student, Path(options.load) if options.eval_only and options.load else run.folder
    files = dict(zip(finished_tasks(run, options), checkpoint_files(options, folder)))
    missing = {
        name: [row for row in (0, *files) if not run.find(dataset=name, after_task=row, metric="accuracy")]
        for name in options.eval_datasets or ()
    }
    needed = sorted({row for rows in missing.values() for row in rows})
    states = {row: read_weights(files[row], model) if row else models.pretrained.state_dict() for row in needed}
    space, vectors = joint_space(options, sequence(options)), dict[int, list[Tensor]]()
    for name, rows in missing.items():
        if not rows:
            continue
        test = load_test_set(options, machine, model, name)
        for row in tqdm(rows, desc=f"evaluate/{name}", leave=False, dynamic_ncols=True, disable=None):
            started = time.monotonic()
            model.load_state_dict(states[row])
            if space and row not in vectors:  # of all labels: encoded once a checkpoint
                vectors[row] = space.vectors(model)
            accuracies = evaluate(model, test, options.batch_size_eval, space, vectors.get(row, ()))
            run.record(accuracy_lines(name, row, accuracies, time.monotonic() - started))
        show_row(name, [accuracy for (accuracy,) in accuracy_matrix(run, [name], files)])


def finished_tasks(run: Run, options: Options) -> dict[int, str]:
    """The tasks of this call that are learned, up to --first-tasks of them, by their numbers."""
    names = sequence(options)
    return dict(enumerate(names[: options.first_tasks], first_number(run, names)))


def checkpoint_files(options: Options, folder: Path) -> list[Path]:
    """The files of the sequence's tasks in its folder, as far as --first-tasks goes."""
    return [folder / f"{name}.pth" for name in sequence(options)[: options.first_tasks]]


def show_results(run: Run, options: Options, model: CLIP) -> None:
    """The table, its CSV and picture, and Transfer / Avg / Last once the sequence is complete."""
    names, finished = sequence(options), finished_tasks(run, options)
    count = sum(parameter.numel() for parameter in trainable_parameters(model, options.train_mode))
    last = first_number(run, names) + len(names) - 1
    run.record(metric_lines("all", last, {"trainable_parameters": count}, None))
    show_sequence(run, options.eval_datasets or (), finished, run.labels["method"], complete=last in finished)
    print(f"\nWritten: {run.path('record.jsonl')}, accuracy.csv, accuracy.png")


def watcher(options: Options, machine: Machine, model: CLIP) -> Callable[[int, Weights], None] | None:
    """For --eval-interval and --eval-every-epoch: prints the accuracies of the weights that would be saved now."""
    names = options.eval_datasets
    if not (options.eval_interval or options.eval_every_epoch) or not names:
        return None
    tests, space = dict[str, DecodedSet](), joint_space(options, sequence(options))

    @torch.no_grad()
    def watch(step: int, weights: Weights) -> None:
        student = weights_of(model)
        live = copied(student)
        assign_(student, weights)
        vectors = space.vectors(model) if space else ()
        for name in names:
            tests[name] = tests.get(name) or load_test_set(options, machine, model, name)
            accuracies = evaluate(model, tests[name], options.batch_size_eval, space, vectors)
            tqdm.write(f"step {step}, {name}: {accuracies['accuracy']:.2f}")
        assign_(student, live)

    return watch


def evaluate_one_model(options: Options, machine: Machine, models: Models) -> None:
    """The original's evaluation call: one checkpoint, an average of several, a WiSE-FT mixture, or CLIP itself.

    The accuracy on each data set is printed; with --save the model is written there as well.
    """
    model, name = models.student, "zeroshot"
    if options.load_federate:
        name = "average"
        average_weights_(model, options.load_federate)
    elif options.load:
        name = "wise_ft" if options.wise_ft else Path(options.load).stem
        load_weights_(model, options.load)
    folder = run_folder(options)
    path = Path(folder) / f"{name}.pth" if folder else None
    if path and path.exists() and not options.overwrite:
        raise UserError(f"{path} exists already. Choose another --save, or --overwrite to replace it.")
    inputs = [options.load or "", *(options.load_federate or ())]
    if path and path.resolve() in [Path(name).resolve() for name in inputs]:
        raise UserError(f"{path} would be written over itself. Choose another --save.")
    if options.wise_ft:
        interpolate_(weights_of(model), weights_on(models.pretrained, machine.device), options.alpha)
    if path:
        save_weights(path, model)
        print(f"Written: {path}")
    space = joint_space(options, sequence(options))
    vectors = space.vectors(model) if space else ()
    for name in options.eval_datasets or ():
        test = load_test_set(options, machine, model, name)
        accuracies = evaluate(model, test, options.batch_size_eval, space, vectors)
        print(f"Evaluating on {name}\n{spoken(accuracies)}", flush=True)
