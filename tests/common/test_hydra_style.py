"""The command line of the Hydra-driven originals: values, their types, and what is refused."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import UserError
from common.hydra_style import HydraSection, read_options


@dataclass
class Options:
    dataset: str = "???"
    batch_size: int = 64
    lr: float = field(default=1e-3, metadata={"help": "learning rate"})
    ls: float = 0.0
    we: int | None = None
    ce_method: int | str = 0
    prompt_template: str = ""
    initial_increment: int = 10
    increment: int = 10
    method: str = "finetune"
    scenario: str = "class"
    seeds: list[int] = field(default_factory=lambda: [42])
    overwrite: bool = False
    save_interval: float = 10.0
    scale: str = field(default="paper", metadata={"help": "size of a run"})
    hydra: HydraSection = field(default_factory=HydraSection)


FILE = """
hydra:
  run:
    dir: ./experiments/${scenario}/${dataset}_${initial_increment}-${increment}-${method}
  job:
    chdir: true
  job_logging:
    version: 1
    formatters: {simple: {format: '%(message)s'}}
dataset: cifar100
batch_size: 128
initial_increment: 5
increment: ${initial_increment}
lr: 7e-6
we: null
prompt_template: a bad photo of a {}.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs" / "class").mkdir(parents=True)
    (tmp_path / "configs" / "class" / "cifar100_5-5.yaml").write_text(FILE)
    (tmp_path / "mini.yaml").write_text("batch_size: 32\nlr: 0.01\ninitial_increment: 4\n")
    return tmp_path


def read(folder: Path, *words: str) -> Options:
    presets = {"scale": {"paper": None, "mini": folder / "mini.yaml"}}
    argv = ["--config-path", "configs/class", "--config-name", "cifar100_5-5.yaml", *words]
    return read_options(argv, Options, folder, "paper.cil", presets)


def test_the_file_over_the_defaults(folder: Path) -> None:
    options = read(folder)
    assert isinstance(options, Options)
    assert (options.dataset, options.batch_size, options.ls, options.we) == ("cifar100", 128, 0.0, None)
    assert type(options.lr) is float and options.lr == 7e-6  # plain YAML reads 7e-6 as text
    assert options.prompt_template == "a bad photo of a {}." and options.seeds == [42]
    assert options.increment == 5
    assert options.hydra.run.dir == "./experiments/class/cifar100_5-5-finetune"
    assert options.hydra.job_logging["formatters"]["simple"]["format"] == "%(message)s"


def test_overrides_are_read_as_hydra_reads_them(folder: Path) -> None:
    words = ("lr=1e-5", "batch_size=8", "initial_increment=2", "we=1", "ce_method=ext", "seeds=[1, 2]", "dataset=",
             "prompt_template=a photo, of {}", "hydra.run.dir=out/${method}", "+method=lwf", "ls=1")  # fmt: skip
    options = read(folder, *words)
    assert (options.lr, options.batch_size, options.we, options.ce_method) == (1e-5, 8, 1, "ext")
    assert (options.seeds, options.dataset, options.prompt_template) == ([1, 2], "", "a photo, of {}")
    assert (options.increment, options.hydra.run.dir) == (2, "out/lwf")  # interpolations follow the overrides
    assert type(options.ls) is float
    assert read(folder, "we=1", "we=null").we is None and math.isinf(read(folder, "ls=inf").ls)


def test_flags_mean_the_same(folder: Path) -> None:
    options = read(folder, "--lr", "1e-5", "--batch-size=8", "--overwrite", "--save-interval", "0.5", "method=lwf")
    assert (options.lr, options.batch_size, options.overwrite, options.save_interval) == (1e-5, 8, True, 0.5)
    assert options.method == "lwf"
    assert read(folder, "--overwrite", "false", "--ls", "-1").ls == -1.0
    assert read(folder, "overwrite=true").overwrite and not read(folder, "--overwrite", "false").overwrite


def test_a_preset_acts_where_it_stands(folder: Path) -> None:
    options = read(folder, "lr=5", "batch_size=7", "--scale", "mini", "lr=6")
    assert (options.scale, options.lr, options.batch_size, options.increment) == ("mini", 6.0, 32, 4)
    options = read(folder, "scale=paper")
    assert (options.scale, options.batch_size) == ("paper", 128)


