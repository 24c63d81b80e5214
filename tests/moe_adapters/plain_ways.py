"""MoE-Adapters' fast paths the plain way, as the official code goes about it: what they are held against."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP
from common.datasets.transforms import clip_normalise
from common.evaluation.zero_shot import accuracy, zeroshot_logits, zeroshot_weights
from common.mini.weights import ddas_features
from moe_adapters import adapters
from moe_adapters.adapters import (
    ADAPTER_SCALE,
    ORIGINAL_CLIP,
    MoEBlock,
    insert_adapters,
    is_adapter_key,
    moe_blocks,
    use_router,
    with_shared_router,
)
from moe_adapters.ddas import (
    FULL_SHOT_LR,
    AutoEncoder,
    autoencoder_input,
    build_autoencoders,
    reconstruction_errors,
    select_task,
    train_autoencoder,
)
from moe_adapters.evaluation import Cell, Checkpoint, EvaluationSet, distinct
from moe_adapters.options import Options
from moe_adapters.training import TrainingOptions, train_task
from tests.benchmarks.inputs import SMALL, OneBatch, prompts, small_or_paper_clip
from tests.benchmarks.measure import Clock

EXPERTS, TOPK, ROUTERS = 22, 2, 11
BOTTLENECK, SMALL_BOTTLENECK = 64, 4
MATRIX_CLASSES = 4
OPTIONS = TrainingOptions(lr=1e-3, warmup=1, iterations=20)
Mixture = Callable[..., Tensor] | None  # in the place of ours, where one is given


def with_adapters(plain: CLIP, routing: str) -> CLIP:
    """A copy with random experts. Routers at zero spread the samples by noise, random ones send all to a few."""
    torch.manual_seed(1)
    bottleneck = SMALL_BOTTLENECK if plain.config == SMALL else BOTTLENECK
    model = insert_adapters(copy.deepcopy(plain), EXPERTS, TOPK, bottleneck, ROUTERS)
    for name, parameter in model.named_parameters():
        if "adaptmlp" in name or ("router_list" in name and routing == "concentrated"):
            nn.init.normal_(parameter, std=0.02 if "adaptmlp" in name else 0.5)
    return model.to(plain.logit_scale.device)


def with_experts(plain: CLIP) -> CLIP:
    """A copy with two random experts a block; the router stays at zero, as a run begins."""
    torch.manual_seed(1)
    model = with_shared_router(copy.deepcopy(plain).cpu())
    for name, parameter in model.named_parameters():
        if "adaptmlp" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.to(plain.logit_scale.device)


def loop_over_experts(h: Tensor, chosen: Tensor, gates: Tensor, experts: nn.ModuleList, dropout: nn.Module) -> Tensor:
    """`mixture_of_experts` by dispatch: every expert is called, on the samples that chose it (none at times).

    Upstream mtil/clip/model.py:L495-L509. `nonzero` waits for the device once an expert.
    """
    combined = torch.zeros_like(h).float()
    for index, expert in enumerate(experts):
        samples, rank = (chosen == index).nonzero(as_tuple=True)
        out = ADAPTER_SCALE * expert.up_proj(dropout(F.relu(expert.down_proj(h[samples]))))
        combined = combined.index_add(0, samples, (gates[samples, rank, None, None] * out).float())
    return combined.to(h.dtype)


@contextlib.contextmanager
def replaced(mixture: Mixture) -> Iterator[None]:
    """The given mixture in all blocks and of all tokens, also where the experts are all chosen or one token is read."""
    whole = MoEBlock.forward
    with contextlib.ExitStack() as stack:
        if mixture:
            kinds = dict.fromkeys(("mixture_of_experts", "mixture_of_all_experts"), mixture)
            stack.enter_context(mock.patch.multiple(adapters, **kinds))
            stack.enter_context(mock.patch.object(MoEBlock, "forward", lambda block, x, read=...: whole(block, x)[read]))
        yield


def drawn_noise(now: list[int], index: int, clean: Tensor) -> Tensor:
    """Standard normal noise that depends on the step and the block alone."""
    generator = torch.Generator().manual_seed(1000 * now[0] + index)
    return torch.randn(clean.shape, generator=generator).to(clean)


# The training loop under either


def train(
    model: CLIP, tokens: Tensor, batch: OneBatch, mixture: Mixture, options: TrainingOptions, count: int, steps: Any
) -> None:
    """The real training loop of so many steps."""
    with replaced(mixture), contextlib.redirect_stdout(io.StringIO()):  # the loop tells its loss at step 0
        train_task(model, 0, set(), tokens, batch, replace(options, iterations=count - 1), "benchmark", steps)


def trajectory(
    model: CLIP,
    tokens: Tensor,
    batch: OneBatch,
    count: int,
    mixture: Mixture = None,
    options: TrainingOptions = OPTIONS,
) -> dict[str, Tensor]:
    """What `count` training steps leave: every loss, the last step's gradients, the trained parameters.

    Keys "loss n", "gradient <name>" (experts that were skipped have none) and "<name>". Without dropout, whose mask
    the two ways draw in different shapes; the gate noise is drawn by step and block.
    """
    now, clock = [0], Clock(count)
    for index, block in enumerate(moe_blocks(model)):
        block.dropout.p, block.draw_noise = 0.0, partial(drawn_noise, now, index)

    def steps(stage: str, total: int, state: dict[str, Any]) -> Iterator[int]:
        for now[0] in clock.steps(stage, total, state):
            yield now[0]

    train(model, tokens, batch, mixture, options, count, steps)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = {f"loss {step}": loss for step, loss in enumerate(clock.state["log"].tensors["loss"])}
    gradients = {f"gradient {name}": p.grad for name, p in trained.items() if p.grad is not None}
    return losses | gradients | {name: p.detach() for name, p in trained.items()}


def frozen_clip(plain: CLIP, tokens: Tensor, batch: OneBatch, clock: Clock) -> None:
    """Forward of both towers, and backward through frozen weights down to the first blocks' inputs."""
    model = copy.deepcopy(plain).train()
    for tower in (model.visual.transformer, model.transformer):
        tower.register_forward_pre_hook(lambda module, inputs: inputs[0].detach().requires_grad_())

    def step() -> None:
        text_features = F.normalize(model.encode_text(tokens, cut=False), dim=-1)
        features = F.normalize(model.encode_image(batch.images), dim=-1)
        F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), batch.labels).backward()

    clock.repeat(step)


