"""A task (upstream methods/inflora.py:L66-L236): design its branch, train branch and classifier, remember its inputs.

Epoch 0 of a task's batches serves the design, the next ones the training, the one after them the memory: each pass sees
the whole task under the training transform, as upstream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from common.training.schedules import coda_cosine, cosine_annealing, multistep
from inflora.gpm import Memory, design, remember, second_moments
from inflora.lora import Network
from inflora.methods import MILESTONES, OTHER_MILESTONES
from inflora.options import Options


@dataclass(frozen=True)
class TrainingOptions:
    """What the configuration decides of a task's training.

    fc_lr: the classifier's learning rate; None: lr, in one group. schedule(epoch, base rate): an epoch's learning rate.
    decay_finished: weight decay also shrinks what earlier tasks trained. train_reduction: lora_A is trained as well,
    which is plain LoRA and not InfLoRA.
    """

    epochs: int
    lr: float
    optimizer: str
    schedule: Callable[[int, float], float]
    fc_lr: float | None = None
    weight_decay: float = 0.0
    decay_finished: bool = True
    train_reduction: bool = False


def training_options(options: Options, task_id: int) -> TrainingOptions:
    """The training of a task: the first one by the init_* keys that were given."""

    def of_this_task(first: Any, later: Any) -> Any:
        return later if first is None or task_id > 0 else first

    method, epochs = options.method, of_this_task(options.init_epoch, options.epochs)
    if method.two_rates:  # these read lrate and weight_decay only
        optimizer, lr, fc_lr, weight_decay = "sgd", options.lrate, options.fc_lrate, options.weight_decay
        milestones = MILESTONES.get(options.dataset, OTHER_MILESTONES)
        milestones = milestones if options.milestones is None else options.milestones
        schedule = partial(multistep, milestones=milestones, gamma=options.lrate_decay)
    else:
        optimizer, lr, fc_lr = options.optim, of_this_task(options.init_lr, options.lrate), None
        weight_decay = of_this_task(options.init_weight_decay, options.weight_decay)
        schedule = partial(coda_cosine if optimizer == "adam" else cosine_annealing, epochs=epochs)
    if method.free_start and options.optim == "sgd" and task_id == 0:
        weight_decay = 0.0
    return TrainingOptions(
        epochs,
        lr,
        optimizer,
        schedule,
        fc_lr,
        weight_decay,
        options.decay_finished,
        train_reduction=not method.designed,
    )


def epoch_of(batches: BatchStream, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch of the stream."""
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        yield batches[step]


@torch.no_grad()
def design_branch(network: Network, task_id: int, memories: list[Memory] | None, batches: BatchStream) -> None:
    """Write the task's B_t (lora_A, the same for k and v) into every layer.

    memories: one a layer, of the tasks before it; None in the first.
    """
    moments = second_moments(network, epoch_of(batches, 0))
    for layer, (attention, C) in enumerate(zip(network.attentions, moments)):
        rank = attention.lora_A_k[task_id].weight.shape[0]
        B = design(C, memories[layer] if memories else None, rank)
        attention.lora_A_k[task_id].weight.copy_(B)
        attention.lora_A_v[task_id].weight.copy_(B)


def remember_task(
    network: Network, memories: list[Memory] | None, batches: BatchStream, epoch: int, epsilon: float, dual: bool
) -> list[Memory]:
    """One memory a layer after a task, from the inputs of the trained network in this epoch of the task's batches."""
    moments = second_moments(network, epoch_of(batches, epoch))
    return [remember(C, memories[layer] if memories else None, epsilon, dual) for layer, C in enumerate(moments)]


def train_task(
    network: Network,
    task_id: int,
    branch: int,
    first_class: int,
    batches: BatchStream,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
) -> dict[str, Tensor]:
    """Train a task's classifier and lora_B of a branch, in place, then merge the branch.

    batches: labels from first_class on. Its epoch 0 belongs to the pass before training, the next ones are trained on.
    Returns cross-entropy and training accuracy (0 to 1) of every step, both (steps,).
    """
    trained = trained_parameters(network, task_id, branch, options)
    network.train_only(trained)
    network.activate(branch)
    finished = finished_parameters(network, task_id, branch, options)
    optimizer = build_optimizer(trained | finished, options)
    total = options.epochs * len(batches)
    log = {name: next(network.parameters()).new_zeros(total).detach() for name in ("loss", "accuracy")}
    state = {"parameters": Tensors(trained | finished), "optimizer": optimizer, "log": Tensors(log)}
    call = parallel(network)
    for step in steps(stage, total, state):
        if finished:  # they have moved, or come from a saved state
            network.activate(branch)
        for group in optimizer.param_groups:
            group["lr"] = options.schedule(step // len(batches), group["base_lr"])
        images, labels = batches[len(batches) + step]
        targets = labels - first_class
        logits = call(task_logits, task_id, images, len(labels))
        loss = F.cross_entropy(logits, targets)  # among the task's own classes
        for parameter in trained.values():  # what is finished keeps its gradient of zero: see finished_parameters
            parameter.grad = None
        loss.backward()
        optimizer.step()
        log["loss"][step] = loss.detach()
        log["accuracy"][step] = (logits.detach().argmax(dim=1) == targets).float().mean()
    network.train_only({})
    network.finish(branch)
    return log


def task_logits(network: Network, task_id: int, images: Tensor, batch_size: int) -> Tensor:
    """Logits (B, classes) among the task's classes for the whole batch, of which `images` are this process's rows."""
    return all_gather_rows(network.classifier_pool[task_id](network.features(images)), batch_size)


def trained_parameters(
    network: Network, task_id: int, branch: int, options: TrainingOptions
) -> dict[str, nn.Parameter]:
    """The parameters that a task trains, by state-dict key."""
    trained = network.branch(branch) | network.classifier(task_id)
    return trained | network.reduction(branch) if options.train_reduction else trained


def finished_parameters(
    network: Network, task_id: int, branch: int, options: TrainingOptions
) -> dict[str, nn.Parameter]:
    """What earlier tasks trained and weight decay still shrinks; none without weight decay. All get a zero gradient.

    Upstream's optimiser holds every parameter, and under torch 1.10 zero_grad leaves zeros where a gradient once was,
    on which weight decay acts. With a rate of its own for the classifier, older classifiers are in no group.
    """
    if not (options.weight_decay and options.decay_finished):
        return {}
    finished: dict[str, nn.Parameter] = {}
    for earlier in range(branch):
        finished |= network.branch(earlier)
    if options.fc_lr is None:
        for earlier in range(task_id):
            finished |= network.classifier(earlier)
    for parameter in finished.values():
        parameter.grad = torch.zeros_like(parameter)
    return finished


def build_optimizer(parameters: dict[str, nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9, over one group, or over the encoder's and the classifier's parameters."""
    rates = {"": options.lr}  # by the beginning of a group's keys
    if options.fc_lr is not None:
        rates = {"image_encoder.": options.lr, "classifier_pool.": options.fc_lr}
    groups = [
        {"params": [value for key, value in parameters.items() if key.startswith(prefix)], "base_lr": rate}
        for prefix, rate in rates.items()
    ]
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)
