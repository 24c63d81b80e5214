"""MoE-Adapters on MTIL: the entry point. `python -m moe_adapters.main --help`.

A sequence (several data sets in --train-dataset) runs the paper's three stages in one process: the DDAS autoencoders,
the adapters task after task, all checkpoints on all data sets. One data set is the original's one-task call and gives
the same checkpoint as that task of the sequence, because every task starts from the same seed and the file before it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from common import clip, datasets
from common.clip.model import CLIP
from common.clip.pretrained import MINI, find_weights
from common.clip.tokenizer import training_prompts
from common.command_line import nth
from common.datasets.few_shot import few_shot
from common.errors import UserError, all_checked, exit_cleanly
from common.runs import Run, file_md5, save_tensors, write_text
from common.training.batches import Batches
from common.training.blocks import prepare
from common.training.device import automatic_workers, cost_records, device_name, pick_device, seed_everything
from common.training.precision import choose
from moe_adapters.adapters import experts_to_freeze, insert_adapters
from moe_adapters.ddas import FEW_SHOT_LR, FULL_SHOT_LR, alexnet_features, build_autoencoders, train_autoencoder
from moe_adapters.evaluation import (
    evaluate_checkpoint_file,
    evaluate_sequence,
    not_evaluated,
    read_adapters,
    read_autoencoders,
)
from moe_adapters.options import REFERENCE_SET, is_sequence, method_label, parse_args, protocol, settings
from moe_adapters.report import show_results
from moe_adapters.training import TrainingOptions, train_adapters


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.device = pick_device(args.device, args.threads)
    choose(args, args.device)
    args.workers = automatic_workers() if args.workers is None else args.workers
    extractor = check_inputs(args)
    if args.eval_only and (args.load is None or Path(args.load).is_file()):
        evaluate_checkpoint_file(args, load_model(args)[0], extractor)
        return
    run = open_run(args)
    if not args.eval_only and args.train_chooser:
        train_chooser_chain(run, args, extractor)
    if not args.eval_only and args.ffn_adapt:
        train_adapter_chain(run, args)
    if args.eval_datasets:
        if not_evaluated(run, args):
            evaluate_sequence(run, args, load_model(args)[0], extractor)
        show_results(run, args)
    run.finish()


def check_inputs(args: argparse.Namespace) -> nn.Module | None:
    """Look for everything a call will read before CLIP is built; one message lists all that is missing.

    Returns the feature extractor of DDAS, or None when the call has no use for it.
    """
    checks = [
        lambda: require_files(args.load, args.load_autochooser),
        lambda: datasets.require(data_names(args), args.data_location, verify=not args.no_verify),
        lambda: None if args.model == MINI else find_weights(args.model),
        lambda: load_extractor(args),
    ]
    *_, extractor = all_checked(checks)
    return extractor


def require_files(*paths: str | None) -> None:
    """Raise UserError with every path that is given and does not exist."""
    missing = [f"{path} does not exist." for path in paths if path and not Path(path).exists()]
    if missing:
        raise UserError("\n".join(missing))


def open_run(args: argparse.Namespace) -> Run:
    """The run's folder; one-task calls share theirs, as upstream, under a name of their own."""
    if args.save is None:
        args.save = str(Path(args.load) / "evaluation")
    name = "" if args.eval_only or is_sequence(args) else checkpoint_name(args.train_dataset[0], args.train_chooser)
    labels = {
        "paper": "moe_adapters",
        "method": method_label(args),
        "protocol": protocol(args),
        "backbone": args.model,
        "scale": args.scale,
        "seed": args.seed,
    }
    decides = settings(args) | {"weights": fingerprints(args), "data": data_fingerprints(args)}
    about = {"device": device_name(args.device), "workers": args.workers}
    run = Run(args.save, decides, labels, name, args.overwrite, args.save_interval, about)
    if run.is_new and not args.eval_only:
        names = args.train_dataset + ([REFERENCE_SET] if is_sequence(args) else [])
        present = [
            path
            for data in names
            for chooser in (False, True)
            if (path := run.folder / f"{checkpoint_name(data, chooser)}.pth").exists()
            and (is_sequence(args) or chooser == args.train_chooser)
        ]
        if present:
            raise UserError(
                f"{run.folder} already holds {present[0].name}, which no run recorded there made. "
                "Choose another --save."
            )
    return run


def fingerprints(args: argparse.Namespace) -> dict[str, str]:
    """md5 of the weight files that a run starts from."""
    files = {} if args.model == MINI else {"model": find_weights(args.model)}
    if args.chooser_features not in ("alexnet", MINI):
        files["chooser_features"] = Path(args.chooser_features)
    return {name: file_md5(path) for name, path in files.items()}


def data_fingerprints(args: argparse.Namespace) -> dict[str, Any]:
    """Counts and list checksum of every data set that a run reads."""
    return {
        name: datasets.load(name, args.data_location, verify=not args.no_verify).fingerprint
        for name in data_names(args)
    }


def data_names(args: argparse.Namespace) -> list[str]:
    """Every data set that this call reads: reference set, tasks, test sets."""
    training = [] if args.eval_only else args.train_dataset
    reference = [REFERENCE_SET] if training and args.train_chooser and is_sequence(args) else []
    return list(dict.fromkeys([*reference, *training, *(args.eval_datasets or [])]))


def checkpoint_name(data: str, chooser: bool) -> str:
    return f"{data}_autochooser" if chooser else data


def load_model(args: argparse.Namespace) -> tuple[CLIP, tuple[Any, Any]]:
    """CLIP in float32 with adapters at their initial state, and its two transforms."""
    seed_everything(args.seed)  # the experts' initial weights
    model, train_transform, eval_transform = clip.load(args.model, "cpu", precision="fp32")
    if args.ffn_adapt:
        both = args.ffn_adapt_where == "AdapterDoubleEncoder"
        insert_adapters(model, args.experts_num, args.topk, args.ffn_num, args.task_num, both)
    prepare(model)
    return model.to(args.device), (train_transform, eval_transform)


