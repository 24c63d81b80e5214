"""What a class-incremental task distils on: teacher, reference images, reference texts, by method.

    method  teacher                 images                          texts
    ZSCL    CLIP as pre-trained     Conceptual Captions, or named   all captions
    lwf     model before the task   the task's own, second loader   the task's prompts
    lwfvr   model before the task   the task's own, second loader   1000 random sentences, drawn once a task
    iCaRL   model before the task   exemplars                       the task's prompts

(cil/continual_clip/models.py:L100-L182.)
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from common import datasets, kept
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts, tokenize
from common.datasets.images import ImageFiles, ImageSet, Transform, fingerprint
from common.datasets.layout import absolute
from common.datasets.listing import IMAGE_ENDINGS, walk
from common.datasets.transforms import clip_eval
from common.errors import UserError
from common.incremental.data import IncrementalData
from common.incremental.scenario import task_subset
from common.kept import Kept
from common.machine import Machine
from common.runs import Run
from common.training.batches import Batches
from common.training.device import to_device
from zscl.cil.memory import EXEMPLARS_AT_ONCE, exemplars, memory_at
from zscl.cil.options import PREVIOUS_MODEL, Options
from zscl.reference import CONCEPTUAL_CAPTIONS, random_sentences
from zscl.teacher import Models, Reference, frozen_reference

IMAGE_FEATURES = "reference_features.pth"  # of ZSCL's teacher, which never changes: they serve later tasks, too
EXTRA_CAPTIONS = 100  # of ce_method ext, a step
CONTEXT = 77
Texts = Callable[[int], Tensor]  # step -> prompts (K, L)


def task_reference(
    run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, models: Models
) -> Reference | None:
    """What the task distils on; None for fine-tuning. `models.student` holds the weights before the task."""
    if options.method == "ZSCL":
        return pretrained_reference(run, options, machine, task_id, models)
    if options.method in PREVIOUS_MODEL:
        return previous_reference(run, options, machine, data, task_id, models.student)
    return None


def pretrained_reference(run: Run, options: Options, machine: Machine, task_id: int, models: Models) -> Reference:
    """ZSCL's: the same at every task but for the order of the images."""
    if models.reference is None:
        data = reference_set(options, clip_eval(models.pretrained.visual.input_resolution))
        batches, tokens = reference_batches(data.train, options, machine, task_id), caption_tokens(data.classnames)
        teacher = models.pretrained
        key = kept.fingerprint(teacher.state_dict(), teacher.activation, data.fingerprint)
        features = Kept(run.path(IMAGE_FEATURES), key)
        models.reference = frozen_reference(teacher, batches, tokens, machine.device, kept_images=features)
    images = models.reference.batches.samples.dataset
    return replace(models.reference, batches=reference_batches(images, options, machine, task_id))


def previous_reference(
    run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, student: CLIP
) -> Reference:
    """Of LwF, LwF-VR and iCaRL: the teacher is the student as it is before task `task_id`."""
    device, task, images_stay = machine.device, data.scenario.tasks[task_id], options.method == "iCaRL"
    if options.method == "iCaRL":
        memory = memory_at(run, options, machine, data, task_id, student)
        stored = exemplars(options, data, memory)
        batches = Batches(stored, EXEMPLARS_AT_ONCE, 0, machine.workers, device, shuffle=False)
    else:
        batches = reference_batches(task_subset(data.train, data.scenario, task_id), options, machine, task_id)
    tokens = data.tokens[task.start : task.stop]
    if options.method == "lwfvr":
        seed = options.stream_seed(task_id, "sentences")
        tokens = cut_prompts(random_sentences(generator=torch.Generator().manual_seed(seed)))
    if options.teacher == "aliased":
        return Reference(student, batches, cut_prompts(tokens).to(device), None, None)
    teacher = copy.deepcopy(student).requires_grad_(False)
    return frozen_reference(teacher, batches, tokens, device, images_stay=images_stay)


def reference_batches(images: Dataset, options: Options, machine: Machine, task_id: int) -> Batches:
    """Shuffled apart from the task's own batches, of the same size, the last one of an epoch smaller."""
    seed = options.stream_seed(task_id, "reference")
    return Batches(images, options.batch_size, seed, machine.workers, machine.device)


# Reference images and captions


