"""Every shipped plan: its scripts exist and are one process, their entry points take the flags, and what they would
write on record, and where, is what the plan says, at both scales. Together they hold the published rows that can be
run."""

import os
import subprocess
from pathlib import Path

import pytest

from alta import options as alta_options
from common import vit
from common.incremental.scenario import Scenario, protocol, read_class_order
from common.mtil import mtil_protocol
from common.runs import mini_folder
from inflora.options import log_folder
from inflora.options import parse as parse_inflora
from moe_adapters import cil as moe_cil
from moe_adapters.options import method_label as moe_label
from moe_adapters.options import output_folder as moe_folder
from moe_adapters.options import parse as parse_moe
from moe_adapters.options import protocol as moe_protocol
from results.launch.plan import Job, jobs_of, read_plan, table_names, tasks_of
from results.published import read_published
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

ROOT = Path(__file__).parents[3]
Told = tuple[str, str, str, int, str]  # method, protocol, backbone, seed, folder
UNPUBLISHED = {  # table -> rows of which no number was found in print: bounds, variants of the released code
    "inflora-cifar100": {"InfLoRA-b5", "InfLoRA+CA1", "SeqLoRA", "Joint LoRA"},
    "inflora-imagenet_r": {"InfLoRA-b5", "InfLoRA+CA"},
    "inflora-domainnet": {"InfLoRA", "InfLoRA-b5"},
    "vq-prompt-cifar100": {"VQ-Prompt-S", "NCM, no prompts"},
    "it-prompt-cifar100": {
        "IT-Prompt (our reading)", "IT-Prompt + C-NCM (our reading)", "Zero-shot CLIP", "NCM, no prompts (CLIP)",
    },
    "alta-cifar100": {"Zero-shot CLIP, hard prompts"},
    "zscl-cil-cifar100": {"Fine-tuning", "LwF", "LwF-VR", "iCaRL (CLIP)"},
    "zscl-cil-tinyimagenet": {"Continual-CLIP", "Fine-tuning", "LwF", "LwF-VR", "iCaRL (CLIP)", "ZSCL"},
}  # fmt: skip
UNPLANNED = {  # published rows of planned methods on data sets that the program does not read
    ("cil-imagenet_a-20x10", "VQ-Prompt", "ViT-B/16 Sup-1K"),
    ("cil-vtab-5x10", "VQ-Prompt", "ViT-B/16 Sup-1K"),
}


def of_zscl_mtil(words: list[str]) -> Told:
    options = parse_zscl(words)
    return method_label(options), mtil_protocol(tasks(options)), options.model, options.seed, run_folder(options)


def of_moe_mtil(words: list[str]) -> Told:
    options = parse_moe(words)
    return moe_label(options), moe_protocol(options), options.model, options.seed, str(moe_folder(options))


def of_cil(options: cil_options.Options | moe_cil.Options, label: str) -> Told:
    order = read_class_order(options.class_order)
    name = protocol(options.dataset, Scenario(order, options.initial_increment, options.increment))
    folder = mini_folder(options.save or options.hydra.run.dir, options.scale)
    return label, name, options.model_name, options.seed, folder


def of_zscl_cil(words: list[str]) -> Told:
    options = cil_options.parse(words)
    return of_cil(options, zscl_cil.method_label(options))


def of_moe_cil(words: list[str]) -> Told:
    options = moe_cil.parse(words)
    return of_cil(options, moe_cil.method_label(options))


def of_inflora(words: list[str]) -> Told:
    options = parse_inflora(words)
    (seed,) = options.seed
    name = protocol(options.data_set.label, options.scenario(seed))
    folder = Path(mini_folder(options.save, options.scale)) / log_folder(options) / str(seed)
    return options.method.label, name, vit.LABELS.get(options.backbone, options.backbone), seed, str(folder)


def of_vq(words: list[str]) -> Told:
    options = parse_vq(words)
    (seed,) = run_seeds(options)
    is_it = options.learner_type == "it_prompt"
    label = it_learner.method_label(options) if is_it else vq_learner.method_name(options)
    tasks = vq_data.scenario(options, seed)
    folder = str(Path(log_dir_of(options)) / "repeat-1")
    backbone = vit.LABELS.get(options.backbone_weights, options.backbone_weights)
    return label, vq_data.protocol_name(options, tasks), backbone, seed, folder


