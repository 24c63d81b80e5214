"""What a file of weights is, by its first bytes rather than by its name, and its content."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import Parsed, did_you_mean
from common.errors import UserError, machine_fault
from common.files import home_path, require_written

SAFETENSORS, TORCHSCRIPT, TORCH = "safetensors", "torchscript", "torch"
TORCH_PICKLE = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number with which torch.save began before it wrote zip archives
SCALAR: Any = np.float64(0).__reduce__()[0]  # what pickles of numpy's numbers, such as a best accuracy, call
NUMBERS: list[Any] = [
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in "?bhilBHILefd")),
]
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
ELSEWHERE = "Download the file itself again, or copy it from where it is whole"
UNPACK = "Unpack it and give the file of weights that it holds"
JAX = "the layout of JAX's releases, such as augreg's. Give the same weights as timm or PyTorch publishes them"
FOREIGN = (  # first bytes, and how a sentence about such a file goes on
    (b"version https://git-lfs", "is a Git LFS pointer instead of the weights it stands for. Run `git lfs pull` in its "
     "repository, or download the file itself."),
    (b"<", f"is a web page or another text of <tags> instead of weights: its address answered so. {ELSEWHERE}."),
    (b"\x93NUMPY", f"is a NumPy array, {JAX}."),
    (b"\x1f\x8b", f"is packed with gzip. {UNPACK}."),
    (b"BZh", f"is packed with bzip2. {UNPACK}."),
    (b"\xfd7zXZ", f"is packed with xz. {UNPACK}."),
    (b"\x28\xb5\x2f\xfd", f"is packed with zstd. {UNPACK}."),
    (b"7z\xbc\xaf", f"is a 7z archive. {UNPACK}."),
    (b"Rar!", f"is a RAR archive. {UNPACK}."),
    (b"\x89HDF", "is an HDF5 file, as Keras writes. Give the weights as PyTorch's or as safetensors."),
    (b"GGUF", "is a GGUF file, of quantised weights. Give the weights as PyTorch's or as safetensors."),
    (b"\0" * 64, f"begins with zeros: its download was not finished. {ELSEWHERE}."),
)  # fmt: skip


def read(path: str | Path) -> Any:
    """Content of a file of torch.save, or the tensors of safetensors or of a TorchScript archive; on the CPU.

    Raises UserError for a file that is missing, cut, or something else, for one not as its folder's run wrote it, and
    for one that holds pickled objects, which are not executed; argparse's options and numpy's numbers, which many
    checkpoints hold, are let through.
    """
    path = Path(path)
    try:
        kind = _kind(path)
        require_written(path)
        if kind == SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        if kind == TORCHSCRIPT:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, OpenAI's files stay
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
        # open, since torch goes by the name of a path
        with torch.serialization.safe_globals([Parsed, *NUMBERS]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} can not be read ({error.strerror}). Change its permissions or copy it.") from error
    except Exception as error:  # a cut or foreign file makes the unpickler raise nearly anything
        if machine_fault(error):
            raise
        raise UserError(f"{path} {_fault(path, error)}") from error


def _fault(path: Path, error: Exception) -> str:
    """Why a file that looked like weights could not be read, without torch's advice to execute what it holds."""
    text = str(error).strip()
    objects = re.search(r"GLOBAL (\S+)|Unsupported (?:operand|class) (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and objects:
        return (
            f"holds pickled Python objects besides tensors ({objects[1] or objects[2]}), which are not executed. "
            'Where it was made, save the weights alone: torch.save({"state_dict": model.state_dict()}, path).'
        )
    reason = type(error).__name__ if not text or "weights_only" in text else text.splitlines()[0].rstrip(".")
    return (
        f"is not a readable checkpoint: it is cut or damaged ({path.stat().st_size:,} bytes; {reason}). "
        "Copy, download or train it again."
    )


def _kind(path: Path) -> str:
    """SAFETENSORS, TORCHSCRIPT or TORCH. Raises UserError that names what the file is instead."""
    if path.is_dir():
        raise UserError(f"{path} is a folder.{_inside(path)}")
    if not path.exists():
        raise UserError(absent(path))
    with open(path, "rb") as file:
        start = file.read(512)
    size, text = path.stat().st_size, start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes). {ELSEWHERE}.")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**30:
        return SAFETENSORS
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start[:1] == b"\x80":
        if TORCH_PICKLE in start[:32]:
            return TORCH
        raise UserError(f"{path} is a Python pickle that torch.save did not write, which is not executed. Load it where"
                        " it was made, and torch.save its tensors.")  # fmt: skip
    for beginning, told in FOREIGN:
        if (text if beginning == b"<" else start).startswith(beginning):
            raise UserError(f"{path} {told}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive. {UNPACK}.")
    shown = text[:60].decode("ascii", "replace").splitlines()[:1]
    if shown and shown[0].isprintable() and "\ufffd" not in shown[0]:
        raise UserError(f"{path} is a text of {size:,} bytes instead of weights: {shown[0]!r}. {ELSEWHERE}.")
    raise UserError(
        f"{path} is no file of weights ({size:,} bytes that begin with {start[:8].hex(' ')}): neither torch.save's nor "
        "safetensors. Give such a file."
    )


def absent(path: Path) -> str:
    """The sentence about a file that does not exist, which a link may point to."""
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which does not exist. Repair the link or give the file itself."
    return f"{path} does not exist."


def _kind_of_zip(path: Path) -> str:
    """Of a file that begins as a zip archive, which torch.save, TorchScript and NumPy write. Raises as `_kind`."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if damaged := archive.testzip():  # torch.load compares no checksum
            raise zipfile.BadZipFile(f"{damaged} does not fit its checksum")
    files = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in files:
        return TORCHSCRIPT if "constants.pkl" in files else TORCH
    if files and all(name.endswith(".npy") for name in files):
        raise UserError(f"{path} holds NumPy arrays, {JAX}.")
    raise UserError(f"{path} is a zip archive of {', '.join(names[:3]) or 'nothing'}. {UNPACK}.")


def _inside(folder: Path) -> str:
    """What to do about a folder that is given as weights."""
    if list(folder.glob("**/data.pkl")):
        return " It is what torch.save's zip archive holds, unpacked. Give the archive itself."
    names = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    return f" Give the file of weights in it{', such as ' + ', '.join(names[:3]) if names else ''}."


def named_file(name: str, what: str, packaged: Mapping[str, Path], known: Iterable[str]) -> Path:
    """The file of a packaged name, or the path itself. Raises UserError, which lists the known names, for neither."""
    path = packaged.get(name) or home_path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{what} {path} is a folder.{_inside(path)}")
    if path.is_symlink():
        raise UserError(f"{what} {absent(path)}")
    hint, names = did_you_mean(name, known := list(known)), ", ".join(known)
    raise UserError(f"{what} {name!r}: neither a file nor a known name.{hint} Known names: {names}.")
