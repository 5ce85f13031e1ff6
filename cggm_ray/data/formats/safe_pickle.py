"""Reads pickles of numpy arrays and builtin containers, and nothing else.

A pickle is a program. This reader runs the few instructions that data needs, each with a check of what it works on, and
resolves only the names that numpy's own pickles need, by functions that cannot do more than make an array; every other name is
refused before it is imported, so no code in the file runs. A file cannot claim more memory than its own size either: numpy
believes the sizes and types that a pickle gives it, so they are checked before it sees them.
"""

from __future__ import annotations

import codecs
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from cggm_ray.core.errors import DataError, shown
from cggm_ray.data.formats.untrusted import reading

MOST_AXES = 32


class _ArrayKind:
    """Stands for `numpy.ndarray`, which a pickle only names and never has to call."""

    __slots__ = ()


_NDARRAY = _ArrayKind()


class _Type:
    """Stands for a `numpy.dtype`, whose own `__setstate__` would let a file call numbers addresses of objects."""

    __slots__ = ("dtype",)
    CODES = re.compile(r"[biufcSUO]\d{0,9}|\?")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not self.CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"the array type {shown(code)}; expected numbers or texts")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """The byte order; anything else that the state may say must be what the type says anyway."""
        order, *parts = state[1:]
        if order not in ("<", ">", "|", "=") or parts[:3] != [None, None, None]:
            raise pickle.UnpicklingError(f"an array type with the state {shown(state)}")
        if parts[3] not in (-1, self.dtype.itemsize):
            raise pickle.UnpicklingError(f"the array type {self.dtype} with items of {shown(parts[3])} bytes")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


def _type(value: Any) -> np.dtype[Any]:
    if not isinstance(value, _Type):
        raise pickle.UnpicklingError(f"an array whose type is {shown(value)}")
    return value.dtype


def _plain_type(value: Any) -> np.dtype[Any]:
    dtype = _type(value)
    if dtype.hasobject:
        raise pickle.UnpicklingError("a buffer of objects")
    return dtype


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MOST_AXES or not all(type(n) is int and n >= 0 for n in value):
        raise pickle.UnpicklingError(f"an array of shape {shown(value)}")
    return value


class _Reconstruct:
    """numpy's `_reconstruct`, for plain empty arrays: `_fill` fills them."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, typecode: Any) -> np.ndarray:
        if kind is not _NDARRAY or shape != (0,):
            raise pickle.UnpicklingError(f"an array of kind {shown(kind)} and shape {shown(shape)}")
        return np.ndarray.__new__(np.ndarray, (0,), "b")


def _fill(array: np.ndarray, state: Any) -> None:
    """numpy's `__setstate__` of an array, after the data is found to be as long as shape and type say.

    Raises:
        pickle.UnpicklingError: it is not.
    """
    shape, kind, fortran, data = state[-4:]
    shape, dtype = _shape(shape), _type(kind)
    size = math.prod(shape)
    if isinstance(data, str):
        # Python 2 wrote bytes, which arrive as the text of the same numbers.
        data = data.encode("latin-1")
    if not isinstance(data, list if dtype.hasobject else bytes | bytearray):
        raise pickle.UnpicklingError(f"an array of {dtype} from a {type(data).__name__}")
    held = len(data) if dtype.hasobject else len(data) // max(1, dtype.itemsize)
    if held != size or (not dtype.hasobject and len(data) != size * dtype.itemsize):
        raise pickle.UnpicklingError(f"an array of shape {shown(shape)} of {dtype} from {len(data)} items or bytes")
    if math.prod(max(1, n) for n in shape) >= 2**60:
        raise pickle.UnpicklingError(f"an array of shape {shown(shape)}")
    content: Any = (1, shape, dtype, bool(fortran), data if dtype.hasobject else bytes(data))
    array.__setstate__(content)


class _Scalar:
    """numpy's `scalar`, for fixed-size types."""

    __slots__ = ()

    def __call__(self, kind: Any, data: Any = b"") -> Any:
        dtype = _plain_type(kind)
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a numpy scalar that is not made of bytes")
        return np.frombuffer(data, dtype=dtype, count=1)[0]


class _FromBuffer:
    """numpy's `_frombuffer`, which pickles of protocol 5 use."""

    __slots__ = ()

    def __call__(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        return np.frombuffer(data, dtype=_plain_type(kind)).reshape(_shape(shape), order=order)


class _Encode:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes: only latin-1 is what pickle itself writes."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in the encoding {shown(encoding)}")
        return codecs.encode(text, "latin-1")


