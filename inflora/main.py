"""InfLoRA and its variants: the entry point. `python -m inflora.main --help`.

Each seed is a run in a folder of its own. A run learns its tasks in order, evaluates after each on all classes seen and
records; the same command again goes on where it stopped.
"""

import copy

import torch

from common.errors import exit_cleanly
from common.evaluation.metrics import over_repeats
from common.files import metric_lines
from common.incremental.features import features_in_order
from common.incremental.scenario import task_subset
from common.incremental.tasks import stream_seed, unfinished_tasks
from common.machine import Machine, choose_machine
from common.runs import Tensors, fitting, load_tensors, save_tensors
from common.training.batches import Batches, BatchStream
from common.training.device import cost_records
from inflora.alignment import align, cholesky_factors, class_statistics, draw, scaled_means
from inflora.evaluation import evaluate
from inflora.gpm import threshold
from inflora.learner import Learner, build, check_inputs
from inflora.methods import logit_norm
from inflora.options import Options, parse
from inflora.training import design_branch, remember_task, train_task, trained_parameters, training_options


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options, num_workers=options.num_workers)
    check_inputs(options)
    last = [run_seed(options, machine, seed) for seed in options.seed]
    if len(last) > 1:
        for metric in ("acc", "avg_acc"):
            mean, spread = over_repeats([values[metric] for values in last])
            print(f"{metric}: {mean:.2f} +- {spread:.2f} over seeds {', '.join(map(str, options.seed))}")


def run_seed(options: Options, machine: Machine, seed: int) -> dict[str, float]:
    """Learn and evaluate all tasks under one seed; the metrics after the last."""
    learner = build(options, machine, seed)
    run, count = learner.run, len(learner.scenario.tasks)
    for task_id in unfinished_tasks(count, learner.is_evaluated, learner.load):
        if learner.checkpoint(task_id).exists():
            learner.load(task_id)
        else:
            learn_task(learner, task_id)
        evaluate(learner, task_id)
    run.finish()
    return {line["metric"]: line["value"] for line in run.find(after_task=count)}


def learn_task(learner: Learner, task_id: int) -> None:
    """Design, train, remember and, with +CA, align; then the task's checkpoint."""
    options, machine, network, run = learner.options, learner.machine, learner.network, learner.run
    method, training, branch = options.method, training_options(options, task_id), learner.branch(task_id)
    seed, first_class = stream_seed(learner.seed, task_id), learner.scenario.tasks[task_id].start
    examples = task_subset(learner.train, learner.scenario, task_id)
    batches = Batches(examples, options.batch_size, seed, machine.workers, machine.device)
    if method.designed:
        design_or_read(learner, task_id, batches)
    log = train_task(network, task_id, branch, first_class, batches, training, f"task {task_id}", run.steps)
    if method.designed:
        epsilon = threshold(options.lamb, options.lame, task_id, options.total_sessions)
        learner.memories = remember_task(network, learner.memories, batches, training.epochs + 1, epsilon, method.dual)
    if method.aligned:
        align_classifiers(learner, task_id, seed)
    epoch = slice(-len(batches), None)
    loss, accuracy = (log[name][epoch].mean() for name in ("loss", "accuracy"))
    print(f"task {task_id}: loss {loss:.3f}, training accuracy {100 * accuracy:.2f}")
    trained = trained_parameters(network, task_id, branch, training).values()
    counted = {"trainable_parameters": sum(parameter.numel() for parameter in trained)}
    dataset, after_task = options.data_set.label, task_id + 1
    costs = cost_records(dataset, after_task, run.seconds, machine.device)
    run.record([*costs, *metric_lines(dataset, after_task, counted, run.seconds)])
    learner.save(task_id)


def design_or_read(learner: Learner, task_id: int, batches: BatchStream) -> None:
    """The task's lora_A, from the file of a run that was stopped after designing it, else by a pass over the data."""
    path, reduction = learner.run.folder / "design.pth", learner.network.reduction(task_id)
    saved = load_tensors(path) if path.exists() else {}
    if saved.get("task") == task_id:
        with fitting(path):
            Tensors(reduction).load_state_dict(saved["lora_A"])
    else:
        design_branch(learner.network, task_id, learner.memories, batches)
        save_tensors(path, {"task": task_id, "lora_A": Tensors(reduction).state_dict()})


def align_classifiers(learner: Learner, task_id: int, seed: int) -> None:
    """Keep the statistics of the task's classes, and from the second task on align the classifiers of all seen.

    The statistics are those of the training images under the test transform.
    """
    options, scenario, network = learner.options, learner.scenario, learner.network
    plain = copy.copy(learner.train)
    plain.transform = learner.test.transform
    images = task_subset(plain, scenario, task_id)
    features, labels = features_in_order(network.features, images, options.batch_size, learner.machine)
    statistics = learner.add_statistics(task_id, class_statistics(features, labels, scenario.tasks[task_id]))
    if task_id > 0:
        device, classes = features.device, range(len(statistics.means))
        means = scaled_means(statistics.means, torch.from_numpy(scenario.task_ids(classes)).to(device))
        draws = draw(means, cholesky_factors(statistics.covariances), torch.Generator(device).manual_seed(seed))
        align(list(network.classifier_pool[: task_id + 1]), draws, logit_norm(options.model_name, options.dataset))


if __name__ == "__main__":
    main()
