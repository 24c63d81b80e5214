"""IT-Prompt with its two softmax parts (ACM MM Asia 2024), from the command line to the records.

CIFAR-100's classes in the one order that IT-Prompt has for it, in tasks of 4, 3, 3, ...; the first three are learnt,
under two seeds. Every option has a value of its own.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode

from tests.vq_prompt.it_prompt.plain import (
    CLIP_MEAN, CLIP_STD, FEATURES, annealed, by_optimizer, centroids_of, class_distances, clip_features, crop_box,
    model_after, rates, text_features, values, write_cifar100, write_clip,
)  # fmt: skip
from tests.whole_run import float64, watched
from vq_prompt.run import main

ORDER = [87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10]  # of class_orders/cifar100: the first four tasks
TASKS = [range(0, 4), range(4, 7), range(7, 10)]
TRAIN = dict(zip(ORDER[:10], (3, 5, 2, 4, 5, 3, 4, 4, 3, 5)))
TEST = dict(zip(ORDER, (3, 4, 5, 4, 3, 5, 4, 4, 5, 3, 4, 4, 3)))
TEMPLATE, LAYERS, SEEDS = "a blurry {}, seen", [0, 2], (7, 5)
OPTIONS = [
    "first_split_size=4", "other_split_size=3", "max_task=3", "batch_size=6", "epochs=2", "lr=0.013",
    "weight_decay=0.21", f"prompt_layers={LAYERS}", "prompt_length=4", "prompt_init=0.4", f"template={TEMPLATE}",
    "text_classes=seen", "logit_scale=30", "lambda_text=0.7", "lambda_key=1.9", "tpi_hidden=11", "rebalance_epochs=3",
    "rebalance_per_class=4", "rebalance_batch=9", "rebalance_lr=0.031", "n_clusters=2",
]  # fmt: skip
PARTS = [f"{part}.{kind}" for part in ("head", "selector.fc", "selector.classifier") for kind in ("weight", "bias")]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(scope="module", autouse=True)
def many_digits():
    with float64():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The pictures and CLIP's weights, as written and as the run reads them."""
    root = tmp_path_factory.mktemp("it_whole")
    pictures = write_cifar100(root / "data", TRAIN, TEST)
    write_clip(root / "clip.pt", ORDER, pictures.names, TEMPLATE)
    weights = {key: value.double() for key, value in torch.load(root / "clip.pt", weights_only=True).items()}
    return root, pictures, weights


@pytest.fixture(scope="module")
def run(world):
    """The run's output folder, and its stages: by seed three tasks' training, from the second on both re-balancings."""
    root, out = world[0], world[0] / "out"
    command = ["--config", "configs/cifar-100_it_prompt.yaml", "--learner_type", "it_prompt", "--no-verify"]
    command += ["--learner_name", "ITPrompt", "--repeat", "2", "--seeds", *map(str, SEEDS), "--workers", "0"]
    command += ["--log_dir", str(out), "--device", "cpu"]
    files = [f"dataroot={root / 'data'}", f"clip_weights={root / 'clip.pt'}"]
    with watched("randn", "randperm") as seen:
        main([*command, "--set", *OPTIONS, *files])
    found = by_optimizer(seen)
    names = [(0, "train"), *((task, name) for task in (1, 2) for name in ("train", "selector", "head"))]
    assert len(found) == 2 * len(names)
    return out, [dict(zip(names, found[: len(names)])), dict(zip(names, found[len(names) :]))]


