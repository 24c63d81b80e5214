"""From task to task: each starts from the checkpoint of the one before it, with the teacher and the reference that its
method asks for (mtil/src/models/finetune.py:L100-L180, mtil/src/models/icarl.py:L18-L121).
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from common import clip, datasets
from common.clip.model import CLIP
from common.clip.tokenizer import training_prompts
from common.machine import Machine
from common.mtil import of_task
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
    SEEN,
    Options,
    distillation_terms,
    distils,
    tasks,
)  # fmt: skip
from zscl.reference import reference_images, reference_tokens
from zscl.teacher import KnownFeatures, Reference, fingerprint, keep, read_kept, sentence_features
from zscl.training import TrainingOptions, joint_pass, train_task
from zscl.weights import Weights, assign_, interpolate_, weights_of

REFERENCE_STREAM = 1  # added to the seed: reference images are drawn apart from the task's (LwF draws the same set)


@dataclass
class Models:
    """The student, CLIP as it was pre-trained (on the CPU until it is needed), and the two transforms."""

    student: CLIP
    pretrained: CLIP
    train_transform: Callable
    eval_transform: Callable
    reference: Reference | None = None  # kept from task to task where nothing in it changes


def load_models(options: Options, machine: Machine) -> Models:
    pretrained, train_transform, eval_transform = clip.load(options.model, "cpu", precision="fp32")
    student = copy.deepcopy(pretrained).to(machine.device)
    return Models(student, pretrained.requires_grad_(False), train_transform, eval_transform)


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
    name, student = tasks(options)[task_id], models.student
    student.zero_grad()  # gradients of the task before, which a copy as teacher would carry along
    if before is None:
        assign_(weights_of(student), weights_of(models.pretrained))
    else:
        load_weights_(student, before)
    memory = memory_before(run, options, machine, models, task_id) if options.method == "icarl" else None
    seed_everything(options.seed)
    data = load_set(options, name, models.train_transform)
    batches = Batches(data.train, options.batch_size, options.seed, machine.workers, machine.device)
    iterations = of_task(options.iterations, task_id) if options.iterations else options.epochs * len(batches)
    joint = joint_pass(options.reference_pass, machine.device)
    reference = build_reference(options, machine, models, task_id, before, memory)
    tokens = training_prompts(data.classnames, options.template or data.templates[0]).to(machine.device)
    pretrained, watch = clip_weights(options, machine, models), watcher(options, machine, student)
    training = training_options(options, task_lr(options, task_id), iterations, len(batches), joint)
    train_task(student, lambda step: tokens, batches, reference, pretrained, training, name, run.steps, watch)
    if reference:
        reference.teacher.to("cpu")
        reference.keep()
    run.record(cost_records(name, task_id + 1, run.seconds, machine.device))
    save_weights(run.folder / f"{name}.pth", student)


def training_options(options: Options, lr: float, iterations: int, epoch: int, joint: bool) -> TrainingOptions:
    """The loop's options for one task; `epoch` is its number of batches an epoch."""
    return TrainingOptions(
        lr=lr,
        iterations=iterations,
        warmup=options.warmup_length,
        label_smoothing=options.ls,
        weight_decay=options.wd,
        beta2=options.beta2,
        train_mode=options.train_mode,
        temperature=options.T,
        terms=distillation_terms(options),
        kd_weight=0.5 if options.weight_adjust else 1.0,
        l2=options.l2,
        ensemble=next((flag for flag in ENSEMBLE_FLAGS if getattr(options, flag)), None),
        avg_freq=options.avg_freq,
        we_wise_alpha=options.we_wise_alpha,
        mv_avg_decay=options.mv_avg_decay,
        mv_avg_model=options.mv_avg_model,
        wise_merge=options.wise_ft_model if options.wise_merge else None,
        wise_ft_alpha=options.wise_ft_alpha,
        joint_pass=joint,
        loss_interval=options.loss_interval,
        eval_interval=epoch if options.eval_every_epoch else options.eval_interval or 0,
    )


def load_set(options: Options, name: str, transform: Callable) -> datasets.ImageSet:
    return datasets.load(name, options.data_location, transform, None, verify=not options.no_verify)


def task_lr(options: Options, task_id: int) -> float:
    """The task's peak rate; iCaRL's are set in upstream's code, by the data set's name."""
    if options.method == "icarl":
        return options.icarl_lr or ICARL_LR.get(tasks(options)[task_id], OTHER_ICARL_LR)
    return of_task(options.lr, task_id)


