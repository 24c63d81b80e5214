"""From task to task: each starts from the checkpoint of the one before it, with the teacher and the reference that its
method asks for (mtil/src/models/finetune.py:L100-L180, mtil/src/models/icarl.py:L18-L121).
"""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from common.clip.model import CLIP
from common.clip.tokenizer import training_prompts
from common.files import metric_lines, read_back
from common.kept import Kept, fingerprint
from common.machine import Machine
from common.mtil import first_number, load_set, of_task, own_images, scarcity, task_iterations, training_set
from common.options import hand_on
from common.runs import Run, write_text
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from zscl.checkpoints import load_weights_, save_weights
from zscl.evaluation import watcher
from zscl.icarl import CANDIDATES, Memory, candidate_features, first_memory, updated_memory
from zscl.options import (
    CURRENT,
    ENSEMBLE_FLAGS,
    ICARL_LR,
    OTHER_ICARL_LR,
    PREVIOUS,
    Options,
    distillation_terms,
    distils,
    reference_sources,
    same_reference,
    tasks,
)
from zscl.reference import reference_images, reference_tokens
from zscl.teacher import Models, Reference, frozen_reference
from zscl.training import TrainingOptions, joint_pass, train_task
from zscl.weights import Weights, assign_, interpolate_, weights_of, weights_on

REFERENCE_STREAM = 1  # added to the seed: reference images are drawn apart from the task's (LwF draws the same set)


def learn_sequence(run: Run, options: Options, machine: Machine, models: Models) -> None:
    """Learn the tasks in order, up to --first-tasks of them; finished ones are skipped."""
    before = Path(options.load) if options.load else None
    for task_id, name in enumerate(tasks(options)[: options.first_tasks]):
        path = run.folder / f"{name}.pth"
        if not path.exists():
            learn_task(run, options, machine, models, task_id, before)
        before = path


def learn_task(run: Run, options: Options, machine: Machine, models: Models, task_id: int, before: Path | None) -> None:
    """One task, from the checkpoint `before` (or CLIP) to its own."""
    name, student, device = tasks(options)[task_id], models.student, machine.device
    student.zero_grad()  # gradients of the task before, which a copy as teacher would carry along
    if before is None:
        assign_(weights_of(student), weights_of(models.pretrained))
    else:
        load_weights_(student, before)
    memory = memory_before(run, options, machine, models, task_id) if options.method == "icarl" else None
    seed_everything(options.seed)
    data = load_set(options, name, models.train_transform)
    examples = training_set(options, machine, data)
    batches = Batches(examples, options.batch_size, options.seed, machine.workers, device)
    reference = build_reference(options, machine, models, task_id, before, memory)
    tokens = training_prompts(data.classnames, options.template or data.templates[0]).to(device)
    pretrained, watch = clip_weights(options, machine, models), watcher(options, machine, student)
    training = training_options(options, task_id, len(batches), device)
    train_task(student, lambda step: tokens, batches, reference, pretrained, training, name, run.steps, watch)
    if reference:
        reference.teacher.to("cpu")
        reference.keep()
    after_task = first_number(run, tasks(options)) + task_id
    scarce = metric_lines(name, after_task, scarcity(options, data), None)
    run.record([*cost_records(name, after_task, run.seconds, device), *scarce])
    save_weights(run.folder / f"{name}.pth", student)


def training_options(options: Options, task_id: int, epoch: int, device: torch.device) -> TrainingOptions:
    """The loop's options for one task; `epoch` is its number of batches an epoch."""
    return hand_on(
        TrainingOptions,
        options,
        lr=task_lr(options, task_id),
        iterations=task_iterations(options, task_id, epoch),
        warmup=options.warmup_length,
        label_smoothing=options.ls,
        weight_decay=options.wd,
        temperature=options.T,
        terms=distillation_terms(options),
        kd_weight=0.5 if options.weight_adjust else 1.0,
        ensemble=next((flag for flag in ENSEMBLE_FLAGS if getattr(options, flag)), None),
        wise_merge=options.wise_ft_model if options.wise_merge else None,
        joint_pass=joint_pass(options.reference_pass, device),
        eval_interval=epoch if options.eval_every_epoch else options.eval_interval or 0,
    )


def task_lr(options: Options, task_id: int) -> float:
    """The task's peak rate; iCaRL's are set in upstream's code, by the data set's name."""
    if options.method == "icarl":
        return options.icarl_lr or ICARL_LR.get(tasks(options)[task_id], OTHER_ICARL_LR)
    return of_task(options.lr, task_id)


def clip_weights(options: Options, machine: Machine, models: Models) -> Weights | None:
    """CLIP's weights on the device, where an option pulls to them."""
    pulls = (options.moving_avg and options.mv_avg_model, options.wise_merge and options.wise_ft_model)
    return weights_on(models.pretrained, machine.device) if "zeroshot" in pulls else None


