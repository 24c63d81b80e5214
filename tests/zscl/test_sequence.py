"""From task to task on a small world: one-task calls, sentences, kept features, what other flags change."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from common.kept import Kept
from results.collect import read_runs
from tests.results.lines import shown
from tests.zscl.conftest import KD, LENGTH, LWF, ON_CAPTIONS, SEQUENCE, TASKS, ZSCL, flags_of, same_weights, tensors
from zscl.main import main
from zscl.teacher import FeatureCache

TRAINING, TWO = ["--train-dataset", ",".join(TASKS)], ["--train-dataset", ",".join(TASKS[:2])]


def learn(world: list[str], folder: Path, *flags: str) -> Path:
    main([*LENGTH, *flags, *world, "--save", str(folder)])
    return folder


# One-task calls: the original's way, a process a task, gives the same bits


def one_by_one(world: list[str], folder: Path, *flags: str, per_task=lambda before, name: []) -> Path:
    """The tasks by separate calls, each loading the checkpoint before it."""
    before = None
    for name in TASKS:
        load = ["--load", str(folder / f"{before}.pth")] if before else []
        learn(world, folder, "--train-dataset", name, *load, *flags, *per_task(before, name))
        before = name
    return folder


@pytest.fixture(scope="module")
def one_task_calls(tiny_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run's tasks by separate calls, each evaluated on all data sets."""
    flags = [*ZSCL, *ON_CAPTIONS, "--eval-datasets", ",".join(TASKS)]
    return one_by_one(tiny_world, tmp_path_factory.mktemp("calls"), *flags)


def test_zscl_task_by_task(finished_run: Path, one_task_calls: Path) -> None:
    assert all(same_weights(one_task_calls / f"{name}.pth", finished_run / f"{name}.pth") for name in TASKS)


def test_one_task_calls_are_shown_as_the_sequence(finished_run: Path, one_task_calls: Path) -> None:
    (matrix, numbers), (whole, expected) = shown(one_task_calls), shown(finished_run)
    assert matrix.rows == matrix.columns == TASKS and matrix.protocol == "mtil-custom-MNIST+EuroSAT+DTD"
    assert (matrix.method, matrix.values, matrix.zero_shot) == (whole.method, whole.values, whole.zero_shot)
    assert numbers == pytest.approx(expected, abs=1e-9) and len(expected) == 9 + 2 + 9 + 2 + 4 + 1
    (entry,) = read_runs([one_task_calls])[1]
    files = [one_task_calls / f"{name}.record.jsonl" for name in TASKS]
    lines = [json.loads(line) for path in files for line in path.open()]
    assert entry.seconds == sum(line["value"] for line in lines if line["metric"] == "train_seconds") > 0
    assert [line["after_task"] for line in lines if line["metric"] == "train_seconds"] == [1, 2, 3]
    assert not {"transfer", "avg", "last"} & {line["metric"] for line in lines if line["after_task"] > 1}


def test_a_call_that_is_given_again_keeps_its_place(
    tiny_world: list[str], one_task_calls: Path, tmp_path: Path
) -> None:
    """Even where nothing tells any more what led to the checkpoint that it started from."""
    flags = ["--train-dataset", "EuroSAT", *ZSCL, *ON_CAPTIONS, "--eval-datasets", "DTD"]
    (tmp_path / "start").mkdir()
    for file in ("MNIST.pth", "MNIST.config.yaml"):
        shutil.copy(one_task_calls / file, tmp_path / "start")
    flags += ["--load", str(tmp_path / "start" / "MNIST.pth")]
    learn(tiny_world, tmp_path / "run", *flags)
    before = (tmp_path / "run" / "EuroSAT.record.jsonl").read_text()
    (tmp_path / "start" / "MNIST.config.yaml").unlink()
    learn(tiny_world, tmp_path / "run", *flags)
    found = [json.loads(line) for line in (tmp_path / "run" / "EuroSAT.record.jsonl").open()]
    assert {line["protocol"] for line in found} == {"mtil-custom-MNIST+EuroSAT"}
    assert {line["after_task"] for line in found} == {0, 2} and len(found) == len(before.splitlines())
    learn(tiny_world, tmp_path / "run", *flags, "--overwrite")  # a run of its own
    found = [json.loads(line) for line in (tmp_path / "run" / "EuroSAT.record.jsonl").open()]
    assert {line["protocol"] for line in found} == {"mtil-custom-EuroSAT"}
    assert {line["after_task"] for line in found} == {0, 1}


