"""Declared options: where values come from, what is refused and how it is told, what --help shows."""

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.options import check_rules, ignored, one_placeholder, option, read, read_file, settings

FILE = """
dataset: digits
lr: 7e-6
increment: ${first}
schedule: [2, 0.5]
output: {folder: "out/${dataset}-${increment}", logging: {version: 1, format: '%(message)s'}}
"""


ALL = " --help lists all."
PRESETS = {"paper": None, "mini": Path("mini.yaml"), "half": lambda now: {"first": now.first * 2}}


@dataclass(frozen=True)
class Output:
    folder: str = option(help="where to", decides=False)
    logging: dict[str, Any] = option({}, decides=False)


@dataclass(frozen=True)
class Shared:
    workers: int | None = option(None, "loader processes", group="run", at_least=0, decides=False)
    overwrite: bool = option(False, "start anew", decides=False)


@dataclass(frozen=True)
class Options(Shared, ignored("fisher fair", "never read")):
    dataset: str = option(help="a data set", group="data", choices=("digits", "letters"))
    lr: list[float] = option([1e-3], "learning rate", at_least=0)
    schedule: list[float] | None = option(None, "rates", flags=("--lr-schedule",))
    first: int = option(5, "classes", at_least=1)
    steps: int | None = option(None, "length", yields_to="rounds")
    rounds: int | None = option(None, "length in rounds")
    increment: int = option(10, "classes", at_least=1, at_most=100)
    beta: float = option(0.9, "of Adam", at_least=0, below=1)
    alpha: float = option(0.5, "of WiSE-FT", above=0)
    seeds: list[int] = option([], "seeds", words=True, at_least=0, unique=True)
    mean: bool = option(False, "keep a mean", flags=("--we", "--swa"))
    decay: bool = option(True, "keep weights as they are", off=("--keep-finished",))
    template: str | None = option(None, "prompt", check=one_placeholder)
    method: str = option("ZSCL", "method", convert=lambda name: {"lwa": "ZSCL"}.get(name, name))
    scale: str = option("paper", "size", presets=PRESETS)
    output: Output = field(default_factory=Output)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a configuration and a preset."""
    (tmp_path / "digits.yaml").write_text(FILE)
    (tmp_path / "mini.yaml").write_text("lr: [0.5]\nfirst: 4\nsteps: 9\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*words: str) -> Options:
    """The options of a command line that starts from the configuration."""
    source = "digits.yaml"
    return read(Options, list(words), "paper.main", "A method.", "Try it.", lambda _: (read_file(source), source))


def alone(*words: str) -> Options:
    """The options of a command line without a configuration."""
    return read(Options, list(words), "paper.main")


def message(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value)


# Where values come from


def test_the_file_over_the_defaults() -> None:
    options = parse()
    assert (options.dataset, options.lr, options.first, options.increment) == ("digits", [7e-6], 5, 5)
    assert (options.schedule, options.output.folder) == ([2.0, 0.5], "out/digits-5")
    assert options.output.logging["format"] == "%(message)s"
    assert (options.beta, options.seeds, options.mean, options.decay, options.workers) == (0.9, [], False, True, None)


def test_the_command_line_over_the_file() -> None:
    words = ("--lr", "1e-4,2", "--first", "3", "--seeds", "4", "5", "--swa", "--workers=2", "--template", "a {}.")
    options = parse(*words)
    assert (options.lr, options.first, options.increment, options.seeds) == ([1e-4, 2.0], 3, 3, [4, 5])
    assert (options.mean, options.workers, options.template) == (True, 2, "a {}.")
    assert parse("--keep-finished").decay is False and parse("--we").mean and parse("--method", "lwa").method == "ZSCL"


@pytest.mark.parametrize(
    "words", [("--lr-schedule", "1,2"), ("--lr_schedule=1,2",), ("schedule=[1, 2]",), ("--set", "schedule=1,2")]
)
def test_spellings_of_one_option(words: tuple[str, ...]) -> None:
    assert parse(*words).schedule == [1.0, 2.0]


def test_keys_with_values() -> None:
    words = ("lr=1e-5", "+first=2", "output.folder=o/${method}", "overwrite=true", "--set", "beta=0.5", "mean=yes")
    options = parse(*words)
    assert (options.lr, options.first, options.output.folder) == ([1e-5], 2, "o/ZSCL")
    assert (options.overwrite, options.beta, options.mean) == (True, 0.5, True)
    assert parse("--overwrite", "false").overwrite is False and parse("--overwrite", "lr=3").lr == [3.0]
    assert parse("schedule=null").schedule is None and parse("template='{} a=b'").template == "{} a=b"
    assert parse("--template", "x={}").template == "x={}"  # the value of a flag, not of a key x
    assert message("--seeds", "first=3") == "--seeds first=3: a whole number, or a list of such, is expected."


def test_the_last_word_counts_and_presets_act_where_they_stand() -> None:
    options = parse("lr=3", "--first", "9", "--scale", "mini", "--lr", "6")
    assert (options.lr, options.first, options.scale) == ([6.0], 4, "mini")
    assert parse("--scale", "mini", "--scale", "paper").first == 4
    assert parse("--first", "3", "scale=half").first == 6 and parse("scale=half", "--first=3").first == 3


def test_a_preset_s_value_gives_way() -> None:
    def steps(*words: str) -> tuple[int | None, int | None]:
        options = parse(*words)
        return options.steps, options.rounds

    assert steps("--scale", "mini") == (9, None)
    assert steps("--scale", "mini", "--rounds", "2") == steps("--rounds", "2", "--scale", "mini") == (None, 2)
    assert steps("--scale", "mini", "--steps", "3", "--rounds", "2") == (3, 2)  # both by hand: a rule's matter


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.yaml", "dataset: digits\nfirst: 010\n", "line 2: YAML reads 010 as 8. Write "),
        ("a.yaml", "schedule: [2, -0_7]\n", "line 1: YAML reads -0_7 as -7. Write "),
        ("a.yaml", "output:\n  folder: 1:30\n", "line 2: YAML reads 1:30 as 90. Write "),
        ("a.json", '{"first": 1, "output": {"folder": "a", "folder": "b"}}', "the key folder occurs twice. Leave one."),
    ],
)
def test_values_that_a_file_does_not_seem_to_hold(folder: Path, name: str, text: str, told: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_file(name)
    assert str(caught.value).startswith(f"configuration {name}: {told}")


def test_numbers_and_texts_that_look_like_those(folder: Path) -> None:
    (folder / "a.yaml").write_text("a: '010'\nb: 0\nc: 0.5\nd: -0\ne: 10\nf: 0x10\ng: 09 May\nh: \"1:30\"\n")
    expected = {"a": "010", "b": 0, "c": 0.5, "d": 0, "e": 10, "f": 16, "g": "09 May", "h": "1:30"}
    assert read_file("a.yaml") == expected


def test_options_do_not_change() -> None:
    options = parse()
    for owner, name in ((options, "first"), (options.output, "folder")):
        with pytest.raises(FrozenInstanceError):
            setattr(owner, name, 1)


def test_what_decides_a_run() -> None:
    decides = settings(parse("--workers", "1", "--fisher", "x"))
    assert decides.keys() == set(Options.__dataclass_fields__) - {"workers", "overwrite", "fisher", "fair", "output"}
    assert (decides["lr"], decides["increment"]) == ([7e-6], 5)


def test_what_has_no_effect_is_said(capsys: pytest.CaptureFixture) -> None:
    parse("--fisher", "3", "--fair")
    assert capsys.readouterr().out == "note: without effect: --fisher (never read), --fair (never read)\n"
    parse()
    assert capsys.readouterr().out == ""


# What is refused


@pytest.mark.parametrize(
    "words, told",
    [
        (["--lr", "fast"], "--lr fast: a number, or a list of such, is expected."),
        (["lr=1,fast"], "lr 1,fast: a number, or a list of such, is expected."),
        (["--first", "1.5"], "--first 1.5: a whole number is expected."),
        (["--first", "null"], "--first null: a whole number is expected."),
        (["--first", "true"], "--first true: a whole number is expected."),
        (["--overwrite", "perhaps"], "--overwrite perhaps: true or false is expected."),
        (["--first", "0"], "--first 0: give 1 or more."),
        (["--increment", "101"], "--increment 101: give 1 or more, at most 100."),
        (["--beta", "1"], "--beta 1.0: give 0 or more, less than 1."),
        (["--alpha", "0"], "--alpha 0.0: give more than 0."),
        (["--alpha", "inf"], "--alpha inf: give more than 0."),
        (["--lr-schedule", "nan"], "--lr-schedule nan: give a finite number."),
        (["--lr", "3,-1e-3"], "--lr -0.001: give 0 or more."),
        (["--lr", "-inf"], "--lr -inf: give 0 or more."),
        (["--seeds", "1", "2", "1"], "--seeds 1 2 1: a value occurs twice."),
        (["--seeds", "-1"], "--seeds -1: give 0 or more."),
        (["--dataset", "digit"], "--dataset digit: unknown. Did you mean digits? Known are digits, letters."),
        (["--scale", "midi"], "--scale midi: unknown. Did you mean mini? Known are paper, mini, half."),
        (["--template", "{}{x}"], "--template {}{x}: give {} once, where the class name stands."),
        (["--template", "{} {}"], "--template {} {}: give {} once, where the class name stands."),
        (["--template", "{"], "--template {: give {} once, where the class name stands."),
        (["--dataset", ""], "--dataset: it is empty. Give a text."),
        (["lr=,"], "lr: it is empty. Give a number."),
        (["--lr"], "--lr: expected one argument. --help lists all options."),
        (["--lr", "--mean"], "--lr: expected one argument. --help lists all options."),
        (["--incremint", "3"], "--incremint: unknown option. Did you mean --increment? --help lists all."),
        (["incremint=3"], "incremint: unknown option. Did you mean increment? --help lists all."),
        (["mini"], "'mini' is not understood. Options are --flag VALUE; --help lists all."),
        (["--lr", "1,,2"], "--lr: it is empty. Give a number."),
        (["--first", "1000000001"], "--first 1000000001: give 1 or more, at most 1000000000."),
        (["--template", "a\0{}"], "--template a\0{}: a text is expected."),
        (["--scale", "${method}"], "--scale ${method}: a text is expected."),
        (["--set"], "'' is not understood: give --flag VALUE or key=value. --help lists all options."),
        (["--set", "mini"], "'mini' is not understood: give --flag VALUE or key=value. --help lists all options."),
        (["output.folder=${nothing}"], "output.folder: Interpolation key 'nothing' not found."),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_message(words: list[str], told: str) -> None:
    assert message(*words) == told


@pytest.mark.parametrize(
    "text, told",
    [
        ("lr: fast", "digits.yaml: lr fast: a number, or a list of such, is expected."),
        ("lr: true", "digits.yaml: lr True: a number, or a list of such, is expected."),
        ("beta: true", "digits.yaml: beta True: a number is expected."),
        ("first: true", "digits.yaml: first True: a whole number is expected."),
        ("method: true", "digits.yaml: method True: a text is expected."),
        ("overwrite: 2", "digits.yaml: overwrite 2: true or false is expected."),
        ("beta: .nan", "digits.yaml: beta nan: give 0 or more, less than 1."),
        ("first: 0", "digits.yaml: first 0: give 1 or more."),
        ("seeds: []", "digits.yaml: seeds: it is empty. Give a whole number."),
        ("learning_rate: 3", "digits.yaml: learning_rate: unknown option. --help lists all."),
        ("output: {foldr: x}", "digits.yaml: output.foldr: unknown option. Did you mean output.folder?" + ALL),
        ("output: 3", "digits.yaml: output: unknown option. Did you mean output.folder? --help lists all."),
        ("scale: midi", "digits.yaml: scale midi: unknown. Did you mean mini? Known are paper, mini, half."),
        ("first: 3", "--dataset, --output.folder: missing. --help says what to give."),
        ("", "configuration digits.yaml: keys with values are expected."),
        ("[1, 2]", "configuration digits.yaml: keys with values are expected."),
        ("3", "configuration digits.yaml: not YAML (no keys with values)."),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_message(folder: Path, text: str, told: str) -> None:
    (folder / "digits.yaml").write_text(text)
    assert message() == told


def test_files_that_can_not_be_read(folder: Path) -> None:
    (folder / "cut.yaml").write_text("lr: [1, 2")
    (folder / "twice.yaml").write_text("lr: 1\nlr: 2")
    (folder / "cut.json").write_text('{"lr": 1')
    (folder / "bytes.yaml").write_bytes(bytes(range(256)))
    for name, kind in (("cut.yaml", "YAML"), ("twice.yaml", "YAML"), ("cut.json", "JSON"), ("bytes.yaml", "YAML")):
        with pytest.raises(UserError, match=f"^configuration {name}: not {kind} ") as caught:
            read_file(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^configuration mimi.yaml: it can not be read .* Did you mean mini.yaml\?"):
        read_file("mimi.yaml")
    with pytest.raises(UserError, match="^configuration .*: it can not be read"):
        read_file(folder)


def test_json_is_read_as_yaml_is(folder: Path) -> None:
    (folder / "digits.json").write_text('{"dataset": "letters", "lr": 1e-5, "output": {"folder": "x"}}')
    options = read(Options, [], "paper.main", file=lambda _: (read_file("digits.json"), "digits.json"))
    assert (options.dataset, options.lr, options.output.folder) == ("letters", [1e-5], "x")


def test_the_first_broken_rule_is_told() -> None:
    check_rules([(False, "a"), (None, "b"), ([], "c")])
    with pytest.raises(UserError, match="^b$"):
        check_rules([(False, "a"), (True, "b"), (True, "c")])


# Help


def helped(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*words, "--help")
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_groups_defaults_and_what_the_file_has(capsys: pytest.CaptureFixture) -> None:
    text = helped(capsys)
    assert text.startswith("usage: python -m paper.main [options] A method.") and "Try it." in text
    assert text.index("data:") < text.index("--lr X[,X...] learning rate [7e-06]") < text.index("run:")
    assert "--dataset TEXT a data set (digits, letters) [digits]" in text and "--we, --swa keep a mean" in text
    assert "--increment N classes [${first}]" in text and "--scale TEXT size (paper, mini, half) [paper]" in text
    assert "Accepted and without effect, as in the original: --fisher, --fair." in text
    assert "--lr X[,X...] learning rate [3.0]" in helped(capsys, "lr=3")


def test_help_comes_without_a_configuration(capsys: pytest.CaptureFixture) -> None:
    def missing(given: Any) -> None:
        raise UserError("--config: missing.")

    with pytest.raises(SystemExit):
        read(Options, ["-h"], "paper.main", file=missing)
    assert "a data set (digits, letters) [no default]" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="--config: missing"):
        read(Options, [], "paper.main", file=missing)


# Positional words


@dataclass(frozen=True)
class Table(Shared):
    table: str = option(help="its name", group="table", positional=True)
    runs: list[str] = option(["runs"], "folders", words=True)


def test_positional_words() -> None:
    options = read(Table, ["--overwrite", "mtil=1", "--runs", "a", "b=c"], "results run")
    assert (options.table, options.runs, options.overwrite) == ("mtil=1", ["a", "b=c"], True)
    with pytest.raises(UserError, match="^TABLE: missing"):
        read(Table, [], "results run")
    with pytest.raises(UserError, match="'more' is not understood"):
        read(Table, ["one", "more"], "results run")
