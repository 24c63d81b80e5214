"""DDAS, the distribution discriminative auto-selector (arXiv 2403.11549, section 3.3).

One small autoencoder a domain learns to reconstruct f = sigmoid(features(x)) of a frozen AlexNet. At test time the
one with the least error names the task; the reference set's autoencoder (index 0), or an error above the threshold,
means a domain never learnt, which goes to the original CLIP.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.files import home_path
from common.mini import MINI
from common.mini.weights import ddas_features
from common.runs import Steps, Tensors
from common.state_dicts import prefix_of, require_match, unwrapped
from common.training.batches import BatchStream
from common.training.schedules import set_lr
from common.weight_files import read
from moe_adapters.adapters import ORIGINAL_CLIP

CODE_SIZE = 100
FULL_SHOT_LR, FEW_SHOT_LR = 0.01, 0.003
WEIGHT_DECAY = 1e-4  # Adam's L2 form
EPOCHS_A_DECAY = 10
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"


def load_extractor(name: str) -> nn.Module:
    """The frozen feature extractor that --chooser-features names: alexnet, mini, or the file of an AlexNet."""
    return EXTRACTORS[name]() if name in EXTRACTORS else alexnet_features(name)


def alexnet_features(weights: str | Path | None = None) -> nn.Module:
    """Layers 0..10 of torchvision's AlexNet: the fifth convolution before its ReLU, 256 x 13 x 13 from 224 x 224.

    `weights` is a torchvision AlexNet state dict; None fetches the ImageNet ones (the only set there is) into
    torch's hub cache. Raises UserError when they cannot be had.
    """
    from torchvision.models import AlexNet_Weights, alexnet

    if weights is None:
        folder = home_path(torch.hub.get_dir(), "TORCH_HOME, XDG_CACHE_HOME or HOME") / "checkpoints"
        try:
            state_dict = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
        except (OSError, RuntimeError) as error:
            url = AlexNet_Weights.IMAGENET1K_V1.url
            raise UserError(
                f"DDAS needs torchvision's ImageNet AlexNet, and {url} could not be fetched ({error}). "
                f"Put {ALEXNET_FILE} into {folder}, or give its path to --chooser-features."
            ) from error
    else:
        state_dict = unwrapped(read(weights), weights)
        prefix = prefix_of(state_dict, "features.0.weight")
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    with torch.device("meta"):  # no random weights drawn to be overwritten
        model = alexnet()
    require_match(model.state_dict(), state_dict, weights, "torchvision's AlexNet")
    model.load_state_dict(state_dict, assign=True)
    # without the last two modules, as upstream cuts them: ReLU and max-pool after the fifth convolution
    return model.features[:-2].eval().requires_grad_(False)


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {"alexnet": alexnet_features, MINI: ddas_features}


class AutoEncoder(nn.Module):
    """Linear - ReLU - Linear - Sigmoid around a code of 100, on features in (0, 1)."""

    def __init__(self, features: int, code: int = CODE_SIZE) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, code), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(code, features), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        return self.decoder(self.encoder(features))


def build_autoencoders(count: int, features: int) -> nn.ModuleList:
    """`count` fresh autoencoders under the official keys; index 0 is the reference set's, j + 1 is task j's."""
    return nn.ModuleList(AutoEncoder(features) for _ in range(count))


def read_autoencoders(path: str | Path, autoencoders: nn.ModuleList) -> None:
    """Load an official `*_autochooser.pth` into `autoencoders`, in place; UserError when it does not fit."""
    state_dict = unwrapped(read(path), path)
    require_match(autoencoders.state_dict(), state_dict, path, f"{len(autoencoders)} autoencoders of these features")
    autoencoders.load_state_dict(state_dict)


@torch.no_grad()
def autoencoder_input(extractor: nn.Module, images: Tensor) -> Tensor:
    """f = sigmoid(features(x)), (B, F), for CLIP-normalised images (B, 3, R, R): input and target alike."""
    return torch.sigmoid(extractor(images).flatten(1))


def autoencoder_lr(step: int, epoch_length: int, base_lr: float) -> float:
    """base * 0.1^floor(epoch / 10), epoch = step // batches of the *full* training set, in 5-shot runs too."""
    return base_lr * 0.1 ** ((step // epoch_length) // EPOCHS_A_DECAY)


def train_autoencoder(
    autoencoder: nn.Module,
    extractor: nn.Module,
    batches: BatchStream,
    epoch_length: int,
    iterations: int,
    base_lr: float,
    stage: str,
    steps: Steps,
) -> dict[str, Tensor]:
    """Fit one domain's autoencoder in place with Adam, in iterations + 1 steps.

    Returns `loss` (iterations + 1,): the squared error by step, a mean over samples and features.
    """
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=base_lr, weight_decay=WEIGHT_DECAY)
    losses = next(autoencoder.parameters()).new_zeros(iterations + 1).detach()
    state = {"autoencoder": autoencoder, "optimizer": optimizer, "log": Tensors({"loss": losses})}
    for step in steps(stage, iterations + 1, state):
        set_lr(optimizer, autoencoder_lr(step, epoch_length, base_lr))
        features = autoencoder_input(extractor, batches[step][0])
        loss = F.mse_loss(autoencoder(features), features)  # eq. 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return {"loss": losses}


@torch.no_grad()
def reconstruction_errors(autoencoders: Iterable[nn.Module], features: Tensor) -> Tensor:
    """The mean squared error (eq. 3) of every autoencoder on every sample of f (B, F): (B, autoencoders)."""
    return torch.stack([(autoencoder(features) - features).square().mean(dim=1) for autoencoder in autoencoders], dim=1)


def select_task(errors: Tensor, threshold: float) -> int:
    """errors (autoencoders,) of one batch -> task id, ORIGINAL_CLIP for a domain that no task has shown.

    The least error wins, the first on ties; one above the threshold counts as unknown.
    """
    best = int(errors.argmin())
    return ORIGINAL_CLIP if best == 0 or bool(errors[best] > threshold) else best - 1
