"""A few-shot sequence of MoE-Adapters on MTIL, from its command line, against the same run in plain steps.

Two tasks with options that the full-shot run leaves at their defaults: a length in epochs, a template of one's own,
the balance loss, the picks of the first release; nothing is frozen. The miniature's features stand in for AlexNet's.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common import clip
from common.mini.weights import ddas_features
from moe_adapters.main import main
from tests.moe_adapters.mtil_world import (
    cells, check_autoencoder, ddas, decoded, errors_of, evaluated, places_of, prompts, records, test_sets,
)  # fmt: skip
from tests.moe_adapters.pictures import normalise, save_clip, write
from tests.moe_adapters.plain import (
    EXACT, MoE, Stage, check_checkpoint, check_initial, cosine, dropout_watched, learns, stages,
)  # fmt: skip
from tests.whole_run import float64, watched

TASKS, TESTS = ["DTD", "EuroSAT"], ["EuroSAT", "MNIST", "DTD"]
DOMAINS = ["TinyImagenet", *TASKS]
SIZES = {"TinyImagenet": 400, "DTD": 47, "EuroSAT": 104}  # training images
SHOTS = {"TinyImagenet": 400, "DTD": 47, "EuroSAT": 20}  # two a class, of DTD there is one
BATCH, TEST_BATCH = 6, 11
EXPERTS, TOPK, ROUTERS = 4, 2, 3
THRESHOLD = 0.0213
TEMPLATE = "a picture of {}, cut out."
COMMAND = f"""
    --no-verify --device cpu --workers 0 --seed 6 --chooser-features mini --few_shot 2
    --train-dataset {",".join(TASKS)} --batch-size {BATCH} --train_chooser --chooser-iterations 5,44
    --ffn_adapt --apply_moe --experts_num {EXPERTS} --topk {TOPK} --ffn_num 8 --task_num {ROUTERS}
    --lr 0.02 --epochs 2 --warmup_length 4 --ls 0.05 --is_train
    --balance-loss-weight 0.3 --freeze-bug-text-index
    --eval-datasets {",".join(TESTS)} --batch-size-eval {TEST_BATCH} --autorouter --threshold {THRESHOLD}
