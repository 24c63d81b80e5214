"""A run with GELU: its checkpoints say so, and neither they nor its folder mix with QuickGELU's."""

import warnings
from pathlib import Path

import pytest
import torch

from common import clip
from common.clip.model import GELU, build_model
from tests.zscl.conftest import ON_CAPTIONS, ZSCL, same_weights, tensors
from zscl.checkpoints import load_weights_, save_weights
from zscl.main import main

TASK = ["--train-dataset", "DTD", "--batch-size", "4", "--warmup_length", "0", "--lr", "1e-3", "--iterations", "1"]


def refusal(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_run_with_gelu(tiny_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for activation, name in (("gelu", "gelu"), ("quickgelu", "quick"), ("auto", "auto")):
        main([*TASK, *tiny_world, "--activation", activation, "--save", str(tmp_path / name)])
    gelu, quick, auto = (tensors(tmp_path / name / "DTD.pth")["visual.proj"] for name in ("gelu", "quick", "auto"))
    assert torch.equal(quick, auto) and not torch.equal(quick, gelu)
    capsys.readouterr()
    main([*TASK, *tiny_world, "--save", str(tmp_path / "quick")])  # the same numbers: the same run
    assert "weights.model" in refusal(capsys, [*TASK, *tiny_world, "--save", str(tmp_path / "gelu")])

    trained = tmp_path / "gelu" / "DTD.pth"
    evaluation = ["--eval-only", "--eval-datasets", "DTD", "--load", str(trained)]
    message = refusal(capsys, [*evaluation, *tiny_world])
    assert f"{trained} was trained with gelu, but --model computes with quickgelu. Add --activation gelu." in message
    main([*evaluation, *tiny_world, "--activation", "gelu"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip.load(trained)[0].activation == GELU


def test_kept_features_of_the_other_activation_are_not_used(tiny_world: list[str], tmp_path: Path) -> None:
    given = [*TASK, *ZSCL, *ON_CAPTIONS, *tiny_world]
    for activation, cache in (("gelu", "shared"), ("quickgelu", "shared"), ("quickgelu", "own")):
        folders = ["--cache-dir", str(tmp_path / cache), "--save", str(tmp_path / f"{activation}-{cache}")]
        main([*given, "--iterations", "2", "--activation", activation, *folders])
    assert same_weights(tmp_path / "quickgelu-shared" / "DTD.pth", tmp_path / "quickgelu-own" / "DTD.pth")


def test_checkpoint_without_a_word_is_the_models(tmp_path: Path) -> None:
    """As the original writes them, and earlier versions did."""
    weights = clip.load("mini")[0].state_dict()
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    for activation in ("quickgelu", "gelu"):
        load_weights_(build_model(weights, activation), tmp_path / "a.pth")
    save_weights(tmp_path / "b.pth", build_model(weights, "gelu"))
    load_weights_(build_model(weights, "gelu"), tmp_path / "b.pth")
