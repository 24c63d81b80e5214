"""One way to declare, read, check and record options, for every entry point.

An entry point's options are one frozen dataclass, each field declared by `option`. `read` fills it from, the later over
the earlier,

    1. the fields' defaults
    2. the configuration file, YAML or JSON, in the original's keys
    3. the command line from left to right: --flag VALUE, key=value (also as --set key=value), and presets

where a preset, such as --scale mini, stands for the values of a file of its own: what follows it overrides it. A flag
may be spelled with - or with _. argparse reads the spelling, OmegaConf's structured configs the types; whatever is
unknown, of another type or outside its range ends in one UserError, before anything is written.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError

Options = TypeVar("Options")
Content = Mapping[str, Any]  # of a configuration file
Preset = Path | Callable[[Any], Content] | None  # a file of values, or a function of the options so far, or nothing

REQUIRED = "???"  # OmegaConf's word for a value that must be given
LARGEST_SEED = 2**32 - 1  # NumPy's
Rule = tuple[Any, str]  # what is wrong if true, and how it is told
ASSIGNMENT = re.compile(r"\+?[A-Za-z_][\w.]*=")
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0", "none")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


@dataclass(frozen=True)
class About:
    """What there is to say of a field besides its type and default."""

    help: str = ""
    group: str = ""  # title of a group of --help, which this field and those after it belong to
    flags: tuple[str, ...] = ()  # spellings on the command line; --<name> without
    off: tuple[str, ...] = ()  # of a bool: flags that make it false, instead of one that makes it true
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    check: Callable[[Any], str | None] = lambda value: None  # what is wrong with a value, None if nothing
    convert: Callable[[Any], Any] | None = None  # a value as given -> the value meant, such as the names of order1
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)  # by this field's value
    words: bool = False  # a list of separate words instead of one word with commas
    adds: bool = False  # a list to which the flag, given again, adds
    alone: str | None = None  # what the flag says without a value, where it may stand so
    positional: bool = False
    empty: bool = False  # whether an empty text or list makes sense
    unique: bool = False  # whether no value of a list may occur twice
    decides: bool = True  # whether a run's numbers depend on it: compared when the run is taken up again
    ignored: str = ""  # why it has no effect; then it decides nothing and is not checked


@dataclass(frozen=True)
class Declared:
    """A field under its dotted key. kind: int, float, bool, str, Path or Any, of the elements where it is a list."""

    key: str
    kind: Any
    is_list: bool
    optional: bool
    default: Any
    about: About

    @property
    def flags(self) -> tuple[str, ...]:
        own = self.key.upper() if self.about.positional else "--" + self.key
        return self.about.flags or self.about.off or (own,)


def option(default: Any = REQUIRED, help: str = "", **about: Any) -> Any:
    """A field of an options dataclass; `about` are the fields of About."""
    metadata = {"about": About(help, **about)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(options: type, prefix: str = "") -> list[Declared]:
    """All fields, those of the class itself before inherited ones, those of a section under section.key."""
    hints, found = typing.get_type_hints(options), []
    fields = {item.name: item for item in dataclasses.fields(options)}
    names = dict.fromkeys(name for owner in options.__mro__ for name in inspect.get_annotations(owner))
    for item in (fields[name] for name in names if name in fields):
        hint, key = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(hint):
            found += declared(hint, f"{key}.")
            continue
        union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(part for part in union if part is not type(None))
        is_list = typing.get_origin(kind) is list
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        kind = typing.get_args(kind)[0] if is_list else kind
        found.append(Declared(key, kind, is_list, len(union) > 1, default, item.metadata.get("about", About())))
    return found


def settings(options: Any) -> dict[str, Any]:
    """What decides a run's numbers, as plain values: the fields of a section under the section's name."""
    values: dict[str, Any] = {}
    for item in declared(type(options)):
        if item.about.decides and not item.about.ignored:
            *sections, name = item.key.split(".")
            owner, place = options, values
            for section in sections:
                owner, place = getattr(owner, section), place.setdefault(section, {})
            place[name] = getattr(owner, name)
    return values


# Reading


def read(
    options: type[Options],
    argv: Sequence[str] | None,
    prog: str,
    description: str = "",
    epilog: str = "",
    file: Callable[[Mapping[str, Any]], tuple[Content, str] | None] = lambda given: None,
) -> Options:
    """An instance of `options`; argv None is the process's own command line. --help prints and exits.

    `file` finds the configuration: what the command line gives by key -> its content and what messages call it, or None
    for none. Raises UserError for everything that is unknown, missing, of another type or outside its range.
    """
    known = {item.key: item for item in declared(options)}
    words = sys.argv[1:] if argv is None else list(argv)
    about = {"prog": f"python -m {prog}", "description": description, "epilog": epilog}
    given, asks_help = _command_line(known, words, about)
    config = OmegaConf.structured(options)
    _unlock(config)
    spelled: dict[str, str] = {}  # key -> how messages name it
    try:
        content = file({key: value for key, _, value in given})
    except UserError:
        if not asks_help:
            raise
        content = None
    if content is not None:
        _refuse_presets(known, *content)
        _assign_all(config, known, spelled, *content)
    for key, name, value in given:
        if key in known and known[key].about.adds:
            value = [*(OmegaConf.select(config, key) or []), *value]
        _assign(config, known, spelled, key, value, name)
        preset = known[key].about.presets.get(value) if known[key].about.presets else None
        if preset is not None:
            _assign_all(config, known, spelled, *_preset(preset, config, f"{name} {value}"))
    if asks_help:
        print(_parser(known, about, config).format_help())
        raise SystemExit(0)
    _check(config, known, spelled)
    return OmegaConf.to_object(config)


def read_file(path: Path | str) -> dict[str, Any]:
    """The content of a YAML or JSON file. Raises UserError if it can not be read or holds no keys with values."""
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:  # OmegaConf's loader takes 1e-5 for a number, which plain YAML does not
            loaded = OmegaConf.create(text) if text.strip() else None
            content = OmegaConf.to_container(loaded, resolve=False) if loaded is not None else None
    except OSError as error:
        names = [other.name for other in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = f" Did you mean {path.parent / near}?" if (near := nearest(path.name, names)) else ""
        raise UserError(f"configuration {path}: it can not be read ({error.strerror}).{hint}") from error
    except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"configuration {path}: not {kind} ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: keys with values are expected.")
    return content


def nearest(word: str, known: Iterable[Any]) -> str | None:
    """The known word that was probably meant, upper and lower case apart."""
    lower = {str(other).lower(): str(other) for other in known}
    near = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.5)
    return lower[near[0]] if near else None


def unknown(what: str, word: Any, known: Iterable[Any]) -> str:
    """The message for a value that is none of the known ones."""
    known = [str(other) for other in known]
    hint = f" Did you mean {near}?" if (near := nearest(word, known)) else ""
    return f"{what}: unknown.{hint} Known are {', '.join(known)}."


def _unlock(config: DictConfig) -> None:
    """Frozen dataclasses make read-only configurations, sections each on their own."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if OmegaConf.is_dict(config._get_node(key)):
            _unlock(config._get_node(key))


