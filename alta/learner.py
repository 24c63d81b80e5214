"""What a run of ALTA is made of and carries from task to task: its head, data, names, folder and checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alta.buffer import Buffer
from alta.data import SOURCES, load, load_clip, weights_of
from alta.heads import Head, PromptOptions
from alta.options import Options, data_set, method_label, protocols, replays, run_folder, scenario
from common import datasets
from common.clip.model import CLIP, ModifiedResNet, fold_batch_norms
from common.clip.pretrained import find_weights, fingerprint
from common.datasets.images import ImageArrays, ImageFiles, ImageSet
from common.errors import UserError, all_checked
from common.incremental.common_ground import sequence_settings
from common.incremental.scenario import Scenario, require_images
from common.incremental.sets import reader_options
from common.incremental.tasks import task_path
from common.machine import Machine
from common.mini import scale_of
from common.options import settings
from common.runs import Run, Tensors, fitting, load_tensors, mini_folder, save_tensors
from common.training.device import seed_everything
from common.training.numerics import prepare

Features = tuple[Tensor, Tensor]  # CLIP's image features (N, D) and labels (N,) of a test set


@dataclass
class Learner:
    """A run. optimizer: None for zero-shot CLIP. buffer: None without replay.

    train, test: all classes, under their transforms. test_features: of the test sets of tasks 0, 1, ... so far.
    """

    options: Options
    machine: Machine
    scenario: Scenario
    train: ImageFiles | ImageArrays
    test: ImageFiles | ImageArrays
    head: Head
    optimizer: torch.optim.Optimizer | None
    buffer: Buffer | None
    run: Run
    test_features: list[Features] = field(default_factory=list)

    def is_evaluated(self, task_id: int) -> bool:
        return self.checkpoint(task_id).exists() and bool(self.run.find(after_task=task_id + 1, metric="accuracy"))

    def checkpoint(self, task_id: int) -> Path:
        return task_path(self.run.folder, task_id)

    def save(self, task_id: int) -> None:
        """Write what is trained, under the original's keys, and what goes on into the next task."""
        head, optimizer, buffer = self.head, self.optimizer, self.buffer
        content: dict[str, Any] = {"state_dict": Tensors(head.trained()).state_dict()}
        content |= {"frozen_prompts": head.frozen_prompts, "last_context": head.last_context}
        content |= {"optimizer": optimizer and optimizer.state_dict(), "buffer": buffer and buffer.state_dict()}
        save_tensors(self.checkpoint(task_id), content)

    def load(self, task_id: int) -> None:
        """Put everything back to what it was after a task."""
        saved, head = load_tensors(self.checkpoint(task_id)), self.head
        with fitting(self.checkpoint(task_id)):
            Tensors(head.trained()).load_state_dict(saved["state_dict"])
            Tensors(head.last_context).load_state_dict(saved["last_context"])
            frozen = saved["frozen_prompts"]
            head.freeze(None if frozen is None else frozen.to(self.machine.device))
            if self.optimizer is not None:
                self.optimizer.load_state_dict(saved["optimizer"])
            if self.buffer is not None:
                self.buffer.load_state_dict(saved["buffer"])


def check_inputs(options: Options) -> None:
    """Look for the data and the weights. Raises one UserError that lists all that is missing."""
    images, verify = data_set(options), not options.no_verify
    weights = weights_of(options.visual, options.clip_weights)
    all_checked([
        lambda: datasets.require([images.reader], images.root, verify, options=reader_options(images)),
        lambda: find_weights(weights),
    ])  # fmt: skip


