"""Runs named by what decides their numbers: a row has the paper's name alone only where its settings are the paper's.

results/papers/settings.yaml pins the settings of every published row's command, apart from the scripts and
configurations, which people edit in place. A run is compared with the nearest of its row, and what differs is named
behind the method: "ZSCL, lr 1e-3, iterations 5". Runs of one name that still differ are told apart in the same way.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.evaluation.report import ZERO_SHOT
from common.files import YAML_LOADER, read_config
from common.options import flat
from common.protocols import MTIL_ORDERS, Protocol
from common.published_sets import PUBLISHED

PINNED = Path(__file__).parent / "papers" / "settings.yaml"
COUNT = re.compile(r"data\.((?P<name>.+)\.)?(?P<part>train|test)")  # the key of a data set's number of images
UNKNOWN, IN_PART = "settings not on record", "settings only in part on record"
LONGEST_VALUE = 40  # characters of a value that is spelled out
LONGEST_SUFFIX = 100  # characters of a name's differences; names are parts of files' names
# What an evaluation of finished checkpoints reads; all else that decides its numbers decided them in training
EVALUATION = (
    "eval_datasets", "batch_size_eval", "model", "template", "label_space", "xtail_template", "autorouter", "threshold",
    "load_autochooser", "chooser_features", "ddas_per_image", "oracle_task_id", "no_ddas", "task_id", "non_text",
    "topk", "precision", "splits",
)  # fmt: skip
OF_ONE_CALL = ("load", "weights.load", "task_id")  # of one-task calls, but not of their sequence
WITHOUT_FIRST = ("ref_model", "repeat_train")  # of which a first one-task call, with nothing before it, says nothing
# which a whole run may lack, or one of an earlier version
OPTIONAL = {*OF_ONE_CALL, "eval_datasets", "splits", "few_shot", "label_space", "xtail_template"}
FINGERPRINTS = ("weights", "data", "reference")  # sections of checksums and counts, shown as one digest each
MACHINE = re.compile(r"( \((bf16|tf32)\))+$")  # what a machine's precision adds to a label
Settings = dict[str, Any]  # by dotted key


@dataclass(frozen=True)
class Setup:
    """A run by its label, and its settings."""

    paper: str
    scale: str
    protocol: str
    method: str
    backbone: str
    settings: Settings  # {} where they are not on record
    seed: int
    started: str
    note: str = ""  # on what of its settings is on record
    differing: Settings = field(default_factory=dict)  # from the row's, or from those of other runs

    @property
    def name(self) -> str:
        """The method with what differs."""
        return self.method + suffix(self.differing)

    @property
    def zero_shot(self) -> str:
        """The method of the pre-trained model's lines, with the machine's precision and what differs in its test."""
        machine = MACHINE.search(self.method)
        tested = ("template", "xtail_template", "eval_transform")
        differing = {key: value for key, value in self.differing.items() if key in tested}
        return ZERO_SHOT + (machine[0] if machine else "") + suffix(differing)

    @property
    def row(self) -> tuple[str, ...]:
        """What runs of one row share."""
        return self.paper, self.scale, self.protocol, self.name, self.backbone


# Reading


def settings_of(recorded: Mapping[str, Any], folder: Path) -> tuple[Settings, str]:
    """The settings on record of a run in `folder`, by dotted key, and a note if there are none.

    An evaluation of finished checkpoints has those and the seed of the training that left them, where its config.yaml
    is found: in the folder loaded, which may be relative to any folder above, or in the one above `folder`; else only
    the ones that it reads itself.
    """
    own = _flat(recorded)
    if not own.get("eval_only"):
        return own, "" if own else UNKNOWN
    read = {key: value for key, value in own.items() if key in EVALUATION}
    if own.get("load") is None:  # the pre-trained model
        return read, ""
    load, beside = Path(str(own["load"])), [folder.parent] if folder.name in ("evaluation", "xtail") else []
    load = load.parent if load.suffix == ".pth" else load
    for place in (*(above / load for above in folder.absolute().parents), load, *beside):
        with suppress(OSError):  # a name that is too long
            whole = place / "config.yaml"
            configs = [read_config(path) for path in ([whole] if whole.is_file() else place.glob("*.config.yaml"))]
            configs = [config for config in configs if config["settings"]]
            configs.sort(key=lambda config: str(config["provenance"].get("started", "")))
            trained = [_flat(config["settings"]) for config in configs]
            if trained and not any(settings.get("eval_only") for settings in trained):
                seed = configs[-1]["labels"].get("seed", trained[-1].get("seed"))
                return of_sequence(trained) | read | {"seed": seed}, ""
    return read, UNKNOWN


def _flat(recorded: Mapping[str, Any]) -> Settings:
    """Recorded settings by dotted key; what is tested is none of a training that tested nothing."""
    return {key: value for key, value in flat(recorded).items() if key != "eval_datasets" or value is not None}


def of_sequence(calls: Sequence[Settings]) -> Settings:
    """The settings of one-task calls, in the order in which they were made, as those of their sequence.

    What they share stays, lists are put end to end; the checkpoints that they start from are the sequence's own. Calls
    that train DDAS alone give its options.
    """
    if len(calls) == 1:
        return dict(calls[0])
    ddas = [call for call in calls if call.get("train_chooser") and not call.get("ffn_adapt")]
    tasks = [_as_in_sequence(call) for call in calls if call not in ddas] or ddas
    result: Settings = {}
    for key in dict.fromkeys(key for task in tasks for key in task):
        values = [task[key] for task in tasks if key in task]
        if key in WITHOUT_FIRST:
            values = values[1:] or values
        equal = all(value == values[0] for value in values)
        lists = [value if isinstance(value, list) else [value] for value in values]
        result[key] = values[0] if equal else [item for each in lists for item in each]
    if ddas and tasks is not ddas:
        steps = [call.get("iterations") for call in (ddas[0], ddas[-1])]
        result |= {"train_chooser": True, "chooser_iterations": [item for each in steps for item in each or []]}
    return result


def _as_in_sequence(call: Settings) -> Settings:
    """A call's settings with `current` and `previous` for its own data set and checkpoint as references."""
    words = {text(call.get("load")): "previous", text(call.get("train_dataset")): "current"}
    kept = {key: value for key, value in call.items() if key not in OF_ONE_CALL}
    own = {key: words[text(value)] for key, value in kept.items()
           if key.startswith("ref_") and value and text(value) in words}  # fmt: skip
    return kept | own


