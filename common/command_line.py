"""The spelling of options on a command line: argparse's flags, and key=value, for `common.options`."""

import argparse
import difflib
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from common.errors import UserError

if TYPE_CHECKING:
    from common.options import Declared

Parsed = argparse.Namespace  # which iBOT's published checkpoint holds, too
Entry = tuple[str, str, Any]  # key, what messages call the option, value
ASSIGNMENT = re.compile(r"\+?[A-Za-z_][\w.-]*=")


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """A hint at the known word that was probably meant, upper and lower case apart; "" for none."""
    lower = {str(other).lower(): other for other in known}
    near = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.5)
    return f" Did you mean {lower[near[0]]}?" if near else ""


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def joined(value: Any) -> str:
    return " ".join(map(str, listed(value)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. --help lists all options.")


class _Keep(argparse.Action):
    """Keep (key, what messages call it, value) in the order of the command line."""

    def __call__(self, parser: Any, namespace: Parsed, value: Any, flag: str | None = None) -> None:
        if self.dest == "set":
            name, equals, value = value.lstrip("+").partition("=")
            if not equals:
                parser.error(f"{name!r} is not understood: give --flag VALUE or key=value")
            namespace.given.append((name.replace("-", "_"), name, value))
        else:
            namespace.given.append((self.dest, flag or self.metavar, self.const if self.nargs == 0 else value))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Flags that may stand alone are shown alone."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.nargs == "?" else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown, flags = [], list(action.option_strings)
        while flags:  # of two that differ in - and _ alone the first one
            shown.append(flags.pop(0))
            flags = [flag for flag in flags if flag.replace("_", "-") != shown[-1].replace("_", "-")]
        args = self._format_args(action, "") if action.nargs != 0 else ""
        return " ".join([", ".join(shown), args]).rstrip() if shown else super()._format_action_invocation(action)


def argument_parser(known: Mapping[str, "Declared"], about: Mapping[str, str], config: Any) -> _Parser:
    """The parser; `config` holds the values that --help shows as those that hold without a flag."""
    idle = [item.flags[0] for item in known.values() if item.about.ignored]
    ignored = f"Accepted and without effect, as in the original: {', '.join(idle)}." if idle else ""
    epilog = "\n".join([about["epilog"], textwrap.fill(ignored, 110)]).strip()
    places = [item for item in known.values() if item.about.positional]
    positional = [f"[{item.flags[0]} ...]" if item.is_list else item.flags[0] for item in places]
    usage = " ".join([about["prog"], *positional, "[options]"])
    parser = _Parser(
        prog=about["prog"], usage=usage, description=about["description"], epilog=epilog,
        allow_abbrev=False, add_help=False, formatter_class=partial(_Help, max_help_position=32, width=110),
    )  # fmt: skip
    group: argparse._ActionsContainer = parser
    values = OmegaConf.to_container(config, resolve=False)
    for item in known.values():
        if item.about.group:
            group = parser.add_argument_group(item.about.group)
        text = argparse.SUPPRESS if item.about.ignored else _help(item, values)
        how: dict[str, Any] = {"action": _Keep, "metavar": _metavar(item), "help": text}
        if item.about.positional:
            how |= {"metavar": item.flags[0]} | ({"nargs": "*", "default": argparse.SUPPRESS} if item.is_list else {})
            group.add_argument(item.key, **how).required = False  # `_check` says what is missing
        elif typing.get_origin(item.kind) is not dict:  # that one is of a file alone
            if item.kind is bool:
                how |= {"nargs": 0 if positional or item.about.off else "?", "const": "false" if item.about.off else "true"}
            how |= {"nargs": "+"} if item.about.words else {}
            alone = "true" if item.about.ignored else item.about.alone
            how |= {"nargs": "?", "const": alone} if alone is not None and item.kind is not bool else {}
            group.add_argument(*_spellings(item), dest=item.key, **how)
    if not positional:
        text = "the same as --KEY VALUE, as is KEY=VALUE alone; in flags - and _ are the same"
        parser.add_argument("--set", action=_Keep, metavar="KEY=VALUE ...", help=text)
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def _spellings(item: "Declared") -> list[str]:
    """The flags with _ and with -, those of the declaration first."""
    names = [flag.lstrip("-") for flag in item.flags if flag.startswith("--")]
    others = [f"--{other}" for name in names for other in (name.replace("_", "-"), name.replace("-", "_"))]
    return list(dict.fromkeys([*item.flags, *others]))


def _metavar(item: "Declared") -> str:
    one = {int: "N", float: "X"}.get(item.kind, "TEXT")
    return f"{one}[,{one}...]" if item.is_list and not item.about.words else one


def _help(item: "Declared", value: Any) -> str:
    """The help text, the choices, and what holds without the flag, of all values; nothing for what is false or none."""
    for name in item.key.split("."):
        value = value[name]
    choices = ", ".join(map(str, item.about.presets or item.about.choices))
    shown = {MISSING: "no default", "True": f"on; {item.key}=false: off"}.get(str(value), joined(value))
    silent = item.about.off or value is False or value in (None, "", [])
    parts = [item.about.help, f"({choices})" if choices else "", "" if silent else f"[{shown}]"]
    return " ".join(part for part in parts if part).replace("%", "%%")


def command_line(known: Mapping[str, "Declared"], parser: _Parser, words: Sequence[str]) -> tuple[list[Entry], bool]:
    """What is given, from left to right, and whether help is asked for."""
    namespace, rest = parser.parse_known_args(words, Parsed(given=[]))
    if rest and not namespace.help:
        word = rest[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word!r} is not understood. Options are --flag VALUE; --help lists all.")
        flags = [flag for item in known.values() for flag in item.flags]
        raise UserError(f"{word}: unknown option.{did_you_mean(word, flags)} --help lists all.")
    return namespace.given, namespace.help


def canonical_words(known: Mapping[str, "Declared"], words: Sequence[str]) -> list[str]:
    """The words, values joined to their flags (they may begin with -), and key=value as --set=key=value."""
    takes_value = {
        flag: item.kind is not bool and not item.about.words and item.about.alone is None
        for item in known.values() for flag in _spellings(item)
    }  # fmt: skip
    has_set = not any(item.about.positional for item in known.values())
    several = [flag for item in known.values() if item.about.words for flag in _spellings(item)]
    found: list[str] = []
    flag, sets = "", False  # the flag whose value comes next, and whether --set's come
    for word, before in zip(words, ["", *words]):
        if flag and not word.startswith("--"):
            found.append(f"{flag}={word}")
            flag = ""
            continue
        found += [flag] if flag else []  # argparse says that its value is missing
        flag = word if takes_value.get(word) else ""
        sets = has_set and (word == "--set" or sets and not word.startswith("-"))
        assigns = has_set and before not in several and (sets or ASSIGNMENT.match(word))
        found += [] if flag or word == "--set" and sets else [f"--set={word}" if assigns else word]
    found += ["--set="] if has_set and "--set" in words[-1:] else []
    return found + ([flag] if flag else [])
