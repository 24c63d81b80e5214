"""One way to declare, read, check and record options, for every entry point.

An entry point's options are one frozen dataclass, each field declared by `option`. `read` fills it from, the later over
the earlier,

    1. the fields' defaults
    2. the configuration file, YAML or JSON, in the original's keys
    3. the command line from left to right: --flag VALUE, key=value (also as --set key=value), and presets

where a preset, such as --scale mini, stands for the values of a file of its own: what follows it overrides it. A flag
may be spelled with - or with _. argparse reads the spelling, OmegaConf's structured configs the types; an unknown
option, another type or a value outside its range raises UserError before anything is written.
"""

import dataclasses
import inspect
import json
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from common.command_line import Entry, argument_parser, canonical_words, command_line, did_you_mean, joined, listed
from common.declarations import Content, Declaration, Preset, Spec
from common.errors import UserError

Options = TypeVar("Options")

REQUIRED = MISSING  # a value that must be given
LARGEST_SEED = 2**32 - 1  # NumPy's
LARGEST_COUNT = 10**9  # of an option without `at_most`
SHARE = {"at_least": 0, "at_most": 1}  # ranges for `option`
SEED: dict[str, Any] = {"at_least": 0, "at_most": LARGEST_SEED}
Rule = tuple[Any, str]  # a condition that must be false, and the message if it is true
RANGES = {  # field of Spec: the comparison that must hold, and its words
    "at_least": (operator.ge, "{} or more"),
    "above": (operator.gt, "more than {}"),
    "at_most": (operator.le, "at most {}"),
    "below": (operator.lt, "less than {}"),
}
OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")  # of YAML 1.1's numbers
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0", "none")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def option(default: Any = REQUIRED, help: str = "", **spec: Any) -> Any:
    """A field of an options dataclass; `spec` are the fields of `Spec`."""
    metadata = {"spec": Spec(help, **spec)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def scale_option(mini: Preset, **spec: Any) -> Any:
    """The option --scale, whose value mini sets the values of a file or a function."""
    return option("paper", "mini: the embedded miniature, in minutes", presets={"paper": None, "mini": mini}, **spec)


def ignored(names: str, why: str) -> type:
    """A base class for options that are accepted and have no effect; `names` are separated by spaces."""
    fields = [(name, Any, option(None, ignored=why)) for name in names.split()]
    return dataclasses.make_dataclass("Ignored", fields, frozen=True)


def declared(options: type, prefix: str = "") -> list[Declaration]:
    """All fields, inherited ones last; fields of a section have the key section.key."""
    hints, declarations = typing.get_type_hints(options), []
    fields = {item.name: item for item in dataclasses.fields(options)}
    names = dict.fromkeys(name for owner in options.__mro__ for name in inspect.get_annotations(owner))
    for item in (fields[name] for name in names if name in fields):
        hint, key = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(hint):
            declarations += declared(typing.cast(type, hint), f"{key}.")
            continue
        union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(part for part in union if part is not type(None))
        is_list = typing.get_origin(kind) is list
        kind = typing.get_args(kind)[0] if is_list else kind
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        spec = item.metadata.get("spec", Spec())
        declarations.append(Declaration(key, kind, is_list, len(union) > 1, default, spec))
    return declarations


def settings(options: Any) -> dict[str, Any]:
    """Options that decide a run's numbers, as plain values; a section is a dictionary under its name."""
    values = OmegaConf.create()
    for item in declared(type(options)):
        if item.spec.decides and not item.spec.ignored:
            OmegaConf.update(values, item.key, operator.attrgetter(item.key)(options))
    return typing.cast(dict[str, Any], OmegaConf.to_container(values))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings under dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


# Reading


def read(
    options: type[Options], argv: Sequence[str] | None, prog: str, description: str = "", epilog: str = "",
    file: Callable[[Mapping[str, Any]], tuple[Content, str] | None] = lambda given: None,
) -> Options:  # fmt: skip
    """An instance of `options` from `argv`, None: sys.argv. --help prints and exits.

    `file` maps the command line's values by key to the configuration's content and its name in messages, None: no
    configuration. Raises UserError for an unknown or missing option, and for a value of another type or outside its
    range.
    """
    declarations = {item.key: item for item in declared(options)}
    program = {"prog": f"python -m {prog}", "description": description, "epilog": epilog}
    config, names = OmegaConf.structured(options), {}  # names: key -> its name in messages
    _unlock(config)
    words = canonical_words(declarations, sys.argv[1:] if argv is None else argv)
    given, asks_help = command_line(declarations, argument_parser(declarations, program, config), words)
    try:
        content, source = file({key: value for key, _, value in given}) or ({}, "")
    except UserError:
        if not asks_help:
            raise
        content, source = {}, ""
    waiting = [*_entries(declarations, content, source), *given]
    of_presets = set[str]()  # names in messages
    while waiting:
        key, name, value = waiting.pop(0)
        if key in declarations and declarations[key].spec.adds:
            value = [*OmegaConf.select(config, key), *value]
        _assign(config, declarations, key, name, value)
        names[key] = name
        presets = declarations[key].spec.presets
        if presets and (preset := presets.get(value)) is not None:
            content = preset(config) if callable(preset) else read_file(preset)
            entries = _entries(declarations, content, f"{name} {value}" if callable(preset) else str(preset))
            of_presets |= {name for _, name, _ in entries}
            waiting[:0] = entries
    for key, item in declarations.items():
        if names.get(key) in of_presets and names.get(item.spec.yields_to, "") not in {"", *of_presets}:
            OmegaConf.update(config, key, item.default, merge=False)
    if asks_help:
        argument_parser(declarations, program, config).print_help()
        raise SystemExit(0)
    _check(config, declarations, names)
    return typing.cast(Options, OmegaConf.to_object(config))


def words_by_key(kinds: Sequence[type], argv: Sequence[str] | None) -> tuple[dict[str, Any], bool]:
    """Texts by key from a command line for options of any of `kinds`, and whether it asks for help."""
    declarations = {item.key: item for kind in kinds for item in declared(kind)}
    config = OmegaConf.merge(*(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(kind))) for kind in kinds))
    words = canonical_words(declarations, sys.argv[1:] if argv is None else argv)
    parser = argument_parser(declarations, dict.fromkeys(("prog", "description", "epilog"), ""), config)
    entries, asks_help = command_line(declarations, parser, words)
    return {key: value for key, _, value in entries}, asks_help


