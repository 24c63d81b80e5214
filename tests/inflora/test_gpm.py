"""DualGPM, GPM and the design of the basis: against the official code's numbers, and formulas where it has none."""

import pytest
import torch

from inflora.gpm import Memory, design, orthogonal_complement, remember, threshold
from tests.golden_files import Golden

TOLERANCE = 1e-9


def assert_close(actual, expected, tolerance=TOLERANCE):
    """max |a - b| <= tolerance * max |b|, the fixtures' measure."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def projector(basis):
    return basis @ basis.T


@pytest.mark.parametrize("name", ["dualgpm_synthetic", "dualgpm_noschedule"])
@pytest.mark.parametrize("mode", ["dual", "gpm"])
def test_memory_of_a_sequence(name, mode):
    golden = Golden(f"inflora/{name}")
    meta, memory = golden.meta, None
    for facts in (entry for entry in meta["info"] if entry["mode"] == mode):
        task = facts["task"]
        C, prefix = golden[f"t{task}/matrix"], f"{mode}/t{task}"
        designed = design(C, memory, meta["rank"])
        assert_close(designed.T @ designed, golden[f"{prefix}/designed_A"].T @ golden[f"{prefix}/designed_A"])
        epsilon = threshold(meta["lamb"], meta["lame"], task, meta["tasks"])
        assert epsilon == pytest.approx(facts["threshold"], rel=1e-12)
        memory = remember(C, memory, epsilon, dual=mode == "dual")
        assert (memory.basis.shape[1], memory.free) == (facts["dim"], facts["type"] == "retain")
        assert_close(projector(memory.basis), golden[f"{prefix}/projector"])


def test_thresholds():
    golden = Golden("inflora/schedules")
    for key, expected in golden.under("threshold/").items():
        lamb, lame, sessions = (float(part) for part in key.split("_"))
        ours = torch.tensor(
            [threshold(lamb, lame, t, int(sessions)) for t in range(len(expected))], dtype=torch.float64
        )
        assert_close(ours, expected)


def moment(d, seed, spectrum=None):
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    spectrum = 0.7 ** torch.arange(d, dtype=torch.float64) if spectrum is None else torch.tensor(spectrum).double()
    return Q * spectrum @ Q.T


@pytest.mark.parametrize("epsilon", [0.6, 0.97, 0.999])
def test_dual_and_plain_memory_span_the_same_spaces(epsilon):
    """Ten tasks: what DualGPM keeps never exceeds d / 2 columns, and its projector is GPM's or its complement."""
    d, dual, plain = 12, None, None
    for task in range(10):
        C = moment(d, task)
        dual, plain = remember(C, dual, epsilon, dual=True), remember(C, plain, epsilon, dual=False)
        old = torch.eye(d) - projector(dual.basis) if dual.free else projector(dual.basis)
        assert_close(old, projector(plain.basis), 1e-8)
        assert dual.basis.shape[1] <= d / 2


def test_first_memory_above_half_the_width_keeps_the_complement():
    """Upstream keeps the old tasks' basis there and calls it the free one; ours must be the true free space."""
    C = moment(8, 0, [1.0] * 8)  # all directions alike: seven of eight stay below 0.9
    assert remember(C, None, 0.9, dual=False).basis.shape[1] == 7
    memory = remember(C, None, 0.9, dual=True)
    assert memory.free and memory.basis.shape[1] == 1
    half = remember(moment(8, 0, [1.0] * 8), None, 0.51, dual=True)  # four are half the width: the complement already
    assert half.free and half.basis.shape[1] == 4


def test_first_memory_keeps_one_direction_that_reaches_the_threshold_alone():
    C = moment(6, 1, [1.0, 1e-3, 0, 0, 0, 0])
    memory = remember(C, None, 0.95, dual=True)
    assert memory.basis.shape[1] == 1 and not memory.free
    main = torch.linalg.eigh(C).eigenvectors[:, -1:]
    assert_close(projector(memory.basis), projector(main))


def test_updates_take_the_crossing_direction():
    """By hand, in the basis of unit vectors: energies 16, 4, 1 on fresh axes besides one that is held."""
    C = torch.diag(torch.tensor([2.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    held = Memory(torch.eye(4, dtype=torch.float64)[:, :1])  # holds 4 of 25
    larger = remember(C, held, 0.75, dual=False)  # 4 / 25 < 0.75, 20 / 25 is not
    assert_close(projector(larger.basis), torch.diag(torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)))
    assert remember(C, held, 0.81, dual=False).basis.shape[1] == 3
    free = Memory(torch.eye(4, dtype=torch.float64)[:, 1:], free=True)  # 21 of 25 lie in the free space
    smaller = remember(C, free, 0.75, dual=True)  # 21 / 25 >= 0.25, 5 / 25 is not
    assert_close(projector(smaller.basis), torch.diag(torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)))


def test_designed_rows_avoid_the_old_tasks():
    C, old = moment(10, 3), Memory(torch.linalg.qr(moment(10, 4)[:, :4]).Q)
    free = Memory(orthogonal_complement(old.basis), free=True)
    for memory in (old, free):
        B = design(C, memory, 3)
        assert (B @ old.basis).abs().max() < 1e-12
        assert_close(B @ B.T, torch.eye(3, dtype=torch.float64) / 3)
    assert_close(design(C, old, 3).T @ design(C, old, 3), design(C, free, 3).T @ design(C, free, 3))


def test_a_free_space_without_dimensions():
    """Nothing is left to learn in, yet a basis comes back, and the memory stays as it is."""
    memory = Memory(torch.empty(5, 0, dtype=torch.float64), free=True)
    C = moment(5, 0)
    B = design(C, memory, 2)
    assert_close(B @ B.T, torch.eye(2, dtype=torch.float64) / 3)
    assert remember(C, memory, 0.9, dual=True).basis.shape == (5, 0)
