"""ALTA, its eight sister methods and zero-shot CLIP: the entry point. `python -m alta.main --help`.

One run learns its tasks in order and evaluates after each on the test sets of all tasks so far, class-IL and task-IL:
training is the same for both, so one run records both protocols. The same command again goes on where it stopped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alta.buffer import Buffer
from alta.data import SOURCES, load, load_clip, require, weights_of
from alta.evaluation import Features, accuracies, draw_tsne
from alta.heads import METHODS, Head, PromptOptions
from alta.options import CONFIGS, Options, data_folder, parse, replays
from alta.training import Rate, TrainingOptions, train_task
from common import runs
from common.clip.model import CLIP, ModifiedResNet
from common.datasets.images import ImageSet
from common.errors import UserError, all_checked, exit_cleanly
from common.evaluation.metrics import backward_transfer_alta, forgetting_alta
from common.evaluation.report import metric_lines, run_title, save_matrix, task_accuracy_lines, task_accuracy_matrix
from common.incremental.features import features_in_order
from common.incremental.scenario import Scenario, require_images, task_subset
from common.incremental.sets import find
from common.incremental.tasks import stream_seed, task_path, unfinished_tasks
from common.machine import Machine, choose_machine
from common.mini import MINI, ON_SCALE, scale_of
from common.options import read_file, settings
from common.protocols import Protocol
from common.runs import Run, file_md5, load_tensors, mini_folder, save_tensors
from common.training.batches import Batches
from common.training.device import cost_records, seed_everything
from common.training.numerics import prepare

SETTINGS = {"class-il": "cil", "task-il": "til"}


@dataclass
class Learned:
    """What a run carries from task to task; tests: the test sets' features, as far as they were asked for."""

    head: Head
    tasks: Scenario
    data: ImageSet
    optimizer: torch.optim.Optimizer | None  # None for zero-shot CLIP
    buffer: Buffer | None
    tests: list[Features] = field(default_factory=list)


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    machine = choose_machine(options, num_workers=options.dataset.num_workers)
    name, folder = options.dataset.name, data_folder(options)
    verify, weights = not options.no_verify, (options.visual, options.clip_weights)
    all_checked([lambda: require(name, folder, verify), lambda: weights_of(*weights)])
    seed_everything(options.seed)  # the adapter's initial weights
    learned = build(options, machine)
    run = open_run(options, machine, learned)
    unfinished = unfinished_tasks(
        len(learned.tasks.tasks), lambda task: is_done(run, task), lambda task: read_task(run, learned, task)
    )
    for task in unfinished:
        if task_path(run.folder, task).exists():
            read_task(run, learned, task)
        else:
            learn_task(run, options, machine, learned, task)
        record_task(run, options, machine, learned, task)
    finish(run, options, machine, learned)


# What a run is made of


def precision_of(options: Options, device: torch.device) -> str:
    """What --precision comes to on a device."""
    return {"auto": "fp16" if device.type == "cuda" else "fp32"}.get(options.precision, options.precision)


def encoding_of(options: Options, device: torch.device) -> str:
    """What --encoding comes to on a device."""
    halved = precision_of(options, device) == "fp16"
    return {"auto": "full" if halved else "cut"}.get(options.encoding, options.encoding)


def build(options: Options, machine: Machine) -> Learned:
    precision, device = precision_of(options, machine.device), machine.device
    halves = "fp16" if precision == "fp16" else "fp32"  # of the weights; tf32 and bf16 are ways to compute
    clip = load_clip(options.visual, options.clip_weights, halves, device)
    check_tower(clip, options)
    prepare(machine, clip)
    resolution, verify = clip.visual.input_resolution, not options.no_verify
    data = load(options.dataset.name, data_folder(options), resolution, options.clip_norm, verify)
    size, coop, optim = options.dataset.n_classes_per_task, options.TRAINER.COOP, options.OPTIM
    tasks = Scenario(range(len(data.classnames)), size, size)
    require_images(data, tasks)
    prompts = PromptOptions(coop.CTX_INIT, coop.CLASS_TOKEN_POSITION, coop.N_CTX, coop.CSC)
    head = Head(clip, options.method, data.classnames, prompts, encoding_of(options, device))
    trained, optimizer = list(head.trained().values()), None
    if trained:
        optimizer = torch.optim.SGD(
            trained, lr=optim.LR, momentum=optim.MOMENTUM, weight_decay=optim.WEIGHT_DECAY,
            dampening=optim.SGD_DAMPNING, nesterov=optim.SGD_NESTEROV,
        )  # fmt: skip
    buffer = Buffer(options.buffer_size, options.seed, device) if replays(options) else None
    if buffer is None and options.model.use_replay and trained:
        print(f"note: {options.method} trains prompts alone and does not replay; --buffer_size has no effect")
    return Learned(head, tasks, data, optimizer, buffer)


