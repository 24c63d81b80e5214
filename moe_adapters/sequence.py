"""From task to task: the autoencoders of DDAS, then the adapters. Each task goes on from what the one before left."""

import json
from pathlib import Path

import torch
from torch import nn

from common import clip
from common.clip.activation import ACTIVATION
from common.clip.model import CLIP
from common.clip.tokenizer import training_prompts
from common.datasets.transforms import clip_train
from common.files import metric_lines, read_back
from common.machine import Machine
from common.mtil import first_number, load_set, of_task, pass_over, scarcity, task_iterations, training_set
from common.runs import Run, save_tensors, write_text
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare
from moe_adapters.adapters import experts_to_freeze, insert_adapters
from moe_adapters.ddas import FEW_SHOT_LR, FULL_SHOT_LR, build_autoencoders, read_autoencoders, train_autoencoder
from moe_adapters.evaluation import read_adapters
from moe_adapters.options import REFERENCE_SET, Options, autoencoder_file, is_sequence, tasks
from moe_adapters.training import TrainingOptions, train_task


def load_model(options: Options, machine: Machine) -> CLIP:
    """CLIP in float32 on the device, with adapters at their initial state if it gets any."""
    seed_everything(options.seed)  # the experts' initial weights
    model, *_ = clip.load(options.model, activation=options.activation)
    if options.ffn_adapt:
        both = options.ffn_adapt_where == "AdapterDoubleEncoder"
        insert_adapters(model, options.experts_num, options.topk, options.ffn_num, options.task_num, both)
    prepare(machine, model)
    return model.to(machine.device)


# DDAS


def learn_ddas(run: Run, options: Options, machine: Machine, extractor: nn.Module, resolution: int) -> None:
    """Train autoencoder 0 on the reference set and j + 1 on task j, on images of this resolution.

    The file of each holds all of them so far; those that are there are skipped.
    """
    sequence, size, seed = is_sequence(options), options.batch_size, options.seed
    checkpoint = Path(options.load) if options.load and not sequence else None
    names = [REFERENCE_SET, *tasks(options)] if sequence else tasks(options)
    for index, name in enumerate(names, 0 if sequence else options.task_id):
        path = run.folder / autoencoder_file(name)
        if not path.exists():
            data = load_set(options, name, clip_train(resolution))
            seed_everything(seed)
            images = torch.as_tensor(data.train[0][0])[None].to(machine.device)
            autoencoders = build_autoencoders(options.task_num + 1, extractor(images).numel()).to(machine.device)
            if checkpoint:
                read_autoencoders(checkpoint, autoencoders)
            examples, epoch = training_set(options, machine, data), len(pass_over(options, machine, data))
            batches = Batches(examples, size, seed, machine.workers, machine.device, restart=epoch, whole=True)
            total = options.chooser_iterations[min(index, 1)] if sequence else task_iterations(options, index, epoch)
            base_lr = FEW_SHOT_LR if options.few_shot > 0 else FULL_SHOT_LR
            train_autoencoder(autoencoders[index], extractor, batches, epoch, total, base_lr, f"DDAS/{name}", run.steps)
            save_tensors(path, {"state_dict": autoencoders.state_dict()})
        checkpoint = path


# The adapters


def learn_adapters(run: Run, options: Options, machine: Machine, model: CLIP) -> None:
    """Learn the tasks in order, each from the adapters of the one before it; finished ones are skipped."""
    sequence = is_sequence(options)
    checkpoint = Path(options.load) if options.load and options.repeat_train and not sequence else None
    for task_id, name in enumerate(tasks(options), 0 if sequence else options.task_id):
        path = run.folder / f"{name}.pth"
        if path.exists():
            checkpoint = path
        else:
            learn_task(run, options, machine, model, task_id, name, checkpoint)
            checkpoint = None  # the model has them


def learn_task(
    run: Run, options: Options, machine: Machine, model: CLIP, task_id: int, name: str, checkpoint: Path | None
) -> None:
    """One task, from the adapters of `checkpoint` (None: from the model's) to its own checkpoint.

    Beside that stands <name>.json: which experts were frozen before the task, which it froze, its choose map. The
    former are written before training, so that a stopped run never takes its own picks for older ones.
    """
    if checkpoint:
        model.load_state_dict(read_adapters(checkpoint, model), strict=False)
    frozen_list = run.folder / Path(options.frozen_path).name if is_sequence(options) else Path(options.frozen_path)
    note = run.folder / f"{name}.json"
    if not note.exists():  # upstream's stale lists are harmful: the first task starts a new one
        names = read_back(frozen_list, str.split, list) if task_id > 0 and frozen_list.exists() else []
        write_text(note, json.dumps({"frozen_before": names}))
    frozen_before = read_back(note, lambda text: json.loads(text)["frozen_before"], list)
    data = load_set(options, name, clip_train(model.config.image_resolution))
    seed_everything(options.seed)
    examples = training_set(options, machine, data)
    batches = Batches(examples, options.batch_size, options.seed, machine.workers, machine.device)
    prompts = training_prompts(data.classnames, options.template or data.templates[0]).to(machine.device)
    training = training_options(options, task_id, len(batches))
    frozen = set(frozen_before) if options.frozen and task_id > 0 else set()
    log = train_task(model, task_id, frozen, prompts, batches, training, f"adapters/{name}", run.steps)
    freezes = experts_to_freeze(model, log["choose_map"], options.freeze_bug_text_index)
    choices = {f"block {index}": counts for index, counts in enumerate(log["choose_map"].tolist())}
    write_text(note, json.dumps({"frozen_before": frozen_before, "frozen": freezes, "choose_map": choices}))
    write_text(frozen_list, "".join(f"{line}\n" for line in frozen_before + freezes))
    after_task = first_number(run, tasks(options)) + tasks(options).index(name)  # task_id is the router's number
    scarce = metric_lines(name, after_task, scarcity(options, data), None)
    run.record([*cost_records(name, after_task, run.seconds, machine.device), *scarce])
    save_tensors(run.folder / f"{name}.pth", {"state_dict": model.state_dict(), ACTIVATION: model.activation})


def training_options(options: Options, task_id: int, epoch: int) -> TrainingOptions:
    """The loop's options for one task; `epoch` is its number of batches an epoch."""
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
