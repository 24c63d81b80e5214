"""All checkpoints of a sequence on all data sets, in one process (upstream mtil/src/models/evaluation.py:L20-L84).

What does not depend on the checkpoint is computed once a data set: pixels, features of the original CLIP, and the
reconstruction errors of every distinct autoencoder. Cells whose batches all go to the original CLIP then cost nothing.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import mtil
from common.clip.activation import require_same
from common.clip.model import CLIP
from common.clip.pretrained import openai_weights
from common.datasets.transforms import clip_normalise
from common.errors import UserError
from common.evaluation.label_space import LabelSpace, space_logits
from common.evaluation.report import accuracy_lines, show_row, show_sequence, spoken, write_table
from common.evaluation.zero_shot import image_features
from common.files import metric_lines
from common.machine import Machine
from common.protocols import Protocol
from common.runs import Run
from common.state_dicts import require_match, unwrapped
from common.training.device import to_device
from common.weight_files import read
from moe_adapters.adapters import ORIGINAL_CLIP, is_adapter_key, use_router
from moe_adapters.ddas import (
    autoencoder_input,
    build_autoencoders,
    read_autoencoders,
    reconstruction_errors,
    select_task,
)
from moe_adapters.options import Options, autoencoder_file, sequence_of

ROUTED = "routed_to/"  # in the metric's name: images of a data set that a router received
UNUSED_KEYS = ("mean", "std", "ln_3.weight", "ln_3.bias")  # in every official block, used in none


@dataclass
class Checkpoint:
    """One finished task: its adapters (official keys) and, with DDAS, which autoencoders it holds."""

    task_id: int
    adapters: dict[str, Tensor]
    autoencoders: list[int] = field(default_factory=list)  # indices into the shared list of distinct ones


@dataclass(frozen=True)
class Cell:
    """One checkpoint (task -1: the original CLIP) on one data set: accuracies, images that each router received."""

    task_id: int
    accuracies: dict[str, float]  # of `LabelSpace.accuracies`
    routed: dict[int, int]

    @property
    def top1(self) -> float:
        return self.accuracies["accuracy"]


def is_unused(key: str) -> bool:
    """Whether an official key stands for nothing the forward pass reads, the alias of the last expert included."""
    return ".adaptmlp." in key or key.rsplit("resblocks.", 1)[-1].split(".", 1)[-1] in UNUSED_KEYS


def read_adapters(path: str | Path, model: CLIP) -> dict[str, Tensor]:
    """The adapter tensors of an official checkpoint file, after holding every key against the model.

    Raises UserError that names missing, unexpected or misshapen keys, and when the file's CLIP or activation is
    not the model's: adapters only mean something on the CLIP they were trained on.
    """
    content = read(path)
    loaded = unwrapped(content, path)
    state_dict = openai_weights(loaded)
    expected, used = ({key: sd[key] for key in sd if not is_unused(key)} for sd in (model.state_dict(), state_dict))
    require_match(expected, used, path, "this model", " Check --model, --experts_num, --ffn_num and --task_num.")
    changed = [
        key
        for key, value in expected.items()
        if not is_adapter_key(key) and not torch.equal(value.cpu(), used[key].to(value.dtype))
    ]
    if changed:
        raise UserError(f"{path} holds another CLIP than --model ({len(changed)} tensors differ, first {changed[0]}).")
    require_same(model.activation, Path(path), content, loaded)
    return {key: value for key, value in state_dict.items() if is_adapter_key(key) and ".adaptmlp." not in key}


def distinct(autoencoders: list[nn.Module], autoencoder: nn.Module) -> int:
    """The index of an equal one in `autoencoders`, to which a copy of a new one is added. Checkpoints share most."""
    for index, other in enumerate(autoencoders):
        if all(torch.equal(a, b) for a, b in zip(other.parameters(), autoencoder.parameters())):
            return index
    autoencoders.append(copy.deepcopy(autoencoder))
    return len(autoencoders) - 1


class RoutedSpace:
    """A label space with its class vectors through each router of each checkpoint: X-TAIL's are encoded once."""

    def __init__(self, model: CLIP, labels: LabelSpace) -> None:
        self.model, self.labels = model, labels
        self.encoded: dict[tuple[int, int], list[Tensor]] = {}

    def vectors(self, router: int, task_id: int = ORIGINAL_CLIP) -> list[Tensor]:
        """Class vectors (D, C) of each data set through a router of the checkpoint `task_id`, which the model holds."""
        key = (ORIGINAL_CLIP if router == ORIGINAL_CLIP else task_id, router)
        if key not in self.encoded:
            use_router(self.model, router)
            self.encoded[key] = self.labels.vectors(self.model)
        return self.encoded[key]


