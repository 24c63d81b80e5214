"""The check of a GPU, on the CPU and as small as it can be; what it says of a device that computes wrong."""

from pathlib import Path

import pytest
import torch

from tests.benchmarks import records
from tests.benchmarks.__main__ import PAPERS, main
from tests.device import check
from tests.device.elsewhere import Elsewhere


def test_every_part_passes_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "check.txt", tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as end:
        main(["device-check", "--device", "cpu", "--out", str(out), "--record", str(kept)])
    text, told = out.read_text(), capsys.readouterr()
    assert end.value.code == 0 and text in told.out and "[   0 s] fixtures" in told.err
    assert f"torch: {torch.__version__}\n" in text and "driver: " in text and "\n0 of 28 checks failed" in text
    lines = [line.split(": ")[0] for line in text.splitlines() if line.startswith("pass")]
    steps = [f"pass  a step, small, {paper}, {precision}" for paper in PAPERS for precision in ("fp32", "bf16")]
    expected = ["pass  fixtures, zscl/test_weights.py", *(f"pass  3 steps, {paper}" for paper in PAPERS), *steps]
    last = ["pass  memory, MoE-Adapters' DDAS, 64 images, fp32", "pass  resume, moe_adapters_cil"]
    last += ["pass  a step, small, zscl, deterministic"]
    assert lines == [*expected, *last]
    assert "fixtures, zscl/test_weights.py: 10 passed, 0 failed\n" in text and text.count(" images/s, peak ") == 17
    rows = [(row["paper"], row["precision"], float(row["images_per_s"]) > 0) for row in records.read(kept)]
    assert rows == [(paper, precision, True) for paper in PAPERS for precision in ("fp32", "bf16")]


def test_what_differs_or_raises_fails_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, calls = torch.ones(3, dtype=torch.float64), iter(range(100))

    def drifts(place: check.Place, clock: check.Clock) -> check.Left:
        clock.repeat(int)
        return {"losses": torch.ones(1), "weight": learned + 2e-6 * next(calls)}

    def breaks(place: check.Place, clock: check.Clock) -> check.Left:
        raise RuntimeError("no kernel image\nis available")

    def stays(place: check.Place, clock: check.Clock) -> check.Left:
        return drifts(place, clock) | {"weight": learned}

    monkeypatch.setattr(check, "STEPS_OF", {"one": (4, breaks), "two": (4, drifts), "three": (4, stays)})
    monkeypatch.setattr(check, "STOPPED", ["no such run"])
    monkeypatch.setattr(check, "LIGHTEST", None)
    with pytest.raises(SystemExit) as end:
        main(["device-check", "--device", "cpu", "--out", str(tmp_path / "check.txt")])
    text = capsys.readouterr().out
    assert end.value.code == 1 and "\n6 of 12 checks failed" in text
    assert "FAIL  3 steps, one: RuntimeError: no kernel image is available\n" in text
    assert "FAIL  3 steps, two: losses and weights in float64 within 2.0e-06, " in text
    assert "pass  3 steps, three: losses and weights in float64 within 0.0e+00, " in text
    assert "FAIL  resume, no such run: FileNotFoundError" in text


def test_operations_are_computed_elsewhere() -> None:
    """On copies, what is written is brought back; random numbers are drawn on the CPU."""
    x, mean, variance = torch.arange(6.0), torch.zeros(3), torch.ones(3)
    with Elsewhere(torch.device("cpu")):
        x.view(2, 3)[1].add_(1)
        torch._foreach_mul_([x[:2], x[2:4]], 3)
        torch.nn.functional.batch_norm(x.view(2, 3), mean, variance, training=True, momentum=1.0)
    assert x.tolist() == [0, 3, 6, 12, 5, 6] and mean.tolist() == [6, 4, 6] and variance.tolist() == [72, 2, 0]
    with Elsewhere(torch.device("meta")):
        assert (x + 1).is_meta and not torch.rand_like(x).is_meta and not x[1:].is_meta
