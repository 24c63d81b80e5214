"""A CLIP whose features are not projected, and its image tower as a ViT of timm's, on random weights of any sizes."""

import torch
from timm.models.vision_transformer import VisionTransformer

from common.clip.model import CLIP, CLIPConfig
from common.vit import image_tower


def clip_and_tower(
    size: int = 16, patch: int = 8, width: int = 64, depth: int = 3, seed: int = 0
) -> tuple[CLIP, VisionTransformer]:
    """`encode_image` of the one, its projection being the identity, is what the other should compute; eval mode.

    No norm leaves a normalised input as it is. Values are pieces of one draw, since a draw of ViT-B/16's takes a second.
    """
    with torch.device("meta"):
        clip = CLIP(CLIPConfig(width, size, depth, width, patch, 4, 4, 8, 1, 1))
    drawn, state = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)), {}
    for number, (key, value) in enumerate(clip.state_dict().items()):
        part = drawn.roll(997 * number).repeat(1 + value.numel() // len(drawn))[: value.numel()].view(value.shape)
        state[key] = part * 0.3 + 1 if ".ln_" in key and key.endswith("weight") else part * 0.5 * width**-0.5
    clip.load_state_dict(state | {"visual.proj": torch.eye(width)}, assign=True)
    return clip.eval(), image_tower(clip)
