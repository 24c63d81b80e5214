"""The entry point: every configuration from data to record, what it refuses, and how a stopped run goes on."""

import json
import os
import signal

import pytest
import torch

from inflora.lora import Network
from inflora.main import main
from inflora.options import log_folder, parse
from tests import forked
from tests.inflora.conftest import CONFIGS

PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*_*.json"))
TIMES = ("train_seconds", "peak_memory_mib")  # measured, not computed


def lines(folder):
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def value(folder, metric, after):
    return next(line["value"] for line in lines(folder) if (line["metric"], line["after_task"]) == (metric, after))


SHIPPED = """
cifar100_inflora      cifar100   10 10 InfLoRA          adam 20 5e-4 -    0    10 0.95
cifar100_inflorab5    cifar100   10 10 InfLoRAb5        adam 20 1e-3 -    0    10 0.95
cifar100_infloraca    cifar100   10 10 InfLoRA_CA1      sgd  20 1e-3 1e-2 1e-3 5  0.95
mimg5_inflora         ImageNet_R 40 5  InfLoRA          adam 50 5e-4 -    0    10 0.98
mimg5_inflorab5       ImageNet_R 40 5  InfLoRAb5        adam 50 5e-4 -    0    10 0.98
mimg10_inflora        ImageNet_R 20 10 InfLoRA          adam 50 5e-4 -    0    10 0.98
mimg10_inflorab5      ImageNet_R 20 10 InfLoRAb5        adam 50 5e-4 -    0    10 0.99
mimg10_infloraca      ImageNet_R 20 10 InfLoRA_CA       sgd  50 1e-3 -    0    10 0.95
mimg20_inflora        ImageNet_R 10 20 InfLoRA          adam 50 5e-4 -    0    10 0.98
mimg20_inflorab5      ImageNet_R 10 20 InfLoRAb5        adam 50 5e-4 -    0    10 0.99
domainnet_inflora     domainnet  69 5  InfLoRA_domain   sgd  5  5e-3 1e-2 0    30 0.95
domainnet_inflorab5   domainnet  69 5  InfLoRAb5_domain sgd  5  5e-3 1e-2 0    30 0.95
"""


def test_the_twelve_configurations_are_the_originals():
    names = "dataset init_cls total_sessions model_name optim epochs lrate fc_lrate weight_decay rank lamb".split()
    rows = {name: values for name, *values in (line.split() for line in SHIPPED.strip().splitlines())}
    assert sorted(rows) == PUBLISHED
    for name, values in rows.items():
        content = json.loads((CONFIGS / f"{name}.json").read_text())
        given = {key: value for key, value in zip(names, values) if value != "-"}
        expected = {key: value if value.isidentifier() else float(value) for key, value in given.items()}
        expected |= {"increment": expected["init_cls"], "init_epoch": expected["epochs"], "lame": 1.0}
        expected |= {"shuffle": False, "batch_size": 128, "lrate_decay": 0.1}
        assert {key: content.get(key) for key in expected} == expected, name
        assert ("fc_lrate" in content) == ("fc_lrate" in given)
        assert content.get("init_lr", content["lrate"]) == content["lrate"]
        assert content.get("init_weight_decay", content["weight_decay"]) == content["weight_decay"]
        assert content["seed"] == ([0, 1, 2, 3, 4] if name in ("cifar100_inflora", "mimg10_inflora") else [0])


def test_trained_parameters_are_counted(run):
    """2 L r d + (d + 1) n classes, spec section 8."""
    folder = run("cifar100_inflora")
    count = value(folder, "trainable_parameters", 2)
    assert count == 2 * 4 * 4 * 128 + 129 * 50 and isinstance(count, int)


def test_a_run_in_bf16_is_another_one(run, configured, capsys):
    folder = run("cifar100_inflora", "--precision", "bf16", "--checkpoint-activations")
    assert lines(folder)[0]["method"] == "InfLoRA (bf16)" and 0 <= value(folder, "acc", 2) <= 100
    with pytest.raises(SystemExit):
        main(configured("cifar100_inflora"))
    assert "precision: 'bf16' there, None now" in capsys.readouterr().err


