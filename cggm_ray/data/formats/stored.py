"""Reads arrays that lie uncompressed in files: safetensors, and folders of .npy files. Large ones are read by rows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats import columns
from cggm_ray.data.formats.columns import Column, Rows
from cggm_ray.data.formats.safe_pickle import check_npy, load_npy, npy_header
from cggm_ray.data.formats.untrusted import reading

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether in Fortran's order, and type of an array."""
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
"""Types of safetensors that numpy has."""


class StoredColumn(Column):
    """An array that lies in a file as it is in memory.

    Args:
        path: of the file.
        offset: of the values in it.
        header: of the array.
    """

    def __init__(self, path: Path, offset: int, header: Header) -> None:
        self.path, self.offset = path, offset
        self.shape, self.fortran, self.dtype = header

    def __getitem__(self, rows: Rows) -> np.ndarray:
        with reading(self.path, "file of arrays"):
            # The map ends here, so that only the pages of these rows are resident, and only until they are copied.
            whole = np.memmap(self.file(), self.dtype, "r", self.offset, self.shape, order="F" if self.fortran else "C")
            return np.array(whole[rows], order="C")

    def file(self) -> Path:
        """Returns the file that the values lie in."""
        return self.path.local() if hasattr(self.path, "local") else self.path


def read_safetensors(path: Path) -> dict[str, np.ndarray | Column]:
    """Returns the tensors of a file.

    Raises:
        DataError: the file is damaged, or a tensor has a type that numpy has not.
    """
    from safetensors import safe_open

    with reading(path, "safetensors file"):
        with safe_open(os.fspath(path), "np") as file:
            # The library checks that names, sizes and offsets belong together.
            names = list(file.keys())
        with path.open("rb") as content:
            start = 8 + int.from_bytes(content.read(8), "little")
            about = json.loads(content.read(start - 8))
    found = {}
    for name in names:
        kind = about[name]["dtype"]
        if kind not in _TYPES:
            raise DataError(f"{path}, field {name}: found {kind}; expected a type that numpy has, such as F32")
        header = (tuple(about[name]["shape"]), False, np.dtype(_TYPES[kind]))
        found[name] = small_or_stored(path, start + about[name]["data_offsets"][0], header)
    return found


def read_npy(path: Path) -> np.ndarray | Column:
    """Returns the array of an .npy file.

    Raises:
        DataError: the file is damaged, or holds objects.
    """
    with reading(path, ".npy file"):
        with path.open("rb") as file:
            header = npy_header(file)
            start = file.tell()
        shape, _, dtype = header
        if dtype.hasobject:
            return load_npy(path)
        check_npy(shape, dtype, path.stat().st_size - start, str(path))
        if dtype.kind in "biufc":
            return small_or_stored(path, start, header)
        with path.open("rb") as file:
            texts: np.ndarray = npy.read_array(file, allow_pickle=False)
        return texts


def small_or_stored(path: Path, offset: int, header: Header) -> np.ndarray | Column:
    """Returns an array that lies in a file, or a column if it is a large one of samples that are no single numbers."""
    column = StoredColumn(path, offset, header)
    return column if is_large(column.shape, column.dtype) and column.ndim > 1 else small(column)


def small(column: Column) -> np.ndarray:
    """Returns all values of a column; of one without values, and of a single number, which no map can hold, too."""
    if 0 in column.shape:
        return np.empty(column.shape, column.dtype)
    if column.shape:
        return column[:]
    assert isinstance(column, StoredColumn)
    with reading(column.path, "file of arrays"):
        return np.fromfile(column.file(), column.dtype, 1, offset=column.offset).reshape(())


def is_large(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Returns whether an array is so large that it is read by rows."""
    return 0 not in shape and math.prod(shape) * dtype.itemsize > columns.LEAST_BYTES
