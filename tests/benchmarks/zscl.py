"""ZSCL: the training step of each method, what captions cost, evaluation, and the memory of a step.

Sizes are those of the MTIL runs: ViT-B/16, batch 64, evaluation batch 128, 15,833 captions (all of the validation file
that the original reads). The weight ensemble takes a sample in one step of a hundred, as the original: not a timed one.
"""

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import clip
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.evaluation.label_space import LabelSpace
from common.evaluation.pixels import DecodedSet
from common.mini import MINI
from tests.benchmarks import inputs
from tests.benchmarks.inputs import (
    SMALL, VIT_B_16, OneBatch, compare_spaces, encoding_call, mini_sets, one_batch, prompts,
)  # fmt: skip
from tests.benchmarks.measure import Clock, Row, Sizes, Subject, compare, compare_calls, difference
from tests.benchmarks.memory import counted_peak
from tests.zscl.plain_ways import left_by, train_plainly, uneven_clip
from zscl.evaluation import evaluate
from zscl.losses import distillation_losses
from zscl.teacher import FeatureCache, Reference, sentence_features
from zscl.training import TrainingOptions, train_task

FINETUNE = TrainingOptions(lr=1e-5, warmup=1, loss_interval=None)
DISTIL = replace(FINETUNE, terms=("img", "txt"))  # LwF-VR and iCaRL
ZSCL = replace(DISTIL, l2=1.0, ensemble="we")
BATCH, CAPTIONS, FEW_CAPTIONS, RANDOM_SENTENCES = 64, 15_833, 1000, 1000
PLAIN_CAPTIONS = {"cuda": CAPTIONS, "cpu": 64}  # on a CPU all of them take minutes a step
SMALL_CAPTIONS, LONGEST_CAPTION = 32, 20
EQUAL_STEPS, EQUAL_BATCH, EQUAL_CLASSES = 6, 8, 4
STEP_TARGET, MEMORY_TARGET = "<= 2.4", "<= 1.35"
COUNTED_STEPS = range(1, 3)  # AdamW has its state in the second; step 0 would tell a loss, which needs values
OURS = "ZSCL, teacher's image features known", "ZSCL, teacher's image features computed"
Prompts = Tensor | Callable[[int], Tensor]  # the same at every step, or those of a step


def rows(sizes: Sizes) -> list[Row]:
    """Every row of the paper's table, cell by cell."""
    plain, found = inputs.small_or_paper_clip(sizes.small).to(sizes.device), []
    options = replace(ZSCL, lr=1e-3, avg_freq=EQUAL_STEPS - 1)  # the last step gives the mean its second sample
    apart = step_differences(options)
    for classes in sizes.classes or ((4,) if sizes.small else (10, 100, 397)):
        found += step_rows(plain, prompts(classes), sizes, apart)
    found += caption_rows(sizes) + evaluation_rows(plain, prompts(10), sizes)
    return found + label_space_rows(sizes) + memory_rows(sizes)


class ReferenceImages(OneBatch):
    """The same reference images at every step: under the same indices, or with `new` under indices not met before."""

    def __init__(self, teacher: CLIP, size: int, new: bool) -> None:
        super().__init__(size, teacher.visual.input_resolution, 1, teacher.logit_scale.device, teacher.dtype, seed=6)
        self.new = new

    def indices(self, step: int) -> list[int]:
        first = step * len(self.images) if self.new else 0
        return list(range(first, first + len(self.images)))


def reference_of(teacher: CLIP, sentences: Tensor, size: int, known: bool) -> Reference:
    """What distillation reads. `known`: the teacher's image features are there, as in every epoch but the first."""
    images, features = ReferenceImages(teacher, size, new=not known), FeatureCache(sentences.device)
    if known:
        kept = unit_vectors(size, teacher.config.embed_dim)
        features.load_state_dict({"indices": torch.tensor(images.indices(0)), "features": kept})
    return Reference(teacher, images, None, sentences, features)


def unit_vectors(count: int, width: int) -> Tensor:
    """Random normalised features: what they say makes no difference to the time of a step."""
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(7)), dim=-1)


def step_rows(plain: CLIP, tokens: Tensor, sizes: Sizes, differences: list[float]) -> list[Row]:
    """Fine-tuning, each method that distils, and ZSCL the plain way; whether ours and the plain way are equal."""
    size, classes, width = sizes.batch(BATCH), len(tokens), plain.config.embed_dim
    batch, cut = one_batch(plain, size, classes), cut_prompts(tokens).to(sizes.device)
    count = SMALL_CAPTIONS if sizes.small else CAPTIONS
    captions, few, own = (
        unit_vectors(n, width).to(sizes.device) for n in (count, min(count, RANDOM_SENTENCES), classes)
    )

    def ours(options: TrainingOptions, sentences: Tensor | None, known: bool, clock: Clock) -> None:
        reference = None if sentences is None else reference_of(copy.deepcopy(plain), sentences, size, known)
        train(copy.deepcopy(plain), cut, batch, reference, options, clock)

    subjects: dict[str, Subject] = {
        "finetune": partial(ours, FINETUNE, None, False),
        OURS[0]: partial(ours, ZSCL, captions, True),
        OURS[1]: partial(ours, ZSCL, captions, False),
        "ZSCL, computed, separate passes": partial(ours, replace(ZSCL, joint_pass=False), captions, False),
        f"LwF-VR, {len(few)} sentences, computed": partial(ours, DISTIL, few, False),
        "iCaRL, class prompts, computed": partial(ours, DISTIL, own, False),
    } | plain_subject(plain, tokens, batch, ZSCL, sizes)
    checked = [*list(subjects)[1:4], list(subjects)[-1]]
    apart, targets = dict(zip(checked, (*differences, max(differences)))), dict.fromkeys(checked[:3], STEP_TARGET)
    return compare(f"step, {classes} classes, {count} captions", subjects, sizes, size, True, apart, targets)


