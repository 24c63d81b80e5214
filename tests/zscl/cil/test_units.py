"""The class-incremental parts on their own: losses, schedule, ensemble, consolidation, exemplars, texts of L_CE."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.runs import Run
from common.training.schedules import cil_cosine_with_warmup
from tests.golden_files import Golden
from zscl.cil.memory import RULES, memory_path, stored_floats
from zscl.cil.options import Options
from zscl.cil.reference import earlier_classes, with_captions
from zscl.icarl import updated_memory
from zscl.losses import image_loss, text_loss
from zscl.weights import WeightEnsemble, consolidate_

LOSSES = Golden("zscl_cil/losses")
SCHEDULE = Golden("zscl_cil/lr_schedule")
SELECTION = Golden("zscl_cil/icarl_selection")
EXACT = {"rtol": 1e-5, "atol": 1e-7}


@pytest.mark.parametrize("name, loss", [("img", image_loss), ("txt", text_loss)])
def test_distillation(name: str, loss: object) -> None:
    student = LOSSES["s"].float().requires_grad_()
    value = loss(LOSSES["t"].float(), student, LOSSES.meta["T"])
    value.backward()
    torch.testing.assert_close(value.detach(), LOSSES[f"loss_{name}"].float(), **EXACT)
    wanted = LOSSES[f"grad_{name}"].float()
    gradient = student.grad if wanted.shape == student.grad.shape else student.grad.t()
    torch.testing.assert_close(gradient, wanted, **EXACT)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.3])
def test_label_smoothing(smoothing: float) -> None:
    logits, labels = LOSSES["ce_logits"].float(), LOSSES["ce_target"].long()
    wanted = LOSSES[f"ce_ls{smoothing}"].float()
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=smoothing), wanted, **EXACT)


def test_consolidation_and_its_gradient() -> None:
    """(theta - theta0)^2 summed, not averaged, between two layers."""
    pairs = []
    for name in ("weight", "bias"):
        theta = LOSSES[f"wc_A_{name}"].float().requires_grad_()
        theta.grad = torch.zeros_like(theta)
        pairs.append((theta, LOSSES[f"wc_B_{name}"].float()))
    torch.testing.assert_close(consolidate_(pairs, 0.5), LOSSES["wc"].float(), **EXACT)
    for theta, theta0 in pairs:
        torch.testing.assert_close(theta.grad, theta.detach() - theta0, **EXACT)


def test_weight_ensemble() -> None:
    average = WeightEnsemble({"w": LOSSES["we_theta0"].float()})
    for sample in (1, 2, 3):
        average.add({"w": LOSSES[f"we_theta{sample}"].float()})
        torch.testing.assert_close(average.mean["w"], LOSSES[f"we_after{sample}"].float(), **EXACT)


@pytest.mark.parametrize("case", range(len(SCHEDULE.meta["cases"])))
def test_schedule(case: int) -> None:
    about = SCHEDULE.meta["cases"][case]
    ours = [cil_cosine_with_warmup(step, about["base_lr"], about["T"]) for step in range(about["T"] + 1)]
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64), SCHEDULE[f"c{case}/lr"].double(), rtol=1e-12, atol=0
    )


def test_short_tasks_never_leave_the_warm_up() -> None:
    """T = 16 (CIFAR100 in steps of two): the last of 17 steps has 17/30 of the rate, and is a full step."""
    rates = [cil_cosine_with_warmup(step, 3.0, 16) for step in range(17)]
    assert rates == pytest.approx([(step + 1) / 10 for step in range(17)])


def test_the_step_that_divides_by_zero_upstream_has_the_full_rate() -> None:
    assert [cil_cosine_with_warmup(step, 3.0, 30) for step in (28, 29, 30)] == pytest.approx([2.9, 3.0, 3.0])
    assert cil_cosine_with_warmup(31, 3.0, 31) == pytest.approx(0.0)
    assert cil_cosine_with_warmup(30, 3.0, 31) == pytest.approx(3.0)
    assert cil_cosine_with_warmup(2, 3.0, 2, warmup=2) == 3.0


def memories(compat: bool) -> list[list[list[int]]]:
    """The memory after each of the fixture's tasks, from its recorded features."""
    memory, found = {}, []
    for task in range(len(SELECTION.meta["n"])):
        features = F.normalize(SELECTION[f"t{task}/features"].float(), dim=-1)
        memory = updated_memory(memory, task, features, SELECTION.meta["memory_size"], *RULES[compat])
        found.append(list(memory.values()))
    return found


