"""The entry point with IT-Prompt: data to records at the papers' scale on made-up sets, resume, refusals, claims."""

import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import openpyxl
import pytest
import torch
import yaml

from common.clip.pretrained import load_state_dict
from common.evaluation.metrics import vq_prompt_metrics
from common.mini import CLIP_FILE
from tests import forked
from tests.clip_archive import save_archive
from tests.fake_data import write
from tests.vq_prompt.it_prompt.world import command, lines, run, values
from vq_prompt.it_prompt.network import Encoder
from vq_prompt.run import main

TIMES = ("train_seconds", "peak_memory_mib", "seconds_per_batch")  # measured, not computed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("it_prompt")
    write(root / "data", ["CIFAR100", "ImageNetR", "TinyImageNet"])
    save_archive(load_state_dict(CLIP_FILE), root / "clip.pt")
    return root


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """ITPrompt on CIFAR-100 in two tasks of 50, never stopped."""
    return run(world, tmp_path_factory.mktemp("whole"), "cifar-100", "ITPrompt", **RESUMED)


RESUMED = {"epochs": 3, "batch_size": 16, "rebalance_epochs": 2, "rebalance_per_class": 16}


@pytest.mark.parametrize(
    "config, sizes, protocol",
    [("tinyimagenet", (100, 50), "cil-tinyimagenet-100+2x50"), ("imnet-r", (100, 100), "cil-imagenet_r-2x100")],
)
def test_the_other_data_sets(world, tmp_path, config, sizes, protocol):
    """Those that no whole run is held on."""
    first, rest = sizes
    folder = run(world, tmp_path, config, "ITPromptCNCM", first_split_size=first, other_split_size=rest)
    about = lines(folder)[0]
    assert about["paper"] == "vq_prompt" and about["protocol"] == protocol and about["scale"] == "paper"
    assert about["method"].endswith("(our reading)") and about["backbone"] == str(world / "clip.pt")
    tasks = max(after for after, _ in values(folder, "faa"))
    R = np.zeros((tasks, tasks))
    for (after, name), value in values(folder, "task_accuracy").items():
        R[int(name.removeprefix("task ")), after - 1] = value
    expected, name = vq_prompt_metrics(R), folder and next(iter(values(folder, "faa")))[1]
    recorded = {metric: values(folder, metric)[tasks, name] for metric in ("faa", "caa", "forgetting")}
    assert recorded == pytest.approx({"faa": expected.faa, "caa": expected.caa, "forgetting": expected.ffm})
    curve = list(values(folder, "accuracy").values())
    assert len(curve) == tasks
    assert values(folder, "last")[tasks, name] == curve[-1]
    assert values(folder, "avg")[tasks, name] == pytest.approx(np.mean(curve))
    for metric in ("zero_shot", "cncm_u", "task_id_accuracy"):
        assert len(values(folder, metric)) == tasks
    row = [[cell.value for cell in row] for row in openpyxl.load_workbook(tmp_path / "results.xlsx").active]
    assert row[1][row[0].index("FAA_m")] == pytest.approx(expected.faa)
    acc = yaml.safe_load((tmp_path / "results-acc" / "pt.yaml").read_text())
    np.testing.assert_allclose(np.array(acc["history"])[..., 0], R)


def test_what_a_checkpoint_holds(whole):
    content = torch.load(whole.parent / "models" / "repeat-1" / "task-2" / "class.pth", weights_only=True)
    assert content["stages"] == ["training", "memory", "selector", "head"]
    keys = {f"prompt.{name}_{task}" for name in "pk" for task in (0, 1)}
    keys |= {f"{part}.{name}" for part in ("head", "selector.fc", "selector.classifier") for name in ("weight", "bias")}
    assert content["state_dict"].keys() == keys
    assert content["state_dict"]["prompt.p_1"].shape == (4, 8, 128)
    assert len(content["u"]["centroids"]) == len(content["u"]["means"]) == len(content["z"]["variances"]) == 100
    assert content["z"]["centroids"] == []  # of classifier cncm alone
    assert not (whole / "state.pth").exists()


# Resume


def comparable(folder):
    return [
        (line["after_task"], line["dataset"], line["metric"], line["value"])
        for line in lines(folder)
        if line["metric"] not in TIMES
    ]


