"""A run of IT-Prompt under one seed: its tasks, their stages, its checkpoints. The loop is `run_seed`.

Each task has one file, class.pth, written again after each of its stages; a killed run repeats no finished stage.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from common import vit
from common.clip import pretrained
from common.clip.model import CLIP, VisionTransformer
from common.clip.tokenizer import training_prompts
from common.datasets.images import Transform
from common.datasets.transforms import clip_eval, clip_train
from common.errors import UserError
from common.evaluation.seen_classes import class_features
from common.incremental.features import features_in_order
from common.incremental.measures import is_common
from common.incremental.scenario import RemappedSubset, Scenario
from common.incremental.sets import class_names, vit_transforms
from common.incremental.tasks import unfinished_tasks
from common.machine import Machine
from common.runs import fitting, load_tensors
from common.training.device import seed_everything
from common.training.numerics import prepare
from vq_prompt.data import data_set
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.evaluation import evaluate, test_features
from vq_prompt.it_prompt.network import Encoder, Entries, Model, Parts, Selector
from vq_prompt.it_prompt.options import PRESETS, ITOptions
from vq_prompt.it_prompt.training import PseudoFeatures, rebalance, train_task
from vq_prompt.repeat import Repeat, finish_run, on_cpu, open_repeat, record_costs

LABELS = {  # in records; IT-Prompt's own carry the words, since no code and no full text was at hand
    "ITPromptCNCM": "IT-Prompt + C-NCM (our reading)",
    "ITPrompt": "IT-Prompt (our reading)",
    "ZeroShot": "Zero-shot CLIP",
    "NCM": "NCM, no prompts (CLIP)",
}


def method_label(options: ITOptions) -> str:
    """The method as records name it: the learner's label, then what makes it another method than its preset."""
    usual = {"scope": "seen", "text_guide": "ce", "text_classes": "current", "rebalance": True}
    usual |= PRESETS[options.learner_name]
    if not options.has_prompts:
        return LABELS[options.learner_name]
    if not options.is_clip:
        usual["text_guide"] = "off"
    changed = [f"{key} {getattr(options, key)}" for key, value in usual.items() if getattr(options, key) != value]
    return ", ".join([LABELS[options.learner_name], *changed])


# A run


def run_seed(options: ITOptions, machine: Machine, seed: int) -> np.ndarray:
    """Learn and evaluate all tasks under one seed: R (T, T) float64, R[j, i] percent of task j after task i, else 0."""
    encoder, clip = load_encoder(options, machine)
    prepare(machine, encoder)
    # zero_shot: an option of a single value in the runs of before, which are to go on
    decides = {"weights": {"md5": options.fingerprint()}, "zero_shot": "plain"}
    images = transforms(options, encoder.resolution)
    repeat = open_repeat(options, machine, seed, images, method_label(options), decides)
    tasks = repeat.scenario
    text = torch.empty(0, encoder.dim, device=machine.device)
    if clip is not None:
        prepare(replace(machine, compile=False), clip)  # its text tower runs once
        names = [name.replace("_", " ") for name in class_names(repeat.data)]
        prompts = training_prompts(tasks.classnames(names), options.template)
        text = class_features(clip, prompts)
    del clip  # the text tower has done its part
    seed_everything(seed)  # the initial entries, head and selector
    model = Model(options, encoder, build_parts(options, encoder, tasks), text, tasks, *memories(options))
    unfinished = unfinished_tasks(
        repeat.task_count,
        repeat.is_evaluated,
        lambda task_id: read_task(repeat, model, task_id, required=bool(stages(options, task_id))),
    )
    if unfinished:
        cache = test_features(repeat, model)
    for task_id in unfinished:
        learn_task(repeat, model, task_id)
        evaluate(repeat, model, cache, task_id)
    return finish_run(repeat)


def load_encoder(options: ITOptions, machine: Machine) -> tuple[Encoder, CLIP | None]:
    """The frozen tower on the device, and the CLIP it is of."""
    layers = options.prompt_layers if options.has_prompts else ()
    if not options.is_clip:
        tower = vit.load(options.backbone_weights, options.weights)
        return Encoder(tower, layers).to(machine.device), None
    clip, _, _ = pretrained.load(options.clip_weights, machine.device, activation=options.activation)
    if not isinstance(clip.visual, VisionTransformer):
        raise UserError(f"clip_weights {options.clip_weights}: a ResNet; prompts go into a ViT, such as ViT-B/16.")
    return Encoder(clip.visual, layers), clip


def transforms(options: ITOptions, size: int) -> tuple[Transform, Transform]:
    """Training and test transform: CLIP's normalisation and bicubic, or for a ViT those of VQ-Prompt.

    CLIP's are those of --transforms common as well.
    """
    data = data_set(options)
    if options.is_clip:
        return clip_train(size, data.least_area, flip=data.flip), clip_eval(size)
    return vit_transforms(data, size, options.normalisation)


def build_parts(options: ITOptions, encoder: Encoder, scenario: Scenario) -> Parts:
    """Entries, and head and selector where the options have them, with their initial values; nothing for the bounds."""
    classes, tasks = len(scenario.class_order), len(scenario.tasks) if options.has_prompts else 0
    layers, length = len(options.prompt_layers), options.prompt_length
    prompt = Entries(tasks, layers, length, encoder.width, encoder.dim, options.prompt_init)
    head = nn.Linear(encoder.dim, classes) if options.train_head else None
    selector = Selector(encoder.dim, options.tpi_hidden, classes) if options.selector == "softmax" else None
    return Parts(prompt, head, selector).to(next(encoder.parameters()).device)


