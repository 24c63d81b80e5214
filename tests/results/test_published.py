"""The published tables: naming, sources, and that the printed means follow from the printed cells."""

import csv
import re
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest

from results import labels
from results.compare import AccuracyMatrix, mtil_means, published_matrices
from results.published import CURVES, PAPERS, Published, read_curves, read_published
from results.tables import PARAMETERS

PROTOCOL = re.compile(
    r"mtil-(order1|order2|leba-[ab])(-\d+shot)?"
    r"|(cil|til)-[a-z0-9_]+-(\d+\+)?\d+(x\d+)?(-buffer\d+)?"
    r"|joint-[a-z0-9_]+|dil-domainnet"
)
NOTEBOOK_METHODS = ("Fine-tuning", "LwF", "iCaRL", "LwF-VR", "WiSE-FT", "ZSCL*", "ZSCL")


def key(entry: Published) -> tuple[object, ...]:
    return (entry.paper, entry.protocol, entry.method, entry.backbone, entry.metric, entry.dataset, entry.after_task)


def zscl_matrices() -> dict[tuple[str, str], AccuracyMatrix]:
    return {(matrix.protocol, matrix.method): matrix for matrix in published_matrices(read_published("zscl"))}


def test_every_number_is_there_once_with_a_source_and_how_it_was_verified() -> None:
    entries = read_published()
    assert len(entries) == len({key(entry) for entry in entries})
    assert {entry.paper for entry in entries} == {"zscl", "moe_adapters", "inflora", "vq_prompt", "alta"}
    assert {entry.verified for entry in entries} == {"paper", "third party", "derived"}
    for entry in (*entries, *read_curves()):
        assert entry.source and entry.dataset and entry.method and np.isfinite(entry.value)
        assert PROTOCOL.fullmatch(entry.protocol), entry.protocol


def test_every_source_tells_who_printed_the_number() -> None:
    for entry in (*read_published(), *read_curves()):
        unknown = f"{entry.source}: say in results.labels.PRINTERS who printed it"
        assert len(labels.printed_by(entry.source)) <= len("Papers with Code"), unknown
        assert labels.printed_by(entry.source) != "counted here" or entry.metric == PARAMETERS, entry


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*.csv")), ids=lambda path: path.stem)
def test_a_file_holds_its_paper_and_names_no_local_path(path) -> None:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and (path == CURVES or {row["paper"] for row in rows} == {path.stem})
    assert "../" not in path.read_text() and "/work" not in path.read_text()


def test_filters() -> None:
    assert {entry.paper for entry in read_published("inflora")} == {"inflora"}
    both = read_published("moe_adapters", "mtil-order1")
    assert both and {(entry.paper, entry.protocol) for entry in both} == {("moe_adapters", "mtil-order1")}
    assert read_published(protocol="mtil-order9") == []


def test_one_spelling_a_method_and_a_dataset() -> None:
    entries = (*read_published(), *read_curves())
    for names in ({entry.method for entry in entries}, {entry.dataset for entry in entries}):
        assert len({re.sub(r"[^a-z0-9+*]", "", name.lower()) for name in names}) == len(names)
    assert not {"FT", "Continual-FT", "SGD", "JOINT", "Joint-Train.", "CODA-P", "Zero-shot"} & {
        entry.method for entry in entries
    }


def test_another_header_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "zscl.csv").write_text("paper,protocol,value\nzscl,mtil-order1,1.0\n")
    monkeypatch.setattr("results.published.PAPERS", tmp_path)
    with pytest.raises(ValueError, match="columns"):
        read_published()


def test_curves_are_steps_of_a_sequence() -> None:
    steps = {entry.after_task for entry in read_curves("moe_adapters", "cil-cifar100-10x10")}
    assert steps == set(range(1, 11))
    seeds = {entry.note for entry in read_curves("inflora", "cil-cifar100-10x10") if entry.metric == "accuracy"}
    assert seeds == {"seed 0", "seed 1", "seed 2", "seed 3", "seed 4", "seed 1993"}


def test_a_shuffled_class_order_is_a_method_of_its_own() -> None:
    curves = [entry for entry in read_curves("inflora") if "InfLoRA" in entry.method]
    shuffled = {entry.method for entry in curves if "/1993.log" in entry.source}
    assert shuffled == {"InfLoRA, shuffled class order"}
    assert {entry.method for entry in curves if "/1993.log" not in entry.source} == {"InfLoRA"}


def test_what_leaves_its_setting_open_says_so_first() -> None:
    unstated = [entry for entry in read_published() if "not stated" in entry.note or "does not" in entry.note]
    assert all(entry.note.startswith("setting not stated: ") for entry in unstated)
    found = {(entry.paper, entry.protocol, entry.method) for entry in unstated}
    assert found == {
        ("alta", "til-cifar100-10x10", "ALTA"),
        ("inflora", "cil-domainnet-10", "InfLoRA (re-run: VPT-NSP2)"),
        *(("moe_adapters", "mtil-order1-5shot", method) for method in ("MoE-Adapters", "ZSCL", "RAIL-Primal")),
    }


