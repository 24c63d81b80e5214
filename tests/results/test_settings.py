"""Rows by their settings: what differs from the paper's names a row, and equal runs of one seed count once."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from openpyxl import load_workbook

from common.machine import RunOptions
from common.options import declared
from common.protocols import MTIL_ORDER_1
from moe_adapters.options import Options as MoEOptions
from results.__main__ import build, verify
from results.collect import read_runs
from results.compare import compare, matrices
from results.launch.plan import Job, jobs_of, read_plan
from results.launch.progress import NO_SETTINGS, progress
from results.options import Build, Verify
from results.published import read_published
from results.records import Record
from results.settings import EVALUATION, pinned, text
from tests.results.lines import matrix_lines, write_lines
from zscl.options import Options as ZSCLOptions

ORDER = [*MTIL_ORDER_1]
RATES = [5e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 5e-5, 1e-5, 1e-5, 1e-5]
ZSCL = {  # of zscl/scripts/ZSCL.sh 1
    "method": "ZSCL", "train_dataset": ORDER, "eval_datasets": ORDER, "lr": RATES, "iterations": [1000], "ls": 0.2,
    "we": True, "avg_freq": 100, "l2": 1.0, "image_loss": True, "text_loss": True, "ref_dataset": "ImageNet",
    "ref_sentences": "conceptual_captions", "ref_model": None, "load": None, "eval_only": False, "seed": 42,
    "template": None, "model": "ViT-B/16", "dataset_order": None, "wise_merge": False,
}  # fmt: skip
ROW = pinned()["zscl", "paper", "mtil-order1", "ZSCL", "ViT-B/16"][0]
ZSCL |= {key: value for key, value in ROW.items() if key not in ZSCL}
MOE_EXPERTS = {"ffn_adapt": True, "apply_moe": True, "experts_num": 22, "autorouter": True, "load_autochooser": None}
MOE = MOE_EXPERTS | {  # of moe_adapters/scripts/train_few_shot_order1.sh
    "train_dataset": ORDER, "eval_datasets": ORDER, "few_shot": 5, "iterations": [500], "ls": 0.2, "threshold": 0.0585,
    "lr": [8e-3, 5e-4, 2e-4, 5e-3, 1e-3, 1e-3, 1e-2, 1e-4, 1e-2, 1e-2, 1e-2], "eval_only": False, "load": None,
    "task_id": -1, "train_chooser": True, "chooser_iterations": [1000, 300], "repeat_train": True, "seed": 42,
}  # fmt: skip
ALTA = {  # of alta/scripts/cifar100_rn50.sh
    "method": "oritext_mlp2cprompt_oriimg", "visual": "RN50", "buffer_size": 200, "lr_policy": "released",
    "OPTIM": {"LR": 0.002, "MAX_EPOCH": 30, "MOMENTUM": 0.9}, "train": {"batch_size": 32, "alpha": 0.4, "beta": 0.4},
    "dataset": {"name": "seq-cifar100", "n_tasks": 10, "n_classes_per_task": 10}, "precision": "fp16", "seed": 42,
}  # fmt: skip
CIL = {  # of zscl/configs/class/cifar100_10-10-ZSCL.yaml
    "method": "ZSCL", "initial_increment": 10, "increment": 10, "lr": 7.1e-6, "ls": 0.2, "we": 1, "avg_freq": 10,
    "batch_size": 64, "epochs": 1, "warmup": 30, "seed": 42, "data": {"train": 50000}, "weights": {"model": "a1"},
}  # fmt: skip
ABOUT_ALTA = {"paper": "alta", "method": "ALTA", "protocol": "cil-cifar100-10x10", "backbone": "RN50"}
ABOUT_CIL = {"protocol": "cil-cifar100-10x10"}
ABOUT_MOE = {"paper": "moe_adapters", "method": "MoE-Adapters", "protocol": "mtil-order1-5shot"}


def write_run(
    folder: Path, settings: dict[str, Any] | None, value: float = 83.6, started: str = "2025-01-01T00:00:00",
    name: str = "", lines: list[dict[str, Any]] | None = None, command: str = "python -m x", **about: Any
) -> Path:  # fmt: skip
    """A run's folder as `common.runs` leaves it, with one number or these lines."""
    labels = {"paper": "zscl", "method": "ZSCL", "protocol": "mtil-order1", "backbone": "ViT-B/16", "scale": "paper"}
    labels |= {"seed": (settings or {}).get("seed", 42)} | about
    lines = [{"value": value}] if lines is None else lines
    write_lines(folder, [labels | line for line in lines], f"{name}record.jsonl")
    if settings is not None:
        content = {"settings": settings, "labels": labels, "provenance": {"started": started, "command": command}}
        (folder / f"{name}config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def values(folder: Path) -> dict[str, list[float]]:
    """The numbers read from a folder by method."""
    found: dict[str, list[float]] = {}
    for record in read_runs([folder])[0]:
        found.setdefault(record.method, []).append(record.value)
    return found


# Names


@pytest.mark.parametrize(
    ("settings", "about", "changed", "name"),
    [
        (ZSCL, {}, {"lr": [1e-3], "iterations": [5]}, "ZSCL, lr 1e-3, iterations 5"),
        (ZSCL, {}, {"ls": 0.0, "we": False, "template": "a {}"}, "ZSCL, ls 0, no we, template a {}"),
        (ALTA, ABOUT_ALTA, {"OPTIM": {"LR": 0.0055, "MAX_EPOCH": 6, "MOMENTUM": 0.9}},
         "ALTA, OPTIM.LR 5.5e-3, OPTIM.MAX_EPOCH 6"),
        (ALTA, ABOUT_ALTA | {"backbone": "RN50x16"}, {"visual": "RN50x16", "clip_norm": True}, "ALTA, clip_norm"),
        (CIL, ABOUT_CIL, {"we": None, "lr": 1e-5}, "ZSCL, lr 1e-5, we none"),
    ],
)  # fmt: skip
def test_what_differs_from_the_paper_names_the_row(
    tmp_path: Path, settings: dict[str, Any], about: dict[str, Any], changed: dict[str, Any], name: str
) -> None:
    usual = {key: about[key] for key in about if key != "backbone"}
    write_run(tmp_path / "as published", settings, 80.0, **usual, **({"backbone": "RN50"} if settings is ALTA else {}))
    write_run(tmp_path / "other", settings | changed, 60.0, **about)
    assert values(tmp_path) == {name.split(",")[0]: [80.0], name: [60.0]}
    assert {run.method for run in read_runs([tmp_path])[1]} == {name.split(",")[0], name}
    assert {c.mean for c in compare([], read_runs([tmp_path])[0])} == {80.0, 60.0}


def test_another_setting_is_held_against_no_published_number(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ZSCL)
    write_run(tmp_path / "b", ZSCL | {"iterations": [5]})
    judged = {c.method: c.verdict for c in compare(read_published("zscl"), read_runs([tmp_path])[0]) if c.mean}
    assert judged == {"ZSCL": "matches", "ZSCL, iterations 5": "no published value"}


@pytest.mark.parametrize(
    ("settings", "about", "changed", "name"),
    [
        ({"method": "ZSCL", "lr": [1e-4], "iterations": [40], "we": True}, {"protocol": "mtil-order1"},
         {"lr": [1e-3]}, "lr 1e-3"),
        ({"OPTIM": {"LR": 0.05}, "model": {"use_replay": True}}, ABOUT_ALTA | {"protocol": "cil-characters-10x4"},
         {"model": {"use_replay": False}}, "no model.use_replay"),
        ({"lr": 1e-4, "ls": 0.2}, {"protocol": "cil-characters-10x4"}, {"ls": 0.3}, "ls 0.3"),
    ],
)  # fmt: skip
def test_the_miniature_tells_settings_apart_too(
    tmp_path: Path, settings: dict[str, Any], about: dict[str, Any], changed: dict[str, Any], name: str
) -> None:
    about = about | {"scale": "mini", "backbone": "mini"}
    write_run(tmp_path / "a", settings, 80.0, **about)
    write_run(tmp_path / "b", settings | changed, 60.0, **about)
    found = {method: numbers for method, numbers in values(tmp_path).items() if name in method}
    assert list(found.values()) == [[60.0]] and len(values(tmp_path)) == 2


def test_what_no_row_speaks_of_still_tells_runs_apart(tmp_path: Path) -> None:
    about = {"protocol": "mtil-custom", "method": "WC"}
    for place, rate in enumerate((1e-4, 2e-4)):
        write_run(tmp_path / str(place), {"lr": [rate], "l2": 1.0}, 50.0 + place, **about)
    write_run(tmp_path / "old", {"l2": 1.0}, 70.0, **about)  # a version that had no such option
    assert values(tmp_path) == {"WC, lr 1e-4": [50.0], "WC, lr 2e-4": [51.0], "WC": [70.0]}


@pytest.mark.parametrize("section", ["data", "weights"])
def test_other_images_or_weights_are_another_row(tmp_path: Path, section: str) -> None:
    write_run(tmp_path / "a", CIL | {section: {"one": 1, "two": 2}}, 80.0, **ABOUT_CIL)
    write_run(tmp_path / "b", CIL | {section: {"one": 1, "two": 3}}, 60.0, **ABOUT_CIL)
    write_run(tmp_path / "c", CIL | {section: {"one": 1}, "seed": 43}, 70.0, **ABOUT_CIL)  # nothing known to differ
    (usual, numbers), (other, [lowest]) = sorted(values(tmp_path).items())
    assert (usual, numbers, lowest) == ("ZSCL", [80.0, 70.0], 60.0)
    assert re.fullmatch(f"ZSCL, {section} [0-9a-f]{{6}}", other)


def test_a_machines_precision_is_no_other_setting(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ZSCL | {"precision": "bf16"}, 80.0, method="ZSCL (bf16)")
    write_run(tmp_path / "b", ZSCL | {"precision": "bf16", "ls": 0.0}, 60.0, method="ZSCL (bf16)")
    assert values(tmp_path) == {"ZSCL (bf16)": [80.0], "ZSCL (bf16), ls 0": [60.0]}


def test_the_zero_shot_row_keeps_its_name(tmp_path: Path) -> None:
    lines = matrix_lines([50.0] * 11, [[60.0] * 11] * 11, method="ZSCL", metric="accuracy")
    write_run(tmp_path, ZSCL | {"ls": 0.0}, lines=lines)
    assert {record.method for record in read_runs([tmp_path])[0]} == {"Zero-shot CLIP", "ZSCL, ls 0"}


def test_names_stay_short_and_distinct(tmp_path: Path) -> None:
    many = dict.fromkeys(("wd", "ls", "beta2", "T", "ref_wise_alpha", "num", "we_wise_alpha", "alpha"), 0.123)
    write_run(tmp_path / "a", ZSCL | many, 1.0)
    write_run(tmp_path / "b", ZSCL | many | {"beta2": 0.124}, 2.0)  # the last of them
    write_run(tmp_path / "c", ZSCL | {"template": "a photograph of the thing that is called {}"}, 3.0)
    write_run(tmp_path / "d", ZSCL | {"template": "a photograph of the thing that was called {}"}, 4.0)
    names = values(tmp_path)
    assert len(names) == 4 and all(len(name) < 150 for name in names)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(1e-3, "1e-3"), (5.5e-3, "5.5e-3"), (0.0655, "0.0655"), (0.2, "0.2"), (1.0, "1"), (0.0, "0"), (7.1e-06, "7.1e-6"),
     ([1e-5, 1e-5], "1e-5"), ([1000, 300], "1000,300"), (None, "none"), (12, "12"), ("order1", "order1")],
)  # fmt: skip
def test_spelling_of_values(value: Any, spelled: str) -> None:
    assert text(value) == spelled


