"""ZSCL and its baselines, class-incremental: the entry point, under the original's command line.

    python -m zscl.cil --config-path configs/class --config-name cifar100_10-10-ZSCL.yaml \\
        dataset_root=../datasets class_order=class_orders/cifar100.yaml

One process learns the tasks of a class order one after the other and tests after each on all classes seen
(cil/main.py:L24-L77). --help lists all keys.
"""

from common.errors import exit_cleanly
from common.evaluation.seen_classes import PooledTest
from common.incremental.data import IncrementalData, check_inputs, load_data
from common.incremental.measures import numel
from common.incremental.run import finish_run, load_checkpoint, open_run, save_checkpoint, test_task, tested_steps
from common.incremental.scenario import task_subset
from common.incremental.tasks import task_path
from common.machine import Machine, choose_machine
from common.runs import Run
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from zscl.cil.memory import check_memory, stored_floats
from zscl.cil.options import Options, method_label, parse, training_options
from zscl.cil.reference import reference_fingerprint, task_reference, texts_of
from zscl.teacher import Models, load_models
from zscl.training import train_task, trainable_parameters


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options, lambda: reference_fingerprint(options))
    models = load_models(options.model_name, options.activation, machine)
    resolution = models.student.visual.input_resolution
    data = load_data(options, resolution)
    check_memory(options, data)
    more = {"reference": reference_fingerprint(options)}
    run = open_run("zscl", method_label(options), options, data, machine, more)
    test = PooledTest(data.test, data.scenario, options.eval_transform, options.batch_size, machine.workers)
    steps = tested_steps(run)
    for task_id in range(len(steps), len(data.scenario.tasks)):
        if options.method != "zeroshot":
            learn_task(run, options, machine, data, task_id, models)
        held = numel(models.student.parameters()), stored_floats(run, options, task_id, resolution)
        test_task(run, options, data, test, steps, models.student, held)
    trained = [] if options.method == "zeroshot" else trainable_parameters(models.student, "whole")
    finish_run(run, data, steps, sum(parameter.numel() for parameter in trained))


def learn_task(
    run: Run, options: Options, machine: Machine, data: IncrementalData, task_id: int, models: Models
) -> None:
    """One task, from the weights after the one before it to its checkpoint, which is read if it is there."""
    model, device, seed = models.student, machine.device, options.stream_seed(task_id, "training")
    if task_path(run.folder, task_id).exists():
        model.load_state_dict(load_checkpoint(run, task_id))
        return
    if task_id:
        model.load_state_dict(load_checkpoint(run, task_id - 1))
    seed_everything(seed)
    task = task_subset(data.train, data.scenario, task_id)
    batches = Batches(task, options.batch_size, seed, machine.workers, device)
    reference = task_reference(run, options, machine, data, task_id, models)
    prompts, training = texts_of(options, data, task_id, device), training_options(options, len(batches), device)
    first_class, stage = data.scenario.tasks[task_id].start, f"train/task {task_id}"
    model.train()
    train_task(model, prompts, batches, reference, None, training, stage, run.steps, first_class=first_class)
    model.eval()
    if reference:
        reference.keep()
    run.record(cost_records(f"task {task_id}", task_id + 1, run.seconds, device))
    save_checkpoint(run, task_id, model.state_dict(), model.activation)


if __name__ == "__main__":
    main()
