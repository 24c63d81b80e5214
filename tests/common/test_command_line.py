"""What the command lines share: presets, lists, rules, names of protocols."""

import argparse
from pathlib import Path

import pytest

from common.command_line import (
    RUN_FLAGS,
    add_run_flags,
    check_rules,
    listed,
    mini_folder,
    mtil_names,
    mtil_protocol,
    nth,
    preset_action,
)
from common.datasets import MTIL_ORDER_1, MTIL_ORDER_2
from common.errors import UserError


@pytest.fixture
def parser(tmp_path: Path) -> argparse.ArgumentParser:
    """A parser of the run flags and --lr, its presets in a folder of two."""
    (tmp_path / "mini.yaml").write_text("lr: [0.5]\nmodel: mini\nthreads: 1\n")
    (tmp_path / "broken.yaml").write_text("learning_rate: 0.5\n")
    parser = argparse.ArgumentParser()
    preset = preset_action(tmp_path)
    parser.add_argument("--lr", type=listed(float), default=[1e-3])
    parser.add_argument("--preset", choices=["broken"], action=preset)
    add_run_flags(parser, preset)
    return parser


def test_defaults_are_the_paper_s(parser: argparse.ArgumentParser) -> None:
    for arguments in ([], ["--scale", "paper"]):
        args = parser.parse_args(arguments)
        assert (args.scale, args.model, args.lr, args.threads) == ("paper", "ViT-B/16", [1e-3], None)


def test_a_preset_acts_where_it_stands(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--lr", "3", "--scale", "mini", "--model", "ViT-L/14"])
    assert (args.scale, args.lr, args.threads, args.model) == ("mini", [0.5], 1, "ViT-L/14")


def test_a_preset_with_an_unknown_key(
    parser: argparse.ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--preset", "broken"])
    assert stop.value.code == 2
    assert f"{tmp_path.name}/broken.yaml: unknown key learning_rate" in capsys.readouterr().err


def test_flags_that_decide_no_number_are_flags(parser: argparse.ArgumentParser) -> None:
    assert vars(parser.parse_args([])).keys() - RUN_FLAGS == {"lr", "preset", "model", "load", "scale"}
    assert set(RUN_FLAGS) < vars(parser.parse_args([])).keys()


def test_lists(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture) -> None:
    assert parser.parse_args(["--lr", "1e-3"]).lr == [1e-3]
    assert parser.parse_args(["--lr", "1e-3,2,"]).lr == [1e-3, 2.0]
    with pytest.raises(SystemExit):
        parser.parse_args(["--lr", "1e-3,fast"])
    assert "invalid float or comma list value: '1e-3,fast'" in capsys.readouterr().err


def test_nth() -> None:
    assert [nth(["a"], index) for index in range(3)] == ["a", "a", "a"]
    assert [nth(["a", "b", "c"], index) for index in range(3)] == ["a", "b", "c"]


def test_the_first_broken_rule_is_told() -> None:
    check_rules([(False, "a"), (None, "b"), ([], "c")])
    with pytest.raises(UserError, match="^b$"):
        check_rules([(False, "a"), (True, "b"), (True, "c")])


def test_a_miniature_has_a_folder_of_its_own() -> None:
    assert mini_folder("runs/a", "mini") == mini_folder("runs/a-mini", "mini") == "runs/a-mini"
    assert mini_folder("runs/a", "paper") == "runs/a"
    assert mini_folder(None, "mini") is None


def test_names_of_the_sequences() -> None:
    assert mtil_names(["order1"]) == list(MTIL_ORDER_1) and mtil_names(["order2"]) == list(MTIL_ORDER_2)
    assert mtil_names(["MNIST", "DTD"]) == ["MNIST", "DTD"] and mtil_names(None) is None
    with pytest.raises(UserError, match="Did you mean MNIST"):
        mtil_names(["MNISTs"])


def test_names_of_the_protocols() -> None:
    assert mtil_protocol(list(MTIL_ORDER_1)) == "mtil-order1"
    assert mtil_protocol(MTIL_ORDER_2) == "mtil-order2"
    assert {mtil_protocol(names) for names in (MTIL_ORDER_1[:10], MTIL_ORDER_1[::-1], [], None)} == {"mtil-custom"}
