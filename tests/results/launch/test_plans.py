"""Every shipped plan: its scripts exist and are one process, their entry points take the flags, and what they would
write on record, and where, is what the plan says, at both scales. Together they hold the published rows that can be
run."""

from pathlib import Path

import pytest
import yaml

from common.protocols import Protocol
from results.launch.plan import read_plan, table_names
from results.published import read_published
from results.settings import PINNED, Setup, named, pinned
from tests.results.settings import pinned_content, told

ROOT = Path(__file__).parents[3]
UNPUBLISHED = {  # table -> rows of which no number was found in print: bounds, variants of the released code
    "inflora-cifar100": {"InfLoRA-b5", "InfLoRA+CA1", "SeqLoRA", "Joint LoRA"},
    "inflora-imagenet_r": {"InfLoRA-b5", "InfLoRA+CA"},
    "inflora-domainnet": {"InfLoRA", "InfLoRA-b5"},
    "vq-prompt-cifar100": {"VQ-Prompt-S", "NCM, no prompts"},
    "it-prompt-cifar100": {
        "IT-Prompt (our reading)", "IT-Prompt + C-NCM (our reading)", "Zero-shot CLIP", "NCM, no prompts (CLIP)",
    },
    "alta-cifar100": {"Zero-shot CLIP, hard prompts"},
    "xtail-16shot": {"Fine-tuning", "LwF", "iCaRL", "LwF-VR", "WiSE-FT", "ZSCL", "MoE-Adapters"},
    "zscl-cil-cifar100": {"Fine-tuning", "LwF", "LwF-VR", "iCaRL (CLIP)"},
    "zscl-cil-tinyimagenet": {"Continual-CLIP", "Fine-tuning", "LwF", "LwF-VR", "iCaRL (CLIP)", "ZSCL"},
}  # fmt: skip
UNPLANNED = {  # published rows of planned methods on data sets that the program does not read
    ("cil-imagenet_a-20x10", "VQ-Prompt", "ViT-B/16 Sup-1K"),
    ("cil-vtab-5x10", "VQ-Prompt", "ViT-B/16 Sup-1K"),
}


@pytest.mark.parametrize("table", table_names())
def test_plan(table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    for scale in ("paper", "mini"):
        runs = told(table, scale)
        for job, module, run in runs:
            assert (run.method, run.seed, Path(run.folder)) == (job.row.method, job.seed, job.folder)
            if scale == "paper":
                assert (run.protocol, run.backbone) == (job.row.protocol, job.row.backbone or run.backbone)
            else:
                assert Protocol.parse(run.protocol).length in (1, 10, 11)
                assert (run.backbone == "clip-mini") == ("clip-vit-b16" in job.words)
            assert module.startswith(f"{job.row.paper}.")
        assert len({job.name for job, *_ in runs}) == len({job.title for job, *_ in runs}) == len(runs)
        if scale == "paper":  # a folder is one run's; on the miniature, settings of a method share one
            assert len({job.folder for job, *_ in runs}) == len(runs)
    capsys.readouterr()


@pytest.mark.parametrize("table", table_names())
def test_a_row_that_is_run_as_planned_has_its_name_alone(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for scale in ("paper", "mini"):
        for job, _, run in told(table, scale):
            about = (job.row.paper, scale, run.label_protocol, run.method, run.backbone)
            settings = run.settings | {"data.md5": 5, "lr_of_another_version": 1}
            (setup,) = named([Setup(*about, settings, run.seed, "")])
            assert about in pinned() and (setup.name, setup.note) == (job.row.method, "")


def test_the_pinned_settings_are_those_of_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert yaml.safe_load(PINNED.read_text()) == yaml.safe_load(yaml.safe_dump(pinned_content()))


def test_rows_are_those_of_the_published_tables() -> None:
    known = {(entry.paper, entry.protocol, entry.method) for entry in read_published()}
    protocols = {name for _, name, _ in known}
    for table in (name for name in table_names() if not name.startswith("common-")):  # our own protocol
        rows = read_plan(table).rows
        assert {row.protocol for row in rows} - {"joint-cifar100", "xtail-16shot"} <= protocols
        unknown = {row.method for row in rows if (row.paper, row.protocol, row.method) not in known}
        assert unknown == UNPUBLISHED.get(table, set())


def test_every_published_row_of_a_planned_method_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    methods, planned = set(), set()
    for job, _, run in (each for table in table_names() for each in told(table, "paper")):
        methods.add((job.row.paper, run.protocol.partition("-")[0], run.method))
        # some sources do not say the backbone
        planned |= {(run.protocol, run.method, run.backbone), (run.protocol, run.method, "")}
    rows = [row for row in read_published() if (row.paper, row.protocol.partition("-")[0], row.method) in methods]
    absent = {(row.protocol, row.method, row.backbone) for row in rows} - planned
    assert absent == UNPLANNED


def test_plans_are_shipped() -> None:
    assert {"zscl-mtil-order1", "moe-adapters-mtil-5shot", "inflora-cifar100"} <= set(table_names())
