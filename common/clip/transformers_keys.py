"""CLIP's weights as the transformers library names them (pytorch_model.bin and model.safetensors on the hub)."""

import re

import torch
from torch import Tensor

MARK = "vision_model.embeddings.class_embedding"
DROPPED = "embeddings.position_ids"  # the numbers 0, 1, 2, ..., in older files
PARTS = (  # patterns of transformers' keys and what stands for them in OpenAI's, one after the other
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.encoder", "transformer"),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),  # their spelling
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder", "visual.transformer"),
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_projection\.weight", "text_projection"),
    (r"\.layers\.(\d+)\.", r".resblocks.\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def openai_keys(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in OpenAI's keys: queries, keys and values in one tensor, both projections transposed.

    A key that transformers' CLIP does not have stays as it is, for `check_keys` to name.
    """
    renamed = {}
    for key, value in state_dict.items():
        for pattern, name in PARTS:
            key = re.sub(pattern, name, key)
        if not key.endswith(DROPPED):
            renamed[key] = value.t() if key in ("visual.proj", "text_projection") and value.ndim == 2 else value
    for key in [key for key in renamed if ".attn.q_proj." in key]:
        names = [key.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(name in renamed for name in names):
            renamed[key.replace(".q_proj.", ".in_proj_")] = torch.cat([renamed.pop(name) for name in names])
    return renamed