def test_stopped_and_taken_up_again(world, whole, tmp_path):
    """Ctrl-C in the first task, killed in the second one's rebalancing: the same records and files, bit for bit."""
    told = command(world, tmp_path, "cifar-100", "ITPrompt", "--save-interval", "0", **RESUMED)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "vq_prompt.run", *told], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # also where the tests ignore it
    )  # fmt: skip
    assert any(line.startswith("repeat 1 of 1") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 130 and "Traceback" not in said, said
    process, stream = forked.start(main, told)
    assert any(line.startswith("task 2: rebalanced selector") for line in stream)
    forked.kill(process)
    assert process.exitcode == -signal.SIGKILL and "Traceback" not in stream.read()
    main(told)
    folder = tmp_path / "repeat-1"
    assert comparable(folder) == comparable(whole)
    for file in ("task-1/class.pth", "task-2/class.pth"):
        one, other = (
            torch.load(place.parent / "models" / "repeat-1" / file, weights_only=True) for place in (whole, folder)
        )
        assert one.pop("stages") == other.pop("stages")
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_same_command_again_looks_at_no_image(world, whole, monkeypatch):
    before = lines(whole)

    def fail(*_):
        raise AssertionError("an image was looked at")

    for name in ("plain", "prompted", "both"):
        monkeypatch.setattr(Encoder, name, fail)
    run(world, whole.parent, "cifar-100", "ITPrompt", **RESUMED)
    assert lines(whole) == before


@pytest.mark.parametrize("permuted", ["u", "z"])
def test_kept_features_that_are_not_what_was_kept_are_computed_anew(world, whole, tmp_path, permuted):
    """Stopped behind the first task's records, with the features of its folder in another order."""
    told = command(world, tmp_path, "cifar-100", "ITPrompt", **RESUMED)
    process, stream = forked.start(main, told)
    assert any(line.startswith("after task 1") for line in stream)
    forked.kill(process)
    path = tmp_path / "repeat-1" / "features.pth"
    content = torch.load(path, weights_only=True)
    torch.save(content | {permuted: content[permuted].roll(1, 0)}, path)
    main(told)
    assert sorted(comparable(path.parent)) == sorted(comparable(whole))


def test_another_clip_in_the_same_folder_is_refused(world, whole, tmp_path, capsys):
    other = load_state_dict(CLIP_FILE)
    other["visual.proj"] = other["visual.proj"] + 1
    save_archive(other, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        run(world, whole.parent, "cifar-100", "ITPrompt", **RESUMED, clip_weights=tmp_path / "other.pt")
    assert "holds a run with another configuration" in capsys.readouterr().err


# Variants and bounds


@pytest.mark.parametrize("learner", ["ZeroShot", "NCM"])
def test_bounds(world, tmp_path, learner):
    folder = run(world, tmp_path, "cifar-100", learner)
    assert lines(folder)[0]["method"] == {"ZeroShot": "Zero-shot CLIP", "NCM": "NCM, no prompts (CLIP)"}[learner]
    assert values(folder, "faa").keys() == {(1, "CIFAR100"), (2, "CIFAR100")}
    assert not values(folder, "trainable_parameters")


# Refusals


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"prompt_length": 5}, "prompt_length 5: one half goes before the keys"),
        ({"selector": "sofmax"}, r"selector sofmax: unknown. Did you mean softmax\?"),
        ({"prompt_lenght": 4}, r"prompt_lenght: unknown option. Did you mean prompt_length\?"),
        ({"backbone": "vit_dino1k", "text_guide": "ce"}, "text_guide ce: vit_dino1k has no texts"),
        ({"dataroot": "nowhere", "clip_weights": "ViT-B/17"}, r"(?s)CIFAR100\s+missing: .*Did you mean ViT-B/16"),
        ({"prompt_layers": [0, 4]}, r"prompt_layers \[0, 4\]: the backbone has blocks 0 to 3"),
        ({"n_centroids": 2}, "n_centroids: VQ-Prompt's, and without effect"),
        ({"first_split_size": 70}, "increment 50 does not divide the 30 classes"),
        ({"batch_size": 200, "drop_last": True}, "task 1 has 100 training images, fewer than a batch of 200"),
    ],
)
def test_refused_with_one_message(world, tmp_path, capsys, changes, told):
    with pytest.raises(SystemExit) as stop:
        run(world, tmp_path, "cifar-100", "ITPromptCNCM", **changes)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said and re.search(told, said), said
