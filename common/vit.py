"""timm's ViT-B/16 under timm's key names, from each of the published checkpoints, and the miniature's tiny ones.

    sup21k   augreg, ImageNet-21k alone                   sup1k    augreg2, ImageNet-21k, then fine-tuned on 1k
    ibot1k   iBOT on ImageNet-1k                          ibot21k  iBOT on ImageNet-22k
    dino1k   DINO on ImageNet-1k                          moco1k   MoCo v3, 300 epochs, on ImageNet-1k
    mini     the embedded miniature's
    clip-vit-b16, clip-mini  the image tower of OpenAI's CLIP, of the miniature's, without its projection

The model has no head: images (B, 3, S, S) -> the class token after the last norm (B, D). The papers normalise images
differently, in their folders; `normalisation` tells what a backbone was pre-trained with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from common.attention import CLASS_TOKEN, attend, query_key_value, run_block
from common.clip import pretrained
from common.clip.model import CLIP, QUICKGELU, QuickGELU
from common.clip.transformers_keys import MARK
from common.datasets.transforms import CLIP_MEAN, CLIP_STD
from common.errors import UserError
from common.files import home_path
from common.mini import CLIP_FILE, MINI, MINI_TOWER, VIT_FILE
from common.state_dicts import prefix_of, require_match, unwrapped
from common.weight_files import named_file, read

if TYPE_CHECKING:
    from timm.layers import Attention
    from timm.models.vision_transformer import VisionTransformer

PACKAGED = {MINI: VIT_FILE, MINI_TOWER: CLIP_FILE}
MINI_SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
SIZES: dict[str, dict[str, Any]] = {MINI: MINI_SIZES}  # all others are ViT-B/16, or of their CLIP's sizes
DEFAULT_FOLDER = "pretrained"  # VQ-Prompt's folder of weights
TIMM_FILE = "model.safetensors"
HUB_SECONDS = 5.0  # that the hub has to answer a first request


# beginnings of keys that a classifier, a projection or a decoder has beside the backbone
BESIDE = ("head.", "pre_logits.", "decoder", "mask_token", "masked_embed")
ANCHOR = "patch_embed.proj.weight"
OF_CLIP = ("visual.class_embedding", MARK)  # ends of a key that a CLIP with a ViT has


@dataclass(frozen=True)
class Published:
    """A ViT of vit.yaml, where the fields are explained."""

    label: str
    mean: list[float]
    std: list[float]
    files: Sequence[str] = ()
    origin: str = ""
    hub: str | None = None
    clip: str | None = None

    @property
    def places(self) -> list[str]:
        """Where its file may lie in the folder of weights: `files`, and timm's under its names of today."""
        name = (self.hub or "").rsplit("/", 1)[-1]
        timm = [f"{name}.safetensors", f"{name}.bin", f"{name}/{TIMM_FILE}", f"{name}/pytorch_model.bin"]
        return [*self.files, *(f"{Path(file).stem}.safetensors" for file in self.files), *(timm if name else [])]


_ENTRIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PUBLISHED = {name: Published(**entry) for name, entry in _ENTRIES.items()}
LABELS = {name: published.label for name, published in PUBLISHED.items()}  # names in records and published tables


def available() -> list[str]:
    """Names that `load` accepts besides a path."""
    return [*PUBLISHED, *PACKAGED]


def miniature(name: str) -> str:
    """The miniature's backbone in place of a published one: its CLIP's image tower for a CLIP's, else its ViT."""
    return MINI_TOWER if name in PUBLISHED and PUBLISHED[name].clip else MINI


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], by channel, that a backbone of `available()` was trained with.

    Raises UserError for a file, which does not tell.
    """
    if name in PACKAGED:
        return CLIP_MEAN, CLIP_STD  # of common/mini/pretrain.py, which makes both
    if name not in PUBLISHED:
        raise UserError(f"{name}: a file does not tell with which normalisation of its images it was trained. Give a "
                        f"name: {', '.join(available())}.")  # fmt: skip
    return tuple(PUBLISHED[name].mean), tuple(PUBLISHED[name].std)


def load(name_or_path: str | Path, folder: str | Path = DEFAULT_FOLDER) -> "VisionTransformer":
    """The ViT of a name of `available()`, or of a file in timm's keys or a CLIP's; float32, on the CPU, eval mode.

    folder: see `find_weights`. Raises UserError for an unknown name, a missing or broken file, a failed download, and
    for keys or shapes that differ from a ViT-B/16 (the message lists them), or from a CLIP.
    """
    path, published = find_weights(name_or_path, folder), PUBLISHED.get(str(name_or_path))
    weights = backbone_weights(path)
    if (published is None or published.clip) and any(key.endswith(OF_CLIP) for key in weights):
        return image_tower(pretrained.load(path)[0])
    return fill(_without_values("vit_base_patch16_224", **SIZES.get(str(name_or_path), {})), weights, path)


def image_tower(clip: CLIP) -> "VisionTransformer":
    """A CLIP's image tower, a ViT, in timm's modules and without its projection: norm_pre, and the CLIP's activation.

    Its features are what `encode_image` projects; it shares the CLIP's weights.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    tower: Any = clip.visual
    activation = QuickGELU if clip.activation == QUICKGELU else nn.GELU
    model = _without_values(
        "vit_base_patch16_clip_quickgelu_224", act_layer=activation, img_size=tower.input_resolution,
        patch_size=tower.conv1.kernel_size[0], embed_dim=tower.transformer.width, depth=tower.transformer.layers,
        num_heads=tower.transformer.resblocks[0].attn.heads,
    )  # fmt: skip
    weights = checkpoint_filter_fn({f"visual.{key}": value for key, value in tower.state_dict().items()}, model)
    return fill(model, {key: value for key, value in weights.items() if not key.startswith(BESIDE)}, "CLIP's tower")


