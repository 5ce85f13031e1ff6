"""Reads the arrays of h5 files by name; large ones by rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.columns import Column, Rows
from cggm_ray.data.formats.h5 import check_dataset, open_h5, probe
from cggm_ray.data.formats.stored import is_large
from cggm_ray.data.formats.untrusted import check_size

SPREAD = 4
"""Rows are read with those between them where that is at most so many times their number."""


class H5Column(Column):
    """An array of numbers of an h5 file.

    Args:
        path: of the file.
        key: of the array.
        shape: of it.
        dtype: of its values.
        chunk_rows: rows that the library decodes together; 0 where each can be read alone.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        self.path, self.key, self.chunk_rows = path, key, chunk_rows
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, rows: Rows) -> np.ndarray:
        with open_h5(self.path) as file:
            dataset = file[self.key]
            if isinstance(rows, slice):
                return np.asarray(dataset[rows])
            if not len(rows):
                return np.empty((0, *self.shape[1:]), self.dtype)
            first, last = int(rows[0]), int(rows[-1])
            if last - first < SPREAD * len(rows):
                return np.asarray(dataset[first : last + 1])[rows - first]
            # The library takes every row once.
            once, place = np.unique(rows, return_inverse=True)
            return np.asarray(dataset[once])[place]

    def place(self, row: int) -> int | None:
        """Returns the number of the chunk that has a row."""
        return row // self.chunk_rows if self.chunk_rows else None


def read_h5(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name, and those of a group as a dict; None for what is no array of numbers or texts.

    Raises:
        DataError: the file is damaged, or takes values from other files.
    """
    probe([path])
    with open_h5(path) as file:
        return _group(file, "", path)


def _group(group: Any, prefix: str, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in group:
        entry = group.get(name)
        if hasattr(entry, "keys") and entry.file.filename == group.file.filename:
            found[name] = _group(entry, f"{prefix}{name}/", path)
        else:
            found[name] = _array(group, name, f"{prefix}{name}", path)
    return found


def _array(group: Any, name: str, key: str, path: Path) -> Any:
    dataset = group.get(name)
    kind = getattr(dataset, "dtype", None)
    if kind is None or getattr(dataset, "shape", None) is None:
        return None
    where = f"{path}, field {key}"
    if dataset.external or dataset.is_virtual or dataset.file.filename != group.file.filename:
        raise DataError(f"{where}: takes its values from other files; expected them in this one")
    if kind.kind in "OSb":
        check_size(dataset.size * kind.itemsize, path.stat().st_size, f"{where}, shape {dataset.shape}")
        return dataset[()] if kind.kind == "b" else _texts(dataset)
    if kind.kind not in "iuf":
        return None
    check_dataset(group, name, path, f"field {key}")
    shape = tuple(dataset.shape)
    if len(shape) > 1 and is_large(shape, kind):
        chunks = dataset.chunks
        return H5Column(path, key, shape, kind, chunks[0] if chunks else 0)
    return dataset[()]


def _texts(dataset: Any) -> np.ndarray | None:
    """Returns the texts of a dataset, of fixed or of any length; None for other objects."""
    import h5py

    if h5py.check_string_dtype(dataset.dtype) is None or math.prod(dataset.shape) == 0:
        return None
    return np.asarray(dataset.asstr(errors="replace")[()], dtype=str)
