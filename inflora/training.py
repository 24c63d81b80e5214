"""One task (upstream methods/inflora.py:L66-L236): design its branch, train branch and classifier, remember its inputs.

Epoch 0 of a task's batches serves the design, the next ones the training, the one after them the memory: each pass sees
the whole task under the training transform, as upstream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runs import Steps, Tensors
from common.training.batches import BatchStream
from common.training.distributed import all_gather_rows, parallel
from inflora.gpm import Memory, design, remember, second_moments
from inflora.lora import Network


@dataclass(frozen=True)
class TrainingOptions:
    """What the configuration decides of a task's training.

    fc_lr: a rate of the classifier's own; None: one group, one rate. schedule(epoch, base rate): the rate of an epoch.
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


@dataclass(frozen=True)
class TrainingLog:
    """Cross-entropy and share of correct answers of every step, both (steps,), on the device."""

    loss: Tensor
    accuracy: Tensor


def epoch_of(batches: BatchStream, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch of the stream."""
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        yield batches[step]


@torch.no_grad()
def design_branch(network: Network, task: int, memories: list[Memory] | None, batches: BatchStream) -> None:
    """Write the task's B_t (lora_A, the same for k and v) into every layer; memories: those of the tasks before it."""
    moments = second_moments(network, epoch_of(batches, 0))
    for layer, (attention, C) in enumerate(zip(network.attentions, moments)):
        rank = attention.lora_A_k[task].weight.shape[0]
        B = design(C, memories[layer] if memories else None, rank)
        attention.lora_A_k[task].weight.copy_(B)
        attention.lora_A_v[task].weight.copy_(B)


def remember_task(
    network: Network, memories: list[Memory] | None, batches: BatchStream, epoch: int, epsilon: float, dual: bool
) -> list[Memory]:
    """The layers' memories after a task, from the inputs of the trained network in that epoch of its batches."""
    moments = second_moments(network, epoch_of(batches, epoch))
    return [remember(C, memories[layer] if memories else None, epsilon, dual) for layer, C in enumerate(moments)]


def train_task(
    network: Network,
    task: int,
    branch: int,
    first_class: int,
    batches: BatchStream,
    options: TrainingOptions,
    stage: str,
    steps: Steps,
) -> TrainingLog:
    """Train classifier `task` and lora_B of `branch`, in place, then merge the branch.

    batches: labels from first_class on. Its epoch 0 belongs to the pass before training, the next ones are trained on.
    """
    trained = network.branch(branch) | network.classifier(task)
    if options.train_reduction:
        trained |= network.reduction(branch)
    network.train_only(trained)
    network.activate(branch)
    finished = finished_parameters(network, task, branch, options)
    optimizer = build_optimizer(trained | finished, options)
    total = options.epochs * len(batches)
    log = TrainingLog(*network.image_encoder.cls_token.new_zeros(2, total))
    state = {"parameters": Tensors(trained | finished), "optimizer": optimizer, "log": Tensors(vars(log))}
    call = parallel(network)
    for step in steps(stage, total, state):
        if finished:  # they have moved, or come from a saved state
            network.activate(branch)
        for group in optimizer.param_groups:
            group["lr"] = options.schedule(step // len(batches), group["base_lr"])
        images, labels = batches[len(batches) + step]
        targets = labels - first_class
        logits = call(task_logits, task, images, len(labels))
        loss = F.cross_entropy(logits, targets)  # among the task's own classes
        optimizer.zero_grad(set_to_none=False)  # a gradient of zero, not none: see finished_parameters
        loss.backward()
        optimizer.step()
        log.loss[step] = loss.detach()
        log.accuracy[step] = (logits.detach().argmax(dim=1) == targets).float().mean()
    network.train_only({})
    network.finish(branch)
    return log


def task_logits(network: Network, task: int, images: Tensor, batch_size: int) -> Tensor:
    """Logits (B, classes) of the task's own classes for the whole batch, of which `images` are this process's."""
    return all_gather_rows(network.classifier_pool[task](network.features(images)), batch_size)


def finished_parameters(network: Network, task: int, branch: int, options: TrainingOptions) -> dict[str, nn.Parameter]:
    """What earlier tasks trained and weight decay still shrinks; none without weight decay. All get a zero gradient.

    Upstream's optimiser holds every parameter, and under torch 1.10 zero_grad leaves zeros where a gradient once was,
    on which weight decay acts. With a rate of its own for the classifier, older classifiers are in no group.
    """
    if not (options.weight_decay and options.decay_finished):
        return {}
    finished = {}
    for earlier in range(branch):
        finished |= network.branch(earlier)
    if options.fc_lr is None:
        for earlier in range(task):
            finished |= network.classifier(earlier)
    for parameter in finished.values():
        parameter.grad = torch.zeros_like(parameter)
    return finished


def build_optimizer(parameters: dict[str, nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9, over one group, or over the encoder's and the classifier's parameters."""
    if options.fc_lr is None:
        groups = [{"params": list(parameters.values()), "base_lr": options.lr}]
    else:
        encoder = [value for key, value in parameters.items() if key.startswith("image_encoder.")]
        classifier = [value for key, value in parameters.items() if key.startswith("classifier_pool.")]
        groups = [{"params": encoder, "base_lr": options.lr}, {"params": classifier, "base_lr": options.fc_lr}]
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)