def _refuse_presets(known: Mapping[str, Declared], content: Content, source: str) -> None:
    for key in content:
        if key in known and known[key].about.presets:
            raise UserError(f"{source}: {key}: it can be set on the command line only.")


def _preset(preset: Preset, config: DictConfig, name: str) -> tuple[Content, str]:
    return (preset(config), name) if callable(preset) else (read_file(preset), str(preset))


def _assign_all(
    config: DictConfig, known: Mapping[str, Declared], spelled: dict[str, str], content: Content, source: str
) -> None:
    for key, value in _flat(known, content):
        _assign(config, known, spelled, key, value, f"{source}: {key}")


def _flat(known: Mapping[str, Declared], content: Content, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that a file holds; only sections are taken apart."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in known):
            yield from _flat(known, value, f"{key}.")
        else:
            yield key, value


def _assign(
    config: DictConfig, known: Mapping[str, Declared], spelled: dict[str, str], key: str, value: Any, name: str
) -> None:
    """Set one value, in its type; `name` is what messages call the option."""
    if key not in known:
        hint = f" Did you mean {near}?" if (near := nearest(key, known)) else ""
        raise UserError(f"{name}: unknown option.{hint} --help lists all.")
    item, shown = known[key], f"{name} {_joined(value)}"
    spelled[key] = name
    try:
        value = _plain(item, value)
        if isinstance(value, bool) and item.kind in (int, float, str):
            raise ValueError
        if item.kind is bool and str(value).lower() not in BOOLEANS:  # OmegaConf takes any number
            raise ValueError
        OmegaConf.update(config, key, value, merge=False)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        kind = KINDS.get(item.kind, "another value")
        raise UserError(f"{shown}: {f'{kind}, or a list of such,' if item.is_list else kind} is expected.") from error


def _plain(item: Declared, value: Any) -> Any:
    """What a text of the command line, or a file's value, stands for: null, a comma list, a quoted text."""
    if isinstance(value, str):
        if value == "null" and item.optional:
            return None
        if item.is_list and not value.startswith("${"):
            parts = value.removeprefix("[").removesuffix("]").split(",")
            value = [part.strip() for part in parts if part.strip()]
        elif len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
    if item.is_list and not isinstance(value, list | str | None):
        value = [value]
    if "" in (value if isinstance(value, list) else [value]) and (item.is_list or item.kind is Path):
        raise UserError(f"it is empty. Give {KINDS.get(item.kind, 'a value')}.")
    if item.is_list and isinstance(value, list) and any(isinstance(part, bool) for part in value):
        raise ValueError
    return item.about.convert(value) if item.about.convert and value is not None else value


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# Checking


def _check(config: DictConfig, known: Mapping[str, Declared], spelled: Mapping[str, str]) -> None:
    """Raise UserError for values that are missing or outside their range; say what was given without effect."""
    absent = OmegaConf.missing_keys(config)
    missing = [item.flags[0] for key, item in known.items() if key in absent]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing. --help says what to give.")
    idle = []
    for key, item in known.items():
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            raise UserError(f"{spelled.get(key, key)}: {str(error).splitlines()[0]}.") from error
        if item.about.ignored:
            idle += [f"{spelled[key]} ({item.about.ignored})"] if key in spelled and value else []
        elif key in spelled and value is not None:
            _check_value(item, OmegaConf.to_container(value) if OmegaConf.is_list(value) else value, spelled[key])
    if idle:
        print(f"note: without effect: {', '.join(idle)}")


def _check_value(item: Declared, value: Any, name: str) -> None:
    about, values = item.about, value if isinstance(value, list) else [value]
    if value in ("", []) and not about.empty:
        raise UserError(f"{name}: it is empty. Give {KINDS.get(item.kind, 'a value')}.")
    if about.unique and len(set(values)) < len(values):
        raise UserError(f"{name} {_joined(value)}: a value occurs twice.")
    for one in values:
        choices = about.presets or about.choices
        if choices and not any(type(one) is type(known) and one == known for known in choices):
            raise UserError(unknown(f"{name} {one}", one, choices))
        if isinstance(one, float) and not math.isfinite(one) or not _within(about, one):
            raise UserError(f"{name} {one}: give {_range(item)}.")
    if complaint := about.check(value):
        raise UserError(f"{name} {_joined(value)}: {complaint}")


def _within(about: About, value: Any) -> bool:
    return (
        (about.at_least is None or value >= about.at_least)
        and (about.above is None or value > about.above)
        and (about.at_most is None or value <= about.at_most)
        and (about.below is None or value < about.below)
    )


def _range(item: Declared) -> str:
    about = item.about
    parts = [f"{about.at_least} or more"] if about.at_least is not None else []
    parts += [f"more than {about.above}"] if about.above is not None else []
    parts += [f"at most {about.at_most}"] if about.at_most is not None else []
    parts += [f"less than {about.below}"] if about.below is not None else []
    return ", ".join(parts) or "a finite number"


def one_placeholder(template: str) -> str | None:
    """A check of templates, which name the class once, as {}."""
    fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    return None if fields == [""] else "give {} once, where the class name stands."


def check_rules(rules: Iterable[Rule]) -> None:
    """Raise UserError for the first rule that is broken."""
    for wrong, message in rules:
        if wrong:
            raise UserError(message)


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. --help lists all options.")


class _Keep(argparse.Action):
    """Keep (key, what messages call it, value) in the order of the command line."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, flag: str | None = None) -> None:
        if self.dest == "set":
            key, equals, value = value.lstrip("+").partition("=")
            if not equals:
                parser.error(f"{key!r} is not understood: give --flag VALUE or key=value")
            namespace.given.append((key, key, value))
        else:
            namespace.given.append((self.dest, flag or self.metavar, self.const if self.nargs == 0 else value))


class _Help(argparse.HelpFormatter):
    """Flags that may stand alone are shown alone, texts of several lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.nargs == "?" else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).replace(" ,", ",").rstrip()


