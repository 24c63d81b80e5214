"""What a run of InfLoRA is made of and carries from task to task: its data, network, folder and checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common import datasets, vit
from common.datasets.images import ImageArrays, ImageFiles, ImageSet
from common.errors import all_checked
from common.incremental.common_ground import sequence_settings
from common.incremental.scenario import Scenario, protocol
from common.incremental.sets import vit_transforms
from common.incremental.tasks import task_path
from common.machine import Machine
from common.mini import scale_of
from common.options import settings
from common.runs import Run, file_md5, fitting, load_tensors, mini_folder, save_tensors
from common.training.device import seed_everything
from common.training.numerics import prepare
from inflora.alignment import ClassStatistics, fresh_norm
from inflora.gpm import Memory
from inflora.lora import Network
from inflora.options import Options, log_folder


@dataclass
class Learner:
    """One seed's run. memories: one a layer, after the first task; statistics: of the classes seen, with +CA.

    train, test: all classes, under their transforms and original labels.
    """

    options: Options
    machine: Machine
    seed: int
    scenario: Scenario
    train: ImageFiles | ImageArrays
    test: ImageFiles | ImageArrays
    network: Network
    run: Run
    memories: list[Memory] | None = None
    statistics: ClassStatistics | None = None

    def branch(self, task_id: int) -> int:
        """The LoRA branch that a task trains: its own, or the only one where it is not designed."""
        return task_id if self.options.method.designed else 0

    def stored(self) -> list[Tensor]:
        """What is kept from task to task besides the network: the memories' bases, with +CA the classes' statistics."""
        statistics = vars(self.statistics).values() if self.statistics else ()
        return [*(memory.basis for memory in self.memories or []), *statistics]

    def is_evaluated(self, task_id: int) -> bool:
        return self.checkpoint(task_id).exists() and bool(self.run.find(after_task=task_id + 1, metric="acc"))

    def checkpoint(self, task_id: int) -> Path:
        return task_path(self.run.folder, task_id)

    def save(self, task_id: int) -> None:
        """Write the network and the memories after a task; `add_statistics` has written those of its classes."""
        memories = [memory.state_dict() for memory in self.memories or []]
        save_tensors(self.checkpoint(task_id), {"state_dict": self.network.state_dict(), "memories": memories})

    def add_statistics(self, task_id: int, statistics: ClassStatistics) -> ClassStatistics:
        """The statistics of all classes seen, those of a task's classes added and written."""
        save_tensors(self.run.folder / f"classes_{task_id}.pth", vars(statistics))
        self.statistics = self.statistics.joined(statistics) if self.statistics else statistics
        return self.statistics

    def load(self, task_id: int) -> None:
        """Put the network, the memories and the statistics back to what they were after a task."""
        saved, device = load_tensors(self.checkpoint(task_id)), self.machine.device
        with fitting(self.checkpoint(task_id)):
            self.network.load_state_dict(saved["state_dict"])
            self.network.finish(self.branch(task_id))
            if self.options.method.designed:
                self.memories = [Memory(entry["basis"].to(device), entry["free"]) for entry in saved["memories"]]
        if self.options.method.aligned:
            files = [self.run.folder / f"classes_{earlier}.pth" for earlier in range(task_id + 1)]
            parts = [load_tensors(file) for file in files]
            with fitting(self.run.folder / "classes_*.pth"):
                names = ("means", "covariances")
                joined = {name: torch.cat([part[name] for part in parts]).to(device) for name in names}
                self.statistics = ClassStatistics(**joined)


def check_inputs(options: Options) -> None:
    """Look for the data and the weights. Raises one UserError that lists all that is missing."""
    data, verify = options.data_set, not options.no_verify
    all_checked([
        lambda: datasets.require([data.reader], data.root, verify, options=options.reader_options),
        lambda: vit.find_weights(options.backbone, options.weights),
        lambda: options.normalisation,
    ])  # fmt: skip


def build(options: Options, machine: Machine, seed: int) -> Learner:
    """The learner of one seed, before its first task; its run's folder is open."""
    seed_everything(seed)  # the initial branches and classifiers
    scenario = options.scenario(seed)
    network = build_network(options, scenario)
    prepare(machine, network)
    network.to(machine.device)
    image_set, verify = options.data_set, not options.no_verify
    size = network.image_encoder.patch_embed.img_size[0]
    transforms = vit_transforms(image_set, size, options.normalisation)
    data = datasets.load(image_set.reader, image_set.root, *transforms, verify, options=options.reader_options)
    assert data.test is not None  # as in all sets that the options name
    run = open_run(options, machine, seed, scenario, data)
    return Learner(options, machine, seed, scenario, data.train, data.test, network, run)


def build_network(options: Options, scenario: Scenario) -> Network:
    """The pre-trained ViT with the branches and classifiers of all tasks, on the CPU."""
    method, backbone = options.method, vit.load(options.backbone, options.weights)
    layers = None if method.layers is None else min(method.layers, len(backbone.blocks))
    if method.fresh_norm and options.dataset == "cifar100":
        backbone.norm = fresh_norm(backbone.embed_dim)
    branches = options.total_sessions if method.designed else 1
    return Network(backbone, [len(task) for task in scenario.tasks], branches, options.rank, layers)


def open_run(options: Options, machine: Machine, seed: int, scenario: Scenario, data: ImageSet) -> Run:
    """The run's folder, of the original's name. Raises UserError if another configuration's run lies there."""
    scale = scale_of(options.scale, options.data_path, options.backbone)
    weights = {"md5": file_md5(vit.find_weights(options.backbone, options.weights))}
    decides = settings(options) | {"seed": seed, "weights": weights, "data": data.fingerprint}
    decides |= sequence_settings(options, scenario)
    folder = Path(mini_folder(options.save, scale) or "") / log_folder(options) / str(seed)
    backbone = vit.LABELS.get(options.backbone, options.backbone)
    name = protocol(options.data_set.label, scenario, kind=options.protocol)
    labels = {
        "paper": "inflora", "method": options.method.label, "protocol": name, "backbone": backbone, "scale": scale,
        "seed": seed,
    }  # fmt: skip
    outputs = [f"{kind}_{task_id}.pth" for kind in ("task", "classes") for task_id in range(len(scenario.tasks))]
    return Run(folder, decides, labels, options=options, machine=machine, outputs=[*outputs, "design.pth"])
