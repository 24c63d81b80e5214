"""Command lines of `common.options`: argparse's flags, and key=value."""

import argparse
import difflib
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import MISSING, OmegaConf

from common.declarations import Declaration
from common.errors import UserError

Parsed = argparse.Namespace  # iBOT's published checkpoint contains one, too
Entry = tuple[str, str, Any]  # key, what messages call the option, value
ASSIGNMENT = re.compile(r"\+?[A-Za-z_][\w.-]*=")


def did_you_mean(word: Any, choices: Iterable[Any]) -> str:
    """Hint at the nearest choice, upper and lower case alike; "" if none is near."""
    lower = {str(other).lower(): other for other in choices}
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
    """Append an `Entry` to namespace.given, in the order of the command line."""

    def __call__(self, parser: Any, namespace: Parsed, value: Any, flag: str | None = None) -> None:
        if self.dest == "set":
            name, equals, value = value.lstrip("+").partition("=")
            if not equals:
                parser.error(f"{name!r} is not understood: give --flag VALUE or key=value")
            namespace.given.append((name.replace("-", "_"), name, value))
        else:
            namespace.given.append((self.dest, flag or self.metavar, self.const if self.nargs == 0 else value))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows flags whose value is optional without a value, and one spelling of each flag."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.nargs == "?" else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown, flags = [], list(action.option_strings)
        while flags:  # the first of those that differ in - and _ only
            shown.append(flags.pop(0))
            flags = [flag for flag in flags if flag.replace("_", "-") != shown[-1].replace("_", "-")]
        args = self._format_args(action, "") if action.nargs != 0 else ""
        return " ".join([", ".join(shown), args]).rstrip() if shown else super()._format_action_invocation(action)


def argument_parser(declarations: Mapping[str, Declaration], program: Mapping[str, str], config: Any) -> _Parser:
    """The parser; --help shows the values of `config` as defaults."""
    idle = [item.flags[0] for item in declarations.values() if item.spec.ignored]
    ignored = f"Accepted and without effect, as in the original: {', '.join(idle)}." if idle else ""
    epilog = "\n".join([program["epilog"], textwrap.fill(ignored, 110)]).strip()
    positionals = [item for item in declarations.values() if item.spec.positional]
    positional = [f"[{item.flags[0]} ...]" if item.is_list else item.flags[0] for item in positionals]
    usage = " ".join([program["prog"], *positional, "[options]"])
    parser = _Parser(
        prog=program["prog"], usage=usage, description=program["description"], epilog=epilog,
        allow_abbrev=False, add_help=False, formatter_class=partial(_Help, max_help_position=32, width=110),
    )  # fmt: skip
    group: argparse._ActionsContainer = parser
    values = OmegaConf.to_container(config, resolve=False)
    for item in declarations.values():
        if item.spec.group:
            group = parser.add_argument_group(item.spec.group)
        text = argparse.SUPPRESS if item.spec.ignored else _help(item, values)
        kwargs: dict[str, Any] = {"action": _Keep, "metavar": _metavar(item), "help": text}
        if item.spec.positional:
            kwargs |= {"metavar": item.flags[0]} | (
                {"nargs": "*", "default": argparse.SUPPRESS} if item.is_list else {}
            )
            group.add_argument(item.key, **kwargs).required = False  # `_check` says what is missing
        elif typing.get_origin(item.kind) is not dict:  # dictionaries come from files only
            if item.kind is bool:
                kwargs["nargs"] = 0 if positional or item.spec.off else "?"
                kwargs["const"] = "false" if item.spec.off else "true"
            kwargs |= {"nargs": "+"} if item.spec.words else {}
            alone = "true" if item.spec.ignored else item.spec.alone
            kwargs |= {"nargs": "?", "const": alone} if alone is not None and item.kind is not bool else {}
            group.add_argument(*_spellings(item), dest=item.key, **kwargs)
    if not positional:
        text = "the same as --KEY VALUE, as is KEY=VALUE alone; in flags - and _ are the same"
        parser.add_argument("--set", action=_Keep, metavar="KEY=VALUE ...", help=text)
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def _spellings(item: Declaration) -> list[str]:
    """The flags with _ and with -, the declared ones first."""
    names = [flag.lstrip("-") for flag in item.flags if flag.startswith("--")]
    others = [f"--{other}" for name in names for other in (name.replace("_", "-"), name.replace("-", "_"))]
    return list(dict.fromkeys([*item.flags, *others]))


def _metavar(item: Declaration) -> str:
    one = {int: "N", float: "X"}.get(item.kind, "TEXT")
    return f"{one}[,{one}...]" if item.is_list and not item.spec.words else one


def _help(item: Declaration, value: Any) -> str:
    """Help text, choices and default, the latter from all values; no default that is false or none."""
    for name in item.key.split("."):
        value = value[name]
    choices = ", ".join(map(str, item.spec.presets or item.spec.choices))
    shown = {MISSING: "no default", "True": f"on; {item.key}=false: off"}.get(str(value), joined(value))
    silent = item.spec.off or value is False or value in (None, "", [])
    parts = [item.spec.help, f"({choices})" if choices else "", "" if silent else f"[{shown}]"]
    return " ".join(part for part in parts if part).replace("%", "%%")


def command_line(
    declarations: Mapping[str, Declaration], parser: _Parser, words: Sequence[str]
) -> tuple[list[Entry], bool]:
    """Entries from left to right, and whether help is asked for."""
    namespace, rest = parser.parse_known_args(words, Parsed(given=[]))
    if rest and not namespace.help:
        word = rest[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word!r} is not understood. Options are --flag VALUE; --help lists all.")
        flags = [flag for item in declarations.values() for flag in item.flags]
        raise UserError(f"{word}: unknown option.{did_you_mean(word, flags)} --help lists all.")
    return namespace.given, namespace.help


def canonical_words(declarations: Mapping[str, Declaration], words: Sequence[str]) -> list[str]:
    """The words with values joined to their flags (they may begin with -), and key=value as --set=key=value."""
    takes_value = {
        flag: item.kind is not bool and not item.spec.words and item.spec.alone is None
        for item in declarations.values() for flag in _spellings(item)
    }  # fmt: skip
    has_set = not any(item.spec.positional for item in declarations.values())
    several = [flag for item in declarations.values() if item.spec.words for flag in _spellings(item)]
    canonical: list[str] = []
    flag, sets = "", False  # the flag that waits for its value, and whether --set waits for assignments
    for word, before in zip(words, ["", *words]):
        if flag and not word.startswith("--"):
            canonical.append(f"{flag}={word}")
            flag = ""
            continue
        canonical += [flag] if flag else []  # argparse says that its value is missing
        flag = word if takes_value.get(word) else ""
        sets = has_set and (word == "--set" or sets and not word.startswith("-"))
        assigns = has_set and before not in several and (sets or ASSIGNMENT.match(word))
        canonical += [] if flag or word == "--set" and sets else [f"--set={word}" if assigns else word]
    canonical += ["--set="] if has_set and "--set" in words[-1:] else []
    return canonical + ([flag] if flag else [])
