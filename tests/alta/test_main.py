"""The entry point: the configurations and scripts from data to record, what it refuses, how a stopped run goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from alta.buffer import Buffer
from alta.heads import METHODS, Head
from alta.learner import build_clip
from alta.main import main
from alta.options import parse
from common.errors import UserError
from common.machine import Machine
from results.records import read_file
from results.labels import sheet
from tests.alta.conftest import CONFIGS

SCRIPTS = CONFIGS.parent / "scripts"
PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*_*.yaml"))
COOP = {"N_CTX": 4, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end"}
IL_CIFAR100 = ["--config-file", str(CONFIGS / "il_cifar100.yaml")]
TIMES = ("train_seconds", "peak_memory_mib")  # measured, not computed


def lines(folder):
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def value(folder, protocol, metric, after, dataset="CIFAR100"):
    (line,) = [line for line in lines(folder) if (line["protocol"], line["metric"], line["after_task"], line["dataset"])
               == (protocol, metric, after, dataset)]  # fmt: skip
    return line["value"]


def words_of(script, *more):
    """The arguments that a script hands to alta.main, one list a call."""
    environment = {**os.environ, "PYTHON": "echo"}
    said = subprocess.run(
        ["bash", SCRIPTS / script, *more], capture_output=True, text=True, env=environment, check=True
    )
    calls = [shlex.split(line) for line in said.stdout.splitlines()]
    assert all(call[:2] == ["-m", "alta.main"] for call in calls)
    return [call[2:] for call in calls]


# Configurations and scripts


def test_the_nine_configurations():
    """Same keys and values but for the six that tell them apart; the schedule's trap included."""
    assert PUBLISHED == sorted(
        f"{mode}_{data}" for mode in ("il", "sgd", "joint") for data in ("cifar10", "cifar100", "tiny")
    )
    for name in PUBLISHED:
        options, mode = parse(["--config-file", str(CONFIGS / f"{name}.yaml")]), name.split("_")[0]
        data, classes = options.dataset, {"cifar10": 10, "cifar100": 100, "tiny": 200}[name.split("_")[1]]
        assert data.n_tasks * data.n_classes_per_task == classes == options.train.num_classes
        assert (data.n_tasks == 1) == (mode == "joint") and data.image_size is None
        assert asdict(options.model) == {"pretrained": True, "use_replay": mode == "il"}
        optim = options.OPTIM
        assert (optim.LR, optim.WARMUP_CONS_LR, optim.MAX_EPOCH) == (0.002, 1e-5, 100 if mode == "joint" else 30)
        assert optim.NEW_LAYERS == "()" and optim.MOMENTUM == 0.9 and optim.WEIGHT_DECAY == 5e-4
        coop = {"N_CTX": 4, "CTX_INIT": "a photo of a", "CLASS_TOKEN_POSITION": "end", "CSC": False}
        assert asdict(options.TRAINER.COOP) == coop
        train = {"batch_size": 32, "alpha": 0.4, "beta": 0.4, "num_classes": 0}
        assert asdict(options.train) | {"num_classes": 0} == train
        assert asdict(options.eval) == {"test_epochs": 10, "batch_size": 32}


def test_the_originals_defaults():
    options = parse(IL_CIFAR100)
    told = (options.method, options.il_setting, options.visual, options.buffer_size, options.seed, options.lr_policy)
    assert told == ("oritext_mlp2cprompt_oriimg", "class-il", "RN50", 200, 42, "released")


def test_keys_of_the_configuration_are_options_too():
    """From left to right, over the file; so does the miniature where it stands."""
    options = parse([*IL_CIFAR100, "OPTIM.LR=0.1", "--train.alpha", "1", "--set", "TRAINER.COOP.CTX_INIT=one"])
    assert (options.OPTIM.LR, options.train.alpha, options.TRAINER.COOP.CTX_INIT) == (0.1, 1.0, "one")
    epochs = [
        parse([*IL_CIFAR100, *words]).OPTIM.MAX_EPOCH
        for words in (["--scale", "mini", "OPTIM.MAX_EPOCH=2"], ["OPTIM.MAX_EPOCH=2", "--scale", "mini"])
    ]
    assert epochs == [2, 15]


