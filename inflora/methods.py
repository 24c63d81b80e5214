"""What tells the methods apart, by the `model_name` of a configuration, and the training each of them asks for."""

from dataclasses import dataclass
from functools import partial

from common.training.schedules import coda_cosine, cosine_annealing, multistep
from inflora.training import TrainingOptions

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


def training_options(config: dict, task: int) -> TrainingOptions:
    """The training of a task: the first one by the init_* keys where the configuration has them."""
    method, dataset = METHODS[config["model_name"]], config["dataset"]
    first = {"epochs": "init_epoch", "lrate": "init_lr", "weight_decay": "init_weight_decay"}
    value = {key: config.get(other, config[key]) if task == 0 else config[key] for key, other in first.items()}
    epochs = value["epochs"]
    if method.free_start and config["optim"] == "sgd" and task == 0:
        value["weight_decay"] = 0.0
    if method.two_rates:  # these read lrate and weight_decay only
        value = {**config, "epochs": epochs}
        milestones = config.get("milestones", MILESTONES.get(dataset, OTHER_MILESTONES))
        schedule = partial(multistep, milestones=milestones, gamma=config["lrate_decay"])
    else:
        schedule = partial(coda_cosine if config["optim"] == "adam" else cosine_annealing, epochs=epochs)
    return TrainingOptions(
        epochs=epochs,
        lr=value["lrate"],
        optimizer="sgd" if method.two_rates else config["optim"],
        schedule=schedule,
        fc_lr=config["fc_lrate"] if method.two_rates else None,
        weight_decay=value["weight_decay"],
        decay_finished=config["decay_finished"],
        train_reduction=not method.designed,
    )