# Several runs of one seed


def test_of_equal_runs_the_newer_one_counts(tmp_path: Path) -> None:
    rows = [[60.0] * 11] * 11
    for name, started, value in (("a", "2025-01-02T00:00:00", 83.0), ("b", "2025-01-01T00:00:00", 70.0)):
        cells = matrix_lines([50.0] * 11, rows, method="ZSCL", metric="accuracy")
        lines = [*cells, {"value": value}, {"metric": "train_seconds", "dataset": "Aircraft", "value": 5.0}]
        write_run(tmp_path / name, ZSCL, started=started, lines=lines)
    write_run(tmp_path / "c", ZSCL | {"seed": 43}, 85.0)
    records, *_ = read_runs([tmp_path])
    (last,) = [c for c in compare([], records) if (c.method, c.metric, c.dataset) == ("ZSCL", "last", "mean")]
    assert (last.mean, last.seeds, last.note) == (84.0, 2, "the newer of 2 runs of seed 42")
    assert [matrix.source for matrix in matrices(records)] == [str(tmp_path / "a")]
    runs = read_runs([tmp_path])[1]
    assert [Path(run.folder).name for run in runs] == ["a", "c"]
    assert runs[0].remark == f"the newer of 2 runs of seed 42; left out: {tmp_path / 'b'}"