def _parser(known: Mapping[str, Declared], about: Mapping[str, str], config: DictConfig | None = None) -> _Parser:
    """The parser; `config` holds the values that --help shows as those that hold without a flag."""
    idle = [item.flags[0] for item in known.values() if item.about.ignored]
    epilog = about["epilog"] + (f" Accepted and without effect, as in the original: {', '.join(idle)}." if idle else "")
    places = [item for item in known.values() if item.about.positional]
    positional = [f"[{item.flags[0]} ...]" if item.is_list else item.flags[0] for item in places]
    usage = " ".join([about["prog"], *positional, "[options]"])
    parser = _Parser(
        prog=about["prog"], usage=usage, description=about["description"], epilog=epilog,
        allow_abbrev=False, add_help=False, formatter_class=partial(_Help, max_help_position=32, width=110),
    )  # fmt: skip
    group: Any = parser
    for item in known.values():
        if item.about.group:
            group = parser.add_argument_group(item.about.group)
        text = argparse.SUPPRESS if item.about.ignored else _help(item, config)
        how: dict[str, Any] = {"action": _Keep, "metavar": _metavar(item), "help": text}
        if item.about.positional:
            how |= {"metavar": item.flags[0]} | ({"nargs": "*", "default": argparse.SUPPRESS} if item.is_list else {})
            group.add_argument(item.key, **how).required = False  # `_check` says what is missing
        elif typing.get_origin(item.kind) is not dict:  # that one is of a file alone
            if item.kind is bool:
                alone = positional or item.about.off
                how |= {"nargs": 0 if alone else "?", "const": "false" if item.about.off else "true"}
            how |= {"nargs": "+"} if item.about.words else {}
            how |= {"nargs": "?", "const": item.about.alone} if item.about.alone is not None else {}
            group.add_argument(*item.flags, dest=item.key, **how)
    if not positional:
        text = "the same as --KEY VALUE; so does KEY=VALUE alone"
        parser.add_argument("--set", action=_Keep, metavar="KEY=VALUE ...", help=text)
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def _metavar(item: Declared) -> str:
    one = {int: "N", float: "X"}.get(item.kind, "TEXT")
    return f"{one}[,{one}...]" if item.is_list and not item.about.words else one


