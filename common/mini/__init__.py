"""The embedded miniature: rendered image domains under the names of the eleven MTIL sets, a class-incremental
set, and tiny pre-trained models, so that every paper's scripts run in minutes on two CPU cores.
"""

from common.mini.domains import DOMAINS, REFERENCE, incremental, load_domain
from common.mini.weights import VIT_SIZES, chooser_features, clip_state_dict, vit_state_dict

__all__ = [
    "DOMAINS", "REFERENCE", "VIT_SIZES", "chooser_features", "clip_state_dict", "incremental", "load_domain",
    "vit_state_dict",
]