def test_a_run_that_got_further_counts_before_a_newer_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ZSCL, started="2025-01-01T00:00:00", lines=[{"after_task": 11, "value": 83.0}])
    write_run(tmp_path / "b", ZSCL, started="2025-01-02T00:00:00", lines=[{"after_task": 2, "value": 70.0}])
    assert values(tmp_path) == {"ZSCL": [83.0]}


def test_the_sheet_the_page_and_the_terminal_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for day, name in enumerate("abc", start=1):
        write_run(tmp_path / "runs" / name, ZSCL, 80.0 + day, started=f"2025-01-0{day}T00:00:00")
    said = f"the newest of 3 runs of seed 42; left out: {tmp_path / 'runs/a'}, {tmp_path / 'runs/b'}"
    build(Build(runs=[tmp_path / "runs"], out=tmp_path / "out", protocol="mtil-order1", paper="zscl"))
    assert "2 runs that another of the same settings and seed stands for" in capsys.readouterr().out
    assert said in (tmp_path / "out/report.html").read_text()
    book = load_workbook(tmp_path / "out/results.xlsx", read_only=True)
    runs, table = ([cell.value for row in book[name].iter_rows() for cell in row] for name in ("Runs", "MTIL order 1"))
    assert said in runs
    assert any("the newest of 3 runs of seed 42" in str(value) for value in table)


