"""The command line end to end on a small world in the true layouts: sequence, one-task calls, evaluation, errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from moe_adapters.main import main
from moe_adapters.options import parse, scale_of
from results.collect import read_runs
from tests import fake_data
from tests.moe_adapters.conftest import METHOD, SEQUENCE
from tests.results.lines import shown

TASKS = ["MNIST", "EuroSAT", "DTD"]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def accuracies(folder: Path) -> dict[tuple[int, str], float]:
    return {
        (line["after_task"], line["dataset"]): line["value"] for line in records(folder) if line["metric"] == "accuracy"
    }


def fails(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """Run with bad input: exit code 2, and one message on stderr without a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_sequence_leaves_matrix_records_checkpoints_and_pictures(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert {f"{task}.pth" for task in TASKS} <= names
    assert {f"{task}_autochooser.pth" for task in ["TinyImagenet", *TASKS]} <= names
    assert {"accuracy.csv", "accuracy.png", "ddas_confusion.csv", "record.jsonl", "config.yaml"} <= names
    assert "state.pth" not in names
    found = accuracies(finished_run)
    assert set(found) == {(after, task) for after in range(4) for task in TASKS}
    line = records(finished_run)[0]
    assert {
        "paper",
        "method",
        "protocol",
        "backbone",
        "scale",
        "dataset",
        "after_task",
        "metric",
        "value",
        "seed",
        "run",
        "commit",
        "seconds",
    } <= set(line)


def test_one_task_calls_give_checkpoints_and_matrix_of_the_sequence(
    tiny_world: list[str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the original takes --frozen-path as it is, in the working directory
    save = ["--save", "ckpt/exp"]
    before: list[str] = []
    for index, name in enumerate(["TinyImagenet", *TASKS]):
        main(
            [
                *tiny_world,
                *save,
                *before,
                "--train-dataset",
                name,
                "--train_chooser",
                "--task_id",
                str(index),
                "--iterations",
                "4" if index == 0 else "3",
                "--batch-size",
                "8",
                "--is_train",
            ]
        )
        before = ["--load", f"ckpt/exp/{name}_autochooser.pth"]
        assert same_weights(tmp_path / f"ckpt/exp/{name}_autochooser.pth", finished_run / f"{name}_autochooser.pth")
    before = []
    for index, (name, rate) in enumerate(zip(TASKS, ("1e-2", "5e-3", "1e-2"))):
        main(
            [
                *METHOD,
                *tiny_world,
                *save,
                *before,
                "--train-dataset",
                name,
                "--lr",
                rate,
                "--iterations",
                "5",
                "--task_id",
                str(index),
                "--is_train",
                "--frozen-path",
                "frozen_list",
                "--eval-datasets",
                "MNIST,EuroSAT,DTD",
                "--autorouter",
                "--threshold",
                "0.0005",
            ]
        )
        before = ["--load", f"ckpt/exp/{name}.pth", "--repeat_train", "--frozen"]
        assert same_weights(tmp_path / f"ckpt/exp/{name}.pth", finished_run / f"{name}.pth")
    assert Path("frozen_list").read_text() == (finished_run / "frozen_list").read_text()
    (matrix, numbers), (whole, expected) = shown(tmp_path / "ckpt" / "exp"), shown(finished_run)
    assert matrix.rows == matrix.columns == TASKS and matrix.protocol == "mtil-custom-MNIST+EuroSAT+DTD"
    assert (matrix.values, matrix.zero_shot) == (whole.values, whole.zero_shot)
    numbers, expected = (  # cut data sets are named, of the sequence those of its autoencoders too
        {(method.split(", ")[0], *rest): value for (method, *rest), value in each.items()}
        for each in (numbers, expected)
    )
    assert numbers == pytest.approx(expected, abs=1e-9) and len(expected) == 9 + 2 + 9 + 2 + 4 + 1
    (one, *_), (other, *_) = read_runs([tmp_path / "ckpt" / "exp"]), read_runs([finished_run])
    routed = [
        {(line.after_task, line.dataset, line.metric): line.value for line in lines if "routed" in line.metric}
        for lines in (one, other)
    ]
    assert routed[0] == routed[1] and len(routed[0]) >= 9
    assert sorted(line.after_task for line in one if line.metric == "train_seconds") == [1, 2, 3]


def test_a_router_out_of_turn_is_told(
    tiny_world: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call = [*METHOD, *tiny_world, "--train-dataset", "MNIST", "--iterations", "2", "--task_id", "0"]
    call += ["--load", str(finished_run / "EuroSAT.pth"), "--save", str(tmp_path / "a")]
    call += ["--frozen-path", str(tmp_path / "list")]
    main(call)  # without --repeat_train the checkpoint is not started from
    assert "note:" not in capsys.readouterr().out
    main([*call, "--repeat_train", "--save", str(tmp_path / "b")])
    assert "EuroSAT.pth is the checkpoint of task 2, so that the next router is that of --task_id 2, not 0." in (
        capsys.readouterr().out
    )
    found = []
    for folder in ("a", "b"):
        lines = [json.loads(line) for line in (tmp_path / folder / "MNIST.record.jsonl").open()]
        found += [(line["protocol"], line["after_task"]) for line in lines if line["metric"] == "train_seconds"]
    assert found == [("mtil-custom-MNIST", 1), ("mtil-custom-MNIST+EuroSAT+MNIST", 3)]


def test_the_miniatures_images_or_weights_make_a_miniature(tmp_path: Path) -> None:
    call = [*METHOD, "--train-dataset", "MNIST", "--iterations", "1", "--task_id", "0", "--save", str(tmp_path / "run")]
    call += ["--frozen-path", str(tmp_path / "list"), "--device", "cpu", "--workers", "0"]
    main([*call, "--model", "mini", "--data-location", "mini"])
    lines = [json.loads(line) for line in (tmp_path / "run-mini" / "MNIST.record.jsonl").open()]
    assert {line["scale"] for line in lines} == {"mini"} and not (tmp_path / "run").exists()
    for flags in (["--model", "mini"], ["--data-location", "mini"], ["--scale", "mini"]):
        assert scale_of(parse([*call, *flags])) == "mini"
    assert scale_of(parse(call)) == "paper"


def test_the_same_command_again_learns_what_is_missing_and_changes_nothing(
    tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / "DTD.pth").unlink()  # it starts from a checkpoint that another process made
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")}
    main([*SEQUENCE, *tiny_world, "--save", str(folder)])
    assert same_weights(folder / "DTD.pth", finished_run / "DTD.pth")
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert accuracies(folder) == accuracies(finished_run)


def evaluation_of(folder: Path, where: Path, *flags: str) -> list[str]:
    return [
        *METHOD,
        "--eval-only",
        "--train-dataset",
        "MNIST,EuroSAT,DTD",
        "--eval-datasets",
        "MNIST,EuroSAT,DTD",
        "--load",
        str(folder),
        "--save",
        str(where),
        *flags,
    ]


def test_a_folder_of_checkpoints_evaluates_to_the_same_matrix(
    tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    main([*evaluation_of(finished_run, tmp_path / "test", "--autorouter", "--threshold", "0.0005"), *tiny_world])
    assert accuracies(tmp_path / "test") == accuracies(finished_run)


def test_without_ddas_everything_goes_to_the_original_clip(
    tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    main([*evaluation_of(finished_run, tmp_path / "clip", "--no-ddas"), *tiny_world])
    found = accuracies(tmp_path / "clip")
    assert all(found[after, task] == found[0, task] for after in (1, 2, 3) for task in TASKS)


def test_one_checkpoint_file_prints_its_accuracy(
    tiny_world: list[str], finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    main(
        [
            *METHOD,
            *tiny_world,
            "--eval-only",
            "--eval-datasets",
            "EuroSAT",
            "--load",
            str(finished_run / "DTD.pth"),
            "--load_autochooser",
            str(finished_run / "DTD_autochooser.pth"),
            "--task_id",
            "200",
            "--autorouter",
            "--threshold",
            "0.0005",
        ]
    )
    assert f"Top-1 accuracy: {accuracies(finished_run)[3, 'EuroSAT']:.2f}" in capsys.readouterr().out


def test_one_checkpoint_file_among_the_classes_of_the_sequence(
    tiny_world: list[str], finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    """With MTIL's templates and the domain told it is MTIL's number."""
    call = evaluation_of(finished_run / "DTD.pth", finished_run, "--autorouter", "--threshold", "0.0005", *tiny_world)
    call += ["--load_autochooser", str(finished_run / "DTD_autochooser.pth"), "--eval-datasets", "EuroSAT"]
    main([*call, "--label-space", "all", "--xtail-template", "own"])
    told = f"with the domain told {accuracies(finished_run)[3, 'EuroSAT']:.2f}"
    assert ", domain accuracy " in (shown := capsys.readouterr().out) and told in shown


def test_a_folder_of_another_order(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    call = evaluation_of(finished_run, tmp_path / "test", "--no-ddas", *tiny_world)
    message = fails(capsys, [*call, "--train-dataset", "EuroSAT,MNIST,DTD"])
    assert "the tasks up to EuroSAT were learned in the order MNIST, EuroSAT, not EuroSAT. Give" in message
    template = ["--label-space", "all", "--xtail-template", "very " * 80 + "{}"]
    assert "too long for CLIP" in fails(capsys, [*call, *template]) and not (tmp_path / "test").exists()


# Bad input: one clear message, exit code 2, nothing half-written


def test_unknown_data_set(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    message = fails(
        capsys, [*METHOD, "--train-dataset", "Aircrafts", "--iterations", "5", "--save", str(tmp_path / "run")]
    )
    assert "Aircrafts" in message and "Did you mean Aircraft" in message
    assert not (tmp_path / "run").exists()


def test_everything_missing_is_listed_at_once(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    message = fails(
        capsys,
        [
            *SEQUENCE,
            "--data-location",
            str(tmp_path / "nowhere"),
            "--model",
            "no-such-model",
            "--chooser-features",
            str(tmp_path / "no-alexnet.pth"),
            "--save",
            str(tmp_path / "run"),
        ],
    )
    for missing in ("MNIST", "EuroSAT", "DTD", "TinyImagenet", "no-such-model", "no-alexnet.pth"):
        assert missing in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--iterations", "5", "--epochs", "1"], "--epochs and --iterations exclude each other"),
        ([], "how long to train is missing"),
        (["--iterations", "5", "--eval-datasets", "DTD", "--no-ddas", "--ddas_per_image"], "exclude each other"),
        (["--iterations", "5", "--eval-datasets", "MNIST", "--autorouter"], "--autorouter needs --threshold"),
        (["--iterations", "5", "--eval-datasets", "MNIST"], "how images find their router is missing"),
        (["--iterations", "5", "--lr", "1e-3,1e-3"], "--lr has 2 values for 3 data sets"),
        (["--iterations", "5", "--template", "a photo"], "--template a photo: give {} once"),
        (["--iterations", "5", "--topk", "9"], "--topk 9 is more than --experts_num"),
        (["--iterations", "5", "--few_shot", "0"], "--few_shot 0"),
        (["--iterations", "5", "--task_num", "2"], "--task_num 3 or more"),
        (["--iterations", "5", "--topk", "0"], "--topk 0: give 1 or more"),
        (["--iterations", "5", "--chooser-iterations", "9"], "--chooser-iterations 9: give two"),
        (["--iterations", "5", "--chooser-iterations", "9,0"], "--chooser-iterations 0: give 1 or more"),
        (["--iterations", "5", "--few_shot", "-2"], "--few_shot -2: give -1 or more"),
        (["--iterations", "5", "--frozen-path", "lists/config.yaml"], "a file of that name is the run's own"),
        (["--iterations", "5", "--frozen-path", "MNIST.json"], "--frozen-path MNIST.json: give a file's name"),
        (["--iterations", "5", "--frozen-path", "n" * 300], "give a shorter name"),
        (["--iterations", "5", "--checkpoint-activations"], "checkpointed blocks run twice in a step"),
        (["--iterations", "5", "--eval-datasets", "DTD", "--no-ddas", "--task_id", "11"], "the routers are 0 to 10"),
        (["--iterations", "5", "--train-dataset", "DTD", "--task_id", "11"], "the number of its router, from 0 to 10"),
        (["--eval-only", "--load", ".", "--eval-datasets", "DTD", "--no-ddas", "--task_id", "11"], "are 0 to 10"),
        (["--eval-only", "--load", ".", "--eval-datasets", "DTD", "--autorouter", "--threshold", "655"], "at most 1"),
    ],
)
def test_contradicting_flags(capsys: pytest.CaptureFixture, tmp_path: Path, flags: list[str], said: str) -> None:
    base = [*METHOD, "--train-dataset", "MNIST,EuroSAT,DTD", "--save", str(tmp_path / "run")]
    assert said in fails(capsys, [*base, *flags])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--load", "."], "--load .: a folder; training starts from a checkpoint in it."),
        (["--frozen-path", "."], "give a file's name"),
        (["--frozen-path", "nowhere/list"], "--frozen-path nowhere/list: no file can be written there"),
    ],
)
def test_one_task_with_files_that_can_not_be_used(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path, flags: list[str], said: str
) -> None:
    one = ["--train-dataset", "DTD", "--task_id", "0", "--iterations", "5", "--save", str(tmp_path / "run")]
    assert said in fails(capsys, [*METHOD, *tiny_world, *one, *flags])
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_could_not_be_computed_is_refused_first(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    given = ["--eval-only", "--no-ddas", "--eval-datasets", "DTD", "--load", str(finished_run)]
    given += ["--save", str(tmp_path / "test")]
    assert "needs --ffn_adapt --apply_moe" in fails(capsys, [*tiny_world, *given])
    nowhere = ["--chooser-features", str(tmp_path / "no.pth")]  # of no use without DDAS, but in the run's settings
    assert "no.pth does not exist" in fails(capsys, [*METHOD, *tiny_world, *given, *nowhere])
    assert "nothing to do: give --train-dataset" in fails(capsys, [])
    assert "--save is missing" in fails(capsys, [*METHOD, "--train-dataset", "DTD", "--iterations", "5"])
    assert not (tmp_path / "test").exists()


def test_files_of_the_evaluation_that_no_step_makes_are_missed_before_training(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    call = [*(flag for flag in SEQUENCE if flag != "--train_chooser"), *tiny_world, "--save", str(run)]
    message = fails(capsys, call)
    assert all(f"{run / name}_autochooser.pth" in message for name in TASKS) and f"{run / 'DTD'}.pth" not in message
    assert ". Add --train_chooser, give --load_autochooser, or leave --eval-datasets out." in message
    assert not run.exists()
    main([*call, "--load_autochooser", str(finished_run)])
    capsys.readouterr()
    call = [*METHOD[2:], *tiny_world, "--train-dataset", "DTD", "--iterations", "5", "--task_id", "1", "--train_chooser"]
    call += ["--eval-datasets", "DTD", "--autorouter", "--threshold", "0.0005", "--save", str(tmp_path / "one")]
    assert f"checkpoints are missing: {tmp_path / 'one' / 'DTD.pth'}." in fails(capsys, call)
    assert not (tmp_path / "one").exists()


def test_flags_that_upstream_never_reads_are_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    given = ["--eval-only", "--no-ddas", "--eval-datasets", "DTD", "--data-location", str(tmp_path), "--model", "mini"]
    with pytest.raises(SystemExit):
        main([*given, "--multi_experts", "--eval-interval", "5"])
    said = capsys.readouterr().out
    assert said.startswith("note: without effect: --multi_experts (upstream reads it nowhere, or into an evaluation")
    assert ", --eval-interval (" in said


def test_folder_of_another_configuration(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path
) -> None:
    before = (finished_run / "record.jsonl").read_bytes()
    message = fails(capsys, [*SEQUENCE, *tiny_world, "--save", str(finished_run), "--ls", "0.1", "--seed", "7"])
    assert "ls: 0.2 there, 0.1 now" in message and "seed: 42 there, 7 now" in message and "--overwrite" in message
    assert (finished_run / "record.jsonl").read_bytes() == before


def test_checkpoint_of_other_sizes_names_the_keys(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    arguments = evaluation_of(finished_run, tmp_path / "wrong", "--no-ddas", "--experts_num", "6")
    message = fails(capsys, [*arguments, *tiny_world])
    assert "adaptmlp_list" in message and "router_list" in message and "--experts_num" in message


def one_checkpoint(path: Path) -> list[str]:
    return [*METHOD, "--eval-only", "--no-ddas", "--eval-datasets", "DTD", "--load", str(path)]


def test_truncated_checkpoint(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    whole = (finished_run / "DTD.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    message = fails(capsys, [*one_checkpoint(tmp_path / "cut.pth"), *tiny_world])
    assert "cut.pth is not a readable checkpoint" in message


def test_checkpoint_on_another_clip(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    weights = tensors(finished_run / "DTD.pth")
    weights["visual.proj"] = weights["visual.proj"] + 1
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    message = fails(capsys, [*one_checkpoint(tmp_path / "other.pth"), *tiny_world])
    assert "holds another CLIP" in message and "visual.proj" in message


def test_checkpoint_on_another_activation(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    told = "DTD.pth was trained with quickgelu, but --model computes with gelu. Add --activation quickgelu."
    assert told in fails(capsys, [*one_checkpoint(finished_run / "DTD.pth"), *tiny_world, "--activation", "gelu"])
    training = [*METHOD, *tiny_world, "--train-dataset", "MNIST", "--iterations", "2", "--task_id", "1", "--activation"]
    training += ["gelu", "--load", str(finished_run / "DTD.pth"), "--repeat_train", "--save", str(tmp_path / "a")]
    assert told in fails(capsys, training)


def test_output_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = fails(capsys, [*SEQUENCE, *tiny_world, "--save", str(tmp_path / "file" / "run")])
    assert "cannot be written" in message


def test_checkpoints_that_no_run_here_made_are_not_taken_for_results(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "MNIST.pth").write_bytes((finished_run / "MNIST.pth").read_bytes())
    assert "already holds MNIST.pth" in fails(capsys, [*SEQUENCE, *tiny_world, "--save", str(tmp_path)])
    (tmp_path / "MNIST.pth").rename(tmp_path / "ddas_confusion.csv")
    assert "already holds ddas_confusion.csv" in fails(capsys, [*SEQUENCE, *tiny_world, "--save", str(tmp_path)])


def test_coops_splits_are_read_everywhere(tiny_world: list[str], tmp_path: Path) -> None:
    fake_data.write(tmp_path / "data", ["DTD"])
    fake_data.coop_list(tmp_path / "data", "DTD")
    shutil.rmtree(tmp_path / "data/dtd/dtd/labels")  # MTIL's lists: who still reads them fails
    flags = [tiny_world[0], str(tmp_path / "data"), *tiny_world[2:], "--save", str(tmp_path / "run")]
    task = ["--train-dataset", "DTD", "--eval-datasets", "DTD", "--iterations", "2", "--task_id", "0", "--is_train"]
    flags += ["--frozen-path", str(tmp_path / "frozen"), "--no-ddas", "--splits", "coop"]
    main([*METHOD, *task, *flags])
    data = yaml.safe_load((tmp_path / "run/DTD.config.yaml").read_text())["settings"]["data"]["DTD"]
    assert (data["train"], data["test"]) == (3, 3) and "split_zhou_DescribableTextures.json" in data["notes"][0]
    lines = [json.loads(line) for line in (tmp_path / "run/DTD.record.jsonl").read_text().splitlines()]
    top1 = [line["value"] for line in lines if line["metric"] == "accuracy"]
    assert len(top1) == 2 and all(value in [pytest.approx(100 * right / 3) for right in range(4)] for value in top1)