def plain_run(world, stages, seed):
    """The whole method, written out. Taken from the run: its batches, its noise, its initial values."""
    _, pictures, weights = world
    text = text_features(weights, pictures.names, TEMPLATE)
    own_text = text[ORDER]  # in class order
    views, labels = pictures.of("test", ORDER)
    test_u = clip_features(weights, views)
    start = stages[0, "train"][0]["step"].start[0]
    parts = {name: value.requires_grad_() for name, value in zip(PARTS, [v.clone() for v in start[2:]])}

    def head(z):
        return F.linear(z, parts["head.weight"], parts["head.bias"])

    def selector(u):
        hidden = F.relu(F.linear(u, parts["selector.fc.weight"], parts["selector.fc.bias"]))
        return F.linear(hidden, parts["selector.classifier.weight"], parts["selector.classifier.bias"])

    prompts, u_store, z_store, clusters, after = [], [], [], [], []
    for task, classes in enumerate(TASKS):
        first, seen = classes.start, classes.stop
        p, k = (value.clone() for value in stages[task, "train"][0]["step"].start[0][:2])
        p = prompts[-1].clone() if task else p  # an entry starts as the one before, its key does not
        p.requires_grad_(), k.requires_grad_()

        def training_losses(step):
            images, targets = step["batch"]
            with torch.no_grad():
                u = clip_features(weights, images)
            z = clip_features(weights, images, p, LAYERS)
            own = targets - first
            cls = F.cross_entropy(head(z)[:, first:seen], own)
            guide = F.cross_entropy(30 * z @ own_text[:seen].T, targets)  # text_classes: seen
            key = (1 - u @ (k / k.norm())).mean()
            sel = F.cross_entropy(selector(u)[:, first:seen], own)
            total = cls + 0.7 * guide + 1.9 * key
            return {"total": total, "cls": cls, "text": guide, "key": key, "sel": sel, "loss": total + sel}

        losses = {"train": annealed([p, k, *parts.values()], stages[task, "train"], 0.013, 0.21, training_losses)}
        prompts.append(p.detach())

        # one look at the task's pictures under the test transform: what is kept of each class for ever
        images, targets = pictures.of("train", ORDER, task=classes)
        u, z = clip_features(weights, images), clip_features(weights, images, prompts[task], LAYERS)
        for label in classes:
            for store, features in ((u_store, u[targets == label]), (z_store, z[targets == label])):
                store.append((features.mean(dim=0), features.var(dim=0, correction=0)))
            clusters.append(centroids_of(u[targets == label], 2, seed))

        # both softmax parts anew over all classes seen, on unit vectors drawn around what is kept
        for name, part, store in (("selector", selector, u_store), ("head", head, z_store)) if task else ():
            means, variances = (torch.stack(values) for values in zip(*store))

            def rebalance_loss(numbered):
                number, step = numbered
                batch = 9 * (number % -(-4 * seen // 9))  # the last batch of an epoch may be smaller
                samples = F.normalize(means[:, None] + variances.sqrt()[:, None] * step["randn"], dim=-1)
                rows = step["randperm"][batch : batch + 9]
                drawn, targets = samples.flatten(0, 1)[rows], torch.arange(seen).repeat_interleave(4)[rows]
                return {"loss": F.cross_entropy(part(drawn)[:, :seen], targets)}

            trained = [value for key, value in parts.items() if key.startswith(name)]
            losses[name] = annealed(trained, list(enumerate(stages[task, name])), 0.031, 0.0, rebalance_loss)

        # test: the entry by the selector's class, the class by the head, both among all classes seen
        rows = labels < seen
        with torch.no_grad():
            chosen = selector(test_u[rows])[:, :seen].argmax(dim=1)
            entries = task_of(chosen)
            z = clip_features(weights, views[rows], torch.stack(prompts)[entries], LAYERS)
            answers = {
                "accuracy": head(z)[:, :seen].argmax(dim=1),
                "cncm_u": class_distances(test_u[rows], clusters).argmin(dim=1),
                "zero_shot": (test_u[rows] @ own_text[:seen].T).argmax(dim=1),
            }
        everything = {"prompt": p, "key": k} | parts
        after.append(
            {
                "losses": losses,
                "tensors": {name: value.detach().clone() for name, value in everything.items()},
                "u": list(u_store), "z": list(z_store), "clusters": list(clusters), "entries": entries,
                "right": {name: answer == labels[rows] for name, answer in answers.items()},
            }
        )  # fmt: skip
    return after


def task_of(classes):
    return torch.tensor([next(task for task, own in enumerate(TASKS) if label in own) for label in classes.tolist()])


@pytest.fixture(scope="module")
def plain(world, run):
    return [plain_run(world, stages, seed) for stages, seed in zip(run[1], SEEDS)]


# Training


def test_losses_of_every_step(run, plain):
    """Training minimises L + L_sel; re-balancing the cross-entropy over all classes seen, selector first, then head."""
    for stages, after in zip(run[1], plain):
        for (task, name), steps in stages.items():
            expected = after[task]["losses"][name]["loss"]
            torch.testing.assert_close(torch.tensor([step["loss"] for step in steps]), expected, rtol=1e-9, atol=0)


def test_terms_of_the_loss_as_the_log_tells_them(run, plain):
    """L, L_cls, L_text, L_key and L_sel: means over the last epoch of each task, as printed."""
    log = (run[0] / "output.log").read_text()
    for task, size in enumerate((14, 12, 12)):
        told = re.findall(rf"task {task + 1}: losses of the last epoch: (.*)", log)
        for line, after in zip(told, plain, strict=True):
            losses = after[task]["losses"]["train"]
            steps = -(-size // 6)
            names = ("total", "cls", "text", "key", "sel")
            assert line == "  ".join(f"{name} {losses[name][-steps:].mean():.3f}" for name in names)


def test_rates_and_decay_of_every_step(run):
    """Two epochs of batches of six, the last one smaller; three epochs of nine samples. AdamW in one group, cosine."""
    steps = {"train": (6, 4, 4), "selector": (0, 12, 15), "head": (0, 12, 15)}
    for stages in run[1]:
        for (task, name), found in stages.items():
            peak, decay = (0.013, 0.21) if name == "train" else (0.031, 0.0)
            assert len(found) == steps[name][task]
            for rate, step in zip(rates(peak, len(found)), found):
                (group,) = step["step"].groups
                assert step["step"].kind == "AdamW"
                assert group["lr"] == pytest.approx(rate, rel=1e-12)
                assert (group["weight_decay"], group["betas"], group["eps"]) == (decay, (0.9, 0.999), 1e-8)


def test_trained_tensors_in_the_checkpoints(run, plain):
    """Entries of tasks past stay as they were learnt; head and selector go on from task to task."""
    for repeat, after in enumerate(plain):
        for task in range(3):
            saved = model_after(run[0], task, repeat + 1)["state_dict"]
            for name in PARTS:
                torch.testing.assert_close(saved[name], after[task]["tensors"][name], **CLOSE)
            for past in range(task + 1):
                torch.testing.assert_close(saved[f"prompt.p_{past}"], after[past]["tensors"]["prompt"], **CLOSE)
                torch.testing.assert_close(saved[f"prompt.k_{past}"], after[past]["tensors"]["key"], **CLOSE)


def test_initial_values(run):
    """Prompts and keys from U(-0.4, 0.4), the layers by torch's default; each seed has its own."""
    starts = [stages[0, "train"][0]["step"].start[0] for stages in run[1]]
    bounds = [0.4, 0.4, *[FEATURES**-0.5] * 4, *[11**-0.5] * 2]
    for start in starts:
        assert [tuple(value.shape) for value in start] == [
            (2, 4, 128), (20,), (100, 20), (100,), (11, 20), (11,), (100, 11), (100,),
        ]  # fmt: skip
        for value, bound in zip(start, bounds):
            assert 0.6 * bound < value.abs().max() <= bound and value.min() < 0 < value.max()
    assert not any(torch.equal(one, other) for one, other in zip(*starts))
    keys = [stages[task, "train"][0]["step"].start[0][1] for stages in run[1] for task in range(3)]
    assert all(0.6 * 0.4 < key.abs().max() <= 0.4 for key in keys)
    assert len({tuple(key.tolist()) for key in keys}) == 6
    for number in (1, 2, 4, 5):  # no key starts as the one before was left
        trained = model_after(run[0], number % 3 - 1, number // 3 + 1)["state_dict"][f"prompt.k_{number % 3 - 1}"]
        assert (keys[number] - trained).abs().mean() > 0.1


# Streams


def test_training_batches_are_shuffled_crops_of_the_tasks_pictures(world, run):
    """Each epoch has every picture once, in another order: crops of 8 to 100 %, bicubic, half of them mirrored."""
    orders, boxes = [], []
    for stages in run[1]:
        for task, classes in enumerate(TASKS):
            counts = [TRAIN[ORDER[label]] for label in classes]
            steps = stages[task, "train"]
            half = len(steps) // 2
            for epoch in (steps[:half], steps[half:]):
                sizes = [len(step["batch"][1]) for step in epoch]
                assert sizes[:-1] == [6] * (half - 1) and sum(sizes) == sum(counts)
                drawn = torch.cat([step["batch"][1] for step in epoch])
                assert (drawn - classes.start).bincount().tolist() == counts
                orders.append(drawn.tolist())
    assert len({tuple(order) for order in orders}) == len(orders)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    for step in run[1][0][0, "train"]:
        for view, label in zip(*step["batch"]):
            candidates = [image for image, original in world[1].train if original == ORDER[label]]
            boxes.append(crop_box(view * std + mean, candidates, InterpolationMode.BICUBIC))
    shares, flips = zip(*boxes)
    assert min(shares) < 0.3 and max(shares) > 0.7 and 0.2 < np.mean(flips) < 0.8


def test_noise_of_rebalancing(run):
    """New samples and a new order in each epoch, of each part, task and seed: four samples a class."""
    noise, orders = [], []
    for stages in run[1]:
        for (task, name), steps in stages.items():
            if name == "train":
                continue
            seen = TASKS[task].stop
            per_epoch = len(steps) // 3
            for epoch in range(3):
                drawn = [step["randn"] for step in steps[per_epoch * epoch : per_epoch * (epoch + 1)]]
                assert all(torch.equal(drawn[0], other) for other in drawn)
                assert drawn[0].shape == (seen, 4, FEATURES)
                noise.append(drawn[0].flatten())
                orders.append(steps[per_epoch * epoch]["randperm"])
                assert sorted(orders[-1].tolist()) == list(range(4 * seen))
    for number, one in enumerate(noise):
        for other, order in zip(noise[number + 1 :], orders[number + 1 :]):
            shared = min(len(one), len(other))
            assert not torch.equal(one[:shared], other[:shared]) and not torch.equal(orders[number], order)


# Stores


def test_stores_hold_what_one_look_at_the_pictures_gives(run, plain):
    """Means and population variances of u and of z under the task's own entry, clusters of u; old classes untouched."""
    for repeat, after in enumerate(plain):
        for task in range(3):
            saved = model_after(run[0], task, repeat + 1)
            for store in ("u", "z"):
                means, variances = zip(*after[task][store])
                torch.testing.assert_close(torch.stack(saved[store]["means"]), torch.stack(means), **CLOSE)
                torch.testing.assert_close(torch.stack(saved[store]["variances"]), torch.stack(variances), **CLOSE)
            torch.testing.assert_close(saved["u"]["centroids"], after[task]["clusters"], **CLOSE)
            assert saved["z"]["centroids"] == []


# Records


def test_accuracies(world, run, plain):
    """Accuracy of each task after each, pooled, of the task's number, and what there is without prompts."""
    _, labels = world[1].of("test", ORDER)
    for repeat, after in enumerate(plain):
        folder = run[0] / f"repeat-{repeat + 1}"
        R, pooled = np.zeros((3, 3)), []
        for task, found in enumerate(after):
            true = task_of(labels[labels < TASKS[task].stop])
            by_task = {
                name: [100 * right[true == past].double().mean() for past in range(task + 1)]
                for name, right in found["right"].items()
            }
            R[: task + 1, task] = by_task["accuracy"]
            pooled.append(100 * found["right"]["accuracy"].double().mean())
            expected = {
                "accuracy": pooled[-1],
                "task_id_accuracy": (found["entries"] == true).double().mean(),
                "cncm_u": np.mean(by_task["cncm_u"]),
                "zero_shot": np.mean(by_task["zero_shot"]),
                "trainable_parameters": 2 * 4 * 128 + 20 + 21 * 100 + 21 * 11 + 12 * 100,
            }
            for metric, value in expected.items():
                assert values(folder, metric)[task + 1, "CIFAR100"] == pytest.approx(float(value), rel=1e-12), metric
        recorded = values(folder, "task_accuracy")
        assert len(recorded) == 6
        for (after_task, name), value in recorded.items():
            assert value == pytest.approx(R[int(name.removeprefix("task ")), after_task - 1], rel=1e-12)
        means = [R[: task + 1, task].mean() for task in range(3)]
        forgetting = np.mean(R[:2, :2].max(axis=1) - R[:2, 2])
        last = {"faa": means[2], "caa": np.mean(means), "forgetting": forgetting}
        last |= {"avg": np.mean(pooled), "last": pooled[2]}
        for metric, value in last.items():
            assert values(folder, metric)[3, "CIFAR100"] == pytest.approx(float(value), rel=1e-12), metric
        assert values(folder, "last").keys() == values(folder, "avg").keys() == {(3, "CIFAR100")}


def test_the_runs_answers_tell_mistakes(plain):
    """The accuracies above are neither all right nor all wrong, and prompts, clusters and texts answer differently."""
    for after in plain:
        right = [after[task]["right"] for task in (1, 2)]
        assert all(0 < answers.double().mean() < 1 for found in right for answers in found.values())
        assert all(len({tuple(answers.tolist()) for answers in found.values()}) == 3 for found in right)
        assert all(len(set(after[task]["entries"].tolist())) == task + 1 for task in (1, 2))


def test_plain_clip_on_classes_not_learnt(world, run):
    """Among the names of all hundred classes: each later task before the first one, and again just before itself."""
    _, pictures, weights = world
    text = text_features(weights, pictures.names, TEMPLATE)[[*ORDER, *(c for c in range(100) if c not in ORDER)]]
    expected = {}
    for task, classes in enumerate((range(4, 7), range(7, 10), range(10, 13)), start=1):
        views, labels = pictures.of("test", ORDER, task=classes)
        share = ((clip_features(weights, views) @ text.T).argmax(dim=1) == labels).double().mean()
        expected |= dict.fromkeys([(0, f"task {task}"), (task, f"task {task}")], 100 * float(share))
        assert 0 < share < 1
    for repeat in (1, 2):
        assert values(run[0] / f"repeat-{repeat}", "zero_shot_unseen") == pytest.approx(expected, rel=1e-12)