def test_a_sequence_goes_on_in_one_task_calls(tiny_world: list[str], finished_run: Path, tmp_path: Path) -> None:
    """A task after EuroSAT, the second of the sequence: the third of its own."""
    load = ["--load", str(finished_run / "EuroSAT.pth"), "--eval-datasets", "MNIST"]
    learn(tiny_world, tmp_path / "run", "--train-dataset", "CIFAR10", *load)
    learn(tiny_world, tmp_path / "unknown", "--train-dataset", "MNIST", "--load", str(stray(finished_run, tmp_path)))
    found = {}
    for path in tmp_path.glob("*/*.record.jsonl"):
        lines = [json.loads(line) for line in path.open()]
        found[path.parent.name] = {(line["protocol"], line["after_task"]) for line in lines if line["after_task"]}
    assert found == {
        "run": {("mtil-custom-MNIST+EuroSAT+CIFAR10", 3)}, "unknown": {("mtil-custom-MNIST", 1)},
    }  # fmt: skip


def test_the_rest_of_a_sequence_in_one_process(
    tiny_world: list[str], finished_run: Path, one_task_calls: Path, tmp_path: Path
) -> None:
    for path in one_task_calls.glob("MNIST.*"):
        shutil.copy(path, tmp_path)
    flags = [*ZSCL, *ON_CAPTIONS, "--eval-datasets", ",".join(TASKS), "--load", str(tmp_path / "MNIST.pth")]
    learn(tiny_world, tmp_path, "--train-dataset", "EuroSAT,DTD", *flags)
    (matrix, numbers), (whole, expected) = shown(tmp_path), shown(finished_run)
    assert (matrix.protocol, matrix.rows, matrix.values) == (whole.protocol, whole.rows, whole.values)
    assert numbers == pytest.approx(expected, abs=1e-9)


def stray(run: Path, folder: Path) -> Path:
    """A checkpoint with no configuration beside it."""
    path = folder / "EuroSAT.pth"
    path.write_bytes((run / "EuroSAT.pth").read_bytes())
    return path


def test_finetuning_task_by_task(tiny_world: list[str], tmp_path: Path) -> None:
    rates = {"MNIST": "1e-3", "EuroSAT": "5e-4", "DTD": "2e-3"}
    whole = learn(tiny_world, tmp_path / "a", *TRAINING, "--wise_merge", "--lr", ",".join(rates.values()))
    done = one_by_one(tiny_world, tmp_path / "b", "--wise_merge", per_task=lambda before, name: ["--lr", rates[name]])
    assert all(same_weights(done / f"{name}.pth", whole / f"{name}.pth") for name in TASKS)


def test_lwf_task_by_task(tiny_world: list[str], tmp_path: Path) -> None:
    """Upstream's lwf.sh: the reference is the task's own set, the teacher the checkpoint before it."""

    def previous(before: str | None, name: str) -> list[str]:
        teacher = ["--ref-model", str(tmp_path / "b" / f"{before}.pth")] if before else []
        return ["--ref-dataset", name, *teacher]

    whole = learn(tiny_world, tmp_path / "a", *TRAINING, *LWF)
    done = one_by_one(tiny_world, tmp_path / "b", "--method", "ZSCL", *KD, per_task=previous)
    assert all(same_weights(done / f"{name}.pth", whole / f"{name}.pth") for name in TASKS)
    labels = {json.loads(line)["method"] for path in done.glob("*.record.jsonl") for line in path.open()}
    assert labels == {"LwF"}