def test_a_run_without_its_configuration_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a", None, 60.0)
    (comparison,) = compare([], read_runs([tmp_path])[0])
    assert comparison.note == "settings not on record"
    write_run(tmp_path / "b", ZSCL, 83.0, started="2000-01-01T00:00:00")
    assert values(tmp_path) == {"ZSCL, settings not on record": [60.0], "ZSCL": [83.0]}


def test_one_task_calls_without_configurations_are_no_seeds(tmp_path: Path) -> None:
    for name, value in (("Aircraft", 60.0), ("DTD", 70.0)):
        write_run(tmp_path, None, value, name=f"{name}.")
    (comparison,) = compare([], read_runs([tmp_path])[0])
    assert (comparison.mean, comparison.seeds, comparison.std) == (70.0, 1, None)


def test_verify_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path, ZSCL | {"iterations": [5]}, 10.0)
    assert verify(Verify(target=str(tmp_path))) is False
    assert "ZSCL, iterations 5" in capsys.readouterr().out


# Evaluations of finished checkpoints, and one-task calls

EVALUATED = dict.fromkeys(("lr", "iterations", "ls"), 0) | {"eval_only": True, "eval_datasets": ORDER, "seed": 42}


def test_an_evaluation_has_the_settings_of_the_training(tmp_path: Path) -> None:
    costs = [{"metric": "train_seconds", "after_task": 11, "value": 5.0}]
    write_run(tmp_path / "one", ZSCL | {"ls": 0.0}, lines=costs)
    write_run(tmp_path / "one/evaluation", EVALUATED | {"load": "moved/away"}, 60.0)
    write_run(tmp_path / "two", ZSCL, lines=costs)
    write_run(tmp_path / "elsewhere", EVALUATED | {"load": str(tmp_path / "two")}, 83.0)
    assert values(tmp_path) == {"ZSCL, ls 0": [60.0, 5.0], "ZSCL": [83.0, 5.0]}


def test_a_training_stands_for_a_later_evaluation_of_its_checkpoints(tmp_path: Path) -> None:
    write_run(tmp_path, ZSCL, 83.0, started="2025-01-01T00:00:00")
    write_run(tmp_path / "evaluation", EVALUATED | {"load": str(tmp_path)}, 83.1, started="2025-01-02T00:00:00")
    assert values(tmp_path) == {"ZSCL": [83.0]}
    (run,) = read_runs([tmp_path])[1]
    assert run.remark == f"one of 2 runs of seed 42; left out: {tmp_path / 'evaluation'}"


def test_an_evaluation_is_named_by_its_own_options_over_these(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MOE, 50.0, **ABOUT_MOE)
    load = EVALUATED | MOE_EXPERTS | {"few_shot": 5, "load": str(tmp_path / "run"), "task_id": -1}
    write_run(tmp_path / "far", load | {"threshold": 0.5}, 40.0, **ABOUT_MOE)
    assert values(tmp_path / "far") == {"MoE-Adapters, threshold 0.5": [40.0]}
    write_run(tmp_path / "released", load | {"threshold": 0.5, "load": "absent"}, 45.0, **ABOUT_MOE)
    assert values(tmp_path / "released") == {"MoE-Adapters, threshold 0.5": [45.0]}
    # the authors' script for released checkpoints has a threshold of its own, which is published as well
    write_run(tmp_path / "test", load | {"threshold": 0.06, "load": "absent"}, 60.0, **ABOUT_MOE)
    assert values(tmp_path / "test") == {"MoE-Adapters": [60.0]}
    both = values(tmp_path / "run") | values(tmp_path / "test")
    assert both.keys() == {"MoE-Adapters"}
    (tmp_path / "far/record.jsonl").unlink()
    (tmp_path / "released/record.jsonl").unlink()
    named = "MoE-Adapters, settings not on record, threshold 0.06"
    assert values(tmp_path) == {"MoE-Adapters": [50.0], named: [60.0]}


