"""ALTA, its eight sister methods and zero-shot CLIP: the entry point. `python -m alta.main --help`.

One run learns its tasks in order and evaluates after each on the test sets of all tasks so far, class-IL and task-IL:
training is the same for both, so one run records both protocols. The same command again goes on where it stopped.
"""

from alta.evaluation import finish, print_accuracies, record_task, test_task
from alta.learner import Learner, build, check_inputs, precision_on
from alta.options import data_set, parse
from alta.training import train_task
from common.errors import exit_cleanly
from common.incremental.scenario import task_subset
from common.incremental.tasks import stream_seed, unfinished_tasks
from common.machine import choose_machine
from common.training.batches import Batches
from common.training.device import cost_records


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options, num_workers=options.dataset.num_workers)
    if options.precision == "auto":
        print(f"precision auto: {precision_on(machine.device, options)}")
    check_inputs(options)
    learner = build(options, machine)
    for task_id in unfinished_tasks(len(learner.scenario.tasks), learner.is_evaluated, learner.load):
        if learner.checkpoint(task_id).exists():
            learner.load(task_id)
        else:
            learn_task(learner, task_id)
        record_task(learner, task_id)
    finish(learner)


def learn_task(learner: Learner, task_id: int) -> None:
    """Train a task, with an evaluation every so many epochs as the original has them; then its checkpoint."""
    options, machine, head, run = learner.options, learner.machine, learner.head, learner.run
    if learner.optimizer is not None:
        past_classes = learner.scenario.tasks[task_id].start
        examples = task_subset(learner.train, learner.scenario, task_id)
        seed = stream_seed(options.seed, task_id)
        batches = Batches(examples, options.train.batch_size, seed, machine.workers, machine.device)

        def after_epoch(epoch: int) -> None:
            if epoch % options.eval.test_epochs == 0 and epoch < options.OPTIM.MAX_EPOCH:
                print_accuracies(test_task(learner, task_id)[options.il_setting])

        stage, state = f"task {task_id}", (learner.optimizer, learner.buffer)
        log = train_task(head, task_id, past_classes, batches, *state, options, stage, run.steps, after_epoch)
        loss, accuracy = (log[name][-len(batches) :].mean() for name in ("loss", "accuracy"))
        print(f"{stage}: loss {loss:.3f}, training accuracy {100 * accuracy:.2f}")
    run.record(cost_records(data_set(options).label, task_id + 1, run.seconds, machine.device))
    learner.save(task_id)


if __name__ == "__main__":
    main()
