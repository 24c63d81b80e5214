"""MoE-Adapters on class-incremental learning: the entry point. `python -m moe_adapters.cil --help`.

The same experts under other settings (arXiv 2403.11549, section 4.2; upstream cil/): two experts and one router a
block, shared by all tasks, nothing frozen, no DDAS, no zero-shot branch. Both experts see every sample, the router only
weighs them. The loop of a task is MTIL's (`training.py`).
"""

from common import clip
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
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
from common.training.numerics import prepare
from moe_adapters.adapters import ORIGINAL_CLIP, is_adapter_key, trainable_parameters, use_router, with_shared_router
from moe_adapters.cil_options import Options, method_label, parse, training_options
from moe_adapters.training import train_task

ROUTER = 0  # the one that all tasks share
TEST_BATCH = 64  # upstream cil/main.py:L55; with the noise a number of the protocol


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options)
    seed_everything(options.seed)  # the experts' initial weights
    model, *_ = clip.load(options.model_name, activation=options.activation)
    prepare(machine, with_shared_router(model).to(machine.device))
    data = load_data(options, model.visual.input_resolution)
    run = open_run("moe_adapters", method_label(options), options, data, machine)
    test = PooledTest(data.test, data.scenario, options.eval_transform, TEST_BATCH, machine.workers)
    steps, trains = tested_steps(run), options.method != "zeroshot"
    held = numel(value for key, value in model.named_parameters() if trains or not is_adapter_key(key))
    if trains and steps:
        load_adapters(run, model, len(steps) - 1)
    for task_id in range(len(steps), len(data.scenario.tasks)):
        if trains:
            learn_task(run, options, machine, model, data, task_id)
        # Quirk `eval_noise`: upstream the gate noise stays on, and every batch of 64 images meets class texts under
        # noise of their own (cil/clip/model.py:L14-L15, L629-L632). Without it the texts are encoded once.
        noisy = options.eval_noise and trains
        use_router(model, ROUTER if trains else ORIGINAL_CLIP, noise=noisy)
        test_task(run, options, data, test, steps, model, (held, 0), text_per_batch=noisy)
    finish_run(run, data, steps, adapter_count(model) if trains else 0)


def adapter_count(model: CLIP) -> int:
    return sum(parameter.numel() for parameter in trainable_parameters(model, ROUTER, frozen=set()).values())


def load_adapters(run: Run, model: CLIP, task_id: int) -> None:
    """Put the adapters in place that task `task_id` ended with."""
    model.load_state_dict(load_checkpoint(run, task_id), strict=False)


def learn_task(run: Run, options: Options, machine: Machine, model: CLIP, data: IncrementalData, task_id: int) -> None:
    """Train experts and router on one task, by cross-entropy over the task's own classes, and save them.

    The checkpoint holds the adapters under their official keys; CLIP itself never changes. One that is there is read.
    """
    if task_path(run.folder, task_id).exists():
        load_adapters(run, model, task_id)
        return
    task, seed = data.scenario.tasks[task_id], options.stream_seed(task_id, "training")
    examples = task_subset(data.train, data.scenario, task_id)
    examples.labels = [label - task.start for label in examples.labels]
    seed_everything(seed)
    batches = Batches(examples, options.batch_size, seed, machine.workers, machine.device)
    tokens = cut_prompts(data.tokens[task.start : task.stop]).to(machine.device)
    training = training_options(options, options.epochs * len(batches))
    train_task(model, ROUTER, set(), tokens, batches, training, f"task {task_id}", run.steps)
    run.record(cost_records(data.dataset, task_id + 1, run.seconds, machine.device))
    adapters = {key: value for key, value in model.state_dict().items() if is_adapter_key(key)}
    save_checkpoint(run, task_id, adapters, model.activation)


if __name__ == "__main__":
    main()
