"""Loads a CLIP by name or from a file: OpenAI's archives, plain checkpoints, safetensors, the miniature.

Weights are cast from the file's precision to float32 directly; open_clip's builder would cast fine-tuned float32
weights to half in between.
"""

import hashlib
import http.client
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.clip.model import CLIP, SIZE_KEYS, build_model, config_from_state_dict
from common.command_line import did_you_mean
from common.datasets.transforms import clip_eval, clip_train
from common.errors import UserError
from common.mini import CLIP_FILE, MINI
from common.mini.weights import expanded
from common.state_dicts import listed, misfits

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
) -> tuple[CLIP, Callable, Callable]:
    """A CLIP in eval mode on `device`, its training transform and its evaluation transform.

    `name_or_path` is a name of `available_models()` or a checkpoint file. `precision` is "fp32", or "fp16"
    for OpenAI's mixture (see `to_half`). Raises UserError for an unknown name, a missing or broken file, one that is
    not a CLIP, and a failed download.
    """
    if precision not in ("fp32", "fp16"):
        raise ValueError(f'precision is "fp32" or "fp16", not {precision!r}')
    path = find_weights(name_or_path, cache_dir)
    state_dict = load_state_dict(path)
    check_keys(state_dict, path)
    model = build_model(state_dict)
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
        return _download(name, Path(cache_dir or DEFAULT_CACHE).expanduser())
    path = PACKAGED.get(name) or Path(name).expanduser()
    if path.is_file():
        return path
    hint, names = did_you_mean(name, available_models()), ", ".join(available_models())
    raise UserError(f"CLIP weights {name!r}: neither a file nor a known model.{hint} Known models: {names}")


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

    Reads safetensors, TorchScript archives (as OpenAI publishes), plain state dicts and {"state_dict": ...};
    removes a prefix of all keys (such as "module.") and the archives' three size entries. The miniature's weights, of
    whose token table the file holds a part, are expanded to full size in float32.
    Raises UserError when the file is missing, cut, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    loaded = _read(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(
            f"checkpoint {path}: it holds no state dict. Expected a dictionary of tensors, or one under 'state_dict'"
        )
    loaded = expanded(loaded) if "token_ids" in loaded else _without_prefix(loaded)
    return {key: value for key, value in loaded.items() if key not in SIZE_KEYS}


def _read(path: Path) -> object:
    """Content of the file, of a valid one a dict of tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _broken(path, error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, OpenAI's files stay
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except RuntimeError:
        pass  # not a TorchScript archive
    # by path again: an open file would have to be rewound after the first attempt
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut or foreign file makes the unpickler raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"checkpoint {path}: it holds pickled Python objects besides tensors, which are not executed."
                ' Save the weights alone: torch.save({"state_dict": model.state_dict()}, path)'
            ) from error
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"checkpoint {path}: the file is cut or is no checkpoint ({path.stat().st_size:,} bytes; {reason}). "
        "Copy or download it again"
    )


def _without_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefix of `text_projection`, if all keys have it."""
    anchor = "text_projection"
    prefixes = [key.removesuffix(anchor) for key in state_dict if key.endswith("." + anchor)]
    if len(prefixes) != 1 or not all(key.startswith(prefixes[0]) for key in state_dict):
        return state_dict
    return {key.removeprefix(prefixes[0]): value for key, value in state_dict.items()}


def check_keys(state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Raise UserError with the keys or shapes in which the state dict of file `path` differs from a CLIP's."""
    try:
        with torch.device("meta"):
            model = CLIP(config_from_state_dict(state_dict))
    except KeyError as error:
        raise UserError(f"checkpoint {path}: not a CLIP, the key {error.args[0]!r} is missing") from error
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"checkpoint {path}: not a CLIP, its shapes do not fit together ({error})") from error
    faults = misfits(model.state_dict(), state_dict, ("missing keys", "unexpected keys", "keys of another shape"))
    if faults:
        raise UserError(f"checkpoint {path}: the weights do not fit CLIP. {listed(faults, 5)}")


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
