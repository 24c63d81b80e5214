"""MoE-Adapters on MTIL: the entry point. `python -m moe_adapters.main --help`.

A sequence (several data sets in --train-dataset) runs the paper's three stages in one process: the DDAS autoencoders,
the adapters task after task, all checkpoints on all data sets. One data set is the original's one-task call and gives
the same checkpoint as that task of the sequence, because every task starts from the same seed and the file before it.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from common import clip, mtil, runs
from common.clip.model import CLIP
from common.clip.pretrained import find_weights
from common.clip.tokenizer import training_prompts
from common.datasets.few_shot import few_shot
from common.errors import exit_cleanly
from common.machine import Machine, choose_machine
from common.mini import MINI
from common.mini.weights import chooser_features
from common.mtil import load_set, of_task, require_files, task_iterations
from common.options import settings
from common.runs import Run, file_md5, save_tensors, write_text
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare
from moe_adapters.adapters import experts_to_freeze, insert_adapters
from moe_adapters.ddas import FEW_SHOT_LR, FULL_SHOT_LR, alexnet_features, build_autoencoders, train_autoencoder
from moe_adapters.evaluation import (
    evaluate_checkpoint_file,
    evaluate_sequence,
    not_evaluated,
    read_adapters,
    read_autoencoders,
)
from moe_adapters.options import REFERENCE_SET, Options, is_sequence, method_label, output_folder, parse, protocol
from moe_adapters.report import show_results
from moe_adapters.training import TrainingOptions, train_adapters

EXTRACTORS = {"alexnet": alexnet_features, MINI: chooser_features}  # of DDAS's image features; others are files


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    extractor = check_inputs(options, machine)
    if options.eval_only and (options.load is None or Path(options.load).is_file()):
        evaluate_checkpoint_file(options, machine, load_model(options, machine)[0], extractor)
        return
    run = open_run(options, machine)
    if not options.eval_only and options.train_chooser:
        train_chooser_chain(run, options, machine, extractor)
    if not options.eval_only and options.ffn_adapt:
        train_adapter_chain(run, options, machine)
    if options.eval_datasets:
        if not_evaluated(run, options):
            evaluate_sequence(run, options, machine, load_model(options, machine)[0], extractor)
        show_results(run, options)
    run.finish()


def check_inputs(options: Options, machine: Machine) -> nn.Module | None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing.

    Returns the feature extractor of DDAS, or None when the call has no use for it.
    """
    files = [options.load, options.load_autochooser]
    (extractor,) = mtil.check_inputs(options, data_names(options), files, lambda: load_extractor(options, machine))
    return extractor


def open_run(options: Options, machine: Machine) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    one_task = not (options.eval_only or is_sequence(options))
    name = checkpoint_name(options.train_dataset[0], options.train_chooser) if one_task else ""
    data = {name: load_set(options, name).fingerprint for name in data_names(options)}
    decides = settings(options) | {"weights": fingerprints(options), "data": data}
    names = options.train_dataset + ([REFERENCE_SET] if is_sequence(options) else [])
    choosers = (False, True) if is_sequence(options) else (options.train_chooser,)
    outputs = [f"{checkpoint_name(data, chooser)}.pth" for data in names for chooser in choosers]
    return runs.open_run(
        options, machine, output_folder(options), decides, paper="moe_adapters", method=method_label(options),
        protocol=protocol(options), backbone=options.model, scale=options.scale, seed=options.seed,
        name=name, outputs=[] if options.eval_only else outputs,
    )  # fmt: skip


def fingerprints(options: Options) -> dict[str, str]:
    """md5 of the weight files that a run starts from."""
    files = {"model": find_weights(options.model)}
    files |= {"chooser_features": path for path in feature_files(options)}
    return {name: file_md5(path) for name, path in files.items()}


def data_names(options: Options) -> list[str]:
    """Every data set that this call reads: reference set, tasks, test sets."""
    training = [] if options.eval_only else options.train_dataset
    reference = [REFERENCE_SET] if training and options.train_chooser and is_sequence(options) else []
    return list(dict.fromkeys([*reference, *training, *(options.eval_datasets or [])]))


def checkpoint_name(data: str, chooser: bool) -> str:
    return f"{data}_autochooser" if chooser else data


def load_model(options: Options, machine: Machine) -> tuple[CLIP, tuple[Any, Any]]:
    """CLIP in float32 with adapters at their initial state, and its two transforms."""
    seed_everything(options.seed)  # the experts' initial weights
    model, train_transform, eval_transform = clip.load(options.model, "cpu", precision="fp32")
    if options.ffn_adapt:
        both = options.ffn_adapt_where == "AdapterDoubleEncoder"
        insert_adapters(model, options.experts_num, options.topk, options.ffn_num, options.task_num, both)
    prepare(machine, model)
    return model.to(machine.device), (train_transform, eval_transform)


def load_extractor(options: Options, machine: Machine) -> nn.Module | None:
    """The frozen feature extractor of DDAS, or None when this call has no use for it."""
    if not (options.autorouter or options.train_chooser):
        require_files(*feature_files(options))  # which the run's settings name all the same
        return None
    build = EXTRACTORS.get(options.chooser_features, alexnet_features)
    return build(*feature_files(options)).to(machine.device)


def feature_files(options: Options) -> list[str]:
    """The file of DDAS's features where it is one's own."""
    return [] if options.chooser_features in EXTRACTORS else [options.chooser_features]


def few_shot_or_all(options: Options, machine: Machine, full: Dataset) -> tuple[Dataset, int]:
    """The images to train on, and the batches an epoch of the full set has.

    Few-shot: one shuffled pass with the training transform; the crops it drew are the images from then on.
    """
    stream = Batches(full, options.batch_size, options.seed, machine.workers)
    if options.few_shot < 0:
        return full, len(stream)
    shots, _ = few_shot(stream, full.labels, options.few_shot)
    return shots, len(stream)