@cache
def pinned() -> dict[tuple[str, ...], list[Settings]]:
    """The settings of the published rows' commands, by paper, scale, protocol, method and backbone."""
    rows: dict[tuple[str, ...], list[Settings]] = {}
    for group in yaml.load(PINNED.read_bytes(), YAML_LOADER):
        for row in group["rows"]:
            key = (group["paper"], group["scale"], row["protocol"], row["method"], row["backbone"])
            rows.setdefault(key, []).append(group["shared"] | row["settings"])
    return rows


# Naming


def named(setups: Iterable[Setup]) -> list[Setup]:
    """The runs with what differs from their row's settings, and what tells those of one name apart."""
    first = [_from_row(setup) for setup in setups]
    rows: dict[tuple[str, ...], list[Setup]] = {}
    for setup in first:
        rows.setdefault(setup.row, []).append(setup)
    others = {row: (_telling(same), _usual(same), any(setup.note != UNKNOWN for setup in same))
              for row, same in rows.items()}  # fmt: skip
    return [_from_others(setup, *others[setup.row]) for setup in first]


def _from_row(setup: Setup) -> Setup:
    """The run with what differs from the nearest settings of its row, and from the published counts of images."""
    rows, settings = _row_settings(setup), setup.settings
    unlike = [{key: value for key, value in settings.items() if key in row and text(value) != text(row[key])}
              for row in rows]  # fmt: skip
    differing, lacking = min(unlike, key=len, default={}), bool(rows and rows[0].keys() - settings.keys() - OPTIONAL)
    note = setup.note or (IN_PART if lacking else "")
    return replace(setup, differing=differing | _cut(setup), note=note)


def _cut(setup: Setup) -> Settings:
    """At paper scale, the images of data sets that hold not as many as published, as read without the check.

    CoOp's lists have other numbers, and are not read where a file that they name is missing.
    """
    counts: dict[str, dict[str, int]] = {}
    for key, count in setup.settings.items() if setup.scale == "paper" else ():
        listed = "CoOp's list" in str(setup.settings.get(f"{key.rpartition('.')[0]}.notes"))
        if (match := COUNT.fullmatch(key)) and isinstance(count, int) and count and not listed:
            counts.setdefault(match["name"] or "", {})[match["part"]] = count
    published = {_plain(name): entry for name, entry in PUBLISHED.items()}
    differing = {}
    for name, found in sorted(counts.items()):
        known = published.get(_plain(name or Protocol.parse(setup.protocol).dataset))
        if any(getattr(known, part, None) not in (None, count) for part, count in found.items()):
            differing[f"{name} images".strip()] = " + ".join(f"{count:,}" for count in found.values())
    return differing