class _Collect:
    """`set` or `frozenset`, of keys that can be compared at once."""

    __slots__ = ("_kind",)

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __call__(self, items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise pickle.UnpicklingError(f"a set from a {type(items).__name__}")
        return self._kind(_keys(items))


class _ByteArray:
    """`bytearray` of bytes; of a number it would be as many zeros."""

    __slots__ = ()

    def __call__(self, data: Any = b"", encoding: Any = "latin-1") -> bytearray:
        if not isinstance(data, str | bytes):
            raise pickle.UnpicklingError(f"a bytearray of {shown(data)}")
        return bytearray(data if isinstance(data, bytes) else _Encode()(data, encoding))


class _Complex:
    """`complex` of two numbers."""

    __slots__ = ()

    def __call__(self, real: Any, imaginary: Any = 0.0) -> complex:
        if type(real) is not float or type(imaginary) is not float:
            raise pickle.UnpicklingError("a complex number that is not made of two numbers")
        return complex(real, imaginary)


def _keys(items: Any) -> Any:
    """Keys of a dict or items of a set: those whose hash is found at once and that cannot be made to share one."""
    for key in items:
        plain = isinstance(key, str | bytes | float | np.number | np.str_ | np.bool) or key is None
        if not plain and not (isinstance(key, int) and -(2**63) <= key < 2**64):
            raise pickle.UnpicklingError(f"the key {shown(key)}; expected texts or numbers as keys")
    return items


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUILTINS = {
    "bytearray": _ByteArray(),
    "complex": _Complex(),
    "frozenset": _Collect(frozenset),
    "set": _Collect(set),
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Encode(),
    **{(module, "_reconstruct"): _Reconstruct() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _Scalar() for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _FromBuffer() for module in ("numpy.core.numeric", "numpy._core.numeric")},
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in _BUILTINS.items()},
}


class _Bounded:
    """A file that is asked for no more than it holds, so that a length in it cannot claim memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            EOFError: there are not so many.
        """
        if count > 2**16 and count > self._size - self._file.tell():
            raise EOFError
        return self._file.read(count)


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]
"""The one in C takes sizes, places in the memo and keys as they come; this one lets every instruction be checked."""


class _SafeUnpickler(_InPython):  # type: ignore[misc]
    """Data pickles are few instructions and long strings of bytes, so that Python is fast enough for them."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(_Bounded(file), encoding="latin1")
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

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an instruction that makes an object of a class")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise pickle.UnpicklingError(f"items for a {type(self.stack[-1]).__name__}; expected a {kind.__name__}")
        return self.stack[-1]

    def _append(self) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    def _add_items(self) -> None:
        items = self.pop_mark()
        self._top(set).update(_keys(items))

    def _frozen(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_keys(items)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict).update(zip(_keys([key]), [value], strict=True))

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._top(dict).update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))

    def _byte_array(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(count)))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(state, tuple) or not 4 <= len(state) <= 9:
            raise pickle.UnpicklingError(f"the state {shown(state)}")
        made = self.stack[-1]
        if isinstance(made, _Type):
            made.__setstate__(state)
        elif type(made) is np.ndarray:
            _fill(made, state)
        else:
            raise pickle.UnpicklingError(f"a state for a {type(made).__name__}")

    dispatch: dict[int, Any] = {
        **_InPython.dispatch,
        **dict.fromkeys((op[0] for op in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX)), _refuse),
        **dict.fromkeys((op[0] for op in (pickle.EXT1, pickle.EXT2, pickle.EXT4)), _refuse),
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.BYTEARRAY8[0]: _byte_array,
        pickle.BUILD[0]: _build,
    }


def load_pickle(path: Path) -> Any:
    """The object in a pickle file, if it is made of arrays and builtin containers.

    Args:
        path: file.

    Raises:
        DataError: the file cannot be read, is not a whole pickle, or names anything but arrays and containers; nothing in
            it was executed.
    """
    with reading(path, "pickle"), path.open("rb") as file:
        return _SafeUnpickler(file, path).load()


def load_npy(path: Path) -> np.ndarray:
    """The array in an .npy file; an array of objects, which is a pickle, by the same rules as `load_pickle`.

    Args:
        path: file.

    Raises:
        DataError: as `load_pickle`.
    """
    with reading(path, ".npy file"), path.open("rb") as file:
        shape, _, dtype = npy_header(file)
        if dtype.hasobject:
            return np.asarray(_SafeUnpickler(file, path).load())
        held = os.fstat(file.fileno()).st_size - file.tell()
        check_npy(shape, dtype, held, str(path))
        file.seek(0)
        return np.load(file, allow_pickle=False)


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array in an .npy file, open at its beginning.

    Raises:
        ValueError: it has no header of a known version.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format; expected (1, 0) or (2, 0)")
    return readers[version](file)


def check_npy(shape: tuple[int, ...], dtype: np.dtype[Any], held: int, where: str) -> None:
    """Refuses a header that claims another size than the file has, for numpy would take the memory first.

    Args:
        shape, dtype: of the header.
        held: bytes after it.
        where: file and array.

    Raises:
        DataError: it does.
    """
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held:
        raise DataError(
            f"{where}: the header says {shown(shape)} of {dtype}, {claimed:,} bytes; found {held:,}; expected a complete file"
        )
