"""iCaRL's exemplars in the class-incremental protocol (cil/continual_clip/dynamic_dataset.py).

They are chosen before a task is learned, from its first 10,000 samples by herding over the whole task, and feed the
distillation terms only: no label of an exemplar is used. The images are random crops, frozen when they are chosen; the
crop of a sample follows from the seed, so that indices are all that has to be kept.
"""

import json
from pathlib import Path

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from common.clip.model import CLIP
from common.errors import UserError
from common.files import read_back
from common.incremental.data import IncrementalData
from common.incremental.measures import is_common
from common.incremental.scenario import RemappedSubset, task_subset
from common.machine import Machine
from common.runs import Run, write_text
from common.training.batches import DrawnSamples
from zscl.cil.options import Options
from zscl.icarl import Memory, candidate_features, updated_memory

CANDIDATES = 10_000  # a task's samples that may become exemplars: the first ones
EXEMPLARS_AT_ONCE = 64  # a constant in the original's code, whatever the batch size
RULES = {False: ("exact", "fixed"), True: ("upstream", "upstream")}  # quota and herding by icarl_compat


def check_memory(options: Options, data: IncrementalData) -> None:
    """Raise UserError for a memory that holds more than the data set or less than an image a task."""
    if options.method != "iCaRL":
        return
    images, tasks = data.fingerprint["train"], len(data.scenario.tasks)
    if not tasks <= options.memory_size <= images:
        raise UserError(
            f"memory_size={options.memory_size}: {data.dataset} has {images:,} training images in {tasks} tasks; give "
            f"{tasks} to {images}."
        )


def memory_at(run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, model: CLIP) -> Memory:
    """The memory that task `task_id` distils on, its own exemplars included; `model` is the one before the task.

    Kept in task_<k>.memory.json, the indices of task after task.
    """
    path = memory_path(run, task_id)
    if path.exists():
        return read_memory(path)
    earlier = read_memory(memory_path(run, task_id - 1)) if task_id else {}
    crops = FrozenCrops(task_subset(data.train, data.scenario, task_id), options.stream_seed(task_id, "exemplars"))
    features = candidate_features(model, crops, CANDIDATES, options.batch_size, machine, f"task {task_id}")
    memory = updated_memory(earlier, task_id, features, options.memory_size, *RULES[options.icarl_compat])
    write_text(path, json.dumps(list(memory.values())))
    return memory


def memory_path(run: Run, task_id: int) -> Path:
    return run.folder / f"task_{task_id}.memory.json"


def read_memory(path: Path) -> Memory:
    return dict(enumerate(read_back(path, json.loads, list)))


def stored_floats(run: Run, options: Options, task_id: int, resolution: int) -> int:
    """Pixel values of the exemplars kept after a task, 3 R R an image, each image once; for common protocols."""
    memory = read_memory(memory_path(run, task_id)) if options.method == "iCaRL" and is_common(run) else {}
    return sum(len(set(indices)) for indices in memory.values()) * 3 * resolution**2


class FrozenCrops(Dataset):
    """The samples of `dataset`, each always under the same random crop."""

    def __init__(self, dataset: RemappedSubset, seed: int) -> None:
        self.dataset, self.samples = dataset, DrawnSamples(dataset, seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.samples[index, index]


def exemplars(options: Options, data: IncrementalData, memory: Memory) -> Dataset:
    """The stored images, task after task, each in the order chosen."""
    parts: list[Subset] = []
    for task_id, indices in memory.items():
        crops = FrozenCrops(task_subset(data.train, data.scenario, task_id), options.stream_seed(task_id, "exemplars"))
        parts.append(Subset(crops, indices))
    return ConcatDataset([part for part in parts if len(part)])
