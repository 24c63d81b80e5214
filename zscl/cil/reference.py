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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from common import datasets
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts, tokenize
from common.datasets.images import ImageFiles, Transform, fingerprint
from common.datasets.transforms import clip_eval
from common.errors import UserError
from common.incremental.data import IncrementalData
from common.incremental.scenario import task_subset
from common.machine import Machine
from common.runs import Run
from common.training.batches import Batches
from zscl.cil.memory import EXEMPLARS_AT_ONCE, exemplars, memory_at
from zscl.cil.options import PREVIOUS_MODEL, Options
from zscl.reference import CONCEPTUAL_CAPTIONS, random_sentences
from zscl.teacher import KnownFeatures, Reference, read_kept, sentence_features

KNOWN_FEATURES = "reference_features.pth"  # ZSCL's teacher never changes: what it said of an image serves later tasks
EXTRA_CAPTIONS = 100  # of ce_method ext, a step
CONTEXT = 77
Texts = Callable[[int], Tensor]  # step -> prompts (K, L)


def task_reference(
    run: Run,
    options: Options,
    machine: Machine,
    data: IncrementalData,
    task_id: int,
    model: CLIP,
    pretrained: CLIP,
    before: Reference | None,
) -> Reference | None:
    """What the task distils on; None for fine-tuning. `before` is an earlier task's, if at hand."""
    if options.method == "ZSCL":
        return pretrained_reference(run, options, machine, task_id, pretrained, before)
    if options.method in PREVIOUS_MODEL:
        return previous_reference(run, options, machine, data, task_id, model)
    return None


def pretrained_reference(
    run: Run, options: Options, machine: Machine, task_id: int, pretrained: CLIP, before: Reference | None
) -> Reference:
    """ZSCL's: the same at every task but for the order of the images; `before` is an earlier task's, if at hand."""
    if before:
        images = before.batches.samples.dataset
        return replace(before, batches=reference_batches(images, options, machine, task_id))
    source = reference_set(options, clip_eval(pretrained.visual.input_resolution))
    known, kept_at = KnownFeatures(machine.device), run.path(KNOWN_FEATURES)
    if kept := read_kept(kept_at):
        known.load_state_dict(kept)
    tokens = caption_tokens(source.captions).to(machine.device)
    sentences = sentence_features(pretrained.to(machine.device), tokens)
    batches = reference_batches(source.images, options, machine, task_id)
    return Reference(pretrained, batches, tokens, sentences, known, kept_at)


def previous_reference(
    run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, model: CLIP
) -> Reference:
    """Of LwF, LwF-VR and iCaRL: `model` holds the weights before task `task_id`, and so does the teacher."""
    device, task = machine.device, data.scenario.tasks[task_id]
    known = None
    if options.method == "iCaRL":
        memory = memory_at(run, options, machine, data, task_id, model)
        batches = Batches(
            exemplars(options, data, memory), EXEMPLARS_AT_ONCE, 0, machine.workers, device, shuffle=False
        )
        known = KnownFeatures(device) if options.teacher == "snapshot" else None
    else:
        batches = reference_batches(task_subset(data.train, data.scenario, task_id), options, machine, task_id)
    tokens = data.tokens[task.start : task.stop]
    if options.method == "lwfvr":
        seed = options.stream_seed(task_id, "sentences")
        tokens = cut_prompts(random_sentences(generator=torch.Generator().manual_seed(seed)))
    tokens = tokens.to(device)
    if options.teacher == "aliased":
        return Reference(model, batches, tokens, None, None)
    teacher = copy.deepcopy(model).requires_grad_(False)
    return Reference(teacher, batches, tokens, sentence_features(teacher, tokens), known)


def reference_batches(images: Dataset, options: Options, machine: Machine, task_id: int) -> Batches:
    """Shuffled apart from the task's own batches, of the same size, the last one of an epoch smaller."""
    seed = options.stream_seed(task_id, "reference")
    return Batches(images, options.batch_size, seed, machine.workers, machine.device)


