"""The fixtures' tiny networks."""

import torch
from timm.models.vision_transformer import VisionTransformer

from vq_prompt.prompts import Network


def tiny_vit(meta):
    return VisionTransformer(
        img_size=meta["img"],
        patch_size=meta["patch"],
        embed_dim=meta["D"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        num_classes=0,
    )


def golden_network(golden, dtype=torch.float32, **pool):
    """A fixture's network with its stored weights."""
    meta, weights = golden.meta, golden.under("w/")
    pool = {"size": meta["pool"], "length": meta["prompt_length"], "tau": meta["tau"]} | pool
    network = Network(tiny_vit(meta), len(weights["last.bias"]), pool).to(dtype)
    network.load_state_dict({key: value.to(dtype) for key, value in weights.items()})
    return network
