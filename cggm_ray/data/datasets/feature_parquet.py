"""Reads columns of features from parquet files: small ones whole, large ones by rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats import columns
from cggm_ray.data.formats.columns import Column, Rows, row_numbers
from cggm_ray.data.formats.parquet import Usable, is_text, open_parquet, read_parquet, tensor_shape, usable_columns
from cggm_ray.data.formats.stacked import RowShapes, fill, stack_rows
from cggm_ray.data.formats.untrusted import check_size, decoded, reading

Read = tuple[np.ndarray | Column, np.ndarray | None, np.ndarray | None]
"""Values [N, ...], bool [N] of the rows that are there or None for all, and int64 [N] of the steps of sequences or None."""


def read_columns(
    files: Sequence[Path], where: str, wanted: Callable[[str], bool], whole: Callable[[str], bool]
) -> tuple[dict[str, Read], tuple[str, ...]]:
    """Returns the wanted columns of files with the same columns, and the names of all.

    Args:
        files: in the order of the samples.
        where: the files, for messages.
        wanted: whether a column is of use, by its name.
        whole: whether a column that is no array is read whole, because it says something about the samples.

    Raises:
        DataError: names file and column.
    """
    parts = [usable_columns(file, wanted) for file in files]
    names = list(parts[0].fields)
    for file, part in zip(files, parts, strict=True):
        if list(part.fields) != names:
            raise DataError(
                f"{file}: found the columns {listed(part.fields)}; expected those of {files[0]}, {listed(names)}"
            )
    large = {name for name in names if sum(part.declared[name] for part in parts) > columns.LEAST_BYTES}
    by_rows = {name for name in large if not _plain(parts, name) and not whole(name)}
    tables = [read_parquet(file, lambda name: name in names and name not in by_rows) for file in files]
    found: dict[str, Read] = {}
    for name in names:
        place = f"{where}, column {name}"
        if name in by_rows:
            found[name] = ParquetColumn.opened(files, parts, name, place)
            continue
        read = []
        for file, table in zip(files, tables, strict=True):
            with reading(file, "parquet file"):
                read.append(_column(table.column(name), table.schema.field(name), file, place))
        valid = np.concatenate([flags for _, flags in read])
        if _plain(parts, name):
            values, steps = _placed(np.concatenate([rows for rows, _ in read]), valid), None
        else:
            values, steps = stack_rows([row for rows, _ in read for row in rows], valid, place)
        found[name] = values, None if valid.all() else valid, steps
    return found, parts[0].available


def _plain(parts: Sequence[Usable], name: str) -> bool:
    """Returns whether a column holds a number for each sample in every file."""
    kinds = [part.fields[name].type for part in parts]
    return not any(
        is_text(kind) or pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType) for kind in kinds
    )


def _placed(numbers: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns numbers in their rows, and 0 in those that are missing."""
    if valid.all():
        return numbers
    whole = np.zeros(len(valid), numbers.dtype)
    whole[valid] = numbers
    return whole


