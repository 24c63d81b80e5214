"""The entry point: every script from data to tables, what it refuses, and how a stopped run goes on."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import openpyxl
import pytest
import torch
import yaml

from common.evaluation.metrics import vq_prompt_metrics
from common.machine import Machine
from tests import forked
from tests.vq_prompt.conftest import EXPERIMENTS
from vq_prompt import learner as vq_learner
from vq_prompt.learner import method_name
from vq_prompt.options import CONFIGS, log_dir_of, run_seeds, scale_of
from vq_prompt.prompts import Network
from vq_prompt.report import COLUMNS, FIGURES, write_xlsx
from vq_prompt.run import main, parse

SCRIPTS = {  # script: (configurations, output folders, seeds, prompt_param, weights, methods)
    "cifar-100": (["cifar-100_prompt_vq"], ["cifar-100/10-task/vq-prompt"], [0, 1, 2, 3, 4], [10, 8, 1], ["sup1k"]),
    "cub-200": (["cub-200_prompt_vq"], ["cub-200/10-task/vq-prompt"], [0, 12, 24, 36, 48], [10, 8, 5], ["sup21k"]),
    "imagenet-r_all": (
        ["imnet-r_prompt_short_vq", "imnet-r_prompt_vq", "imnet-r_prompt_long_vq"],
        [f"ImageNet_R/{tasks}-task/vq-prompt" for tasks in (5, 10, 20)], [0, 1, 2, 3, 4], [10, 8, 1], ["sup1k"] * 3,
    ),
    "imagenet-r_vq-prompt-s": (
        ["imnet-r_prompt_short_vq", "imnet-r_prompt_vq", "imnet-r_prompt_long_vq"],
        [f"ImageNet_R/{tasks}-task/vq-prompt-s" for tasks in (5, 10, 20)], [0, 1, 2, 3, 4], [10, 8, 1], ["sup1k"] * 3,
    ),
    "imagenet-r_soft-prompt": (
        ["imnet-r_prompt_vq"], ["ImageNet_R/10-task/soft-prompt"], [0, 1, 2, 3, 4], [10, 8, 1], ["sup1k"],
    ),
    "imagenet-r_backbones": (
        ["imnet-r_prompt_vq"] * 4,
        [f"ImageNet_R/10-task/vq-prompt-{name}" for name in ("ibot1k", "dino1k", "ibot21k", "moco1k")],
        [0, 1, 2], [10, 8, 1], ["ibot1k", "dino1k", "ibot21k", "moco1k"],
    ),
    "cifar-100_ncm": (["cifar-100_prompt_vq"], ["cifar-100/10-task/ncm"], [0, 1, 2, 3, 4], [1, 1, 1], ["sup1k"]),
}  # fmt: skip
METHODS = {
    "imagenet-r_vq-prompt-s": "VQ-Prompt-S",
    "imagenet-r_soft-prompt": "Soft-Prompt",
    "cifar-100_ncm": "NCM, no prompts",
}
TIMES = ("train_seconds", "seconds_per_batch", "peak_memory_mib")  # measured, not computed


def lines(folder):
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def values(folder, metric):
    return {(line["dataset"], line["after_task"]): line["value"] for line in lines(folder) if line["metric"] == metric}


def test_scripts_ask_for_the_papers_values(asked):
    names = {path.stem for path in EXPERIMENTS.glob("*.sh") if "it_prompt" not in path.stem}
    # imagenet-r is called by imagenet-r_all with 5, 10, 20; common by the plans of common ground
    assert names == {*SCRIPTS, "imagenet-r", "common"}
    for script, (configs, folders, seeds, param, weights) in SCRIPTS.items():
        commands = asked(script)
        for found, config, folder, weight in zip(commands, configs, folders, weights, strict=True):
            options = parse(found)
            assert (options.config, options.log_dir) == (f"vq_prompt/configs/{config}.yaml", f"outputs/{folder}")
            assert (options.seeds, options.prompt_param, options.pretrained_weight) == (seeds, param, weight)
            assert run_seeds(options) == seeds and scale_of(options) == "paper"
            assert options.ca_batch_size_ratio == (2 if script == "cub-200" else 4)
            assert method_name(options) == METHODS.get(script, "VQ-Prompt")
            mini = parse([*found, "--scale", "mini"])
            assert (mini.dataroot, mini.pretrained_weight, mini.device) == ("mini", "mini", "auto")
            assert log_dir_of(mini) == f"outputs/{folder}-mini" and mini.prompt_param[1] % 2 == 0 or "ncm" in script


PUBLISHED = {  # configuration: dataset, classes a task, schedule, batch size, iter_step
    "cifar-100_prompt_vq": ("CIFAR100", 10, [80, 0, 20], 128, 40),
    "imnet-r_prompt_short_vq": ("ImageNet_R", 40, [80, 0, 20], 64, 80),
    "imnet-r_prompt_vq": ("ImageNet_R", 20, [40, 0, 20], 64, 40),
    "imnet-r_prompt_long_vq": ("ImageNet_R", 10, [20, 0, 20], 64, 20),
    "cub-200_prompt_vq": ("CUB200", 20, [20], 128, 5),
}


VQ = ["--learner_type", "prompt", "--learner_name", "VQPrompt", "--prompt_param", "10", "8", "1"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    options = parse([*VQ, "--config", f"configs/{name}.yaml"])
    dataset, size, schedule, batch, iterations = PUBLISHED[name]
    assert (options.dataset, options.first_split_size, options.other_split_size) == (dataset, size, size)
    assert (options.schedule, options.batch_size, options.iter_step) == (schedule, batch, iterations)
    assert options.schedule_type == ("cosine" if dataset == "CUB200" else "coswm")
    assert (options.lr, options.prompt_lr_mult, options.weight_decay, options.crct_epochs) == (0.0025, 5, 0, 10)
    assert (options.ca_lr, options.ca_weight_decay, options.n_centroids) == (1e-4, 5e-4, 1)


CASES = [("cifar-100", "CIFAR100", "sup1k"), ("imagenet-r_all", "ImageNet_R", "sup1k"), ("cub-200", "CUB200", "sup21k")]


@pytest.mark.parametrize("script, dataset, _", CASES)
def test_a_script_of_two_tasks(run, world, script, dataset, _):
    """From the official files over models and records to the original's tables."""
    out = run(script)
    classes = 50 if dataset == "CIFAR100" else 100
    folder, models = out / "repeat-1", out / "models" / "repeat-1"
    labels = lines(folder)[0]
    assert labels["paper"] == "vq_prompt" and labels["method"] == "VQ-Prompt"
    assert labels["protocol"] == f"cil-{dataset.lower()}-2x{classes}"
    cells, R = values(folder, "task_accuracy"), np.zeros((2, 2))
    for task, after in ((0, 1), (0, 2), (1, 2)):
        R[task, after - 1] = cells[f"task {task}", after]
    assert ((0 <= R) & (R <= 100)).all() and R.any()
    found = vq_prompt_metrics(R)
    for metric, value in (("faa", found.faa), ("caa", found.caa), ("forgetting", found.ffm)):
        assert values(folder, metric)[dataset, 2] == pytest.approx(value)
    count = values(folder, "trainable_parameters")[dataset, 2]
    assert count == 4 * (10 * 8 * 128 + 10 * 128) + 2 * classes * 129  # of the miniature's ViT, all within 0 to 4
    assert isinstance(count, int)
    state = [torch.load(models / f"task-{task}" / "class.pth", weights_only=True) for task in (1, 2)]
    assert {key.split(".")[0] for key in state[1]} == {"feat", "prompt", "last"} and not (folder / "state.pth").exists()
    moved = not torch.equal(state[0]["last.weight"][:classes], state[1]["last.weight"][:classes])
    assert moved == ("nothing to re-train on" not in (out / "output.log").read_text())
    # made-up images of one colour a class have a variance of rounding or of nothing, those of CUB-200 differ within it
    assert moved or dataset != "CUB200"
    statistics = torch.load(models / "task-2" / "statistics.pth", weights_only=True)
    assert statistics["labels"].tolist() == list(range(classes, 2 * classes))
    check_tables(out, R, found)
    split = yaml.safe_load((folder / "config.yaml").read_text())["settings"]["data"].get("split")
    assert split == ("lists" if dataset == "ImageNet_R" else None)  # however their folder is spelt
    assert not values(folder, "split_seed")


