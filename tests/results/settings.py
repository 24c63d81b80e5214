"""The settings of every published row: `python -m tests.results.settings` writes results/papers/settings.yaml anew.

They are asked of the scripts and entry points themselves, so the file says what the rows of results/launch/plans give
when it was written. Only do so where the paper's settings were wrong: edits of a script are to name its rows.
"""

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from alta import options as alta_options
from common import vit
from common.incremental.common_ground import sequence_settings
from common.incremental.data import read_scenario
from common.incremental.scenario import protocol
from common.incremental.sets import find
from common.mtil import mtil_protocol
from common.options import flat, settings
from common.protocols import Protocol
from common.runs import mini_folder
from inflora.options import log_folder
from inflora.options import parse as parse_inflora
from moe_adapters import cil as moe_cil
from moe_adapters.options import Options as MoEOptions
from moe_adapters.options import method_label as moe_label
from moe_adapters.options import output_folder as moe_folder
from moe_adapters.options import parse as parse_moe
from moe_adapters.options import protocol as moe_protocol
from results.labels import SCALES
from results.launch.plan import Job, jobs_of, read_plan, table_names
from results.settings import EVALUATION, PINNED, of_seed, text
from vq_prompt import data as vq_data
from vq_prompt import learner as vq_learner
from vq_prompt.it_prompt import learner as it_learner
from vq_prompt.options import log_dir_of, run_seeds
from vq_prompt.run import parse as parse_vq
from zscl.cil import __main__ as zscl_cil
from zscl.cil import options as cil_options
from zscl.methods import method_label
from zscl.options import parse as parse_zscl
from zscl.options import run_folder, tasks

ROOT = Path(__file__).parents[2]
Entry = tuple[dict[str, str], dict[str, Any]]  # protocol, method and backbone of a row; its settings by dotted key
# the authors' evaluation of their released checkpoints, whose threshold is not that of the training script
EVALUATIONS = ("moe_adapters/scripts/test_full_shot_order1.sh", "moe_adapters/scripts/test_few_shot_order1.sh")


class Told(NamedTuple):
    """What a command line comes to: labels of its records, seed, folder, settings by dotted key."""

    method: str
    protocol: str  # of the published row
    backbone: str
    seed: int
    folder: str
    settings: dict[str, Any]
    also: str = ""  # the protocol of the run's labels where that is another

    @property
    def label_protocol(self) -> str:
        return self.also or self.protocol


def of_zscl_mtil(words: list[str]) -> Told:
    options = parse_zscl(words)
    decides = flat(settings(options)) | {"train_dataset": tasks(options)}
    name = mtil_protocol(options, tasks(options))
    return Told(method_label(options), name, options.model, options.seed, run_folder(options), decides)


def of_moe_mtil(words: list[str]) -> Told:
    options = parse_moe(words)
    return Told(moe_label(options), moe_protocol(options), options.model, options.seed, str(moe_folder(options)),
                flat(settings(options)))  # fmt: skip


def of_cil(options: cil_options.Options | moe_cil.Options, label: str) -> Told:
    scenario, data = read_scenario(options), find(options.dataset, options.dataset_root)
    name = protocol(data.label, scenario, kind=options.protocol)
    folder = mini_folder(options.save or options.hydra.run.dir, options.scale)
    decides = flat(settings(options) | sequence_settings(options, scenario))
    return Told(label, name, options.model_name, options.seed, folder, decides)


def of_zscl_cil(words: list[str]) -> Told:
    options = cil_options.parse(words)
    return of_cil(options, zscl_cil.method_label(options))


def of_moe_cil(words: list[str]) -> Told:
    options = moe_cil.parse(words)
    return of_cil(options, moe_cil.method_label(options))


def of_inflora(words: list[str]) -> Told:
    options = parse_inflora(words)
    (seed,) = options.seed
    scenario = options.scenario(seed)
    name = protocol(options.data_set.label, scenario, kind=options.protocol)
    folder = Path(mini_folder(options.save, options.scale)) / log_folder(options) / str(seed)
    backbone = vit.LABELS.get(options.backbone, options.backbone)
    decides = flat(settings(options) | sequence_settings(options, scenario))
    return Told(options.method.label, name, backbone, seed, str(folder), decides)


def of_vq(words: list[str]) -> Told:
    options = parse_vq(words)
    (seed,) = run_seeds(options)
    is_it, weights = options.learner_type == "it_prompt", options.backbone_weights
    label = it_learner.method_label(options) if is_it else vq_learner.method_name(options)
    scenario = vq_data.scenario(options, seed)
    name, decides = vq_data.protocol_name(options, scenario), settings(options) | sequence_settings(options, scenario)
    folder = str(Path(log_dir_of(options)) / "repeat-1")
    return Told(label, name, vit.LABELS.get(weights, weights), seed, folder, flat(decides))