class ParquetColumn(Column):
    """A column of parquet files. Rows that follow those of the call before are decoded from there on.

    Args:
        files: in the order of the samples.
        parts: their usable columns.
        name: of the column.
        where: file and column, for messages.
    """

    def __init__(self, files: Sequence[Path], parts: Sequence[Usable], name: str, where: str) -> None:
        self.files, self.name, self.where = tuple(files), name, where
        self.fields = [part.fields[name] for part in parts]
        self.groups = [(file, group, rows) for file, part in enumerate(parts) for group, rows in enumerate(part.rows)]
        self.starts = [0, *accumulate(rows for _, _, rows in self.groups)]
        declared = sum(part.declared[name] for part in parts)
        self.batch_rows = max(1, columns.BLOCK_BYTES * self.starts[-1] // max(1, declared))
        self.shape, self.dtype = (self.starts[-1],), np.dtype(str)
        self._at: _Place | None = None

    def __getstate__(self) -> Mapping[str, Any]:
        return vars(self) | {"_at": None}

    @classmethod
    def opened(cls, files: Sequence[Path], parts: Sequence[Usable], name: str, where: str) -> Read:
        """Returns a column with what is known of its rows; it is read once unless the footers say enough.

        Raises:
            DataError: rows that make no array.
        """
        made = cls(files, parts, name, where)
        complete = all(part.nulls[name] == 0 for part in parts)
        if is_text(made.fields[0].type):
            flags = [batch.valid for batch in made._batches()] if not complete else [np.ones(len(made), bool)]
            valid = np.concatenate(flags)
            return made, None if valid.all() else valid, None
        found = RowShapes(where)
        kinds = {(str(field.type), tensor_shape(field)) for field in made.fields}
        if complete and len(kinds) == 1 and tensor_shape(made.fields[0]) is not None:
            first = next(made._batches(rows=1))
            found.add(first.rows, first.valid)
            made.shape, made.dtype = (len(made), *found.inner_shape), found.dtype
            return made, None, None
        for batch in made._batches():
            found.add(batch.rows, batch.valid)
        made.shape, made.dtype, valid = found.shape(), found.dtype, found.valid()
        return made, None if valid.all() else valid, found.steps()

    def __getitem__(self, rows: Rows) -> np.ndarray:
        numbers = row_numbers(rows, len(self))
        texts: list[str] = []
        values = np.zeros((len(numbers), *self.shape[1:]), self.dtype)
        done = 0
        while done < len(numbers):
            batch = self._batch_with(int(numbers[done]))
            stop = int(np.searchsorted(numbers, batch.start + len(batch.valid)))
            inside = numbers[done:stop] - batch.start
            there = batch.valid[inside]
            picked = [batch.rows[place] for place in (np.cumsum(batch.valid) - 1)[inside[there]].tolist()]
            if self.ndim > 1:
                fill(values[done:stop], picked, there)
            else:
                left = iter(picked)
                texts += [next(left) if flag else "" for flag in there.tolist()]
            done = stop
        return values if self.ndim > 1 else np.array(texts, dtype=str)

    def place(self, row: int) -> int:
        """Returns the number of the row group, which is decoded from its beginning."""
        return bisect_right(self.starts, row) - 1

    def _batch_with(self, row: int) -> _Batch:
        group = self.place(row)
        if self._at is None or self._at.group != group or row < self._at.batch.start:
            batches = self._batches(group)
            self._at = _Place(group, batches, next(batches))
        while row >= self._at.batch.start + len(self._at.batch.valid):
            self._at.batch = next(self._at.batches)
        return self._at.batch

    def _batches(self, only: int | None = None, rows: int | None = None) -> Iterator[_Batch]:
        """Yields the rows of all row groups, or of one, some at a time."""
        most = rows or self.batch_rows
        for place, (number, group, _) in enumerate(self.groups):
            if only not in (None, place):
                continue
            file, start, field = self.files[number], self.starts[place], self.fields[number]
            with reading(file, "parquet file"), open_parquet(file, [self.name], [field]) as parquet:
                for batch in parquet.iter_batches(most, row_groups=[group], columns=[self.name]):
                    found, valid = _column(pa.chunked_array([batch.column(0)]), field, file, self.where)
                    yield _Batch(start, found, valid)
                    start += len(valid)


@dataclass(frozen=True)
class _Batch:
    """Rows of a column: the number of the first, those that are there, and bool [n], which those are."""

    start: int
    rows: Sequence[Any]
    valid: np.ndarray


@dataclass
class _Place:
    """Where a column was read last."""

    group: int
    batches: Iterator[_Batch]
    batch: _Batch


def _column(column: pa.ChunkedArray, schema: pa.Field, file: Path, where: str) -> tuple[Any, np.ndarray]:
    """Returns the rows of a column that are not null, an array or a list of arrays or texts, and bool [N], which those are."""
    valid = np.concatenate(
        [chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in column.chunks] or [np.empty(0, bool)]
    )
    kept = column.drop_null()
    shape = tensor_shape(schema)
    if shape is not None:
        chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in kept.chunks]
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
        return [row for values in flat for row in values.reshape(-1, *shape)], valid
    if pa.types.is_dictionary(schema.type):
        return _texts(kept, file, where), valid
    chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in kept.chunks]
    if not pa.types.is_nested(schema.type):
        return np.concatenate(chunks or [np.empty(0)]), valid
    try:
        return [_nested(value) for values in chunks for value in values], valid
    except ValueError as error:
        raise DataError(f"{where}: lists that do not make an array: {error}") from None


def _texts(column: pa.ChunkedArray, file: Path, where: str) -> list[str]:
    """Returns the texts of a column that was read as a dictionary, so that repeated texts share memory."""
    texts: list[str] = []
    for chunk in column.chunks:
        entries = [decoded(entry) for entry in chunk.dictionary.to_pylist()]
        longest = max(map(len, entries), default=0)
        check_size(4 * len(column) * longest, file.stat().st_size, where, "one text is much longer than others")
        texts += [entries[code] for code in chunk.indices.to_pylist()]
    return texts


def _nested(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return np.stack([_nested(item) for item in array]) if array.dtype.kind == "O" and len(array) else array
