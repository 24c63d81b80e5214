"""iCaRL's memory and its three-task run against the official code's."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.golden_files import Golden
from tests.whole_run import float64
from tests.zscl.trajectory import (
    RecordedBatches,
    Trajectory,
    assert_fingerprints,
    assert_losses,
    assert_weights,
    options_of,
    reference_of,
    weights_under,
)
from zscl.icarl import CANDIDATES, first_memory, herd, updated_memory

ICARL = Golden("zscl_mtil/traj_icarl")
ORDER, SIZE = ICARL.meta["order"], ICARL.meta["memory_size"]


def golden_memory(after: str) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in ICARL.under(f"memory_after_{after}/").items()}


def test_memory_from_the_recorded_features() -> None:
    memory = first_memory(ORDER[0], len(ICARL[f"{ORDER[0]}/x_train"]), SIZE)
    assert memory == golden_memory(ORDER[0])
    for name in ORDER[1:]:
        memory = updated_memory(memory, name, ICARL[f"{name}/herding_features"].float(), SIZE)
        assert memory == golden_memory(name) and list(memory) == ORDER[: ORDER.index(name) + 1]


def in_order(memory: dict[str, list[int]], batch_size: int, steps: int) -> tuple[torch.Tensor, list[list[int]]]:
    """All exemplars in learning order, and which of them each step draws."""
    images = torch.cat([ICARL[f"{name}/x_train"][indices] for name, indices in memory.items()])
    starts = list(range(0, len(images), batch_size))
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in starts]
    return images, [batches[step % len(batches)] for step in range(steps)]


@pytest.fixture
def in_float64() -> Iterator[None]:
    """For single weights, in which AdamW blows up the rounding that differs between processors."""
    with float64():
        yield


def test_three_tasks(in_float64: None) -> None:
    weights, memory, options = weights_under(ICARL, "w0/"), {}, options_of(ICARL.meta["argv"])
    steps = options.iterations + 1
    for name, lr in zip(ORDER, ICARL.meta["lr_of_tasks"]):
        tokens, reference = ICARL[f"{name}/prompt_tokens"], None
        if memory:
            recorded = RecordedBatches(*_with_labels(in_order(memory, 8, steps)))
            reference = reference_of(weights_under(ICARL, "w0/"), recorded, tokens)
        batches = RecordedBatches(
            ICARL[f"{name}/x_train"], ICARL[f"{name}/y_train"], ICARL[f"{name}/idx_train"].tolist()
        )
        options = options_of(ICARL.meta["argv"], lr=lr)
        done = Trajectory(weights, ICARL.meta["names"]).run(tokens, batches, reference, None, options)
        assert_losses(done.losses("CE"), ICARL[f"{name}/ce"])
        if reference:
            assert_losses(torch.stack([done.losses("img"), done.losses("txt")], dim=1), ICARL[f"{name}/kd_terms"])
        assert_fingerprints(done.weights, ICARL.meta["names"], ICARL[f"{name}/param_fp"])
        assert_weights(done.weights[-1], ICARL.under(f"{name}/param_last/"))
        weights = {key: value.clone() for key, value in done.saved.items()}
        if memory:
            with torch.no_grad():
                features = F.normalize(done.model.encode_image(ICARL[f"{name}/x_train"].float()), dim=-1)
            torch.testing.assert_close(features, ICARL[f"{name}/herding_features"].float(), rtol=0, atol=1e-5)
            memory = updated_memory(memory, name, features, SIZE)
        else:
            memory = first_memory(name, len(ICARL[f"{name}/x_train"]), SIZE)
        assert memory == golden_memory(name)


def _with_labels(drawn: tuple[torch.Tensor, list[list[int]]]) -> tuple[torch.Tensor, None, list[list[int]]]:
    images, batches = drawn
    return images, None, batches


def plain_herding(features: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """(position in the shrunk list, index of the image meant) by the definition, deleting as it goes."""
    left, names, total = features.clone(), list(range(len(features))), torch.zeros(features.shape[1])
    picks = []
    for k in range(min(count, len(features))):
        distances = ((features.mean(0) - (left + total) / (k + 1)) ** 2).sum(1)
        position = int(distances.argmin())
        picks.append((position, names[position]))
        total = total + left[position]
        left, names = torch.cat([left[:position], left[position + 1 :]]), names[:position] + names[position + 1 :]
    return picks


def test_herding_takes_positions_of_the_shrunk_list_unless_fixed() -> None:
    features = F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    picks = plain_herding(features, 25)
    assert herd(features, 25) == [position for position, _ in picks]
    assert herd(features, 25, "fixed") == [index for _, index in picks]
    assert len(set(herd(features, 25, "fixed"))) == 25 > len(set(herd(features, 25)))  # the quirk repeats images
    assert sorted(herd(features, 60, "fixed")) == list(range(40))  # more than there are: until no row is left


@pytest.mark.parametrize(("rule", "totals"), [("upstream", [12, 12, 16, 18]), ("exact", [12, 12, 12, 12])])
def test_quota(rule: str, totals: list[int]) -> None:
    features = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    memory = first_memory("a", 30, 12)
    sizes = [sum(map(len, memory.values()))]
    for name in "bcd":
        memory = updated_memory(memory, name, features, 12, quota=rule)
        sizes.append(sum(map(len, memory.values())))
    assert sizes == totals


def test_the_first_memory_is_the_first_images() -> None:
    assert first_memory("a", 5, 3) == {"a": [0, 1, 2]}
    assert first_memory("a", 3, 5) == {"a": [0, 1, 2]}
    assert len(first_memory("a", 10**6, 10**6)["a"]) == CANDIDATES
