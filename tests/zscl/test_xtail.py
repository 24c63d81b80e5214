"""X-TAIL's ten data sets from one command to Transfer, Avg and Last, and what it refuses."""

from pathlib import Path

import pytest

from common.protocols import Protocol
from tests.fake_data import write
from tests.zscl.conftest import LENGTH, TASKS, flags_of
from tests.zscl.test_main import fails, records
from zscl.main import main

TEN = [
    "Aircraft", "Caltech101", "DTD", "EuroSAT", "Flowers", "Food", "MNIST", "OxfordPet", "StanfordCars", "SUN397",
]  # fmt: skip
METRICS = ("accuracy", "domain_accuracy", "accuracy_with_domain")


def test_the_ten_sets_of_sixteen_shots(
    tmp_path_factory: pytest.TempPathFactory, world_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path_factory.mktemp("ten")
    write(root / "data", TEN)
    (root / "ViT-tiny.pt").symlink_to(world_folder / "ViT-tiny.pt")
    main([
        "--train-dataset", "xtail", "--eval-datasets", "xtail", "--label-space", "all", "--few-shot", "16", "--lr", "1e-3",
        "--iterations", "1", "--warmup_length", "1", "--save", str(tmp_path / "run"), *flags_of(root, tmp_path / "cache"),
    ])  # fmt: skip
    found = {(line["metric"], line["after_task"], line["dataset"]): line for line in records(tmp_path / "run")}
    assert {line["protocol"] for line in found.values()} == {"xtail-16shot"}
    assert Protocol.parse("xtail-16shot").order == tuple(TEN)
    for metric in METRICS:
        R = [[found[metric, row, name]["value"] for name in TEN] for row in range(11)][1:]
        transfer = sum(sum(R[i][j] for i in range(j)) / j for j in range(1, 10)) / 9
        expected = {"transfer": transfer, "avg": sum(map(sum, R)) / 100, "last": sum(R[-1]) / 10}
        before = "" if metric == "accuracy" else f"{metric}_"
        assert {name: found[before + name, 10, "mean"]["value"] for name in expected} == pytest.approx(expected)
    files = {"accuracy.csv", "accuracy.png", "domain_accuracy.csv", "accuracy_with_domain.csv"}
    assert files <= {path.name for path in (tmp_path / "run").iterdir()}


ALL = ["--label-space", "all"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--eval-datasets", "DTD"], "--label-space all tells the classes of several data sets apart"),
        (["--eval-datasets", ",".join(TASKS), "--label-space", "some"], "--label-space some"),
        (["--eval-datasets", ",".join(TASKS), "--xtail-template", "a photo"], "--xtail-template a photo"),
        (["--train-dataset", "DTD,MNIST", "--eval-datasets", "EuroSAT,DTD"], "EuroSAT is no data set of the sequence"),
        (["--eval-datasets", "DTD,MNIST"], "in the order MNIST, EuroSAT, DTD, not DTD. Give the whole sequence"),
        (["--eval-datasets", "MNIST,DTD"], "in the order MNIST, EuroSAT, DTD, not MNIST, DTD."),
        (["--eval-datasets", ",".join(TASKS), "--xtail-template", "very " * 80 + "{}"], "too long for CLIP"),
    ],
)
def test_bad_input(
    flags: list[str], message: str, capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path
) -> None:
    told = fails(capsys, ["--eval-only", "--load", str(finished_run), *ALL, *flags, *tiny_world])
    assert message in told and not (finished_run / "xtail").exists()


def test_training_names_the_whole_sequence(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    call = [*LENGTH, *ALL, "--eval-datasets", "DTD,MNIST", "--save", str(tmp_path / "run"), *tiny_world]
    assert "give the whole sequence, as order1, not DTD." in fails(capsys, ["--train-dataset", "DTD", *call])
    load = ["--load", str(finished_run / "EuroSAT.pth")]
    assert "learn it in one call without --load" in fails(capsys, ["--train-dataset", "DTD,MNIST", *load, *call])
    assert not (tmp_path / "run").exists()


def test_few_shot_checkpoints_are_not_taken_for_others(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    main(["--train-dataset", "DTD,MNIST", "--few-shot", "1", *LENGTH, *tiny_world, "--save", run])
    evaluation = ["--eval-only", "--eval-datasets", "DTD,MNIST", "--load", run, *tiny_world]
    assert "was trained with --few-shot 1, not -1" in fails(capsys, evaluation)
    assert "was trained with --few-shot 1, not 2" in fails(capsys, [*evaluation, "--few-shot", "2"])
    further = ["--train-dataset", "EuroSAT", "--load", f"{run}/MNIST.pth", *LENGTH, *tiny_world]
    assert "was trained with --few-shot 1, not -1" in fails(capsys, [*further, "--save", str(tmp_path / "further")])
    main([*evaluation, "--few-shot", "1", *ALL])
    assert {line["protocol"] for line in records(Path(run) / "xtail")} == {"xtail-custom-DTD+MNIST-1shot"}


def test_one_checkpoint_file_among_all_classes(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    joint = ["--eval-only", *ALL, *tiny_world]
    main([*joint, "--eval-datasets", ",".join(TASKS), "--load", str(finished_run), "--save", str(tmp_path)])
    last = {(line["dataset"], line["metric"]): line["value"] for line in records(tmp_path)
            if line["after_task"] == 3}  # fmt: skip
    capsys.readouterr()
    tested = ["--train-dataset", ",".join(TASKS), "--eval-datasets", "DTD"]
    main([*joint, *tested, "--load", str(finished_run / "DTD.pth")])
    told = capsys.readouterr().out.splitlines()
    lines = dict(zip(told[:-1], told[1:]))
    for name in ["DTD"]:
        words = ("Top-1 accuracy:", "domain accuracy", "with the domain told")
        expected = [f"{text} {last[name, metric]:.2f}" for text, metric in zip(words, METRICS)]
        assert lines[f"Evaluating on {name}"] == ", ".join(expected)