class EvaluationSet:
    """One data set under evaluation, with everything that all checkpoints share."""

    def __init__(
        self,
        model: CLIP,
        pixels: Tensor,
        labels: Tensor,
        tokens: Tensor,
        batch_size: int,
        name: str = "",
        space: RoutedSpace | None = None,
    ) -> None:
        """space: the joint label space of X-TAIL; without it the labels are those of the prompts `tokens` (C, T, L)."""
        self.model, self.pixels, self.labels, self.batch_size, self.name = model, pixels, labels, batch_size, name
        self.device = model.logit_scale.device
        self.errors = torch.empty(len(pixels), 0)  # (N, autoencoders), see `measure_errors`
        self.space = space or RoutedSpace(model, LabelSpace({name: tokens}))

    @cached_property
    def clip_logits(self) -> Tensor:
        """Logits of the original CLIP, computed when the first cell needs them."""
        vectors = self.space.vectors(ORIGINAL_CLIP)
        use_router(self.model, ORIGINAL_CLIP)
        return space_logits(image_features(self.model, self.pixels, self.batch_size), vectors)

    def cell(self, task_id: int, logits: Tensor, routed: dict[int, int]) -> Cell:
        """A cell of the matrix from logits (N, C) on all labels."""
        return Cell(task_id, self.space.labels.accuracies(logits, self.labels, self.name), routed)

    def measure_errors(self, extractor: nn.Module, autoencoders: list[nn.Module]) -> None:
        """Reconstruction errors of each image under each distinct autoencoder, (N, autoencoders), on the CPU."""
        parts = self.pixels.split(self.batch_size)
        errors = []
        for batch in tqdm(parts, desc="DDAS", leave=False, dynamic_ncols=True, disable=None):
            features = autoencoder_input(extractor, clip_normalise(to_device(batch, self.device)))
            errors.append(reconstruction_errors(autoencoders, features))
        self.errors = torch.cat(errors).cpu()

    def route(self, checkpoint: Checkpoint, options: Options, task_id: int | None) -> Tensor:
        """The router of each image, (N,). DDAS decides a batch at a time, as upstream, unless --ddas-per-image."""
        if not options.autorouter:
            router = options.task_id
            if options.oracle_task_id:
                router = ORIGINAL_CLIP if task_id is None or task_id > checkpoint.task_id else task_id
            return torch.full((len(self.pixels),), router)
        batches = self.errors[:, checkpoint.autoencoders].split(1 if options.ddas_per_image else self.batch_size)
        routers = [select_task(errors.mean(dim=0), options.threshold or 0.0) for errors in batches]
        return torch.cat([torch.full((len(errors),), router) for errors, router in zip(batches, routers)])

    @torch.no_grad()
    def evaluate(self, checkpoint: Checkpoint, options: Options, task_id: int | None) -> Cell:
        """Accuracy of one checkpoint; class vectors are built for the routers that occur, and only for them.

        task_id: the task whose data set this is; None if it is of none.
        """
        routed = self.route(checkpoint, options, task_id)
        logits = torch.empty(len(self.pixels), self.space.labels.size, device=self.device)
        used = routed.unique().tolist()
        if used != [ORIGINAL_CLIP]:
            self.model.load_state_dict(checkpoint.adapters, strict=False)
        for router in used:
            rows = (routed == router).nonzero().flatten()
            there = to_device(rows, self.device)
            if router == ORIGINAL_CLIP:
                logits[there] = self.clip_logits[there]
                continue
            vectors = self.space.vectors(ORIGINAL_CLIP if options.non_text else router, checkpoint.task_id)
            use_router(self.model, router)
            features = [  # never a copy of all pixels
                image_features(self.model, self.pixels[part], len(part)) for part in rows.split(self.batch_size)
            ]
            logits[there] = torch.cat([space_logits(part, vectors) for part in features])
        return self.cell(checkpoint.task_id, logits, {router: int((routed == router).sum()) for router in used})


# The evaluation stage


