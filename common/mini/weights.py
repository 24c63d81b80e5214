"""The miniature's token table, which is stored in part, and the features of its DDAS."""

from typing import cast

import torch
from torch import Tensor, nn

VOCABULARY = 49408
CHOOSER_SEED = 0


def expanded(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a CLIP in float32 with the full token table, from a file with the rows of `token_ids` only.

    All other rows get random initial values.
    """
    state_dict = {key: value.float() for key, value in stored.items() if key != "token_ids"}
    rows, generator = state_dict["token_embedding.weight"], torch.Generator().manual_seed(0)
    table = 0.02 * torch.randn(VOCABULARY, rows.shape[1], generator=generator)
    table[stored["token_ids"].long()] = rows
    return state_dict | {"token_embedding.weight": table}


def ddas_features() -> nn.Module:
    """DDAS's image features at mini scale: CLIP-normalised images (B, 3, 32, 32) -> (B, 2048).

    Frozen random convolutions stand in for AlexNet's first five (MoE-Adapters, arXiv 2403.11549): convolution,
    ReLU, pooling, convolution, flattened. torch's global generator is left unchanged.
    """
    with torch.random.fork_rng(devices=[]):  # the layers' initialisation draws numbers
        stack = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1, stride=2),
            nn.Flatten(),
        )
    generator = torch.Generator().manual_seed(CHOOSER_SEED)
    for layer in stack:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            nn.init.zeros_(cast(Tensor, layer.bias))
    return stack.eval().requires_grad_(False)