def test_sentences_of_all_tasks_seen_and_of_the_current_one(tiny_world: list[str], tmp_path: Path) -> None:
    common = ["--method", "ZSCL", *KD, "--ref-dataset", "CIFAR10"]
    seen = learn(tiny_world, tmp_path / "seen", *TRAINING, *common, "--text-datasets", "seen")
    one_by_one(
        tiny_world,
        tmp_path / "listed",
        *common,
        per_task=lambda before, name: ["--text-datasets", ",".join(TASKS[: TASKS.index(name) + 1])],
    )
    assert all(same_weights(tmp_path / "listed" / f"{name}.pth", seen / f"{name}.pth") for name in TASKS)
    (calls,), (whole,) = read_runs([tmp_path / "listed"])[1], read_runs([seen])[1]
    label, *cut = whole.method.split(", CIFAR10 images ")  # whose data sets are cut
    assert calls.method == whole.method and label == "ZSCL- (CIFAR10 images, all prompts seen)" and cut
    current = learn(tiny_world, tmp_path / "current", *TRAINING, *common, "--ref-sentences", "current")
    one_by_one(tiny_world, tmp_path / "own", *common, per_task=lambda before, name: ["--ref-sentences", name])
    assert all(same_weights(tmp_path / "own" / f"{name}.pth", current / f"{name}.pth") for name in TASKS)
    assert not same_weights(seen / "EuroSAT.pth", current / "EuroSAT.pth")


def test_first_tasks_then_the_rest_equals_an_unbroken_run(
    tiny_world: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*SEQUENCE, *ZSCL, *ON_CAPTIONS]
    learn(tiny_world, tmp_path, *flags, "--first-tasks", "1")
    assert not (tmp_path / "EuroSAT.pth").exists()
    assert "Transfer" not in capsys.readouterr().out  # one row is no sequence
    learn(tiny_world, tmp_path, *flags)
    assert all(same_weights(tmp_path / f"{name}.pth", finished_run / f"{name}.pth") for name in TASKS)
    assert (tmp_path / "accuracy.csv").read_bytes() == (finished_run / "accuracy.csv").read_bytes()
    assert "Transfer" in capsys.readouterr().out


# The teacher's features kept for later runs


def test_a_second_run_reads_the_kept_features_and_ends_with_the_same_bits(
    world_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    world, flags = flags_of(world_folder, tmp_path / "cache"), [*TWO, *ZSCL, *ON_CAPTIONS]
    learn(world, tmp_path / "first", *flags)
    kept = {path.name.split("-")[0]: path for path in (tmp_path / "cache").iterdir()}
    assert set(kept) == {"images", "sentences"}
    known = torch.load(kept["images"], weights_only=True)
    assert len(set(known["indices"].tolist())) == len(known["indices"]) == 40  # 5 steps of 8, the same at each task
    dates = {path: path.stat().st_mtime_ns for path in kept.values()}
    learn(world, tmp_path / "second", *flags)
    assert kept["sentences"].stat().st_mtime_ns == dates[kept["sentences"]]
    forged = {"indices": known["indices"], "features": known["features"].roll(1, 0)}
    Kept(kept["images"], known["key"]).write(forged)
    learn(world, tmp_path / "third", *flags)  # what stands there is what it learns from
    none = learn(flags_of(world_folder, Path("none")), tmp_path / "none", *flags)
    for name in TASKS[:2]:
        assert same_weights(tmp_path / "first" / f"{name}.pth", finished_run / f"{name}.pth")
        assert same_weights(tmp_path / "second" / f"{name}.pth", finished_run / f"{name}.pth")
        assert not same_weights(tmp_path / "third" / f"{name}.pth", finished_run / f"{name}.pth")
        assert same_weights(none / f"{name}.pth", finished_run / f"{name}.pth")


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bare_tensor(path: Path, other: Path) -> None:
    torch.save(torch.ones(3), path)


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Path], None]:
    def write(path: Path, other: Path) -> None:
        content = torch.load(path, weights_only=True)
        torch.save(content | {"features": change(content["features"])}, path)

    return write


