"""`python -m zscl.cil` from end to end: configurations, what a run leaves, what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from results.records import read_file
from tests.metrics_json import read_metrics
from tests.zscl.cil.runs import cifar, named
from zscl.cil.__main__ import main
from zscl.cil.options import CONFIGS, method_label, notes, parse

REAL = Path(__file__).parents[4] / "shared" / "data"
UPSTREAM = """
cifar100_10-10-LwF cifar100_10-10-iCaRL cifar100_5-5-LwF cifar100_5-5-iCaRL cifar100_2-2-LwF cifar100_2-2-iCaRL
cifar100_2-2_new tinyimagenet_100-5 tinyimagenet_100-10 tinyimagenet_100-20 tinyimagenet_100-5-iCaRL
tinyimagenet_100-10-iCaRL tinyimagenet_100-20-iCaRL tinyimagenet_100-5-ZSCL tinyimagenet_100-10-ZSCL
tinyimagenet_100-20-ZSCL imagenet100_10-10-LwF imagenet100_10-10-iCaRL imagenet100_10-10-ZSCL imagenet100_10-10-new
imagenet100_50-5-LwF imagenet100_50-5-iCaRL imagenet100_50-5-ZSCL imagenet100_50-5-new imagenet1000_100-100
""".split()
DATA = ["dataset_root=data", "class_order=class_orders/cifar100.yaml"]


# Configurations


@pytest.mark.parametrize("config", sorted(path.stem for path in (CONFIGS / "class").glob("*.yaml")))
def test_every_configuration_is_complete(config: str) -> None:
    options = parse([*named(config), *DATA])
    dataset, classes = config.split("_")[:2]
    first, step = classes.split("-")[:2]
    assert (options.dataset, options.initial_increment, options.increment) == (dataset, int(first), int(step))
    assert options.prompt_template == f"a {'good' if dataset.startswith('imagenet') else 'bad'} photo of a {{}}."
    assert options.batch_size == (128 if dataset.startswith("imagenet") else 64)
    assert options.epochs == 1 and options.warmup == 30 and options.eval_transform == "train" and options.seed == 42
    assert options.hydra.run.dir.startswith(f"./experiments/class/{dataset}_{first}-{step}-")
    assert not notes(options)


def test_all_of_the_originals_files_are_here() -> None:
    assert len(UPSTREAM) == 25 and all((CONFIGS / "class" / f"{name}.yaml").is_file() for name in UPSTREAM)
    stems = [path.stem for path in (CONFIGS / "class").glob("*.yaml")]
    assert len({stem.lower() for stem in stems}) == len(stems)  # also where case does not count in file names


@pytest.mark.parametrize(
    "config, label, values, folder",
    [
        ("cifar100_10-10-LwF", "LwF-VR", (7.1e-6, 0.2, 0.0, 0, None), "cifar100_10-10-lwfvr"),
        ("cifar100_2-2-LwF", "LwF-VR", (7.1e-6, 0.2, 0.0, 0, None), "cifar100_2-2-lwfvr-0.2"),
        ("cifar100_10-10-LwF_only", "LwF", (7.1e-6, 0.2, 0.0, 0, None), "cifar100_10-10-lwf"),
        ("cifar100_5-5-finetune", "Fine-tuning", (7.1e-6, 0.2, 0.0, 0, None), "cifar100_5-5-finetune"),
        ("cifar100_5-5-iCaRL", "iCaRL (CLIP)", (7.1e-6, 0.2, 0.0, 0, None), "cifar100_5-5-iCaRL"),
        ("cifar100_2-2-ZSCL", "ZSCL", (7.1e-6, 0.2, 0.0, 0, 1), "cifar100_2-2-ZSCL"),
        ("cifar100_2-2_new", "Fine-tuning (CE with captions)", (1e-6, 0.2, 0.0, "ext", None),
         "cifar100_2-2-ext-0.2-1e-06"),
        ("tinyimagenet_100-5-ZSCL", "ZSCL", (7.1e-6, 0.2, 0.0, 0, 1), "tinyimagenet_100-5-ZSCL"),
        ("imagenet100_10-10-ZSCL", "ZSCL", (7e-6, 0.2, 0.0, 0, 1), "imagenet100_10-10-ZSCL-2"),
        ("imagenet100_50-5-ZSCL", "ZSCL", (7e-6, 0.0, 0.1, 0, 1), "imagenet100_50-5-ZSCL"),
        ("imagenet100_50-5-new", "Fine-tuning (CE with captions)", (7e-6, 0.0, 0.1, "ext", None),
         "imagenet100_50-5-finetune-ext-7e-06-0.0-0.1"),
        ("imagenet1000_100-100", "ZSCL", (7.1e-6, 0.2, 0.0, 0, 1), "imagenet1000_100-100-ZSCL"),
    ],
)  # fmt: skip
def test_values_of_the_configurations(config: str, label: str, values: tuple, folder: str) -> None:
    options = parse([*named(config), *DATA])
    assert method_label(options) == label
    assert (options.lr, options.ls, options.weight_decay, options.ce_method, options.we) == values
    assert options.hydra.run.dir == f"./experiments/class/{folder}"
    assert options.avg_freq == (10 if options.we or config == "cifar100_2-2_new" else None)


@pytest.mark.parametrize(
    "words, label",
    [
        (["teacher=aliased"], "LwF-VR (aliased teacher)"),
        (["method=zeroshot"], "Continual-CLIP"),
        (["method=finetune", "l2=0.5"], "Fine-tuning (WC 0.5)"),
        (["method=finetune", "ce_method=previous"], "Fine-tuning (CE over all seen)"),
        (["method=iCaRL", "ref_sentences=null", "icarl_compat=true"], "iCaRL (CLIP, released memory)"),
        (["method=finetune", "eval_transform=test"], "Fine-tuning (centre-crop test)"),
        (["method=ZSCL", "ref_sentences=conceptual_captions", "ref_dataset=ImageNet"],
         "ZSCL (no WE, reference images: ImageNet)"),
    ],
)  # fmt: skip
def test_whatever_differs_from_the_paper_is_in_the_methods_name(words: list[str], label: str) -> None:
    assert method_label(parse([*named("cifar100_10-10-LwF"), *DATA, *words])) == label


@pytest.mark.parametrize(
    "words, message",
    [
        (["method=icarl"], "method icarl: unknown. Did you mean iCaRL?"),
        (["method=lwfv"], "Did you mean lwfvr?"),
        (["method=lwa"], "say finetune or ZSCL"),
        (["method=EWC"], "Known are zeroshot, finetune, ext, lwf, lwfvr, iCaRL, ZSCL."),
        (["ce_method=exit"], "ce_method exit: unknown. Did you mean ext?"),
        (["ce_method=ext"], "needs ref_sentences=conceptual_captions"),
        (["method=ext"], "method=ext needs ce_method=ext."),
        (["teacher=shared"], "teacher shared: unknown"),
        (["eval_transform=val"], "Known are train, test."),
        (["scenario=domain"], "scenario domain: unknown"),
        (["method=lwf"], "method=lwf needs ref_sentences=null, not random."),
        (["ref_dataset=ImageNet"], "method=lwfvr has its own reference images"),
        (["method=ZSCL"], "method=ZSCL needs ref_sentences=conceptual_captions, not random."),
        (["method=ZSCL", "ref_sentences=conceptual_captions"], "method=ZSCL needs ref_dataset=conceptual_captions"),
        (["method=ZSCL", "ref_sentences=conceptual_captions", "ref_dataset=Imagenet"], "Did you mean ImageNet?"),
        (["we=0"], "we 0: it would switch the weight ensemble on"),
        (["we=1"], "avg_freq is missing: we=1 needs a number of steps"),
        (["lr=0"], "lr 0.0: give more than 0."),
        (["ls=1"], "ls 1.0: give 0 or more, less than 1."),
        (["memory_size=0"], "memory_size 0: give 1 or more."),
        (["l2=-1"], "l2 -1.0: give 0 or more."),
        (["we=1", "avg_freq=0"], "avg_freq 0: give 1 or more."),
        (["reference_pass=both"], "reference_pass both: unknown"),
        (["ref_sentences=captions"], "ref_sentences captions: unknown. Did you mean conceptual_captions?"),
        (["prompt_template=a photo"], "prompt_template a photo: give {} once"),
        (["dataset_root="], "dataset_root is missing"),
        (["class_order="], "class_order is missing"),
        (["learning_rate=1"], "learning_rate: unknown option"),
        (["batchsize=1"], "Did you mean batch_size?"),
    ],
)
def test_a_wrong_value_is_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*named("cifar100_10-10-LwF"), *DATA, *words])
    told = capsys.readouterr()
    assert left.value.code == 2 and told.out == "" and message in told.err and "Traceback" not in told.err


def test_what_has_no_effect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    parse([*named("cifar100_10-10-ZSCL"), *DATA, "method=finetune", "teacher=aliased", "icarl_compat=true"])
    assert capsys.readouterr().out.splitlines() == [
        f"note: {key} has no effect with method=finetune." for key in ("we", "teacher", "icarl_compat")
    ]


# Runs


@pytest.mark.parametrize(
    "config, words",
    [
        ("cifar100_10-10-finetune", ["ce_method=previous", "l2=0.01"]),
        ("cifar100_10-10-iCaRL", ["memory_size=20", "icarl_compat=true", "eval_transform=test"]),
        ("cifar100_10-10-ZSCL", ["ref_dataset=TinyImageNet", "reference_pass=separate"]),
    ],
)
def test_what_a_run_leaves(cil_world: list[str], tmp_path: Path, config: str, words: list[str]) -> None:
    if "ref_dataset=TinyImageNet" in words:  # a substitute for the captions' images, named in the record
        root = Path(cil_world[0].removeprefix("dataset_root="))
        words = [*words[1:], f"ref_dataset={root / 'tinyimagenet' / 'tiny-imagenet-200' / 'val'}"]
    folder = tmp_path / "run"
    main(cifar(cil_world, folder, config, *words))
    records, problems = read_file(folder / "record.jsonl")
    assert not problems and {record.protocol for record in records} == {"cil-cifar100-40+3x20"}
    assert {record.scale for record in records} == {"paper"} and {record.seed for record in records} == {42}
    lines, closing = read_metrics(folder / "metrics.json")
    values = {(record.metric, record.dataset, record.after_task): record.value for record in records}
    for task, line in enumerate(lines):
        assert round(values["accuracy", "CIFAR100", task + 1], 2) == line["acc"]
        assert [round(values["task_accuracy", f"task {j}", task + 1], 2) for j in range(task + 1)] == line[
            "acc_per_task"
        ]
    assert len(lines) == 4 and closing == {
        "last": round(values["last", "CIFAR100", 4], 2), "avg": round(values["avg", "CIFAR100", 4], 2)
    }  # fmt: skip
    assert [(folder / f"task_{task}.pth").exists() for task in range(5)] == [True] * 4 + [False]
    table = (folder / "accuracy.csv").read_text().splitlines()
    assert table[0] == "after,task 0,task 1,task 2,task 3" and len(table) == 5
    assert (folder / "accuracy.png").exists() and not (folder / "state.pth").exists()
    if any("ref_dataset" in word for word in words):
        assert {record.method for record in records} == {"ZSCL (reference images: val)"}


def test_a_checkpoint_is_marked_and_refused_by_mtil(
    cil_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(cifar(cil_world, tmp_path / "run", "cifar100_10-10-finetune", "initial_increment=100"))
    saved = torch.load(tmp_path / "run" / "task_0.pth", weights_only=True)
    assert saved["protocol"] == "joint-cifar100" and "visual.proj" in saved["state_dict"]
    from zscl.main import main as mtil

    with pytest.raises(SystemExit):
        data = Path(cil_world[0].removeprefix("dataset_root=")) / "cifar100"
        mtil(["--eval-only", "--load", str(tmp_path / "run" / "task_0.pth"), "--eval-datasets", "CIFAR100",
              "--data-location", str(data), "--no-verify", "--model", cil_world[2].removeprefix("model_name="),
              "--device", "cpu", "--workers", "0"])  # fmt: skip
    assert "class-incremental run 'joint-cifar100', not of MTIL" in capsys.readouterr().err


def test_the_miniature(tmp_path: Path) -> None:
    main([*named("cifar100_10-10-finetune"), "--scale", "mini", "epochs=1", f"save={tmp_path / 'run'}"])
    records, _ = read_file(tmp_path / "run-mini" / "record.jsonl")
    assert {(record.protocol, record.scale, record.backbone) for record in records} == {
        ("cil-characters-10x4", "mini", "mini")
    }
    accuracy = [record.value for record in records if record.metric == "accuracy"]
    assert len(accuracy) == 10 and accuracy[0] > 80


@pytest.mark.skipif(not (REAL / "cifar100").is_dir(), reason="the small real data is not here")
def test_real_cifar100_files(cil_world: list[str], tmp_path: Path) -> None:
    """A smoke run on cut copies of the published files: random weights, so only that it runs and records."""
    words = [word for word in cil_world if not word.startswith("dataset_root")]
    main([*named("cifar100_10-10-LwF_only"), *words, f"dataset_root={REAL}", "class_order=class_orders/cifar100.yaml",
          f"save={tmp_path / 'run'}"])  # fmt: skip
    lines, closing = read_metrics(tmp_path / "run" / "metrics.json")
    assert len(lines) == 10 and closing is not None
    assert (
        json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[0])["protocol"] == "cil-cifar100-10x10"
    )


# What is refused before anything is learned


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(argv)
    told = capsys.readouterr().err
    assert left.value.code == 2 and "Traceback" not in told
    return told


@pytest.mark.parametrize(
    "order, message",
    [
        (list(range(99)), "the class order has 99 classes, the data set has 100"),
        ([*range(99), 0], "names 0 more than once and never 99"),
        ([*range(99), 100], "must be 0 to 99; 100 is not"),
    ],
)
def test_wrong_class_orders(
    cil_world: list[str], tmp_path: Path, order: list[int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "order.yaml").write_text(f"class_order: {order}\n")
    words = [f"class_order={tmp_path / 'order.yaml'}", f"initial_increment={len(order)}"]
    assert message in refused([*cifar(cil_world, tmp_path / "run"), *words], capsys)
    assert not (tmp_path / "run").exists()


def test_other_bad_input(cil_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert "increment 7 does not divide the 60 classes" in refused([*cifar(cil_world, folder), "increment=7"], capsys)
    memory = refused(cifar(cil_world, folder, "cifar100_10-10-iCaRL"), capsys)
    assert "memory_size=5000: CIFAR100 has 200 training images in 4 tasks; give 4 to 200." in memory
    nothing = refused([*cifar(cil_world, folder, "cifar100_10-10-ZSCL", "model_name=none.pt", "cc_root=nowhere",
                              f"dataset_root={tmp_path}")], capsys)  # fmt: skip
    assert all(word in nothing for word in ("CIFAR100", "none.pt", "its images are wanted")) and not folder.exists()
    (tmp_path / "empty").mkdir()
    empty = f"ref_dataset={tmp_path / 'empty'}"
    assert "holds no images" in refused(cifar(cil_world, folder, "cifar100_10-10-ZSCL", empty), capsys)
    (tmp_path / "empty" / "x.jpg").touch()
    told = refused(cifar(cil_world, folder, "cifar100_10-10-ZSCL", empty), capsys)
    assert "1 images are empty files or missing, the first is" in told


def test_a_folder_with_other_results(cil_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    main(cifar(cil_world, folder, "cifar100_10-10-LwF", "method=zeroshot"))
    told = refused(cifar(cil_world, folder, "cifar100_10-10-LwF", "method=zeroshot", "seed=1"), capsys)
    assert "holds a run with another configuration" in told and "seed: 42 there, 1 now" in told
    (folder / "config.yaml").write_text("method: zeroshot\n")  # as the original leaves it
    again = cifar(cil_world, folder, "cifar100_10-10-LwF", "method=zeroshot")
    assert "was not written by this program" in refused([*again, "overwrite=true"], capsys)
    (folder / "config.yaml").unlink()
    assert "already holds metrics.json, which no run recorded" in refused(again, capsys)


def test_missing_wnids_are_listed(cil_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        (tmp_path / "ImageNet" / split / "n01440764").mkdir(parents=True)
    words = [f"dataset_root={tmp_path}", f"save={tmp_path / 'run'}", "class_order=class_orders/imagenet100.yaml"]
    told = refused([*named("imagenet100_10-10-LwF"), *cil_world, *words], capsys)
    assert "lacks 99 of 100 classes: n01443537, n01484850" in " ".join(told.split())
