"""Stacks the rows of a column to one array: lists of numbers, of arrays, of texts, or arrays of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.untrusted import check_leaves, check_size, decoded, plain_array

MOST_NESTED = 8


def column_of(value: Any, where: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns a column as (values [N, ...], present bool [N] or None, steps int64 [N] or None).

    Rows may be None, which is missing, and sequences [T, D] of several lengths, which are padded with zeros at the end.

    Args:
        value: what a pickle holds for the column.
        where: file and field.

    Raises:
        DataError: it holds other things than numbers and texts, or rows that make no array.
    """
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        return plain_array(value, where), None, None
    if isinstance(value, np.ndarray) and not value.ndim:
        return plain_array(value.item(), where), None, None
    check_leaves(value, where)
    items = list(value)
    if not any(row is None or isinstance(row, list | tuple | np.ndarray) for row in items):
        return plain_array(value if isinstance(value, list | tuple) else items, where), None, None
    valid = np.array([row is not None for row in items])
    rows = [_row(row, f"{where}, row {number}", 0) for number, row in enumerate(items) if row is not None]
    if any(row.dtype.kind == "U" for row in rows):
        return _texts(rows, valid, where), None, None
    values, steps = stack_rows(rows, valid, where)
    return values, None if valid.all() else valid, steps


def _row(value: Any, where: str, depth: int) -> np.ndarray:
    """Returns a row as an array of numbers or texts; lists and arrays of objects in it must have one length."""
    nested = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O")
    if not nested or (isinstance(value, np.ndarray) and not value.ndim):
        return plain_array(value, where)
    if depth == MOST_NESTED:
        raise DataError(f"{where}: nested too deeply; expected at most {MOST_NESTED} axes")
    parts = [_row(part, where, depth + 1) for part in value]
    if not parts:
        return np.zeros(0)
    if len({part.shape for part in parts}) > 1:
        shapes = sorted({part.shape for part in parts})
        raise DataError(f"{where}: parts of the shapes {shapes[0]} and {shapes[-1]}; expected one shape")
    if any(part.dtype.kind == "U" for part in parts):
        parts = [part.astype(str) for part in parts]
    return np.stack(parts)


def _texts(rows: Sequence[np.ndarray], valid: np.ndarray, where: str) -> np.ndarray:
    """Returns the texts [N, ...] of one shape.

    Lists of several lengths, such as the words of sentences, become one text each.
    """
    if not valid.all():
        raise DataError(f"{where}, row {np.flatnonzero(~valid)[0]}: is missing; expected a text")
    if len({row.shape for row in rows}) == 1:
        return np.stack([row.astype(str) for row in rows])
    return plain_array([" ".join(map(str, row.ravel().tolist())) for row in rows], where)


