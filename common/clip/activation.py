"""Which activation a CLIP was trained with: QuickGELU, as OpenAI's, or GELU, as most of open_clip's.

Shapes do not tell. A file tells by what OpenAI's archives hold beside the weights, by a configuration beside it, or by
the name under which open_clip publishes it; else --activation says it.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.clip import transformers_keys
from common.clip.model import GELU, QUICKGELU, SIZE_KEYS
from common.errors import UserError
from common.options import option

ACTIVATION = "activation"  # a key that checkpoints of this project carry beside "state_dict"
AUTO = "auto"
OPENAI = "openai"  # open_clip's tag of OpenAI's weights, whose files are named as models are
LEAST_TAG = 5  # letters of a tag that a file's name is held against; v1 and meta are too common


@dataclass(frozen=True)
class CLIPOptions:
    """The option of every program that loads a CLIP; a run's settings have its effect in the weights' fingerprint."""

    activation: str = option(AUTO, "quickgelu as OpenAI's, gelu as most of open_clip's; auto: as the file tells",
                             group="CLIP", choices=(AUTO, QUICKGELU, GELU), decides=False)  # fmt: skip


def settled(chosen: str, path: Path, content: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """QUICKGELU or GELU: what was chosen or, where that is AUTO, what the file tells by its content or name.

    Warns where it tells nothing for certain, and takes OpenAI's then.
    """
    if chosen != AUTO:
        return chosen
    told = told_activation(path, content, weights)
    if told is None:
        told = _of_training(content.get("name")) or QUICKGELU
        name = {QUICKGELU: "QuickGELU", GELU: "GELU"}[told]
        warnings.warn(
            f"{path} does not tell for certain which activation it was trained with; CLIP is computed with {name}. "
            f"Give --activation {QUICKGELU} for OpenAI's weights and what was tuned from them, --activation {GELU} for "
            f"most of open_clip's, or save it as {ACTIVATION!r} beside 'state_dict' in the file.",
            stacklevel=1,  # one place, so that it is shown once
        )
    return told


def told_activation(path: Path, content: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """The activation that a file tells for certain. weights: the state dict in its content, or the content itself."""
    return _of_content(content, weights) or _of_configuration(path, weights) or _of_path(path)


def require_same(activation: str, path: Path, content: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raise UserError if a file tells of another activation than this one, the model's."""
    told = told_activation(path, content, weights)
    if told not in (None, activation):
        raise UserError(f"{path} was trained with {told}, but --model computes with {activation}. Add --activation "
                        f"{told}.")  # fmt: skip


def _of_content(about: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    if about.get(ACTIVATION) in (QUICKGELU, GELU):
        return about[ACTIVATION]
    openai = set(SIZE_KEYS) <= weights.keys()
    return QUICKGELU if openai or "token_ids" in weights else None  # token_ids: the miniature's


def _of_configuration(path: Path, weights: Mapping[str, Any]) -> str | None:
    """By the file that transformers or open_clip publishes beside the weights."""
    transformers = any(key.endswith(transformers_keys.MARK) for key in weights)
    try:
        content = json.loads((path.parent / ("config.json" if transformers else "open_clip_config.json")).read_text())
        if transformers and content["model_type"] == "clip":
            towers = [content.get(f"{tower}_config") or {} for tower in ("text", "vision")]
            names = {tower.get("hidden_act", "quick_gelu") for tower in towers}  # the default in transformers
            return {"quick_gelu": QUICKGELU, "gelu": GELU}.get(names.pop()) if len(names) == 1 else None
        return QUICKGELU if content["model_cfg"].get("quick_gelu") else GELU
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_path(path: Path) -> str | None:
    """By the names of the file and its folder, or of the hub's cache, if open_clip publishes weights under them."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    path = path.absolute()
    cached = [part for part in path.parts if part.startswith("models--")]
    own, words = (_words(" ".join([*cached, *names])) for names in ([path.name], [path.parent.name, path.name]))
    if "-quickgelu-" in words:
        return QUICKGELU
    found = []
    for model, tag in list_pretrained():
        published, names = get_pretrained_cfg(model, tag), [tag]
        if tag != OPENAI:
            names += [Path(published["url"]).stem, *Path(published["hf_hub"]).parts[1:2]]
        if any(len(name) >= LEAST_TAG and _words(name) in words for name in names):
            anyones = tag == OPENAI and _words(tag) not in own  # a folder "openai", which may hold others'
            activation = QUICKGELU if published.get("quick_gelu") else _of_model(model)
            found.append((model, None if anyones else activation))
    narrowed = [entry for entry in found if _words(entry[0]) in words] or found
    activations = {activation for _, activation in narrowed}
    return activations.pop() if len(activations) == 1 else None


def _of_training(name: Any) -> str | None:
    """By the name of a run of open_clip's training, which holds the model's; a run from OpenAI's is no other."""
    from open_clip import list_models

    models = [model for model in list_models() if _words(model) in _words(str(name))]
    return _of_model(max(models, key=len)) if models else None


def _of_model(model: str) -> str:
    from open_clip import get_model_config

    return QUICKGELU if (get_model_config(model) or {}).get("quick_gelu") else GELU


def _words(name: str) -> str:
    """The name's letters and digits between hyphens, for comparisons of whole words."""
    return f"-{'-'.join(re.findall('[a-z0-9]+', name.lower()))}-"
