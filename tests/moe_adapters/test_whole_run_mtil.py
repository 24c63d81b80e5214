"""A whole sequence of MoE-Adapters on MTIL, from its command line, against the same run in plain steps.

Three tasks: DDAS's autoencoders (one of a reference set, one a task), adapters task after task, all checkpoints on all
test sets. Recorded from the run are its batches, its random draws and its initial weights; the rest is computed here,
in float64. What the batches hold is checked against the images on the disk.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common import clip
from moe_adapters.main import main
from tests.moe_adapters.mtil_world import (
    Route, Table, TestSet, among_all, cells, check_autoencoder, ddas, errors_of, evaluated, places_of, prompts, records, test_sets,
)  # fmt: skip
from tests.moe_adapters.pictures import normalise, save_clip, write
from tests.moe_adapters.plain import (
    EXACT, ORIGINAL_CLIP, MoE, Stage, check_checkpoint, check_initial, cosine, dropout_watched, learns, stages,
)  # fmt: skip
from tests.whole_run import float64, watched

TASKS = ["OxfordPet", "EuroSAT", "MNIST"]
DOMAINS = ["TinyImagenet", *TASKS]  # autoencoder 0 learns the reference set, j + 1 task j
BATCH, TEST_BATCH = 14, 9
EXPERTS, TOPK, ROUTERS = 5, 3, 5
THRESHOLD = 0.0205
RATES, ITERATIONS = [0.02, 0.03, 0.01], [7, 5, 6]
METHOD = f"""
    --no-verify --device cpu --workers 0 --seed 5 --batch-size-eval {TEST_BATCH}
    --ffn_adapt --apply_moe --experts_num {EXPERTS} --topk {TOPK} --ffn_num 16 --task_num {ROUTERS}
""".split()
SEQUENCE = f"""
    --train-dataset {",".join(TASKS)} --batch-size {BATCH} --train_chooser --chooser-iterations 6,32
    --lr 0.02,0.03,0.01 --iterations 7,5,6 --warmup_length 3 --ls 0.15 --wd 0.05 --beta2 0.95
    --is_train --frozen --frozen-path picked
    --eval-datasets {",".join(TASKS)} --autorouter --threshold {THRESHOLD}
""".split()
SIZES = {"TinyImagenet": 400, "OxfordPet": 37, "EuroSAT": 104, "MNIST": 30}  # training images
TRAINING_PROMPTS = {
    "OxfordPet": "a photo of a {}, a type of pet.",
    "EuroSAT": "a centered satellite photo of {}.",
    "MNIST": 'a photo of the number: "{}".',
}


def save_alexnet(path: Path) -> None:
    """torchvision's AlexNet in float64, random weights that keep the size of what passes; no classifier."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.alexnet().state_dict().items()}
    weights = {key: torch.zeros((), dtype=torch.double).expand(shape) for key, shape in shapes.items()}
    acting = {"features.0": 100, "features.3": 5}  # weights a channel; a map of one pixel meets one of nine
    for key, shape in shapes.items():
        if key.startswith("features") and key.endswith("weight"):
            std = (2 / shape[1] / acting.get(key.removesuffix(".weight"), 1)) ** 0.5
            weights[key] = std * torch.randn(shape, dtype=torch.double)
    torch.save(weights, path)


# The run


