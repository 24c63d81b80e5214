"""Names of protocols: what every record, published table and plan says is read and written back letter by letter."""

import csv
import json
from pathlib import Path

import pytest

from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2, Protocol
from results.launch.plan import read_plan, table_names

ROOT = Path(__file__).parents[2]


def names_in_use() -> set[str]:
    """Every protocol's name in the golden records, the published tables and the plans."""
    names = set()
    for path in (ROOT / "tests" / "golden").rglob("*record.jsonl"):
        names |= {json.loads(line)["protocol"] for line in path.read_text().splitlines()}
    for path in (ROOT / "results" / "papers").glob("*.csv"):
        with open(path, newline="") as file:
            names |= {row["protocol"] for row in csv.DictReader(file)}
    return names | {row.protocol for table in table_names() for row in read_plan(table).rows}


def test_every_name_in_use_is_known_and_comes_back() -> None:
    names = names_in_use()
    assert len(names) > 45
    assert {name: str(Protocol.parse(name)) for name in names} == {name: name for name in names}
    assert all(Protocol.parse(name).kind for name in names)
    assert len({Protocol.parse(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("mtil-order1-5shot", Protocol("mtil", "order1", shots=5)),
        ("mtil-custom", Protocol("mtil", "custom")),  # of earlier versions
        ("mtil-custom-DTD+Food-5shot", Protocol("mtil", "custom-DTD+Food", shots=5)),
        ("mtil-leba-a", Protocol("mtil", "leba-a")),
        ("cil-cifar100-10x10", Protocol("cil", "cifar100", 10, 10)),
        ("cil-tinyimagenet-100+5x20", Protocol("cil", "tinyimagenet", 5, 20, 100)),
        ("til-cifar10-5x2-buffer200", Protocol("til", "cifar10", 5, 2, buffer=200)),
        ("cil-domainnet-10", Protocol("cil", "domainnet", 10)),
        ("dil-domainnet", Protocol("dil", "domainnet")),
        ("joint-imagenet_r", Protocol("joint", "imagenet_r")),
        ("common-imagenet_r", Protocol("common", "imagenet_r")),
        ("cil-imagenet_r-10x20-first3", Protocol("cil", "imagenet_r", 10, 20, first=3)),
        ("cil-characters-10x4-first1-validation", Protocol("cil", "characters", 10, 4, first=1, validation=True)),
        ("joint-cub200-validation", Protocol("joint", "cub200", validation=True)),
        ("something new", Protocol("", "something new")),
        ("cil-", Protocol("", "cil-")),
    ],
)
def test_a_name_and_its_protocol(name: str, protocol: Protocol) -> None:
    assert Protocol.parse(name) == protocol and str(protocol) == name


def test_the_order_of_mtil_is_the_papers() -> None:
    names = ("mtil-order1", "mtil-order2-5shot", "mtil-custom", "cil-order1", "order1")
    assert [Protocol.parse(name).order for name in names] == [MTIL_ORDER_1, MTIL_ORDER_2, (), (), ()]


def test_the_order_of_another_sequence_is_in_its_name() -> None:
    assert Protocol.parse("mtil-custom-SUN397").order == ("SUN397",)
    assert Protocol.parse("mtil-custom-DTD+Food+MNIST-16shot").order == ("DTD", "Food", "MNIST")
    assert Protocol.parse("cil-custom_dtd").order == ()


def test_the_number_of_tasks_is_in_the_name() -> None:
    names = ("mtil-order1-5shot", "cil-cifar100-10x10", "cil-tinyimagenet-100+5x20", "joint-cub200", "cil-vtab", "x")
    assert [Protocol.parse(name).length for name in names] == [11, 10, 6, 1, None, None]
    assert Protocol.parse("mtil-custom-DTD+Food+MNIST-5shot").length == 3
    parts = ("mtil-custom", "cil-cifar100-10x10-first3", "cil-cifar100-10x10-validation")
    assert [Protocol.parse(name).length for name in parts] == [None, None, None]