def evaluate_sequence(run: Run, options: Options, machine: Machine, model: CLIP, extractor: nn.Module | None) -> None:
    """All checkpoints of the sequence on all data sets that are not on record yet; a set is recorded as a whole."""
    missing = [name for name in options.eval_datasets or [] if not run.find(dataset=name, metric="accuracy")]
    if not missing:
        return
    first = mtil.first_number(run, sequence_of(options))
    folder = Path(options.load) if options.eval_only and options.load else run.folder
    files = list(enumerate(checkpoint_files(options, folder), first - 1))
    checkpoints, autoencoders = read_checkpoints(options, model, extractor, files)
    sequence = Protocol.parse(run.labels["protocol"]).order  # the tasks of earlier calls among them
    run.record(metric_lines("all", len(sequence), {"trainable_parameters": count_trainable(model, autoencoders)}, None))
    space = routed_space(options, model, sequence_of(options))
    for name in missing:
        started = time.monotonic()
        test = load_test_set(options, machine, model, name, space)
        if extractor and options.autorouter:
            test.measure_errors(extractor, autoencoders)
        task_id = sequence.index(name) if name in sequence else None
        bar = tqdm(checkpoints, desc=f"evaluate/{name}", leave=False, dynamic_ncols=True, disable=None)
        cells = [test.evaluate(checkpoint, options, task_id) for checkpoint in bar]
        cells.insert(0, test.cell(ORIGINAL_CLIP, test.clip_logits, {}))
        run.record(record_lines(name, cells, sequence, time.monotonic() - started))
        show_row(name, [cell.top1 for cell in cells])
        for cell in cells:
            warn_of_untrained_routers(name, cell, sequence)


def evaluate_checkpoint_file(options: Options, machine: Machine, model: CLIP, extractor: nn.Module | None) -> None:
    """The original's evaluation call: one checkpoint file, its accuracy printed for every data set."""
    checkpoint, autoencoders = Checkpoint(options.task_num - 1, {}), list[nn.Module]()
    if options.load:
        if options.autorouter and not options.load_autochooser:
            raise UserError("--autorouter with a checkpoint file needs --load_autochooser.")
        files = Path(options.load), Path(options.load_autochooser or options.load)
        (checkpoint,), autoencoders = read_checkpoints(options, model, extractor, [(checkpoint.task_id, files)])
    space = routed_space(options, model, sequence_of(options))
    for name in options.eval_datasets or []:
        test = load_test_set(options, machine, model, name, space)
        if extractor and options.autorouter:
            test.measure_errors(extractor, autoencoders)
        cell = test.evaluate(checkpoint, options, options.task_id)
        print(f"Evaluating on {name}\n{spoken(cell.accuracies)}", flush=True)
        if options.autorouter:
            print("routed: " + ", ".join(f"{count} images to router {router}" for router, count in cell.routed.items()))


def checkpoint_files(options: Options, folder: Path) -> list[tuple[Path, Path]]:
    """The files of adapters and of autoencoders of the tasks in a sequence's folder."""
    ddas_folder = Path(options.load_autochooser or folder)
    return [(folder / f"{name}.pth", ddas_folder / autoencoder_file(name)) for name in sequence_of(options)]


def read_checkpoints(
    options: Options, model: CLIP, extractor: nn.Module | None, files: list[tuple[int, tuple[Path, Path]]]
) -> tuple[list[Checkpoint], list[nn.Module]]:
    """Every checkpoint's adapters, and the distinct autoencoders of all of them: most files share most of theirs.

    files: task ids, each with the files of its adapters and, read with DDAS alone, of its autoencoders.
    """
    mtil.require_checkpoints(*(path for _, paths in files for path in paths[: 1 + options.autorouter]))
    checkpoints: list[Checkpoint] = []
    autoencoders: list[nn.Module] = []
    for task_id, (path, ddas_path) in files:
        checkpoint = Checkpoint(task_id, read_adapters(path, model))
        if options.autorouter and extractor:
            side, device = model.config.image_resolution, model.logit_scale.device
            features = extractor(torch.zeros(1, 3, side, side, device=device)).numel()
            modules = build_autoencoders(options.task_num + 1, features).to(device)
            read_autoencoders(ddas_path, modules)
            checkpoint.autoencoders = [distinct(autoencoders, module) for module in modules]
        checkpoints.append(checkpoint)
    return checkpoints, autoencoders


