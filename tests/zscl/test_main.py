"""The command line end to end on a small world in the true layouts: every method, evaluation, spellings, errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.errors import UserError
from common.mtil import require_trained_so
from tests import fake_data
from tests.zscl.conftest import KD, LENGTH, LWF, ON_CAPTIONS, SEQUENCE, TASKS, ZSCL, same_weights, tensors
from zscl.main import main
from zscl.options import parse, scale_of

SM, SUB = (["--method", "ZSCL", *KD, "--ref-dataset", f"ImageNet{part}"] for part in ("SM", "SUB"))
LAST = ["--train-dataset", "DTD", "--save", "x", "--iterations", "4"]


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


# What a sequence leaves


def test_sequence_leaves_matrix_records_checkpoints_and_pictures(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    files = {"accuracy.csv", "accuracy.png", "record.jsonl", "config.yaml", "lock", "run-checksums"}
    assert names == {f"{task}.pth" for task in TASKS} | files
    assert set(accuracies(finished_run)) == {(after, task) for after in range(4) for task in TASKS}
    fields = "schema paper method protocol backbone scale seed run commit dataset after_task metric value seconds"
    assert all(set(fields.split()) == set(line) for line in records(finished_run))
    methods = {(line["after_task"] > 0, line["method"]) for line in records(finished_run) if line["dataset"] != "mean"}
    assert methods == {(False, "Zero-shot CLIP"), (True, "ZSCL (CIFAR10 images)")}


def test_everything_but_the_logit_scale_is_trained(finished_run: Path, world_folder: Path) -> None:
    (counted,) = [line for line in records(finished_run) if line["metric"] == "trainable_parameters"]
    start = torch.jit.load(world_folder / "ViT-tiny.pt").state_dict()
    last = tensors(finished_run / "DTD.pth")
    assert counted["value"] == sum(value.numel() for value in last.values()) - 1
    moved = {name for name, value in last.items() if not torch.equal(value, start[name].float())}
    assert set(last) - moved == {"logit_scale"}


def test_transfer_avg_last_follow_from_the_matrix(finished_run: Path) -> None:
    found = accuracies(finished_run)
    matrix = np.array([[found[after, task] for task in TASKS] for after in (1, 2, 3)])
    recorded = {line["metric"]: line["value"] for line in records(finished_run) if line["dataset"] == "mean"}
    assert recorded["avg"] == pytest.approx(matrix.mean(), abs=1e-9)
    assert recorded["last"] == pytest.approx(matrix[2].mean(), abs=1e-9)
    transfer = [matrix[:1, 1].mean(), matrix[:2, 2].mean()]
    assert recorded["transfer"] == pytest.approx(np.mean(transfer), abs=1e-9)


def test_the_same_command_again_changes_nothing(tiny_world: list[str], finished_run: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished_run.glob("*.pth")}
    matrix = accuracies(finished_run)
    main([*SEQUENCE, *LENGTH, *ZSCL, *ON_CAPTIONS, *tiny_world, "--save", str(finished_run)])
    assert {path.name: path.stat().st_mtime_ns for path in finished_run.glob("*.pth")} == before
    assert accuracies(finished_run) == matrix


METHODS = {
    "Fine-tuning": [],
    "LwF": LWF,
    "LwF-VR": [*LWF, "--ref-sentences", "random"],
    "WiSE-FT": ["--wise_merge"],
    "WC": ["--l2", "1"],
    "WE": ["--we", "--avg_freq", "2"],
    "WE-WiSE 0.99": ["--we_wise", "--we_wise_alpha", "0.99", "--avg_freq", "2"],
    "moving average 0.999": ["--moving_avg", "--avg_freq", "2"],
    "ZSCL- (CIFAR10 images, CIFAR10 prompts)": ["--method", "ZSCL", *KD, "--ref-dataset", "CIFAR10"],
    "ZSCL* (CIFAR10 images)": ["--method", "ZSCL", *KD, "--we", "--avg_freq", "2", *ON_CAPTIONS],
    "iCaRL": ["--method", "icarl", *KD, "--memory_size", "8"],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_from_start_to_end(tiny_world: list[str], tmp_path: Path, name: str) -> None:
    order = "--dataset_order" if name == "iCaRL" else "--train-dataset"
    tasks = [order, "MNIST,EuroSAT", "--eval-datasets", "MNIST,EuroSAT"]
    main([*tasks, *LENGTH, *METHODS[name], *tiny_world, "--save", str(tmp_path)])
    assert len(accuracies(tmp_path)) == 6
    assert {line["method"] for line in records(tmp_path) if line["after_task"]} == {name}
    assert all(value.isfinite().all() for value in tensors(tmp_path / "EuroSAT.pth").values())


def test_the_miniatures_images_or_weights_make_a_miniature(tmp_path: Path) -> None:
    call = ["--train-dataset", "MNIST", *LENGTH, "--iterations", "1", "--warmup_length", "1", "--device", "cpu"]
    call += ["--workers", "0", "--save", str(tmp_path / "run")]
    main([*call, "--model", "mini", "--data-location", "mini"])
    lines = [json.loads(line) for line in (tmp_path / "run-mini" / "MNIST.record.jsonl").open()]
    assert {line["scale"] for line in lines} == {"mini"} and not (tmp_path / "run").exists()
    for flags in (["--model", "mini"], ["--data-location", "mini"], ["--scale", "mini"]):
        assert scale_of(parse([*call, *flags])) == "mini"
    assert scale_of(parse(call)) == "paper"


# Evaluation alone


def evaluation(world: list[str], sets: str, *flags: str) -> None:
    main([*world, "--eval-only", "--eval-datasets", sets, *flags])


def told(capsys: pytest.CaptureFixture) -> list[float]:
    lines = capsys.readouterr().out.splitlines()
    return [float(line.split(": ")[1]) for line in lines if line.startswith("Top-1 accuracy")]


def test_a_folder_of_checkpoints_evaluates_to_the_same_matrix_under_the_runs_name(
    tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    evaluation(tiny_world, ",".join(TASKS), "--load", str(finished_run), "--save", str(tmp_path / "test"))
    assert accuracies(tmp_path / "test") == accuracies(finished_run)
    assert {line["method"] for line in records(tmp_path / "test")} == {line["method"] for line in records(finished_run)}


def test_a_folder_that_no_run_left_gives_its_own_name(
    tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "DTD.pth").write_bytes((finished_run / "DTD.pth").read_bytes())
    evaluation(tiny_world, "DTD", "--load", str(folder))
    found = records(folder / "evaluation")
    assert {line["method"] for line in found if line["after_task"]} == {"released"}
    assert accuracies(folder / "evaluation")[1, "DTD"] == accuracies(finished_run)[3, "DTD"]


def test_a_folder_without_some_checkpoints(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    arguments = [*tiny_world, "--eval-only", "--eval-datasets", "CIFAR10,DTD", "--load", str(finished_run)]
    message = fails(capsys, [*arguments, "--save", str(tmp_path / "x")])
    assert "checkpoints are missing" in message and "CIFAR10.pth" in message and "DTD.pth" not in message
    assert not (tmp_path / "x").exists()


def test_a_template_too_long_for_clip(capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path) -> None:
    call = [*SEQUENCE, *LENGTH, *tiny_world, "--save", str(tmp_path / "run"), "--template", "very " * 80 + "{}"]
    assert "too long for CLIP" in fails(capsys, call)
    assert not (tmp_path / "run").exists()


def test_one_checkpoint_file_prints_its_accuracies(
    tiny_world: list[str], finished_run: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluation(tiny_world, "MNIST,DTD", "--load", str(finished_run / "EuroSAT.pth"))
    found = accuracies(finished_run)
    assert told(capsys) == [round(found[2, name], 2) for name in ("MNIST", "DTD")]


def test_zero_shot_is_printed_and_saved(
    tiny_world: list[str], finished_run: Path, world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluation(tiny_world, "MNIST,DTD", "--save", str(tmp_path))
    found = accuracies(finished_run)
    assert told(capsys) == [round(found[0, name], 2) for name in ("MNIST", "DTD")]
    start = torch.jit.load(world_folder / "ViT-tiny.pt").state_dict()
    saved = tensors(tmp_path / "zeroshot.pth")
    assert all(torch.equal(value, start[name].float()) for name, value in saved.items())
    assert "exists already" in fails(capsys, [*tiny_world, "--eval-only", "--save", str(tmp_path)])
    main([*tiny_world, "--eval-only", "--save", str(tmp_path), "--overwrite"])


@pytest.mark.parametrize("spelling", ["--wise_ft", "--wise-ft"])
def test_wise_ft_mixes_a_checkpoint_with_clip(
    tiny_world: list[str], finished_run: Path, world_folder: Path, tmp_path: Path, spelling: str
) -> None:
    load = ["--load", str(finished_run / "MNIST.pth"), spelling, "--alpha", "0.25", "--save", str(tmp_path)]
    evaluation(tiny_world, "MNIST", *load)
    start, end = torch.jit.load(world_folder / "ViT-tiny.pt").state_dict(), tensors(finished_run / "MNIST.pth")
    for name, value in tensors(tmp_path / "wise_ft.pth").items():
        torch.testing.assert_close(value, 0.25 * end[name] + 0.75 * start[name].float(), rtol=0, atol=1e-6)


def test_federate_averages_checkpoints(tiny_world: list[str], finished_run: Path, tmp_path: Path) -> None:
    files = [finished_run / f"{name}.pth" for name in TASKS]
    evaluation(tiny_world, "MNIST", "--load_federate", ",".join(map(str, files)), "--save", str(tmp_path))
    parts = [tensors(path) for path in files]
    for name, value in tensors(tmp_path / "average.pth").items():
        torch.testing.assert_close(value, sum(part[name] for part in parts) / 3, rtol=0, atol=1e-6)


# Spellings of older scripts, flags without effect


def test_old_spellings_mean_the_new_ones() -> None:
    reference = ["--ref-dataset", "ImageNet", "--avg_freq", "2"]
    old = ["--method", "lwa", "--swa_wise", "--swa_wise_alpha", "0.99", *reference]
    new = ["--method", "ZSCL", "--we_wise", "--we_wise_alpha", "0.99", *reference]
    assert parse([*LAST, *old]) == parse([*LAST, *new])
    assert parse([*LAST, "--swa", *reference]) == parse([*LAST, "--we", *reference])
    assert parse([*LAST, "--method", "lwf"]) == parse([*LAST, "--method", "finetune"])


def test_flags_that_nothing_reads_are_noted_and_decide_nothing(
    tiny_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--fair", "--trio", "--fisher", "a,b", "--exp_name", "x", "--n_class", "10", "--results-db", "r.jsonl"]
    call = ["--train-dataset", "MNIST", *LENGTH, *tiny_world, "--save", str(tmp_path)]
    main([*call, *flags])
    shown = capsys.readouterr().out
    told = ", ".join(f"{flag} (read nowhere on MTIL upstream)" for flag in flags if flag.startswith("--"))
    assert f"note: without effect: {told}\n" in shown
    main(call)  # the same run
    assert "note:" not in capsys.readouterr().out


NO_KD = "(nothing is distilled; see --method and --image_loss)"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ref-dataset", "DTD", "--weight_adjust"], f"without effect: --ref_dataset, --weight_adjust {NO_KD}"),
        (["--method", "ZSCL", "--ref-dataset", "DTD", "--text-datasets", "seen"],
         f"without effect: --ref_dataset, --text_datasets {NO_KD}"),
        (["--ref-wise"], f"without effect: --ref_wise {NO_KD}"),
        (["--icarl_lr", "1e-4"], "without effect: --icarl_lr (of --method icarl)"),
        (["--warmup_length", "5"],
         "--warmup_length 5 is longer than a task of --iterations 4: the learning rate never reaches --lr"),
    ],
)  # fmt: skip
def test_what_is_set_and_has_no_effect_is_noted(capsys: pytest.CaptureFixture, flags: list[str], told: str) -> None:
    parse([*LAST, "--warmup_length", "4", *flags])
    assert capsys.readouterr().out == f"note: {told}\n"


def test_what_has_an_effect_is_not_noted(capsys: pytest.CaptureFixture) -> None:
    distilling = ["--method", "ZSCL", "--image_loss", "--ref-dataset", "DTD", "--weight_adjust"]
    parse([*LAST, "--warmup_length", "4", *distilling])
    parse(["--train-dataset", "DTD", "--save", "x", "--scale", "mini"])
    assert capsys.readouterr().out == ""


def test_epochs_stand_in_place_of_the_miniature_s_iterations() -> None:
    options = parse(["--train-dataset", "DTD", "--save", "x", "--epochs", "2", "--scale", "mini"])
    assert (options.epochs, options.iterations) == (2, None)


def test_samples_further_apart_than_the_epochs_are_long(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path
) -> None:
    """DTD has 47 training images: six batches an epoch; MNIST's 20 are three."""
    base = ["--train-dataset", "DTD,MNIST", "--batch-size", "8", "--epochs", "2", "--we", *tiny_world]
    said = fails(capsys, [*base, "--avg_freq", "7", "--save", str(tmp_path / "run")])
    assert "--avg_freq 7: give a number from 1 to 6, the steps of the shortest task, or nothing is averaged." in said
    assert not (tmp_path / "run").exists()
    main([*base, "--avg_freq", "6", "--save", str(tmp_path / "run"), "--warmup_length", "2"])


