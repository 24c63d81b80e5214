"""Files in the keys of the transformers library give the CLIP of the same numbers in OpenAI's."""

import pytest
import torch
from safetensors.torch import save_file

from common.clip import load
from common.clip.pretrained import load_state_dict
from common.errors import UserError
from tests.common.clip.test_pretrained import assert_same, fine_tuned

BLOCK = {
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}


def of_transformers(weights):
    """The keys of transformers' CLIPModel, written out: its convert_clip_original_pytorch_to_hf.py."""
    theirs = {
        "logit_scale": weights["logit_scale"],
        "text_projection.weight": weights["text_projection"].t().contiguous(),
        "visual_projection.weight": weights["visual.proj"].t().contiguous(),
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(len(weights["positional_embedding"]))[None],
        "text_model.final_layer_norm.weight": weights["ln_final.weight"],
        "text_model.final_layer_norm.bias": weights["ln_final.bias"],
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(len(weights["visual.positional_embedding"]))[None],
        "vision_model.pre_layrnorm.weight": weights["visual.ln_pre.weight"],
        "vision_model.pre_layrnorm.bias": weights["visual.ln_pre.bias"],
        "vision_model.post_layernorm.weight": weights["visual.ln_post.weight"],
        "vision_model.post_layernorm.bias": weights["visual.ln_post.bias"],
    }
    for tower, inside in (("text_model", ""), ("vision_model", "visual.")):
        depth = 0
        while f"{inside}transformer.resblocks.{depth}.ln_1.weight" in weights:
            ours, layer = f"{inside}transformer.resblocks.{depth}", f"{tower}.encoder.layers.{depth}"
            theirs |= {f"{layer}.{name}": weights[f"{ours}.{key}"] for key, name in BLOCK.items()}
            for kind in ("weight", "bias"):
                parts = weights[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    theirs[f"{layer}.self_attn.{letter}_proj.{kind}"] = part.clone()
            depth += 1
    return theirs


@pytest.mark.parametrize("name", ["vit_tiny", "vit_2heads"])
@pytest.mark.parametrize("prefix", ["", "clip."])
def test_the_same_numbers(name, prefix, tmp_path):
    weights = fine_tuned(name)
    theirs = {prefix + key: value for key, value in of_transformers(weights).items()}
    save_file(theirs, tmp_path / "model.safetensors")
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    for file in ("model.safetensors", "pytorch_model.bin"):
        assert_same(load_state_dict(tmp_path / file), weights)
        assert_same(load(tmp_path / file, activation="gelu")[0].state_dict(), weights)


def test_a_part_that_is_missing_is_named(tmp_path):
    theirs = of_transformers(fine_tuned("vit_tiny"))
    del theirs["vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit CLIP. 1 keys missing: visual.*in_proj_weight; 2 keys unexpected"):
        load(tmp_path / "model.safetensors")