def _help(item: Declared, config: DictConfig | None) -> str:
    """The help text, the choices, and the value without the flag; none for a bool, which is false, or nothing."""
    value = item.default if config is None else OmegaConf.to_container(config, resolve=False)
    if config is not None:
        for name in item.key.split("."):
            value = value[name]
    choices = tuple(item.about.presets) or item.about.choices
    known = f" ({', '.join(map(str, choices))})" if choices else ""
    shown = "" if value is False or value in (None, "", []) else f" [{'must be given' if value == REQUIRED else _joined(value)}]"
    shown = "" if item.about.off else shown
    return f"{item.about.help}{known}{shown}".strip().replace("%", "%%")


def _command_line(
    known: Mapping[str, Declared], words: Sequence[str], about: Mapping[str, str]
) -> tuple[list[tuple[str, str, Any]], bool]:
    """(key, spelling, value) from left to right, and whether help is asked for."""
    parser = _parser(known, about)
    namespace, rest = parser.parse_known_args(_canonical(known, words), argparse.Namespace(given=[]))
    if rest and not namespace.help:
        word = rest[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word!r} is not understood. Options are --flag VALUE or key=value; --help lists all.")
        flags = [flag for item in known.values() for flag in item.flags]
        hint = f" Did you mean {near}?" if (near := nearest(word, flags)) else ""
        raise UserError(f"{word}: unknown option.{hint} --help lists all.")
    return namespace.given, namespace.help


def _canonical(known: Mapping[str, Declared], words: Sequence[str]) -> list[str]:
    """The words with flags in their declared spelling, joined with their values, and key=value as --set=key=value."""
    flags = {flag.replace("_", "-"): (flag, item) for item in known.values() for flag in item.flags}
    takes_words = any(item.about.positional for item in known.values())
    found: list[str] = []
    flag, sets = "", False  # the flag whose value comes next, and whether --set's come
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("-") and name.replace("_", "-") in flags:
            found += [flag] if flag else []  # argparse says that its value is missing
            spelling, item = flags[name.replace("_", "-")]
            takes_value = not equals and item.kind is not bool and not item.about.words
            flag, sets = (spelling if takes_value else ""), False
            found += [] if takes_value else [spelling + equals + value]
        elif flag and not word.startswith("--"):
            found.append(f"{flag}={word}")
            flag = ""
        elif name == "--set" and not takes_words:
            found += [word] if equals else []
            sets = True
        else:
            found += [flag] if flag else []
            sets, flag = sets and not word.startswith("-"), ""
            found.append(f"--set={word}" if sets or not takes_words and ASSIGNMENT.match(word) else word)
    return found + ([flag] if flag else [])
