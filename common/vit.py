"""timm's ViT-B/16 under timm's key names, from each of the published checkpoints, and the miniature's tiny ViT.

    sup21k   augreg, ImageNet-21k alone                   sup1k    augreg2, ImageNet-21k, then fine-tuned on 1k
    ibot1k   iBOT on ImageNet-1k                          ibot21k  iBOT on ImageNet-22k
    dino1k   DINO on ImageNet-1k                          moco1k   MoCo v3, 300 epochs, on ImageNet-1k
    mini     the embedded miniature's

The model has no head: images (B, 3, S, S) -> the class token after the last norm (B, D). The papers normalise images
differently, in their folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from common.command_line import Parsed, did_you_mean
from common.errors import UserError
from common.mini import MINI, VIT_FILE
from common.runs import load_tensors
from common.state_dicts import misfits

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

PACKAGED = {MINI: VIT_FILE}
MINI_SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
SIZES: dict[str, dict[str, Any]] = {MINI: MINI_SIZES}  # all others are ViT-B/16
DEFAULT_FOLDER = "pretrained"  # VQ-Prompt's folder of weights
TIMM_FILE = "model.safetensors"


@dataclass(frozen=True)
class Published:
    """A ViT of vit.yaml, where the fields are explained."""

    files: Sequence[str]
    origin: str
    label: str = ""
    hub: str | None = None
    nested: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    dropped: Sequence[str] = ("head.",)


_ENTRIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PUBLISHED = {name: Published(**entry) for name, entry in _ENTRIES.items()}
LABELS = {name: published.label for name, published in PUBLISHED.items()}  # names in records and published tables
PLAIN = Published((), "")  # a user's file: timm's keys, a head is dropped


def available() -> list[str]:
    """Names that `load` accepts besides a path."""
    return [*PUBLISHED, *PACKAGED]


def load(name_or_path: str | Path, folder: str | Path = DEFAULT_FOLDER) -> "VisionTransformer":
    """The ViT of a name of `available()`, or of a checkpoint file in timm's keys; float32, on the CPU, eval mode.

    folder: see `find_weights`. Raises UserError for an unknown name, a missing or broken file, a failed download, and
    for keys or shapes that differ from a ViT-B/16 (the message lists them).
    """
    # outside the block below, in which tensors created by the import would be on the meta device
    from timm import create_model

    sizes = SIZES.get(str(name_or_path), {})
    with torch.device("meta"):  # draws no initial values
        model: Any = create_model("vit_base_patch16_224", pretrained=False, num_classes=0, **sizes)
    path = find_weights(name_or_path, folder)
    return fill(model, backbone_weights(path, PUBLISHED.get(str(name_or_path), PLAIN)), path)


def find_weights(name_or_path: str | Path, folder: str | Path = DEFAULT_FOLDER) -> Path:
    """The file of a published name, of mini, or the path itself.

    A published file is looked for in `folder` under the names in PUBLISHED, then in timm's repository, if any, through
    huggingface_hub and its cache. Raises UserError if there is none; the message says which file to put where.
    """
    name, folder = str(name_or_path), Path(folder).expanduser()
    if name not in PUBLISHED:
        path = PACKAGED.get(name) or Path(name).expanduser()
        if path.is_file():
            return path
        hint, names = did_you_mean(name, available()), ", ".join(available())
        raise UserError(f"ViT weights {name!r}: neither a file nor a known name.{hint} Known names: {names}.")
    published = PUBLISHED[name]
    for file in published.files:
        if (folder / file).is_file():
            return folder / file
    advice = f"Get {published.origin} and put it at {folder / published.files[0]}."
    if published.hub is None:
        raise UserError(f"ViT weights {name}: not in {folder}, and no copy that timm hosts. {advice}")
    return _download(published.hub, f"ViT weights {name}: not in {folder}, and the download failed", advice)


def _download(repository: str, problem: str, advice: str) -> Path:
    """timm's file of a repository on the hub, from the local cache if possible."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, TIMM_FILE))
    except Exception as error:  # the hub's client also raises errors of its HTTP library
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{problem} ({type(error).__name__}: {reason}). {advice}") from error


def backbone_weights(path: str | Path, published: Published) -> dict[str, Tensor]:
    """The backbone's weights of a checkpoint file, in timm's keys and the file's precision.

    Raises UserError when the file is broken, holds no state dict, or none of the entries `published.nested`.
    """
    content = _read(Path(path))
    if published.nested:
        nested = next((content[entry] for entry in published.nested if isinstance(content.get(entry), dict)), None)
        if nested is None:
            raise UserError(
                f"ViT weights {path}: no entry {' or '.join(map(repr, published.nested))}; the file has "
                f"{_some(sorted(map(str, content)))}. Expected {published.origin}."
            )
        content = nested
    if not all(isinstance(value, Tensor) for value in content.values()):
        others = sorted(str(key) for key, value in content.items() if not isinstance(value, Tensor))
        raise UserError(f"ViT weights {path}: no state dict; {_some(others)} are no tensors.")
    weights = {}
    for key, value in content.items():
        if key.startswith(tuple(published.dropped)):
            continue
        for prefix in published.prefixes:
            key = key.removeprefix(prefix)
        weights[key] = value
    return weights


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"ViT weights {path}: the file is cut or no checkpoint ({error}).") from error
    with torch.serialization.safe_globals([Parsed]):  # the options in iBOT's full checkpoint
        content = load_tensors(path)
    if not isinstance(content, dict):
        raise UserError(f"ViT weights {path}: it holds a {type(content).__name__} instead of a dictionary.")
    return content


def fill(model: "VisionTransformer", weights: dict[str, Tensor], source: str | Path) -> "VisionTransformer":
    """Load weights into a model, which may be on the meta device, in float32; in place, eval mode.

    Raises UserError that lists the keys of `source` that are missing, unexpected or of another shape.
    """
    faults = misfits(model.state_dict(), weights, ("keys missing", "keys not of a ViT", "keys of another shape"))
    if faults:
        lists = "; ".join(f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults.items())
        raise UserError(f"ViT weights {source}: not those of this ViT. {lists}.")
    # float() alone would return views of a file's larger storage
    model.load_state_dict({key: value.float().contiguous() for key, value in weights.items()}, assign=True)
    return model.eval()


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