# Bad input: one clear message, exit code 2, nothing half-written


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "ZSCL", *KD], "--ref-dataset is missing"),
        (["--method", "ZSCL", *KD, "--ref-dataset", "CIFAR"], "Did you mean CIFAR10"),
        (["--method", "ZSCL", *KD, "--ref-dataset", "MNIST", "--ref-sentences", "captions"], "'captions'"),
        (["--image_loss"], "losses that need --method ZSCL or icarl"),
        (["--we", "--avg_freq", "0"], "--avg_freq 0: give 1 or more"),
        (["--we", "--avg_freq", "5"], "--avg_freq 5: give a number from 1 to --iterations (4)"),
        (["--we_wise", "--avg_freq", "-1"], "--avg_freq -1"),
        (["--we", "--moving_avg", "--avg_freq", "2"], "exclude each other"),
        (["--we", "--wise_merge", "--avg_freq", "2"], "would lose the merge"),
        (["--method", "icarl"], "give --dataset_order instead of --train-dataset"),
        (["--dataset_order", "MNIST,DTD"], "--dataset_order belongs to --method icarl"),
        (["--epochs", "1"], "--epochs and --iterations exclude each other"),
        (["--eval-interval", "2", "--eval-every-epoch"], "exclude each other"),
        (["--lr", "1e-3,1e-3"], "--lr has 2 values for 3 data sets"),
        (["--lr", "-1"], "--lr -1.0: give 0 or more"),
        (["--template", "a photo"], "--template a photo: give {} once"),
        (["--ref-model", "a.pth", "--ref-wise"], "--ref_model and --ref_wise exclude each other"),
        (["--wise_ft"], "--wise_ft and --load_federate belong to --eval-only"),
        (["--loss-interval", "0"], "--loss-interval 0: give 1 or more"),
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--iterations", "0"], "--iterations 0: give 1 or more"),
        (["--first-tasks", "0"], "--first-tasks 0: give 1 or more"),
        (["--ls", "1.5"], "--ls 1.5: give 0 or more, at most 1"),
        (["--T", "0"], "--T 0.0: give more than 0"),
        (["--train-dataset", "MNIST,MNIST"], "--train-dataset MNIST MNIST: a value occurs twice"),
        (["--train-dataset", "TinyImagenet"], "TinyImagenet has no class names"),
        (["--train-dataset", "Mnist"], "Did you mean MNIST"),
        (["--load", "no.pth"], "no.pth does not exist"),
        (["--we_wise_alpha", "1.01"], "--we_wise_alpha 1.01: give 0 or more, at most 1"),
        ([*SM, "--num", "2.5"], "--num 2.5: ImageNetSM takes a whole number of classes, from 1 to 1,000"),
        ([*SUB, "--num", "1e7"], "--num 10000000: ImageNetSUB has 1,281,167 images"),
        ([*SUB, "--num", "1e-9"], "--num 1e-09: this is not one image"),
        (["--text-datasets", "seen,DTD"], "--text-datasets: unknown data set 'seen'"),
    ],
)
def test_contradicting_and_missing_flags(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path, flags: list[str], said: str
) -> None:
    base = ["--train-dataset", "MNIST,EuroSAT,DTD", *LENGTH, *tiny_world, "--save", str(tmp_path / "run")]
    assert said in fails(capsys, [*base, *flags])
    assert not (tmp_path / "run").exists()


