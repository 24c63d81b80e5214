"""A run of IT-Prompt under one seed: its tasks, their stages, its checkpoints. The loop is `run_seed`.

Each task has one file, class.pth, written again after each of its stages; a killed run repeats no finished stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import vit
from common.clip import pretrained
from common.clip.model import CLIP, VisionTransformer
from common.clip.tokenizer import training_prompts
from common.datasets.images import ImageSet
from common.errors import UserError
from common.evaluation.seen_classes import class_features
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario, require_images, task_subset
from common.incremental.tasks import stream_seed, unfinished_tasks
from common.machine import Machine
from common.options import settings
from common.runs import Run, file_md5, load_tensors, save_tensors
from common.training.batches import Batches
from common.training.device import seed_everything
from common.training.numerics import prepare
from vq_prompt import data as vq_data
from vq_prompt import report
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.data import scenario, spoken_names, transforms
from vq_prompt.it_prompt.evaluation import Learned, evaluate, test_features
from vq_prompt.it_prompt.network import Encoder, Entries, Parts, Selector
from vq_prompt.it_prompt.options import PRESETS, ITOptions
from vq_prompt.it_prompt.training import PseudoFeatures, rebalance, task_features, train_task

LABELS = {  # in records; IT-Prompt's own carry the words, since no code and no full text was at hand
    "ITPromptCNCM": "IT-Prompt + C-NCM (our reading)",
    "ITPrompt": "IT-Prompt (our reading)",
    "ZeroShot": "Zero-shot CLIP",
    "NCM": "NCM, no prompts (CLIP)",
}


def check(options: ITOptions) -> None:
    """Raise UserError unless the weights are there."""
    weights_file(options)


def weights_file(options: ITOptions) -> Path:
    """The file of the backbone's weights."""
    name = options.backbone_weights
    return pretrained.find_weights(name) if options.is_clip else vit.find_weights(name, options.weights)


def method_label(options: ITOptions) -> str:
    """The method as records name it: the learner's label, then what makes it another method than its preset."""
    told = {"scope": "seen", "text_guide": "ce", "text_classes": "current", "rebalance": True}
    told |= PRESETS[options.learner_name]
    if not options.has_prompts:
        return LABELS[options.learner_name]
    if not options.is_clip:
        told["text_guide"] = "off"
    changed = [f"{key} {getattr(options, key)}" for key, value in told.items() if getattr(options, key) != value]
    return ", ".join([LABELS[options.learner_name], *changed])


def backbone_label(options: ITOptions) -> str:
    """As the other CLIP papers' records have it, and as those of the ViTs."""
    name = options.backbone_weights
    return name if options.is_clip else vit.LABELS.get(name, name)


# A run


@dataclass
class Session:
    """One run: what it was told, what it learns from, and what it carries from task to task."""

    options: ITOptions
    machine: Machine
    seed: int
    repeat: int
    run: Run
    data: ImageSet
    learned: Learned

    def checkpoint(self, task: int) -> Path:
        return report.task_folder(self.options, self.repeat, task) / "class.pth"


def run_seed(options: ITOptions, machine: Machine, seed: int, repeat: int) -> np.ndarray:
    """Learn and evaluate all tasks under one seed: R (T, T) float64, R[j, i] percent of task j after task i, else 0."""
    tasks = scenario(options, seed)
    count = vq_data.task_count(options, tasks)
    encoder, clip = load_encoder(options, machine)
    prepare(machine, encoder, *([] if clip is None else [clip]))
    data = vq_data.load_data(options, seed, *transforms(options, encoder.resolution))
    require_images(data, tasks, count, every_class=True)
    decides = settings(options) | {"weights": {"md5": file_md5(weights_file(options))}}
    decides["zero_shot"] = "plain"  # an option of a single value in the runs of before, which are to go on
    label, backbone = method_label(options), backbone_label(options)
    run = report.open_run(options, machine, repeat, seed, label, backbone, tasks, data, decides)
    text = None if clip is None else text_features(clip, tasks.classnames(spoken_names(data)), options.template)
    del clip  # the text tower has done its part
    seed_everything(seed)  # the initial entries, head and selector
    learned = Learned(options, encoder, build_parts(options, encoder, tasks), text, tasks, *memories(options))
    session = Session(options, machine, seed, repeat, run, data, learned)
    unfinished = unfinished_tasks(
        count,
        lambda task: report.is_evaluated(run, task),
        lambda task: read_task(session, task, required=bool(stages(options, task))),
    )
    if unfinished:
        test = test_features(run, machine, learned, data)
    for task in unfinished:
        learn_task(session, task)
        evaluate(run, machine, learned, test, task)
    return report.finish_run(run, count)