def test_each_source_of_a_number_is_seen() -> None:
    entries = [entry for entry in read_published() if entry.run_method != entry.method]
    assert {(entry.run_method, entry.method) for entry in entries} == {
        ("InfLoRA", "InfLoRA (released logs)"), ("VQ-Prompt", "VQ-Prompt (Figure 3a)"),
        ("VQ-Prompt-S", "VQ-Prompt-S (Figure 3a)"), ("ZSCL", "ZSCL (as listed by DPW)"),
        ("MoE-Adapters", "MoE-Adapters (as listed by LibContinual)"),
    }  # fmt: skip


def as_printed(value: float) -> float:
    """One decimal, ties to even as numpy in the authors' notebook, after the last bits of the sum are dropped.

    One number needs both: iCaRL's Transfer on MNIST, the mean of seven two-decimal cells, is 46.05, printed 46.0.
    """
    return float(np.around(np.around(value, 9), 1))


@pytest.mark.parametrize("protocol", ["mtil-order1", "mtil-order2"])
@pytest.mark.parametrize("method", NOTEBOOK_METHODS)
def test_zscl_means_follow_from_its_accuracy_matrices(method: str, protocol: str) -> None:
    triple = mtil_means(zscl_matrices()[protocol, method])
    printed = {
        (entry.metric, entry.dataset): entry.value
        for entry in read_published("zscl", protocol)
        if entry.method == method and entry.metric in ("transfer", "avg", "last")
    }
    sets = zscl_matrices()[protocol, method].rows
    computed = {("transfer", name): value for name, value in zip(sets[1:], triple.transfer_per_dataset)}
    for metric, values in (("avg", triple.avg_per_dataset), ("last", triple.last_per_dataset)):
        computed |= {(metric, name): value for name, value in zip(sets, values)}
    computed |= {("transfer", "mean"): triple.transfer, ("avg", "mean"): triple.avg, ("last", "mean"): triple.last}
    assert {name: as_printed(value) for name, value in computed.items()} == printed
    assert len(printed) == 10 + 11 + 11 + 3


@pytest.mark.parametrize("protocol", ["mtil-order1", "mtil-order2"])
def test_zscl_zero_shot_means_follow_from_its_row(protocol: str) -> None:
    entries = [entry for entry in read_published("zscl", protocol) if entry.method == "Zero-shot CLIP"]
    assert len(entries) == 35 and means_that_differ(entries) == {}


def means_that_differ(entries: list[Published]) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
    """(protocol, method, metric) of every printed mean that is not the mean of its printed cells: both."""
    cells, means = {}, {}
    for entry in entries:
        row = (entry.protocol, entry.method, entry.metric)
        value = Decimal(str(entry.value))
        if entry.dataset == "mean":
            means[row] = value
        else:
            cells.setdefault(row, []).append(value)
    computed = {
        row: (sum(values) / len(values)).quantize(Decimal("0.1"), ROUND_HALF_UP) for row, values in cells.items()
    }
    return {row: (means[row], value) for row, value in computed.items() if value != means[row]}


def mtil_tables(*protocols: str) -> list[Published]:
    return [
        entry
        for protocol in protocols
        for entry in read_published("moe_adapters", protocol)
        if entry.metric in ("accuracy", "transfer", "avg", "last")
    ]


def test_moe_adapters_row_means_follow_from_their_cells_but_for_the_flagged_misprint() -> None:
    entries = mtil_tables("mtil-order1", "mtil-order2")
    misprint = ("mtil-order1", "LwF", "transfer")
    assert means_that_differ(entries) == {misprint: (Decimal("58.9"), Decimal("56.9"))}
    assert len({(entry.protocol, entry.method, entry.metric) for entry in entries if entry.dataset != "mean"}) == 40
    flagged = [entry for entry in entries if "misprint" in entry.note]
    assert [(entry.protocol, entry.method, entry.metric) for entry in flagged] == [misprint]
    assert flagged[0].dataset == "mean" and flagged[0].value == 58.9


def test_the_sixteen_shot_rerun_prints_a_mean_of_unrounded_cells() -> None:
    differing = means_that_differ(mtil_tables("mtil-order1-16shot"))
    rerun = ("mtil-order1-16shot", "MoE-Adapters (re-run: DPW)", "transfer")
    assert differing == {rerun: (Decimal("69.3"), Decimal("69.4"))}


def test_both_papers_quote_the_same_order_1_numbers() -> None:
    quoted = {(e.method, e.metric, e.dataset): e for e in mtil_tables("mtil-order1")}
    own = {(e.method, e.metric, e.dataset): e for e in read_published("zscl", "mtil-order1") if not e.after_task}
    shared = quoted.keys() & own.keys()
    assert len(shared) > 150
    differing = {name for name in shared if quoted[name].value != own[name].value}
    assert differing == {("LwF", "transfer", "mean")}


def test_copied_digits_are_flagged_on_cifar100() -> None:
    for method in ("DualPrompt", "CODA-Prompt"):
        here = [e for e in read_published("vq_prompt", "cil-cifar100-10x10") if e.method == method]
        there = [e for e in read_published("vq_prompt", "cil-cub200-10x20") if e.method == method]
        assert [(e.metric, e.value, e.std) for e in here] == [(e.metric, e.value, e.std) for e in there]
        assert all(e.note.startswith("misprint likely") for e in here)
        assert not any("misprint" in e.note for e in there)