# Checkpoints x data sets


def adapters_of(model: CLIP) -> dict[str, Tensor]:
    values = model.state_dict().items()
    return {key: value.clone() for key, value in values if is_adapter_key(key) and ".adaptmlp." not in key}


@dataclass
class Matrix:
    """A small sequence as it stands after training: its checkpoints, test sets and autoencoders."""

    model: CLIP
    checkpoints: list[Checkpoint]
    sets: list[tuple[Tensor, Tensor, Tensor]]  # pixels, labels, tokens (C, T, 77)
    extractor: nn.Module
    autoencoders: list[AutoEncoder]
    threshold: float
    batch_size: int


def domain_pixels(domain: int, count: int, side: int) -> Tensor:
    """uint8 images that share a random picture of their domain under noise of their own."""
    generator = torch.Generator().manual_seed(domain)
    picture = torch.rand(3, 4, 4, generator=generator).repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    noise = torch.randn(count, 3, side, side, generator=generator)
    return (255 * (picture + 0.15 * noise).clamp(0, 1)).to(torch.uint8)


def build_matrix(device: torch.device, tasks: int, images: int, batch_size: int) -> Matrix:
    """Random adapters a task, trained autoencoders: test batches of learnt domains go to routers, others to CLIP."""
    plain = small_or_paper_clip(small=True).to(device)
    plain.token_embedding.weight.mul_(50)  # with fresh weights every prompt and every image would look the same
    for parameter in [*plain.visual.parameters(), *plain.transformer.parameters()]:
        parameter.mul_(2 if parameter.dim() > 1 else 1)
    side = plain.visual.input_resolution
    tokens = prompts(3 * MATRIX_CLASSES).view(MATRIX_CLASSES, 3, -1).to(device)
    pixels = [domain_pixels(domain, images, side) for domain in range(tasks + 1)]
    labels = torch.randint(MATRIX_CLASSES, (images,), generator=torch.Generator().manual_seed(4)).to(device)
    extractor = ddas_features().to(device)
    torch.manual_seed(5)
    features = extractor(torch.zeros(1, 3, side, side, device=device)).numel()
    modules = build_autoencoders(tasks + 1, features).to(device)
    known, checkpoints, own_errors = [], [], []
    for domain in range(tasks + 1):
        parts = [clip_normalise(part.to(device)) for part in pixels[domain].split(32)]
        batches = [(parts[step % len(parts)], None) for step in range(61)]
        train_autoencoder(modules[domain], extractor, batches, 4, 60, FULL_SHOT_LR, "", Clock(0).steps)
        own = autoencoder_input(extractor, parts[0])
        own_errors.append(float(reconstruction_errors([modules[domain]], own).mean()))
        if domain > 0:
            model = with_adapters(plain, "concentrated")
            torch.manual_seed(domain)
            for parameter in (p for block in moe_blocks(model) for p in block.adaptmlp_list.parameters()):
                nn.init.normal_(parameter, std=0.3)
            chosen = [distinct(known, module) for module in modules]
            checkpoints.append(Checkpoint(domain - 1, adapters_of(model), chosen))
    sets = [(own, labels, tokens) for own in pixels[1:]]
    return Matrix(model, checkpoints, sets, extractor, known, 1.5 * max(own_errors), batch_size)


