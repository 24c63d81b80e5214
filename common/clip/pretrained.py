"""Loads a CLIP by name or from a file: OpenAI's archives, open_clip's, transformers', plain checkpoints, the miniature.

Weights are cast from the file's precision to float32 directly; open_clip's builder would cast fine-tuned float32
weights to half in between.
"""

import hashlib
import http.client
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.clip.activation import AUTO, settled
from common.clip.model import CLIP, GELU, SIZE_KEYS, build_model, config_from_state_dict
from common.clip.transformers_keys import MARK, openai_keys
from common.datasets.transforms import clip_eval, clip_train
from common.errors import UserError
from common.files import home_path
from common.mini import CLIP_FILE, MINI
from common.mini.weights import VOCABULARY, expanded
from common.runs import file_md5
from common.state_dicts import looks_like, prefix_of, require_match, unwrapped
from common.weight_files import named_file, read

# OpenAI's names (openai/CLIP clip/clip.py:L30-L40); open_clip knows URL and SHA-256 of each, "-" for "/"
PUBLISHED = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
PACKAGED = {MINI: CLIP_FILE}
DEFAULT_CACHE = "~/.cache/clip"


def available_models() -> list[str]:
    """Names that `load` accepts besides a path."""
    return [*PUBLISHED, *PACKAGED]


def load(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
    activation: str = AUTO,
) -> tuple[CLIP, Callable, Callable]:
    """A CLIP in eval mode on `device`, its training transform and its evaluation transform.

    `name_or_path` is a name of `available_models()` or a checkpoint file. `precision` is "fp32", or "fp16" for OpenAI's
    mixture (see `to_half`); `activation` is "quickgelu", "gelu", or "auto" for what the file tells. Raises UserError
    for an unknown name, a missing or broken file, one that is not a CLIP, and a failed download.
    """
    if precision not in ("fp32", "fp16"):
        raise ValueError(f'precision is "fp32" or "fp16", not {precision!r}')
    path = find_weights(name_or_path, cache_dir)
    content = read(path)
    loaded = unwrapped(content, path)
    state_dict = openai_weights(loaded)
    check_keys(state_dict, path)
    model = build_model(state_dict, settled(activation, path, content, loaded))
    if precision == "fp16":
        to_half(model)
    n_px = model.config.image_resolution
    return model.to(device), clip_train(n_px), clip_eval(n_px)


def find_weights(name_or_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """The file of a name of `available_models()`, or a path itself; published weights are downloaded if missing.

    cache_dir: folder of downloads, ~/.cache/clip by default. Raises UserError for neither a name nor a file, and for a
    failed download.
    """
    name = str(name_or_path)
    if name in PUBLISHED:
        return _download(name, home_path(cache_dir or DEFAULT_CACHE))
    return named_file(name, "CLIP weights", PACKAGED, available_models())


def fingerprint(name_or_path: str | Path, activation: str = AUTO) -> str:
    """md5 of the file of `find_weights`, for a run's settings; followed by " gelu" for a CLIP with GELU."""
    path = find_weights(name_or_path)
    if activation == AUTO and str(name_or_path) not in available_models():
        content = read(path)
        activation = settled(activation, path, content, unwrapped(content, path))
    return file_md5(path) + (f" {GELU}" if activation == GELU else "")


def _download(name: str, cache_dir: Path) -> Path:
    """The archive of a published model in `cache_dir`, its SHA-256 verified; downloaded by open_clip if missing.

    open_clip writes into a temporary folder first, so that the cache holds complete files only.
    """
    from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url

    url = get_pretrained_url(name.replace("/", "-").replace("@336px", "-336"), "openai")
    checksum, file_name = url.split("/")[-2:]
    target = cache_dir / file_name
    broken = ""
    if target.is_file():
        if _sha256(target) == checksum:
            return target
        broken = " The file that is there now has another SHA-256: it is cut or not OpenAI's."
        warnings.warn(f"{target} has another SHA-256 than OpenAI's file; downloading it again", stacklevel=2)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            os.replace(download_pretrained_from_url(url, cache_dir=folder), target)
    # TypeError: open_clip reads the length of an answer, which a proxy may leave out
    except (OSError, RuntimeError, TypeError, http.client.HTTPException) as error:
        raise UserError(
            f"CLIP {name} could not be downloaded from {url} ({error}). Get that file elsewhere and put it "
            f"at {target} (SHA-256 {checksum}), or give a path to it instead of the name.{broken}"
        ) from error
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights of a CLIP checkpoint in OpenAI's keys, on the CPU, in the file's precision.

    Reads what `common.weight_files.read` does, also under an entry such as "state_dict", and transformers' CLIP;
    removes a prefix of all keys (such as "module.") and the archives' three size entries. The miniature's weights, of
    whose token table the file holds a part, are expanded to full size in float32.
    Raises UserError when the file is missing, cut, or holds something else.
    """
    return openai_weights(unwrapped(read(path), path))


def openai_weights(loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file's state dict as `load_state_dict` returns them."""
    if "token_ids" in loaded:
        return expanded(loaded)
    prefix = prefix_of(loaded, "text_projection") or prefix_of(loaded, MARK)
    if all(key.startswith(prefix) for key in loaded):
        loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
    loaded = openai_keys(loaded) if MARK in loaded else loaded
    return {key: value for key, value in loaded.items() if key not in SIZE_KEYS}


def check_keys(state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Raise UserError with the keys or shapes in which the state dict of file `path` differs from a CLIP's."""
    looks = looks_like(state_dict)
    what = f"{path} is not a CLIP{f' but looks like {looks}' if looks and 'CLIP' not in looks else ''}"
    try:
        config = config_from_state_dict(state_dict)
        with torch.device("meta"):
            model = CLIP(config)
    except KeyError as error:
        if not looks and not any(key.startswith(("visual.", "transformer.")) for key in state_dict):
            raise UserError(f"{what} but another model, whose keys are {', '.join(list(state_dict)[:4])}. Give another "
                            "file.") from error  # fmt: skip
        raise UserError(f"{what}: the key {error.args[0]!r} is missing. Give another file.") from error
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{what}: its shapes do not fit together ({error}). Give another file.") from error
    if config.vocab_size > VOCABULARY:
        raise UserError(f"{path} is a CLIP for another tokenizer, of {config.vocab_size:,} tokens instead of OpenAI's "
                        f"{VOCABULARY:,}. Give another file.")  # fmt: skip
    require_match(model.state_dict(), state_dict, path, "CLIP")


def to_half(model: CLIP) -> None:
    """OpenAI's half-precision rule, in place: convolutions, linear layers, attention and both projections.

    Norms, embeddings and logit_scale stay float32 (openai/CLIP clip/model.py:L375-L396).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.half()
        for name in ("in_proj_weight", "in_proj_bias", "proj", "text_projection"):
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.half()
