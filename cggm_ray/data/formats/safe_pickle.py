"""Reads pickles of numpy arrays and builtin containers, and nothing else.

A pickle is a program. This reader runs the few instructions that data needs, each with a check of what it works on, and
resolves only the names that numpy's own pickles need, by functions that cannot do more than make an array; every other name is
refused before it is imported, so no code in the file runs. A file cannot make the reader allocate more memory than its own
size either: numpy believes the sizes and types that a pickle gives it, so they are checked before it sees them.
"""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from cggm_ray.core.errors import DataError, short_repr
from cggm_ray.data.formats.foreign import foreign_kind, remedy
from cggm_ray.data.formats.pickle_names import ALLOWED, TypeStandIn, checked_keys, fill_array
from cggm_ray.data.formats.untrusted import reading

SAID_BYTES = 2**28
"""A pickle of more bytes is said to need memory for all of it."""


class _Bounded:
    """Limits every read to the rest of the file, so that a length in the file cannot make the reader allocate memory.

    Args:
        file: that is read.
        size: of it; None for that on the disk.
    """

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size if size is None else size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """Returns the next bytes.

        Raises:
            EOFError: there are not so many.
        """
        if count > 2**16 and count > self._size - self._file.tell():
            raise EOFError
        return self._file.read(count)


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]
"""Python's own unpickler, because the one in C lets no program check its instructions."""


class _SafeUnpickler(_InPython):  # type: ignore[misc]
    """Unpickles with checks.

    It is written in Python, which is fast enough because data has few instructions and long strings.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int | None = None) -> None:
        super().__init__(_Bounded(file, size), encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for an allowed name."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            advice = remedy(module)
            raise DataError(
                f"{self._path}: refused to load {module}.{name}; a data file may hold numpy arrays, numbers, texts, lists, "
                f"tuples, sets and dicts only{'' if advice is None else f' ({advice})'}"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """Raises an error, because no pickle of data needs persistent ids."""
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
        self._top(set).update(checked_keys(items))

    def _frozen(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(checked_keys(items)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict).update(zip(checked_keys([key]), [value], strict=True))

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._top(dict).update(zip(checked_keys(items[::2]), items[1::2], strict=True))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(checked_keys(items[::2]), items[1::2], strict=True)))

    def _byte_array(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(count)))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(state, tuple) or not 4 <= len(state) <= 9:
            raise pickle.UnpicklingError(f"the state {short_repr(state)}")
        made = self.stack[-1]
        if isinstance(made, TypeStandIn):
            made.__setstate__(state)
        elif type(made) is np.ndarray:
            fill_array(made, state)
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
    """Returns the object in a pickle file, if it is made of arrays and builtin containers.

    Args:
        path: file.

    Raises:
        DataError: the file cannot be read, is not a whole pickle, or names anything but arrays and containers; nothing in
            it was executed.
    """
    with reading(path, "pickle"):
        kind = foreign_kind(path)
        if kind is not None:
            raise DataError(f"{path}: no pickle but {kind}")
        size = path.stat().st_size
        if size > SAID_BYTES:
            print(
                f"{path}: a pickle of {size / 2**20:.0f} MiB is read whole; npz and parquet are read by rows",
                flush=True,
            )
        with path.open("rb") as file:
            return _SafeUnpickler(file, path).load()


def load_npy(path: Path) -> np.ndarray:
    """Returns the array in an .npy file.

    An array of objects is a pickle, so it is read by the rules of `load_pickle`.

    Args:
        path: file.

    Raises:
        DataError: as `load_pickle`.
    """
    with reading(path, ".npy file"), path.open("rb") as file:
        shape, _, dtype = npy_header(file)
        if dtype.hasobject:
            return load_objects(file, path)
        held = os.fstat(file.fileno()).st_size - file.tell()
        check_npy(shape, dtype, held, str(path))
        file.seek(0)
        return np.load(file, allow_pickle=False)


def load_objects(file: Any, path: Path, size: int | None = None) -> np.ndarray:
    """Returns the array of objects, such as sequences of several lengths, whose pickle begins here in an .npy file.

    Args:
        file: open after the header.
        path: of the file, for messages.
        size: of the array with its header; None for that of a file on the disk.

    Raises:
        DataError: as `load_pickle`.
    """
    return np.asarray(_SafeUnpickler(file, path, size).load())


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns the shape, order and type of the array in an .npy file that is open at its beginning.

    Raises:
        ValueError: it has no header of a known version.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format; expected (1, 0) or (2, 0)")
    return readers[version](file)


def check_npy(shape: tuple[int, ...], dtype: np.dtype[Any], held: int, where: str) -> None:
    """Refuses a header whose declared size is not that of the file, because numpy would allocate the memory first.

    Args:
        shape, dtype: of the header.
        held: bytes after it.
        where: file and array.

    Raises:
        DataError: the sizes differ.
    """
    declared = math.prod(shape) * dtype.itemsize
    if declared != held:
        raise DataError(
            f"{where}: the header says {short_repr(shape)} of {dtype}, {declared:,} bytes; found {held:,}; expected a "
            "complete file"
        )
