"""Every published number of a planned row is one that the row's run records: no number can stay "not run" for ever.

The records are those of a real run of the row's program (golden/first_edition), its last task's made the row's.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from common.incremental.sets import SETS
from common.protocols import MULTI_DOMAIN, Protocol
from results.collect import read_runs
from results.compare import compare
from results.launch.plan import table_names
from results.published import read_published
from results.records import Record
from tests.results.lines import write_lines
from tests.results.settings import ROOT, told

FIRST_EDITION = ROOT / "tests" / "golden" / "first_edition"
RUNS = {  # of the entry points
    "zscl.main": "zscl", "zscl.cil": "zscl_cil", "moe_adapters.main": "moe_adapters",
    "moe_adapters.cil": "moe_adapters_cil", "inflora.main": "inflora", "vq_prompt.run": "vq_prompt",
    "alta.main": "alta",
}  # fmt: skip
SECOND_SOURCES = {  # published method -> the method whose runs it tells of
    "InfLoRA (released logs)": "InfLoRA",
    "VQ-Prompt (Figure 3a)": "VQ-Prompt",
    "VQ-Prompt-S (Figure 3a)": "VQ-Prompt-S",
    "ZSCL (as listed by DPW)": "ZSCL",
    "MoE-Adapters (as listed by LibContinual)": "MoE-Adapters",
}
ZERO_SHOT = "Zero-shot CLIP"  # before the first task
Line = dict[str, Any]


def recorded(module: str) -> list[Line]:
    """The lines of a real run of the entry point."""
    (path,) = (FIRST_EDITION / RUNS[module]).rglob("record.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def incremental(lines: list[Line], protocol: Protocol) -> list[Line]:
    """What the run recorded after its last task, as of the protocol's last task and data set."""
    learned = max(line["after_task"] for line in lines)
    kinds = {line["protocol"].partition("-")[0] for line in lines}
    kind = protocol.kind if len(kinds) > 1 else kinds.pop()  # ALTA records two protocols
    tasks = (protocol.tasks or 1) + (protocol.base is not None)
    label = SETS[protocol.dataset].label
    return [
        line | {"after_task": tasks, "dataset": line["dataset"] if line["dataset"].startswith("task ") else label}
        for line in lines
        if line["after_task"] == learned and line["protocol"].startswith(kind)
    ]


def mtil(lines: list[Line], protocol: Protocol) -> list[Line]:
    """The run's accuracies of one data set, before and after training, as of all data sets after all tasks."""
    sets = protocol.order
    before, after = (next(line for line in lines if line["metric"] == "accuracy" and line["after_task"] == task)
                     for task in (0, 1))  # fmt: skip
    cells = [(after if task else before) | {"after_task": task, "dataset": name}
             for task in range(len(sets) + 1) for name in sets]  # fmt: skip
    (parameters,) = (line for line in lines if line["metric"] == "trainable_parameters")
    return [*cells, parameters | {"after_task": len(sets)}]


def records_of(module: str, folder: Path, **about: Any) -> list[Record]:
    """What the entry point's run of a row leaves, read back; `about` are the row's labels."""
    protocol = Protocol.parse(about["protocol"])
    lines = (mtil if protocol.kind in MULTI_DOMAIN else incremental)(recorded(module), protocol)
    write_lines(folder, [line | about | ({} if line["after_task"] else {"method": ZERO_SHOT}) for line in lines])
    records, _, problems = read_runs([folder])
    assert records and problems == []
    return records


def test_every_published_number_of_a_planned_row_meets_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    published, unmet, sources = [entry for entry in read_published() if not entry.after_task], [], set()
    tables = [name for name in table_names() if not name.startswith("common-")]  # our own protocol
    for number, (_, module, run) in enumerate(each for table in tables for each in told(table, "paper")):
        method, protocol, backbone, seed, *_ = run
        about = {"method": method, "protocol": protocol, "backbone": backbone, "seed": seed, "scale": "paper"}
        records = records_of(module, tmp_path / str(number), **about)
        names = {method, *(name for name, same in SECOND_SOURCES.items() if same == method)}
        names |= {ZERO_SHOT} if protocol.startswith("mtil") else set()
        wanted = {
            (entry.paper, entry.method, entry.metric, entry.dataset)
            for entry in published
            if entry.protocol == protocol and entry.method in names and entry.backbone in ("", backbone)
        }
        met = {
            (item.paper, item.method, item.metric, item.dataset)
            for item in compare(published, records)
            if item.protocol == protocol and item.published is not None and item.mean is not None
            and item.backbone in ("", backbone)
        }  # fmt: skip
        unmet += [(protocol, *name) for name in sorted(wanted - met)]
        assert wanted >= met  # and no other's
        sources |= {name for _, name, *_ in met}
    assert unmet == []
    assert sources >= {*SECOND_SOURCES, "Zero-shot CLIP", "ZSCL", "MoE-Adapters", "InfLoRA", "VQ-Prompt", "ALTA"}