def test_exemplars_as_the_released_code_stores_them() -> None:
    for task, memory in enumerate(memories(compat=True)):
        stored = SELECTION.under(f"t{task}/upstream_memory_task")
        assert [stored[str(place)].tolist() for place in range(task + 1)] == memory


def test_exemplars_as_herding_means_them() -> None:
    """Every task keeps the first K / t of its picks: the memory never holds more than K, and no image twice."""
    size = SELECTION.meta["memory_size"]
    for task, memory in enumerate(memories(compat=False)):
        share = size // (task + 1)
        picks = [SELECTION[f"t{place}/herding_order"].tolist()[: size // (place + 1)] for place in range(task + 1)]
        assert [part[:share] for part in picks] == memory
        assert sum(map(len, memory)) <= size and all(len(set(part)) == len(part) for part in memory)


@pytest.mark.parametrize(("method", "kind", "count"), [("iCaRL", "common", 5), ("iCaRL", "cil", 0), ("lwf", "common", 0)])
def test_numbers_stored(tmp_path: Path, method: str, kind: str, count: int) -> None:
    """After the second of the tasks: five images, one of them chosen twice, 3 x 8 x 8 numbers each."""
    labels = {"paper": "zscl", "method": "iCaRL", "protocol": f"{kind}-cifar100-10x10", "seed": 0}
    run = Run(tmp_path, {}, labels)
    for task_id, memory in enumerate(([[3, 1, 4, 9, 2]], [[3, 1, 4], [0, 3, 3]])):
        memory_path(run, task_id).write_text(json.dumps(memory))
    options = Options(method=method, dataset="cifar100", config_name="none.yaml")
    assert stored_floats(run, options, 1, 8) == count * 3 * 8 * 8


def test_a_memory_larger_than_the_first_task_holds_all_of_it() -> None:
    features = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    for compat in (False, True):
        assert len(updated_memory({}, 0, features, 20, *RULES[compat])[0]) == 5
        grown = updated_memory(dict.fromkeys(range(2), [0, 1, 2, 3, 4]), 2, features, 9, *RULES[compat]).values()
        assert [len(part) for part in grown] == ([3, 3, 5] if compat else [3, 3, 3])


def test_earlier_classes() -> None:
    """100 classes, then steps of 10: in step 1 the original keeps 10 earlier names, 100 are meant."""
    first, second = range(100), range(100, 110)
    assert earlier_classes(100, first, 100, compat=False) == earlier_classes(100, first, 100, compat=True) == 0
    assert (earlier_classes(110, second, 100, False), earlier_classes(110, second, 100, True)) == (100, 10)
    assert earlier_classes(20, range(10, 20), 10, False) == earlier_classes(20, range(10, 20), 10, True) == 10


def test_captions_join_the_classes() -> None:
    """Others at each step, none twice in one, the same ones for the same step of the same seed."""
    own = torch.tensor([[8, 1, 9, 0], [8, 2, 9, 0]])
    captions = torch.zeros(50, 7, dtype=torch.long)
    captions[:, 0], captions[:, 1], captions[:, 2] = 8, torch.arange(50) - 50, 9
    texts = with_captions(own, captions, 5, torch.device("cpu"), count=20)
    assert texts(0).shape == (22, 3)  # all cut behind the longest
    assert texts(0)[:2].tolist() == own[:, :3].tolist()
    drawn = [texts(step)[2:, 1].tolist() for step in range(3)]
    assert all(len(set(rows)) == 20 and set(rows) <= set(range(-50, 0)) for rows in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    again = with_captions(own, captions, 5, torch.device("cpu"), count=20)
    assert [again(step)[2:, 1].tolist() for step in (2, 0)] == [drawn[2], drawn[0]]
    other = with_captions(own, captions, 6, torch.device("cpu"), count=20)
    assert other(0)[2:, 1].tolist() != drawn[0]
    assert len(with_captions(own, captions[:4], 5, torch.device("cpu"), count=20)(0)) == 6
