"""Reads pickles of numpy arrays and builtin containers, and nothing else.

A pickle is a program. This reader resolves only the names that numpy's own pickles need, by functions that cannot do more
than make an array; every other name is refused before it is imported, so no code in the file runs.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from cggm_ray.errors import DataError


class _ArrayKind:
    """Stands for `numpy.ndarray`, which a pickle only names and never has to call."""

    __slots__ = ()


_NDARRAY = _ArrayKind()


class _Reconstruct:
    """numpy's `_reconstruct`, for plain empty arrays: numpy fills them by their own, size-checked, `__setstate__`."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, typecode: Any) -> np.ndarray:
        if kind is not _NDARRAY or shape != (0,):
            raise pickle.UnpicklingError(f"an array of kind {kind!r} and shape {shape!r}")
        return np.ndarray.__new__(np.ndarray, (0,), "b")


class _Scalar:
    """numpy's `scalar`, for fixed-size types."""

    __slots__ = ()

    def __call__(self, dtype: Any, data: Any = b"") -> Any:
        if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
            raise pickle.UnpicklingError("a numpy scalar that is not made of bytes")
        return np.frombuffer(data, dtype=dtype, count=1)[0]


class _FromBuffer:
    """numpy's `_frombuffer`, which pickles of protocol 5 use."""

    __slots__ = ()

    def __call__(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise pickle.UnpicklingError("a buffer of objects")
        return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


class _Encode:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes: only latin-1 is what pickle itself writes."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
        return codecs.encode(text, "latin-1")


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _Encode(),
    **{(module, "_reconstruct"): _Reconstruct() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _Scalar() for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _FromBuffer() for module in ("numpy.core.numeric", "numpy._core.numeric")},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (bytearray, complex, frozenset, set)
    },
}


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an allowed name."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"{self._path}: refused to load {module}.{name}; a data file may hold numpy arrays, numbers, texts, lists, "
                "tuples, sets and dicts only"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """No pickle of data needs it."""
        raise DataError(f"{self._path}: refused a persistent reference; a data file holds its data itself")


def load_pickle(path: Path) -> Any:
    """The object in a pickle file, if it is made of arrays and builtin containers.

    Args:
        path: file.

    Raises:
        DataError: the file cannot be read, is not a whole pickle, or names anything but arrays and containers; nothing in
            it was executed.
    """
    return _guarded(path, "pickle", lambda file: _SafeUnpickler(file, path).load())


def load_npy(path: Path) -> np.ndarray:
    """The array in an .npy file; an array of objects, which is a pickle, by the same rules as `load_pickle`.

    Args:
        path: file.

    Raises:
        DataError: as `load_pickle`.
    """

    def read(file: BinaryIO) -> np.ndarray:
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        version = npy.read_magic(file)
        if version in readers and readers[version](file)[2].hasobject:
            return np.asarray(_SafeUnpickler(file, path).load())
        file.seek(0)
        return np.load(file, allow_pickle=False)

    return _guarded(path, ".npy file", read)


def _guarded(path: Path, kind: str, read: Callable[[BinaryIO], Any]) -> Any:
    try:
        with path.open("rb") as file:
            return read(file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except EOFError:
        raise DataError(f"{path}: the {kind} ends too early; expected a complete file (a broken copy?)") from None
    # A damaged file can raise nearly anything from numpy's and pickle's own code; all of it means the same.
    except Exception as error:
        raise DataError(f"{path}: not a readable {kind}: {type(error).__name__}: {error}") from None
