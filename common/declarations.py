"""What is declared of an option, beside its name and default in a dataclass: read by `common.options`."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Content = Mapping[str, Any]  # of a configuration file
Preset = Path | Callable[[Any], Content] | None  # a file of values, or a function of the options so far, or nothing


@dataclass(frozen=True)
class Spec:
    """Everything about an option besides its type and default."""

    help: str = ""
    group: str = ""  # title of a group of --help that begins with this field
    flags: tuple[str, ...] = ()  # spellings on the command line; --<name> without
    off: tuple[str, ...] = ()  # of a bool: flags that make it false, instead of one that makes it true
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    check: Callable[[Any], str | None] = lambda value: None  # message for a wrong value, else None
    convert: Callable[[Any], Any] | None = None  # given value -> value, such as order1 -> its names
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)  # by this field's value
    yields_to: str = ""  # the field that, given, stands in place of this one's value from a preset
    words: bool = False  # a list of separate words instead of one word with commas
    adds: bool = False  # a list that the flag, given again, extends
    alone: str | None = None  # value of the flag without a value; None: a value is required
    positional: bool = False
    empty: bool = False  # whether an empty text or list is accepted
    unique: bool = False  # whether no value of a list may occur twice
    decides: bool = True  # whether a run's numbers depend on it: then it is compared on resume
    ignored: str = ""  # reason why it has no effect; then it decides nothing and is not checked


@dataclass(frozen=True)
class Declaration:
    """A field under its dotted key. kind: int, float, bool, str, Path or Any, of a list that of its elements."""

    key: str
    kind: Any
    is_list: bool
    optional: bool
    default: Any
    spec: Spec

    @property
    def flags(self) -> tuple[str, ...]:
        default = self.key.upper() if self.spec.positional else "--" + self.key
        return self.spec.flags or self.spec.off or (default,)