def _plain(name: str) -> str:
    """A data set's name as all spell it: imagenetr for ImageNet_R, ImageNet-R and ImageNetR."""
    return re.sub("[_-]", "", name.lower())


def of_seed(protocol: str) -> set[str]:
    """The keys that go with the seed, which has a column of its own; on common ground the class order is the seed's."""
    return {"seed", "class_order"} if Protocol.parse(protocol).kind == "common" else {"seed"}


def _telling(same: Sequence[Setup]) -> set[str]:
    """The keys in which runs of one name differ, as far as they have them, but for the seed's."""
    texts: dict[str, set[str]] = {}
    for key, value in (item for setup in same for item in setup.settings.items()):
        texts.setdefault(key, set()).add(text(value))
    return {key for key, spelled in texts.items() if len(spelled) > 1} - of_seed(same[0].protocol)


def _usual(same: Sequence[Setup]) -> Settings:
    """The settings that need no name among runs of one name: the row's, and of most seeds, or the newest, the others.

    Without a row all that differs is named.
    """
    if not (rows := _row_settings(same[0])):
        return {}
    telling = _telling(same) - rows[0].keys()
    groups: dict[tuple[tuple[str, str], ...], list[Setup]] = {}
    for setup in same:
        key = tuple((key, text(value)) for key, value in setup.settings.items() if key in telling)
        groups.setdefault(key, []).append(setup)
    most = max(groups.values(), key=lambda group: (len({setup.seed for setup in group}), max(s.started for s in group)))
    return most[0].settings | rows[0]


def _from_others(setup: Setup, telling: set[str], usual: Settings, beside_known: bool) -> Setup:
    """The run with what tells it from others of its name."""
    differing = {key: value for key, value in setup.settings.items()
                 if key in telling and (key not in usual or text(value) != text(usual[key]))}  # fmt: skip
    unknown = {UNKNOWN: True} if beside_known and setup.note == UNKNOWN else {}
    return replace(setup, differing=setup.differing | unknown | differing)


def _row_settings(setup: Setup) -> list[Settings]:
    """The pinned settings of the run's row; without one of its backbone those of others, less what names theirs.

    An MTIL training that was tested under X-TAIL has MTIL's row.
    """
    method, rows, protocol = MACHINE.sub("", setup.method), pinned(), Protocol.parse(setup.protocol)
    if protocol.kind == "xtail" and protocol.dataset in MTIL_ORDERS:
        of_training = _row_settings(replace(setup, protocol=str(replace(protocol, kind="mtil"))))
        return [settings | {"label_space": "all"} for settings in of_training]
    wanted = (setup.paper, setup.scale, setup.protocol, method)
    return rows.get((*wanted, setup.backbone)) or [
        {key: value for key, value in settings.items() if key != "backbone" and value != backbone}
        for (*others, backbone), entries in rows.items() if tuple(others) == wanted
        for settings in entries
    ]  # fmt: skip


def suffix(differing: Settings) -> str:
    """What differs, as it stands behind a method: ", lr 1e-3, iterations 5, no we"; what is too long as a digest."""
    parts: dict[str, str] = {}
    for key, value in differing.items():
        section = key.split(".")[0]
        if section in FINGERPRINTS:
            among = {other: text(item) for other, item in differing.items() if other.split(".")[0] == section}
            parts[section] = f"{section} {digest(among)}"
        else:
            parts[key] = {True: key, False: f"no {key}"}[value] if isinstance(value, bool) else f"{key} {text(value)}"
    spelled, rest = "", list(parts.values())
    while rest and (not spelled or len(spelled) + len(rest[0]) <= LONGEST_SUFFIX):
        spelled += f", {rest.pop(0)}"
    return spelled + (f", {len(rest)} more {digest(rest)}" if rest else "")


def text(value: Any) -> str:
    """A value for people: 1e-3, 0.2, none; a list of equal values as that value; a long one as a digest."""
    if isinstance(value, list):
        texts = [text(item) for item in value]
        spelled = texts[0] if len(set(texts)) == 1 else ",".join(texts)
    elif isinstance(value, float):
        spelled = _float(value)
    else:
        spelled = "none" if value is None else str(value)
    return digest(spelled) if len(spelled) > LONGEST_VALUE else spelled


def _float(value: float) -> str:
    """The shortest text of exactly this number."""
    if 0 < abs(value) < 0.01:
        return f"{Decimal(repr(value)):e}"
    return repr(value).removesuffix(".0")


def digest(content: Any) -> str:
    """Six hexadecimal digits of a value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:6]
