"""Options, checks and data sets of ZSCL and MoE-Adapters on MTIL, whose originals share one program.

`--train-dataset`, `--lr` and `--iterations` take one value, as in the originals, or a comma list, one a task: several
data sets are a sequence that one process learns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from common import datasets
from common.clip.activation import CLIPOptions
from common.clip.model import CLIP
from common.clip.pretrained import find_weights
from common.clip.tokenizer import class_prompts
from common.datasets import ImageSet, canonical
from common.datasets.coop import COOP, MTIL, SPLITS, UNLISTED
from common.datasets.few_shot import few_shot, few_shot_indices
from common.datasets.images import ImageArrays, ImageFiles, Transform
from common.errors import UserError, all_checked
from common.evaluation.label_space import ALL, OWN, XTAIL_TEMPLATE, LabelSpace, xtail_names
from common.evaluation.pixels import DecodedSet, load_decoded
from common.files import read_config
from common.machine import Machine, RunOptions
from common.options import SEED, Rule, exclusive, one_placeholder, option
from common.protocols import CUSTOM, SEQUENCES, Protocol
from common.runs import Run
from common.training.batches import Batches
from common.weight_files import absent

MOST_NAMED = 20  # classes in a note


def mtil_names(names: list[str]) -> list[str]:
    """The names themselves; [order1], [order2] and [xtail] stand for the papers' sequences.

    Raises UserError for an unknown data set.
    """
    if len(names) == 1 and names[0] in SEQUENCES:
        return list(SEQUENCES[names[0]])
    return [canonical(name) for name in names]


def known_template(template: str) -> str | None:
    """A check of X-TAIL's template."""
    return None if template == OWN else one_placeholder(template)


@dataclass(frozen=True)
class MTILOptions(CLIPOptions, RunOptions):
    """Options of both papers with the originals' names and defaults; a class derived from this adds those of one."""

    # a table: an option a line or two
    # fmt: off
    train_dataset: list[str] | None = option(None, "data set, or a sequence; order1, order2, xtail: the papers'",
                                             group="training", convert=mtil_names, unique=True)
    lr: list[float] = option([1e-3], "peak learning rate", at_least=0)
    wd: float = option(0.0, "weight decay", at_least=0)
    ls: float = option(0.0, "label smoothing", at_least=0, at_most=1)
    beta2: float = option(0.999, "of AdamW", at_least=0, below=1)
    warmup_length: int = option(100, "steps of linear warm-up", at_least=0)
    epochs: int | None = option(None, "training length; excludes --iterations", at_least=1)
    iterations: list[int] | None = option(None, "training length; one more step is taken", at_least=1,
                                          yields_to="epochs")
    batch_size: int = option(64, "images a step, of references too", at_least=1)
    seed: int = option(42, "set anew for every task", **SEED)
    template: str | None = option(None, "prompt instead of the data set's first, {}: class", check=one_placeholder)
    few_shot: int = option(-1, "images a class to train on; -1: all", at_least=-1,
        check=lambda count: None if count else "give a positive number, or -1 for all images.")
    loss_interval: int = option(1000, "print the losses every so many steps", at_least=1, decides=False)
    eval_only: bool = option(False, "evaluate --load: a checkpoint, or a folder of a sequence's", group="evaluation")
    eval_datasets: list[str] | None = option(None, "data sets to evaluate", convert=mtil_names, unique=True)
    label_space: str = option(OWN, "ours: an image's classes are its data set's, or those of all sets (X-TAIL)",
                              choices=(OWN, ALL))
    xtail_template: str = option(XTAIL_TEMPLATE, "ours: the prompt with --label-space all; own: each set's of MTIL",
                                 check=known_template)
    batch_size_eval: int = option(128, "images a batch of evaluation", at_least=1)
    model: str = option("ViT-B/16", "CLIP: a published name, a checkpoint file, or mini", group="data and weights")
    data_location: str = option("./data", "folder of all data sets, or mini", decides=False)
    splits: str = option(MTIL, "ours: of the images; coop: by CoOp's lists, which lie beside them", choices=SPLITS)
    load: str | None = option(None, "checkpoint to start from or to evaluate")
    save: str | None = option(None, "output folder; '-mini' is appended at that scale", decides=False)
    # fmt: on


