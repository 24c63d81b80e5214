"""What tells the methods apart, by the `model_name` of a configuration, and the training each of them asks for."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from common.training.schedules import coda_cosine, cosine_annealing, multistep
from inflora.training import TrainingOptions

if TYPE_CHECKING:
    from inflora.options import Options

B5_LAYERS = 5  # blocks with LoRA in InfLoRA-b5


@dataclass(frozen=True)
class Method:
    """label: the name in records. layers: blocks with LoRA from the first on; None: all.

    designed: lora_A is designed from the inputs and fixed, on a branch a task; otherwise it is trained with lora_B, on
    one branch for all tasks. dual: DualGPM instead of GPM. two_rates: SGD with a rate of its own for the classifier.
    free_start: SGD's first task has no weight decay. aligned: classifier alignment after each task. fresh_norm: no
    pre-trained final norm on CIFAR-100. joint: all classes in one task.
    """

    label: str
    layers: int | None = None
    designed: bool = True
    dual: bool = False
    two_rates: bool = False
    free_start: bool = False
    aligned: bool = False
    fresh_norm: bool = False
    joint: bool = False


METHODS = {
    "InfLoRA": Method("InfLoRA", dual=True),
    "InfLoRAb5": Method("InfLoRA-b5", layers=B5_LAYERS, free_start=True),  # an omission in methods/inflorab5.py
    "InfLoRA_CA": Method("InfLoRA+CA", aligned=True),
    "InfLoRA_CA1": Method("InfLoRA+CA1", aligned=True, two_rates=True, fresh_norm=True),
    "InfLoRA_domain": Method("InfLoRA", two_rates=True),
    "InfLoRAb5_domain": Method("InfLoRA-b5", layers=B5_LAYERS, two_rates=True),
    # no code upstream; ordinary LoRA, task after task and on all classes at once: the lower and the upper bound
    "SeqLoRA": Method("SeqLoRA", designed=False),
    "Joint": Method("Joint LoRA", designed=False, joint=True),
}
MILESTONES = {"domainnet": [4]}  # epochs at which two-rate methods divide their rates by ten; elsewhere:
OTHER_MILESTONES = [18]


def logit_norm(model_name: str, dataset: str) -> bool:
    """Whether alignment normalises the logits: InfLoRA_CA leaves it out on CIFAR-100, CA1 does not."""
    return not (model_name == "InfLoRA_CA" and dataset == "cifar100")


def training_options(options: "Options", task: int) -> TrainingOptions:
    """The training of a task: the first one by the init_* keys that were given."""

    def of_this_task(first: float | None, later: float) -> float:
        return later if first is None or task > 0 else first

    method, epochs = METHODS[options.model_name], of_this_task(options.init_epoch, options.epochs)
    if method.two_rates:  # these read lrate and weight_decay only
        lr, weight_decay = options.lrate, options.weight_decay
        known = MILESTONES.get(options.dataset, OTHER_MILESTONES)
        milestones = known if options.milestones is None else options.milestones
        schedule = partial(multistep, milestones=milestones, gamma=options.lrate_decay)
    else:
        lr = of_this_task(options.init_lr, options.lrate)
        weight_decay = of_this_task(options.init_weight_decay, options.weight_decay)
        schedule = partial(coda_cosine if options.optim == "adam" else cosine_annealing, epochs=epochs)
    if method.free_start and options.optim == "sgd" and task == 0:
        weight_decay = 0.0
    return TrainingOptions(
        epochs=epochs,
        lr=lr,
        optimizer="sgd" if method.two_rates else options.optim,
        schedule=schedule,
        fc_lr=options.fc_lrate if method.two_rates else None,
        weight_decay=weight_decay,
        decay_finished=options.decay_finished,
        train_reduction=not method.designed,
    )
