"""IT-Prompt's documented options: two tasks of CUB-200 under each of a few settings.

They share one plain run, which tells them apart in an entry's training, in the stores and in the prediction.
"""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode

from common.mini import VIT_FILE
from common.vit import backbone_weights
from tests.vq_prompt.it_prompt.plain import (
    annealed,
    by_optimizer,
    centroids_of,
    class_distances,
    clip_features,
    crop_box,
    model_after,
    text_features,
    values,
    vit_features,
    vit_view,
    write_clip,
    write_cub200,
)  # fmt: skip
from tests.whole_run import float64, watched
from vq_prompt.run import main

SEED, DECAY, LAYERS = 3, 0.17, [0, 2]
ORDER = list(range(200))
random.Random(SEED).shuffle(ORDER)
TASKS = [range(0, 5), range(5, 8)]
TRAIN = dict(zip(ORDER[:8], (3, 4, 2, 5, 4, 3, 5, 4)))
TEST = dict(zip(ORDER[:8], (5, 4, 5, 4, 6, 5, 4, 3)))
NAMES = [f"Made-up Bird{label} of {label % 7}" for label in range(200)]
COMMON = [
    "first_split_size=5", "other_split_size=3", "max_task=2", "batch_size=5", "lr=0.02", f"weight_decay={DECAY}",
    "prompt_layers=[0,2]", "prompt_length=4", "lambda_key=1.6", "lambda_text=0.8", "n_clusters=2",
]  # fmt: skip
SETTINGS = {
    # by keys, within the entry's task, on transformed and centred features, raw mean distances; entries start anew
    "keys": (
        "ITPromptCNCM",
        "selector=key scope=task text_guide=cosine train_head=true init_from_prev=false tukey_beta=0.6 center=true "
        "renorm_centroids=false aggregate=mean epochs=2",
    ),
    # a ViT has no texts: the head's loss guides the entry; a softmax selector before C-NCM is re-balanced alone
    "vit": (
        "ITPromptCNCM",
        "backbone=vit_mini selector=softmax tpi_hidden=9 epochs=1 rebalance_epochs=4 rebalance_per_class=3 "
        "rebalance_batch=7 rebalance_lr=0.2",
    ),
    # the true entries and the texts' answer; a head is trained and not re-balanced
    "oracle": ("ITPrompt", "selector=oracle classifier=text train_head=true rebalance=false epochs=1"),
}
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture(scope="module", autouse=True)
def many_digits():
    with float64():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("it_options_whole")
    pictures = write_cub200(root / "data", TRAIN, TEST)
    write_clip(root / "clip.pt", ORDER[:8], NAMES, "a photo of {}")
    return root, pictures


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, world):
    """A setting, the run's output folder, and its stages."""
    root, out = world[0], world[0] / request.param
    learner, options = SETTINGS[request.param]
    command = ["--config", "configs/cub-200_it_prompt.yaml", "--learner_type", "it_prompt", "--no-verify"]
    command += ["--learner_name", learner, "--seeds", str(SEED), "--workers", "0", "--log_dir", str(out)]
    files = [f"dataroot={root / 'data'}", f"clip_weights={root / 'clip.pt'}"]
    with watched("randn", "randperm") as seen:
        main([*command, "--device", "cpu", "--set", *COMMON, *options.split(), *files])
    out = out.with_name(f"{out.name}-mini") if request.param == "vit" else out
    return request.param, out, by_optimizer(seen)


