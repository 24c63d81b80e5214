"""What the miniature shows of the papers' claims: the column "after" of claims.md, from finished runs.

    python -m docs.claims ckpt experiments logs-mini outputs output runs/alta

The folders are those of the runs that status.md lists; two linear probes are fitted here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from common import vit
from common.datasets.transforms import clip_normalise
from common.errors import UserError, exit_cleanly
from common.mini import MINI
from common.mini.domains import INCREMENTAL, images
from common.options import option, read
from common.protocols import MTIL_ORDERS
from results.collect import read_runs
from results.records import Record

CIL = "cil-characters-10x4"
BY_TASK, AT_ONCE = "linear probe, task by task", "linear probe, all classes at once"
TRANSFER = ("Zero-shot CLIP", "MoE-Adapters", "ZSCL", "ZSCL*", "LwF-VR", "LwF", "WiSE-FT", "iCaRL", "Fine-tuning")


@dataclass(frozen=True)
class Runs:
    """Lines of finished runs on the miniature."""

    lines: list[Record]

    def curve(self, method: str, protocol: str, metric: str) -> list[float]:
        """Means over the runs of a metric after each task."""
        found: dict[int, list[float]] = {}
        for line in self.lines:
            if (line.method, line.protocol, line.metric) == (method, protocol, metric):
                found.setdefault(line.after_task, []).append(line.value)
        if not found:
            raise UserError(f"no run of {method}, {protocol}, has {metric}. Give the folders of the runs in status.md.")
        return [fmean(values) for _, values in sorted(found.items())]

    def last(self, method: str, metric: str, protocol: str = CIL) -> float:
        return self.curve(method, protocol, metric)[-1]


def probes() -> dict[str, float]:
    """Test accuracies in percent of logistic regression on the frozen ViT's features of all training images."""
    model, features = vit.load(MINI), {}
    for split in ("train", "test"):
        pictures, labels = images(INCREMENTAL, split)
        with torch.no_grad():
            features[split] = model(clip_normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2))).numpy(), labels
    (x, y), (shown, truth) = features["train"], features["test"]

    def scores(classes: Iterable[int]) -> np.ndarray:
        chosen = np.isin(y, [*classes])
        return LogisticRegression(C=0.1, max_iter=2000).fit(x[chosen], y[chosen]).decision_function(shown)

    by_task = np.concatenate([scores(range(first, first + 4)) for first in range(0, 40, 4)], axis=1)
    tables = {BY_TASK: by_task, AT_ONCE: scores(range(40))}
    return {name: 100 * float((table.argmax(axis=1) == truth).mean()) for name, table in tables.items()}


def above(first: tuple[str, float], *others: tuple[str, float]) -> tuple[str, bool]:
    rest = ", ".join(f"{name} {value:.1f}" for name, value in others)
    return f"{first[0]} {first[1]:.1f}; {rest}", all(first[1] > value for _, value in others)


def between(name: str, value: float) -> tuple[str, bool]:
    return f"{name} {value:.1f}", 40 <= value <= 70


def transfer_order(runs: Runs) -> tuple[str, bool]:
    """Claim 16: Transfer in the published order; the zero-shot row's is its accuracy on all sets but the first."""
    first, order = MTIL_ORDERS["order1"][0], "mtil-order1"
    before = {line.dataset: line.value for line in runs.lines if line.is_zero_shot and line.protocol == order}
    values = [fmean(value for dataset, value in before.items() if dataset != first)]
    values += [runs.last(method, "transfer", order) for method in TRANSFER[1:]]
    text = ", ".join(f"{method} {value:.1f}" for method, value in zip(TRANSFER, values))
    return text, all(one > other for one, other in pairwise(values))


def routed_right(runs: Runs) -> tuple[str, bool]:
    """Claim 17: the share of test images that DDAS sends to their domain's router, before it is learnt to CLIP's."""
    order, sent = MTIL_ORDERS["order1"], {True: 0.0, False: 0.0}
    for line in runs.lines:
        if line.metric.startswith("routed_to/") and (line.protocol, line.method) == ("mtil-order1", "MoE-Adapters"):
            learnt = order.index(line.dataset) < line.after_task
            sent[line.metric == f"routed_to/{line.dataset if learnt else 'CLIP'}"] += line.value
    share = 100 * sent[True] / (sent[True] + sent[False])
    return f"{share:.1f} % of the images", 50 < share < 100


def claims(runs: Runs) -> list[tuple[str, bool]]:
    """What was measured for each claim of claims.md, in its order, and whether it shows."""
    linear, last = probes(), runs.last
    inflora = "InfLoRA", last("InfLoRA", "acc")
    vq, vq_s, soft = ((name, last(name, "faa")) for name in ("VQ-Prompt", "VQ-Prompt-S", "Soft-Prompt"))
    zero_shot = "Zero-shot CLIP", last("Continual-CLIP", "last")
    it_prompt, with_cncm = (f"IT-Prompt{rest} (our reading)" for rest in ("", " + C-NCM"))
    alta = {name: runs.curve(name, CIL, "accuracy")
            for name in ("ALTA", "Residual adapter", "Adapter", "Task prompts")}  # fmt: skip
    return [
        (f"{AT_ONCE} {linear[AT_ONCE]:.1f}", linear[AT_ONCE] > 90),
        above(inflora, ("SeqLoRA", last("SeqLoRA", "acc"))),
        above(inflora, (BY_TASK, linear[BY_TASK])),
        above(inflora, (AT_ONCE, linear[AT_ONCE])),
        above(vq, ("nearest class mean", last("NCM, no prompts", "faa"))),
        above(vq, vq_s),
        above(vq_s, soft),
        above(("MoE-Adapters", last("MoE-Adapters", "last")), zero_shot),
        above(("ZSCL", last("ZSCL", "last")), zero_shot),
        above(("IT-Prompt", last(it_prompt, "faa")), ("zero-shot CLIP", last("Zero-shot CLIP", "faa"))),
        above(("with prompts", last(with_cncm, "faa")), ("without", last(with_cncm, "cncm_u"))),
        above(*((name, fmean(curve)) for name, curve in alta.items())),
        above(*((name, curve[-1]) for name, curve in alta.items())),
        between("Zero-shot CLIP", last("Zero-shot CLIP", "accuracy", "mtil-order1")),
        between(*zero_shot),
        transfer_order(runs),
        routed_right(runs),
    ]


@dataclass(frozen=True)
class Options:
    runs: list[Path] = option(help="folders of runs", positional=True)


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    records, _, _ = read_runs(read(Options, argv, "docs.claims", __doc__ or "").runs)
    runs = Runs([line for line in records if line.scale == MINI])
    for number, (measured, shown) in enumerate(claims(runs), 1):
        print(f"{number:2} {'yes' if shown else 'no '} {measured}")


if __name__ == "__main__":
    main()
