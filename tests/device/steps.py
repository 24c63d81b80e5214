"""Two steps of each paper's own training loop at its sizes, on tensors without values."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torchvision.models import alexnet

from alta import training as alta
from alta.buffer import Buffer
from alta.heads import Head, PromptOptions
from common.clip.model import CLIP, CLIPConfig
from common.clip.pretrained import to_half
from common.datasets.names import read_names
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.training.numerics import prepare
from inflora import lora
from inflora import training as inflora
from moe_adapters import adapters, ddas
from moe_adapters import training as moe_adapters
from tests.alta.learners import training_options
from tests.benchmarks import vq_prompt as vq_sizes
from tests.benchmarks import zscl as zscl_sizes
from tests.benchmarks import zscl_cil as zscl_cil_sizes
from tests.benchmarks.alta import BUFFER, METHOD, RN50
from tests.benchmarks.inputs import VIT_B_16, OneBatch, small_or_paper_vit
from tests.benchmarks.measure import Clock
from tests.benchmarks.memory import LiveBytes
from tests.device.counting import CARD, counted, replace_tensors
from tests.vq_prompt.it_prompt.plain_ways import LAYERS, TRAINED_CLASSES, TRAINED_TASK, options
from vq_prompt import prompts
from vq_prompt import training as vq_prompt
from vq_prompt.it_prompt import training as it_prompt
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.network import Encoder, Entries, Model, Parts
from vq_prompt.options import VQOptions
from zscl.training import TrainingOptions
from zscl.training import train_task as train_zscl


def made(machine: Machine, build: Callable[[], nn.Module]) -> nn.Module:
    """A model on the machine's device, prepared for its arithmetic."""
    with _disable_current_modes(), CARD:
        model = build()
    replace_tensors(model, lambda part: torch.zeros(part.shape, dtype=part.dtype, device=machine.device))
    prepare(machine, model)
    return model


def batch_for(model: CLIP, size: int, classes: int | range) -> OneBatch:
    return OneBatch(size, model.visual.input_resolution, classes, model.logit_scale.device, model.dtype)


def prompts_of(model: CLIP, classes: int) -> Tensor:
    """Training prompts (classes, 10)."""
    return torch.zeros(classes, 10, dtype=torch.long, device=model.logit_scale.device)


def zscl(options: TrainingOptions, classes: int, machine: Machine, clock: Clock) -> None:
    """One pass for each image set, the teacher computes, and the ensemble takes a sample at every step."""
    model, reference = made(machine, lambda: CLIP(VIT_B_16)), None
    if options.terms:
        teacher = made(machine, lambda: CLIP(VIT_B_16).requires_grad_(False))
        sentences = torch.zeros(zscl_sizes.CAPTIONS, model.config.embed_dim, device=machine.device)
        reference = zscl_sizes.reference_of(teacher, sentences, zscl_sizes.BATCH, known=False)
    options = replace(options, iterations=clock.calls - 1, avg_freq=1, joint_pass=False)
    tokens, batch = prompts_of(model, classes), batch_for(model, zscl_sizes.BATCH, classes)
    train_zscl(model, lambda step: tokens, batch, reference, None, options, "", clock.steps)


def moe(insert: Callable[[CLIP], CLIP], size: int, classes: int, machine: Machine, clock: Clock) -> None:
    model = made(machine, lambda: insert(CLIP(VIT_B_16).eval()))
    options = moe_adapters.TrainingOptions(iterations=clock.calls - 1, loss_interval=None)
    inputs = prompts_of(model, classes), batch_for(model, size, classes)
    moe_adapters.train_task(model, 0, set(), *inputs, options, "", clock.steps)


def autoencoder(machine: Machine, clock: Clock) -> None:
    extractor = made(machine, lambda: alexnet().features[:-2].eval().requires_grad_(False))
    (module,) = made(machine, lambda: ddas.build_autoencoders(1, 256 * 13 * 13))
    batch = OneBatch(64, 224, 100, machine.device)
    ddas.train_autoencoder(module, extractor, batch, 8, clock.calls - 1, 0.01, "", clock.steps)


def lora_branch(task: int, weight_decay: float, machine: Machine, clock: Clock) -> None:
    network = made(machine, lambda: lora.Network(small_or_paper_vit(False), [10] * 20, 20, 10))
    options = inflora.TrainingOptions(clock.calls, 5e-4, "adam", lambda epoch, base: base, weight_decay=weight_decay)
    inflora.train_task(network, task, task, 0, OneBatch(128, 224, 10, machine.device), options, "", clock.steps)