def check_tables(out, R, found):
    names = ("acc/global", "acc/pt", "fr/global", "time/global")
    accuracy, point, forgetting, seconds = (
        yaml.safe_load((out / f"results-{name}.yaml").read_text()) for name in names
    )
    assert accuracy.keys() == {"mean", "history"}  # deviations from the third repeat on
    np.testing.assert_allclose(accuracy["mean"], found.average)
    np.testing.assert_allclose(np.array(point["history"])[..., 0], R)
    np.testing.assert_allclose(forgetting["mean"], found.forgetting)
    assert np.array(seconds["history"]).shape == (2, 1) and min(seconds["mean"]) > 0
    sheet = openpyxl.load_workbook(out / "results.xlsx").active
    rows = list(sheet.iter_rows(values_only=True))
    assert list(rows[0]) == COLUMNS and len(rows) == 2
    row = dict(zip(*rows))
    assert (row["FAA_m"], row["FAA_s"], row["FR_m"]) == (pytest.approx(found.faa), 0, pytest.approx(found.ffm))
    assert row["learner_name"] == "VQPrompt" and row["save_folder"] == out.name
    assert yaml.safe_load((out / "args.yaml").read_text())["prompt_param"][:2] == [10, 8]
    assert "after task 2" in (out / "output.log").read_text()