def reference_set(options: Options, transform: Transform | None = None) -> ImageSet:
    """The images of ref_dataset as `train`, the captions as `classnames`, and the fingerprint of both.

    conceptual_captions: the rows whose images could be gathered, with their captions. Any data set's training images,
    or a folder's, stand in for the images where those cannot be had; the captions are then all of the caption file.
    Raises UserError for what is not there.
    """
    name, root = options.ref_dataset or "", caption_root(options)
    folder = absolute(name)
    if name == CONCEPTUAL_CAPTIONS:
        data = datasets.captioned_images(root, transform)
        return replace(data, fingerprint=data.fingerprint | captions_fingerprint(data.classnames))
    captions = datasets.captions(root)
    if folder.is_dir():
        images = folder_images(folder, transform)
        data = ImageSet(name, images, None, captions, [], fingerprint(images, None, folder))
    else:
        data = datasets.load(name, options.dataset_root, transform, None, not options.no_verify)
    return replace(data, classnames=captions, fingerprint=data.fingerprint | captions_fingerprint(captions))


def reference_fingerprint(options: Options) -> dict[str, Any]:
    """Which reference images and captions a run reads; raises UserError if they are not there."""
    if options.method == "ZSCL":
        return reference_set(options).fingerprint
    return captions_fingerprint(datasets.captions(caption_root(options))) if options.ce_method == "ext" else {}


def captions_fingerprint(captions: list[str]) -> dict[str, Any]:
    return {"captions": len(captions), "captions_md5": hashlib.md5("\n".join(captions).encode()).hexdigest()}


def folder_images(folder: Path, transform: Transform | None = None) -> ImageFiles:
    """All images below a folder, sorted by path, label 0. Raises UserError if there is none, or no file of one."""
    paths = sorted((path for listing in walk(folder) for path in listing.paths), key=lambda path: Path(path).parts)
    if not paths:
        raise UserError(f"ref_dataset={folder}: the folder holds no images ({', '.join(IMAGE_ENDINGS)}).")
    images = ImageFiles([(path, 0) for path in paths], transform)
    if void := images.absent() + images.empty():
        raise UserError(
            f"ref_dataset={folder}: {len(void):,} images are empty files or missing, the first is {void[0]}."
        )
    return images


def caption_root(options: Options) -> str:
    return options.cc_root or options.dataset_root


def caption_tokens(captions: list[str]) -> Tensor:
    """Tokens (M, L), cut behind the longest caption.

    Quirk: over-long texts lose their end token (truncate="zscl"), so their features are all the same.
    """
    return cut_prompts(tokenize(captions, CONTEXT, truncate="zscl"))


# The texts of L_CE


def texts_of(options: Options, data: IncrementalData, task_id: int, device: torch.device) -> Texts:
    """step -> prompts (K, L) that L_CE is computed over, by ce_method; the task's own classes come first.

    0: these alone. previous: then all earlier classes. ext: then 100 captions, drawn anew at each step.
    """
    scenario, task = data.scenario, data.scenario.tasks[task_id]
    prompts = data.tokens[task.start : task.stop]
    if options.ce_method == "ext":
        captions = datasets.captions(caption_root(options))
        seed = options.stream_seed(task_id, "sentences")
        return with_captions(prompts, tokenize(captions, CONTEXT, truncate="zscl"), seed, device)
    if options.ce_method == "previous":
        count = earlier_classes(scenario.seen(task_id), task, scenario.initial_increment, options.previous_compat)
        prompts = torch.cat([prompts, data.tokens[:count]])
    prompts = prompts.to(device)
    return lambda step: prompts


def earlier_classes(seen: int, task: range, initial_increment: int, compat: bool) -> int:
    """How many of the first classes join L_CE with ce_method previous: all but the task's own.

    Quirk (compat): the original leaves out the last B names, B being the size of the *first* task, which is the same
    where all tasks have one size (cil/continual_clip/models.py:L94-L114). In the first task there are none.
    """
    return max(0, seen - initial_increment) if compat else task.start


def with_captions(
    prompts: Tensor, captions: Tensor, seed: int, device: torch.device, count: int = EXTRA_CAPTIONS
) -> Texts:
    """The prompts and `count` of the captions (M, 77), drawn without replacement, others at each step."""
    wide = F.pad(prompts, (0, captions.shape[1] - prompts.shape[1]))
    prompts, captions = cut_prompts(torch.cat([wide, captions])).to(device).split([len(prompts), len(captions)])

    def texts(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.randperm(len(captions), generator=generator)[:count]
        return torch.cat([prompts, captions[to_device(drawn, device)]])

    return texts