def test_config_names_with_and_without_ending_from_the_working_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "x.yaml").write_text("dataset: mine\nhydra: {run: {dir: out}}\n")
    monkeypatch.chdir(elsewhere)
    assert read_options(["-cp", "mine", "-cn", "x"], Options, folder, "paper.cil").dataset == "mine"
    absolute = ["--config-path", str(elsewhere / "mine"), "--config-name=x.yaml"]
    assert read_options(absolute, Options, folder, "paper.cil").dataset == "mine"


@pytest.mark.parametrize(
    "word, message",
    [
        ("lr=abc", "lr=abc: lr: Value 'abc' of type 'str' could not be converted to Float."),
        ("lr=null", "lr=null: lr: Incompatible value 'None' for field of type 'float'."),
        (
            "batch_size=1.5",
            "batch_size=1.5: batch_size: Value '1.5' of type 'float' could not be converted to Integer.",
        ),
        ("we=true", "we: Value 'True' of type 'bool' could not be converted to Integer."),
        ("seeds=[1, a]", "seeds[1]: Value 'a' of type 'str' could not be converted to Integer."),
        ("seeds=[1", "seeds=[1: not a value"),
        ("batchsize=3", "batchsize=3: unknown key batchsize. Did you mean batch_size? --help lists all."),
        ("--batchsize=3", "Did you mean batch_size?"),
        ("hydra.rundir=x", "hydra.rundir=x: unknown key hydra.rundir. Did you mean hydra.run.dir?"),
        ("+epochs=2", "unknown key epochs."),
        ("lr.x=3", "lr.x=3: lr: Value"),
        ("~lr", "'~lr' is not understood. Overrides are key=value or --key value; see --help."),
        ("~lr=3", "'~lr=3' is not understood"),
        ("mini", "'mini' is not understood"),
        ("=3", "'=3' is not understood"),
        ("--lr", "--lr needs a value."),
        ("--scale=midi", "scale=midi: known are paper, mini."),
        ("method=${nothing}", "method: Interpolation key 'nothing' not found."),
    ],
)
def test_a_wrong_override_is_one_message(folder: Path, word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(folder, word)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rate: 3", "x.yaml: unknown key learning_rate."),
        ("batch_sise: 3", "x.yaml: unknown key batch_sise. Did you mean batch_size?"),
        ("lr: fast", "x.yaml: lr: Value 'fast' of type 'str' could not be converted to Float."),
        ("lr: [1, 2", "x.yaml: not a configuration (while parsing a flow sequence"),
        ("lr: 1\nlr: 2", "x.yaml: not a configuration (while constructing a mapping"),
        ("- lr", "x.yaml: expected lines key: value."),
        ("scale: mini", "x.yaml: scale can be set on the command line only."),
        ("method: lwf", "no value for dataset, hydra.run.dir; give key=value."),
        (None, "no configuration x.yaml in "),
    ],
)
def test_a_wrong_file_is_one_message(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        (folder / "x.yaml").write_text(text)
    presets = {"scale": {"mini": folder / "mini.yaml"}}
    with pytest.raises(UserError) as caught:
        read_options(["--config-name", "x.yaml"], Options, folder, "paper.cil", presets)
    assert message in str(caught.value)


def test_configurations_are_listed_when_none_fits(folder: Path) -> None:
    with pytest.raises(UserError, match="--config-name is missing. There are cifar100_5-5.yaml."):
        read_options(["--config-path", "configs/class"], Options, folder, "paper.cil")
    with pytest.raises(UserError, match="Did you mean cifar100_5-5.yaml[?]"):
        read_options(["-cp", "configs/class", "-cn", "cifar100_5-6.yaml"], Options, folder, "paper.cil")
    with pytest.raises(UserError, match="There is none below .*nowhere: give --config-path"):
        read_options(["-cp", "nowhere", "-cn", "x"], Options, folder, "paper.cil")


def test_help_lists_every_key_with_its_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(folder, "--help", "ls=0.2")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.startswith("usage: python -m paper.cil --config-path FOLDER")
    rows = {line.split("=")[0].strip(): line for line in text.splitlines() if line.startswith("  ")}
    assert list(rows) == list(Options.__dataclass_fields__)
    assert rows["lr"].split() == ["lr=7.0e-06", "learning", "rate"] and rows["ls"].split() == ["ls=0.2"]
    assert rows["scale"].endswith("size of a run (paper, mini)")
    with pytest.raises(SystemExit):
        read_options(["--help"], Options, folder, "paper.cil")
    assert "  dataset=???" in capsys.readouterr().out
