"""Runs of which little, odd or too much is on record: moved trainings, other data, cut sets, configurations by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from results.collect import read_runs
from results.compare import compare
from tests.results.lines import matrix_lines
from tests.results.test_settings import EVALUATED, ZSCL, values, write_run

COSTS = [{"metric": "train_seconds", "after_task": 11, "value": 5.0}]


def notes(folder: Path) -> set[str]:
    return {record.note for record in read_runs([folder])[0]}


# Evaluations of finished checkpoints


@pytest.mark.parametrize("load", ["ckpt/x", "ckpt/x/SUN397.pth"])
def test_a_training_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    write_run(tmp_path / "ckpt/x", ZSCL | {"ls": 0.0}, lines=COSTS)
    write_run(tmp_path / "evaluations/deep/x", EVALUATED | {"load": load}, 60.0)
    for folder in ("", "evaluations"):
        monkeypatch.chdir(tmp_path / folder)
        assert values(tmp_path / "evaluations") == {"ZSCL, ls 0": [60.0]}
        assert notes(tmp_path / "evaluations") == {""}
    (tmp_path / "evaluations").rename(tmp_path.parent / f"{tmp_path.name} moved")
    monkeypatch.chdir(tmp_path)  # which is no folder above the record any more
    assert values(tmp_path.parent / f"{tmp_path.name} moved") == {"ZSCL, ls 0": [60.0]}


def test_an_evaluation_of_a_lost_training_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, EVALUATED | {"load": "nowhere"}, 83.6)
    assert values(tmp_path) == {"ZSCL": [83.6]} and notes(tmp_path) == {"settings not on record"}


def test_evaluations_are_of_their_trainings_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        folder = write_run(tmp_path / str(seed), ZSCL | {"seed": seed, "eval_datasets": None}, lines=COSTS)
        write_run(folder / "evaluation", EVALUATED | {"load": str(folder)}, 83.0 + seed, seed=42)
    assert values(tmp_path) == {"ZSCL": [83.0, 5.0, 84.0, 5.0, 85.0, 5.0]}
    assert sorted(run.seed for run in read_runs([tmp_path])[1]) == [0, 0, 1, 1, 2, 2]
    last = next(item for item in compare([], read_runs([tmp_path])[0]) if item.metric == "last")
    assert (last.mean, last.seeds, last.note) == (84.0, 3, "")


# The pre-trained model


def test_the_zero_shot_row_is_named_by_its_test(tmp_path: Path) -> None:
    lines = matrix_lines([50.0] * 11, [[60.0] * 11] * 11, metric="accuracy")
    write_run(tmp_path / "a", ZSCL | {"template": "{} and noise", "ls": 0.0}, lines=lines)
    write_run(tmp_path / "b", ZSCL | {"ls": 0.0}, lines=[{"method": "ZSCL (bf16)"} | line for line in lines])
    found = {item.method for item in compare([], read_runs([tmp_path])[0]) if item.mean == pytest.approx(50.0)}
    assert found == {"Zero-shot CLIP, template {} and noise", "Zero-shot CLIP (bf16)"}


# Other data


@pytest.mark.parametrize("section", ["weights", "data", "reference"])
def test_the_most_seeds_keep_the_papers_name(tmp_path: Path, section: str) -> None:
    write_run(tmp_path / "other", ZSCL | {section: {"md5": "b"}, "seed": 9}, 60.0, started="2025-03-01T00:00:00")
    for seed in range(3):
        write_run(tmp_path / str(seed), ZSCL | {section: {"md5": "a"}, "seed": seed}, 80.0 + seed)
    for name in ("again", "once more", "often", "too often"):
        write_run(tmp_path / name, ZSCL | {section: {"md5": "c"}, "seed": 0}, 70.0)
    found = values(tmp_path)
    assert found.pop("ZSCL") == [80.0, 81.0, 82.0]
    assert sorted(map(tuple, found.values())) == [(60.0,), (70.0,)] and all(section in name for name in found)


def test_of_as_many_seeds_the_newest_keep_the_papers_name(tmp_path: Path) -> None:
    for day, md5 in enumerate("abc"):
        write_run(tmp_path / md5, ZSCL | {"data": {"md5": md5}}, 80.0 + day, started=f"2025-01-{3 + day % 2}T00:00:00")
    assert values(tmp_path)["ZSCL"] == [81.0]


CIFAR = {"train": 50_000, "test": 10_000}


@pytest.mark.parametrize(
    ("protocol", "data", "name"),
    [
        ("cil-cifar100-10x10", CIFAR, ""),
        ("cil-cifar100-10x10", CIFAR | {"train": 500}, ", images 500 + 10,000"),
        ("cil-cifar100-10x10", CIFAR | {"test": 100}, ", images 50,000 + 100"),
        ("cil-cifar100-10x10", CIFAR | {"test": 0}, ""),  # of a training alone
        ("cil-imagenet_r-10x20", {"train": 24_000, "test": 6_000}, ""),
        ("cil-imagenet_r-10x20", {"train": 24_000, "test": 5_999}, ", images 24,000 + 5,999"),
        ("cil-imagenet100-10x10", {"train": 7, "test": 5_000}, ""),  # published nowhere
        ("cil-domainnet-5x69", {"train": 7, "test": 7}, ""),
        ("cil-own-10x10", {"train": 7, "test": 7}, ""),
        ("mtil-order1", {"DTD": {"train": 1_880, "test": 1_880}, "ConceptualCaptions": {"sentences": 3}}, ""),
        ("mtil-order1", {"DTD": {"train": 5, "test": 1_880}, "Own": {"train": 3, "test": 1}}, ", DTD images 5 + 1,880"),
        ("mtil-order1", {"DTD": {"train": 5, "notes": ["CoOp's list x.json"]}, "MNIST": {"train": 5}}, ", MNIST images 5"),
        ("cil-cifar100-10x10", {"train": "many", "test": None}, ""),
    ],
)  # fmt: skip
def test_a_cut_data_set_is_named(tmp_path: Path, protocol: str, data: dict[str, Any], name: str) -> None:
    write_run(tmp_path / "paper", {"lr": 1.0, "data": data}, 60.0, protocol=protocol, method="own")
    assert values(tmp_path / "paper") == {f"own{name}": [60.0]}
    write_run(tmp_path / "mini", {"lr": 1.0, "data": data}, 60.0, protocol=protocol, method="own", scale="mini")
    assert values(tmp_path / "mini") == {"own": [60.0]}


# What is not on record


def test_settings_in_part_say_so(tmp_path: Path) -> None:
    for place, part in enumerate(({"seed": 1}, {key: value for key, value in ZSCL.items() if key != "lr"})):
        write_run(tmp_path / str(place), part)
        assert notes(tmp_path / str(place)) == {"settings only in part on record"}
    write_run(tmp_path / "whole", ZSCL | {"a newer option": 1})
    assert notes(tmp_path / "whole") == {""}


def test_unknown_settings_are_averaged_with_no_known_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "unknown", None, 60.0, seed=1)
    assert values(tmp_path) == {"ZSCL": [60.0]}
    write_run(tmp_path / "known", ZSCL | {"seed": 2}, 83.0)
    assert values(tmp_path) == {"ZSCL": [83.0], "ZSCL, settings not on record": [60.0]}


def test_a_label_that_no_line_has_is_no_name(tmp_path: Path) -> None:
    write_run(tmp_path, ZSCL | {"ls": 0.0}, 60.0)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for label in ("ZSCL of old", ["ZSCL"], {"ZSCL": 1}):
        config["labels"]["method"] = label
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert values(tmp_path) == {"ZSCL, ls 0": [60.0]}


ODD = {
    "a date that is none": "settings: {lr: 1}\nprovenance: {started: 2025-13-45}",
    "another such date": "settings: {lr: 2025-02-31}",
    "a value that holds itself": "settings: &a {x: *a}",
    "a huge number": f"settings: {{lr: {'9' * 6000}}}",
    "a huge hexadecimal number": f"settings: {{lr: 0x{'f' * 5000}}}",
    "keys that are no words": "settings: {1: 2, null: 3, 2025-01-01: 4}",
    "deep": "settings: " + "{a: " * 300 + "1" + "}" * 300,
    "load 5": "settings: {eval_only: true, load: 5}",
    "load a list": "settings: {eval_only: true, load: [a, b]}",
    "load a section": "settings: {eval_only: true, load: {a: 1}}",
    "a long load": f"settings: {{eval_only: true, load: {'x' * 5000}}}",
    "a long load of training": f"settings: {{load: {'x' * 5000}}}",
    "train_dataset 5": "settings: {train_dataset: 5, load: x, ref_dataset: [a]}",
    "train_dataset lists": "settings: {train_dataset: [[1], [2]], load: [x], ref_dataset: [[1], [2]]}",
    "lists of nothing": "settings: {train_dataset: [], lr: []}",
}


@pytest.mark.parametrize("config", ODD.values(), ids=ODD)
@pytest.mark.parametrize("names", [[""], ["Aircraft.", "DTD."]], ids=["a run", "one-task calls"])
def test_odd_configurations_are_read(tmp_path: Path, config: str, names: list[str]) -> None:
    for place, name in enumerate(names, start=1):
        protocol = "mtil-order1" if len(names) == 1 else f"mtil-custom-{'+'.join(['Aircraft', 'DTD'][:place])}"
        lines = [{"dataset": "DTD", "after_task": place, "metric": "accuracy", "value": 50.0 + place}]
        write_run(tmp_path, None, lines=lines, name=name, protocol=protocol)
        (tmp_path / f"{name}config.yaml").write_text(config)
    assert [record.value for record in read_runs([tmp_path])[0]] == [51.0, 52.0][: len(names)]


def test_one_task_calls_with_means_alone_are_no_run(tmp_path: Path) -> None:
    write_run(tmp_path, None, name="Aircraft.", protocol="mtil-custom-Aircraft")
    write_run(tmp_path, None, name="DTD.", protocol="mtil-custom-Aircraft+DTD")
    assert read_runs([tmp_path]) == ([], [], [])


# One-task calls


def test_a_call_that_started_elsewhere_is_a_run_of_its_own(tmp_path: Path) -> None:
    loads = [None, "runs/one/Aircraft.pth", "runs/one/best.pth", "quick/CIFAR100.pth", "one/DTD.pth"]
    sets = ["Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT"]
    for place, (name, load) in enumerate(zip(sets, loads)):
        protocol = f"mtil-custom-{'+'.join(sets[: place + 1])}"
        lines = [{"dataset": name, "after_task": place + 1, "metric": "accuracy", "value": 50.0 + place}]
        write_run(tmp_path / "one", ZSCL | {"train_dataset": [name], "load": load}, lines=lines, name=f"{name}.",
                  protocol=protocol)  # fmt: skip
    found = [(run.protocol.count("+") + 1, run.records) for run in read_runs([tmp_path])[1]]
    assert sorted(found) == [(2, 2), (3, 1), (5, 2)]
