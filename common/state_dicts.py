"""The state dict inside a file's content, what network it looks like, and its differences from a model's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError

FAULTS = ("keys missing", "keys unexpected", "keys of another shape", "keys without plain numbers of their kind")
# entries of training programs' checkpoints that hold the weights; iBOT's and DINO's have a student's as well
WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict", "module", "net", "network", "weights")
AVERAGED = "n_averaged"  # what torch's AveragedModel counts beside the weights
MOMENTUM = "momentum_"  # begins the name of MoCo's second encoder
SIZES = {192: "Ti", 384: "S", 512: "M", 768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "G"}  # of a ViT, by width
NETWORKS = {  # the end of a key of theirs; "ViT-" is followed by the size, which that key's shape tells
    "vision_model.embeddings.class_embedding": "a CLIP of transformers",
    "visual.trunk.patch_embed.proj.weight": "an open_clip model with one of timm's towers",
    "visual.layer1.0.conv1.weight": "a CLIP with a ResNet",
    "visual.conv1.weight": "a CLIP with a ViT-",
    "layers.0.blocks.0.norm1.weight": "a Swin",
    "patch_embed.proj.weight": "a ViT-",
    "patch_embeddings.projection.weight": "a ViT of transformers",
    "conv_proj.weight": "a ViT of torchvision",
    "stages.0.blocks.0.conv_dw.weight": "a ConvNeXt",
    "layer1.0.conv1.weight": "a ResNet",
    "features.0.weight": "an AlexNet or VGG",
    "encoder.0.weight": "DDAS's autoencoders",
}


def unwrapped(content: Any, path: object) -> dict[str, Tensor]:
    """The state dict that is the content of a file, or stands in it under one of WRAPPERS.

    Raises UserError, which names the entries of the file `path`, if there is none.
    """
    found = content
    for _ in WRAPPERS:  # not without end: a dictionary may hold itself
        inner = [found[key] for key in WRAPPERS if isinstance(found.get(key), dict)] if isinstance(found, dict) else []
        found = inner[0] if inner else found
    if isinstance(found, dict):
        unnamed = [repr(key) for key in found if not isinstance(key, str)]
        others = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
        if found and not others and not unnamed:
            return {key: value for key, value in found.items() if key != AVERAGED}
        held = f"keys that are no names, {', '.join(unnamed[:10])}" if unnamed else "an empty dictionary"
        held = f"entries that are no tensors, {', '.join(others[:10])}" if others else held
    else:
        held = f"a {type(found).__name__}"
    raise UserError(
        f"{path} holds no state dict, but {held}. Expected is a dictionary of tensors, or one under 'state_dict'."
    )


def prefix_of(state_dict: Mapping[str, Tensor], anchor: str) -> str:
    """What stands before the key `anchor`, such as "module."; "" if nothing does, or in more than one way.

    MoCo's momentum encoder does not count.
    """
    prefixes = [key.removesuffix(anchor) for key in state_dict if f".{key}".endswith(f".{anchor}")]
    prefixes = [prefix for prefix in prefixes if MOMENTUM not in prefix]
    return prefixes[0] if len(prefixes) == 1 else ""


def misfits(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], faults: tuple[str, ...] = FAULTS
) -> dict[str, list[str]]:
    """Sorted keys by fault, {} if there is none; those of another shape or kind are followed by what `weights` has."""
    shared = expected.keys() & weights.keys()
    reshaped = [f"{key} {tuple(weights[key].shape)}" for key in shared if expected[key].shape != weights[key].shape]
    kinds = [f"{key} {kind}" for key in shared if (kind := _odd_kind(expected[key], weights[key]))]
    keys = (expected.keys() - shared, weights.keys() - shared, reshaped, kinds)
    return {fault: sorted(wrong) for fault, wrong in zip(faults, keys) if wrong}


def _odd_kind(expected: Tensor, value: Tensor) -> str:
    """What a tensor is or holds that can not stand for the expected one, such as int8 for float32; "" if it can."""
    if value.is_meta or value.layout != torch.strided:
        return "meta" if value.is_meta else str(value.layout)
    if expected.is_floating_point() and not value.is_floating_point():
        return str(value.dtype)
    return "" if value.float().isfinite().all() else "nan or infinite"


def listed(faults: Mapping[str, list[str]], shown: int = 4) -> str:
    """A text like "5 keys missing: a, b, c, d, ...; 1 keys unexpected: e", the first `shown` keys of each fault."""
    return "; ".join(
        f"{len(keys)} {fault}: {', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''}"
        for fault, keys in faults.items()
    )


def require_match(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: object, whose: str, advice: str = ""
) -> None:
    """Raise UserError with the keys in which the weights of file `path` differ from the expected ones of `whose`.

    It says what network the file looks like, where that is another one.
    """
    if faults := misfits(expected, weights):
        wanted, looks = looks_like(expected), looks_like(weights)
        told = f": it looks like {looks}, not {wanted}" if looks and wanted and looks != wanted else ""
        told = f": it looks like {looks}" if looks and not wanted else told
        raise UserError(f"{path} does not fit {whose}{told}. {listed(faults)}.{advice}")


def looks_like(weights: Mapping[str, Tensor]) -> str:
    """The network that weights of these keys and shapes are of, such as "a ViT-L/16"; "" if unknown."""
    for end, network in NETWORKS.items():
        for key, value in weights.items():
            if f".{key}".endswith(f".{end}") and value.ndim:
                size = f"{SIZES.get(len(value), f'{len(value)} wide')}/{value.shape[-1]}"
                return network + (size if network.endswith("ViT-") else "")
    return ""