def mtil_protocol(options: MTILOptions, names: Sequence[str]) -> str:
    """Protocol of a sequence of data sets, as in the records."""
    orders = {order: name for name, order in SEQUENCES.items()}
    protocol = Protocol(
        "xtail" if options.label_space == ALL else "mtil", orders.get(tuple(names), CUSTOM + "+".join(names))
    )
    shots = None if options.few_shot < 0 else options.few_shot
    return str(replace(protocol, shots=shots, splits=None if options.splits == MTIL else options.splits))


def evaluation_folder(options: MTILOptions) -> Path:
    """Where an evaluation of --load without --save keeps its records."""
    return Path(options.load or "", "xtail" if options.label_space == ALL else "evaluation")


def tasks_before(folder: Path | str, name: str, first: str, load: str | None, overwrite: bool) -> list[str]:
    """The tasks that a call's first task follows: those behind the checkpoint `load`, in the order learned.

    A run of this name that the folder holds already keeps its own, unless it is to be overwritten.
    """
    own = [] if overwrite else _recorded_tasks(Path(folder) / (f"{name}.config.yaml" if name else "config.yaml"), first)
    return own[:-1] if own else tasks_behind(load)


def tasks_behind(checkpoint: str | None) -> list[str]:
    """The tasks that led to a checkpoint, its own the last, as the config.yaml beside it tells; [] where none does."""
    if not checkpoint:
        return []
    path = Path(checkpoint)
    found = [_recorded_tasks(path.with_name(name), path.stem) for name in (f"{path.stem}.config.yaml", "config.yaml")]
    return found[0] or found[1]


def _recorded_tasks(config: Path, last: str) -> list[str]:
    """The tasks of a run up to the one named, by its config.yaml; [] if it has no such task."""
    recorded = read_config(config)
    order = list(Protocol.parse(str(recorded["labels"].get("protocol"))).order)
    order = order or recorded["settings"].get("train_dataset") or []  # protocols of earlier versions do not name them
    return order[: order.index(last) + 1] if last in order else []


def first_number(run: Run, tasks: Sequence[str]) -> int:
    """The number, from 1 on, of a run's first task in its protocol, where tasks of earlier calls may precede it."""
    return max(0, len(Protocol.parse(run.labels["protocol"]).order) - len(tasks)) + 1


def of_task(values: Sequence[Any], task_id: int) -> Any:
    """The value for one task of an option with one value for all tasks or one for each."""
    return values[task_id] if len(values) > 1 else values[0]


def task_iterations(options: MTILOptions, task_id: int, epoch_length: int) -> int:
    """Number of steps of one task: its --iterations, or --epochs times `epoch_length`."""
    return of_task(options.iterations or [(options.epochs or 0) * epoch_length], task_id)


def require_files(*paths: str | Path | None) -> None:
    """Raise UserError with every path that does not exist; None and "" are skipped."""
    if missing := [absent(Path(path)) for path in paths if path and not Path(path).exists()]:
        raise UserError("\n".join(missing))