# Reference images and captions


@dataclass(frozen=True)
class ReferenceSet:
    """ZSCL's reference images, the captions, and what tells this choice of both from another."""

    images: Dataset
    captions: list[str]
    fingerprint: dict[str, Any]


def reference_set(options: Options, transform: Transform | None = None) -> ReferenceSet:
    """The images and the captions that ref_dataset names.

    conceptual_captions: the rows whose images could be gathered, with their captions. Any data set's training images,
    or a folder's, stand in for the images where those cannot be had; the captions are then all of the caption file.
    Raises UserError for what is not there.
    """
    name = options.ref_dataset
    if name == CONCEPTUAL_CAPTIONS:
        data = datasets.captioned_images(caption_root(options), transform)
        return ReferenceSet(data.train, data.classnames, data.fingerprint | captions_fingerprint(data.classnames))
    captions = datasets.captions(caption_root(options))
    folder = Path(name).expanduser()
    if folder.is_dir():
        images = folder_images(folder, transform)
        found = fingerprint(images, None, folder)
    else:
        data = datasets.load(name, options.dataset_root, transform, None, not options.no_verify)
        images, found = data.train, data.fingerprint
    return ReferenceSet(images, captions, found | captions_fingerprint(captions))


def reference_fingerprint(options: Options) -> dict[str, Any]:
    """Which reference images and captions a run reads; raises UserError if they are not there."""
    if options.method == "ZSCL":
        return reference_set(options).fingerprint
    return captions_fingerprint(datasets.captions(caption_root(options))) if options.ce_method == "ext" else {}


def captions_fingerprint(captions: list[str]) -> dict[str, Any]:
    return {"captions": len(captions), "captions_md5": hashlib.md5("\n".join(captions).encode()).hexdigest()}


def folder_images(folder: Path, transform: Transform | None = None) -> ImageFiles:
    """All images below a folder, sorted by path, label 0. Raises UserError if there is none."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    paths = sorted(path for path in folder.rglob("*") if has_file_allowed_extension(path.name, IMG_EXTENSIONS))
    if not paths:
        raise UserError(f"ref_dataset={folder}: the folder holds no images ({', '.join(IMG_EXTENSIONS)}).")
    return ImageFiles(paths, [0] * len(paths), transform)


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
    own = data.tokens[task.start : task.stop]
    if options.ce_method == "ext":
        captions = datasets.captions(caption_root(options))
        seed = options.stream_seed(task_id, "sentences")
        return with_captions(own, tokenize(captions, CONTEXT, truncate="zscl"), seed, device)
    if options.ce_method == "previous":
        count = earlier_classes(scenario.seen(task_id), task, scenario.initial_increment, options.previous_compat)
        own = torch.cat([own, data.tokens[:count]])
    own = own.to(device)
    return lambda step: own


def earlier_classes(seen: int, task: range, initial_increment: int, compat: bool) -> int:
    """How many of the first classes join L_CE with ce_method previous: all but the task's own.

    Quirk (compat): the original leaves out the last B names, B being the size of the *first* task, which is the same
    where all tasks have one size (cil/continual_clip/models.py:L94-L114). In the first task there are none.
    """
    return max(0, seen - initial_increment) if compat else task.start


def with_captions(own: Tensor, captions: Tensor, seed: int, device: torch.device, count: int = EXTRA_CAPTIONS) -> Texts:
    """The prompts and `count` of the captions (M, 77), drawn without replacement, others at each step."""
    wide = F.pad(own, (0, captions.shape[1] - own.shape[1]))
    everything = cut_prompts(torch.cat([wide, captions])).to(device)
    own, captions = everything[: len(own)], everything[len(own) :]

    def texts(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.randperm(len(captions), generator=generator)[:count].to(device)
        return torch.cat([own, captions[drawn]])

    return texts