def test_columns_are_the_originals():
    assert len(COLUMNS) == 48 and COLUMNS[:3] == ["DW", "adaptive_pred", "batch_size"]
    assert COLUMNS[40:] == ["workers", "save_folder", "FAA_m", "FAA_s", "CAA_m", "CAA_s", "FR_m", "FR_s"]
    assert COLUMNS[:41] == sorted(COLUMNS[:41])


def test_split_of_imagenet_r_is_on_record(command, world, capsys, tmp_path):
    """No lists beside the images: our rule, which the record tells, unless lists are asked for."""
    (tmp_path / "imagenet-r").mkdir()
    for path in (world / "imagenet-r").iterdir():
        if path.is_dir():
            os.symlink(path, tmp_path / "imagenet-r" / path.name)
    with pytest.raises(SystemExit):
        main(command("imagenet-r_all", dataroot=tmp_path, split="lists"))
    said = " ".join(capsys.readouterr().err.split())
    assert "imagenet-r_train.yaml can not be read (nor imagenet-r_train.txt)" in said
    flags = ["--no_ca", "--set", "max_task=1", "batch_size=64"]
    main(command("imagenet-r_all", *flags, dataroot=tmp_path / "imagenet-r"))
    assert values(tmp_path / "out-mini" / "repeat-1", "split_seed") == {("ImageNet_R", 1): 40}


def test_variants(run, tmp_path):
    """Soft prompt without statistics, on held-out images of the first task; the bound; one task of all classes."""
    few = ["dataroot=mini", "first_split_size=4", "other_split_size=4", "max_task=1", "validation=true"]
    out = run("cifar-100", "--no_ca", "--set", "quantize=false", "normalize_input=true", *few)
    labels = lines(out / "repeat-1")[0]
    method = "Soft-Prompt, normalize_input True"  # nothing but the released code's way stands in the paper's row
    assert (labels["method"], labels["protocol"]) == (method, "cil-characters-10x4-first1-validation")
    assert not list(out.rglob("statistics.pth"))
    ncm = run("cifar-100_ncm", "--overwrite", "1")
    assert lines(ncm / "repeat-1")[0]["method"] == "NCM, no prompts"
    assert values(ncm / "repeat-1", "trainable_parameters")["CIFAR100", 2] == 0
    assert values(ncm / "repeat-1", "forgetting")["CIFAR100", 2] >= 0
    joint = run("cifar-100", "--upper_bound_flag", "--overwrite", "1")
    assert lines(joint / "repeat-1")[0]["protocol"] == "joint-cifar100"
    assert not (joint / "models" / "repeat-1" / "task-2").exists()  # of what --overwrite has removed


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--prompt_param", "0", "8", "1"], "the pool needs 1 prompt or more"),
        (["--prompt_param", "10", "7", "1"], "half of a prompt goes to the keys"),
        (["--prompt_param", "10", "8"], "give pool size, prompt length and temperature"),
        (["--memory", "20"], "--memory 20: old classes' logits are at -inf"),
        (["--oracle_flag"], "--oracle_flag True: what it did is not known"),
        (["--gpuid", "0", "1"], "--gpuid 0 1: a single device only"),
        (["--learner_type", "promt"], "learner_type promt: unknown. Did you mean prompt?"),
        (["--learner_name", "VQPromt"], "learner_name VQPromt: unknown. Did you mean VQPrompt?"),
        (["--set", "first_split=2"], "first_split: unknown option. Did you mean first_split_size?"),
        (["--set", "lr=fast"], "lr fast: a number is expected"),
        (["--set", "first_split_size=7"], "increment 50 does not divide the 93 classes"),
        (["--set", "dataset=CIFAR10"], "dataset CIFAR10: unknown. Did you mean CIFAR100?"),
        (["--set", "optimizer=SGD"], "optimizer SGD: unknown. Known are AdamW."),
        (["--set", "vq_weight_convention=papers"], "Did you mean paper?"),
        (["--set", "batch_size=512"], "fewer than a batch of 512"),
        (["--config", "configs/cifar100_prompt_vq.yaml"], "cifar-100_prompt_vq.yaml?"),
        (["--repeat", "2", "--seeds", "1"], "one occurs twice"),
        (["--set", "dataroot=nowhere", "--pretrained_weight", "ibot1k"], "CIFAR100"),
        (["--pretrained_weight", "sup2k"], "Did you mean sup21k?"),
    ],
)
def test_refused_with_one_message(command, capsys, tmp_path, flags, told):
    with pytest.raises(SystemExit) as stop:
        main([*command("cifar-100"), *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said and told in " ".join(said.split()), said
    assert not list(tmp_path.glob("out*"))
    if "nowhere" in " ".join(flags):
        assert "Get vitb_16/checkpoint_teacher.pth" in said  # both at once


def test_a_checkpoint_of_another_backbone(command, capsys, tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 384), "extra": torch.zeros(1)}, tmp_path / "small.pth")
    with pytest.raises(SystemExit):
        main([*command("cifar-100"), "--pretrained_weight", str(tmp_path / "small.pth")])
    said = capsys.readouterr().err
    assert "1 keys of another shape: cls_token (1, 1, 384)" in said and "1 keys unexpected: extra" in said