def test_what_an_evaluation_reads_are_declared_options() -> None:
    known = {item.key for kind in (ZSCLOptions, MoEOptions) for item in declared(kind)}
    assert set(EVALUATION) <= known


def one_task_calls(folder: Path, changed: dict[str, Any]) -> Path:
    """The eleven calls of the original's ZSCL script, MNIST's with these settings besides."""
    for place, name in enumerate(MTIL_ORDER_1):
        load = f"ckpt/{folder.name}/{ORDER[place - 1]}.pth" if place else None
        own = {"train_dataset": [name], "lr": [RATES[place]], "load": load}
        protocol = "mtil-order1" if name == ORDER[-1] else f"mtil-custom-{'+'.join(ORDER[: place + 1])}"
        settings = ZSCL | own | (changed if name == "MNIST" else {}) | {"data": {name: {"md5": place}}}
        write_run(folder, settings, started=f"2025-01-01T00:00:{place:02}", name=f"{name}.", protocol=protocol,
                  lines=[{"dataset": name, "after_task": place + 1, "metric": "accuracy", "value": 50.0 + place}])  # fmt: skip
    return folder


def test_one_task_calls_are_one_run_with_the_settings_of_their_sequence(tmp_path: Path) -> None:
    one_task_calls(tmp_path / "calls", {})
    assert values(tmp_path) == {"ZSCL": [50.0 + place for place in range(11)]}
    assert {record.note for record in read_runs([tmp_path])[0]} == {""}
    one_task_calls(tmp_path / "slow", {"lr": [1e-4]})
    one_task_calls(tmp_path / "short", {"iterations": [10]})
    iterations, rates, usual = sorted(values(tmp_path), key=lambda name: (name == "ZSCL", name))
    assert usual == "ZSCL" and re.fullmatch("ZSCL, iterations [0-9a-f]{6}", iterations)
    assert re.fullmatch("ZSCL, lr [0-9a-f]{6}", rates)


def test_one_task_calls_of_ddas_belong_to_the_sequence(tmp_path: Path) -> None:
    """As upstream's scripts: autoencoders first, then adapters task by task, then the evaluation of all."""
    none = {"eval_datasets": None, "autorouter": False, "threshold": None}
    for place, name in enumerate(["TinyImagenet", *ORDER]):
        own = {"train_dataset": [name], "task_id": place, "iterations": [300 if place else 1000], "ffn_adapt": False,
               "chooser_iterations": [1000, 300], "lr": [1e-3], "ls": 0.0, "repeat_train": False}  # fmt: skip
        write_run(tmp_path, MOE | none | own, name=f"{name}_autochooser.", started=f"2025-01-01T00:00:{place:02}",
                  lines=[{"metric": "train_seconds", "after_task": place, "value": 1.0}], **ABOUT_MOE)  # fmt: skip
    for place, name in enumerate(ORDER):
        own = {"train_dataset": [name], "task_id": place, "lr": [MOE["lr"][place]], "train_chooser": False,
               "repeat_train": place > 0, "load": f"ckpt/{ORDER[place - 1]}.pth" if place else None}  # fmt: skip
        write_run(tmp_path, MOE | none | own, name=f"{name}.", started=f"2025-01-01T00:01:{place:02}",
                  lines=[{"metric": "train_seconds", "after_task": place + 1, "value": 2.0}], **ABOUT_MOE)  # fmt: skip
    tested = EVALUATED | MOE_EXPERTS | {"few_shot": 5, "load": str(tmp_path), "task_id": -1, "threshold": 0.0585}
    write_run(tmp_path / "evaluation", tested, 70.0, **ABOUT_MOE)
    assert values(tmp_path / "evaluation") == {"MoE-Adapters": [70.0]}


# Tables


def job_in(folder: Path, flags: list[str]) -> Job:
    plan = folder / "t.yaml"
    plan.write_text(
        "paper: zscl\nprotocol: mtil-order1\nmetrics: [last]\nseeds: [42]\nrows:\n"
        f"  - {{method: ZSCL, command: 'bash s.sh --seed {{seed}}', folder: '{folder / 'run'}'}}\n"
    )
    (job,) = jobs_of(read_plan(str(plan)), "paper", None, flags)
    return job


