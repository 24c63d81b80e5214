"""All checkpoints of a sequence on all data sets, in one process (upstream mtil/src/models/evaluation.py:L20-L84).

What does not depend on the checkpoint is computed once a data set: pixels, features of the original CLIP, and the
reconstruction errors of every distinct autoencoder. Cells whose batches all go to the original CLIP then cost nothing.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import mtil
from common.clip.model import CLIP
from common.datasets.transforms import clip_normalise
from common.errors import UserError
from common.evaluation.report import accuracy_lines, metric_lines, show_row
from common.evaluation.zero_shot import accuracy, class_vectors, image_features, zeroshot_logits
from common.machine import Machine
from common.runs import Run, load_tensors
from common.state_dicts import listed, misfits
from moe_adapters.adapters import ORIGINAL_CLIP, is_adapter_key, use_router
from moe_adapters.ddas import AutoEncoder, build_autoencoders, chooser_input, reconstruction_errors, select_task
from moe_adapters.options import Options

UNUSED_KEYS = ("mean", "std", "ln_3.weight", "ln_3.bias")  # in every official block, used in none


@dataclass
class Checkpoint:
    """One finished task: its adapters (official keys) and, with DDAS, which autoencoders it holds."""

    task_id: int
    adapters: dict[str, Tensor]
    autoencoders: list[int] = field(default_factory=list)  # positions in the shared list of distinct ones


@dataclass(frozen=True)
class Routes:
    """How test images find their router: `ddas`, `oracle` (the set's own task once learnt), or one `fixed` router."""

    kind: str
    threshold: float = 0.0
    per_image: bool = False
    fixed: int = ORIGINAL_CLIP
    text_from_clip: bool = False  # --non_text


@dataclass(frozen=True)
class Cell:
    """One checkpoint on one data set: percent right, and how many images each router received."""

    task_id: int
    top1: float
    top5: float
    routed: dict[int, int]


def is_unused(key: str) -> bool:
    """Whether an official key stands for nothing the forward pass reads, the alias of the last expert included."""
    return ".adaptmlp." in key or key.rsplit("resblocks.", 1)[-1].split(".", 1)[-1] in UNUSED_KEYS


def read_adapters(path: str | Path, model: CLIP) -> dict[str, Tensor]:
    """The adapter tensors of an official checkpoint file, after holding every key against the model.

    Raises UserError that names missing, unexpected or misshapen keys, and when the file's CLIP is not the model's:
    adapters only mean something on the CLIP they were trained on.
    """
    state_dict = load_tensors(path)
    state_dict = state_dict.get("state_dict", state_dict)
    expected, used = ({key: sd[key] for key in sd if not is_unused(key)} for sd in (model.state_dict(), state_dict))
    if faults := misfits(expected, used):
        raise UserError(
            f"{path} does not fit this model. {listed(faults)}. Check --model, --experts_num, --ffn_num and --task_num."
        )
    changed = [
        key
        for key, value in expected.items()
        if not is_adapter_key(key) and not torch.equal(value.cpu(), used[key].to(value.dtype))
    ]
    if changed:
        raise UserError(f"{path} holds another CLIP than --model ({len(changed)} tensors differ, first {changed[0]}).")
    return {key: value for key, value in state_dict.items() if is_adapter_key(key) and ".adaptmlp." not in key}


def read_autoencoders(path: str | Path, autoencoders: nn.ModuleList) -> None:
    """Load an official `*_autochooser.pth` into `autoencoders`, in place; UserError when it does not fit."""
    state_dict = load_tensors(path)
    try:
        autoencoders.load_state_dict(state_dict.get("state_dict", state_dict))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"{path} does not hold {len(autoencoders)} autoencoders for these features: {reason}"
        ) from error


def distinct(known: list[AutoEncoder], module: AutoEncoder) -> int:
    """The position of an equal autoencoder in `known`; a new one is appended. Chains of checkpoints share most."""
    for position, other in enumerate(known):
        if all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters())):
            return position
    copy = AutoEncoder(module.encoder[0].in_features, module.encoder[0].out_features)
    copy.load_state_dict(module.state_dict())
    known.append(copy.to(module.encoder[0].weight.device))
    return len(known) - 1