def require_checkpoints(*paths: Path, advice: str = "") -> None:
    """Raise UserError with every checkpoint of a sequence that does not exist."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"checkpoints are missing: {', '.join(missing)}.{advice}")


def require_trained_so(options: MTILOptions, *paths: str | None) -> None:
    """Raise UserError for checkpoints, or folders of them, that runs on other images left, by their config.yaml.

    One split's test images are among the other's training images; few-shot checkpoints would be recorded as others. A
    folder without a run's config.yaml, as the authors', tells nothing.
    """
    for path in map(Path, filter(None, paths)):
        goes_on = options.load is not None and path == Path(options.load)
        options_of_images = {"splits": MTIL} | ({"few_shot": -1} if goes_on else {})
        for config in (path if path.is_dir() else path.parent).glob("*config.yaml"):
            settings = read_config(config)["settings"]
            if "train_dataset" not in settings:
                continue
            for name, before in options_of_images.items():  # earlier versions had no others
                trained, given = settings.get(name, before), getattr(options, name)
                if trained != given:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(
                        f"{path} was trained with {flag} {trained}, not {given}. Give {flag} {trained}, or other "
                        "checkpoints."
                    )


def require_order(folder: Path, names: Sequence[str]) -> None:
    """Raise UserError where the folder's config.yaml tells that its checkpoints were learned in another order.

    It may tell of the latest tasks alone, where the first ones' runs lie elsewhere.
    """
    for count, name in enumerate(names, 1):
        learned = tasks_behind(str(folder / f"{name}.pth"))
        if learned and learned != list(names[:count][-len(learned) :]):
            order = ", ".join(learned), ", ".join(names[:count])
            raise UserError(
                f"{folder}: the tasks up to {name} were learned in the order {order[0]}, not {order[1]}. Give the "
                "whole sequence to --train-dataset, and what is to be tested to --eval-datasets."
            )


def check_inputs(
    options: MTILOptions, sets: Sequence[str], files: Sequence[str | None], *checks: Callable[[], Any]
) -> list[Any]:
    """Look for files, data sets and CLIP's weights, and call `checks`, before CLIP is built; the results of `checks`.

    Raises one UserError that lists all that is missing.
    """
    return all_checked(
        [
            lambda: require_files(*files),
            lambda: require_trained_so(options, *files),
            lambda: datasets.require(sets, options.data_location, not options.no_verify, splits=options.splits),
            lambda: find_weights(options.model),
            *checks,
        ]
    )[4:]


def fingerprints(options: MTILOptions, names: Sequence[str], prompted: Sequence[str]) -> dict[str, Any]:
    """Counts and list checksum of every data set.

    Raises UserError for a --template that is too long for CLIP with a class of those `prompted` with it.
    """
    sets = {name: load_set(options, name) for name in names}
    if options.template:
        for name in sets.keys() & set(prompted):
            class_prompts(sets[name].classnames, [options.template])
    return {name: data.fingerprint for name, data in sets.items()}


def load_set(options: MTILOptions, name: str, transform: Transform | None = None) -> ImageSet:
    """A data set with `transform` on its training images."""
    return datasets.load(name, options.data_location, transform, None, not options.no_verify, splits=options.splits)


def load_test_set(
    options: MTILOptions, machine: Machine, model: CLIP, name: str, template: str | None = None
) -> DecodedSet:
    """Decoded test images of a data set, with prompts from `template`, or else from all its templates."""
    root, resolution, verify = options.data_location, model.visual.input_resolution, not options.no_verify
    size, workers = options.batch_size_eval, machine.workers
    return load_decoded(name, root, resolution, size, workers, template, verify, options.splits)


def joint_space(options: MTILOptions, names: Sequence[str], template: str | None = None) -> LabelSpace | None:
    """X-TAIL's label space of a sequence; None for MTIL, where every data set has its own.

    template: instead of each set's own, with --xtail-template own.
    """
    if options.label_space == OWN:
        return None
    prompts = {}
    for data in (load_set(options, name) for name in names):
        own = options.xtail_template == OWN
        templates = ([template] if template else data.templates) if own else [options.xtail_template]
        classnames = data.classnames if own else xtail_names(data.name, data.classnames)
        prompts[data.name] = class_prompts(classnames, templates)
    return LabelSpace(prompts)


# Few-shot training


def pass_over(options: MTILOptions, machine: Machine, data: ImageSet) -> Batches:
    """The shuffled pass over a task's images in which --few-shot takes the first of each class."""
    return Batches(data.train, options.batch_size, options.seed, machine.workers)