def check_tower(clip: CLIP, options: Options) -> None:
    """Raise UserError for an image size, or a file of weights, that does not fit the tower that --visual names."""
    wanted, has = options.dataset.image_size, clip.visual.input_resolution
    if wanted not in (None, has):
        raise UserError(
            f"{options.config_file}: dataset.image_size {wanted}, but {options.visual} takes images of {has} "
            "pixels. Leave the key out, or give that number."
        )
    is_resnet = isinstance(clip.visual, ModifiedResNet)
    if options.clip_weights and is_resnet != (options.visual.startswith("RN") or options.visual in SOURCES):
        holds = "ResNet" if is_resnet else "ViT"
        told = f"--visual {options.visual}, but {options.clip_weights} holds a {holds}."
        raise UserError(f"{told} Name the tower that it holds.")


def data_label(options: Options) -> str:
    return find(options.dataset.name, data_folder(options)).label


def usual(options: Options, name: str) -> Any:
    """The value of a flag that no name speaks of: the default, or the miniature's."""
    preset = {MINI: read_file(CONFIGS / "mini.yaml")}.get(options.scale, {})
    return preset.get(name, getattr(Options, name))


def protocols(options: Options) -> dict[str, str]:
    """The protocol by il_setting, such as til-cifar100-10x10; with the buffer's size where it is not the usual one."""
    data, told = options.dataset, replays(options) and options.buffer_size != usual(options, "buffer_size")
    buffer = options.buffer_size if told else None
    sizes = (data.n_tasks, data.n_classes_per_task)
    return {setting: str(Protocol(kind, data_label(options).lower(), *sizes, buffer=buffer))
            for setting, kind in SETTINGS.items()}  # fmt: skip


def method_label(options: Options) -> str:
    """The method as records name it, and what is not as usual."""
    method, policy, masked = METHODS[options.method], options.lr_policy, options.joint_task_classes
    trains, joint = method.adapts or method.prompts, options.dataset.n_tasks == 1
    told = {
        "joint": trains and joint,
        "no replay": method.adapts and not joint and not options.model.use_replay,
        policy: trains and policy != usual(options, "lr_policy"),
        "CLIP's normalisation": options.clip_norm,
        "among classes seen": options.seen_only,
        f"masked to tasks of {masked}": masked is not None,
    }
    return ", ".join([method.label, *(words for words, said in told.items() if said)])


def run_folder(options: Options) -> str:
    """--save, or a folder that tells one run from another."""
    name = f"{Path(options.config_file).stem}-{options.method}-{options.visual.replace('/', '-')}"
    return options.save or f"runs/alta/{name}-buffer{options.buffer_size}-seed{options.seed}"


def open_run(options: Options, machine: Machine, learned: Learned) -> Run:
    scale = scale_of(options.scale, options.dataset.name, options.visual)
    device = machine.device
    decides = settings(options) | {"buffer_size": options.buffer_size if learned.buffer is not None else None}
    decides |= {"precision": precision_of(options, device), "encoding": encoding_of(options, device)}
    decides |= {"weights": file_md5(weights_of(options.visual, options.clip_weights)), "data": learned.data.fingerprint}
    folder = mini_folder(run_folder(options), scale)
    return runs.open_run(
        options, machine, folder, decides, paper="alta", method=method_label(options),
        protocol=protocols(options)["class-il"], backbone=options.visual, scale=scale, seed=options.seed,
    )  # fmt: skip


# Checkpoints


def is_done(run: Run, task: int) -> bool:
    return task_path(run.folder, task).exists() and bool(run.find(after_task=task + 1, metric="accuracy"))


def save_task(run: Run, learned: Learned, task: int) -> None:
    """What is trained under the original's keys, and what goes on into the next task."""
    head, optimizer, buffer = learned.head, learned.optimizer, learned.buffer
    content: dict[str, Any] = {"state_dict": {key: value.detach() for key, value in head.trained().items()}}
    content |= {"frozen_prompts": head.frozen_prompts, "last_context": head.last_context}
    content |= {"optimizer": optimizer and optimizer.state_dict(), "buffer": buffer and buffer.state_dict()}
    save_tensors(task_path(run.folder, task), content)


@torch.no_grad()
def read_task(run: Run, learned: Learned, task: int) -> None:
    """Put everything back to what it was after a task."""
    saved, head = load_tensors(task_path(run.folder, task)), learned.head
    for key, parameter in head.trained().items():
        parameter.copy_(saved["state_dict"][key])
    for key, context in head.last_context.items():
        context.copy_(saved["last_context"][key])
    frozen = saved["frozen_prompts"]
    head.freeze(None if frozen is None else frozen.to(head.clip.logit_scale.device))
    if learned.optimizer is not None:
        learned.optimizer.load_state_dict(saved["optimizer"])
    if learned.buffer is not None:
        learned.buffer.load_state_dict(saved["buffer"])


# A task


