"""Every checkpoint of a sequence on every data set, as zero-shot classifiers among the data set's own classes
(mtil/src/models/evaluation.py:L19-L58, mtil/src/general_eval.py:L129-L225).
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from common.clip.model import CLIP
from common.errors import UserError
from common.evaluation.pixels import DecodedSet, load_decoded
from common.evaluation.report import accuracy_lines, accuracy_matrix, run_title, show_matrix, show_triple
from common.evaluation.zero_shot import accuracy, class_vectors, image_features, zeroshot_logits
from common.machine import Machine
from common.runs import Run
from zscl.checkpoints import average_weights_, load_weights_, read_weights, save_weights
from zscl.options import Options, run_folder, tasks
from zscl.weights import Weights, assign_, copied, interpolate_, weights_of


def evaluate(model: CLIP, test: DecodedSet, batch_size: int) -> tuple[float, ...]:
    """Top-1 and top-5 accuracy in percent of the model as it is now."""
    device = model.logit_scale.device
    vectors = class_vectors(model, test.tokens.to(device))
    return accuracy(zeroshot_logits(image_features(model, test.pixels, batch_size), vectors), test.labels.to(device))


def load_test(options: Options, machine: Machine, model: CLIP, name: str) -> DecodedSet:
    root, resolution, verify = options.data_location, model.visual.input_resolution, not options.no_verify
    return load_decoded(name, root, resolution, options.batch_size_eval, machine.workers, verify=verify)


def checkpoint_files(run: Run, options: Options) -> list[Path]:
    """The checkpoints to evaluate, in task order: those learnt so far, or all that --load must hold."""
    folder = Path(options.load) if options.eval_only else run.folder
    names = (tasks(options) or options.eval_datasets)[: options.first_tasks]
    files = [folder / f"{name}.pth" for name in names]
    absent = [str(path) for path in files if not path.exists()]
    if absent:
        raise UserError(f"checkpoints are missing: {', '.join(absent)}")
    return files


def evaluate_sequence(run: Run, options: Options, machine: Machine, model: CLIP, pretrained: CLIP) -> None:
    """All cells that are not on record yet; row 0 is CLIP before any task. A test set is decoded once for all rows."""
    files = checkpoint_files(run, options)
    rows = range(len(files) + 1)
    missing = {
        name: [row for row in rows if not run.find(dataset=name, after_task=row, metric="accuracy")]
        for name in options.eval_datasets
    }
    needed = sorted({row for wanted in missing.values() for row in wanted})
    states = {row: read_weights(files[row - 1], model) if row else pretrained.state_dict() for row in needed}
    for name, wanted in missing.items():
        if not wanted:
            continue
        test = load_test(options, machine, model, name)
        for row in tqdm(wanted, desc=f"evaluate/{name}", leave=False, dynamic_ncols=True, disable=None):
            started = time.monotonic()
            model.load_state_dict(states[row])
            top1, top5 = evaluate(model, test, options.batch_size_eval)
            run.record(accuracy_lines(name, row, top1, top5, time.monotonic() - started))
        found = {line["after_task"]: line["value"] for line in run.find(dataset=name, metric="accuracy")}
        after = " ".join(f"{found[row]:5.1f}" for row in rows[1:])
        print(f"{name:<14} zero-shot {found[0]:5.1f}   after each task {after}", flush=True)


def show_results(run: Run, options: Options) -> None:
    """The table, its CSV and picture, and Transfer / Avg / Last once the sequence is complete."""
    sequence, sets = tasks(options) or options.eval_datasets, options.eval_datasets
    learned = sequence[: options.first_tasks]
    matrix, rows = accuracy_matrix(run, sets, len(learned)), ["zero-shot", *learned]
    show_matrix(run, matrix, rows, sets, run_title(run))
    if sets == sequence == learned:
        show_triple(run, matrix, sets, run.labels["method"])
    print(f"\nWritten: {run.path('record.jsonl')}, accuracy.csv, accuracy.png")


def watcher(options: Options, machine: Machine, model: CLIP) -> Callable[[int, Weights], None] | None:
    """For --eval-interval and --eval-every-epoch: prints the accuracies of the weights that would be saved now."""
    if not (options.eval_interval or options.eval_every_epoch) or not options.eval_datasets:
        return None
    tests: dict[str, DecodedSet] = {}

    @torch.no_grad()
    def watch(step: int, weights: Weights) -> None:
        own = weights_of(model)
        live = copied(own)
        assign_(own, weights)
        for name in options.eval_datasets:
            tests[name] = tests.get(name) or load_test(options, machine, model, name)
            tqdm.write(f"step {step}, {name}: {evaluate(model, tests[name], options.batch_size_eval)[0]:.2f}")
        assign_(own, live)

    return watch


def evaluate_one_model(options: Options, machine: Machine, model: CLIP, pretrained: CLIP) -> None:
    """The original's evaluation call: one checkpoint, an average of several, a WiSE-FT mixture, or CLIP itself.

    The accuracy on each data set is printed; with --save the model is written there as well.
    """
    name = "zeroshot"
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
    if options.wise_ft:
        clip_weights = {key: weight.to(machine.device) for key, weight in weights_of(pretrained).items()}
        interpolate_(weights_of(model), clip_weights, options.alpha)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, model)
        print(f"Written: {path}")
    for name in options.eval_datasets or ():
        top1, _ = evaluate(model, load_test(options, machine, model, name), options.batch_size_eval)
        print(f"Evaluating on {name}\nTop-1 accuracy: {top1:.2f}", flush=True)