def read_file(path: Path | str) -> dict[str, Any]:
    """The content of a YAML or JSON file. Raises UserError if it can not be read or holds no keys with values."""
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_without_repeats)
        else:  # OmegaConf's loader, unlike plain YAML, reads 1e-5 as a number
            _refuse_other_bases(text)
            content = OmegaConf.to_container(OmegaConf.create(text if text.strip() else "[]"), resolve=False)
    except OSError as error:
        names = [other.name for other in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, names)
        raise UserError(f"configuration {path}: it can not be read ({error.strerror}).{hint}") from error
    except UserError as error:
        raise UserError(f"configuration {path}: {error}") from error
    except (ValueError, AssertionError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        reason = " ".join(str(error).split())[:200] or "no keys with values"
        raise UserError(f"configuration {path}: not {kind} ({reason}).") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: keys with values are expected.")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's content. Raises UserError for a key that occurs twice, of which JSON keeps the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise UserError(f"the key {repeated} occurs twice. Leave one.")
    return content


def _refuse_other_bases(text: str) -> None:
    """Raise UserError for a number of YAML 1.1 to base 8 or 60: 010 is 8, and 1:30 is 90."""
    for event in yaml.parse(text, yaml.SafeLoader):
        plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and OTHER_BASE.fullmatch(event.value)
        if plain and isinstance(value := yaml.safe_load(event.value), int | float):
            told = f"line {event.start_mark.line + 1}: YAML reads {event.value} as {value}"
            raise UserError(f"{told}. Write the number without leading 0 and colon, or a text in quotes.")


def named_file(key: str, example: str) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]]:
    """The `file` argument of `read` for an option `key` that names the configuration."""

    def find(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        path, folder = given.get(key), Path(example).parent
        if not path:
            raise UserError(f"--{key}: missing. Give a file, such as {example}.")
        if not Path(path).expanduser().is_file():
            files = [folder / file.name for file in (Path(__file__).parents[1] / folder).iterdir()]
            raise UserError(f"--{key} {path}: no such file.{did_you_mean(path, files)}")
        return read_file(path), path

    return find


def unknown(what: str, word: Any, choices: Iterable[Any]) -> str:
    """Message for a word that is none of the choices."""
    return f"{what}: unknown.{did_you_mean(word, choices)} Known are {', '.join(map(str, choices))}."


def _unlock(config: DictConfig) -> None:
    """Make a configuration from frozen dataclasses writable, section by section."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if isinstance(section := OmegaConf.select(config, str(key)), DictConfig):
            _unlock(section)


def _entries(declarations: Mapping[str, Declaration], content: Content, source: str, prefix: str = "") -> list[Entry]:
    """Entries of a file's content; sections are flattened, values that are mappings are not."""
    entries = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in declarations):
            entries += _entries(declarations, value, source, f"{key}.")
        else:
            entries.append((key, f"{source}: {key}", value))
    return entries