def routed_space(options: Options, model: CLIP, names: Sequence[str]) -> RoutedSpace | None:
    """X-TAIL's label space of these data sets; None for MTIL."""
    labels = mtil.joint_space(options, names, options.template)
    return RoutedSpace(model, labels) if labels else None


def load_test_set(
    options: Options, machine: Machine, model: CLIP, name: str, space: RoutedSpace | None
) -> EvaluationSet:
    """One data set, decoded, with its own class prompts unless there is a joint label space."""
    data = mtil.load_test_set(options, machine, model, name, options.template)
    return EvaluationSet(model, data.pixels, data.labels, data.tokens, options.batch_size_eval, name, space)


def count_trainable(model: CLIP, autoencoders: list[nn.Module]) -> int:
    """What the method adds to CLIP, as later papers count it: all experts and routers, and one autoencoder."""
    adapters = [parameter for name, parameter in model.named_parameters() if is_adapter_key(name)]
    autoencoder = [parameter for module in autoencoders[:1] for parameter in module.parameters()]
    return sum(parameter.numel() for parameter in adapters + autoencoder)


def warn_of_untrained_routers(name: str, cell: Cell, sequence: Sequence[str]) -> None:
    """DDAS compares the autoencoders of tasks not learnt yet as well, as upstream; say so when one of them wins."""
    for task_id, count in cell.routed.items():
        if task_id > cell.task_id:
            print(
                f"warning: after {sequence[cell.task_id]}, DDAS sent {count} images of {name} to the router of "
                f"{router_name(task_id, sequence)}, which is still at zero (equal gates for the first experts)."
            )


def record_lines(name: str, cells: list[Cell], sequence: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Tidy lines of one data set; the zero-shot row's stand after task 0."""
    lines = []
    for cell in cells:
        routed = {f"{ROUTED}{router_name(router, sequence)}": count for router, count in sorted(cell.routed.items())}
        lines += accuracy_lines(name, cell.task_id + 1, cell.accuracies, seconds)
        lines += metric_lines(name, cell.task_id + 1, routed, seconds)
    return lines


def router_name(router: int, sequence: Sequence[str]) -> str:
    if router == ORIGINAL_CLIP:
        return "CLIP"
    return sequence[router] if router < len(sequence) else f"untrained {router}"


# What is shown of a finished sequence


def show_results(run: Run, options: Options) -> None:
    """Print the table, and write accuracy.csv, accuracy.png, ddas_confusion.csv beside the records."""
    names, ddas = sequence_of(options), ", ddas_confusion.csv" if options.autorouter else ""
    numbered = dict(enumerate(names, mtil.first_number(run, names)))
    show_sequence(run, options.eval_datasets or [], numbered, "MoE-Adapters")
    if options.autorouter:
        show_routing(run, Protocol.parse(run.labels["protocol"]).order)
    print(f"\nWritten: {run.path('record.jsonl')}, accuracy.csv, accuracy.png{ddas}")


def show_routing(run: Run, sequence: Sequence[str]) -> None:
    """Write the DDAS confusion table, and print the shares that were sent where they belong."""
    counts: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)  # (after task, data set) -> images by router
    for line in run.records:
        if str(line["metric"]).startswith(ROUTED):
            counts[line["after_task"], line["dataset"]][line["metric"].removeprefix(ROUTED)] = line["value"]
    used = {router for cell in counts.values() for router in cell}
    routers = ["CLIP", *sequence, *sorted(used - {"CLIP", *sequence})]
    lines = [
        [sequence[after_task - 1], name, *(cell.get(router, 0) for router in routers)]
        for (after_task, name), cell in sorted(counts.items())
    ]
    write_table(run.path("ddas_confusion.csv"), ["after", "dataset", *routers], lines)

    def share(learnt: bool) -> str:
        cells = {key: cell for key, cell in counts.items() if (key[1] in sequence[: key[0]]) == learnt}
        right = [cell.get(key[1] if learnt else "CLIP", 0) / sum(cell.values()) for key, cell in cells.items()]
        return f"{100 * sum(right) / len(right):.1f} %" if right else "none"

    print(
        f"\nDDAS sent to their own router: {share(True)} of the images of sets learnt; "
        f"to the original CLIP: {share(False)} of the images of sets not learnt yet."
    )
