"""What the class-incremental entry points share: random streams, options, the folder of a run."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.incremental.data import check_scenario, load_data, read_scenario
from common.incremental.options import PURPOSES, CILOptions, find_configuration, missing_rules
from common.incremental.run import scale_of
from common.incremental.tasks import stream_seed
from common.options import check_rules, read
from common.training.schedules import cil_cosine_with_warmup

OPTIONS = CILOptions(
    dataset="characters", dataset_root="mini", class_order="class_orders/mini.yaml", initial_increment=4, increment=4,
    prompt_template="a photo of the {}.", lr=1e-3, model_name="mini", config_name="none.yaml",
)  # fmt: skip


def test_every_stream_of_every_task_has_its_own_seed() -> None:
    seeds = [stream_seed(*key, PURPOSES) for key in product((0, 1, 42), range(50), PURPOSES)]
    assert len(set(seeds)) == len(seeds) == 3 * 50 * len(PURPOSES)


def test_rates_of_a_long_task() -> None:
    """Linear to the peak in 30 steps, a cosine to 0 at step T."""
    rates = [cil_cosine_with_warmup(step, 2.0, 130) for step in range(131)]
    assert rates[:30] == pytest.approx([2 * (step + 1) / 30 for step in range(30)])
    assert rates[30] == 2.0 and rates[80] == pytest.approx(1.0) and rates[130] == 0.0


def test_the_miniature_as_a_protocol() -> None:
    found = load_data(OPTIONS, 32)
    assert (found.protocol, found.dataset, len(found.scenario.tasks)) == ("cil-characters-10x4", "Characters", 10)
    assert len(found.tokens) == 40 and len(found.train) == 2000 and len(found.test) == 600
    assert sorted(set(found.test.labels)) == list(range(40))
    assert found.test[0][0].shape == (3, 32, 32) and found.test[0][0].dtype == torch.float32
    centre = load_data(replace(OPTIONS, eval_transform="test"), 32)
    assert centre.test[0][0].dtype == torch.uint8
    assert load_data(replace(OPTIONS, initial_increment=40), 32).protocol == "joint-characters"
    assert load_data(replace(OPTIONS, initial_increment=20), 32).protocol == "cil-characters-20+5x4"


def test_a_class_order_of_another_data_set() -> None:
    with pytest.raises(UserError, match="the class order has 100 classes, the data set has 40"):
        load_data(replace(OPTIONS, class_order="class_orders/cifar100.yaml"), 32)


def test_common_ground_is_the_seeds_order_and_the_centred_test() -> None:
    path = "class_orders/common/{dataset}-seed{seed}.yaml"
    options = replace(OPTIONS, protocol="common", class_order=path, seed=1, eval_transform="test")
    check_scenario(options)
    assert read_scenario(options).class_order[:5] == (2, 31, 3, 21, 27)  # of numpy's permutation under seed 1
    mini = "class_orders/mini.yaml"
    wrong = {"give eval_transform=test": {"eval_transform": "train"}, "not in the seed's order": {"class_order": mini},
             "under seed 42 is not": {"class_order": mini, "seed": 42}}  # fmt: skip
    for message, changes in wrong.items():
        check_scenario(replace(options, **changes, protocol=None))
        with pytest.raises(UserError, match=message):
            check_scenario(replace(options, **changes))


@pytest.mark.parametrize(
    "changes, scale",
    [({}, "mini"), ({"model_name": "ViT-B/16"}, "mini"), ({"dataset_root": "data", "model_name": "ViT-B/16"}, "paper")],
)
def test_scale(changes: dict[str, str], scale: str) -> None:
    assert scale_of(replace(OPTIONS, **changes)) == scale


WORDS = [
    "--config-name=x", "dataset=cifar100", "dataset_root=data", "class_order=x.yaml", "initial_increment=10",
    "increment=10", "prompt_template=a photo of the {}.", "lr=1e-3", "hydra.run.dir=run",
]  # fmt: skip


def given(*words: str) -> CILOptions:
    """The options of a command line without a file."""
    return read(CILOptions, [*WORDS, *words], "common.incremental")


@pytest.mark.parametrize(
    "word, message",
    [
        ("eval_transform=Train", "eval_transform Train: unknown. Did you mean train? Known are train, test."),
        ("scenario=domain", "scenario domain: unknown."),
        ("dataset=cifar", "dataset: unknown data set 'cifar'."),
        ("prompt_template=a photo", "prompt_template a photo: give {} once"),
        ("prompt_template={} and {}", "give {} once"),
        ("initial_increment=0", "initial_increment 0: give 1 or more."),
        ("increment=0", "increment 0: give 1 or more."),
        ("batch_size=0", "batch_size 0: give 1 or more."),
        ("lr=-1", "lr -1.0: give more than 0."),
        ("lr=nan", "lr nan: give"),
        ("weight_decay=-0.1", "weight_decay -0.1: give 0 or more."),
        ("epochs=0", "epochs 0"),
        ("warmup=-1", "warmup -1"),
        ("ls=1", "ls 1.0"),
        ("seed=-1", "seed -1"),
        ("model_name=", "model_name: it is empty."),
        ("log_path=../metrics.json", "log_path ../metrics.json: give a file's name"),
        ("log_path=record.jsonl", "a file of that name is the run's own"),
        ("log_path=run-checksums", "a file of that name is the run's own"),
    ],
)
def test_values_that_make_no_sense(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        given(word)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["dataset_root", "class_order"])
def test_what_the_files_leave_empty(key: str) -> None:
    check_rules(missing_rules(given()))
    with pytest.raises(UserError, match=f"^{key} is missing"):
        check_rules(missing_rules(given(f"{key}=")))


def test_a_configuration_is_looked_for_in_the_papers_folder_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paper" / "configs").mkdir(parents=True)
    (tmp_path / "paper" / "configs" / "ten.yaml").write_text("increment: 10")
    (tmp_path / "five.yaml").write_text("increment: 5")
    monkeypatch.chdir(tmp_path)

    def found(**words: str) -> Mapping[str, Any]:
        return find_configuration(tmp_path / "paper")(words)[0]

    assert found(config_path="configs", config_name="ten.yaml") == {"increment": 10}
    assert found(config_path="configs", config_name="ten") == found(config_name="configs/ten") == {"increment": 10}
    assert found(config_name="five.yaml") == {"increment": 5}
    with pytest.raises(UserError, match=r"^--config-name tan.yaml: none in .* Did you mean ten.yaml\?"):
        found(config_path="configs", config_name="tan.yaml")
    with pytest.raises(UserError, match="^--config-name: missing. There are configs/ten.yaml.$"):
        found()