def foreign(path: Path, other: Path) -> None:
    """That of the same images and sentences by another teacher."""
    path.write_bytes(other.read_bytes())


DAMAGES = {
    "cut": cut,
    "bare tensor": bare_tensor,
    "permuted": changed(lambda features: features.roll(1, 0)),
    "fewer": changed(lambda features: features[:-1]),
    "nan": changed(lambda features: torch.full_like(features, torch.nan)),
    "foreign": foreign,
}


@pytest.fixture(scope="module")
def two_caches(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the features that two teachers gave for the same images and sentences; the first is CLIP."""
    folder = tmp_path_factory.mktemp("caches")
    flags = ["--train-dataset", "MNIST", *ZSCL, *ON_CAPTIONS]
    learn(flags_of(world_folder, folder / "a"), folder / "run a", *flags)
    other = ["--ref-model", str(folder / "run a" / "MNIST.pth")]
    learn(flags_of(world_folder, folder / "b"), folder / "run b", *flags, *other)
    return [folder / "a", folder / "b"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_kept_features_that_are_not_what_was_kept_are_computed_anew(
    world_folder: Path, finished_run: Path, two_caches: list[Path], tmp_path: Path, damage: str,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    shutil.copytree(two_caches[0], tmp_path / "cache")
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    for path in before:
        DAMAGES[damage](path, next(two_caches[1].glob(f"{path.name.split('-')[0]}-*")))
    learn(flags_of(world_folder, tmp_path / "cache"), tmp_path / "run", "--train-dataset", "MNIST", *ZSCL, *ON_CAPTIONS)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert sum(str(path) in note and "computed anew" in note for note in notes for path in before) == len(notes) == 2
    assert {path: len(path.read_bytes()) for path in before} == {path: len(old) for path, old in before.items()}
    assert same_weights(tmp_path / "run" / "MNIST.pth", finished_run / "MNIST.pth")


def other_pixels(folder: Path) -> None:
    """CIFAR10's files with inverted images under the same labels."""
    for path in folder.glob("data_batch_*"):
        batch = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(batch | {"data": 255 - batch["data"]}, protocol=2))


