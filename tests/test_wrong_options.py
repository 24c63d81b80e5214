"""Command lines that make no sense, at every entry point: refused at once, in a few lines, with nothing written.

The first table is made from the declarations, every option with every kind of wrong value that it can have; the second
is written by hand, of what a declaration could forget.
"""

import functools
import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.declarations import Declaration
from common.options import declared, one_placeholder
from common.runs import free_file

CIFAR = ["--config-path", "configs/class", "dataset_root=nowhere", "class_order=class_orders/cifar100.yaml"]
MTIL = ["--train-dataset", "MNIST,DTD", "--iterations", "4", "--save", "out", "--data-location", "nowhere"]
ADAPTERS = ["--ffn_adapt", "--apply_moe", "--no-ddas"]
ROOT = Path(__file__).parents[1]
ENTRIES = {  # the program, its options, and words that lack nothing but the data
    "zscl.main": ("zscl.options.Options", MTIL),
    "zscl.cil": ("zscl.cil.options.Options", [*CIFAR, "--config-name", "cifar100_10-10-ZSCL.yaml"]),
    "moe_adapters.main": ("moe_adapters.options.Options", [*MTIL, *ADAPTERS]),
    "moe_adapters.cil": ("moe_adapters.cil.Options", [*CIFAR, "--config-name", "cifar100_10-10-MoE-Adapters.yaml"]),
    "inflora.main": (
        "inflora.options.Options",
        ["--config", f"{ROOT}/inflora/configs/cifar100_inflora.json", "--data-path", "nowhere", "--save", "out"],
    ),
    "vq_prompt.run": (
        "vq_prompt.options.VQOptions",
        ["--config", "configs/cifar-100_prompt_vq.yaml", "--learner_type", "prompt", "--learner_name", "VQPrompt",
         "dataroot=nowhere", "--prompt_param", "10", "2", "1"],
    ),
    "vq_prompt.run it": (
        "vq_prompt.it_prompt.options.ITOptions",
        ["--config", "configs/cifar-100_it_prompt.yaml", "--learner_type", "it_prompt", "--learner_name", "ITPrompt",
         "dataroot=nowhere"],
    ),
    "alta.main": (
        "alta.options.Options",
        ["--config-file", f"{ROOT}/alta/configs/il_cifar100.yaml", "--cifar100_dir", "nowhere", "--save", "out"],
    ),
    "results": ("results.options.Build", ["--runs", "nowhere"]),
    "results verify": ("results.options.Verify", ["verify", "mtil-order1"]),
    "results first-row": ("results.options.FirstRow", ["first-row", "nowhere"]),
    "results run": ("results.options.Run", ["run", "--dry-run", "inflora-cifar100"]),
    "common.datasets": ("common.datasets.__main__.Check", ["check", "--data-location", "nowhere", "MNIST"]),
    "tests.benchmarks": ("tests.benchmarks.__main__.Options", ["zscl"]),
}  # fmt: skip


@functools.cache
def fields(entry: str) -> list[Declaration]:
    module, _, name = ENTRIES[entry][0].rpartition(".")
    found = declared(getattr(importlib.import_module(module), name))
    return [item for item in found if not item.spec.ignored and typing.get_origin(item.kind) is not dict]


def wrong_values(item: Declaration) -> Iterator[str]:
    """Of one option: another type, not a number, beyond each bound, unknown, empty, twice, not a template or a name."""
    spec = item.spec
    types = {int: ["fast", "1.5"], float: ["fast", "nan", "inf"], bool: ["perhaps"]}
    yield from types.get(item.kind, [])
    for bound, further in ((spec.at_least, -1), (spec.above, 0), (spec.at_most, 1), (spec.below, 0)):
        if bound is not None:
            yield str(bound + further)
    if spec.choices or spec.presets:
        yield "nosuch"
    if not spec.empty and item.kind is not bool:
        yield ""
    if spec.unique:
        yield "1 1" if item.spec.words else "1,1"
    if spec.check is one_placeholder:
        yield from ("{}{x}", "a photo", "{} {}")
    if spec.check is free_file:
        yield from ("../x.json", "record.jsonl", "config.yaml")


