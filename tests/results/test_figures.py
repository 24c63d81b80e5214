"""Figures: which are drawn, what they are called, and that none shows a number of the other scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results import drawing, figures
from results.compare import Data
from results.naming import with_distinct_names
from tests.results.sample_data import METHODS, build, hostile, mtil_records, runs_of_many_methods, sample


def names(data: Data) -> set[str]:
    return {figure.name for figure in figures.plan(data)}


def test_every_kind_is_drawn_legibly(tmp_path: Path):
    paths = figures.write(tmp_path, sample("paper"))
    assert {path.name for path in paths} == {
        "bars_mtil-order1.png",
        "curve_mtil-order1.png",
        "cost_mtil-order1.png",
        "matrix_mtil-order1_MoE-Adapters.png",
        "bars_cil-cifar100-10x10.png",
        "curve_cil-cifar100-10x10.png",
        "cost_cil-cifar100-10x10.png",
    }
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width >= 900 and image.height >= 400
            assert len(image.convert("RGB").getcolors(1 << 22)) > 20  # not blank


def test_only_what_was_run_is_drawn_of_the_miniature():
    assert names(sample("mini")) == {
        "bars_mtil-order1_mini.png",
        "curve_mtil-order1_mini.png",
        "matrix_mtil-order1_MoE-Adapters_mini.png",
        "bars_cil-cifar100-10x10_mini.png",
        "curve_cil-cifar100-10x10_mini.png",
    }  # one method a protocol: no cost to set against another's
    assert all("MINIATURE" in figure.title for figure in figures.plan(sample("mini")))


def test_many_methods_are_with_distinct_names():
    data = build("mini", runs_of_many_methods())
    heat_maps = [name for name in names(data) if name.startswith("matrix")]
    assert len(heat_maps) == len(METHODS) and "matrix_mtil-order1_ZSCL-star_mini.png" in heat_maps
    assert len({drawing.look_of(place) for place in range(49)}) == 49
    assert [*figures._measured_curves(data, "mtil-order1")] == ["Zero-shot CLIP", *METHODS]
    assert [*figures._numbers(data, "mtil-order1")] == ["Zero-shot CLIP", *METHODS]


def test_a_bar_says_who_printed_its_number():
    drawn = {*figures._numbers(sample("paper"), "mtil-order1")}
    assert {
        "DIKI [DPW]",
        "GIFT [DPW]",
        "ZSCL [LEBA]",
        "ZSCL",
        "LwF [LEBA]",
        "LwF [ZSCL]",
        "MoE-Adapters [LEBA]",
    } <= drawn
    assert not [name for name in drawn if "[MoE-Adapters]" in name]  # its paper is a source of none of them
    drawn = {*figures._numbers(sample("paper"), "cil-cifar100-10x10")}
    assert {"MoE-Adapters", "InfLoRA (re-run: VPT-NSP2)", "Fine-tuning [VQ-Prompt]"} <= drawn
    assert {*figures._numbers(sample("mini"), "cil-cifar100-10x10")} == {"InfLoRA"}


def test_two_runs_of_one_seed_are_one_curve_and_named_as_runs():
    records = [line for run in (1, 2) for line in mtil_records("mini", run)]
    data = build("mini", [replace(line, seed=42) for line in records])
    (curve,) = figures._measured_curves(data, "mtil-order1")["MoE-Adapters"]
    assert curve[0] == (0, pytest.approx(60.15))
    (title,) = [figure.title for figure in figures.plan(data) if figure.name.startswith("matrix")]
    assert "mean of 2 runs, 1 seed\n" in title


def test_no_figure_without_numbers(tmp_path: Path):
    assert figures.write(tmp_path, Data("paper", [], [], [], [], [], [])) == []
    assert figures.write(tmp_path, Data("mini", [], [], [], [], [], [])) == []


def test_published_alone_says_that_nothing_was_run():
    titles = [figure.title for figure in figures.plan(build("paper", [])) if figure.name.startswith("bars")]
    assert titles and all("published, not run here" in title for title in titles)


def test_a_hostile_name_is_drawn_and_stays_in_the_folder(tmp_path: Path):
    paths = figures.write(tmp_path, hostile("mini"))
    assert paths and all(path.parent == tmp_path / "figures" and path.exists() for path in paths)


def test_curve_is_the_mean_over_data_sets_by_seed():
    curves = figures._measured_curves(sample("paper"), "mtil-order1")["MoE-Adapters"]
    assert len(curves) == 3 and [task for task, _ in curves[0]] == list(range(12))
    # seed 1: 40 + 4 * place + 0.1 before; each learned set adds ten
    assert curves[0][0][1] == pytest.approx(60.1)
    assert curves[0][11][1] == pytest.approx(70.1)


def test_matrix_is_averaged_over_seeds():
    (found,) = [figure for figure in figures.plan(sample("paper")) if figure.name.startswith("matrix_mtil")]
    assert "mean of 3 seeds" in found.title
    assert figures._mean_cells([[[1.0, None]], [[3.0, 5.0]]])[0][0] == 2.0


def test_published_log_is_a_curve_of_its_own():
    curves = figures._published_curves(sample("paper"), "cil-cifar100-10x10")
    assert {name: len(seeds) for name, seeds in curves.items()} == {
        "InfLoRA": 5, "InfLoRA, shuffled class order": 1, "MoE-Adapters": 1,
    }  # fmt: skip
    assert all(len(curve) == 10 for seeds in curves.values() for curve in seeds)
    last = [curve[-1][1] for curve in curves["InfLoRA"]]
    assert sum(last) / 5 == pytest.approx(86.33, abs=0.005)  # as the logs of seeds 0 to 4 say
    assert curves["InfLoRA, shuffled class order"][0][-1] == (10, 86.95)


def test_vq_prompts_curve_is_its_own_figure_and_never_mixed_with_another():
    base = replace(mtil_records("mini", 1)[0], protocol="cil-characters-10x4", method="VQ-Prompt", dataset="Characters")
    lines = [replace(base, metric="faa", after_task=task, value=90.0 - task) for task in (1, 2, 3)]
    curves = figures._measured_curves(build("mini", lines), "cil-characters-10x4")
    assert curves == {"VQ-Prompt": [[(1, 89.0), (2, 88.0), (3, 87.0)]]}
    pooled = [replace(line, metric="accuracy", value=line.value - 20) for line in lines]
    both = figures._measured_curves(build("mini", lines + pooled), "cil-characters-10x4")
    assert both == {"VQ-Prompt": [[(1, 69.0), (2, 68.0), (3, 67.0)]]}


def test_backbones_and_papers_are_never_one_curve_or_bar():
    protocol = "cil-characters-10x4"
    base = replace(mtil_records("mini", 1)[0], protocol=protocol, method="Zero-shot CLIP", dataset="Characters")
    runs = [("alta", "mini", 70.0), ("alta", "mini-rn", 10.0), ("vq_prompt", "mini", 90.0)]
    lines = [
        replace(base, paper=paper, backbone=backbone, after_task=task, value=value, run=f"runs/{place}",
                file=f"runs/{place}/record.jsonl")
        for place, (paper, backbone, value) in enumerate(runs) for task in (1, 2)
    ]  # fmt: skip
    data = with_distinct_names(build("mini", lines))
    expected = {"Zero-shot CLIP, mini (ALTA)": 70.0, "Zero-shot CLIP, mini-rn": 10.0,
                "Zero-shot CLIP, mini (VQ-Prompt)": 90.0}  # fmt: skip
    curves = figures._measured_curves(data, protocol)
    assert {name: curve for name, (curve,) in curves.items()} == {
        name: [(1, value), (2, value)] for name, value in expected.items()
    }
    last = [replace(line, metric="last", after_task=10) for line in lines[:4:2]]
    bars = figures._numbers(with_distinct_names(build("mini", last)), protocol)
    assert {name: row["last"].mean for name, row in bars.items()} == {
        "Zero-shot CLIP, mini": 70.0, "Zero-shot CLIP, mini-rn": 10.0,
    }  # fmt: skip
    alone = with_distinct_names(build("mini", lines[:2]))
    assert list(figures._measured_curves(alone, protocol)) == ["Zero-shot CLIP"]


LONG = "InfLoRA, init_cls 11, increment 11, total_sessions 11, epochs 21, init_epoch 21, batch_size 129, rank 11"


def test_long_names_leave_room_for_the_plots(tmp_path: Path):
    """Bars of some 85 percent, and a curve over all tasks, take a good part of their figure's width."""
    records = [replace(line, method=LONG) for line in sample("mini").records if line.method == "InfLoRA"]
    for path in figures.write(tmp_path, build("mini", records)):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=2).any(axis=0)
        assert blue.sum() > 0.4 * len(blue), path.name
        assert (pixels[:, [0, -1]] == 255).all(), path.name  # nothing is cut off