def of_alta(words: list[str]) -> Told:
    options = alta_options.parse(words)
    folder = mini_folder(alta_options.run_folder(options), options.scale)
    name = alta_options.protocols(options)["task-il"]
    return alta_options.method_label(options), name, options.visual, options.seed, folder


TOLD = {
    "zscl.main": of_zscl_mtil,
    "zscl.cil": of_zscl_cil,
    "moe_adapters.main": of_moe_mtil,
    "moe_adapters.cil": of_moe_cil,
    "inflora.main": of_inflora,
    "vq_prompt.run": of_vq,
    "alta.main": of_alta,
}


def asked(job: Job, echo: str) -> list[str]:
    """What the job's script hands to python; the script must have become python's process."""
    script = subprocess.Popen(job.words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHON": echo})
    said, _ = script.communicate()
    process, dash_m, module, *words = [word for word in said.splitlines() if word != "-u"]  # python's own flag
    assert script.returncode == 0 and dash_m == "-m" and int(process) == script.pid, f"{job.words}: no exec"
    return [module, *words]


@pytest.mark.parametrize("table", table_names())
def test_plan(table: str, echo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(table)
    for scale in ("paper", "mini"):
        jobs = jobs_of(plan, scale, None, ["--threads", "1"])
        for job in jobs:
            module, *words = asked(job, echo)
            assert module in TOLD, f"{module}: say in TOLD what its command line comes to"
            method, name, backbone, seed, folder = TOLD[module](words)
            assert (method, seed, Path(folder)) == (job.row.method, job.seed, job.folder)
            if scale == "paper":
                assert (name, backbone) == (job.row.protocol, job.row.backbone or backbone)
            else:
                assert tasks_of(name) in (1, 10, 11)
            assert module.startswith(f"{job.row.paper}.")
        assert len({job.name for job in jobs}) == len({job.title for job in jobs}) == len(jobs)
        if scale == "paper":  # a folder is one run's; on the miniature, settings of a method share one
            assert len({job.folder for job in jobs}) == len(jobs)
    capsys.readouterr()


def test_rows_are_those_of_the_published_tables() -> None:
    known = {(entry.paper, entry.protocol, entry.method) for entry in read_published()}
    protocols = {name for _, name, _ in known}
    for table in table_names():
        rows = read_plan(table).rows
        assert {row.protocol for row in rows} - {"joint-cifar100"} <= protocols
        unknown = {row.method for row in rows if (row.paper, row.protocol, row.method) not in known}
        assert unknown == UNPUBLISHED.get(table, set())


def test_every_published_row_of_a_planned_method_is_planned(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    methods, planned = set(), set()
    for table in table_names():
        for job in jobs_of(read_plan(table), "paper", None, []):
            module, *words = asked(job, echo)
            method, name, backbone, *_ = TOLD[module](words)
            methods.add((job.row.paper, name.partition("-")[0], method))
            planned |= {(name, method, backbone), (name, method, "")}  # some sources do not say the backbone
    rows = [row for row in read_published() if (row.paper, row.protocol.partition("-")[0], row.method) in methods]
    absent = {(row.protocol, row.method, row.backbone) for row in rows} - planned
    assert absent == UNPLANNED


def test_plans_are_shipped() -> None:
    assert {"zscl-mtil-order1", "moe-adapters-mtil-5shot", "inflora-cifar100"} <= set(table_names())


def test_tasks_are_read_off_the_protocol() -> None:
    names = ("mtil-order1-5shot", "cil-cifar100-10x10", "cil-tinyimagenet-100+5x20", "joint-cub200", "cil-vtab", "x")
    assert [tasks_of(name) for name in names] == [11, 10, 6, 1, None, None]
    assert [tasks_of(name) for name in ("mtil-custom-DTD+Food+MNIST-5shot", "mtil-custom")] == [3, None]