def stack_rows(rows: Sequence[Any], valid: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the rows as one array [N, ...], with zeros in missing rows.

    Sequences of several lengths are padded, and their lengths are returned.

    Args:
        rows: arrays or numbers, of the rows that are there.
        valid: bool [N], which those are.
        where: file and column.

    Raises:
        DataError: rows of several shapes that are not sequences of the same width, or padding beyond all measure.
    """
    found = RowShapes(where)
    found.add(rows, valid)
    if not found.inner_shape:
        scalars = np.array(rows) if rows else np.zeros(0)
        whole = np.zeros(len(valid), scalars.dtype)
        whole[valid] = scalars
        return whole, None
    stacked = np.zeros(found.shape(), found.dtype)
    fill(stacked, rows, valid)
    return stacked, found.steps()


def fill(stacked: np.ndarray, rows: Sequence[Any], valid: np.ndarray) -> None:
    """Writes rows into an array [N, T, ...] of zeros, each from its beginning; `valid` says which of the N they are."""
    for row, array in zip(np.flatnonzero(valid), map(np.asarray, rows), strict=True):
        if array.size:
            stacked[row, : len(array)] = array


class RowShapes:
    """The shape that the rows of a column have together; rows come some at a time.

    Args:
        where: file and column, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._first: tuple[int, np.ndarray] | None = None
        self._known: tuple[int, ...] | None = None
        self._empty: list[tuple[int, tuple[int, ...]]] = []
        self._kinds: set[np.dtype[Any]] = set()
        self._empty_kinds: set[np.dtype[Any]] = set()
        self._valid: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._rows = self._held = 0

    def add(self, rows: Sequence[Any], valid: np.ndarray) -> None:
        """Takes the next rows; see `stack_rows`.

        Raises:
            DataError: a row has another shape than those before it.
        """
        arrays = [np.asarray(row) for row in rows]
        numbers = np.flatnonzero(valid) + self._rows
        lengths = np.zeros(len(valid), np.int64)
        for row, array in zip(numbers.tolist(), arrays, strict=True):
            self._first = self._first or (row, array)
            # A sequence without steps may have lost its width.
            if array.size:
                if self._known is None:
                    self._known = array.shape
                    for earlier, shape in self._empty:
                        self._check(earlier, shape, False)
                self._kinds.add(array.dtype)
            elif self._known is None:
                self._empty.append((row, array.shape))
                self._empty_kinds.add(array.dtype)
                continue
            self._check(row, array.shape, bool(array.size))
        if arrays and any(array.ndim for array in arrays):
            lengths[valid] = [len(array) if array.ndim else 0 for array in arrays]
        self._valid.append(valid)
        self._lengths.append(lengths)
        self._rows += len(valid)
        self._held += sum({id(row): array.nbytes for row, array in zip(rows, arrays, strict=True)}.values())

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of the first row; () for numbers."""
        if self._known is not None:
            return self._known
        if self._first is None:
            return ()
        for row, shape in self._empty:
            self._check(row, shape, False, self._first[1].shape)
        return self._first[1].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all rows."""
        return np.result_type(*(self._kinds or self._empty_kinds))

    def valid(self) -> np.ndarray:
        """Returns bool [N], which rows are there."""
        return np.concatenate(self._valid) if self._valid else np.zeros(0, bool)

    def shape(self) -> tuple[int, ...]:
        """Returns the shape of all rows together.

        Raises:
            DataError: it needs padding beyond all measure.
        """
        shape = (self._rows, int(self._all_lengths().max(initial=0)), *self.inner_shape[1:])
        check_size(
            int(np.prod(shape, dtype=object)) * self.dtype.itemsize,
            self._held,
            self._where,
            "one sequence is much longer than others",
        )
        return shape

    def steps(self) -> np.ndarray | None:
        """Returns int64 [N], the lengths of the rows, or None if all have one length."""
        lengths = self._all_lengths()
        return None if len(set(lengths[self.valid()].tolist())) <= 1 else lengths

    def _all_lengths(self) -> np.ndarray:
        return np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)

    def _check(self, row: int, shape: tuple[int, ...], some: bool, first: tuple[int, ...] | None = None) -> None:
        first = first or self._known or ()
        if not some and len(first) > 1 and shape[:1] == (0,):
            return
        if len(shape) != len(first) or shape[1:] != first[1:] or (len(shape) == 1 and shape != first):
            assert self._first is not None
            raise DataError(f"{self._where}, row {row}: shape {shape}; row {self._first[0]} has {first}")


def names_of(value: Any, where: str) -> np.ndarray:
    """Returns the names of samples as texts [N].

    Names are texts, bytes, numbers, or several of them per sample, which are joined by spaces.

    Raises:
        DataError: a name has another type.
    """
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        # An array of no axis has no rows.
        value = np.atleast_1d(value) if isinstance(value, np.ndarray) else value
        check_leaves(value, where)
        rows = [np.atleast_1d(_row(row, f"{where}, row {number}", 0)) for number, row in enumerate(value)]
    else:
        rows = list(np.atleast_1d(plain_array(value, where)))
    names = [" ".join(str(decoded(part)) for part in np.atleast_1d(row).ravel().tolist()) for row in rows]
    return np.asarray(names, dtype=object)
