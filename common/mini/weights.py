"""The miniature's weights: how they are stored, and the three models made of them."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.runs import atomic_write

FOLDER = Path(__file__).parent
CLIP_FILE, VIT_FILE = FOLDER / "clip.safetensors", FOLDER / "vit.safetensors"
VOCABULARY = 49408
VIT_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "num_classes": 0}
CHOOSER_SEED = 0


def token_table(ids: Tensor, rows: Tensor) -> Tensor:
    """The token table (49408, W) float32: `rows` at `ids`, CLIP's random initial values for unseen tokens."""
    generator = torch.Generator().manual_seed(0)
    table = 0.02 * torch.randn(VOCABULARY, rows.shape[1], generator=generator)
    table[ids.long()] = rows.float()
    return table


def store_clip(state_dict: dict[str, Tensor], ids: Tensor, path: Path) -> None:
    """Save a CLIP whose token table has one row for each of `ids`, in half precision."""
    stored = {key: value.half().contiguous() for key, value in state_dict.items()}
    stored["token_ids"] = ids.int()
    atomic_write(path, lambda file: file.write(save(stored)))


def store_vit(state_dict: dict[str, Tensor], path: Path) -> None:
    """Save a ViT in half precision."""
    stored = {key: value.half().contiguous() for key, value in state_dict.items()}
    atomic_write(path, lambda file: file.write(save(stored)))


def clip_state_dict(path: Path = CLIP_FILE) -> dict[str, Tensor]:
    """The miniature CLIP under OpenAI's keys, float32, the token table at full size."""
    stored = load_file(path)
    ids = stored.pop("token_ids")
    state_dict = {key: value.float() for key, value in stored.items()}
    state_dict["token_embedding.weight"] = token_table(ids, state_dict["token_embedding.weight"])
    return state_dict


def vit_state_dict(path: Path = VIT_FILE) -> dict[str, Tensor]:
    """The miniature ViT under timm's VisionTransformer keys (sizes: VIT_SIZES), float32, without a head."""
    return {key: value.float() for key, value in load_file(path).items()}


def chooser_features() -> nn.Module:
    """DDAS's image features at mini scale: CLIP-normalised images (B, 3, 32, 32) -> (B, 2048).

    Frozen random convolutions stand in for AlexNet's first five (MoE-Adapters, arXiv 2403.11549): convolution,
    ReLU, pooling, convolution, flattened. Weights come from a generator of their own.
    """
    with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws numbers
        stack = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.Flatten(),
        )
    generator = torch.Generator().manual_seed(CHOOSER_SEED)
    for layer in stack:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            layer.bias.data.zero_()
    return stack.eval().requires_grad_(False)