MANY = {"l2": 0.5, "avg_freq": 7, "text_loss": False, "ref_dataset": "a-set-of-images", "template": "the {}",
        "ref_sentences": "some-sentences", "image_loss": False, "model": "ViT-L/14"}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "flags", "state"),
    [
        ({}, [], "done"),
        ({}, ["--threads", "1"], "done"),
        ({"iterations": [5]}, [], "partial"),
        ({"iterations": [5]}, ["--iterations", "5"], "done"),
        ({"iterations": [5], "lr": [1e-3]}, ["--iterations=5", "--lr", "0.001", "--threads", "1"], "done"),
        ({"weight_adjust": True, "ls": 0.0}, ["--weight-adjust", "ls=0"], "done"),
        ({"template": "{}, by method"}, ["--template", "{}, by method"], "done"),
        ({"we": False}, ["--no-we"], "done"),
        (MANY, ["--preset", "many"], "done"),
    ],
)
def test_a_run_of_other_settings_is_done_where_its_command_holds_the_flags(
    tmp_path: Path, changed: dict[str, Any], flags: list[str], state: str
) -> None:
    command = f"python -m zscl.main --method ZSCL --iterations 1000 --seed 42 {' '.join(flags)}"
    write_run(tmp_path / "run", ZSCL | changed, command=command)
    for later in ([], ["--threads", "2", "--overwrite"], ["--no-verify"]):
        assert progress(job_in(tmp_path, [*flags, *later])).state == state


def test_flags_that_decide_no_number_are_those_of_every_run() -> None:
    assert {*NO_SETTINGS, "no_verify", "precision"} == {field.name for field in fields(RunOptions)}


def test_a_run_on_a_set_that_is_cut_is_done_where_it_was_asked_for(tmp_path: Path) -> None:
    data = {"DTD": {"train": 100, "test": 100}}
    write_run(tmp_path / "run", ZSCL | {"data": data}, command="python -m zscl.main --no-verify")
    assert progress(job_in(tmp_path, ["--no-verify", "--threads", "2"])).state == "done"
    assert progress(job_in(tmp_path, ["--threads", "2"])).state == "partial"


@pytest.mark.parametrize(
    ("changed", "by_hand", "flags"),
    [
        ({"iterations": [5]}, "--iterations 5 --threads 1", ["--threads", "1"]),
        ({"iterations": [5], "lr": [1e-3]}, "--iterations 5 --lr 1e-3", ["--iterations", "5", "--lr", "1e-2"]),
        ({"we": False}, "--no-we --threads 1", ["--threads", "1"]),
        ({"iterations": [1000], "lr": [1e-3]}, "--iterations 5 --iterations 1000", ["--iterations", "5"]),
    ],
)
def test_a_folder_with_other_settings_is_not_done(
    tmp_path: Path, changed: dict[str, Any], by_hand: str, flags: list[str]
) -> None:
    write_run(tmp_path / "run", ZSCL | changed, command=f"python -m zscl.main {by_hand}")
    assert progress(job_in(tmp_path, flags)).state == "partial"


def test_a_run_of_its_first_task_is_that_far(tmp_path: Path) -> None:
    lines = [{"metric": "accuracy", "after_task": 1}, {"metric": "trainable_parameters", "after_task": 11}]
    write_run(tmp_path / "run", ZSCL, lines=lines, command="python -m zscl.main --first-tasks 1")
    at = progress(job_in(tmp_path, []))
    assert (at.state, at.tasks, at.of) == ("partial", 1, 11)


@pytest.mark.parametrize(("method", "state"), [("ZSCL (bf16)", "done"), ("ZSCL+", "partial")])
def test_a_precision_asked_for_is_no_other_method(tmp_path: Path, method: str, state: str) -> None:
    command = "python -m zscl.main --precision bf16"
    write_run(tmp_path / "run", ZSCL | {"precision": "bf16"}, method=method, command=command)
    assert progress(job_in(tmp_path, ["--precision", "bf16"])).state == state


def test_records_know_their_run(tmp_path: Path) -> None:
    write_run(tmp_path, ZSCL, started="2025-03-01T00:00:00")
    (record,) = read_runs([tmp_path])[0]
    assert isinstance(record, Record) and (record.started, record.note) == ("2025-03-01T00:00:00", "")