def train(
    model: CLIP, prompts: Prompts, batch: OneBatch, reference: Reference | None, options: TrainingOptions, clock: Clock
) -> dict[str, Tensor]:
    """The real training loop, in place; its loss terms."""
    of_step = prompts if callable(prompts) else lambda step: prompts
    options = replace(options, iterations=clock.calls - 1)
    return train_task(model, of_step, batch, reference, None, options, "benchmark", clock.steps)


def plain_subject(
    plain: CLIP, tokens: Tensor, batch: OneBatch, options: TrainingOptions, sizes: Sizes
) -> dict[str, Subject]:
    """A turn of the plain loop: a single timed step, which on a GPU takes longer than all other rows' together."""
    count = SMALL_CAPTIONS if sizes.small else PLAIN_CAPTIONS[sizes.device.type]
    texts = [each.to(sizes.device) for each in (tokens, prompts(count, LONGEST_CAPTION))]
    images = ReferenceImages(plain, len(batch.images), new=True)

    def subject(clock: Clock) -> None:
        clock.calls = 2
        train_plainly(copy.deepcopy(plain), copy.deepcopy(plain), *texts, batch, images, options, clock)

    return {f"ZSCL the plain way, {count} captions encoded a step": subject}


def step_differences(options: TrainingOptions) -> list[float]:
    """Between the plain way and each of ours, over a few steps in float64: image features known, computed, two passes.

    On small towers, at any sizes asked for: the code is the same. In float32 a parameter whose gradient is rounding
    noise moves by up to the learning rate in either direction (AdamW divides by the gradient's size).
    """
    with inputs.float64_kept():
        student, teacher = (uneven_clip(seed) for seed in (8, 9))
        batch, tokens = one_batch(teacher, EQUAL_BATCH, EQUAL_CLASSES), prompts(EQUAL_CLASSES)
        captions, model = prompts(SMALL_CAPTIONS, LONGEST_CAPTION), copy.deepcopy(student)
        images, found = ReferenceImages(teacher, EQUAL_BATCH, new=True), []
        plain = train_plainly(model, teacher, tokens, captions, batch, images, options, Clock(EQUAL_STEPS))
        for known, joint in ((True, True), (False, True), (False, False)):
            model, images = copy.deepcopy(student), ReferenceImages(teacher, EQUAL_BATCH, new=not known)
            reference = Reference(teacher, images, None, sentence_features(teacher, captions), FeatureCache())
            if known:
                reference[0]
            own = replace(options, joint_pass=joint)
            log = train(model, cut_prompts(tokens), batch, reference, own, Clock(EQUAL_STEPS))
            losses = log["CE"] + options.kd_weight * (log["img"] + log["txt"])
            found.append(difference(plain, left_by(model, losses)))
        return found


def caption_rows(sizes: Sizes) -> list[Row]:
    """A step's time at few and at all captions, and that of the B x M similarity with its two losses alone.

    Captions never reach the towers, so these are small in every case: beside them the similarity can be seen at all.
    The last row is the difference of the two steps; its ratio says how much of the similarity's own time that is.
    """
    few, many = (SMALL_CAPTIONS, 10 * SMALL_CAPTIONS) if sizes.small else (FEW_CAPTIONS, CAPTIONS)
    size = 8 if sizes.small else BATCH
    sizes = replace(sizes, steps=max(20, sizes.steps), warmup=max(3, sizes.warmup))
    torch.manual_seed(0)
    plain = CLIP(replace(SMALL, embed_dim=VIT_B_16.embed_dim)).eval().requires_grad_(False).to(sizes.device)
    batch, tokens = one_batch(plain, size, 4), prompts(4).to(sizes.device)
    sentences = {count: unit_vectors(count, plain.config.embed_dim).to(sizes.device) for count in (few, many)}

    def step(count: int, clock: Clock) -> None:
        reference = reference_of(copy.deepcopy(plain), sentences[count], size, known=True)
        train(copy.deepcopy(plain), tokens, batch, reference, ZSCL, clock)

    def similarity(clock: Clock) -> None:
        model, target = copy.deepcopy(plain), sentences[many][:size]
        model.logit_scale.requires_grad_()  # as in the loop, where it takes a gradient from the teacher's logits too
        student = target.clone().requires_grad_()
        inputs = student, target, sentences[many]
        terms = lambda: distillation_losses(*inputs, model.logit_scale.exp(), ZSCL.terms).values()
        clock.repeat(lambda: sum(terms()).backward())

    subjects: dict[str, Subject] = {
        f"similarity and losses alone, {many} captions": similarity,
        f"ZSCL step, {few} captions": partial(step, few),
        f"ZSCL step, {many} captions": partial(step, many),
    }
    found = compare(f"captions, small towers, batch {size}", subjects, sizes)
    added = found[2].ms_median - found[1].ms_median
    target = "" if sizes.small else "<= 1"
    row = Row(found[0].cell, f"added by {many - few} captions", added, ratio=added / found[0].ms_median, target=target)
    return [*found, row]