def vq(machine: Machine, clock: Clock) -> None:
    network = made(machine, lambda: prompts.Network(small_or_paper_vit(False), 20, vq_sizes.POOL))
    options = VQOptions(schedule_type="decay", schedule=[clock.calls])
    vq_prompt.train_task(network, range(20), OneBatch(64, 224, 20, machine.device), options, "", clock.steps)


def it(machine: Machine, clock: Clock) -> None:
    encoder = made(machine, lambda: Encoder(CLIP(VIT_B_16).visual, LAYERS))
    parts = made(machine, lambda: Parts(Entries(10, len(LAYERS), 8, encoder.width, encoder.dim, 1.0), None, None))
    text, scenario = torch.ones(100, encoder.dim, device=machine.device), Scenario(range(100), 10, 10)
    learned = Model(options(epochs=clock.calls), encoder, parts, text, scenario, ClassMemory(), ClassMemory())
    it_prompt.train_task(learned, TRAINED_TASK, OneBatch(128, 224, TRAINED_CLASSES, machine.device), clock.steps)


def alta_head(config: CLIPConfig, half: bool, task: int, machine: Machine, clock: Clock) -> None:
    clip = made(machine, lambda: CLIP(config).eval())
    if half:
        to_half(clip)
    head = Head(clip, METHOD, read_names("cifar100"), PromptOptions(), "full" if half else "cut")
    optimizer = torch.optim.SGD(head.trained().values(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    batch, buffer = batch_for(clip, 32, range(10 * task, 10 * task + 10)), Buffer(BUFFER, 0, machine.device)
    own = training_options("constant", 0.002, 1e-5, 1, clock.calls, 32, 0.4, 0.4)
    alta.train_task(head, task, 10 * task, batch, optimizer, buffer, own, "", clock.steps)


Step = Callable[[Machine, Clock], None]


@dataclass(frozen=True)
class Counted:
    """What the second of two steps asks, and the most bytes that live in either."""

    launches: int
    waits: int
    queued: int
    after_reading: list[int]  # launches of the step that follow each use of a queued copy
    peak: int


def count(step: Step, precision: str = "fp32", checkpointed: bool = False) -> Counted:
    """Autocast knows tensors that have the device `CARD` not at all: bf16's peak is that of fake ones on the CPU."""
    device = torch.device("cpu") if precision == "bf16" else CARD
    with FakeTensorMode() if device != CARD else nullcontext(), LiveBytes() as live, counted() as card:
        clock = Clock(2, lambda: (card.launches, card.waits, card.queued))
        step(Machine(device, 0, precision, False, checkpointed), clock)
    (begin, *before), (end, *after) = clock.readings[-2:]
    waits, queued = (b - a for a, b in zip(before, after))
    return Counted(end - begin, waits, queued, [end - at for at in card.read_at if at > begin], live.peak)


insert_experts = partial(adapters.insert_adapters, experts=22, topk=2)
cil_options = replace(zscl_cil_sizes.OPTIONS, ensemble="we")
STEPS: dict[str, Step] = {
    "ZSCL's fine-tuning, 64 images, 100 classes": partial(zscl, zscl_sizes.FINETUNE, 100),
    "ZSCL, 64 + 64 images, 100 classes": partial(zscl, zscl_sizes.ZSCL, 100),
    "ZSCL class-incremental, 64 + 64 images": partial(zscl, cil_options, 10),
    "MoE-Adapters, 64 images, 100 classes": partial(moe, insert_experts, 64, 100),
    "MoE-Adapters' DDAS, 64 images": autoencoder,
    "MoE-Adapters class-incremental, 128 images": partial(moe, adapters.with_shared_router, 128, 10),
    "InfLoRA, 128 images, task 1 of 20": partial(lora_branch, 0, 0.0),
    "InfLoRA, 128 images, task 20 with weight decay": partial(lora_branch, 19, 5e-4),
    "VQ-Prompt, 64 images": vq,
    "IT-Prompt, 128 images": it,
    "ALTA, RN50, 32 + 32 images, task 1 of 10": partial(alta_head, RN50, False, 0),
    "ALTA, RN50 in fp16, 32 + 32 images, task 6": partial(alta_head, RN50, True, 5),
    "ALTA, ViT-B/16, 32 + 32 images, task 1": partial(alta_head, VIT_B_16, False, 0),
}
