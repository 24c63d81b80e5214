"""A whole run of a fixture's training loop, watched step by step, held against the official one's numbers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from alta.buffer import Buffer
from alta.heads import Head
from alta.training import train_task
from common.evaluation.metrics import class_and_task_il
from tests.alta.learners import TaskBatches, golden_head, optimizer_of, options_of
from tests.golden_files import Golden


class Watched:
    """What a run did: everything the fixtures tell, stacked over its steps."""

    def __init__(self, head: Head, buffer: Buffer | None) -> None:
        self.head, self.buffer = head, buffer
        self.params: dict[str, list[Tensor]] = {name: [] for name in head.trained()}
        self.grads: dict[str, list[Tensor]] = {name: [] for name in head.trained()}
        self.logits: list[Tensor] = []  # of the current batch
        self.replayed: dict[int, Tensor] = {}
        self.choices: dict[int, Any] = {}
        self.seen: list[int] = []
        self.labels: list[Tensor] = []
        self.rates: list[float] = []
        self.terms: dict[str, list[Tensor]] = {"ce": [], "ce_replay": [], "mse_replay": []}
        self.accuracies: list[tuple[float, float]] = []
        self.means: list[tuple[float, float]] = []
        self.eval_logits: list[Tensor] = []


def run(golden: Golden, method: str, half: bool = False, encoding: str = "cut") -> Watched:
    """The fixture's tasks under our loop, from the stored initial parameters."""
    meta = golden.meta
    head = golden_head(golden, method, half, encoding)
    with torch.no_grad():
        for name, parameter in head.trained().items():
            parameter.copy_(golden[f"{method}.init.{name}"])
    prompt_only = head.method.prompts and not head.method.adapts
    buffer = Buffer(meta["buffer_size"], meta["seed"]) if meta["use_replay"] and not prompt_only else None
    found, optimizer, options = Watched(head, buffer), optimizer_of(head), options_of(golden)
    plain_logits, plain_choose = head.logits, buffer.choose if buffer else None
    calls: list[Tensor] = []

    def logits(features: Tensor, texts: dict[str, Tensor]) -> Tensor:
        calls.append(plain_logits(features, texts))
        return calls[-1]

    def choose(count: int) -> Any:
        found.choices[len(found.seen)] = plain_choose(count)
        return found.choices[len(found.seen)]

    if buffer:
        buffer.choose = choose

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        head.logits = logits
        for step in range(total):
            calls.clear()
            yield step
            found.logits.append(calls[0].detach())
            if len(calls) > 1:
                found.replayed[len(found.seen)] = calls[1].detach()
            for name, parameter in head.trained().items():
                found.params[name].append(parameter.detach().clone())
                found.grads[name].append(parameter.grad.clone())
            found.rates.append(optimizer.param_groups[0]["lr"])
            found.seen.append(buffer.num_seen if buffer else 0)
            found.labels.append(buffer.fields["labels"].clone() if buffer else torch.empty(0))

    for task in range(meta["n_tasks"]):
        batches = TaskBatches(golden, task)

        def after_epoch(epoch: int) -> None:
            head.logits = plain_logits
            test(golden, found, task)
            head.logits = logits

        log = train_task(
            head, task, task * meta["k"], batches, optimizer, buffer, options, f"task {task}", steps, after_epoch
        )
        for name, values in found.terms.items():
            values.append(log[name])
    return found


@torch.no_grad()
def test(golden: Golden, found: Watched, task: int) -> None:
    texts, cells = found.head.texts(), []
    for i in range(task + 1):
        features = found.head.features(golden[f"test.t{i}.images"].float())
        logits = found.head.logits(features, texts)
        cells.append(class_and_task_il(logits, golden[f"test.t{i}.labels"], i, golden.meta["k"]))
        found.eval_logits.append(logits)
    found.accuracies += cells
    found.means.append(tuple(sum(column) / len(cells) for column in zip(*cells)))
