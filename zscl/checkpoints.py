"""Reading and writing the weights of a task: {"state_dict": ...} under OpenAI's keys, as the original's files."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.clip.activation import ACTIVATION, require_same
from common.clip.model import CLIP
from common.clip.pretrained import openai_weights
from common.errors import UserError, all_checked
from common.runs import save_tensors
from common.state_dicts import require_match, unwrapped
from common.weight_files import read
from zscl.weights import assign_, weights_of

PROTOCOL = "protocol"  # a key that checkpoints of class-incremental runs carry beside "state_dict"


def save_weights(path: Path, model: CLIP) -> None:
    """Write the model's state dict, atomically."""
    save_tensors(path, {"state_dict": model.state_dict(), ACTIVATION: model.activation})


def read_weights(path: str | Path, model: CLIP) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, after holding every key and shape against the model.

    Raises UserError for a file that is missing, damaged, of another network or activation, or of a class-incremental
    run.
    """
    content = read(path)
    loaded = unwrapped(content, path)
    if PROTOCOL in content:
        raise UserError(
            f"{path} is a checkpoint of the class-incremental run {content[PROTOCOL]!r}, not of MTIL. Use `python -m "
            "zscl.cil` for it, or give another --load."
        )
    weights = openai_weights(loaded)
    require_match(model.state_dict(), weights, path, "--model")
    require_same(model.activation, Path(path), content, loaded)
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def require_fit(paths: Iterable[str], model: CLIP) -> None:
    """Raise UserError with all that keeps these checkpoints from being of the model, as `read_weights`."""
    all_checked([partial(read_weights, path, model) for path in paths])


@torch.no_grad()
def load_weights_(model: CLIP, path: str | Path) -> None:
    """Put a checkpoint's weights into the model, parameters keeping their identity."""
    model.load_state_dict(read_weights(path, model))


@torch.no_grad()
def average_weights_(model: CLIP, paths: list[str]) -> None:
    """--load_federate: the model's weights become the uniform average of these checkpoints'."""
    all_weights = [read_weights(path, model) for path in paths]
    sums = {name: sum((each[name] for each in all_weights), torch.zeros(())) for name in weights_of(model)}
    assign_(weights_of(model), {name: total / len(all_weights) for name, total in sums.items()})