def clip_weights(options: Options, machine: Machine, models: Models) -> Weights | None:
    """CLIP's weights on the device, where an option pulls to them."""
    pulls = (options.moving_avg and options.mv_avg_model, options.wise_merge and options.wise_ft_model)
    if "zeroshot" not in pulls:
        return None
    return {name: weight.to(machine.device) for name, weight in weights_of(models.pretrained).items()}


# Teacher, reference images and sentences


def build_reference(
    options: Options, machine: Machine, models: Models, task_id: int, before: Path | None, memory: Memory | None
) -> Reference | None:
    """What the task distils on; None for fine-tuning and for iCaRL's first task."""
    if not distils(options) or (options.method == "icarl" and memory is None):
        return None
    if models.reference:
        return models.reference
    current = tasks(options)[task_id]
    ref_dataset = options.ref_dataset if options.ref_dataset not in (None, CURRENT) else current
    ref_sentences = current if options.ref_sentences == CURRENT else options.ref_sentences
    teacher = teacher_of(options, models, before)
    stays = options.ref_model != PREVIOUS and not options.ref_wise  # other tasks and runs have this teacher too
    folder = Path(options.cache_dir).expanduser() if stays and options.cache_dir != "none" else None
    how = [machine.device.type, *machine.settings.values()]
    key = fingerprint(teacher.state_dict(), *how) if folder else ""
    texts = tasks(options)[: task_id + 1] if options.text_datasets == [SEEN] else options.text_datasets or ()
    root, verify = options.data_location, not options.no_verify
    tokens = reference_tokens(root, ref_dataset, ref_sentences, texts, options.num, verify)
    sentences = features_of_sentences(machine, teacher, tokens, folder, key)
    stream, images_key = reference_stream(options, machine, models, ref_dataset, memory)
    kept_at = folder / f"images-{fingerprint(key, images_key)}.pth" if folder and images_key else None
    known = KnownFeatures(machine.device)
    if found := read_kept(kept_at):
        known.load_state_dict(found)
    reference = Reference(teacher, stream, tokens, sentences, known, kept_at)
    given = options.ref_dataset, options.ref_sentences
    changes = given != (ref_dataset, ref_sentences) or options.text_datasets == [SEEN]
    if stays and not changes:
        models.reference = reference
    return reference


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
        theta0 = {name: weight.cpu() for name, weight in weights_of(models.student).items()}
        interpolate_(weights_of(teacher), theta0, 1 - options.ref_wise_alpha)
    return teacher


def features_of_sentences(machine: Machine, teacher: CLIP, tokens: Tensor, folder: Path | None, key: str) -> Tensor:
    """The teacher's features (M, D) of tokens (M, 77), read from `folder` when an earlier run left them there."""
    kept_at = folder / f"sentences-{fingerprint(key, tokens)}.pth" if folder else None
    if found := read_kept(kept_at):
        return found["features"].to(machine.device)
    features = sentence_features(teacher.to(machine.device), tokens.to(machine.device))
    teacher.to("cpu")  # until an image comes whose features are not known
    keep(kept_at, {"features": features.cpu()})
    return features


def reference_stream(
    options: Options, machine: Machine, models: Models, ref_dataset: str, memory: Memory | None
) -> tuple[Batches, str]:
    """The batches of reference images, and what decides them as far as other runs can share it ("" for exemplars).

    A data set is shuffled, drawn apart from the task's own batches; exemplars come in their order, over and over.
    """
    seed = options.seed + REFERENCE_STREAM
    if memory is None:
        verify = not options.no_verify
        images = reference_images(ref_dataset, options.data_location, models.eval_transform, options.num, verify)
        examples, key = images.train, fingerprint(images.fingerprint, options.batch_size, seed)
    else:
        sets = {name: load_set(options, name, models.eval_transform).train for name in memory}
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
        return json.loads(path.read_text())
    older = memory_before(run, options, machine, models, task_id - 1)
    data = load_set(options, name, models.eval_transform).train
    if older is None:
        memory = first_memory(name, len(data), options.memory_size)
    else:
        load_weights_(models.student, run.folder / f"{name}.pth")
        candidates = Subset(data, range(min(len(data), CANDIDATES)))
        features = candidate_features(models.student, candidates, options.batch_size_eval, machine, name)
        memory = updated_memory(older, name, features, options.memory_size, options.icarl_quota, options.icarl_herding)
    write_text(path, json.dumps(memory))
    return memory
