"""The class-incremental command line end to end: configurations, scripts, what a run leaves, bad input."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common import clip
from common.clip.model import CLIP, CLIPConfig
from common.evaluation.seen_classes import PooledTest, evaluate_seen
from common.incremental.scenario import Scenario
from common.runs import load_tensors
from moe_adapters.adapters import is_adapter_key, use_router
from moe_adapters.cil import ROUTER, main, parse, with_shared_router
from tests.clip_archive import save_archive
from tests.fake_data import write
from tests.metrics_json import RELEASED_KEYS, read_metrics

FOLDER = Path(__file__).parents[2] / "moe_adapters"
REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
SCRIPTS = {  # script: protocol and tasks; the TinyImageNet ones count the steps after the first 100 classes
    "run_cifar100-10-10": ("cil-cifar100-10x10", 10),
    "run_cifar100-5-5": ("cil-cifar100-20x5", 20),
    "run_cifar100-2-2": ("cil-cifar100-50x2", 50),
    "run_experiment_tiny5step": ("cil-tinyimagenet-100+5x20", 6),
    "run_experiment_tiny10step": ("cil-tinyimagenet-100+10x10", 11),
    "run_experiment_tiny20step": ("cil-tinyimagenet-100+20x5", 21),
}
TEN_TASKS = ["--config-path", "configs/class", "--config-name", "cifar100_10-10-MoE-Adapters.yaml"]
FEW_TASKS = [
    *TEN_TASKS,
    "class_order=class_orders/cifar100.yaml",
    "initial_increment=40",
    "increment=30",
    "batch_size=16",
]
QUICK = ["device=cpu", "workers=0", "no_verify=true"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Keys that name made-up data and a tiny CLIP."""
    root = tmp_path_factory.mktemp("world")
    write(root / "cifar100", ["CIFAR100"])
    write(root / "tinyimagenet", ["TinyImageNet"])
    state = torch.get_rng_state()
    torch.manual_seed(0)
    save_archive(CLIP(CLIPConfig(32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)).state_dict(), root / "ViT-tiny.pt")
    torch.set_rng_state(state)
    return [f"dataset_root={root}", f"model_name={root / 'ViT-tiny.pt'}", *QUICK]