def learn_task(run: Run, options: Options, machine: Machine, learned: Learned, task: int) -> None:
    """Train a task, with an evaluation every so many epochs as the original has them; then its checkpoint."""
    head, optimizer, buffer = learned.head, learned.optimizer, learned.buffer
    if optimizer is not None:
        training, past = training_options(options), learned.tasks.tasks[task].start
        examples = task_subset(learned.data.train, learned.tasks, task)
        seed = stream_seed(options.seed, task)
        batches = Batches(examples, options.train.batch_size, seed, machine.workers, machine.device)

        def after_epoch(epoch: int) -> None:
            if epoch % options.eval.test_epochs == 0 and epoch < training.epochs:
                print_accuracies(test_task(options, machine, learned, task)[options.il_setting])

        stage = f"task {task}"
        log = train_task(head, task, past, batches, optimizer, buffer, training, stage, run.steps, after_epoch)
        last = slice(-len(batches), None)
        print(f"{stage}: loss {log.loss[last].mean():.3f}, training accuracy {100 * log.accuracy[last].mean():.2f}")
    run.record(cost_records(data_label(options), task + 1, run.seconds, machine.device))
    save_task(run, learned, task)


def training_options(options: Options) -> TrainingOptions:
    train, optim = options.train, options.OPTIM
    rate = Rate(options.lr_policy, optim.LR, optim.WARMUP_CONS_LR, optim.WARMUP_EPOCH, optim.MAX_EPOCH)
    return TrainingOptions(optim.MAX_EPOCH, rate, train.batch_size, train.alpha, train.beta)


def test_task(options: Options, machine: Machine, learned: Learned, task: int) -> dict[str, list[float]]:
    """By il_setting, the accuracy on each task's test set so far, as fractions."""
    tasks, size, masked = learned.tasks, options.eval.batch_size, options.joint_task_classes
    for known in range(len(learned.tests), task + 1):
        examples = task_subset(learned.data.test, tasks, known)
        learned.tests.append(features_in_order(learned.head.features, examples, size, machine))
    seen = tasks.seen(task) if options.seen_only else None
    class_il, task_il = accuracies(learned.head, learned.tests[: task + 1], tasks.increment, size, seen)
    if masked:
        features, labels = learned.tests[0]
        owners = labels // masked
        groups = [(features[owners == owner], labels[owners == owner]) for owner in owners.unique()]
        within = accuracies(learned.head, groups, masked, size)[1]
        task_il = [sum(within) / len(within)]
    return {"class-il": class_il, "task-il": task_il}


def print_accuracies(cells: list[float]) -> None:
    """The original's lines, fractions, their mean over tasks last."""
    for known, accuracy in enumerate(cells):
        print(f"---model--- task: {known} acc: {accuracy:.4f}")
    print(f"---model--- mean_acc: {sum(cells) / len(cells):.4f}", flush=True)


# Records


def record_task(run: Run, options: Options, machine: Machine, learned: Learned, task: int) -> None:
    """Evaluate and record both settings: the mean over tasks, each task's accuracy, forgetting, backward transfer."""
    cells = test_task(options, machine, learned, task)
    print_accuracies(cells[options.il_setting])
    lines, names = [], protocols(options)
    for setting, row in cells.items():
        percent, protocol = [100 * value for value in row], names[setting]
        values = {"accuracy": sum(percent) / len(percent)}
        if task > 0:
            matrix = task_accuracy_matrix(run, task + 1, protocol=protocol)
            matrix[task] = percent
            values |= {"forgetting": forgetting_alta(matrix), "bwt": backward_transfer_alta(matrix)}
        lines += metric_lines(data_label(options), task + 1, values, protocol=protocol)
        lines += task_accuracy_lines(percent, protocol=protocol)
    run.record(lines)


def finish(run: Run, options: Options, machine: Machine, learned: Learned) -> None:
    """Avg and Last, the count of trained parameters, accuracy matrices as CSV and picture; the t-SNE picture."""
    tasks, names = len(learned.tasks.tasks), protocols(options)
    trained = sum(parameter.numel() for parameter in learned.head.trained().values())
    columns = [f"task {task}" for task in range(tasks)]
    for setting, protocol in names.items():
        found = {line["after_task"]: line["value"] for line in run.find(protocol=protocol, metric="accuracy")}
        curve = [found[after] for after in range(1, tasks + 1)]
        values = {"avg": sum(curve) / len(curve), "last": curve[-1], "trainable_parameters": trained}
        run.record(metric_lines(data_label(options), tasks, values, None, protocol=protocol))
        cells, title = task_accuracy_matrix(run, tasks, protocol=protocol), run_title(run, protocol)
        save_matrix(run, cells.tolist(), columns, columns, title, f"accuracy_{setting}")
        print(f"{title}: Avg {values['avg']:.2f}, Last {values['last']:.2f}")
    if options.tsne and not run.path("tsne.png").exists():
        read_task(run, learned, tasks - 1)
        test_task(options, machine, learned, tasks - 1)
        name = f"{options.il_setting}_{options.visual}_{options.method}_{options.dataset.name}_bf{options.buffer_size}"
        title = f"t-SNE: {name}{ON_SCALE[run.labels['scale']]}"
        draw_tsne(learned.head, learned.tests, run.path("tsne.png"), title, options.seed)
    run.finish()


if __name__ == "__main__":
    main()
