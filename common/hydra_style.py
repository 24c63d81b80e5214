"""The command line of originals that were driven by Hydra, without Hydra: a YAML file and key=value overrides.

    python -m zscl.cil --config-path configs/class --config-name cifar100_10-10-ZSCL.yaml dataset_root=data lr=1e-5

The keys, their types and defaults are the fields of a dataclass; OmegaConf, Hydra's own reader, merges and checks. On
top of Hydra's surface `--key value` and `--flag` mean key=value and flag=true, so that all scripts of this project take
the same extra flags, and a preset (`--scale mini`) stands for the values of another file. Overrides and presets act
from left to right. Hydra's groups, sweeps, resolvers and `~key` are not here: no original uses them.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from common.errors import UserError

Options = TypeVar("Options")
Presets = Mapping[str, Mapping[str, Path | None]]  # key -> value -> the file it stands for


@dataclass
class HydraRun:
    """dir: the output folder, relative to the working directory."""

    dir: str = "???"


@dataclass
class HydraSection:
    """What a configuration says to Hydra itself. Only run.dir has an effect here; job and job_logging are accepted."""

    run: HydraRun = field(default_factory=HydraRun)
    job: dict[str, Any] = field(default_factory=dict)
    job_logging: dict[str, Any] = field(default_factory=dict)


def read_options(
    argv: Sequence[str] | None, options: type[Options], folder: Path, prog: str, presets: Presets | None = None
) -> Options:
    """An instance of the dataclass `options` from its defaults, the configuration file, and the overrides.

    `folder` is that of the entry point: a relative --config-path is looked for there, as Hydra does, then in the
    working directory. A field with the default "???" (omegaconf.MISSING) must be given; metadata={"help": ...} of a
    field is shown by --help, which exits. `presets` names the keys that stand for a file of values, such as
    {"scale": {"paper": None, "mini": path}}; they are set on the command line only. Raises UserError for a file that
    is missing or no YAML, for an unknown key (with the nearest one), a value of the wrong type, and what is missing.
    """
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp", default=".")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--help", "-h", action="store_true")
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    presets = presets or {}
    config = OmegaConf.structured(options)
    if args.config_name is not None:
        path = _config_file(folder, args.config_path, args.config_name)
        content = _read_yaml(path)
        for key in [key for key in presets if key in content]:
            raise UserError(f"{path}: {key} can be set on the command line only.")
        config = _merge(config, content, str(path))
    elif not args.help:
        raise UserError(f"--config-name is missing. {_available(folder / args.config_path)}")
    for key, value in _overrides(rest, options):
        if key in presets:
            config = _merge_preset(config, presets[key], key, value)
        config = _merge(config, _dotted(key, value), f"{key}={value}")
    if args.help:
        print(_help_text(prog, config, options, presets))
        raise SystemExit(0)
    return _resolved(config)


def _config_file(folder: Path, config_path: str, config_name: str) -> Path:
    places = [folder / config_path, Path(config_path)]
    for place in places:
        for name in (config_name, f"{config_name}.yaml"):
            if (place / name).is_file():
                return place / name
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    names = sorted(path.name for place in places for path in place.glob("*.yaml"))
    near = difflib.get_close_matches(config_name, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"no configuration {config_name} in {looked}.{hint} {_available(folder / config_path)}")


def _available(place: Path) -> str:
    names = [path.relative_to(place).as_posix() for path in sorted(place.rglob("*.yaml"))] if place.is_dir() else []
    return f"There are {', '.join(names)}." if names else f"There is none below {place}: give --config-path."


def _read_yaml(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not a configuration ({' '.join(str(error).split())}).") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected lines key: value.")
    return content


def _overrides(words: Sequence[str], options: type) -> Iterator[tuple[str, str]]:
    """(key, text of the value) of key=value, +key=value, --key value, --key=value, and --flag of a boolean."""
    flags = {item.name for item in dataclasses.fields(options) if item.type in (bool, "bool")}
    words = list(words)
    while words:
        word = words.pop(0)
        dashed = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_") if dashed else key.lstrip("+")
        if dashed and not equals:
            following = bool(words) and not words[0].startswith("--") and "=" not in words[0]
            if key in flags and not (following and words[0].lower() in ("true", "false")):
                value = "true"
            elif following:
                value = words.pop(0)
            else:
                raise UserError(f"{word} needs a value.")
        elif not equals or not key or key.startswith("~"):
            raise UserError(f"{word!r} is not understood. Overrides are key=value or --key value; see --help.")
        yield key, value


def _dotted(key: str, value: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([f"{key}={value}" if value else f"{key}=''"])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={value}: not a value ({' '.join(str(error).split())}). Quote it?") from error


def _merge(config: DictConfig, content: DictConfig, where: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, content)
    except ConfigKeyError as error:
        unknown = error.full_key
        near = difflib.get_close_matches(unknown, list(_flat(config)), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}: unknown key {unknown}.{hint} --help lists all.") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        about = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: {f'{about}: ' if about else ''}{reason}.") from error


def _merge_preset(config: DictConfig, choices: Mapping[str, Path | None], key: str, value: str) -> DictConfig:
    if value not in choices:
        raise UserError(f"{key}={value}: known are {', '.join(choices)}.")
    path = choices[value]
    return config if path is None else _merge(config, _read_yaml(path), str(path))


def _resolved(config: DictConfig) -> Any:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"no value for {', '.join(missing)}; give key=value.")
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{getattr(error, 'full_key', 'configuration')}: {str(error).splitlines()[0]}.") from error


def _flat(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted, with those that hold further keys before them."""
    for key in config:
        yield f"{prefix}{key}"
        value = OmegaConf.to_container(config, resolve=False)[key]
        if isinstance(value, dict):
            yield from _flat(OmegaConf.create(value), f"{prefix}{key}.")


def _help_text(prog: str, config: DictConfig, options: type, presets: Presets) -> str:
    lines = [
        f"usage: python -m {prog} --config-path FOLDER --config-name FILE.yaml [key=value | --key value ...]",
        "",
        "Keys and their values (with --config-name: as that file has them; ???: must be given):",
    ]
    values = OmegaConf.to_container(config, resolve=False)
    for item in dataclasses.fields(options):
        about = item.metadata.get("help", "")
        choices = f" ({', '.join(presets[item.name])})" if item.name in presets else ""
        lines.append(f"  {f'{item.name}={_as_text(values[item.name])}':<46}{about}{choices}".rstrip())
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
