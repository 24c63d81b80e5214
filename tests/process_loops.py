"""Each paper's training loop, on one process and on several.

In float64 (DTYPE), so that AdamW, which blows up the rounding of gradients that ought to be zero, has none to blow up.
"""

from collections.abc import Iterator
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from alta.buffer import Buffer
from alta.heads import Head, PromptOptions
from alta.training import train_task as train_alta
from common.clip.model import CLIP, CLIPConfig, LayerNorm
from common.clip.tokenizer import training_prompts
from common.incremental.scenario import Scenario
from common.machine import Machine
from common.runs import Tensors, save_tensors
from common.training.batches import Batches
from common.training.device import pick_device
from common.training.numerics import prepare
from inflora.lora import Network
from inflora.training import TrainingOptions as InfLoRAOptions
from inflora.training import design_branch, remember_task
from inflora.training import train_task as train_inflora
from moe_adapters.adapters import insert_adapters
from moe_adapters.training import TrainingOptions as MoEOptions
from moe_adapters.training import train_task as train_moe
from tests.alta.learners import training_options
from vq_prompt.it_prompt.cncm import ClassMemory
from vq_prompt.it_prompt.network import Encoder, Entries, Model, Parts, Selector
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.it_prompt.training import train_task as train_it
from vq_prompt.options import VQOptions
from vq_prompt.prompts import Network as VQNetwork
from vq_prompt.training import train_task as train_vq
from zscl.teacher import FeatureCache, Reference, sentence_features
from zscl.training import TrainingOptions as ZSCLOptions
from zscl.training import train_task as train_zscl
from zscl.weights import weights_of

DTYPE = torch.float64
MACHINE = Machine(torch.device("cpu"))
NAMES = ["a cat", "a dog", "a very small lawn mower", "a rose"]


def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
    return iter(range(total))


def batches(seed: int, count: int = 11, size: int = 5) -> Batches:
    """Of 5, 5 and 1 images: an odd share for two processes, and one in which the second has none."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=DTYPE)
    return Batches(TensorDataset(images, torch.randint(len(NAMES), (count,), generator=generator)), size, seed)


def clip(seed: int) -> CLIP:
    torch.manual_seed(seed)
    model = CLIP(CLIPConfig(32, 16, 2, 64, 8, 77, 49408, 64, 1, 2)).to(DTYPE).eval()
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.__class__ = nn.LayerNorm  # CLIP's own rounds to float32
    prepare(MACHINE, model)
    return model


def zscl(joint_pass: bool) -> dict[str, Tensor]:
    model, teacher = clip(0), clip(1).requires_grad_(False)
    tokens = training_prompts(NAMES, "a photo of {}.")
    texts = training_prompts(["one", "two", "a third"], "{}")
    sentences = sentence_features(teacher, texts)
    reference = Reference(teacher, batches(3, count=7), texts, sentences, FeatureCache())
    options = ZSCLOptions(iterations=4, warmup=1, terms=("img", "txt", "ii", "mse"), l2=0.5, ensemble="we", avg_freq=2,
                          joint_pass=joint_pass, label_smoothing=0.1)  # fmt: skip
    train_zscl(model, lambda step: tokens, batches(2), reference, None, options, "zscl", steps)
    return weights_of(model)


def moe_adapters() -> dict[str, Tensor]:
    model = insert_adapters(clip(0), 4, 2, 8, 1).to(DTYPE)
    torch.manual_seed(5)
    tokens = training_prompts(NAMES, "a photo of {}.")
    options = MoEOptions(lr=1e-2, iterations=4, warmup=1)
    counts = train_moe(model, 0, set(), tokens, batches(2), options, "moe", steps)["choose_map"]
    return {name: value for name, value in model.state_dict().items() if "adapt" in name} | {"counts": counts}


def inflora() -> dict[str, Tensor]:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    network, found = Network(vit, [len(NAMES)] * 2, 2, 3).to(DTYPE), batches(2)
    prepare(MACHINE, network)
    memories, options = None, InfLoRAOptions(2, 1e-2, "adam", lambda epoch, base: base)
    for task in range(2):
        design_branch(network, task, memories, found)
        train_inflora(network, task, task, 0, found, options, "inflora", steps)
        memories = remember_task(network, memories, found, 3, 0.9, dual=True)
    spaces = {f"space {layer}": memory.basis @ memory.basis.t() for layer, memory in enumerate(memories)}
    return network.state_dict() | spaces


def vq_prompt() -> dict[str, Tensor]:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    network = VQNetwork(vit, len(NAMES), {"size": 3, "length": 4, "tau": 1.0}).to(DTYPE)
    prepare(MACHINE, network)
    options = VQOptions(schedule_type="decay", schedule=[2], lr=1e-2, prompt_lr_mult=5.0)  # constant rates
    log = train_vq(network, range(len(NAMES)), batches(2), options, "vq_prompt", steps)
    return network.state_dict() | {"loss": log["loss"], "prompt loss": log["prompt_loss"]}


def it_prompt() -> dict[str, Tensor]:
    model = clip(0)
    with torch.no_grad():
        text = model.encode_text(training_prompts(NAMES, "a photo of {}."))
    encoder, options = Encoder(model.visual, (0, 1)), settled(ITOptions(learner_name="ITPrompt", epochs=2))
    prepare(MACHINE, encoder)
    torch.manual_seed(5)
    prompt = Entries(1, 2, 4, encoder.width, encoder.dim, 1.0)
    parts = Parts(prompt, nn.Linear(encoder.dim, len(NAMES)), Selector(encoder.dim, 8, len(NAMES))).to(DTYPE)
    text = text / text.norm(dim=1, keepdim=True)
    scenario = Scenario(range(len(NAMES)), 4, 4)
    state = Model(options, encoder, parts, text, scenario, ClassMemory(), ClassMemory())
    return parts.state_dict() | train_it(state, 0, batches(2), steps)


def alta() -> dict[str, Tensor]:
    torch.manual_seed(5)
    head = Head(clip(0), "oritext_mlp2cprompt_oriimg", NAMES, PromptOptions()).to(DTYPE)
    optimizer = torch.optim.SGD(head.trained().values(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
    options = training_options("constant", 1e-2, 0.0, 0, 2, 5, 0.4, 0.6)
    buffer, found = Buffer(7, 3), batches(2)
    for task in range(2):
        log = train_alta(head, task, 2 * task, found, optimizer, buffer, options, "alta", steps)
    return head.trained() | buffer.fields | {"ce": log["ce"], "mse": log["mse_replay"]}


LOOPS = {
    "zscl, one pass": lambda: zscl(joint_pass=True),
    "zscl, two passes": lambda: zscl(joint_pass=False),
    "moe_adapters": moe_adapters,
    "inflora": inflora,
    "vq_prompt": vq_prompt,
    "it_prompt": it_prompt,
    "alta": alta,
}


def main(words: list[str]) -> None:
    """What every loop ends with, saved in the file that is named."""
    pick_device("cpu")
    save_tensors(words[0], {name: Tensors(loop()).state_dict() for name, loop in LOOPS.items()})
