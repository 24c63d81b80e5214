"""iCaRL's exemplars in the class-incremental protocol (cil/continual_clip/dynamic_dataset.py).

They are chosen before a task is learned, from its first 10,000 samples by herding over the whole task, and feed the
distillation terms only: no label of an exemplar is used. A memory is a list of tasks, each a list of indices into the
task's samples. The images are random crops, frozen when they are chosen; the crop of a sample follows from the seed,
so that indices are all that has to be kept.
"""

import json
from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from common.clip.model import CLIP
from common.errors import UserError
from common.incremental.data import IncrementalData
from common.incremental.scenario import task_subset
from common.machine import Machine
from common.runs import Run, write_text
from common.training.batches import DrawnSamples
from zscl.cil.options import Options
from zscl.icarl import candidate_features, herd

CANDIDATES = 10_000  # a task's samples that may become exemplars: the first ones
EXEMPLARS_AT_ONCE = 64  # a constant in the original's code, whatever the batch size
Memory = list[list[int]]


def check_memory(options: Options, data: IncrementalData) -> None:
    """Raise UserError for a memory that holds more than the data set or less than an image a task."""
    if options.method != "iCaRL":
        return
    images, tasks = len(data.train), len(data.scenario.tasks)
    if not tasks <= options.memory_size <= images:
        raise UserError(
            f"memory_size={options.memory_size}: {data.dataset} has {images:,} training images in {tasks} tasks; give "
            f"{tasks} to {images}."
        )


def updated_memory(memory: Memory, features: Tensor, memory_size: int, compat: bool = False) -> Memory:
    """The memory with the exemplars of one more task, from the normalised features (n, D) of its candidates.

    With t tasks the stored ones keep their first K / t and the new one gets K / t. Quirk (compat): the new one gets
    K - K / t, all of K if it is the first, so the memory grows to nearly 2 K; and its images are taken by a stale
    index, other ones than herding chose and some of them twice.
    """
    share = memory_size // (len(memory) + 1)
    new = (memory_size - share or memory_size) if compat else share
    return [*(indices[:share] for indices in memory), herd(features, new, "upstream" if compat else "fixed")]


def memory_at(run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, model: CLIP) -> Memory:
    """The memory that task `task_id` distils on, its own exemplars included; `model` is the one before the task.

    Kept in task_<k>.memory.json.
    """
    path = run.folder / f"task_{task_id}.memory.json"
    if path.exists():
        return json.loads(path.read_text())
    earlier = json.loads((run.folder / f"task_{task_id - 1}.memory.json").read_text()) if task_id else []
    crops = FrozenCrops(task_subset(data.train, data.scenario, task_id), options.stream_seed(task_id, "exemplars"))
    candidates = Subset(crops, range(min(len(crops), CANDIDATES)))
    features = candidate_features(model, candidates, options.batch_size, machine, f"task {task_id}")
    memory = updated_memory(earlier, features, options.memory_size, options.icarl_compat)
    write_text(path, json.dumps(memory))
    return memory


class FrozenCrops(Dataset):
    """The samples of `dataset`, each always under the same random crop."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.samples, self.size = DrawnSamples(dataset, seed), len(dataset)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.samples[index, index]


def exemplars(options: Options, data: IncrementalData, memory: Sequence[Sequence[int]]) -> Dataset:
    """The stored images, task after task, each in the order chosen."""
    parts = []
    for task_id, indices in enumerate(memory):
        crops = FrozenCrops(task_subset(data.train, data.scenario, task_id), options.stream_seed(task_id, "exemplars"))
        parts.append(Subset(crops, indices))
    return ConcatDataset([part for part in parts if len(part)])