def load_extractor(args: argparse.Namespace) -> nn.Module | None:
    """The frozen feature extractor of DDAS, or None when this call has no use for it."""
    if not (args.autorouter or args.train_chooser):
        return None
    if args.chooser_features == MINI:
        from common.mini import chooser_features

        return chooser_features().to(args.device)
    return alexnet_features(None if args.chooser_features == "alexnet" else args.chooser_features).to(args.device)


def training_set(args: argparse.Namespace, name: str, transform: Any) -> datasets.ImageSet:
    return datasets.load(name, args.data_location, transform, None, verify=not args.no_verify)


def few_shot_or_all(args: argparse.Namespace, full: Dataset) -> tuple[Dataset, int]:
    """The images to train on, and the batches an epoch of the full set has.

    Few-shot: one shuffled pass with the training transform; the crops it drew are the images from then on.
    """
    stream = Batches(full, args.batch_size, args.seed, args.workers)
    if args.few_shot < 0:
        return full, len(stream)
    shots, _ = few_shot(stream, full.labels, args.few_shot)
    return shots, len(stream)


# The autoencoders of DDAS


def train_chooser_chain(run: Run, args: argparse.Namespace, extractor: nn.Module) -> None:
    """Train autoencoder 0 on the reference set and j + 1 on task j; each file holds all of them so far."""
    names = [REFERENCE_SET, *args.train_dataset] if is_sequence(args) else args.train_dataset
    paths = [run.folder / f"{checkpoint_name(name, chooser=True)}.pth" for name in names]
    if all(path.exists() for path in paths):
        return
    _, train_transform, _ = clip.load(args.model)
    if not is_sequence(args):
        before = Path(args.load) if args.load else None
        total = args.iterations[0] if args.iterations else None
        train_chooser(run, args, extractor, train_transform, args.task_id, names[0], total, before, paths[0])
        return
    for index, (name, path) in enumerate(zip(names, paths)):
        before = paths[index - 1] if index else None
        total = args.chooser_iterations[min(index, 1)]
        train_chooser(run, args, extractor, train_transform, index, name, total, before, path)


def train_chooser(
    run: Run,
    args: argparse.Namespace,
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
    data = training_set(args, name, transform)
    seed_everything(args.seed)
    images = data.train[0][0][None].to(args.device)
    autoencoders = build_autoencoders(args.task_num + 1, extractor(images).numel()).to(args.device)
    if before is not None:
        read_autoencoders(before, autoencoders)
    examples, epoch = few_shot_or_all(args, data.train)
    batches = Batches(examples, args.batch_size, args.seed, args.workers, args.device, restart=epoch, whole=True)
    total = args.epochs * epoch if iterations is None else iterations
    base_lr = FEW_SHOT_LR if args.few_shot > 0 else FULL_SHOT_LR
    train_autoencoder(autoencoders[index], extractor, batches, epoch, total, base_lr, f"DDAS/{name}", run.steps)
    save_tensors(path, {"state_dict": autoencoders.state_dict()})


# The adapters


def train_adapter_chain(run: Run, args: argparse.Namespace) -> None:
    """Learn the tasks in order, each from the checkpoint of the one before it."""
    if all((run.folder / f"{name}.pth").exists() for name in args.train_dataset):
        return
    model, (train_transform, _) = load_model(args)
    if not is_sequence(args):
        before = Path(args.load) if args.load and args.repeat_train else None
        train_task(
            run, args, model, args.task_id, args.train_dataset[0], train_transform, before, Path(args.frozen_path)
        )
        return
    before, frozen_path = None, run.folder / Path(args.frozen_path).name
    for task_id, name in enumerate(args.train_dataset):
        before = train_task(run, args, model, task_id, name, train_transform, before, frozen_path)


def train_task(
    run: Run,
    args: argparse.Namespace,
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
    data = training_set(args, name, transform)
    seed_everything(args.seed)
    examples, _ = few_shot_or_all(args, data.train)
    batches = Batches(examples, args.batch_size, args.seed, args.workers, args.device)
    prompts = training_prompts(data.classnames, args.template or data.templates[0]).to(args.device)
    choose_map = train_adapters(
        model,
        task_id,
        set(found) if args.frozen and task_id > 0 else set(),
        prompts,
        batches,
        training_options(args, task_id, len(batches)),
        f"adapters/{name}",
        run.steps,
    )
    frozen = experts_to_freeze(model, choose_map, args.freeze_bug_text_index)
    maps = {f"block {index}": counts for index, counts in enumerate(choose_map.tolist())}
    write_text(note_path, json.dumps({"frozen_before": found, "frozen": frozen, "choose_map": maps}))
    write_text(frozen_path, "".join(f"{line}\n" for line in found + frozen))
    run.record(cost_records(name, task_id + 1, run.seconds, args.device))
    save_tensors(path, {"state_dict": model.state_dict()})
    return path


def read_frozen_list(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def training_options(args: argparse.Namespace, task_id: int, epoch: int) -> TrainingOptions:
    iterations = nth(args.iterations, task_id) if args.iterations else args.epochs * epoch
    return TrainingOptions(
        lr=nth(args.lr, task_id),
        iterations=iterations,
        warmup=args.warmup_length,
        label_smoothing=args.ls,
        weight_decay=args.wd,
        beta2=args.beta2,
        router_noise=args.is_train,
        balance_loss_weight=args.balance_loss_weight,
        loss_interval=args.loss_interval,
    )


if __name__ == "__main__":
    main()
