"""The embedded miniature: rendered image domains under the names of the eleven MTIL data sets, a class-incremental
data set, and tiny pre-trained models. Every paper's scripts run on it in minutes on two CPU cores.

The rest of the code uses it by name, MINI: as a data location, as CLIP's weights, and as a ViT's.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# names of weights: the second is ALTA's, see common.mini.resnet, the third the CLIP's image tower as a ViT
MINI, MINI_RESNET, MINI_TOWER = "mini", "mini-rn", "clip-mini"
CLIP_FILE, VIT_FILE = (Path(__file__).parent / f"{model}.safetensors" for model in ("clip", "vit"))
ON_SCALE = {"paper": "", MINI: " on the miniature"}  # in titles


def clip_state_dict() -> "dict[str, Tensor]":
    """The miniature's CLIP in OpenAI's keys, float32, with the full token table."""
    from common.mini.weights import expanded  # torch, which names need not wait for
    from common.weight_files import read

    return expanded(read(CLIP_FILE))


def scale_of(*names: str) -> str:
    """`scale` of the records: "mini" if any of the names (--scale, data location, weights) is the miniature's."""
    return MINI if {MINI, MINI_RESNET, MINI_TOWER} & {*names} else "paper"