def test_a_configuration_of_one_task_stays_one_on_the_miniature():
    joint = ["--config-file", str(CONFIGS / "joint_tiny.yaml")]
    for words, masked in ([], None), (["--joint_task_classes", "20"], 4):
        options = parse([*joint, *words, "--scale", "mini"])
        assert (options.dataset.n_tasks, options.dataset.n_classes_per_task) == (1, 40)
        assert options.joint_task_classes == masked and options.OPTIM.MAX_EPOCH == 15


@pytest.mark.parametrize("script", sorted({path.name for path in SCRIPTS.glob("*.sh")} - {"common.sh"}))
def test_scripts_are_commands_of_both_scales(script):
    for call in words_of(script):
        options = parse(call)
        assert options.scale == "paper" and options.dataset.n_tasks in (1, 5, 10)
    for call in words_of(script, "--scale", "mini"):
        options = parse(call)
        assert options.visual == options.dataset.name == "mini"
        assert options.joint_task_classes in (None, 4) and options.dataset.n_tasks in (1, 10)


def test_all_methods_script_runs_each_method():
    calls = words_of("all_methods.sh", "il_cifar10", "--seed", "3")
    assert {parse(call).method for call in calls} == set(METHODS) and len(calls) == 10
    assert {(parse(call).seed, call[1]) for call in calls} == {(3, "alta/configs/il_cifar10.yaml")}


# Runs


