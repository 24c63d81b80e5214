"""From a name or a file to a CLIP: OpenAI's archives, plain checkpoints, safetensors, the miniature.

Weights stay in the precision of their file until the model holds them in float32; fine-tuned float32 weights
are never cast to half on the way, as open_clip's own builder would do.
"""

import hashlib
import http.client
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from common.clip.model import CLIP, build_model, config_from_state_dict
from common.datasets.transforms import clip_eval, clip_train
from common.errors import UserError
from common.mini import CLIP_FILE, MINI
from common.mini.weights import expanded
from common.state_dicts import listed, misfits

# OpenAI's names (openai/CLIP clip/clip.py:L30-L40); open_clip knows URL and SHA-256 of each, "-" for "/"
PUBLISHED = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
PACKAGED = {MINI: CLIP_FILE}
DEFAULT_CACHE = "~/.cache/clip"

# stored beside the weights in OpenAI's archives, but sizes, not weights
SIZE_KEYS = ("input_resolution", "context_length", "vocab_size")


def available_models() -> list[str]:
    """The names that `load` takes besides a path."""
    return [*PUBLISHED, *PACKAGED]


def load(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
) -> tuple[CLIP, Callable, Callable]:
    """A CLIP in eval mode on `device`, its training transform and its evaluation transform.

    `name_or_path` is a name of `available_models()` or a checkpoint file. `precision` is "fp32", or "fp16"
    for OpenAI's mixture (see `to_half`). Raises UserError: unknown name, no such file, a broken file, one
    that is not a CLIP, a failed download.
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
    """The file of a name of `available_models()`, or of a path. Published ones are downloaded if need be.

    cache_dir: where to, ~/.cache/clip by default. Raises UserError when it is neither, or when the download fails.
    """
    name = str(name_or_path)
    if name in PUBLISHED:
        return _download(name, Path(cache_dir or DEFAULT_CACHE).expanduser())
    path = PACKAGED.get(name) or Path(name).expanduser()
    if path.is_file():
        return path
    near = get_close_matches(name, available_models(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"CLIP weights {name!r}: neither a file nor a known model.{hint} Known models: {', '.join(available_models())}"
    )


def _download(name: str, cache_dir: Path) -> Path:
    """The verified archive of a published model in `cache_dir`; fetched through open_clip if it is not there.

    open_clip writes straight into its target; given a temporary folder, the cache only ever gets whole files.
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
    # TypeError: open_clip takes the length of an answer that a proxy sent without one
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
    """The weights of a CLIP checkpoint under OpenAI's keys, on the CPU, in the file's own precision.

    Reads safetensors, TorchScript archives (as OpenAI publishes), plain state dicts and {"state_dict": ...};
    takes off a prefix that all keys share (such as "module.") and drops the archives' three size entries. The
    miniature's file, which holds a part of the token table, comes at full size in float32.
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
    """What the file holds: a dict of tensors, if all is well."""
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
    """Keys without what stands before `text_projection`, if it stands before all of them."""
    anchor = "text_projection"
    prefixes = [key.removesuffix(anchor) for key in state_dict if key.endswith("." + anchor)]
    if len(prefixes) != 1 or not all(key.startswith(prefixes[0]) for key in state_dict):
        return state_dict
    return {key.removeprefix(prefixes[0]): value for key, value in state_dict.items()}


def check_keys(state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Raise UserError that names what keeps this state dict of `path` from being a CLIP: keys or shapes."""
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

    The rest stays float32: norms, embeddings, logit_scale (openai/CLIP clip/model.py:L375-L396).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.half()
        for name in ("in_proj_weight", "in_proj_bias", "proj", "text_projection"):
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.half()