@pytest.fixture(scope="module")
def finished(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    main([*FEW_TASKS, *world, f"save={folder}"])
    return folder


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def numbers(folder: Path) -> list[tuple]:
    measured = ("train_seconds", "peak_memory_mib")
    return [
        (line["dataset"], line["after_task"], line["metric"], line["value"])
        for line in records(folder)
        if line["metric"] not in measured
    ]


def fails(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """Run with bad input: exit code 2, and one message on stderr without a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


# Configurations and scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_its_protocol_to_the_end(
    script: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The shell tells the command it would start, which then runs in this process."""
    command = ["bash", str(FOLDER / "scripts" / "cil" / f"{script}.sh"), *world, f"save={tmp_path / 'run'}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHON": "echo"})
    assert told.stdout.startswith("-m moe_adapters.cil ")
    main(told.stdout.split()[2:])
    protocol, tasks = SCRIPTS[script]
    lines, closing = read_metrics(tmp_path / "run" / "metrics.json")
    assert len(lines) == tasks and closing is not None
    assert {line["protocol"] for line in records(tmp_path / "run")} == {protocol}
    assert f"{protocol}: Avg {closing['avg']:.2f}, Last {closing['last']:.2f}" in capsys.readouterr().out
    assert load_tensors(tmp_path / "run" / f"task_{tasks - 1}.pth")["protocol"] == protocol


@pytest.mark.parametrize(
    ("name", "batch_size", "folder"),
    [
        ("cifar100_10-10-MoE-Adapters", 128, "cifar100_10-10-MoE-Adapters"),
        ("cifar100_5-5-MoE-Adapters", 128, "cifar100_5-5-MoE-Adapters"),
        ("cifar100_2-2-MoE-Adapters", 64, "cifar100_2-2-MoE-Adapters-0.0"),
        ("tinyimagenet_100-5", 64, "tinyimagenet_100-5-MoE-Adapters"),
        ("tinyimagenet_100-10", 64, "tinyimagenet_100-10-MoE-Adapters"),
        ("tinyimagenet_100-20", 64, "tinyimagenet_100-20-MoE-Adapters"),
    ],
)
def test_configurations_hold_the_originals_values(name: str, batch_size: int, folder: str) -> None:
    given = ["dataset_root=data", "class_order=class_orders/cifar100.yaml"]
    options = parse(["--config-path", "configs/class", "--config-name", f"{name}.yaml", *given])
    assert options.batch_size == batch_size and options.hydra.run.dir == f"./experiments/class/{folder}"
    assert (options.lr, options.ls, options.weight_decay, options.warmup, options.epochs) == (1e-3, 0.0, 0.0, 30, 1)
    assert (options.method, options.eval_transform, options.eval_noise) == ("MoE-Adapters", "train", True)
    assert options.prompt_template == "a bad photo of a {}." and options.model_name == "ViT-B/16"


def test_keys_that_the_original_ignores_are_taken_and_told(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main([*FEW_TASKS, *world, f"save={tmp_path}", "method=zeroshot", "ref_sentences=random", "l2=1"])
    said = capsys.readouterr().out
    told = ", ".join(f"{key} (upstream never reads it)" for key in ("l2", "ref_sentences"))
    assert f"note: without effect: {told}\n" in said


# What a run leaves


def test_metrics_checkpoints_and_records(finished: Path) -> None:
    lines, closing = read_metrics(finished / "metrics.json")
    assert [line["task"] for line in lines] == [0, 1, 2]
    assert all(tuple(line) == (*RELEASED_KEYS, "forgetting_std", "bwt_std") for line in lines)
    found = numbers(finished)
    accuracies = [value for _, _, metric, value in found if metric == "accuracy"]
    assert [round(value, 2) for value in accuracies] == [line["acc"] for line in lines]
    summary = {metric: value for _, _, metric, value in found}
    assert summary["avg"] == pytest.approx(np.mean(accuracies)) and summary["last"] == accuracies[-1]
    assert round(summary["avg"], 2) == closing["avg"]
    assert {path.name for path in finished.glob("*.pth")} == {*(f"task_{k}.pth" for k in range(3)), "predictions.pth"}
    assert (finished / "accuracy.csv").exists() and (finished / "accuracy.png").exists()
    label = records(finished)[0]
    assert (label["paper"], label["method"], label["scale"]) == ("moe_adapters", "MoE-Adapters", "paper")


def test_checkpoints_hold_the_adapters_which_all_tasks_train(finished: Path) -> None:
    content = [load_tensors(finished / f"task_{task}.pth") for task in range(3)]
    assert {part["protocol"] for part in content} == {"cil-cifar100-40+2x30"}
    first, *_, last = (part["state_dict"] for part in content)
    assert all(is_adapter_key(name) for name in first)
    assert not any(name.endswith(("router_list.1", "ln_3.weight")) for name in first)
    for part in ("adaptmlp_list.0.up_proj.weight", "adaptmlp_list.1.up_proj.weight", "router_list.0", "w_noise_list.0"):
        name = f"visual.transformer.resblocks.0.{part}"
        assert not torch.equal(first[name], last[name])


def test_the_seed_decides_every_number(world: list[str], finished: Path, tmp_path: Path) -> None:
    main([*FEW_TASKS, *world, f"save={tmp_path / 'again'}"])
    main([*FEW_TASKS, *world, f"save={tmp_path / 'other'}", "seed=7"])
    for task in range(3):
        one, again, other = (
            load_tensors(folder / f"task_{task}.pth")["state_dict"]
            for folder in (finished, tmp_path / "again", tmp_path / "other")
        )
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)
    assert numbers(tmp_path / "again") == numbers(finished)


def test_the_same_command_again_changes_nothing(world: list[str], finished: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.glob("task_*.pth")}
    log, found = (finished / "metrics.json").read_text(), numbers(finished)
    main([*FEW_TASKS, *world, f"save={finished}"])
    assert {path.name: path.stat().st_mtime_ns for path in finished.glob("task_*.pth")} == before
    assert (finished / "metrics.json").read_text() == log and numbers(finished) == found


def test_zero_shot_trains_nothing_and_is_the_original_clip(world: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    main([*FEW_TASKS, *world, f"save={run}", "method=zeroshot", "eval_transform=test"])
    assert not list(run.glob("task_*.pth"))
    assert records(run)[0]["method"] == "Continual-CLIP (centre-crop test)"
    # without training and noise every adapter adds exactly nothing
    main([*FEW_TASKS, *world, f"save={tmp_path / 'still'}", "lr=1e-30", "eval_noise=false", "eval_transform=test"])
    assert (run / "metrics.json").read_text() == (tmp_path / "still" / "metrics.json").read_text()
    assert records(tmp_path / "still")[0]["method"] == "MoE-Adapters (no eval noise, centre-crop test)"


# The noise of evaluation


def seen_set() -> tuple[torch.Tensor, PooledTest]:
    """150 noisy pictures of the miniature's size under ten of its labels, with prompts of random words."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (150, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = torch.utils.data.TensorDataset(pixels)
    images.labels = torch.randint(0, 10, (150,), generator=generator).tolist()
    tokens = torch.randint(1, 49406, (10, 6), generator=generator)
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    return tokens, PooledTest(images, Scenario(range(10), 5, 5), "test", 64, pixels=pixels)


def random_adapters() -> CLIP:
    torch.manual_seed(3)
    model = with_shared_router(clip.load("mini")[0])
    for name, parameter in model.named_parameters():
        if is_adapter_key(name):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_texts_once_a_task_are_texts_once_a_batch_without_noise() -> None:
    model = random_adapters()
    tokens, test = seen_set()
    use_router(model, ROUTER, noise=False)
    once = evaluate_seen(model, tokens, test, 1, 0)
    each = evaluate_seen(model, tokens, test, 1, 0, text_per_batch=True)
    assert len(set(once.predictions.tolist())) > 1
    assert all(np.array_equal(a, b) for a, b in zip(once, each))


def test_real_cifar100_images_run_resume_and_are_recorded(tmp_path: Path) -> None:
    """Cut copies of the published files; random weights, so that only the path is tested."""
    if not (REAL_DATA / "cifar100").is_dir():
        pytest.skip("the small real data is not here")
    torch.manual_seed(0)
    save_archive(CLIP(CLIPConfig(32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)).state_dict(), tmp_path / "tiny.pt")
    real = [*TEN_TASKS, "class_order=class_orders/cifar100.yaml", f"dataset_root={REAL_DATA}", *QUICK]
    real += [f"model_name={tmp_path / 'tiny.pt'}", f"save={tmp_path / 'run'}"]
    main(real)
    lines, closing = read_metrics(tmp_path / "run" / "metrics.json")
    assert len(lines) == 10 and closing is not None
    content = load_tensors(tmp_path / "run" / "predictions.pth")
    assert len(content["labels"][-1]) == 916
    found = numbers(tmp_path / "run")
    for name in ("task_9.pth", "metrics.json", "run-checksums"):  # a run that lost its last task takes it up again
        (tmp_path / "run" / name).unlink()
    torch.save({key: parts[:9] for key, parts in content.items()}, tmp_path / "run" / "predictions.pth")
    main(real)
    assert numbers(tmp_path / "run") == found and read_metrics(tmp_path / "run" / "metrics.json") == (lines, closing)


# Bad input: one clear message, exit code 2, nothing half-written


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["increment=35"], "increment 35 does not divide the 60 classes"),
        (["initial_increment=101"], "initial_increment 101"),
        (["method=MoE-Adapter"], "method MoE-Adapter: unknown. Did you mean MoE-Adapters?"),
        (["batchsize=3"], "batchsize: unknown option. Did you mean batch_size?"),
        (["lr=fast"], "lr fast: a number is expected."),
        (["eval_noise=some"], "eval_noise"),
        (["eval_transform=centre"], "Known are train, test"),
        (["prompt_template=a_photo"], "prompt_template a_photo: give {} once"),
        (["class_order=class_orders/tinyimagenet.yaml", "initial_increment=100", "increment=20"], "200 classes"),
        (["class_order=class_orders/cifar10.yaml"], "class_orders/cifar10.yaml"),
        (["dataset_root=nowhere", "model_name=ViT-B/8"], "ViT-B/8"),
    ],
)
def test_what_makes_no_sense_is_refused(
    overrides: list[str], said: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert said in fails(capsys, [*FEW_TASKS, *world, f"save={tmp_path / 'run'}", *overrides])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("order", "said"),
    [([*range(99)], "99"), ([*range(99), 0], "more than once and never 99"), ([*range(99), 100], "100 is not")],
)
def test_class_orders_that_are_none(
    order: list[int], said: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "order.yaml").write_text(yaml.safe_dump({"class_order": order}))
    several = ["initial_increment=39", "increment=30"] if len(order) == 99 else []
    arguments = [*FEW_TASKS, *world, f"class_order={tmp_path / 'order.yaml'}", f"save={tmp_path / 'run'}", *several]
    assert said in fails(capsys, arguments)
    assert not (tmp_path / "run").exists()


def test_folder_of_another_configuration(world: list[str], finished: Path, capsys: pytest.CaptureFixture) -> None:
    before = (finished / "metrics.json").read_bytes()
    message = fails(capsys, [*FEW_TASKS, *world, f"save={finished}", "increment=20"])
    assert "increment: 30 there, 20 now" in message
    assert (finished / "metrics.json").read_bytes() == before


def test_metrics_that_no_run_here_made(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "metrics.json").write_text("{}\n")
    assert "metrics.json" in fails(capsys, [*FEW_TASKS, *world, f"save={tmp_path}"])
    assert (tmp_path / "metrics.json").read_text() == "{}\n"


def test_damaged_checkpoint(world: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in finished.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    whole = (run / "task_2.pth").read_bytes()
    (run / "task_2.pth").write_bytes(whole[: len(whole) // 2])
    message = fails(capsys, [*FEW_TASKS, *world, f"save={run}"])
    assert "task_2.pth is not a readable checkpoint" in message