def _assign(config: DictConfig, declarations: Mapping[str, Declaration], key: str, name: str, value: Any) -> None:
    """Set one value, converted to its type. Raises UserError."""
    if key not in declarations:
        raise UserError(f"{name}: unknown option.{did_you_mean(key, declarations)} --help lists all.")
    item = declarations[key]
    try:
        OmegaConf.update(config, key, _plain(item, value), merge=False)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        kind = KINDS.get(item.kind, "another value") + (", or a list of such," if item.is_list else "")
        raise UserError(f"{name} {joined(value)}: {kind} is expected.") from error


def _plain(item: Declaration, value: Any) -> Any:
    """The value of a text from a command line or a file: null, a comma list, a quoted text."""
    if isinstance(value, str):
        if value == "null" and item.optional:
            return None
        if item.is_list and not value.startswith("${"):
            inner = value.removeprefix("[").removesuffix("]").strip()
            value = [part.strip() for part in inner.split(",")] if inner else []
        elif len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
    if item.is_list and not isinstance(value, list | str | None):
        value = [value]
    if (value in ("", []) or "" in listed(value)) and not (item.spec.empty or item.spec.ignored):
        raise UserError(f"it is empty. Give {KINDS.get(item.kind, 'a value')}.")
    if any(isinstance(part, str) and ("\0" in part or item.spec.presets and "${" in part) for part in listed(value)):
        raise ValueError
    value = item.spec.convert(value) if item.spec.convert and value is not None else value
    truth = any(isinstance(part, bool) for part in listed(value))
    if item.kind is str and truth or item.kind is bool and str(value).lower() not in BOOLEANS:
        raise ValueError  # OmegaConf accepts a bool as text, and any number as bool
    return value


# Checking


def _check(config: DictConfig, declarations: Mapping[str, Declaration], names: Mapping[str, str]) -> None:
    """Raise UserError for missing values and values outside their range; print a note on options without effect."""
    idle = []
    for key, item in declarations.items():
        try:
            value = OmegaConf.select(config, key)
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            raise UserError(f"{names.get(key, key)}: {str(error).splitlines()[0]}.") from error
        if item.spec.ignored:
            surprising = key in names and value not in (item.default, 0)
            idle += [f"{names[key].split(': ')[-1]} ({item.spec.ignored})"] if surprising else []
        elif key in names and value is not None:
            _check_value(item, OmegaConf.to_container(value) if OmegaConf.is_list(value) else value, names[key])
    absent = OmegaConf.missing_keys(config)
    missing = [item.flags[0] for key, item in declarations.items() if key in absent]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing. --help says what to give.")
    if idle:
        print(f"note: without effect: {', '.join(idle)}")


def _check_value(item: Declaration, value: Any, name: str) -> None:
    spec, values = item.spec, listed(value)
    if spec.unique and len(set(values)) < len(values):
        raise UserError(f"{name} {joined(value)}: a value occurs twice.")
    for one in values:
        choices = spec.presets or spec.choices
        if choices and not any(type(one) is type(choice) and one == choice for choice in choices):
            raise UserError(unknown(f"{name} {one}", one, choices))
        bounds = {key: getattr(spec, key) for key in RANGES if getattr(spec, key) is not None}
        if isinstance(one, int) and spec.at_most is None and one > LARGEST_COUNT:
            bounds["at_most"] = LARGEST_COUNT
        finite = not isinstance(one, float) or math.isfinite(one)
        if not finite or not all(RANGES[key][0](one, bound) for key, bound in bounds.items()):
            allowed = ", ".join(RANGES[key][1].format(bound) for key, bound in bounds.items())
            raise UserError(f"{name} {one}: give {allowed or 'a finite number'}.")
    if complaint := spec.check(value):
        raise UserError(f"{name} {joined(value)}: {complaint}")


def one_placeholder(template: str) -> str | None:
    """A `check` that a template contains {}, which stands for the class, once."""
    once = template.count("{}") == 1 and not set("{}") & set(template.replace("{}", ""))
    return None if once else "give {} once, where the class name stands."


def exclusive(options: Any, *names: str) -> Rule:
    """Rule that at most one of these options is given."""
    given = [name for name in names if getattr(options, name)]
    return len(given) > 1, f"--{' and --'.join(given)} exclude each other; give one of them."


def hand_on(kind: type[Options], options: object, **values: Any) -> Options:
    """An instance of dataclass `kind` from `values`, else from the fields of the same names in `options`."""
    names = {field.name for field in dataclasses.fields(kind)} - values.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names if hasattr(options, name)}, **values)


def check_rules(rules: Iterable[Rule]) -> None:
    """Raise UserError with the message of the first rule whose condition is true."""
    for wrong, message in rules:
        if wrong:
            raise UserError(message)