@dataclass(eq=False, repr=False)
class Whole:
    """The run as it was seen, and what it left."""

    root: Path
    places: list[str]
    autoencoders: list[Stage]
    tasks: list[Stage]
    tests: list[Stage]

    @cache
    def left(self, name: str) -> dict[str, Tensor]:
        return torch.load(self.root / "run" / f"{name}.pth", weights_only=True)["state_dict"]

    @cached_property
    def extractor(self) -> nn.Module:
        """AlexNet up to its fifth convolution, before the ReLU."""
        with torch.device("meta"):
            alexnet = torchvision.models.alexnet()
        alexnet.load_state_dict(torch.load(self.root / "alexnet.pth", weights_only=True), assign=True)
        return alexnet.features[:11].requires_grad_(False)

    def network(self) -> MoE:
        """To be called, and used, in `float64`."""
        return MoE(clip.load(str(self.root / "clip.pt"))[0].requires_grad_(False), {}, EXPERTS, TOPK)

    @cached_property
    def test(self) -> dict[str, TestSet]:
        return test_sets(self.root, TASKS)

    @cached_property
    def features(self) -> dict[str, Tensor]:
        return {name: self.extractor(normalise(test.pixels)).flatten(1).sigmoid() for name, test in self.test.items()}

    def errors(self, after: int, name: str) -> Tensor:
        return errors_of(self.left(f"{TASKS[after - 1]}_autochooser"), self.features[name])

    def evaluated(self, route: Route, clip_prompts: bool = False, tests: dict[str, TestSet] | None = None) -> Table:
        with float64():
            files = {name: self.left(name) for name in TASKS}
            return evaluated(self.network(), files, tests or self.test, route, clip_prompts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("mtil")
    write(root, DOMAINS)
    save_clip(root / "clip.pt")
    save_alexnet(root / "alexnet.pth")
    places = ["--model", root / "clip.pt", "--data-location", root, "--chooser-features", root / "alexnet.pth"]
    places = [str(place) for place in places]
    with float64(), watched("randn_like") as seen, dropout_watched(seen):
        main([*METHOD, *SEQUENCE, *places, "--save", str(root / "run")])
    found = stages(seen)
    return Whole(root, places, found[:4], found[4:7], found[7:])


def test_training_batches(whole: Whole) -> None:
    """Step n takes batch n mod the batches an epoch; every epoch is shuffled anew, every use of an image cut anew."""
    for name, stage in zip(DOMAINS + TASKS, whole.autoencoders + whole.tasks, strict=True):
        places, count = places_of(stage, whole.root, name), SIZES[name]
        full, rest = divmod(count, BATCH)
        epoch = full + 1
        assert [len(batch) for batch in places] == (([BATCH] * full + [rest]) * len(places))[: len(places)]
        orders = [sum(places[first : first + epoch], []) for first in range(0, len(places), epoch)]
        assert all(len(set(order)) == len(order) and order != sorted(order) for order in orders)
        assert all(set(order) == set(range(count)) for order in orders[: len(places) // epoch])
        if len(orders) > 1:
            assert orders[0][: len(orders[1])] != orders[1][: len(orders[0])]
            first, again = (torch.cat([batch[0] for batch in stage.batches[start:][:epoch]]) for start in (0, epoch))
            same = [torch.equal(first[orders[0].index(place)], again[at]) for at, place in enumerate(orders[1])]
            assert sum(same) < len(same) / 2  # where no crop fits in ten tries, it is the whole image


def test_the_autoencoders(whole: Whole) -> None:
    """One domain after the other, each from the file of the one before; the rate falls to a tenth every ten epochs."""
    before = None
    for index, (name, stage) in enumerate(zip(DOMAINS, whole.autoencoders, strict=True)):
        epoch, steps = -(-SIZES[name] // BATCH), 7 if index == 0 else 33
        left = whole.left(f"{name}_autochooser")
        assert {key: value.shape for key, value in left.items() if "encoder.0.weight" in key} == {
            f"{number}.encoder.0.weight": (100, 256) for number in range(ROUTERS + 1)
        }
        rates = [0.01 * 0.1 ** (n // epoch // 10) for n in range(steps)]
        check_autoencoder(stage, whole.extractor, index, before, left, rates)
        before = left


def test_the_adapters(whole: Whole) -> None:
    """Task after task from the weights before it, without the experts that earlier tasks froze."""
    frozen: list[str] = []
    with float64():
        original = clip.load(str(whole.root / "clip.pt"))[0].state_dict()
        network = whole.network()
        theta = network.theta
        for task, (name, stage) in enumerate(zip(TASKS, whole.tasks, strict=True)):
            left = whole.left(name)
            names = [key for key in left if learns(key, task, set(frozen))]
            start = dict(zip(names, stage.steps[0].start[0], strict=True))
            if task == 0:
                routers = [key for key in left if "router_list." in key or "noise_list." in key]
                theta |= {key: torch.zeros_like(left[key]) for key in routers} | start
                check_initial(theta)
            for key in names:
                torch.testing.assert_close(start[key], theta[key], **EXACT)
            total, rate = ITERATIONS[task], lambda n, task=task: cosine(n, RATES[task], 3, ITERATIONS[task])
            assert len(stage.batches) == total + 1
            network.router = task
            network.learn(stage, names, prompts(name, [TRAINING_PROMPTS[name]]), rate, 0.15, beta2=0.95, decay=0.05)
            note = json.loads((whole.root / "run" / f"{name}.json").read_text())
            assert list(note["choose_map"].values()) == network.choose_map()
            assert note["frozen_before"] == frozen and note["frozen"] == network.picks()
            frozen += note["frozen"]
            check_checkpoint(left, theta, original, EXPERTS)
    assert (whole.root / "run" / "picked").read_text().split() == frozen
    assert len(set(frozen)) < len(frozen)  # some were picked again


def test_another_seed_draws_otherwise(whole: Whole, tmp_path: Path) -> None:
    """Batches, initial weights and gate noise, of the original's one-task calls."""
    task = "--train-dataset OxfordPet --iterations 1 --is_train --seed 4".split()
    task += ["--batch-size", str(BATCH), "--save", str(tmp_path), "--frozen-path", str(tmp_path / "picked")]
    with float64(), watched("randn_like") as seen:
        main([*METHOD, *whole.places, *task, "--task_id", "0"])
        method = [flag for flag in METHOD if flag not in ("--ffn_adapt", "--apply_moe")]
        main([*method, *whole.places, *task, "--task_id", "1", "--train_chooser"])
    for one, other in zip(stages(seen), (whole.tasks[0], whole.autoencoders[1]), strict=True):
        assert not torch.equal(one.batches[0][1], other.batches[0][1])
        assert not torch.equal(one.steps[0].start[0][0], other.steps[0].start[0][0])
        for first, second in zip(one.drawn(0, "randn_like"), other.drawn(0, "randn_like")):
            assert not torch.equal(first, second)


# Evaluation


def test_images_under_test(whole: Whole) -> None:
    """Every test set once, in its order, shorter side to 32 pixels and centre crop; no gate noise, no dropout."""
    for test, stage in zip(whole.test.values(), whole.tests, strict=True):
        assert torch.equal(torch.cat([pixels for pixels, _ in stage.batches]), test.pixels)
        assert torch.equal(torch.cat([labels for _, labels in stage.batches]), test.labels)
        assert not any(stage.draws)


def test_ddas_sends_each_batch_to_its_router(whole: Whole) -> None:
    expected = whole.evaluated(lambda after, name: ddas(whole.errors(after, name), TEST_BATCH, THRESHOLD))
    assert cells(whole.root / "run") == pytest.approx(expected, rel=1e-12)
    # among them: a batch that an autoencoder never trained wins, batches whose least error is too large
    means = [errors.mean(dim=0) for errors in whole.errors(1, "OxfordPet").split(TEST_BATCH)]
    assert means[0].argmin() > 1
    assert any(errors.argmin() == 1 and errors.min() > THRESHOLD for errors in means)


def test_transfer_avg_last(whole: Whole) -> None:
    found = records(whole.root / "run")
    a = [[found[after, name, "accuracy"] for name in TASKS] for after in (1, 2, 3)]
    assert found[3, "mean", "transfer"] == pytest.approx((a[0][1] + (a[0][2] + a[1][2]) / 2) / 2, rel=1e-12)
    assert found[3, "mean", "avg"] == pytest.approx(sum(map(sum, a)) / 9, rel=1e-12)
    assert found[3, "mean", "last"] == pytest.approx(sum(a[2]) / 3, rel=1e-12)


def test_trainable_parameters(whole: Whole) -> None:
    """All experts, all routers with their noise, and one autoencoder."""
    widths = [48] * 3 + [32] * 2  # of the blocks
    experts = sum(EXPERTS * (2 * width * 16 + 16 + width) for width in widths)
    routers = sum(2 * ROUTERS * width * EXPERTS for width in widths)
    autoencoder = 2 * 256 * 100 + 100 + 256
    assert records(whole.root / "run")[3, "all", "trainable_parameters"] == experts + routers + autoencoder


OTHER_WAYS: dict[str, tuple[str, Callable[[Whole, int, str], list[int]], bool]] = {
    "DDAS for each image by itself": (
        f"--autorouter --threshold {THRESHOLD} --ddas-per-image",
        lambda whole, after, name: ddas(whole.errors(after, name), 1, THRESHOLD),
        False,
    ),
    "a data set's own router once it is learnt": (
        "--oracle-task-id",
        lambda whole, after, name: [TASKS.index(name) if TASKS.index(name) < after else ORIGINAL_CLIP],
        False,
    ),
    "one router": ("--no-ddas --task_id 1", lambda whole, after, name: [1], False),
    "prompts of the original CLIP": ("--no-ddas --task_id 0 --non_text", lambda whole, after, name: [0], True),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_a_router(whole: Whole, way: str, tmp_path: Path) -> None:
    flags, route, clip_prompts = OTHER_WAYS[way]
    tested = ["--eval-only", "--load", str(whole.root / "run"), "--save", str(tmp_path)]
    tested += ["--train-dataset", ",".join(TASKS), "--eval-datasets", ",".join(reversed(TASKS))]
    with float64():
        main([*METHOD, *whole.places, *tested, *flags.split()])

    def routers(after: int, name: str) -> list[int]:
        found = route(whole, after, name)
        return found if len(found) > 1 else found * len(whole.test[name].labels)

    assert cells(tmp_path) == pytest.approx(whole.evaluated(routers, clip_prompts), rel=1e-12)


# X-TAIL: the same checkpoints among the classes of all sets


def test_among_the_classes_of_all_sets(whole: Whole, tmp_path: Path) -> None:
    """DDAS chooses each batch's router as on MTIL; the class vectors of all labels go through it."""
    tested = ["--eval-only", "--load", str(whole.root / "run"), "--save", str(tmp_path), "--label-space", "all"]
    tested += ["--eval-datasets", ",".join(TASKS), "--autorouter", "--threshold", str(THRESHOLD)]
    with float64():
        main([*METHOD, *whole.places, *tested])
    routers = lambda after, name: ddas(whole.errors(after, name), TEST_BATCH, THRESHOLD)  # noqa: E731
    expected = whole.evaluated(routers, tests=among_all(whole.test))
    assert cells(tmp_path) == pytest.approx(expected, rel=1e-12)
    domains = [value for (_, _, metric), value in expected.items() if metric == "domain_accuracy"]
    assert len(set(domains)) > 3 and 0 < sum(domains) < 100 * len(domains)


def test_with_their_own_templates_and_the_domain_told_it_is_mtil(whole: Whole, tmp_path: Path) -> None:
    tested = ["--eval-only", "--load", str(whole.root / "run"), "--save", str(tmp_path), "--label-space", "all"]
    tested += ["--eval-datasets", ",".join(TASKS), "--autorouter", "--threshold", str(THRESHOLD)]
    with float64():
        main([*METHOD, *whole.places, *tested, "--xtail-template", "own"])
    mtil, xtail = cells(whole.root / "run"), cells(tmp_path)
    told = {key[:2]: value for key, value in xtail.items() if key[2] == "accuracy_with_domain"}
    assert told == {key[:2]: value for key, value in mtil.items() if key[2] == "accuracy"}
    assert {key for key in xtail if "routed" in key[2]} == {key for key in mtil if "routed" in key[2]}
