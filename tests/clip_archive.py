"""CLIP checkpoints as OpenAI publishes them: TorchScript archives in half precision, of any weights."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common.clip.model import config_from_state_dict


def _holder(weights: dict[str, Tensor]) -> nn.Module:
    """A module whose state dict is `weights`: parameters and integer buffers under the dotted names."""
    root = nn.Module()
    for key, value in weights.items():
        *path, last = key.split(".")
        module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]
        if value.is_floating_point():
            module.register_parameter(last, nn.Parameter(value))
        else:
            module.register_buffer(last, value)
    return root


def save_archive(weights: dict[str, Tensor], path: Path) -> None:
    """Write `weights` (OpenAI's keys) to `path`: rounded to half, the three sizes as buffers beside them."""
    config = config_from_state_dict(weights)
    sizes = {
        "input_resolution": config.image_resolution,
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
    }
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    root = _holder(half)
    for key, size in sizes.items():
        root.register_buffer(key, torch.tensor(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; OpenAI's files stay
        torch.jit.save(torch.jit.script(root), path)
