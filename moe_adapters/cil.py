"""MoE-Adapters on class-incremental learning: the entry point. `python -m moe_adapters.cil --help`.

The same experts under other settings (arXiv 2403.11549, section 4.2; upstream cil/): two experts and one router a
block, shared by all tasks, nothing frozen, no DDAS, no zero-shot branch. Both experts see every sample, the router only
weighs them. The loop of a task is MTIL's (`training.py`).
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common import clip
from common.clip.model import CLIP
from common.clip.tokenizer import cut_prompts
from common.errors import exit_cleanly
from common.evaluation.metrics import CILStep
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from common.incremental.data import IncrementalData, check_inputs, load_data
from common.incremental.options import PURPOSES, CILOptions, find_configuration, missing_rules
from common.incremental.run import (
    finish_run,
    load_checkpoint,
    open_run,
    record_task,
    save_checkpoint,
    tested_steps,
)  # fmt: skip
from common.incremental.scenario import task_subset
from common.incremental.tasks import stream_seed, task_path
from common.machine import RUNS_TWICE, Machine, choose_machine
from common.options import check_rules, ignored, option, read, scale_option
from common.runs import Run
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare
from common.training.schedules import cil_cosine_with_warmup
from moe_adapters.adapters import (
    ORIGINAL_CLIP,
    image_blocks,
    insert_adapters,
    is_adapter_key,
    text_blocks,
    trainable_parameters,
    use_router,
)  # fmt: skip
from moe_adapters.training import TrainingOptions, train_adapters

EXPERTS, TOPK, BOTTLENECK = 2, 2, 64  # literals upstream (cil/clip/model.py:L289-L292)
ROUTER = 0  # the one that all tasks share
TEST_BATCH = 64  # upstream cil/main.py:L55; with the noise a number of the protocol
FOLDER = Path(__file__).parent
METHODS = {"MoE-Adapters": "MoE-Adapters", "zeroshot": "Continual-CLIP"}  # as configurations and as records name them
UNREAD = "l2 ce_method we avg_freq ref_dataset ref_sentences"


@dataclass(frozen=True)
class Options(CILOptions, ignored(UNREAD, "upstream never reads it")):
    """The keys of configs/class/*.yaml. Those that are ignored stand in the originals' files."""

    scale: str = scale_option(FOLDER / "configs" / "cil_mini.yaml")
    method: str = option(help="what is learned", group="method", choices=tuple(METHODS))
    eval_noise: bool = option(True, "ours: gate noise in evaluation too, as the original; false takes it out")


def parse(argv: list[str] | None = None) -> Options:
    """Read and check the command line; raises UserError for what is unknown, missing or contradicts itself."""
    about = "MoE-Adapters (arXiv 2403.11549), class-incremental: a configuration and what overrides it."
    usage = "Try: bash moe_adapters/scripts/cil/run_cifar100-10-10.sh --scale mini."
    options = read(Options, argv, "moe_adapters.cil", about, usage, find_configuration(FOLDER))
    check_rules([(options.checkpoint_activations, f"checkpoint_activations: {RUNS_TWICE}"), *missing_rules(options)])
    return options


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options)
    check_inputs(options)
    seed_everything(options.seed)  # the experts' initial weights
    model, *_ = clip.load(options.model_name, "cpu", precision="fp32")
    prepare(machine, with_shared_router(model).to(machine.device))
    data = load_data(options, model.visual.input_resolution)
    run = open_run("moe_adapters", method_label(options), options, data, machine)
    steps = learn_and_test(run, options, machine, model, data)
    finish_run(run, data, steps, 0 if options.method == "zeroshot" else adapter_count(model))


def method_label(options: Options) -> str:
    """The method as the records name it, with what of its evaluation is not the original's."""
    trained = options.method != "zeroshot"
    changed = ["no eval noise"] if trained and not options.eval_noise else []
    changed += ["centre-crop test"] if options.eval_transform == "test" else []
    return METHODS[options.method] + (f" ({', '.join(changed)})" if changed else "")


def with_shared_router(model: CLIP) -> CLIP:
    """Insert two experts and one router into every block of both encoders, in place. Returns the model.

    Its state dict has the official keys, which here lack the unused ln_3 of MTIL's.
    """
    insert_adapters(model, EXPERTS, TOPK, BOTTLENECK, routers=1)
    for block in image_blocks(model) + text_blocks(model):
        del block.ln_3
    return model


def adapter_count(model: CLIP) -> int:
    return sum(parameter.numel() for parameter in trainable_parameters(model, ROUTER, frozen=set()).values())


def learn_and_test(run: Run, options: Options, machine: Machine, model: CLIP, data: IncrementalData) -> list[CILStep]:
    """Learn task after task, each from the weights of the one before, and test after each on all classes seen."""
    test = PooledTest(data.test, data.scenario, options.eval_transform, TEST_BATCH, machine.workers)
    steps = tested_steps(run)
    trains = options.method != "zeroshot"
    if trains and steps:
        load_adapters(run, model, len(steps) - 1)
    for task_id in range(len(steps), len(data.scenario.tasks)):
        if trains and task_path(run.folder, task_id).exists():
            load_adapters(run, model, task_id)
        elif trains:
            learn_task(run, options, machine, model, data, task_id)
        started = time.monotonic()
        steps.append(evaluate_task(options, model, data, test, task_id))
        record_task(run, data, steps, time.monotonic() - started, options.log_path)
    return steps


def load_adapters(run: Run, model: CLIP, task_id: int) -> None:
    """Put the adapters in place that task `task_id` ended with."""
    model.load_state_dict(load_checkpoint(run, task_id), strict=False)


def learn_task(run: Run, options: Options, machine: Machine, model: CLIP, data: IncrementalData, task_id: int) -> None:
    """Train experts and router on one task, by cross-entropy over the task's own classes, and save them.

    The checkpoint holds the adapters under their official keys; CLIP itself never changes.
    """
    task, seed = data.scenario.tasks[task_id], stream_seed(options.seed, task_id, "training", PURPOSES)
    examples = task_subset(data.train, data.scenario, task_id)
    examples.labels = [label - task.start for label in examples.labels]
    device = machine.device
    seed_everything(seed)
    batches = Batches(examples, options.batch_size, seed, machine.workers, device)
    prompts = cut_prompts(data.tokens[task.start : task.stop]).to(device)
    about = training_options(options, options.epochs * len(batches))
    train_adapters(model, ROUTER, set(), prompts, batches, about, f"task {task_id}", run.steps)
    run.record(cost_records(data.dataset, task_id + 1, run.seconds, device))
    save_checkpoint(run, task_id, {key: value for key, value in model.state_dict().items() if is_adapter_key(key)})


def training_options(options: Options, total: int) -> TrainingOptions:
    """One task's training in MTIL's terms: total + 1 steps, the image encoder first, noise in the gates."""
    return TrainingOptions(
        lr=options.lr,
        iterations=total,
        warmup=options.warmup,
        label_smoothing=options.ls,
        weight_decay=options.weight_decay,
        image_first=True,
        schedule=cil_cosine_with_warmup,
    )


def evaluate_task(options: Options, model: CLIP, data: IncrementalData, test: PooledTest, task_id: int) -> CILStep:
    """Predictions for all test images of the classes seen so far.

    Quirk `eval_noise`: upstream the gate noise stays on, and every batch of 64 images meets class texts under noise of
    their own (cil/clip/model.py:L14-L15, L629-L632). Without it the texts are encoded once.
    """
    seed, zero_shot = stream_seed(options.seed, task_id, "evaluation", PURPOSES), options.method == "zeroshot"
    noisy = options.eval_noise and not zero_shot
    use_router(model, ORIGINAL_CLIP if zero_shot else ROUTER, noise=noisy)
    return evaluate_seen(model, data.tokens, test, task_id, seed, text_per_batch=noisy)


if __name__ == "__main__":
    main()
