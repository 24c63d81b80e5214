"""The embedded miniature: rendered image domains under the names of the eleven MTIL sets, a class-incremental
set, and tiny pre-trained models, so that every paper's scripts run in minutes on two CPU cores.

To everyone else it is a name, MINI: of a data location, of CLIP's weights and of a ViT's.
"""

from pathlib import Path

MINI, MINI_RESNET = "mini", "mini-rn"  # the second is ALTA's, see common.mini.resnet
CLIP_FILE, VIT_FILE = (Path(__file__).parent / f"{model}.safetensors" for model in ("clip", "vit"))
# md5 of the files that runs of versions before took without recording it
UNRECORDED = ("f32b0897f4372c377705c9d50478c42a", "8a10cf611d8f75a2a7e9d4bb9f7cdf77")
ON_SCALE = {"paper": "", MINI: " on the miniature"}  # in titles


def scale_of(*names: str) -> str:
    """The scale as records name it: "mini" if any of these (--scale, data location, weights) is the miniature's."""
    return MINI if {MINI, MINI_RESNET} & {*names} else "paper"
