"""The miniature's CLIP with a ResNet tower, fitted in seconds: for smoke runs of ALTA with a ResNet.

The convolutions stay random; batch norms get the statistics of the web's characters, and the last linear layer is
fitted by ridge regression to the features of these images from the miniature's ViT, which is far more accurate.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from common.clip.model import CLIP, build_model
from common.datasets.transforms import clip_normalise
from common.mini import clip_state_dict
from common.mini.domains import INCREMENTAL, classnames, draw, seeded

SEED, RESOLUTION, STAGES, WIDTH = 0, 32, (1, 1, 1, 1), 32
IMAGES, NORM_IMAGES, AT_ONCE = 4000, 512, 250
RIDGE = 1e-3  # of the mean squared feature


@torch.no_grad()
def resnet_clip() -> CLIP:
    """A CLIP with a ResNet tower of 32 pixels, float32, the same at each call; torch's generator is left unchanged."""
    teacher = build_model(clip_state_dict())
    config = replace(
        teacher.config, image_resolution=RESOLUTION, vision_layers=STAGES, vision_width=WIDTH, vision_patch_size=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = CLIP(config)
    text = {key: value for key, value in teacher.state_dict().items() if not key.startswith("visual.")}
    model.load_state_dict(text, strict=False)
    images = normalised_images()
    settle_norms(model.visual, images[:NORM_IMAGES])
    fit_last_layer(model, teacher, images)
    return model.eval()


def normalised_images() -> Tensor:
    """Characters in the web's style with CLIP's normalisation, (N, 3, 32, 32)."""
    rng = seeded("mini resnet")
    pictures = draw(INCREMENTAL, rng.integers(len(classnames(INCREMENTAL)), size=IMAGES), "web", rng)
    return clip_normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2))


def settle_norms(visual: nn.Module, images: Tensor) -> None:
    """Set the running statistics of all batch norms from one pass."""
    visual.train()
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over passes
    visual(images)
    visual.eval()


def fit_last_layer(model: CLIP, teacher: CLIP, images: Tensor) -> None:
    """Fit the attention pool's last linear layer by ridge regression in float64."""
    pooled: list[Tensor] = []
    last = cast(nn.Linear, model.visual.get_submodule("attnpool.c_proj"))
    hook = last.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    for part in images.split(AT_ONCE):
        model.visual(part)
    hook.remove()
    inputs = torch.cat([torch.cat(pooled), torch.ones(len(images), 1)], dim=1).double()
    targets = torch.cat([teacher.encode_image(part) for part in images.split(AT_ONCE)]).double()
    moment = inputs.t() @ inputs
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
    solution = torch.linalg.solve(moment, inputs.t() @ targets).float()
    last.weight.copy_(solution[:-1].t())
    last.bias.copy_(solution[-1])
