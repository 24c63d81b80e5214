"""What tells the methods apart, by the `model_name` of a configuration."""

from dataclasses import dataclass

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