class EvaluationSet:
    """One data set under evaluation, with everything that all checkpoints share."""

    def __init__(self, model: CLIP, pixels: Tensor, labels: Tensor, tokens: Tensor, batch_size: int) -> None:
        self.model, self.pixels, self.batch_size = model, pixels, batch_size
        self.device = model.logit_scale.device
        self.labels, self.tokens = labels.to(self.device), tokens.to(self.device)
        self.errors: Tensor | None = None
        use_router(model, ORIGINAL_CLIP)
        self.clip_vectors = class_vectors(model, self.tokens)
        self._clip_logits: Tensor | None = None

    @property
    @torch.no_grad()
    def clip_logits(self) -> Tensor:
        """Logits of the original CLIP, computed when the first cell needs them."""
        if self._clip_logits is None:
            use_router(self.model, ORIGINAL_CLIP)
            features = image_features(self.model, self.pixels, self.batch_size)
            self._clip_logits = zeroshot_logits(features, self.clip_vectors)
        return self._clip_logits

    def measure_errors(self, extractor: nn.Module, autoencoders: list[AutoEncoder]) -> None:
        """Reconstruction errors of each image under each distinct autoencoder, (N, autoencoders), on the CPU."""
        errors = []
        for batch in tqdm(
            self.pixels.split(self.batch_size), desc="DDAS", leave=False, dynamic_ncols=True, disable=None
        ):
            features = chooser_input(extractor, clip_normalise(batch.to(self.device)))
            errors.append(reconstruction_errors(autoencoders, features).cpu())
        self.errors = torch.cat(errors)

    def route(self, checkpoint: Checkpoint, routes: Routes, own_task: int | None) -> Tensor:
        """The router of each image, (N,). DDAS decides a batch at a time, as upstream, unless told per image."""
        count = len(self.pixels)
        if routes.kind == "fixed":
            return torch.full((count,), routes.fixed)
        if routes.kind == "oracle":
            learnt = own_task is not None and own_task <= checkpoint.task_id
            return torch.full((count,), own_task if learnt else ORIGINAL_CLIP)
        errors = self.errors[:, checkpoint.autoencoders]
        size = 1 if routes.per_image else self.batch_size
        return torch.cat(
            [
                torch.full((len(batch),), select_task(batch.mean(dim=0), routes.threshold))
                for batch in errors.split(size)
            ]
        )

    def clip_accuracy(self) -> tuple[float, ...]:
        """Top-1 and top-5 of the original CLIP: the zero-shot row."""
        return accuracy(self.clip_logits, self.labels)

    @torch.no_grad()
    def evaluate(self, checkpoint: Checkpoint, routes: Routes, own_task: int | None) -> Cell:
        """Accuracy of one checkpoint; class vectors are built for the routers that occur, and only for them."""
        routed = self.route(checkpoint, routes, own_task)
        logits = torch.empty(len(self.pixels), self.tokens.shape[0], device=self.device)
        used = routed.unique().tolist()
        if used != [ORIGINAL_CLIP]:
            self.model.load_state_dict(checkpoint.adapters, strict=False)
        for task_id in used:
            where = (routed == task_id).nonzero().flatten()
            if task_id == ORIGINAL_CLIP:
                logits[where] = self.clip_logits[where]
                continue
            use_router(self.model, task_id)
            vectors = self.clip_vectors if routes.text_from_clip else class_vectors(self.model, self.tokens)
            for part in where.split(self.batch_size):  # never a copy of all pixels
                logits[part] = zeroshot_logits(image_features(self.model, self.pixels[part], len(part)), vectors)
        top1, top5 = accuracy(logits, self.labels)
        return Cell(checkpoint.task_id, top1, top5, {task: int((routed == task).sum()) for task in used})


# The evaluation stage


def routes_of(options: Options) -> Routes:
    kind = "ddas" if options.autorouter else "oracle" if options.oracle_task_id else "fixed"
    return Routes(kind, options.threshold or 0.0, options.ddas_per_image, options.task_id, options.non_text)


def load_test_set(options: Options, machine: Machine, model: CLIP, name: str) -> EvaluationSet:
    """One data set, decoded, with its class prompts under all templates."""
    data = mtil.load_test_set(options, machine, model, name, options.template)
    return EvaluationSet(model, data.pixels, data.labels, data.tokens, options.batch_size_eval)


def feature_size(extractor: nn.Module, model: CLIP, device: torch.device) -> int:
    side = model.visual.input_resolution
    return extractor(torch.zeros(1, 3, side, side, device=device)).numel()


def read_checkpoints(
    options: Options, machine: Machine, model: CLIP, extractor: nn.Module | None, files: list[tuple[int, Path, Path]]
) -> tuple[list[Checkpoint], list[AutoEncoder]]:
    """Every checkpoint's adapters, and the distinct autoencoders of all of them: most files share most of theirs."""
    mtil.require_checkpoints(*(path for _, *paths in files for path in paths[: 1 + options.autorouter]))
    checkpoints, known = [], []
    for task_id, path, chooser_path in files:
        checkpoint = Checkpoint(task_id, read_adapters(path, model))
        if options.autorouter:
            features = feature_size(extractor, model, machine.device)
            autoencoders = build_autoencoders(options.task_num + 1, features).to(machine.device)
            read_autoencoders(chooser_path, autoencoders)
            checkpoint.autoencoders = [distinct(known, autoencoder) for autoencoder in autoencoders]
        checkpoints.append(checkpoint)
    return checkpoints, known


