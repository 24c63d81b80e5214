"""What the class-incremental entry points share: random streams, options, the folder of a run."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from common.cil import PURPOSES, CILOptions, check_options, learning_rate, load_protocol, scale_of, stream_seed
from common.errors import UserError

OPTIONS = CILOptions(
    dataset="characters", dataset_root="mini", class_order="class_orders/mini.yaml", initial_increment=4, increment=4,
    prompt_template="a photo of the {}.", method="finetune", lr=1e-3, model_name="mini",
)  # fmt: skip


def test_every_stream_of_every_task_has_its_own_seed() -> None:
    seeds = [stream_seed(*key) for key in product((0, 1, 42), range(50), PURPOSES)]
    assert len(set(seeds)) == len(seeds) == 3 * 50 * len(PURPOSES)


def test_rates_of_a_long_task() -> None:
    """Linear to the peak in 30 steps, a cosine to 0 at step T."""
    rates = [learning_rate(step, 2.0, 130) for step in range(131)]
    assert rates[:30] == pytest.approx([2 * (step + 1) / 30 for step in range(30)])
    assert rates[30] == 2.0 and rates[80] == pytest.approx(1.0) and rates[130] == 0.0


def test_the_miniature_as_a_protocol() -> None:
    found = load_protocol(OPTIONS, 32)
    assert (found.name, found.dataset, len(found.scenario.tasks)) == ("cil-characters-10x4", "Characters", 10)
    assert len(found.tokens) == 40 and len(found.train) == 2000 and len(found.test) == 600
    assert sorted(set(found.test.labels)) == list(range(40))
    assert found.test[0][0].shape == (3, 32, 32) and found.test[0][0].dtype == torch.float32
    centre = load_protocol(replace(OPTIONS, eval_transform="test"), 32)
    assert centre.test[0][0].dtype == torch.uint8
    assert load_protocol(replace(OPTIONS, initial_increment=40), 32).name == "joint-characters"
    assert load_protocol(replace(OPTIONS, initial_increment=20), 32).name == "cil-characters-20+5x4"


def test_a_class_order_of_another_data_set() -> None:
    with pytest.raises(UserError, match="the class order has 100 classes, the data set has 40"):
        load_protocol(replace(OPTIONS, class_order="class_orders/cifar100.yaml"), 32)


@pytest.mark.parametrize(
    "changes, scale",
    [({}, "mini"), ({"model_name": "ViT-B/16"}, "mini"), ({"dataset_root": "data", "model_name": "ViT-B/16"}, "paper")],
)
def test_scale(changes: dict[str, str], scale: str) -> None:
    assert scale_of(replace(OPTIONS, **changes)) == scale


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval_transform": "Train"}, "eval_transform=Train: unknown. Did you mean train? Known are train, test."),
        ({"scenario": "domain"}, "scenario=domain: unknown."),
        ({"dataset_root": ""}, "dataset_root is missing"),
        ({"class_order": ""}, "class_order is missing"),
        ({"prompt_template": "a photo"}, "prompt_template needs {}"),
        ({"batch_size": 0}, "batch_size=0: give a number above 0."),
        ({"lr": -1.0}, "lr=-1.0: give a number above 0."),
        ({"epochs": 0}, "epochs=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"ls": 1.0}, "ls=1.0"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    check_options(OPTIONS)
    with pytest.raises(UserError) as caught:
        check_options(replace(OPTIONS, **changes))
    assert message in str(caught.value)