def training_set(options: MTILOptions, machine: Machine, data: ImageSet) -> Dataset:
    """The images to train on; few-shot ones keep the crops that they were drawn with."""
    if options.few_shot < 0:
        return data.train
    return few_shot(pass_over(options, machine, data), data.train.labels, options.few_shot)[0]


def own_images(options: MTILOptions, machine: Machine, data: ImageSet) -> "ImageFiles | ImageArrays | Subset":
    """The images of a task that its method may use without augmentation: those of `training_set` as they are."""
    if options.few_shot < 0:
        return data.train
    indices = few_shot_indices(pass_over(options, machine, data), data.train.labels, options.few_shot)
    return Subset(data.train, indices)


def scarcity(options: MTILOptions, data: ImageSet) -> dict[str, float]:
    """The metrics of a task that has too few images for --few-shot, which is printed: classes and images; else none."""
    counts = np.bincount(data.train.labels, minlength=len(data.classnames))
    scarce = [f"{name} ({count})" for name, count in zip(data.classnames, counts) if count < options.few_shot]
    if not scarce:
        return {}
    more = f" and {len(scarce) - MOST_NAMED} more" if len(scarce) > MOST_NAMED else ""
    print(f"note: {data.name}: {len(scarce)} of {len(counts)} classes have fewer than {options.few_shot} training "
          f"images, all of which are taken: {', '.join(scarce[:MOST_NAMED])}{more}")  # fmt: skip
    return {"scarce_classes": len(scarce), "training_images": int(counts.clip(max=options.few_shot).sum())}


def mtil_rules(options: MTILOptions, tasks: Sequence[str]) -> list[Rule]:
    """Rules of both papers: something to do, a length, a folder, and one value for all tasks or one for each."""
    training, count = not options.eval_only, len(tasks)
    evaluated, joint = options.eval_datasets or [], options.label_space == ALL
    others = [name for name in evaluated if name not in (tasks or evaluated)]
    each = {"--lr": len(options.lr), "--iterations": len(options.iterations or [0])}
    return [
        (training and not tasks, "nothing to do: give --train-dataset to train, or --eval-only with --eval-datasets."),
        (training and not (options.epochs or options.iterations),
         "how long to train is missing; give --iterations or --epochs."),
        exclusive(options, "epochs", "iterations"),
        (training and not options.save, "--save is missing: the folder for checkpoints and records."),
        (joint and len(tasks or evaluated) < 2,
         "--label-space all tells the classes of several data sets apart: give the whole sequence, as order1, not "
         f"{' '.join(tasks or evaluated) or 'none'}."),
        (joint and others, f"--label-space all: {', '.join(others)} is no data set of the sequence, whose classes are "
         "told apart."),
        (joint and training and options.load, "--label-space all needs the whole sequence: learn it in one call "
         "without --load, or evaluate its folder with --eval-only."),
        *((training and values not in (1, count), f"{flag} has {values} values for {count} data sets; give one, or one "
           "each.") for flag, values in each.items()),
    ]  # fmt: skip


def mtil_notes(options: MTILOptions) -> list[str]:
    """What both papers' options say and a run would not do as it may seem."""
    shortest = 0 if options.eval_only else min(options.iterations or [0])
    length = f"--warmup_length {options.warmup_length} is longer than a task of --iterations {shortest}"
    idle = options.label_space == OWN and options.xtail_template != XTAIL_TEMPLATE
    return [
        *(["without effect: --xtail-template (of --label-space all)"] if idle else []),
        *([f"{length}: the learning rate never reaches --lr"] if 0 < shortest < options.warmup_length else []),
        *([f"{', '.join(UNLISTED)}: CoOp has no lists, MTIL's splits are used"] if options.splits == COOP else []),
    ]