def _without_values(name: str, **sizes: Any) -> "VisionTransformer":
    """timm's model of a name, on the meta device, so that no initial values are drawn; without a head."""
    # outside the block below, in which tensors created by the import would be on the meta device
    from timm import create_model

    with torch.device("meta"):
        model: Any = create_model(name, pretrained=False, num_classes=0, **sizes)
    return model


def find_weights(name_or_path: str | Path, folder: str | Path = DEFAULT_FOLDER) -> Path:
    """The file of a published name, of a miniature, or the path itself.

    A published file is looked for in `folder` under `Published.places`, then in timm's repository, if any, through
    huggingface_hub and its cache; a CLIP's where common/clip keeps it. Raises UserError if there is none; the message
    says which file to put where.
    """
    name, folder = str(name_or_path), home_path(folder)
    if name not in PUBLISHED:
        return named_file(name, "ViT weights", PACKAGED, available())
    published = PUBLISHED[name]
    if published.clip is not None:
        return pretrained.find_weights(published.clip)
    for file in published.places:
        if (folder / file).is_file():
            return folder / file
    advice = f"Get {published.origin} and put it at {folder / published.files[0]}."
    if published.hub is None:
        raise UserError(f"ViT weights {name}: not in {folder}, and no copy that timm hosts. {advice}")
    return _download(published.hub, f"ViT weights {name}: not in {folder}, and the download failed", advice)


def _download(repository: str, problem: str, advice: str) -> Path:
    """timm's file of a repository on the hub, from the local cache if possible."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    home_path(constants.HF_HUB_CACHE, "HF_HOME, XDG_CACHE_HOME or HOME")
    try:
        try:
            return Path(hf_hub_download(repository, TIMM_FILE, local_files_only=True))
        except LocalEntryNotFoundError:
            # asks once: the download by itself would wait for a hub out of reach, again and again
            get_hf_file_metadata(hf_hub_url(repository, TIMM_FILE), timeout=HUB_SECONDS)
            return Path(hf_hub_download(repository, TIMM_FILE))
    except Exception as error:  # the hub's client also raises errors of its HTTP library
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{problem} ({type(error).__name__}: {reason}). {advice}") from error


def backbone_weights(path: str | Path) -> dict[str, Tensor]:
    """The backbone's weights of a checkpoint file, in timm's keys and the file's precision.

    They may stand under an entry such as "state_dict" or "teacher", and under a prefix such as "module.backbone.", with
    other parts beside them. Raises UserError when the file is broken or holds no state dict.
    """
    state_dict = unwrapped(read(path), path)
    prefix = prefix_of(state_dict, ANCHOR)
    weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return {key: value for key, value in weights.items() if not key.startswith(BESIDE)}


def fill(model: "VisionTransformer", weights: dict[str, Tensor], source: str | Path) -> "VisionTransformer":
    """Load weights into a model, which may be on the meta device, in float32; in place, eval mode.

    Raises UserError that lists the keys of `source` that are missing, unexpected or of another shape.
    """
    require_match(model.state_dict(), weights, source, "the ViT")
    # float() alone would return views of a file's larger storage
    model.load_state_dict({key: value.float().contiguous() for key, value in weights.items()}, assign=True)
    return model.eval()


def embed(vit: Any, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) -> the first block's input (B, N, D), class token first."""
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))


def attention_of(attention: "Attention", x: Tensor, read: Any = ...) -> Tensor:
    """timm's attention of x (B, N, D), or of the tokens x[read] alone (common/attention.py)."""
    parts = query_key_value(x, attention.qkv.weight, attention.qkv.bias, read)
    return attention.proj(attend(*parts, attention.num_heads))


def block_of(block: Any, x: Tensor, read: Any = ..., attention: Callable[..., Tensor] | None = None) -> Tensor:
    """timm's block of x (B, N, D), or of the tokens x[read] alone, with another attention where one is given."""
    if read is ... and attention is None:
        return block(x)
    x = x[read] + block.ls1((attention or attention_of)(block.attn, block.norm1(x), read=read))
    return x + block.ls2(block.mlp(block.norm2(x)))


def class_feature(
    vit: Any, x: Tensor, recompute: bool = False, last_attention: Callable[..., Tensor] | None = None
) -> Tensor:
    """Tokens x (B, N, D), the first block's input -> the class token after the final norm (B, D)."""
    for block in vit.blocks[:-1]:
        x = run_block(recompute, block, x)
    return vit.norm(run_block(recompute, block_of, vit.blocks[-1], x, CLASS_TOKEN, last_attention)[:, 0])