def test_a_class_without_images(command, capsys, world, tmp_path):
    """A bird whose images all stand in the test split: told before anything is trained."""
    import shutil

    shutil.copytree(world / "CUB_200_2011", tmp_path / "CUB_200_2011", symlinks=True)
    flags = tmp_path / "CUB_200_2011" / "train_test_split.txt"
    rows = flags.read_text().splitlines()
    rows[8:12] = [f"{number} 0" for number in range(9, 13)]
    flags.write_text("\n".join(rows))
    with pytest.raises(SystemExit):
        main(command("cub-200", dataroot=tmp_path))
    said = capsys.readouterr().err
    assert "CUB200: of 200 classes 1 have no training image" in said and "label 2 (Made up Bird2)" in " ".join(said.split())


def test_fewer_than_five_classes_and_two_centroids(run):
    """The original's top-5 accuracy needs five classes; here it is left out below that."""
    few = ["dataroot=mini", "first_split_size=2", "other_split_size=2", "max_task=3"]
    out = run("cifar-100", "--n_centroids", "2", "--set", *few)
    said = (out / "output.log").read_text().splitlines()
    retrained = [line for line in said if "re-trained" in line]
    assert "top-5" not in retrained[0] and "top-5" in retrained[1] and len(retrained) == 2
    statistics = torch.load(out / "models" / "repeat-1" / "task-3" / "statistics.pth", weights_only=True)
    assert statistics["labels"].tolist() == [4, 4, 5, 5]


def test_every_task_is_tested_once_and_every_query_computed_once(run, monkeypatch):
    """The original tests all tasks again at the end, and takes two forwards an image each time."""
    tested, computed = [], []
    query, evaluate = Network.query, vq_learner.evaluate

    def watched_query(network, tokens):
        computed.append(len(tokens))
        return query(network, tokens)

    def watched_evaluate(learner, task):
        before = len(computed)
        accuracies = evaluate(learner, task)
        tested.append((task, len(accuracies), sum(computed[before:])))
        return accuracies

    monkeypatch.setattr(Network, "query", watched_query)
    monkeypatch.setattr(vq_learner, "evaluate", watched_evaluate)
    few = ["dataroot=mini", "first_split_size=2", "other_split_size=2", "max_task=3"]
    run("cifar-100", "--no_ca", "--set", *few)  # 15 test images a class
    assert tested == [(0, 1, 30), (1, 2, 30), (2, 3, 30)]


# Resume


def comparable(folder):
    return sorted(
        (line["dataset"], line["after_task"], line["metric"], line["value"])
        for line in lines(folder) if line["metric"] not in TIMES
    )  # fmt: skip


def killed_when(command, arrived, kind):
    """Run in a process of its own and stop it as soon as `arrived` is there."""
    process, said = forked.start(main, command)
    for _ in range(3000):
        if arrived() or not process.is_alive():
            break
        time.sleep(0.01)
    if process.is_alive():
        os.kill(process.pid, kind)
    process.join(60)
    said.close()
    return process.exitcode