def test_icarl_wants_its_order_and_no_reference_of_others(capsys: pytest.CaptureFixture) -> None:
    icarl = ["--method", "icarl", *LENGTH, *KD, "--save", "x"]
    assert "give --dataset_order" in fails(capsys, icarl)
    order = [*icarl, "--dataset_order", "MNIST,DTD"]
    assert "--load does not go with it" in fails(capsys, [*order, "--load", "x.pth"])
    assert "distils on exemplars" in fails(capsys, [*order, "--ref-dataset", "ImageNet"])
    assert "2 tasks share the exemplars" in fails(capsys, [*order, "--memory_size", "1"])
    assert "--dataset_order: unknown data set 'Dtd'" in fails(capsys, [*icarl, "--dataset_order", "MNIST,Dtd"])


def test_more_reference_images_than_the_data_set_has(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The paper's ImageNet has them, the miniature's has not: refused before the folder is opened."""
    mini = ["--scale", "mini", "--train-dataset", "MNIST", "--save", str(tmp_path / "run")]
    for flags, said in (([*SM, "--num", "300"], "from 1 to 256"), ([*SUB, "--num", "3000"], "has 2,048 images")):
        assert said in fails(capsys, [*mini, *flags])
    prompts = ["--method", "ZSCL", *KD, "--ref-dataset", "MNIST", "--ref-sentences", "ImageNetSM", "--num", "300"]
    assert "from 1 to 256" in fails(capsys, [*mini, *prompts])
    assert not list(tmp_path.iterdir())


def test_everything_missing_is_listed_at_once(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    where = ["--data-location", str(tmp_path / "nowhere"), "--model", "no-such-model", "--load", "no-such.pth"]
    reference = ["--ref-dataset", "ImageNet", "--ref-sentences", "conceptual_captions"]
    message = fails(capsys, [*SEQUENCE, *LENGTH, *ZSCL, *reference, *where, "--save", str(tmp_path / "run")])
    for missing in (*TASKS, "ILSVRC2012", "Validation_GCC", "no-such-model", "no-such.pth"):
        assert missing in message
    assert not (tmp_path / "run").exists()


def loading(path: Path, world: list[str], folder: Path, flag: str = "--load") -> list[str]:
    reference = ["--method", "ZSCL", *KD, "--ref-dataset", "MNIST"]
    return ["--train-dataset", "MNIST", *LENGTH, *reference, *world, flag, str(path), "--save", str(folder / "run")]


@pytest.mark.parametrize("flag", ["--load", "--ref-model"])
def test_checkpoints_that_do_not_fit(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path, flag: str
) -> None:
    whole = (finished_run / "DTD.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    weights = tensors(finished_run / "DTD.pth")
    torch.save({"state_dict": weights, "protocol": "cil-cifar100-10x10"}, tmp_path / "cil.pth")
    other = {key: value for key, value in weights.items() if key != "visual.proj"}
    torch.save({"state_dict": other | {"text_projection": torch.zeros(64, 16)}}, tmp_path / "other.pth")
    said = {
        "cut": ["cut.pth is not a readable checkpoint"],
        "cil": ["class-incremental run 'cil-cifar100-10x10', not of MTIL"],
        "other": ["1 keys missing: visual.proj", "1 keys of another shape: text_projection"],
    }
    for name, words in said.items():
        message = fails(capsys, loading(tmp_path / f"{name}.pth", tiny_world, tmp_path, flag))
        assert all(word in message for word in words), message
        assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_at_once(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    weights = tensors(finished_run / "DTD.pth")
    weights["visual.proj"].fill_(torch.finfo(torch.float32).max)
    torch.save({"state_dict": weights}, tmp_path / "large.pth")
    message = fails(capsys, loading(tmp_path / "large.pth", tiny_world, tmp_path))
    assert "MNIST: the loss is not finite at step 0" in message and "lower learning rate" in message
    assert not (tmp_path / "run" / "MNIST.pth").exists()


def test_the_checkpoints_before_a_loss_that_is_not_finite_stay(
    capsys: pytest.CaptureFixture, tiny_world: list[str], tmp_path: Path
) -> None:
    flags = [*SEQUENCE, *LENGTH, "--lr", "1e-3,1e30,1e-3", *tiny_world, "--save", str(tmp_path)]
    message = fails(capsys, flags)
    assert "EuroSAT: the loss is not finite at step 1" in message
    assert all(value.isfinite().all() for value in tensors(tmp_path / "MNIST.pth").values())
    assert not (tmp_path / "EuroSAT.pth").exists()
    assert "EuroSAT: the loss is not finite at step 1" in fails(capsys, flags)  # and it does not get past it


def test_folder_of_another_configuration(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path
) -> None:
    before = (finished_run / "record.jsonl").read_bytes()
    call = [*SEQUENCE, *LENGTH, *ZSCL, *ON_CAPTIONS, *tiny_world, "--save", str(finished_run)]
    message = fails(capsys, [*call, "--ls", "0.1", "--T", "3"])
    assert "ls: 0.2 there, 0.1 now" in message and "T: 2.0 there, 3.0 now" in message and "--overwrite" in message
    assert (finished_run / "record.jsonl").read_bytes() == before


def test_checkpoints_that_no_run_here_made_are_not_taken_for_results(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "MNIST.pth").write_bytes((finished_run / "MNIST.pth").read_bytes())
    message = fails(capsys, [*SEQUENCE, *LENGTH, *tiny_world, "--save", str(tmp_path)])
    assert "already holds MNIST.pth" in message
    assert same_weights(tmp_path / "MNIST.pth", finished_run / "MNIST.pth")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval-datasets", "MNIST", "--load", "FOLDER", "--wise_ft"], "--wise_ft evaluates one checkpoint"),
        (
            ["--eval-datasets", "MNIST", "--load", "FOLDER", "--load_federate", "a.pth"],
            "--load and --load_federate exclude each other",
        ),
        ([], "--eval-only needs --eval-datasets"),
        (["--save", "x", "--load", "FOLDER"], "--eval-only needs --eval-datasets"),
        (
            ["--eval-datasets", "MNIST", "--load_federate", "a.pth,b.pth"],
            "a.pth does not exist.\nb.pth does not exist.",
        ),
    ],
)
def test_contradicting_flags_of_an_evaluation(
    capsys: pytest.CaptureFixture, tiny_world: list[str], finished_run: Path, flags: list[str], said: str
) -> None:
    flags = [str(finished_run) if flag == "FOLDER" else flag for flag in flags]
    assert said in fails(capsys, [*tiny_world, "--eval-only", *flags])


# CoOp's splits


def test_coops_splits_are_read_everywhere(tiny_world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fake_data.write(tmp_path / "data", ["DTD"])
    fake_data.coop_list(tmp_path / "data", "DTD")
    shutil.rmtree(tmp_path / "data/dtd/dtd/labels")  # MTIL's lists: who still reads them fails
    flags = [tiny_world[0], str(tmp_path / "data"), *tiny_world[2:]]
    call = ["--train-dataset", "DTD", "--eval-datasets", "DTD", *LENGTH, *LWF, *flags, "--save", str(tmp_path / "run")]
    main([*call, "--splits", "coop"])
    assert "note: Aircraft, CIFAR100, MNIST: CoOp has no lists, MTIL's splits are used" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run/DTD.config.yaml").read_text())
    data = config["settings"]["data"]["DTD"]
    assert config["labels"]["protocol"] == "mtil-custom-DTD-coop"
    assert (data["train"], data["test"]) == (3, 3) and "split_zhou_DescribableTextures.json" in data["notes"][0]
    lines = [json.loads(line) for line in (tmp_path / "run/DTD.record.jsonl").read_text().splitlines()]
    top1 = [line["value"] for line in lines if line["metric"] == "accuracy"]
    assert len(top1) == 2 and all(value in [pytest.approx(100 * right / 3) for right in range(4)] for value in top1)
    fake_data.write(tmp_path / "data", ["DTD"])
    assert "splits: 'coop' there, 'mtil' now" in fails(capsys, call)
    call = ["--eval-only", "--eval-datasets", "DTD", "--load", str(tmp_path / "run/DTD.pth"), *flags]
    assert "DTD.pth was trained with --splits coop" in fails(capsys, call)


def test_checkpoints_of_other_splits(tmp_path: Path) -> None:
    options = {splits: parse(["--eval-only", "--eval-datasets", "DTD", "--splits", splits]) for splits in ("mtil", "coop")}
    config, checkpoint = tmp_path / "DTD.config.yaml", str(tmp_path / "DTD.pth")
    for recorded, splits, other in (("", "mtil", "coop"), ("splits: coop", "coop", "mtil")):  # "": earlier versions
        config.write_text(f"settings:\n  train_dataset: [DTD]\n  {recorded}\n")
        for path in (checkpoint, str(tmp_path)):
            require_trained_so(options[splits], None, path)
            with pytest.raises(UserError, match=f"{path} was trained with --splits {splits}, not {other}. .*, or other"):
                require_trained_so(options[other], path)
    config.write_text("settings: {}\n")  # of another program
    require_trained_so(options["mtil"], checkpoint)