@pytest.mark.parametrize(
    ("script", "visual"),
    [
        ("cifar100_rn50.sh", "RN50"),
        ("cifar100_vit_b16.sh", "ViT-B/16"),
        ("tiny_rn50.sh", "RN50"),
        ("cifar10_rn50.sh", "RN50"),
    ],
)
def test_a_scripts_run(configured, tmp_path, capsys, script, visual):
    """Both towers, all three data sets, from images to record, under the script's own flags."""
    (call,) = words_of(script)
    name = Path(call[1]).stem
    main([*call, *configured(name, visual[:3] if visual[0] == "V" else "RN"), "--il_setting", "task-il"])
    folder, parts = tmp_path / "run", parse(["--config-file", str(tmp_path / f"{name}.yaml")]).dataset
    tasks, size = parts.n_tasks, parts.n_classes_per_task
    data = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny": "TinyImageNet"}[name.split("_")[1]]
    assert [path.name for path in sorted(folder.glob("task_*.pth"))] == [f"task_{task}.pth" for task in range(tasks)]
    records, problems = read_file(folder / "record.jsonl")
    assert not problems
    assert {(line.method, line.backbone, line.scale) for line in records} == {("ALTA", visual, "paper")}
    protocols = [f"{kind}-{data.lower()}-{tasks}x{size}" for kind in ("cil", "til")]
    assert {line.protocol for line in records} == set(protocols)
    for kind, protocol in zip(("class-il", "task-il"), protocols):
        rows = [
            [value(folder, protocol, "task_accuracy", t + 1, f"task {i}") for i in range(t + 1)] for t in range(tasks)
        ]
        means = [value(folder, protocol, "accuracy", t + 1, data) for t in range(tasks)]
        assert means == pytest.approx([sum(row) / len(row) for row in rows])
        assert value(folder, protocol, "last", tasks, data) == means[-1]
        assert value(folder, protocol, "avg", tasks, data) == pytest.approx(sum(means) / tasks)
        falls = [max(row[i] for row in rows[i:]) - rows[-1][i] for i in range(tasks - 1)]
        assert value(folder, protocol, "forgetting", tasks, data) == pytest.approx(sum(falls) / len(falls))
        assert value(folder, protocol, "trainable_parameters", tasks, data) == 4 * 64 + (32 * 2 + 2 + 2 * 32 + 32)
        assert (folder / f"accuracy_{kind}.csv").exists() and (folder / f"accuracy_{kind}.png").exists()
    said = re.findall(r"---model--- mean_acc: ([\d.]+)", capsys.readouterr().out)
    assert len(said) == tasks * 2  # after each of two epochs, as the original prints
    assert float(said[-1]) == pytest.approx(value(folder, protocols[1], "last", tasks, data) / 100, abs=1e-4)
    state = torch.load(folder / f"task_{tasks - 1}.pth", weights_only=True)
    within = [f"prompt_learner.mlp_visual.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
    assert list(state["state_dict"]) == ["prompt_learner.ctx", *within]
    assert state["frozen_prompts"].shape == ((tasks - 1) * size, 77, 64)
    assert not (folder / "state.pth").exists()


def test_numbers_land_on_the_sheets_of_both_settings():
    assert sheet("til-cifar100-10x10") == sheet("cil-cifar10-5x2") == sheet("cil-tinyimagenet-10x20-buffer500")
    assert sheet("cil-cifar100-10x10") == "CIL CIFAR-100"


def test_all_classes_at_once(run):
    """Task-IL masks nothing where there is one task; the picture of representations is drawn where it is asked for."""
    folder = run("joint_cifar100", "--tsne")
    assert value(folder, "cil-cifar100-1x100", "last", 1) == value(folder, "til-cifar100-1x100", "last", 1)
    assert (folder / "tsne.png").exists()


def test_half_precision_on_the_cpu(run):
    folder = run("il_cifar100", "--precision", "fp16", visual="RN50", OPTIM={"MAX_EPOCH": 1})
    state = torch.load(folder / "task_1.pth", weights_only=True)
    kinds = [*state["state_dict"].values(), state["frozen_prompts"], *state["buffer"]["fields"].values()]
    assert {tensor.dtype for tensor in kinds} == {torch.float16, torch.int64}
    assert {entry["momentum_buffer"].dtype for entry in state["optimizer"]["state"].values()} == {torch.float16}
    assert yaml.safe_load((folder / "config.yaml").read_text())["settings"]["encoding"] == "full"


@pytest.mark.parametrize(("precision", "kept"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_batch_norms_are_folded_in_float32_alone(configured, precision, kept):
    options = parse([*configured("il_cifar100", "RN"), "--visual", "RN50", "--precision", precision])
    clip = build_clip(options, Machine(torch.device("cpu")))
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in clip.modules()) == kept


@pytest.mark.parametrize("visual", ["mini", "mini-rn"])
def test_the_miniature(tmp_path, visual):
    preset = [
        "--config-file",
        str(CONFIGS / "il_cifar100.yaml"),
        "--scale",
        "mini",
        "--visual",
        visual,
        "--method",
        "zeroshot",
    ]
    main([*preset, "--save", str(tmp_path / "run"), "--device", "cpu"])
    folder = tmp_path / "run-mini"
    assert {line["scale"] for line in lines(folder)} == {"mini"}
    settings = yaml.safe_load((folder / "config.yaml").read_text())["settings"]
    assert settings["lr_policy"] == "task_cosine" and settings["OPTIM"]["MAX_EPOCH"] == 15
    assert settings["train"] == {"batch_size": 32, "alpha": 0.4, "beta": 0.4, "num_classes": 100}
    last = value(folder, "til-characters-10x4", "last", 10, "Characters")
    assert last > (90 if visual == "mini" else 45)  # of four classes; the ResNet is fitted in seconds


# What is refused


@pytest.mark.parametrize(
    ("changes", "flags", "told"),
    [
        ({"dataset": {"image_size": 224}}, [], "image_size 224, but ViT-B/16 takes images of 32 pixels"),
        ({"dataset": {"n_tasks": 3}}, [], "which dataset.n_tasks 3 of dataset.n_classes_per_task 50 do not"),
        ({"dataset": {"name": "seq-cifar10O"}}, [], r"name seq-cifar10O: unknown. Did you mean seq-cifar10"),
        ({"OPTIM": {"LRR": 1}}, [], r"yaml: OPTIM.LRR: unknown option. Did you mean OPTIM.LR\?"),
        ({"train": {"alfa": 1}}, [], r"yaml: train.alfa: unknown option. Did you mean train.alpha\?"),
        ({"OPTIM": {"LR": "fast"}}, [], "yaml: OPTIM.LR fast: a number is expected"),
        ({"OPTIM": {"MAX_EPOCH": 1.5}}, [], "yaml: OPTIM.MAX_EPOCH 1.5: a whole number is expected"),
        ({"OPTIM": {"NAME": "adam"}}, [], "OPTIM.NAME adam: unknown. Known are sgd."),
        ({"OPTIM": {"STAGED_LR": True}}, [], "OPTIM.STAGED_LR True: unknown. Known are False."),
        ({"OPTIM": {"WARMUP_RECOUNT": False}}, [], "OPTIM.WARMUP_RECOUNT False: unknown. Known are True."),
        ({"OPTIM": {"WARMUP_TYPE": "linear"}}, [], "WARMUP_TYPE linear: unknown. Known are constant."),
        ({"OPTIM": {"SGD_NESTEROV": True, "SGD_DAMPNING": 0.1}}, [], "SGD_NESTEROV: it needs"),
        ({"OPTIM": {"SGD_NESTEROV": True, "MOMENTUM": 0}}, [], "SGD_NESTEROV: it needs"),
        ({"model": {"pretrained": False}}, [], "pretrained False"),
        ({"TRAINER": {"COOP": COOP | {"CTX_INIT": "a hand-made photo"}}}, [], "must be one token"),
        ({"TRAINER": {"COOP": COOP | {"CLASS_TOKEN_POSITION": "ends"}}}, [], r"ends: unknown. Did you mean end\?"),
        ({}, ["dataset=x"], "dataset: unknown option. Did you mean dataset.name"),
        ({}, ["model.use_replay=5"], "model.use_replay 5: true or false is expected"),
        ({"model": {"use_replay": "often"}}, [], "model.use_replay often: true or false is expected"),
        ({}, ["OPTIM.LR=0"], "OPTIM.LR 0.0: give more than 0"),
        ({}, ["--dataset.n_tasks", "0"], "--dataset.n_tasks 0: give 1 or more"),
        ({}, ["TRAINER.COOP.N_CTX=71"], "N_CTX 71: give 1 or more, at most 70"),
        ({}, ["train.beta=-1"], "train.beta -1.0: give 0 or more"),
        ({}, ["--seed", "4294967296"], "--seed 4294967296: give 0 or more, at most 4294967295"),
        ({}, ["--buffer_size", "0"], "--buffer_size 0, but oritext_mlp2cprompt_oriimg replays"),
        ({}, ["--method", "oritext_mlp"], r"oritext_mlp: unknown. Did you mean oritext_mlp2cprompt_oriimg\?"),
        ({}, ["--il_setting", "class"], r"--il_setting class: unknown. Did you mean class-il\?"),
        ({}, ["--visual", "VIT-B/16"], r"--visual VIT-B/16: unknown. Did you mean ViT-B/16\?"),
        ({}, ["--visual", "RN50"], "--visual RN50, but .*ViT.pt holds a ViT"),
        ({}, ["--joint_task_classes", "10"], "for configurations of one task"),
        ({}, ["--cifar100_dir", "nowhere", "--model", "nothing.pt"], "(?s)CIFAR100.*nowhere.*'nothing.pt': neither a"),
        ({}, ["--config-file", "il_cifar1000.yaml"], "Did you mean alta/configs/il_cifar100.yaml"),
    ],
)
def test_refused_with_one_message(configured, capsys, changes, flags, told):
    visual = [] if "--visual" in flags else ["--visual", "ViT-B/16"]
    with pytest.raises(SystemExit) as stop:
        main([*configured("il_cifar100", **changes), *visual, *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and re.search(told, said), said
    assert "Traceback" not in said and (said.count("\n") == 1 or "--cifar100_dir" in flags)  # which tells two files


@pytest.mark.parametrize("missing", ["dataset", "OPTIM.LR", "TRAINER.COOP.CTX_INIT", "eval.test_epochs"])
def test_missing_keys_and_sections_are_told_together(tmp_path, missing):
    content = yaml.safe_load((CONFIGS / "il_cifar100.yaml").read_text())
    *path, last = missing.split(".")
    place = content
    for name in path:
        place = place[name]
    del place[last], content["train"]["beta"]
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=f"--{missing}.*: missing") as error:
        parse(["--config-file", str(tmp_path / "cut.yaml")])
    assert "--train.beta" in str(error.value)


# Stopped and taken up again


def comparable(folder):
    return [(line["protocol"], line["dataset"], line["after_task"], line["metric"], line["value"])
            for line in lines(folder) if line["metric"] not in TIMES]  # fmt: skip


def same(one, other):
    """Two checkpoints, tensors and all, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class PowerFailed(BaseException):
    pass


def test_stopped_and_taken_up_again(configured, tmp_path, monkeypatch):
    """Interrupted by Ctrl-C, then crashed in the middle of steps and of evaluations: the same bits in the end."""
    command = [*configured("il_cifar100", OPTIM={"MAX_EPOCH": 6}, train={"batch_size": 16}), "--visual", "ViT-B/16"]
    command += ["--lr_policy", "global_cosine", "--buffer_size", "25"]
    main([*command, "--save", str(tmp_path / "whole")])
    broken = [*command, "--save", str(tmp_path / "broken"), "--save-interval", "0"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where the tests run with Ctrl-C ignored
    process = subprocess.Popen([sys.executable, "-m", "alta.main", *broken], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, preexec_fn=heard)  # fmt: skip
    for line in process.stdout:
        if line.startswith("---model---"):  # in the first task
            process.send_signal(signal.SIGINT)
            break
    said = process.stdout.read()
    assert process.wait() == 130 and "Traceback" not in said, said
    for place, name, calls in (
        (Buffer, "add_data", 9),
        (Head, "texts", 17),
        (Buffer, "add_data", 30),
        (Head, "snapshot", 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), calls))
            try:
                main(broken)
            except PowerFailed:
                pass
    main(broken)
    whole, again = tmp_path / "whole", tmp_path / "broken"
    assert comparable(whole) == comparable(again)
    for task in (0, 1):
        one, other = (torch.load(folder / f"task_{task}.pth", weights_only=True) for folder in (whole, again))
        assert same(one, other), task


def failing(plain, calls):
    """`plain`, until it has been called so often."""
    left = [calls]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise PowerFailed
        return plain(*args, **kwargs)

    return wrapped


def test_the_same_command_again_computes_nothing(run, monkeypatch, capsys):
    folder = run("il_cifar100", OPTIM={"MAX_EPOCH": 1})
    before = lines(folder)
    monkeypatch.setattr(Head, "features", failing(None, 0))
    run("il_cifar100", "--il_setting", "task-il", OPTIM={"MAX_EPOCH": 1})  # which decides no number
    assert lines(folder) == before
    with pytest.raises(SystemExit):
        run("il_cifar100", "--seen_only", OPTIM={"MAX_EPOCH": 1})
    assert "seen_only: False there, True now" in capsys.readouterr().err
    for file in {*folder.iterdir()} - {folder / "accuracy_task-il.csv"}:
        file.unlink()
    with pytest.raises(SystemExit):
        run("il_cifar100", OPTIM={"MAX_EPOCH": 1})
    assert "already holds accuracy_task-il.csv, which no run recorded" in capsys.readouterr().err