def evaluate_shared(matrix: Matrix) -> list[list[Cell]]:
    """A row of cells a data set by the real code: what checkpoints share is computed once."""
    options, cells = Options(autorouter=True, threshold=matrix.threshold), []
    for pixels, labels, tokens in matrix.sets:
        test = EvaluationSet(matrix.model, pixels, labels, tokens, matrix.batch_size)
        test.measure_errors(matrix.extractor, matrix.autoencoders)
        cells.append([test.evaluate(checkpoint, options, None) for checkpoint in matrix.checkpoints])
    return cells


def evaluate_anew(matrix: Matrix) -> list[list[Cell]]:
    """The same cells the plain way, one after the other."""
    return [[evaluate_cell(matrix, checkpoint, *test) for checkpoint in matrix.checkpoints] for test in matrix.sets]


@torch.no_grad()
def full_class_vectors(model: CLIP, tokens: Tensor) -> Tensor:
    """Class weights (D, C) from prompts (C, T, context), a call a class, every token column."""
    return zeroshot_weights(torch.stack([model.encode_text(prompts, cut=False) for prompts in tokens]))


@torch.no_grad()
def evaluate_cell(matrix: Matrix, checkpoint: Checkpoint, pixels: Tensor, labels: Tensor, tokens: Tensor) -> Cell:
    """One checkpoint on one data set, nothing kept from any other cell.

    Class vectors of the original CLIP and of every router; each batch's errors under every autoencoder; then the
    batch through the router they choose (upstream mtil/src/models/evaluation.py:L20-L84).
    """
    model = matrix.model
    model.load_state_dict(checkpoint.adapters, strict=False)
    vectors, logits, routed = {}, [], {}
    for task_id in range(ORIGINAL_CLIP, len(matrix.checkpoints)):
        use_router(model, task_id)
        vectors[task_id] = full_class_vectors(model, tokens)
    for batch in pixels.split(matrix.batch_size):
        images = clip_normalise(batch.to(tokens.device))
        features = autoencoder_input(matrix.extractor, images)
        autoencoders = [matrix.autoencoders[index] for index in checkpoint.autoencoders]
        errors = torch.stack([F.mse_loss(autoencoder(features), features) for autoencoder in autoencoders])
        task_id = select_task(errors, matrix.threshold)
        use_router(model, task_id)
        logits.append(zeroshot_logits(model.encode_image(images), vectors[task_id]))
        routed[task_id] = routed.get(task_id, 0) + len(batch)
    accuracies = dict(zip(("accuracy", "accuracy_top5"), accuracy(torch.cat(logits), labels)))
    return Cell(checkpoint.task_id, accuracies, dict(sorted(routed.items())))