def of_alta(words: list[str]) -> Told:
    options = alta_options.parse(words)
    folder, names = mini_folder(alta_options.run_folder(options), options.scale), alta_options.protocols(options)
    buffer = options.buffer_size if alta_options.replays(options) else None
    decides = flat(settings(options) | sequence_settings(options, alta_options.scenario(options)))
    decides |= {"buffer_size": buffer}
    label, published = alta_options.method_label(options), names.get("task-il", names["class-il"])
    return Told(label, published, options.visual, options.seed, folder, decides, names["class-il"])


TOLD = {
    "zscl.main": of_zscl_mtil,
    "zscl.cil": of_zscl_cil,
    "moe_adapters.main": of_moe_mtil,
    "moe_adapters.cil": of_moe_cil,
    "inflora.main": of_inflora,
    "vq_prompt.run": of_vq,
    "alta.main": of_alta,
}


ECHO = """#!/bin/sh
echo $$
for argument in "$@"; do echo "$argument"; done
"""  # stands for python: prints its own process and its arguments


def asked(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """The module and the words that a script hands to python; the script must have become python's process."""
    with tempfile.TemporaryDirectory() as folder:
        echo = Path(folder) / "python"
        echo.write_text(ECHO)
        echo.chmod(0o755)
        variables = os.environ | {"PYTHON": str(echo)}
        script = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=variables, cwd=ROOT)
        said, _ = script.communicate()
    process, dash_m, module, *given = [word for word in said.splitlines() if word != "-u"]  # python's own flag
    assert script.returncode == 0 and dash_m == "-m" and int(process) == script.pid, f"{words}: no exec"
    return module, given


@cache
def told(table: str, scale: str) -> list[tuple[Job, str, Told]]:
    """A job of each row of a table, under its last seed: the module that its script starts, what its words come to."""
    jobs = jobs_of(read_plan(table), scale, None, ["--threads", "1"])
    started = [(job, *asked(job.words)) for job in jobs if job.seed == job.row.seeds[-1]]
    unknown = {module for _, module, _ in started} - TOLD.keys()
    assert not unknown, f"{unknown}: say in TOLD what its command line comes to"
    return [(job, module, TOLD[module](words)) for job, module, words in started]


def pinned_content() -> list[dict[str, Any]]:
    """The content of settings.yaml: by scale and entry point, on common ground or not, what the rows share, and others."""
    groups: list[dict[str, Any]] = []
    for scale in ("paper", "mini"):
        kinds: dict[tuple[str, bool], list[Entry]] = {(module, kind): [] for kind in (False, True) for module in TOLD}
        for _, module, run in (each for table in table_names() for each in told(table, scale)):
            row = {"protocol": run.label_protocol, "method": run.method, "backbone": run.backbone}
            without = of_seed(run.protocol)
            entry = (row, {key: _short(value) for key, value in run.settings.items() if key not in without})
            if entry not in (rows := kinds[module, Protocol.parse(run.protocol).kind == "common"]):
                rows.append(entry)
        for script in EVALUATIONS:
            _, words = asked(("bash", script, *SCALES[scale].flags))
            mtil = kinds["moe_adapters.main", False]
            mtil += _evaluated(parse_moe(words), mtil)
        groups += [_group(module.split(".")[0], scale, rows) for (module, _), rows in kinds.items() if rows]
    return groups


def _evaluated(options: MoEOptions, rows: list[Entry]) -> list[Entry]:
    """The rows of the evaluation's protocol as it tests them, where that is in another way."""
    read = {key: _short(value) for key, value in flat(settings(options)).items() if key in EVALUATION}
    of_protocol = [(row, decides) for row, decides in rows if row["protocol"] == moe_protocol(options)]
    return [entry for row, decides in of_protocol if (entry := (row, decides | read)) not in rows]


def _group(paper: str, scale: str, rows: list[Entry]) -> dict[str, Any]:
    _, first = rows[0]
    shared = {key: value for key, value in first.items() if all(key in row and row[key] == value for _, row in rows)}
    others = [row | {"settings": {key: value for key, value in decides.items() if key not in shared}}
              for row, decides in rows]  # fmt: skip
    return {"paper": paper, "scale": scale, "shared": shared, "rows": others}


def _short(value: Any) -> Any:
    """A list of equal values as that value, and others as the text by which they are compared."""
    if not isinstance(value, list):
        return value
    return value[0] if value and all(item == value[0] for item in value) else text(value)


if __name__ == "__main__":
    os.chdir(ROOT)
    content = yaml.safe_dump(pinned_content(), sort_keys=False, default_flow_style=None, width=120)
    PINNED.write_text(content)
