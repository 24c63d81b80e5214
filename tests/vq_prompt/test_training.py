"""Learning rates, the loop of a task, and whole runs of two tasks: the official code's numbers."""

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR

from common.errors import UserError
from tests.golden_files import Golden
from tests.vq_prompt.networks import golden_network
from vq_prompt.classifier import ClassStatistics, retrain, task_statistics
from vq_prompt.options import VQOptions, check_schedule
from vq_prompt.training import coswm, task_rate, train_task, warm_cosine

close = torch.testing.assert_close
RUNS = ("train_two_tasks_coswm", "train_two_tasks_cosine")


# Learning rates



def test_rates_of_every_published_run():
    golden = Golden("vq_prompt/lr_schedules")
    for name, run in golden.meta["runs"].items():
        schedule = [run["freeze_iters"], run["warmup_epochs"], run["epochs"]]
        rate = task_rate("coswm", schedule, run["iter_step"], batches=run["updates"] // run["epochs"])
        found = [[rate(update, base) for base in golden.meta["base"]] for update in range(run["updates"])]
        close(torch.tensor(found, dtype=torch.float64), golden[name], rtol=0, atol=1e-12, msg=name)
    rate = task_rate("cosine", [20], 5, batches=4)
    found = [[rate(4 * epoch + 3, base) for base in golden.meta["base"]] for epoch in range(20)]
    close(torch.tensor(found, dtype=torch.float64), golden["cub200_10_per_epoch"], rtol=0, atol=1e-12)
    for old in (10, 90):
        found = [[coswm(update, 1e-5, 0, 0, 10 * old, 1e-4)] for update in range(10 * old)]
        close(torch.tensor(found, dtype=torch.float64), golden[f"ca_old{old}_epochs10"], rtol=0, atol=1e-12)


def test_the_first_update_is_at_the_full_rate_and_the_tail_at_the_final_one():
    """Quirk: the scheduler is stepped behind the optimiser; `coswm_first_step_full_lr` off begins with the table."""
    rate, table = task_rate("coswm", [2, 1, 3], 4, 5), [warm_cosine(i, 0.1, 2, 4, 12) for i in range(12)]
    assert [rate(i, 0.1) for i in range(13)] == [0.1, *table]
    assert table[:2] == [1e-6] * 2 and table[2] == 0 and table[5] == pytest.approx(0.1) == table[6]
    assert rate(13, 0.1) == rate(500, 0.1) == 1e-6
    plain = task_rate("coswm", [2, 1, 3], 4, 5, first_full=False)
    assert [plain(i, 0.1) for i in range(12)] == table


def test_decay_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler, rate = MultiStepLR(optimizer, [2, 5, 7], 0.1), task_rate("decay", [2, 5, 7], 0, batches=3)
    for epoch in range(7):
        assert rate(3 * epoch, 0.3) == rate(3 * epoch + 2, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "kind, schedule, iter_step, told",
    [
        ("coswm", [20], 40, "give .freeze iterations, warm-up epochs, epochs"),
        ("coswm", [800, 0, 20], 40, "no iterations are left"),
        ("coswm", [80, 0, 20], 0, "no iterations are left"),
        ("cosine", [], 0, "the last one the epochs"),
        ("decay", [3, 0], 0, "the last one the epochs"),
        ("cosine", [2.5], 0, "give whole numbers"),
    ],
)
def test_schedules_that_give_no_rates(kind, schedule, iter_step, told):
    with pytest.raises(UserError, match=told):
        check_schedule(kind, schedule, iter_step)


# Whole runs


class StoredOrder:
    """A task's images in the recorded order of every epoch."""

    def __init__(self, golden, task, dtype=torch.float64):
        position = {original: place for place, original in enumerate(golden.meta["class_order"])}
        self.images = golden["train_x"][task].to(dtype)
        self.labels = torch.tensor([position[label] for label in golden["train_y"][task].tolist()])
        self.order, self.size = golden["batch_perm"][task], golden.meta["batch_size"]

    def __len__(self):
        return self.order.shape[1] // self.size

    def __getitem__(self, step):
        epoch, batch = divmod(step, len(self))
        rows = self.order[epoch, batch * self.size : (batch + 1) * self.size]
        return self.images[rows], self.labels[rows]


def options_of(meta):
    keys = ("schedule_type", "schedule", "iter_step", "lr", "prompt_lr_mult", "weight_decay", "ca_lr", "ca_weight_decay")
    return VQOptions(**{key: meta[key] for key in keys}, crct_epochs=meta["ca_epochs"])


def train(golden, network, task, seen_rates, snapshots):
    """Train one task, noting every update's rates and comparing the parameters where the fixture has them."""
    per_task, batches = golden.meta["classes_per_task"], StoredOrder(golden, task)
    first, options = task * per_task, options_of(golden.meta)
    trained = {key: value for key, value in network.named_parameters() if value.requires_grad}

    def steps(stage, total, state):
        for step in range(total):
            if step == 0:
                with torch.no_grad():
                    logits = network.last(network(batches[0][0])[0])
                close(logits, golden["first_logits"][task].double(), rtol=1e-6, atol=1e-6)
            yield step
            seen_rates.append([group["lr"] for group in state["optimizer"].param_groups])
            for key, value in golden.under(f"snap/t{task}_it{step + 1}/").items():
                close(trained[key].detach(), value.double(), rtol=1e-6, atol=1e-6, msg=f"{task} {step} {key}")
                snapshots.append(key)

    return train_task(network, range(first, first + per_task), batches, options, "stage", steps)


@pytest.mark.parametrize("name", RUNS)
def test_two_tasks_from_training_to_test(name):
    golden = Golden(f"vq_prompt/{name}")
    meta, network = golden.meta, golden_network(Golden(f"vq_prompt/{name}"), torch.float64)
    per_task, rates, logs, statistics, snapshots = meta["classes_per_task"], [], [], None, []
    for task in range(2):
        logs.append(train(golden, network, task, rates, snapshots))
        batches, classes = StoredOrder(golden, task), range(task * per_task, (task + 1) * per_task)
        with torch.no_grad():
            features = network(batches.images)[0]
        found = task_statistics(features, batches.labels, classes, 1, seed=0)
        close(found.means, golden[f"mean_{task}"].double(), rtol=1e-6, atol=1e-6)
        close(found.variances, golden[f"var_{task}"].double(), rtol=1e-6, atol=1e-6)
        statistics = found if statistics is None else ClassStatistics.joined([statistics, found])
    assert len(snapshots) > 20
    close(torch.tensor(rates, dtype=torch.float64), golden["lr"].double(), rtol=1e-6, atol=1e-12)
    close(torch.cat([log["loss"] for log in logs]), golden["loss"].double(), rtol=1e-6, atol=1e-6)
    close(torch.cat([log["prompt_loss"] for log in logs]), golden["prompt_loss"].double(), rtol=1e-6, atol=1e-6)
    draws = zip(golden["ca_samples"].double(), golden["ca_perm"])
    log = retrain(network.last, draws, statistics.labels, 2 * per_task, per_task, options_of(meta))
    close(torch.tensor(log.loss).double(), golden["ca_loss"].double(), rtol=1e-6, atol=1e-6)
    close(torch.tensor(log.lr).double(), golden["ca_lr"].double().flatten(), rtol=1e-6, atol=1e-12)
    close(network.last.weight.detach(), golden["ca_weight"].double(), rtol=1e-6, atol=1e-6)
    close(network.last.bias.detach(), golden["ca_bias"].double(), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        logits = network.last(network(golden["test_x"].double())[0])
    close(logits, golden["test_logits"].double(), rtol=1e-6, atol=1e-6)
    position = {original: place for place, original in enumerate(meta["class_order"])}
    truth = torch.tensor([position[label] for label in golden["test_y"].tolist()])
    hits = (logits[:, : 2 * per_task].argmax(dim=1) == truth).double()
    accuracy = torch.stack([100 * hits[truth // per_task == task].mean() for task in range(2)])
    close(accuracy, golden["test_acc"].double().flatten(), rtol=0, atol=1e-4)


def plain_steps(stage, total, state):
    yield from range(total)


def test_rows_of_other_classes_do_not_move():
    """AdamW without decay on gradients of zero; the backbone is in no group."""
    golden = Golden("vq_prompt/train_two_tasks_coswm")
    network, batches = golden_network(golden), StoredOrder(golden, 1, torch.float32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    log = train_task(network, range(3, 6), batches, options_of(golden.meta), "stage", plain_steps)
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("feat."))
    assert torch.equal(after["last.weight"][:3], before["last.weight"][:3])
    assert all((after[key] != before[key]).any() for key in before if not key.startswith("feat."))
    assert (log["loss"] > log["prompt_loss"]).all()


def test_saved_state_takes_a_task_up_again():
    """Stopped after four updates and taken up by a fresh network: the same parameters and log, bit for bit."""
    golden, saved = Golden("vq_prompt/train_two_tasks_coswm"), {}
    batches = StoredOrder(golden, 0, torch.float32)
    options = options_of(golden.meta)

    def stopped(stage, total, state):
        yield from range(4)
        saved.update({name: _copy(item.state_dict()) for name, item in state.items()})

    def resumed(stage, total, state):
        for name, item in state.items():
            item.load_state_dict(saved[name])
        yield from range(4, total)

    whole, again = golden_network(golden), golden_network(golden)
    full = train_task(whole, range(3), batches, options, "stage", plain_steps)
    train_task(golden_network(golden), range(3), batches, options, "stage", stopped)
    log = train_task(again, range(3), batches, options, "stage", resumed)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert torch.equal(full["loss"], log["loss"]) and torch.equal(full["prompt_loss"], log["prompt_loss"])


def _copy(item):
    if isinstance(item, torch.Tensor):
        return item.clone()
    if isinstance(item, dict):
        return {key: _copy(value) for key, value in item.items()}
    return [_copy(value) for value in item] if isinstance(item, list) else item