# The autoencoders of DDAS


def train_chooser_chain(run: Run, options: Options, machine: Machine, extractor: nn.Module) -> None:
    """Train autoencoder 0 on the reference set and j + 1 on task j; each file holds all of them so far."""
    names = [REFERENCE_SET, *options.train_dataset] if is_sequence(options) else options.train_dataset
    paths = [run.folder / f"{checkpoint_name(name, chooser=True)}.pth" for name in names]
    if all(path.exists() for path in paths):
        return
    _, train_transform, _ = clip.load(options.model)
    if not is_sequence(options):
        before, task_id = Path(options.load) if options.load else None, options.task_id
        total = options.iterations[0] if options.iterations else None
        train_chooser(run, options, machine, extractor, train_transform, task_id, names[0], total, before, paths[0])
        return
    for index, (name, path) in enumerate(zip(names, paths)):
        before = paths[index - 1] if index else None
        total = options.chooser_iterations[min(index, 1)]
        train_chooser(run, options, machine, extractor, train_transform, index, name, total, before, path)


def train_chooser(
    run: Run,
    options: Options,
    machine: Machine,
    extractor: nn.Module,
    transform: Any,
    index: int,
    name: str,
    iterations: int | None,
    before: Path | None,
    path: Path,
) -> None:
    """One domain's autoencoder, from the file `before` (or all fresh) to `path`."""
    if path.exists():
        return
    data = load_set(options, name, transform)
    seed_everything(options.seed)
    images = data.train[0][0][None].to(machine.device)
    autoencoders = build_autoencoders(options.task_num + 1, extractor(images).numel()).to(machine.device)
    if before is not None:
        read_autoencoders(before, autoencoders)
    examples, epoch = few_shot_or_all(options, machine, data.train)
    size, seed = options.batch_size, options.seed
    batches = Batches(examples, size, seed, machine.workers, machine.device, restart=epoch, whole=True)
    total = options.epochs * epoch if iterations is None else iterations
    base_lr = FEW_SHOT_LR if options.few_shot > 0 else FULL_SHOT_LR
    train_autoencoder(autoencoders[index], extractor, batches, epoch, total, base_lr, f"DDAS/{name}", run.steps)
    save_tensors(path, {"state_dict": autoencoders.state_dict()})


# The adapters


def train_adapter_chain(run: Run, options: Options, machine: Machine) -> None:
    """Learn the tasks in order, each from the checkpoint of the one before it."""
    if all((run.folder / f"{name}.pth").exists() for name in options.train_dataset):
        return
    model, (train_transform, _) = load_model(options, machine)
    if not is_sequence(options):
        before = Path(options.load) if options.load and options.repeat_train else None
        (name,), frozen_path = options.train_dataset, Path(options.frozen_path)
        train_task(run, options, machine, model, options.task_id, name, train_transform, before, frozen_path)
        return
    before, frozen_path = None, run.folder / Path(options.frozen_path).name
    for task_id, name in enumerate(options.train_dataset):
        before = train_task(run, options, machine, model, task_id, name, train_transform, before, frozen_path)


def train_task(
    run: Run,
    options: Options,
    machine: Machine,
    model: CLIP,
    task_id: int,
    name: str,
    transform: Any,
    before: Path | None,
    frozen_path: Path,
) -> Path:
    """One task, from the checkpoint `before` to its own; returns that one's path.

    Beside the checkpoint stands <name>.json: the list of frozen experts found, what the task froze, its choose map.
    The list found is written before training, so that a stopped run never takes its own picks for older ones.
    """
    path, note_path = run.folder / f"{name}.pth", run.folder / f"{name}.json"
    if path.exists():
        return path
    if before is not None:
        model.load_state_dict(read_adapters(before, model), strict=False)
    if not note_path.exists():
        found = read_frozen_list(frozen_path) if task_id > 0 else []  # upstream's stale lists are harmful: start anew
        write_text(note_path, json.dumps({"frozen_before": found}))
    found = json.loads(note_path.read_text())["frozen_before"]
    data = load_set(options, name, transform)
    seed_everything(options.seed)
    examples, _ = few_shot_or_all(options, machine, data.train)
    batches = Batches(examples, options.batch_size, options.seed, machine.workers, machine.device)
    prompts = training_prompts(data.classnames, options.template or data.templates[0]).to(machine.device)
    choose_map = train_adapters(
        model,
        task_id,
        set(found) if options.frozen and task_id > 0 else set(),
        prompts,
        batches,
        training_options(options, task_id, len(batches)),
        f"adapters/{name}",
        run.steps,
    )
    frozen = experts_to_freeze(model, choose_map, options.freeze_bug_text_index)
    maps = {f"block {index}": counts for index, counts in enumerate(choose_map.tolist())}
    write_text(note_path, json.dumps({"frozen_before": found, "frozen": frozen, "choose_map": maps}))
    write_text(frozen_path, "".join(f"{line}\n" for line in found + frozen))
    run.record(cost_records(name, task_id + 1, run.seconds, machine.device))
    save_tensors(path, {"state_dict": model.state_dict()})
    return path


def read_frozen_list(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def training_options(options: Options, task_id: int, epoch: int) -> TrainingOptions:
    return TrainingOptions(
        lr=of_task(options.lr, task_id),
        iterations=task_iterations(options, task_id, epoch),
        warmup=options.warmup_length,
        label_smoothing=options.ls,
        weight_decay=options.wd,
        beta2=options.beta2,
        router_noise=options.is_train,
        balance_loss_weight=options.balance_loss_weight,
        loss_interval=options.loss_interval,
    )


if __name__ == "__main__":
    main()
