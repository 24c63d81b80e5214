"""The table of claims: what each compares, from hand-made runs, and the linear probes by sklearn's own score."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from common import vit
from common.datasets.miniature import load_domain
from common.datasets.transforms import clip_eval
from docs import claims
from tests.results.lines import write_lines

CIL, MTIL = "cil-characters-10x4", "mtil-order1"
ENDS = [  # method, protocol, metric, value after the last task
    ("InfLoRA", CIL, "acc", 80.0), ("SeqLoRA", CIL, "acc", 35.0),
    ("VQ-Prompt", CIL, "faa", 95.0), ("NCM, no prompts", CIL, "faa", 96.0),
    ("VQ-Prompt-S", CIL, "faa", 60.0), ("Soft-Prompt", CIL, "faa", 60.0),
    ("Continual-CLIP", CIL, "last", 66.0), ("MoE-Adapters", CIL, "last", 67.0), ("ZSCL", CIL, "last", 66.0),
    ("IT-Prompt (our reading)", CIL, "faa", 90.0), ("Zero-shot CLIP", CIL, "faa", 66.0),
    ("IT-Prompt + C-NCM (our reading)", CIL, "faa", 91.0), ("IT-Prompt + C-NCM (our reading)", CIL, "cncm_u", 92.0),
    ("MoE-Adapters", MTIL, "transfer", 68.9), ("ZSCL", MTIL, "transfer", 68.1), ("ZSCL*", MTIL, "transfer", 62.2),
    ("LwF-VR", MTIL, "transfer", 57.2), ("LwF", MTIL, "transfer", 56.9), ("WiSE-FT", MTIL, "transfer", 52.3),
    ("iCaRL", MTIL, "transfer", 50.4), ("Fine-tuning", MTIL, "transfer", 44.6),
]  # fmt: skip


def made_up(ends: list[tuple[str, str, str, float]] = ENDS) -> list[dict[str, Any]]:
    lines = [
        {"method": method, "protocol": protocol, "metric": metric, "value": value, "seed": seed, "dataset": "mean"}
        for method, protocol, metric, value in ends
        for seed in (0, 1)
    ]
    for method, curve in {"ALTA": (90, 80), "Residual adapter": (80, 81), "Adapter": (9, 8), "Task prompts": (7, 7)}.items():
        lines += [
            {"method": method, "protocol": CIL, "metric": "accuracy", "value": value, "after_task": task}
            for task, value in enumerate(curve, 1)
        ]
    before = {"method": "Zero-shot CLIP", "protocol": MTIL, "metric": "accuracy", "after_task": 0}
    lines += [before | {"dataset": name, "value": value} for name, value in (("Aircraft", 20.0), ("DTD", 69.4))]
    lines.append({"method": "InfLoRA", "protocol": CIL, "metric": "acc", "value": 99.0, "after_task": 3, "seed": 0})
    routed = {"method": "MoE-Adapters", "protocol": MTIL}
    for router, dataset, after, count in (("CLIP", "DTD", 1, 300), ("DTD", "DTD", 4, 250), ("CLIP", "DTD", 4, 50)):
        lines.append(routed | {"metric": f"routed_to/{router}", "dataset": dataset, "after_task": after, "value": count})
    return [{"scale": "mini", "run": "run"} | line for line in lines]


def shown(folder: Path, capsys: pytest.CaptureFixture, lines: list[dict[str, Any]]) -> dict[int, tuple[str, str]]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(f"{line['method']}, {line['protocol']}, {line.get('seed')}", []).append(line)
    for name, part in runs.items():
        write_lines(folder / name, part)
    claims.main([str(folder)])
    found = re.findall(r"^ ?(\d+) (yes|no) +(.*)$", capsys.readouterr().out, re.MULTILINE)
    return {int(number): (verdict, measured) for number, verdict, measured in found}


def test_each_claim_compares_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = shown(tmp_path, capsys, made_up())
    assert [*found] == list(range(1, 18))
    assert found[2] == ("yes", "InfLoRA 80.0; SeqLoRA 35.0")
    assert found[5] == ("no", "VQ-Prompt 95.0; nearest class mean 96.0")
    assert found[6] == ("yes", "VQ-Prompt 95.0; VQ-Prompt-S 60.0")
    assert found[7] == ("no", "VQ-Prompt-S 60.0; Soft-Prompt 60.0")
    assert found[8] == ("yes", "MoE-Adapters 67.0; Zero-shot CLIP 66.0") and found[9][0] == "no"
    assert found[10][0] == "yes" and found[11] == ("no", "with prompts 91.0; without 92.0")
    assert found[12] == ("yes", "ALTA 85.0; Residual adapter 80.5, Adapter 8.5, Task prompts 7.0")
    assert found[13] == ("no", "ALTA 80.0; Residual adapter 81.0, Adapter 8.0, Task prompts 7.0")
    assert found[14] == ("yes", "Zero-shot CLIP 44.7") and found[15] == ("yes", "Zero-shot CLIP 66.0")
    assert found[16][0] == "yes" and found[16][1].startswith("Zero-shot CLIP 69.4, MoE-Adapters 68.9, ZSCL 68.1, ")
    assert found[17] == ("yes", "91.7 % of the images")


def test_an_order_of_transfer_that_is_another_does_not_show(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ends = [(*end[:3], 70.0) if end[:3] == ("LwF", MTIL, "transfer") else end for end in ENDS]
    assert shown(tmp_path, capsys, made_up(ends))[16][0] == "no"


@pytest.mark.parametrize(
    ("left_out", "told"),
    [(CIL, "no run of InfLoRA, cil-characters-10x4, has acc"), (MTIL, "no run of Zero-shot CLIP, mtil-order1, has acc")],
)
def test_a_run_that_is_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, left_out: str, told: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        shown(tmp_path, capsys, [line for line in made_up() if line["protocol"] != left_out])
    assert stop.value.code == 2 and f"error: {told}" in capsys.readouterr().err


def test_probes_are_logistic_regressions_of_all_classes_and_of_each_task() -> None:
    data, model = load_domain("Characters", clip_eval(32), clip_eval(32)), vit.load("mini")
    sides = []
    for part in (data.train, data.test):
        images, labels = zip(*(part[k] for k in range(len(part))))
        with torch.no_grad():
            sides.append((model(torch.stack(images)).numpy(), np.array(labels)))
    (x, y), (shown, truth) = sides
    found = claims.probes()
    whole = LogisticRegression(C=0.1, max_iter=2000).fit(x, y)
    assert found[claims.AT_ONCE] == pytest.approx(100 * whole.score(shown, truth), abs=0.2)
    # told the task, the classifiers of the tasks are right at least as often as without
    right = []
    for first in range(0, 40, 4):
        own, tested = (y >= first) & (y < first + 4), (truth >= first) & (truth < first + 4)
        right.append(LogisticRegression(C=0.1, max_iter=2000).fit(x[own], y[own]).score(shown[tested], truth[tested]))
    assert 50 < found[claims.BY_TASK] < min(found[claims.AT_ONCE], 100 * float(np.mean(right)))
