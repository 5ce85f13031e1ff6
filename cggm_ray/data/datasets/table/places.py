"""Cells that stay where they are: contents of media in a large parquet file, read by rows where they are decoded.

In the table of the driver stands the place of each cell, a text that `content_of` takes in any process that sees the file.
Cells are read in the order of their rows, so that every row group is decoded once from its beginning.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import is_media
from cggm_ray.data.formats.columns import LEAST_BYTES
from cggm_ray.data.formats.parquet import BUFFER_BYTES
from cggm_ray.storage.places import as_path

MARK = "\x1f"
"""Begins the place of a cell and stands between its parts: file, column and row."""
ROWS = 32
"""Rows that are read together."""


class CellPlace(pa.ExtensionType):  # type: ignore[misc]
    """Type of a column of places."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "cggm_ray.cell_place")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> CellPlace:
        return cls()


def large_media(parquet: pq.ParquetFile) -> list[str]:
    """Returns the columns of bytes, or of bytes and paths, that are too large to be held."""
    metadata, names = parquet.metadata, []
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    leaves = [groups[0].column(n).path_in_schema.split(".")[0] for n in range(metadata.num_columns)] if groups else []
    for field in parquet.schema_arrow:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or is_media(field.type):
            own = [n for n, name in enumerate(leaves) if name == field.name]
            if sum(group.column(n).total_uncompressed_size for group in groups for n in own) >= LEAST_BYTES:
                names.append(field.name)
    return names


def places(path: Path, column: str) -> pa.Array | None:
    """Returns the places of the cells of a column, null where a cell is missing; None where some are names of other files.

    Raises:
        Exception: what pyarrow raises for a damaged file.
    """
    there = []
    for batch in _batches(path, column, 0):
        contents, named = _parts(batch)
        if named is not None and pc.any(pc.and_(contents.is_null(), named.is_valid())).as_py():
            return None
        there.append(contents.is_valid().to_numpy(zero_copy_only=False))
    flags = np.concatenate(there) if there else np.zeros(0, bool)
    start = f"{MARK}{path}{MARK}{column}{MARK}"
    texts = pa.array([f"{start}{row}" if one else None for row, one in enumerate(flags.tolist())], pa.string())
    return pa.ExtensionArray.from_storage(CellPlace(), texts)


def is_place(text: str) -> bool:
    """Returns whether a text is the place of a cell."""
    return text.startswith(MARK)


def content_of(place: str) -> bytes:
    """Returns the bytes at a place.

    Raises:
        DataError: the file is gone, or is another one.
    """
    _, file, column, row = place.split(MARK)
    try:
        return _reader(file, column).read(int(row))
    except (OSError, pa.ArrowException, StopIteration) as error:
        raise DataError(f"{file}, row {int(row) + 1}, column {column}: can no longer be read: {error}") from None


class _Reader:
    """Reads cells of a column, best in ascending order. Several threads may call it.

    Args:
        file: parquet.
        column: of bytes, or of bytes and paths.
    """

    def __init__(self, file: str, column: str) -> None:
        self._path, self._column, self._lock = as_path(file), column, threading.Lock()
        with pq.ParquetFile(self._path) as parquet:
            groups = range(parquet.metadata.num_row_groups)
            self._starts = [0, *accumulate(parquet.metadata.row_group(number).num_rows for number in groups)]
        self._next, self._held, self._batches = 0, {}, iter(())  # type: tuple[int, dict[int, pa.Array], Iterator[pa.Array]]

    def read(self, row: int) -> bytes:
        """Returns the bytes of a row."""
        with self._lock:
            group = max(n for n, start in enumerate(self._starts[:-1]) if start <= row)
            while True:
                for start, values in self._held.items():
                    if start <= row < start + len(values):
                        content: bytes = values[row - start].as_py()
                        return content
                if row < self._next or self._starts[group] > self._next or not self._held:
                    self._next, self._held = self._starts[group], {}
                    self._batches = _batches(self._path, self._column, group)
                values = _parts(next(self._batches))[0]
                # Threads ask in nearly ascending order, so the rows before are kept too.
                self._held = dict([*self._held.items()][-1:]) | {self._next: values}
                self._next += len(values)


@functools.lru_cache(maxsize=8)
def _reader(file: str, column: str) -> _Reader:
    return _Reader(file, column)


def _batches(path: Path, column: str, group: int) -> Iterator[pa.Array]:
    """Yields the cells of a column from a row group on."""
    with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
        groups = range(group, parquet.metadata.num_row_groups)
        for batch in parquet.iter_batches(ROWS, row_groups=list(groups), columns=[column]):
            yield batch.column(0)


def _parts(cells: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Returns the bytes of cells, and the paths where they have some."""
    if not pa.types.is_struct(cells.type):
        return cells, None
    return pc.struct_field(cells, ["bytes"]), pc.struct_field(cells, ["path"])