def evaluation_rows(plain: CLIP, tokens: Tensor, sizes: Sizes) -> list[Row]:
    """Images a second of plain encode_image and of the whole evaluation, uint8 pixels on the host in both."""
    encode, pixels, size = encoding_call(plain, sizes)
    test = DecodedSet("random", pixels, torch.zeros(len(pixels), dtype=torch.long), tokens[:, None])
    calls = {
        "plain encode_image": encode,
        f"evaluation, {len(tokens)} prompts included": partial(evaluate, plain, test, size),
    }
    return compare_calls(f"evaluation, {len(pixels)} images", calls, sizes, len(pixels), equal=False)


def label_space_rows(sizes: Sizes) -> list[Row]:
    """Checkpoints x data sets of the miniature, CLIP eleven times: MTIL, and X-TAIL among the classes of all sets."""
    model, (tests, joint) = clip.load(MINI)[0].to(sizes.device), mini_sets(sizes)

    def evaluation(space: LabelSpace | None) -> list[dict[str, float]]:
        vectors = [space.vectors(model) for _ in tests] if space else [()] * len(tests)
        return [evaluate(model, test, 128, space, vectors[row]) for test in tests for row in range(len(tests))]

    return compare_spaces(evaluation, joint, len(tests), sizes)


def memory_rows(sizes: Sizes) -> list[Row]:
    """Peak memory of a step; the ratio is (peak - one CLIP in float32) / fine-tuning's peak.

    Parameters, gradients, AdamW's state, activations, inputs, and for ZSCL the teacher, theta0, the mean and the
    captions' features; the teacher computes and the ensemble takes its sample in the same step. On a GPU as allocated
    (torch.cuda.max_memory_allocated), on a CPU counted at the papers' batch size from the shapes alone.
    """
    on_gpu, classes = sizes.device.type == "cuda", 4 if sizes.small else 10
    sizes = sizes if on_gpu else replace(sizes, batch_size=None)
    peak, how = (allocated_peak, "allocated") if on_gpu else (counted_peak, "counted")
    subjects = {
        "finetune": FINETUNE,
        "ZSCL, joint pass": replace(ZSCL, avg_freq=1),
        "ZSCL, separate passes": replace(ZSCL, avg_freq=1, joint_pass=False),
    }
    with torch.device("meta"):
        clip = CLIP(SMALL if sizes.small else VIT_B_16)
    cell = f"memory {how}, batch {sizes.batch(BATCH)}, {classes} classes, less a CLIP"
    found, clip_mib = [], 4 * sum(parameter.numel() for parameter in clip.parameters()) / 2**20
    for subject, options in subjects.items():
        row = Row(cell, subject, peak_memory_mib=peak(partial(memory_steps, options, classes, sizes)) / 2**20)
        if found:
            row.ratio = (row.peak_memory_mib - clip_mib) / found[0].peak_memory_mib
            row.target = "" if sizes.small else MEMORY_TARGET
        found.append(row)
    return found


def memory_steps(options: TrainingOptions, classes: int, sizes: Sizes) -> None:
    """The real loop over COUNTED_STEPS, all that it works on made here."""
    config = SMALL if sizes.small else VIT_B_16
    with sizes.device:
        model, teacher = CLIP(config), CLIP(config).requires_grad_(False) if options.terms else None
    tokens = torch.zeros(classes, inputs.LONGEST_PROMPT[10], dtype=torch.long, device=sizes.device)
    size, reference = sizes.batch(BATCH), None
    if teacher:
        teacher.to = lambda device: teacher  # it is there already, and tensors without values refuse to be moved
        sentences = torch.zeros(SMALL_CAPTIONS if sizes.small else CAPTIONS, config.embed_dim, device=sizes.device)
        reference = reference_of(teacher, sentences, size, known=False)
    steps = lambda stage, total, state: iter(COUNTED_STEPS)
    train_task(model, lambda step: tokens, one_batch(model, size, classes), reference, None, options, "memory", steps)


def allocated_peak(run: Callable[[], None]) -> int:
    """Peak bytes that `run` adds to what is allocated on the GPU."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