def test_bounds(run, configured, tmp_path):
    sequential = run("cifar100_inflora", "--model-name", "SeqLoRA")
    state = torch.load(sequential / "task_1.pth", weights_only=True)
    assert state["memories"] == [] and "image_encoder.blocks.0.attn.lora_A_k.1.weight" not in state["state_dict"]
    main([*configured("cifar100_inflora"), "--model-name", "Joint"])
    joint = next(path.parent for path in tmp_path.rglob("record.jsonl") if "Joint" in str(path))
    assert lines(joint)[0]["protocol"] == "joint-cifar100"
    assert [path.name for path in joint.glob("task_*.pth")] == ["task_0.pth"]


def test_every_seed_has_a_run_of_its_own(configured, tmp_path, capsys):
    main([*configured("cifar100_inflora", seed=[0, 3], shuffle=True)])
    folders = sorted(path.parent.name for path in tmp_path.rglob("record.jsonl"))
    assert folders == ["0", "3"]
    assert "over seeds 0, 3" in capsys.readouterr().out


def test_rounding_is_an_option(run):
    folder = run("mimg10_inflora", "--decimals", "2")
    accuracy = value(folder, "acc", 2)
    assert accuracy == round(accuracy, 2)


def test_the_originals_log_folder():
    options = parse(["--config", str(CONFIGS / "cifar100_inflora.json")])
    assert log_folder(options) == "cifar100/10_10_sip/InfLoRA/adam/10/0.95_1.0-0.0005"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"total_sessions": 1}, "total_sessions 1, but 100 classes in steps of 50 and then 50 make 2 tasks"),
        ({"rank": 200}, "the backbone is 128 wide; give 1 to 128"),
        ({"epoch": 3}, r"cifar100_inflora.json: epoch: unknown option. Did you mean epochs\?"),
        ({"model_name": "L2P"}, "model_name L2P: unknown. .*Known are InfLoRA"),
        ({"dataset": "cifar10"}, "dataset cifar10: unknown. .*Known are cifar100"),
        ({"dataset": "cifar10", "data_path": "mini"}, "dataset cifar10: unknown. .*Known are cifar100"),
        ({"lrate": "fast"}, "lrate fast: a number is expected"),
        ({"epochs": 2.5}, "epochs 2.5: a whole number is expected"),
        ({"seed": [0, 0]}, "seed 0 0: a value occurs twice"),
        ({"seed": []}, "seed: it is empty"),
        ({"net_type": "../sip"}, "net_type ../sip: it is a part of a folder's name"),
        ({"lamb": 0.9, "lame": 0.8}, r"lame 0.8: give lamb \(0.9\) to 1"),
        ({"split": str(2**32)}, "split 4294967296: a seed is at most 4294967295"),
        ({"model_name": "InfLoRA_CA1"}, "InfLoRA_CA1 needs fc_lrate"),
        ({"shuffle": True, "class_order": "class_orders/cifar100.yaml"}, "shuffle: class_order says in which order"),
        ({"class_order": "class_orders/mini.yaml"}, "the class order has 40 classes, the data set has 100"),
        ({"protocol": "common"}, "protocol common: 2 tasks, of 50 classes, are neither"),
        ({"transforms": "common", "backbone": "vit.pth"}, "vit.pth: a file does not tell"),
        ({"lamb": 1.0}, "lamb 1.0: give more than 0, less than 1"),
        ({"increment": 7}, "increment 7 does not divide the 50 classes"),
        ({"data_path": "nowhere", "backbone": "ibot1k"}, r"(?s)CIFAR100.*missing.*Get vitb_16/checkpoint_teacher.pth"),
    ],
)
def test_refused_with_one_message(configured, capsys, changes, told):
    import re

    command = configured("cifar100_inflora")
    path = command[1]
    content = json.loads(open(path).read()) | changes
    open(path, "w").write(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said and re.search(told, said), said


@pytest.mark.parametrize("key", ["dataset", "lamb", "total_sessions"])
def test_a_missing_key(configured, capsys, key):
    command = configured("cifar100_inflora")
    content = json.loads(open(command[1]).read())
    del content[key]
    open(command[1], "w").write(json.dumps(content))
    with pytest.raises(SystemExit):
        main(command)
    assert f"--{key}: missing." in capsys.readouterr().err


def test_dead_keys_are_named(configured, capsys):
    parse(configured("cifar100_inflora", memory_size=2000, device=["0", "1"]))
    said = capsys.readouterr().out
    assert "memory_size (the code has no use for it)" in said and "device (--device says where)" in said


@pytest.mark.parametrize(
    "text, name", [("0", "cuda:0"), ("-1", "cpu"), ("1,0", "cuda:1"), ("auto", "auto"), ("cuda:1", "cuda:1")]
)
def test_a_device_by_upstreams_number(text, name, capsys):
    options = parse(["--config", str(CONFIGS / "cifar100_inflora.json"), "--device", text])
    assert options.device == name
    assert ("one device is used, 1" in capsys.readouterr().out) == ("," in text)


def test_what_stands_later_holds(configured):
    command = configured("cifar100_inflora")
    assert parse([*command, "--rank", "3", "--scale", "mini", "--epochs", "2"]).rank == 10
    options = parse([*command, "--scale", "mini", "--rank", "3", "epochs=2", "--seed", "4,5"])
    assert (options.rank, options.epochs, options.seed, options.data_path) == (3, 2, [4, 5], "mini")


def test_a_wrong_backbone_file(configured, capsys, tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 768), "extra": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(SystemExit):
        main([*configured("cifar100_inflora"), "--backbone", str(tmp_path / "wrong.pth")])
    said = capsys.readouterr().err
    assert "149 keys missing: blocks.0.attn.proj.bias" in said and "1 keys unexpected: extra" in said


def comparable(folder):
    return [
        (line["after_task"], line["metric"], line["value"]) for line in lines(folder) if line["metric"] not in TIMES
    ]


def test_stopped_and_taken_up_again(configured, tmp_path):
    """Interrupted in the second task, then killed at random: the same records and weights, bit for bit."""
    command = configured("cifar100_infloraca", epochs=6, init_epoch=2, batch_size=16, weight_decay=0.001)
    main([*command, "--save", str(tmp_path / "whole-mini")])
    broken = [*command, "--save", str(tmp_path / "broken-mini"), "--save-interval", "0"]
    process, stream = forked.start(main, broken)
    assert any(line.startswith("after task 0") for line in stream)
    os.kill(process.pid, signal.SIGINT)
    said = stream.read()
    process.join()
    assert process.exitcode == 130 and "Traceback" not in said, said
    for seconds in (1, 1.5):
        process, _ = forked.start(main, broken)
        process.join(seconds)
        forked.kill(process)
    main([*command, "--save", str(tmp_path / "broken-mini")])
    whole, again = (next((tmp_path / place).rglob("record.jsonl")).parent for place in ("whole-mini", "broken-mini"))
    assert comparable(whole) == comparable(again)
    for task in (0, 1):
        one, other = (torch.load(place / f"task_{task}.pth", weights_only=True) for place in (whole, again))
        for key, tensor in one["state_dict"].items():
            assert torch.equal(tensor, other["state_dict"][key]), key


def test_the_same_command_again_computes_nothing(run, monkeypatch):
    folder = run("cifar100_inflora")
    before = lines(folder)

    def fail(*_):
        raise AssertionError("an image was looked at")

    monkeypatch.setattr(Network, "features", fail)
    run("cifar100_inflora")
    assert lines(folder) == before