def load_encoder(options: ITOptions, machine: Machine) -> tuple[Encoder, CLIP | None]:
    """The frozen tower on the device, and the CLIP it is of."""
    layers = options.prompt_layers if options.has_prompts else ()
    if not options.is_clip:
        tower = vit.load(options.backbone_weights, options.weights)
        return Encoder(tower, layers).to(machine.device), None
    clip, _, _ = pretrained.load(options.clip_weights, machine.device)
    if not isinstance(clip.visual, VisionTransformer):
        raise UserError(f"clip_weights {options.clip_weights}: a ResNet; prompts go into a ViT, such as ViT-B/16.")
    return Encoder(clip.visual, layers), clip


def text_features(clip: CLIP, names: list[str], template: str) -> Tensor:
    """w_c (C, E) of the names."""
    return class_features(clip, training_prompts(names, template).to(clip.logit_scale.device))


def build_parts(options: ITOptions, encoder: Encoder, tasks: Scenario) -> Parts | None:
    """Entries, and head and selector where the options have them, with their initial values; none for the bounds."""
    if not options.has_prompts:
        return None
    classes, device = len(tasks.class_order), next(encoder.parameters()).device
    layers, length = len(options.prompt_layers), options.prompt_length
    prompt = Entries(len(tasks.tasks), layers, length, encoder.width, encoder.dim, options.prompt_init)
    head = nn.Linear(encoder.dim, classes) if options.train_head else None
    selector = Selector(encoder.dim, options.tpi_hidden, classes) if options.selector == "softmax" else None
    return Parts(prompt, head, selector).to(device)


def memories(options: ITOptions) -> tuple[ClassMemory, ClassMemory]:
    """The two stores, of u and of z, empty."""
    values = (options.tukey_beta, options.center, options.n_clusters, options.renorm_centroids, options.aggregate)
    return ClassMemory(*values), ClassMemory(*values)


# Checkpoints


def save_task(session: Session, task: int, stages: list[str]) -> None:
    learned = session.learned
    content = {"stages": stages, "u": learned.u.state_dict(), "z": learned.z.state_dict()}
    session.checkpoint(task).parent.mkdir(parents=True, exist_ok=True)
    weights = {} if learned.parts is None else {key: value.cpu() for key, value in learned.parts.state_dict().items()}
    save_tensors(session.checkpoint(task), content | {"state_dict": weights})


def read_task(session: Session, task: int, required: bool = False) -> list[str]:
    """Put back what a task's file holds; the stages that were finished, none where there is no file.

    Raises UserError for a file that is damaged, or missing and required.
    """
    path, learned = session.checkpoint(task), session.learned
    if not required and not path.exists():
        return []
    saved = load_tensors(path)
    if learned.parts is not None:
        learned.parts.load_state_dict(saved["state_dict"])
    for name in ("u", "z"):
        getattr(learned, name).load_state_dict(saved[name], session.machine.device)
    return saved["stages"]


# A task


def learn_task(session: Session, task: int) -> None:
    """All stages of a task that are not finished: train, look at its images once, rebalance; each then saved."""
    finished = read_task(session, task)
    for name, stage in stages(session.options, task).items():
        if name not in finished:
            stage(session, task)
            finished = [*finished, name]
            save_task(session, task, finished)