def other_files(folder: Path) -> None:
    """DTD's files with inverted images under the same names."""
    for path in folder.rglob("*.jpg"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(path, quality=90)


@pytest.mark.parametrize("name, folder, change", [("CIFAR10", "cifar-10-batches-py", other_pixels),
                                                  ("DTD", "dtd", other_files)])  # fmt: skip
def test_features_of_other_images_under_the_same_names_are_not_used(
    tmp_path: Path, world_folder: Path, name: str, folder: str, change: Callable[[Path], None]
) -> None:
    shutil.copytree(world_folder / "data", tmp_path / "data")
    shutil.copy(world_folder / "ViT-tiny.pt", tmp_path)
    flags = ["--train-dataset", "MNIST", *ZSCL, "--ref-dataset", name, "--ref-sentences", "conceptual_captions"]
    before = learn(flags_of(tmp_path, tmp_path / "cache"), tmp_path / "before", *flags)
    change(tmp_path / "data" / folder)
    after = learn(flags_of(tmp_path, tmp_path / "cache"), tmp_path / "after", *flags)
    anew = learn(flags_of(tmp_path, Path("none")), tmp_path / "anew", *flags)
    assert same_weights(after / "MNIST.pth", anew / "MNIST.pth")
    assert not same_weights(after / "MNIST.pth", before / "MNIST.pth")


def test_a_stopped_task_forgets_its_features_of_images_that_have_changed() -> None:
    saved = FeatureCache(key="one")
    saved.find([3, 1], lambda: torch.eye(2))
    same, other = FeatureCache(key="one"), FeatureCache(key="other")
    for cache in (same, other):
        cache.load_state_dict(saved.state_dict())
    assert torch.equal(same.find([1], lambda: torch.zeros(1, 2)), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(other.find([1], lambda: torch.zeros(1, 2)), torch.zeros(1, 2))


def test_without_a_home_directory_nothing_is_kept(
    world_folder: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """~ of a user who is not among the accounts, as in a container or a batch job."""
    world = flags_of(world_folder, Path("~no-such-user/zscl"))
    learn(world, tmp_path / "run", "--train-dataset", "MNIST", *ZSCL, *ON_CAPTIONS)
    assert "note: features are not kept for the next run (--cache-dir ~no-such-user/zscl: " in capsys.readouterr().out
    assert same_weights(tmp_path / "run" / "MNIST.pth", finished_run / "MNIST.pth")


def test_a_cache_that_cannot_be_written_costs_no_run(
    world_folder: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    world = flags_of(world_folder, tmp_path / "file" / "cache")
    learn(world, tmp_path / "run", "--train-dataset", "MNIST", *ZSCL, *ON_CAPTIONS)
    assert "were not kept for the next run" in capsys.readouterr().out
    assert same_weights(tmp_path / "run" / "MNIST.pth", finished_run / "MNIST.pth")


# Flags that no whole run sets change what is learnt


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


CHANGES = [
    "--method finetune", "--seed 7", "--train-mode text", "--train-mode image", "--image_loss --ref-wise",
    "--image_loss --ref-model previous", "--image_loss --ref-dataset DTD", "--image_loss --ref-sentences random",
    "--image_loss --ref-sentences ImageNetSM", "--image_loss --ref-sentences ImageNetSM --num 5",
    "--image_loss --text-datasets DTD,MNIST", "--moving_avg", "--moving_avg --mv_avg_model t",
    "--moving_avg --mv_avg_model zeroshot", "--wise_merge", "--wise_merge --wise_ft_model zeroshot",
    "--moving_avg --wise_merge --wise_ft_model zeroshot",
]  # fmt: skip


@pytest.mark.parametrize("flags", CHANGES)
def test_flags_change_the_checkpoint(
    tiny_world: list[str], finished_run: Path, tmp_path: Path, digests: dict[str, str], flags: str
) -> None:
    """Each of these calls, which start from the same checkpoint, ends with weights of its own."""
    base = ["--train-dataset", "EuroSAT", "--load", str(finished_run / "MNIST.pth"), "--avg_freq", "2"]
    base += ["--method", "ZSCL", "--ref-dataset", "CIFAR10"]
    learn(tiny_world, tmp_path, *base, *flags.split())
    digest = hashlib.md5()
    for weight in tensors(tmp_path / "EuroSAT.pth").values():
        digest.update(weight.numpy().tobytes())
    assert digest.hexdigest() not in digests, digests[digest.hexdigest()]
    digests[digest.hexdigest()] = flags


def test_distillation_without_a_loss_is_plain_cross_entropy(tiny_world: list[str], tmp_path: Path) -> None:
    """As upstream, where KD is then computed and thrown away; nothing of the reference is read here."""
    plain = learn(tiny_world, tmp_path / "plain", "--train-dataset", "MNIST")
    idle = ["--method", "ZSCL", "--ref-dataset", "ImageNet"]  # which this world does not have
    assert same_weights(
        learn(tiny_world, tmp_path / "idle", "--train-dataset", "MNIST", *idle) / "MNIST.pth", plain / "MNIST.pth"
    )


def test_evaluation_during_training_is_told_and_changes_nothing(
    tiny_world: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--train-dataset", "MNIST", *ZSCL, *ON_CAPTIONS, "--eval-datasets", "MNIST,DTD"]
    learn(tiny_world, tmp_path / "interval", *flags, "--eval-interval", "2")
    shown = capsys.readouterr().out
    assert [f"step {step}, DTD: " in shown for step in range(5)] == [True, False, True, False, True]
    learn(tiny_world, tmp_path / "epoch", *flags, "--eval-every-epoch")  # an epoch is three batches
    shown = capsys.readouterr().out
    assert [f"step {step}, DTD: " in shown for step in range(5)] == [True, False, False, True, False]
    for folder in ("interval", "epoch"):
        assert same_weights(tmp_path / folder / "MNIST.pth", finished_run / "MNIST.pth")