class Plain:
    """One setting's run, written out: the tower, what is trained, the stores, and after each task the answers."""

    def __init__(self, world, kind, stages):
        self.kind, self.stages, self.pictures = kind, stages, world[1]
        if kind == "vit":
            self.tower = vit_features, {key: value.double() for key, value in backbone_weights(VIT_FILE).items()}
            self.text, self.view, self.features = None, vit_view, 128
        else:
            weights = torch.load(world[0] / "clip.pt", weights_only=True)
            self.tower = clip_features, {key: value.double() for key, value in weights.items()}
            self.text = text_features(self.tower[1], [NAMES[label] for label in ORDER], "a photo of {}")
            self.view, self.features = None, 20
        start = [value.clone().requires_grad_() for value in stages[0][0]["step"].start[0]]
        self.head, self.selector = start[2:4], start[4:]
        self.prompts, self.keys, self.stores, self.gaussians = [], [], {"u": [], "z": []}, []
        self.center = {}

    def encode(self, images, prompts=None):
        function, weights = self.tower
        return function(weights, images, prompts, LAYERS)

    def select(self, u):
        return F.linear(F.relu(F.linear(u, *self.selector[:2])), *self.selector[2:])

    def train(self, task, classes, steps):
        p, k = (value.clone() for value in steps[0]["step"].start[0][:2])
        if task and self.kind != "keys":
            p = self.prompts[-1].clone()
        elif task:  # init_from_prev: false
            assert p.abs().max() <= 1 and (p - self.prompts[-1]).abs().mean() > 0.3
        p.requires_grad_(), k.requires_grad_()

        def losses_of(step):
            images, targets = step["batch"]
            with torch.no_grad():
                u = self.encode(images)
            z, own, columns = self.encode(images, p), targets - classes.start, slice(classes.start, classes.stop)
            loss = F.cross_entropy(F.linear(z, *self.head)[:, columns], own)
            loss = loss + 1.6 * (1 - u @ (k / k.norm())).mean()
            if self.kind == "keys":
                loss = loss + 0.8 * (1 - (z * self.text[targets]).sum(dim=1)).mean()
            if self.kind == "oracle":
                loss = loss + 0.8 * F.cross_entropy(100 * z @ self.text[columns].T, own)
            if self.kind == "vit":
                loss = loss + F.cross_entropy(self.select(u)[:, columns], own)
            return {"loss": loss}

        losses = annealed([p, k, *self.head, *self.selector], steps, 0.02, DECAY, losses_of)["loss"]
        self.prompts.append(p.detach()), self.keys.append(k.detach())
        return losses

    def phi(self, features, store):
        if self.kind == "keys":
            features = features.sign() * features.abs() ** 0.6 - self.center[store]
        return F.normalize(features, dim=1)

    def remember(self, task, classes):
        images, targets = self.pictures.of("train", ORDER, classes, self.view)
        found = {"u": self.encode(images), "z": self.encode(images, self.prompts[task])}
        for store, features in found.items():
            if self.kind == "keys" and task == 0:  # the mean of the first task's, for ever
                self.center[store] = (features.sign() * features.abs() ** 0.6).mean(dim=0)
            if store == "u" or self.kind != "oracle":
                phi = self.phi(features, store)
                own = [centroids_of(phi[targets == label], 2, SEED, renorm=self.kind != "keys") for label in classes]
                self.stores[store] += own
        members = [found["u"][targets == label] for label in classes]
        self.gaussians += [(own.mean(dim=0), own.std(dim=0, correction=0)) for own in members]

    def rebalance(self, steps):
        means, deviations = (torch.stack(values) for values in zip(*self.gaussians))
        per_epoch = -(-3 * 8 // 7)

        def losses_of(numbered):
            number, step = numbered
            rows = step["randperm"][7 * (number % per_epoch) :][:7]
            samples = F.normalize(means[:, None] + deviations[:, None] * step["randn"], dim=-1).flatten(0, 1)[rows]
            return {"loss": F.cross_entropy(self.select(samples)[:, :8], torch.arange(8).repeat_interleave(3)[rows])}

        assert len(steps) == 4 * per_epoch
        return annealed(self.selector, list(enumerate(steps)), 0.2, 0.0, losses_of)["loss"]

    @torch.no_grad()
    def answers(self, seen):
        """The true classes of the test pictures, the entries used, and the answers."""
        images, labels = self.pictures.of("test", ORDER, range(seen), self.view)
        u = self.encode(images)
        if self.kind == "keys":
            entries = torch.stack([F.cosine_similarity(u, key[None]) for key in self.keys], dim=1).argmax(dim=1)
        elif self.kind == "vit":
            entries = (self.select(u)[:, :seen].argmax(dim=1) >= 5).long()
        else:
            entries = (labels >= 5).long()
        z = self.encode(images, torch.stack(self.prompts)[entries])
        if self.kind == "oracle":
            return labels, entries, (z @ self.text[:seen].T).argmax(dim=1)
        aggregate = "mean" if self.kind == "keys" else "min"
        scores = -class_distances(self.phi(z, "z"), self.stores["z"], aggregate)
        if self.kind == "keys":  # scope: task
            outside = (torch.arange(seen) >= 5).long()[None] != entries[:, None]
            scores = scores.masked_fill(outside, -torch.inf)
        return labels, entries, scores.argmax(dim=1)


def test_run_against_plain_steps(world, run):
    """Losses of all steps, what the checkpoints hold, and the accuracies, task by task."""
    kind, out, found = run
    plain, folder = Plain(world, kind, found), out / "repeat-1"
    assert len(found) == (3 if kind == "vit" else 2)  # two trainings, and the ViT's re-balancing of its selector
    for task, classes in enumerate(TASKS):
        losses = [plain.train(task, classes, found[task])]
        plain.remember(task, classes)
        losses += [plain.rebalance(found[2])] if kind == "vit" and task else []
        for steps, expected in zip((found[task], found[2]) if len(losses) == 2 else (found[task],), losses):
            torch.testing.assert_close(torch.tensor([step["loss"] for step in steps]), expected, rtol=1e-9, atol=0)
        saved = model_after(out, task)
        for name, value in (("p", plain.prompts), ("k", plain.keys)):
            torch.testing.assert_close(saved["state_dict"][f"prompt.{name}_{task}"], value[task], **CLOSE)
        torch.testing.assert_close(saved["state_dict"]["head.weight"], plain.head[0].detach(), **CLOSE)
        for store, center in (("u", plain.center.get("u")), ("z", plain.center.get("z"))):
            torch.testing.assert_close(saved[store]["centroids"], plain.stores[store], **CLOSE)
            assert (saved[store]["center"] is None) == (center is None)
            if center is not None:
                torch.testing.assert_close(saved[store]["center"], center, **CLOSE)
        labels, entries, answers = plain.answers(classes.stop)
        right, tasks = answers == labels, (labels >= 5).long()
        for past in range(task + 1):
            expected = 100 * float(right[tasks == past].double().mean())
            assert values(folder, "task_accuracy")[task + 1, f"task {past}"] == pytest.approx(expected, rel=1e-12)
        identified = float((entries == tasks).double().mean())
        assert values(folder, "task_id_accuracy")[task + 1, "CUB200"] == pytest.approx(identified, rel=1e-12)
    assert 0 < right.double().mean() < 1 and len(set(entries.tolist())) == 2
    assert bool(values(folder, "zero_shot")) == (kind != "vit")


@pytest.mark.parametrize("run", ["vit"], indirect=True)
def test_a_vits_training_crops(world, run):
    """Crops of 8 to 100 % of the area, bilinear, half of them mirrored, pixels in [0, 1] as they are."""
    boxes = []
    for step in run[2][0]:
        for view, label in zip(*step["batch"]):
            candidates = [image for image, original in world[1].train if original == ORDER[label]]
            boxes.append(crop_box(view, candidates, InterpolationMode.BILINEAR))
    shares, flips = zip(*boxes)
    assert min(shares) < 0.5 and 0 < np.mean(flips) < 1