def test_stopped_and_taken_up_again(command, tmp_path):
    """Ctrl-C in the first task, killed in the second and again while it is evaluated: the same, bit for bit."""
    sizes = {"batch_size": 8, "schedule": "[1,0,3]", "first_split_size": 25, "other_split_size": 25}
    cut = command("cifar-100", "--save-interval", "0", **sizes)
    whole, broken = ([*cut, "--log_dir", str(tmp_path / name)] for name in ("whole", "broken"))
    main(whole)
    folder, models = tmp_path / "broken-mini" / "repeat-1", tmp_path / "broken-mini" / "models" / "repeat-1"
    assert killed_when(broken, lambda: (folder / "state.pth").exists(), signal.SIGINT) == 130
    assert killed_when(broken, lambda: (models / "task-1" / "class.pth").exists(), signal.SIGKILL) == -9
    time_of_first = (models / "task-1" / "class.pth").stat().st_mtime
    killed_when(broken, lambda: (models / "task-2" / "statistics.pth").exists(), signal.SIGKILL)
    main(broken)
    assert (models / "task-1" / "class.pth").stat().st_mtime == time_of_first
    one, other = (tmp_path / f"{name}-mini" for name in ("whole", "broken"))
    assert comparable(one / "repeat-1") == comparable(other / "repeat-1")
    for task in range(1, 5):
        for file in ("class.pth", "statistics.pth"):
            path = f"models/repeat-1/task-{task}/{file}"
            first, second = (torch.load(place / path, weights_only=True) for place in (one, other))
            for key, tensor in first.items():
                assert torch.equal(tensor, second[key]), (task, key)


def test_the_same_command_again_computes_nothing(run, monkeypatch, capsys):
    out = run("cub-200")
    before, sheet = lines(out / "repeat-1"), openpyxl.load_workbook(out / "results.xlsx").active.max_row
    monkeypatch.setattr(Network, "forward", lambda *_: pytest.fail("an image was looked at"))
    run("cub-200")
    assert lines(out / "repeat-1") == before
    assert openpyxl.load_workbook(out / "results.xlsx").active.max_row == sheet == 2
    (out / "results.xlsx").write_bytes((out / "results.xlsx").read_bytes()[:1000])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("cub-200")
    told = capsys.readouterr()
    assert "results.xlsx is no readable workbook" in told.err and "repeat 1" not in told.out  # before it starts


def test_the_workbook_keeps_a_row_once_and_text_as_text(command, tmp_path):
    """Numbers of more digits than a workbook keeps, empty words, and a folder that could be a formula."""
    options = replace(parse(command("cub-200")), log_dir=str(tmp_path / "=1+1"), model_name="", lr=0.1 + 0.2)
    figures = dict.fromkeys(FIGURES, 100 / 3 + 1e-15)
    for _ in range(3):
        write_xlsx(options, Machine(torch.device("cpu")), figures)
    write_xlsx(options, Machine(torch.device("cpu")), figures | {"FAA_m": 33.0})
    write_xlsx(options, Machine(torch.device("cpu")), figures)
    sheet = openpyxl.load_workbook(tmp_path / "=1+1-mini" / "results.xlsx").active
    assert sheet.max_row == 3
    (cell,) = [cell for cell in sheet[2] if cell.value == "=1+1-mini"]
    assert cell.data_type == "s"


def test_another_configuration_is_refused_and_models_nobody_recorded(run, command, capsys, tmp_path):
    out = run("cub-200", "--no_ca")
    one, other = (out / f"models/repeat-1/task-{task}/class.pth" for task in (1, 2))
    shutil.copy(other, one)
    (out / "repeat-1/record.jsonl").unlink()
    with pytest.raises(SystemExit):
        main(command("cub-200", "--no_ca"))
    assert f"{one} is not as it was written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command("cub-200", "--no_ca", batch_size=8))
    assert "batch_size: 16 there, 8 now" in capsys.readouterr().err
    for file in (tmp_path / "out-mini" / "repeat-1").iterdir():
        file.unlink()
    with pytest.raises(SystemExit):
        main(command("cub-200", "--no_ca", batch_size=8))
    assert "already holds class.pth, which no run recorded" in capsys.readouterr().err
    (tmp_path / "out-mini/run-checksums").unlink()  # as where the original program left its results
    with pytest.raises(SystemExit):
        main(command("cub-200", "--no_ca", batch_size=8))
    assert "already holds args.yaml, which no run recorded" in capsys.readouterr().err


def test_configs_are_all_published():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {*PUBLISHED, "mini"} <= names