""".split()


def full_epoch(name: str) -> int:
    return -(-SIZES[name] // BATCH)


def shot_epoch(name: str) -> int:
    return -(-SHOTS[name] // BATCH)


@dataclass(eq=False, repr=False)
class Whole:
    """The run as it was seen, and what it left."""

    root: Path
    autoencoders: list[Stage]
    tasks: list[Stage]

    def left(self, name: str) -> dict[str, Tensor]:
        return torch.load(self.root / "run" / f"{name}.pth", weights_only=True)["state_dict"]

    @cached_property
    def extractor(self) -> nn.Module:
        with float64():
            return ddas_features()

    def network(self) -> MoE:
        """To be called, and used, in `float64`."""
        return MoE(clip.load(str(self.root / "clip.pt"))[0].requires_grad_(False), {}, EXPERTS, TOPK)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("few_shot")
    write(root, [*DOMAINS, "MNIST"])
    save_clip(root / "clip.pt")
    places = ["--model", str(root / "clip.pt"), "--data-location", str(root), "--save", str(root / "run")]
    with float64(), watched("randn_like") as seen, dropout_watched(seen):
        main([*COMMAND, "--template", TEMPLATE, *places])
    found = stages(seen)
    return Whole(root, found[:3], found[3:5])


def test_shots(whole: Whole) -> None:
    """As many images a class, each cut once at random for good; passes over them in new orders.

    A pass for an autoencoder begins anew with every epoch of the full set too, as its rate counts epochs.
    """
    for name, stage in zip(DOMAINS + TASKS, whole.autoencoders + whole.tasks, strict=True):
        places, sizes = places_of(stage, whole.root, name), [BATCH] * (SHOTS[name] // BATCH)
        sizes += [SHOTS[name] % BATCH] if SHOTS[name] % BATCH else []
        if stage in whole.autoencoders:
            sizes = (sizes * full_epoch(name))[: full_epoch(name)]
        assert [len(batch) for batch in places] == (sizes * len(places))[: len(places)]
        cut: dict[int, Tensor] = {}
        for batch, (images, _) in zip(places, stage.batches):
            assert all(torch.equal(cut.setdefault(place, image), image) for place, image in zip(batch, images))
        if len(places) >= shot_epoch(name):
            assert len(cut) == SHOTS[name]
            passes = [sum(places[first : first + shot_epoch(name)], []) for first in (0, len(sizes))]
            assert set(passes[0]) == set(cut) and passes[0] != sorted(passes[0]) and passes[1] != passes[0]
            plain = normalise(decoded(whole.root, name, 0)[0][list(cut)])
            same = [torch.equal(image, other) for image, other in zip(cut.values(), plain)]
            assert sum(same) < len(same) / 2
    labels = torch.cat([labels for _, labels in whole.tasks[1].batches[: shot_epoch("EuroSAT")]])
    assert labels.bincount().tolist() == [2] * 10


def test_the_autoencoders(whole: Whole) -> None:
    """The lower rate of few shots, which falls to a tenth after ten epochs of the full set, not of the shots."""
    before = None
    for index, (name, stage) in enumerate(zip(DOMAINS, whole.autoencoders, strict=True)):
        left, steps = whole.left(f"{name}_autochooser"), 6 if index == 0 else 45
        rates = [0.003 * 0.1 ** (n // full_epoch(name) // 10) for n in range(steps)]
        check_autoencoder(stage, whole.extractor, index, before, left, rates)
        before = left


def test_the_adapters(whole: Whole) -> None:
    """Two passes over the shots and a step; what a task picks is listed, and with the first release's mistake."""
    picked: list[str] = []
    with float64():
        original = clip.load(str(whole.root / "clip.pt"))[0].state_dict()
        network = whole.network()
        theta = network.theta
        for task, (name, stage) in enumerate(zip(TASKS, whole.tasks, strict=True)):
            left = whole.left(name)
            names = [key for key in left if learns(key, task, frozen=set())]
            start = dict(zip(names, stage.steps[0].start[0], strict=True))
            if task == 0:
                routers = [key for key in left if "router_list." in key or "noise_list." in key]
                theta |= {key: torch.zeros_like(left[key]) for key in routers} | start
                check_initial(theta)
            for key in names:
                torch.testing.assert_close(start[key], theta[key], **EXACT)
            total = 2 * shot_epoch(name)
            assert len(stage.batches) == total + 1
            network.router = task
            rate = lambda n, total=total: cosine(n, 0.02, 4, total)
            network.learn(stage, names, prompts(name, [TEMPLATE]), rate, smoothing=0.05, balance=0.3)
            note = json.loads((whole.root / "run" / f"{name}.json").read_text())
            assert list(note["choose_map"].values()) == network.choose_map()
            assert note["frozen_before"] == picked
            picked += network.picks(text_index_bug=True)
            check_checkpoint(left, theta, original, EXPERTS)
    assert (whole.root / "run" / "frozen_list").read_text().split() == picked
    assert '"protocol": "mtil-custom-DTD+EuroSAT-2shot"' in (whole.root / "run" / "record.jsonl").read_text()


def test_ddas_and_accuracies(whole: Whole) -> None:
    tests = test_sets(whole.root, TESTS, TEMPLATE)
    features = {name: whole.extractor(normalise(test.pixels)).sigmoid() for name, test in tests.items()}

    def routers(after: int, name: str) -> list[int]:
        errors = errors_of(whole.left(f"{TASKS[after - 1]}_autochooser"), features[name])
        return ddas(errors, TEST_BATCH, THRESHOLD)

    with float64():
        expected = evaluated(whole.network(), {name: whole.left(name) for name in TASKS}, tests, routers, False)
    assert cells(whole.root / "run") == pytest.approx(expected, rel=1e-12)


def test_a_set_with_too_few_images_a_class_is_on_record(whole: Whole) -> None:
    found = records(whole.root / "run")
    assert (found[1, "DTD", "scarce_classes"], found[1, "DTD", "training_images"]) == (47, 47)
    assert (2, "EuroSAT", "scarce_classes") not in found


def test_with_the_template_of_ones_own_and_the_domain_told_it_is_mtil(whole: Whole, tmp_path: Path) -> None:
    command = [*COMMAND, "--template", TEMPLATE, "--model", str(whole.root / "clip.pt"), "--data-location", str(whole.root)]
    both = ["--eval-only", "--load", str(whole.root / "run"), "--eval-datasets", ",".join(TASKS)]
    joint = ["--label-space", "all", "--xtail-template", "own"]
    with float64():
        main([*command, *both, *joint, "--save", str(tmp_path)])
    mtil, xtail = cells(whole.root / "run"), cells(tmp_path)
    told = {key[:2]: value for key, value in xtail.items() if key[2] == "accuracy_with_domain"}
    assert told == {key[:2]: value for key, value in mtil.items() if key[1] in TASKS and key[2] == "accuracy"}