def not_evaluated(run: Run, options: Options) -> list[str]:
    """The data sets that are not on record yet; a data set is recorded as a whole."""
    return [name for name in options.eval_datasets if not run.find(dataset=name, metric="accuracy")]


def evaluate_sequence(run: Run, options: Options, machine: Machine, model: CLIP, extractor: nn.Module | None) -> None:
    """All checkpoints of the sequence on all data sets that are not on record yet."""
    sequence = options.train_dataset or options.eval_datasets
    folder = Path(options.load) if options.eval_only else run.folder
    chooser_folder = Path(options.load_autochooser) if options.load_autochooser else folder
    files = [
        (task_id, folder / f"{name}.pth", chooser_folder / f"{name}_autochooser.pth")
        for task_id, name in enumerate(sequence)
    ]
    checkpoints, autoencoders = read_checkpoints(options, machine, model, extractor, files)
    routes = routes_of(options)
    count = count_trainable(model, autoencoders)
    run.record(metric_lines("all", len(sequence), {"trainable_parameters": count}, None))
    for name in not_evaluated(run, options):
        started = time.monotonic()
        test = load_test_set(options, machine, model, name)
        if options.autorouter:
            test.measure_errors(extractor, autoencoders)
        own_task = sequence.index(name) if name in sequence else None
        bar = tqdm(checkpoints, desc=f"evaluate/{name}", leave=False, dynamic_ncols=True, disable=None)
        cells = [test.evaluate(checkpoint, routes, own_task) for checkpoint in bar]
        run.record(record_lines(name, test, cells, sequence, time.monotonic() - started))
        show_row(name, [test.clip_accuracy()[0], *(cell.top1 for cell in cells)])
        for cell in cells:
            warn_of_untrained_routers(name, cell, sequence)


def count_trainable(model: CLIP, autoencoders: list[AutoEncoder]) -> int:
    """What the method adds to CLIP, as later papers count it: all experts and routers, and one autoencoder."""
    adapters = sum(p.numel() for name, p in model.named_parameters() if is_adapter_key(name))
    return adapters + sum(p.numel() for p in autoencoders[0].parameters()) if autoencoders else adapters


def warn_of_untrained_routers(name: str, cell: Cell, sequence: list[str]) -> None:
    """DDAS compares the autoencoders of tasks not learnt yet as well, as upstream; say so when one of them wins."""
    for task_id, count in cell.routed.items():
        if task_id > cell.task_id:
            print(
                f"warning: after {sequence[cell.task_id]}, DDAS sent {count} images of {name} to the router of "
                f"{router_name(task_id, sequence)}, which is still at zero (equal gates for the first experts)."
            )


def record_lines(
    name: str, test: EvaluationSet, cells: list[Cell], sequence: list[str], seconds: float
) -> list[dict[str, Any]]:
    """Tidy lines of one data set: the zero-shot row as after_task 0, then every checkpoint."""
    lines = accuracy_lines(name, 0, *test.clip_accuracy(), seconds)
    for cell in cells:
        about = {"dataset": name, "after_task": cell.task_id + 1, "seconds": seconds}
        lines += accuracy_lines(name, cell.task_id + 1, cell.top1, cell.top5, seconds)
        for task_id, count in sorted(cell.routed.items()):
            lines.append(about | {"metric": f"routed_to/{router_name(task_id, sequence)}", "value": count})
    return lines


def router_name(task_id: int, sequence: list[str]) -> str:
    if task_id == ORIGINAL_CLIP:
        return "CLIP"
    return sequence[task_id] if task_id < len(sequence) else f"untrained {task_id}"


def evaluate_checkpoint_file(options: Options, machine: Machine, model: CLIP, extractor: nn.Module | None) -> None:
    """The original's evaluation call: one checkpoint file, its accuracy printed for every data set."""
    checkpoint, known = Checkpoint(options.task_num - 1, {}), []
    if options.load:
        if options.autorouter and not options.load_autochooser:
            raise UserError("--autorouter with a checkpoint file needs --load_autochooser.")
        files = [(options.task_num - 1, Path(options.load), Path(options.load_autochooser or options.load))]
        (checkpoint,), known = read_checkpoints(options, machine, model, extractor, files)
    for name in options.eval_datasets:
        test = load_test_set(options, machine, model, name)
        if options.autorouter:
            test.measure_errors(extractor, known)
        own_task = options.task_id if options.oracle_task_id else None
        cell = test.evaluate(checkpoint, routes_of(options), own_task)
        print(f"Evaluating on {name}\nTop-1 accuracy: {cell.top1:.2f}", flush=True)
        if options.autorouter:
            print("routed: " + ", ".join(f"{count} images to router {task}" for task, count in cell.routed.items()))