def stages(options: ITOptions, task: int) -> dict[str, Callable[[Session, int], None]]:
    """What a task consists of, in order."""
    found = {"training": train} if options.has_prompts else {}
    if options.learner_name != "ZeroShot":
        found["memory"] = remember
    if options.rebalance and task > 0:
        found |= {"selector": rebalance_selector} if options.selector == "softmax" else {}
        found |= {"head": rebalance_head} if options.classifier == "softmax" else {}
    return found


def train(session: Session, task: int) -> None:
    options, machine, learned = session.options, session.machine, session.learned
    examples = task_subset(session.data.train, learned.tasks, task)
    seed = stream_seed(session.seed, task, "training", vq_data.PURPOSES)
    batches = Batches(examples, options.batch_size, seed, machine.workers, machine.device, drop_last=options.drop_last)
    epoch = len(batches)
    if epoch == 0:
        raise UserError(
            f"task {task + 1} has {len(examples)} training images, fewer than a batch of {options.batch_size}, and "
            "drop_last drops it. Take a smaller batch_size, or drop_last: false."
        )
    classes, steps = learned.tasks.tasks[task], session.run.steps
    log = train_task(learned.encoder, learned.parts, learned.text, task, classes, batches, options, steps)
    trained = sum(parameter.numel() for parameter in learned.parts.of_task(task).values())
    report.record_costs(session.run, options, machine, task, options.epochs * epoch, trained)
    means = "  ".join(f"{name} {values[-epoch:].mean():.3f}" for name, values in vars(log).items())
    print(f"task {task + 1}: losses of the last epoch: {means}", flush=True)


def remember(session: Session, task: int) -> None:
    """Look at all training images of the task once, under the test transform, and keep what the stores need (B2.4)."""
    options, machine, learned = session.options, session.machine, session.learned
    plain = vq_data.under(session.data.train, session.data.test.transform)
    images, classes = task_subset(plain, learned.tasks, task), learned.tasks.tasks[task]
    labels = torch.tensor(images.labels, device=machine.device)
    if not options.has_prompts:
        z, _ = features_in_order(learned.encoder.plain, images, options.batch_size, machine)
        learned.z.learn(z, labels, classes, session.seed, clusters=True, gaussians=False)
        return
    prompts = learned.parts.prompt.prompts(task)
    u, z = task_features(learned.encoder, prompts, images, options.batch_size, machine)
    softmax = {"u": options.selector == "softmax", "z": options.classifier == "softmax"}
    gaussians = {name: options.rebalance and part for name, part in softmax.items()}
    learned.u.learn(u, labels, classes, session.seed, clusters=True, gaussians=gaussians["u"])
    learned.z.learn(z, labels, classes, session.seed, clusters=options.classifier == "cncm", gaussians=gaussians["z"])


def rebalance_selector(session: Session, task: int) -> None:
    _rebalance(session, task, "selector", session.learned.parts.selector, session.learned.u)


def rebalance_head(session: Session, task: int) -> None:
    _rebalance(session, task, "head", session.learned.parts.head, session.learned.z)


def _rebalance(session: Session, task: int, name: str, part: nn.Module, memory: ClassMemory) -> None:
    options = session.options
    seed = 2 * stream_seed(session.seed, task, "retraining", vq_data.PURPOSES) + ("selector", "head").index(name)
    drawn = PseudoFeatures(memory, options.rebalance_per_class, options.rebalance_batch, seed)
    seen, stage = session.learned.tasks.seen(task), f"task {task + 1}, rebalance {name}"
    losses = rebalance(part, drawn, options.rebalance_epochs, seen, options.rebalance_lr, stage, session.run.steps)
    print(f"task {task + 1}: rebalanced {name}, loss of the last epoch {losses[-len(drawn) :].mean():.3f}", flush=True)
