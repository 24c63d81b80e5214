"""ZSCL and its baselines, class-incremental: the entry point, under the original's command line.

    python -m zscl.cil --config-path configs/class --config-name cifar100_10-10-ZSCL.yaml \\
        dataset_root=../datasets class_order=class_orders/cifar100.yaml

One process learns the tasks of a class order one after the other and tests after each on all classes seen
(cil/main.py:L24-L77). --help lists all keys.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch

from common import clip, datasets
from common.clip.model import CLIP
from common.errors import UserError, exit_cleanly
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from common.incremental.data import IncrementalData, check_inputs, load_data
from common.incremental.options import PURPOSES
from common.incremental.run import (
    finish_run,
    load_checkpoint,
    open_run,
    record_task,
    save_checkpoint,
    tested_steps,
)
from common.incremental.scenario import task_subset
from common.incremental.tasks import stream_seed, task_path
from common.machine import Machine, choose_machine
from common.runs import Run
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare
from common.training.schedules import cil_cosine_with_warmup
from zscl.cil.options import CIL_NAMES, PREVIOUS_MODEL, Options, parse
from zscl.cil.reference import (
    caption_root,
    captions_fingerprint,
    pretrained_reference,
    previous_reference,
    reference_set,
    texts_of,
)
from zscl.reference import CONCEPTUAL_CAPTIONS
from zscl.teacher import Reference
from zscl.training import TrainingOptions, joint_pass, train_task, trainable_parameters

KD_WEIGHT = 5.0  # w of L_img and L_txt; two constants in the original's code


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options, lambda: reference_fingerprint(options))
    pretrained = clip.load(options.model_name, "cpu", precision="fp32")[0].requires_grad_(False)
    data = load_data(options, pretrained.visual.input_resolution)
    check_memory(options, data)
    more = {"reference": reference_fingerprint(options)}
    run = open_run("zscl", method_label(options), options, data, machine, more)
    model = copy.deepcopy(pretrained).to(machine.device)
    test = PooledTest(data.test, data.scenario, options.eval_transform, options.batch_size, machine.workers)
    prepare(machine, model, pretrained)
    steps, reference = tested_steps(run), None
    for task_id in range(len(steps), len(data.scenario.tasks)):
        if options.method != "zeroshot":
            reference = learn_task(run, options, machine, data, task_id, model, pretrained, reference)
        started = time.monotonic()
        seed = stream_seed(options.seed, task_id, "evaluation", PURPOSES)
        steps.append(evaluate_seen(model, data.tokens, test, task_id, seed))
        record_task(run, data, steps, time.monotonic() - started, options.log_path)
    trained = [] if options.method == "zeroshot" else trainable_parameters(model, "whole")
    finish_run(run, data, steps, sum(parameter.numel() for parameter in trained))


def method_label(options: Options) -> str:
    """The method as the records name it; in brackets all that makes it another than the tables' row of that name."""
    variants = ["CLIP"] if options.method == "iCaRL" else []  # published rows named iCaRL are of another network
    if options.method == "ZSCL":
        variants += [] if options.we else ["no WE"]
        other = options.ref_dataset != CONCEPTUAL_CAPTIONS
        variants += [f"reference images: {Path(options.ref_dataset).name}"] if other else []
    variants += ["aliased teacher"] if options.method in PREVIOUS_MODEL and options.teacher == "aliased" else []
    variants += ["released memory"] if options.method == "iCaRL" and options.icarl_compat else []
    variants += {"ext": ["CE with captions"], "previous": ["CE over all seen"]}.get(options.ce_method, [])
    variants += [f"WC {options.l2:g}"] if options.l2 else []
    variants += ["centre-crop test"] if options.eval_transform == "test" else []
    return CIL_NAMES[options.method] + (f" ({', '.join(variants)})" if variants else "")


def reference_fingerprint(options: Options) -> dict[str, Any]:
    """Which reference images and captions a run reads; raises UserError if they are not there."""
    if options.method == "ZSCL":
        return reference_set(options).fingerprint
    return captions_fingerprint(datasets.captions(caption_root(options))) if options.ce_method == "ext" else {}


def check_memory(options: Options, data: IncrementalData) -> None:
    """Raise UserError for a memory that holds more than the data set or less than an image a task."""
    if options.method != "iCaRL":
        return
    images, tasks = len(data.train), len(data.scenario.tasks)
    if not tasks <= options.memory_size <= images:
        raise UserError(
            f"memory_size={options.memory_size}: {data.dataset} has {images:,} training images in {tasks} tasks; give "
            f"{tasks} to {images}."
        )


def learn_task(
    run: Run,
    options: Options,
    machine: Machine,
    data: IncrementalData,
    task_id: int,
    model: CLIP,
    pretrained: CLIP,
    before: Reference | None,
) -> Reference | None:
    """One task, from the weights after the one before it to its checkpoint, which is read if it is there.

    `before` is what an earlier task distilled on; what this one did is returned.
    """
    if task_path(run.folder, task_id).exists():
        model.load_state_dict(load_checkpoint(run, task_id))
        return before
    if task_id:
        model.load_state_dict(load_checkpoint(run, task_id - 1))
    device, seed = machine.device, stream_seed(options.seed, task_id, "training", PURPOSES)
    seed_everything(seed)
    task = task_subset(data.train, data.scenario, task_id)
    batches = Batches(task, options.batch_size, seed, machine.workers, device)
    reference = None
    if options.method == "ZSCL":
        reference = pretrained_reference(run, options, machine, task_id, pretrained, before)
    elif options.method in PREVIOUS_MODEL:
        reference = previous_reference(run, options, machine, data, task_id, model)
    prompts, training = texts_of(options, data, task_id, device), training_options(options, len(batches), device)
    first_class, stage = data.scenario.tasks[task_id].start, f"train/task {task_id}"
    model.train()
    train_task(model, prompts, batches, reference, None, training, stage, run.steps, first_class=first_class)
    model.eval()
    if reference:
        reference.keep()
    run.record(cost_records(f"task {task_id}", task_id + 1, run.seconds, device))
    save_checkpoint(run, task_id, model.state_dict())
    return reference


def training_options(options: Options, batches: int, device: torch.device) -> TrainingOptions:
    """The loop's options for a task of so many batches. Quirk: `we` counts only with method ZSCL."""
    return TrainingOptions(
        lr=options.lr,
        iterations=options.epochs * batches,
        warmup=options.warmup,
        label_smoothing=options.ls,
        weight_decay=options.weight_decay,
        terms=("img", "txt"),
        kd_weight=KD_WEIGHT,
        l2=options.l2,
        ensemble="we" if options.we and options.method == "ZSCL" else None,
        avg_freq=options.avg_freq or 1,
        joint_pass=joint_pass(options.reference_pass, device),
        loss_interval=None,
        schedule=cil_cosine_with_warmup,
    )


if __name__ == "__main__":
    main()