# Teacher, reference images and sentences


def build_reference(
    options: Options, machine: Machine, models: Models, task_id: int, before: Path | None, memory: Memory | None
) -> Reference | None:
    """What the task distils on; None for fine-tuning and for iCaRL's first task."""
    if not distils(options) or (options.method == "icarl" and memory is None):
        return None
    if models.reference:
        return models.reference
    teacher, (ref_dataset, sources) = teacher_of(options, models, before), reference_sources(options, task_id)
    stays = options.ref_model != PREVIOUS and not options.ref_wise  # other tasks and runs have this teacher too
    folder = cache_folder(options.cache_dir) if stays else None
    tokens = reference_tokens(options.data_location, sources, options.num, not options.no_verify, options.splits)
    batches, drawn = reference_batches(options, machine, models, ref_dataset, memory)
    computed = (teacher.state_dict(), teacher.activation, machine.device.type, *machine.settings.values())
    key = fingerprint(*computed) if folder else ""
    sentences = kept_features(folder, "sentences", key, tokens)
    images = kept_features(folder, "images", key, drawn) if drawn else None
    reference = frozen_reference(teacher, batches, tokens, machine.device, sentences, images)
    if stays and same_reference(options):
        models.reference = reference
    return reference


def cache_folder(name: str) -> Path | None:
    """The folder of --cache-dir; None for the word none, and where ~ stands for no home directory."""
    try:
        return None if name == "none" else Path(name).expanduser()
    except RuntimeError:
        print(f"note: features are not kept for the next run (--cache-dir {name}: there is no home directory)")
        return None


def kept_features(folder: Path | None, of: str, *decides: str | Tensor) -> Kept | None:
    """The file of the teacher's features of sentences or images; None without a folder."""
    name = fingerprint(*decides)
    return Kept(folder / f"{of}-{name}.pth", name) if folder else None


def teacher_of(options: Options, models: Models, before: Path | None) -> CLIP:
    """--ref-model, the previous task's model, (1 - alpha) CLIP + alpha theta0, or CLIP."""
    if options.ref_model == PREVIOUS:
        return models.pretrained if before is None else copy.deepcopy(models.student)  # holds `before` at this point
    if options.ref_model is None and not options.ref_wise:
        return models.pretrained
    teacher = copy.deepcopy(models.pretrained)
    if options.ref_model:
        load_weights_(teacher, options.ref_model)
    else:
        theta0 = weights_on(models.student, "cpu")
        interpolate_(weights_of(teacher), theta0, 1 - options.ref_wise_alpha)
    return teacher


def reference_batches(
    options: Options, machine: Machine, models: Models, ref_dataset: str, memory: Memory | None
) -> tuple[Batches, str]:
    """The batches of reference images, and what decides them as far as other runs can share it ("" for exemplars).

    A data set is shuffled, drawn apart from the task's own batches; exemplars come in their order, over and over.
    """
    examples: Dataset
    seed = options.seed + REFERENCE_STREAM
    if memory is None:
        root, transform, verify = options.data_location, models.eval_transform, not options.no_verify
        images = reference_images(ref_dataset, root, transform, options.num, verify, options.splits)
        examples, key = images.train, fingerprint(images.fingerprint, options.batch_size, seed)
        of_the_task = options.ref_dataset in (None, CURRENT) or tasks(options) == [ref_dataset]
        if of_the_task and options.few_shot > 0:
            examples, key = own_images(options, machine, images), fingerprint(key, options.few_shot, options.seed)
    else:
        sets = {name: own_images(options, machine, load_set(options, name, models.eval_transform)) for name in memory}
        examples, key = ConcatDataset([Subset(sets[name], indices) for name, indices in memory.items()]), ""
    shuffle = memory is None
    return Batches(examples, options.batch_size, seed, machine.workers, machine.device, shuffle=shuffle), key


# iCaRL's memory


def memory_before(run: Run, options: Options, machine: Machine, models: Models, task_id: int) -> Memory | None:
    """The exemplars that task `task_id` distils on, made after the task before it; None for the first task.

    Kept in <data set>.memory.json beside that task's checkpoint.
    """
    if task_id == 0:
        return None
    name = tasks(options)[task_id - 1]
    path = run.folder / f"{name}.memory.json"
    if path.exists():
        return read_back(path, json.loads, dict)
    older = memory_before(run, options, machine, models, task_id - 1)
    data = own_images(options, machine, load_set(options, name, models.eval_transform))
    if older is None:
        memory = first_memory(name, len(data), options.memory_size)
    else:
        load_weights_(models.student, run.folder / f"{name}.pth")
        features = candidate_features(models.student, data, CANDIDATES, options.batch_size_eval, machine, name)
        memory = updated_memory(older, name, features, options.memory_size, options.icarl_quota, options.icarl_herding)
    write_text(path, json.dumps(memory))
    return memory