def memories(options: ITOptions) -> tuple[ClassMemory, ClassMemory]:
    """The two stores, of u and of z, empty."""
    values = (options.tukey_beta, options.center, options.n_clusters, options.renorm_centroids, options.aggregate)
    return ClassMemory(*values), ClassMemory(*values)


# Checkpoints


def save_task(repeat: Repeat, model: Model, task_id: int, finished: list[str]) -> None:
    """Write a task's file, with the names of its finished stages."""
    content = {"stages": finished, "u": model.u.state_dict(), "z": model.z.state_dict()}
    repeat.save(task_id, content | {"state_dict": on_cpu(model.parts.state_dict())})


def read_task(repeat: Repeat, model: Model, task_id: int, required: bool = False) -> list[str]:
    """Put back what a task's file holds; the names of its finished stages, none where there is no file.

    Raises UserError for a file that is damaged, or missing and required.
    """
    path = repeat.model_path(task_id)
    if not required and not path.exists():
        return []
    saved = load_tensors(path)
    with fitting(path):
        model.parts.load_state_dict(saved["state_dict"])
        model.u.load_state_dict(saved["u"], repeat.machine.device)
        model.z.load_state_dict(saved["z"], repeat.machine.device)
        return saved["stages"]


# A task


def learn_task(repeat: Repeat, model: Model, task_id: int) -> None:
    """All stages of a task that are not finished: train, look at its images once, rebalance; each is saved."""
    finished = read_task(repeat, model, task_id)
    for stage in stages(model.options, task_id):
        if stage in finished:
            continue
        if stage == "training":
            batches = repeat.training_batches(task_id, model.options.drops_last)
            log = train_task(model, task_id, batches, repeat.run.steps)
            means = "  ".join(f"{name} {values[-len(batches) :].mean():.3f}" for name, values in log.items())
            print(f"task {task_id + 1}: losses of the last epoch: {means}", flush=True)
            trained = sum(parameter.numel() for parameter in model.parts.of_task(task_id).values())
            record_costs(repeat, task_id, len(log["total"]), trained)
        elif stage == "memory":
            remember(repeat, model, task_id)
        else:
            rebalance_part(repeat, model, task_id, stage)
        finished.append(stage)
        save_task(repeat, model, task_id, finished)
    if is_common(repeat.run) and not model.options.has_prompts:
        record_costs(repeat, task_id, updates=0, trainable=0)


def stages(options: ITOptions, task_id: int) -> list[str]:
    """Names of what a task consists of, in order; the last two are parts that are rebalanced."""
    rebalances = options.rebalance and task_id > 0
    parts = {
        "training": options.has_prompts,
        "memory": options.learner_name != "ZeroShot",
        "selector": rebalances and options.selector == "softmax",
        "head": rebalances and options.classifier == "softmax",
    }
    return [stage for stage, is_wanted in parts.items() if is_wanted]


@torch.no_grad()
def remember(repeat: Repeat, model: Model, task_id: int) -> None:
    """Look at all training images of a task once, under the test transform, and keep what the stores need.

    README, section 4. u and z come from one pass.
    """
    options, classes, seed = model.options, model.scenario.tasks[task_id], repeat.seed
    images = repeat.training_images(task_id, augmented=False)
    if not options.has_prompts:
        z, labels = features_in_order(model.encoder.plain, images, options.batch_size, repeat.machine)
        model.z.learn(z, labels, classes, seed, clusters=True, gaussians=False)
        return
    u, z, labels = task_features(model, task_id, images, repeat.machine)
    selects, answers = options.selector == "softmax", options.classifier == "softmax"
    model.u.learn(u, labels, classes, seed, clusters=True, gaussians=options.rebalance and selects)
    clusters = options.classifier == "cncm"
    model.z.learn(z, labels, classes, seed, clusters=clusters, gaussians=options.rebalance and answers)


def task_features(
    model: Model, task_id: int, images: RemappedSubset, machine: Machine
) -> tuple[Tensor, Tensor, Tensor]:
    """u (n, E), z (n, E) with the task's entry, and labels (n,), in the order of the images, one pass for both."""
    prompts = model.parts.prompt.prompts(task_id)

    def both(batch: Tensor) -> Tensor:
        return torch.stack(model.encoder.both(batch, prompts), dim=1)

    features, labels = features_in_order(both, images, model.options.batch_size, machine, "features of the task")
    u, z = features.unbind(dim=1)
    return u.contiguous(), z.contiguous(), labels


def rebalance_part(repeat: Repeat, model: Model, task_id: int, name: str) -> None:
    """Re-train the selector on pseudo-u, or the head on pseudo-z, over all classes seen (README, section 4)."""
    options, seen, stage = model.options, model.scenario.seen(task_id), f"task {task_id + 1}, rebalance {name}"
    part, memory = model.parts.get_submodule(name), model.u if name == "selector" else model.z
    seed = 2 * repeat.stream_seed(task_id, "retraining") + ("selector", "head").index(name)
    batches = PseudoFeatures(memory, options.rebalance_per_class, options.rebalance_batch, seed)
    losses = rebalance(part, batches, seen, options, stage, repeat.run.steps)
    mean = losses[-len(batches) :].mean()
    print(f"task {task_id + 1}: rebalanced {name}, loss of the last epoch {mean:.3f}", flush=True)
