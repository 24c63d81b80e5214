"""Pickles that data sets are published as, read as plain data: a pickle can name any function to be called."""

import pickle
from pathlib import Path
from typing import Any

ALLOWED = {  # what numpy's arrays and numbers are made with; lists, dicts, texts, bytes and numbers need no name
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ValueError(f"it asks to call {module}.{name}, which no data set needs; nothing was executed")
        return super().find_class(module, name)


def load_pickle(path: Path) -> Any:
    """The arrays, lists, dicts, texts, bytes and numbers of a pickle; bytes of Python 2's become texts.

    Raises UnpicklingError for a file that is damaged or holds anything else, of which nothing is executed.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise pickle.UnpicklingError(f"{path.name}: {error}") from error