def wrong_words(entry: str, item: Declaration) -> Iterator[list[str]]:
    for value in wrong_values(item):
        if item.spec.positional:
            yield [*ENTRIES[entry][1][:-1], value]
        elif item.kind is bool:
            yield [*ENTRIES[entry][1], f"{item.key if item.spec.off else item.flags[0]}={value}"]
        else:
            yield [*ENTRIES[entry][1], item.flags[0], *(value.split() if item.spec.words and value else [value])]
    if not item.spec.positional:
        yield [*ENTRIES[entry][1], f"{item.flags[0]}x", "1"]


def refused(entry: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture) -> str:
    """The message of a command line that ends in one, with exit code 2, and leaves the folder empty."""
    capsys.readouterr()
    name = entry.split()[0]
    module = importlib.import_module(name if name.endswith(("main", "cil", "run")) else f"{name}.__main__")
    with pytest.raises(SystemExit) as stop:
        module.main(words)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: "), (words, message)
    assert message.count("\n") <= 3 and "Traceback" not in message, (words, message)
    assert list(folder.iterdir()) == [], words
    return message


CASES = [(entry, item) for entry in ENTRIES for item in fields(entry)]


@pytest.mark.parametrize("entry, item", CASES, ids=[f"{entry}-{item.key}" for entry, item in CASES])
def test_no_option_takes_a_value_that_makes_no_sense(
    entry: str, item: Declaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in wrong_words(entry, item):
        message = refused(entry, words, tmp_path, capsys)
        names = [name.replace("-", "_") for name in (*item.flags, item.key)]
        assert any(name in message.replace("-", "_") for name in names), (words, message)


def test_the_table_is_long_enough() -> None:
    assert sum(len(list(wrong_words(entry, item))) for entry, item in CASES) >= 300


BY_HAND = [  # entry point, words, what the message names
    *(("zscl.main", words) for words in (
        "--lr nan", "--lr -1", "--lr 1e-3,inf", "--wd -1", "--ls 2", "--beta2 1.5", "--beta2 nan", "--l2 -1", "--T 0",
        "--mv_avg_decay 7", "--we_wise_alpha nan", "--wise_ft_alpha 3", "--alpha 1.5", "--ref_wise_alpha -0.1",
        "--iterations -5", "--iterations 0,0", "--warmup_length -3", "--batch-size 0", "--batch-size-eval 0",
        "--loss-interval 0", "--eval-interval 0", "--save-interval nan", "--save-interval -1", "--avg_freq 0",
        "--memory_size 0", "--icarl-lr -1", "--first-tasks 0", "--num nan", "--num -3", "--workers -1", "--threads 0",
        "--seed -1", "--seed 1.5", "--template {}{x}", "--template a_photo", "--train-dataset MNIST,MNIST",
        "--train-dataset Nosuch --data-location mini", "--eval-datasets Nosuch", "--iterations 1,2,3",
    )),
    *(("moe_adapters.main", words) for words in (
        "--threshold nan", "--threshold -1", "--topk 0", "--topk 3", "--ffn_num 0", "--experts_num 0", "--task_num 1",
        "--chooser-iterations 0,0 --train_chooser", "--chooser-iterations 5 --train_chooser", "--few_shot 0",
        "--balance-loss-weight -1", "--batch-size-eval 0", "--lr -1e-3", "--checkpoint-activations",
        "--eval-only --eval-datasets MNIST --task_id 99", "--eval-only --eval-datasets MNIST --task_id -2",
    )),
    *((entry, words) for entry in ("zscl.cil", "moe_adapters.cil") for words in (
        "lr=nan", "lr=0", "lr=-1e-5", "weight_decay=-1", "ls=1", "warmup=-1", "epochs=0", "batch_size=0",
        "log_path=../x.json", "log_path=record.jsonl", "log_path=config.yaml", "log_path=task_0.pth", "seed=-1",
        "initial_increment=0", "increment=-2", "prompt_template={}{x}", "dataset=nosuch dataset_root=mini",
        "class_order=", "dataset_root=", "save_interval=nan", "workers=-1",
    )),
    *(("zscl.cil", words) for words in ("l2=-1", "l2=nan", "ce_method=all", "memory_size=0", "avg_freq=0", "we=0")),
    *(("inflora.main", words) for words in (
        "net_type=../../../x", "--seed 0,0", "--seed -1", "seed=[1.5]", "--seed ,", "lamb=1.2", "lame=0.1", "lamb=nan",
        "rank=0", "batch_size=0", "epochs=0", "init_epoch=0", "lrate=-1", "lrate=nan", "init_lr=inf", "fc_lrate=-1",
        "weight_decay=-1", "lrate_decay=-1", "num_workers=-1", "milestones=[-1]", "decimals=-1", "total_sessions=2",
        "init_cls=0", "increment=0", "dataset=nosuch data_path=mini", "optim=rmsprop", "model_name=InfLora",
    )),
    *(("vq_prompt.run", words) for words in (
        "--seeds 0 0 --repeat 2", "--seeds 1 --repeat 2", "--seeds -1", "--repeat 0", "--prompt_param 0 2 1",
        "--prompt_param 10 2", "--prompt_param 10 2 nan", "--n_centroids 0", "--crct_epochs 0", "--ca_lr -1",
        "--ca_batch_size_ratio 0", "--ca_weight_decay nan", "--memory 5", "--oracle_flag", "--gpuid 0 1", "lr=nan",
        "prompt_lr_mult=-1", "weight_decay=-1", "schedule=[]", "iter_step=-1", "max_task=0", "batch_size=0",
        "first_split_size=0", "workers=-1", "dataset=nosuch dataroot=mini", "schedule_type=cosines",
        "vq_weight_convention=codes", "--overwrite 2",
    )),
    *(("vq_prompt.run it", words) for words in (
        "epochs=0", "lr=0", "rebalance_lr=nan", "logit_scale=0", "tukey_beta=inf", "prompt_init=-1", "lambda_text=-1",
        "lambda_key=nan", "prompt_length=3", "prompt_layers=[0,0]", "prompt_layers=[-1]", "prompt_layers=[]",
        "n_clusters=0", "tpi_hidden=0", "template={}{x}", "selector=keys", "aggregate=max", "--ca_lr 3",
    )),
    *(("alta.main", words) for words in (
        "--buffer_size -1", "--seed -1", "--method alta", "--visual RN52", "--il_setting class", "OPTIM.LR=nan",
        "OPTIM.LR=0", "OPTIM.MOMENTUM=-1", "OPTIM.WEIGHT_DECAY=-1", "OPTIM.MAX_EPOCH=0", "OPTIM.WARMUP_EPOCH=-1",
        "OPTIM.WARMUP_CONS_LR=inf", "OPTIM.NAME=adam", "TRAINER.COOP.N_CTX=0", "TRAINER.COOP.CLASS_TOKEN_POSITION=x",
        "train.batch_size=0", "train.alpha=nan", "train.beta=-1", "eval.test_epochs=0", "eval.batch_size=0",
        "dataset.n_tasks=3", "dataset.n_classes_per_task=0", "dataset.num_workers=-1", "dataset.name=nosuch",
        "--joint_task_classes 0", "--buffer_size 0",
    )),
    *(("results run", words) for words in (
        "--tflops 0", "--tflops nan", "--tflops -3", "--seeds -1", "--seeds 1,1", "--seeds one", "--jobs 0",
        "--slurm-time soon --executor slurm", "--executor here",
    )),
    *(("tests.benchmarks", words) for words in ("--step-rate nan", "--step-rate 0", "--out .")),
]  # fmt: skip


@pytest.mark.parametrize("entry, words", BY_HAND, ids=[f"{entry}: {words}" for entry, words in BY_HAND])
def test_nonsense_is_refused(
    entry: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(entry, [*ENTRIES[entry][1], *words.split()], tmp_path, capsys)
    names = [word.partition("=")[0] for word in words.split() if word.startswith("--") or "=" in word]
    assert any(name.lstrip("-").rpartition(".")[2] in message for name in names), message


@pytest.mark.parametrize("word", ["data_location=", "devices="])
def test_empty_words(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    name = "--" + word[:-1].replace("_", "-")
    entry = "results run" if name == "--devices" else "zscl.main"
    assert f"{name}: it is empty" in refused(entry, [*ENTRIES[entry][1], name, ""], tmp_path, capsys)


def test_a_record_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "record.jsonl").write_bytes(bytes(range(256)))
    words = [*ENTRIES["tests.benchmarks"][1], "--record", str(tmp_path / "record.jsonl")]
    assert "record.jsonl" in refused("tests.benchmarks", words, folder, capsys)
