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
    arrays = [np.asarray(row) for row in rows]
    numbers = np.flatnonzero(valid)
    # A sequence without steps may have lost its width.
    known = [array for array in arrays if array.size] or arrays
    first = known[0] if known else np.zeros(())
    for row, array in zip(numbers, arrays, strict=True):
        empty = not array.size and first.ndim > 1 and array.shape[:1] == (0,)
        if not empty and (
            array.ndim != first.ndim
            or array.shape[1:] != first.shape[1:]
            or (array.ndim == 1 and array.shape != first.shape)
        ):
            raise DataError(f"{where}, row {row}: shape {array.shape}; row {numbers[0]} has {first.shape}")
    if first.ndim == 0:
        scalars = np.array(rows) if rows else np.zeros(0)
        whole = np.zeros(len(valid), scalars.dtype)
        whole[valid] = scalars
        return whole, None
    lengths = np.zeros(len(valid), np.int64)
    lengths[valid] = [len(array) for array in arrays]
    kind = np.result_type(*{array.dtype for array in known})
    shape = (len(valid), int(lengths.max(initial=0)), *first.shape[1:])
    held = sum({id(row): array.nbytes for row, array in zip(rows, arrays, strict=True)}.values())
    check_size(
        int(np.prod(shape, dtype=object)) * kind.itemsize, held, where, "one sequence is much longer than others"
    )
    stacked = np.zeros(shape, kind)
    for row, array in zip(numbers, arrays, strict=True):
        if array.size:
            stacked[row, : len(array)] = array
    return stacked, None if len(set(lengths[valid].tolist())) <= 1 else lengths


def names_of(value: Any, where: str) -> np.ndarray:
    """Returns the names of samples as texts [N].

    Names are texts, bytes, numbers, or several of them per sample, which are joined by spaces.

    Raises:
        DataError: a name has another type.
    """
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        check_leaves(value, where)
        rows = [np.atleast_1d(_row(row, f"{where}, row {number}", 0)) for number, row in enumerate(value)]
    else:
        rows = list(np.atleast_1d(plain_array(value, where)))
    names = [" ".join(str(decoded(part)) for part in np.atleast_1d(row).ravel().tolist()) for row in rows]
    return np.asarray(names, dtype=object)
