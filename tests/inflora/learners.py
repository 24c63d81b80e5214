"""The learner fixtures' set-up: their tiny network, data in stored order, and options of each method."""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer

from common.training.schedules import coda_cosine, cosine_annealing, multistep
from inflora.lora import Network
from inflora.training import TrainingOptions
from tests.golden_files import Golden

LEARNERS = ("inflora_main", "inflora_retain", "inflora_b5", "inflora_ca", "inflora_ca1", "inflora_domain")


class StoredOrder:
    """Batches of a task in stored order, the same in every epoch, the last one short."""

    def __init__(self, images, labels, size):
        self.images, self.labels = images.split(size), labels.split(size)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, step):
        return self.images[step % len(self)], self.labels[step % len(self)]


def tiny_vit(meta):
    return VisionTransformer(
        img_size=meta["img"],
        patch_size=meta["patch"],
        embed_dim=meta["d"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        num_classes=0,
    )


def golden_network(golden, dtype):
    """The fixture's network with its initial parameters."""
    meta = golden.meta
    layers = meta["info"]["layers_with_lora"]
    network = Network(tiny_vit(meta), [meta["cpt"]] * meta["tasks"], meta["tasks"], meta["rank"], layers).to(dtype)
    network.load_state_dict({key: value.to(dtype) for key, value in golden.under("init/").items()})
    network.activate(0)
    if meta["method"] == "InfLoRA_CA1":
        network.image_encoder.norm.eps = 1e-5
    return network


def task_batches(golden, task, dtype):
    meta = golden.meta
    members = golden["train_y"] // meta["cpt"] == task
    return StoredOrder(golden["train_x"][members].to(dtype), golden["train_y"][members], meta["bs"])


def golden_options(meta):
    schedules = {
        "InfLoRA": partial(coda_cosine, epochs=meta["epochs"]),
        "InfLoRAb5": partial(coda_cosine, epochs=meta["epochs"]),
        "InfLoRA_CA": partial(cosine_annealing, epochs=meta["epochs"]),
        "InfLoRA_CA1": partial(multistep, milestones=[18], gamma=0.1),
        "InfLoRA_domain": partial(multistep, milestones=[4], gamma=0.1),
    }
    return TrainingOptions(
        epochs=meta["epochs"],
        lr=meta["lr"],
        optimizer=meta["optim"],
        schedule=schedules[meta["method"]],
        fc_lr=meta.get("fc_lr"),
        weight_decay=meta.get("wd", 0.0),
    )


def learner(name):
    """Fixture, dtype it was computed in, network."""
    golden = Golden(f"inflora/{name}")
    dtype = torch.float64 if golden.meta["f64"] else torch.float32
    return golden, dtype, golden_network(golden, dtype)