def build(options: Options, machine: Machine) -> Learner:
    """The learner before its first task; its run's folder is open."""
    seed_everything(options.seed)  # the adapter's initial weights
    clip = build_clip(options, machine)
    resolution, verify, device = clip.visual.input_resolution, not options.no_verify, machine.device
    common = options.transforms is not None
    data = load(options.dataset.name, data_set(options), resolution, options.clip_norm, verify, common)
    tasks, coop = scenario(options), options.TRAINER.COOP
    require_images(data, tasks)
    assert data.test is not None  # or there would be no images of any task
    prompts = PromptOptions(coop.CTX_INIT, coop.CLASS_TOKEN_POSITION, coop.N_CTX, coop.CSC)
    names = tasks.classnames(data.classnames)
    head = Head(clip, options.method, names, prompts, encoding_on(device, options))
    optimizer = build_optimizer(head, options)
    buffer = Buffer(options.buffer_size, options.seed, device) if replays(options) else None
    if buffer is None and options.model.use_replay and optimizer is not None:
        print(f"note: {options.method} trains prompts alone and does not replay; --buffer_size has no effect")
    run = open_run(options, machine, data, tasks)
    return Learner(options, machine, tasks, data.train, data.test, head, optimizer, buffer, run)


def build_clip(options: Options, machine: Machine) -> CLIP:
    """The frozen CLIP. Raises UserError where its tower is not the one that --visual names, or takes other images."""
    halves = "fp16" if precision_on(machine.device, options) == "fp16" else "fp32"  # tf32, bf16: ways to compute
    clip = load_clip(options.visual, options.clip_weights, halves, machine.device, options.activation)
    wanted, resolution = options.dataset.image_size, clip.visual.input_resolution
    if wanted not in (None, resolution):
        raise UserError(
            f"{options.config_file}: dataset.image_size {wanted}, but {options.visual} takes images of {resolution} "
            "pixels. Leave the key out, or give that number."
        )
    is_resnet = isinstance(clip.visual, ModifiedResNet)
    if options.clip_weights and is_resnet != (options.visual.startswith("RN") or options.visual in SOURCES):
        holds = f"{options.clip_weights} holds a {'ResNet' if is_resnet else 'ViT'}"
        raise UserError(f"--visual {options.visual}, but {holds}. Name the tower that it holds.")
    if is_resnet and precision_on(machine.device, options) == "fp32":
        fold_batch_norms(clip.visual)
    prepare(machine, clip)
    return clip


def build_optimizer(head: Head, options: Options) -> torch.optim.Optimizer | None:
    """SGD over all that the method trains, for all tasks; None where it trains nothing."""
    trained, optim = list(head.trained().values()), options.OPTIM
    if not trained:
        return None
    return torch.optim.SGD(
        trained, lr=optim.LR, momentum=optim.MOMENTUM, weight_decay=optim.WEIGHT_DECAY,
        dampening=optim.SGD_DAMPNING, nesterov=optim.SGD_NESTEROV,
    )  # fmt: skip


def precision_on(device: torch.device, options: Options) -> str:
    """The precision that --precision names on a device."""
    return {"auto": "fp16" if device.type == "cuda" else "fp32"}.get(options.precision, options.precision)


def encoding_on(device: torch.device, options: Options) -> str:
    """The encoding of texts that --encoding names on a device."""
    halved = precision_on(device, options) == "fp16"
    return {"auto": "full" if halved else "cut"}.get(options.encoding, options.encoding)


def open_run(options: Options, machine: Machine, data: ImageSet, tasks: Scenario) -> Run:
    """The run in --save or in a folder that names its options. Raises UserError if another run lies there."""
    scale, device = scale_of(options.scale, options.dataset.name, options.visual), machine.device
    decides = settings(options) | {"buffer_size": options.buffer_size if replays(options) else None}
    decides |= {"precision": precision_on(device, options), "encoding": encoding_on(device, options)}
    weights = fingerprint(weights_of(options.visual, options.clip_weights), options.activation)
    decides |= {"weights": weights, "data": data.fingerprint} | sequence_settings(options, tasks)
    labels = {
        "paper": "alta", "method": method_label(options), "protocol": protocols(options)["class-il"],
        "backbone": options.visual, "scale": scale, "seed": options.seed,
    }  # fmt: skip
    outputs = [*(f"task_{task_id}.pth" for task_id in range(len(tasks.tasks))), "tsne.png"]
    outputs += [f"accuracy_{setting}.{kind}" for setting in protocols(options) for kind in ("csv", "png")]
    folder = mini_folder(run_folder(options), scale) or ""
    return Run(folder, decides, labels, options=options, machine=machine, outputs=outputs)
