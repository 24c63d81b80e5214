"""The embedded miniature: rendered image domains under the names of the eleven MTIL sets, a class-incremental
set, and tiny pre-trained models, so that every paper's scripts run in minutes on two CPU cores.
"""

from common.mini.domains import (
    DOMAINS, REFERENCE, STAND_INS, incremental, load_captioned, load_domain, reference_captions,
)
from common.mini.weights import VIT_SIZES, chooser_features, clip_state_dict, vit_state_dict

__all__ = [
    "DOMAINS", "REFERENCE", "STAND_INS", "VIT_SIZES", "chooser_features", "clip_state_dict", "incremental",
    "load_captioned", "load_domain", "reference_captions", "vit_state_dict",
]
